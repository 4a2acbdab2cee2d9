"""Images whose layers carry an ostree commit, made by hand from commits of the real ostree as the original encapsulates them."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from bootc_ostree import objects
from bootc_ostree.objects import escape_ref
from bootc_ostree.repo import Repo
from bootc_ostree.variant import encode
from support import images
from support.ostree_program import ostree

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.testing.contract import OS
from bootc_core.testing.images import FakeImage, FakeLayer

pytestmark = [pytest.mark.root, pytest.mark.real]
IMAGE = f"ostree/container/image/{escape_ref('docker://' + OS)}"
PLACE = "sysroot/ostree/repo/objects"


def base_tree(place: Path, version: str) -> None:
    modules = place / "usr/lib/modules/6.1-test"
    for folder in ("usr/etc", "usr/bin", "usr/share/doc", "boot", "sysroot", "var", "run", "proc"):
        (place / folder).mkdir(parents=True)
    modules.mkdir(parents=True)
    (modules / "vmlinuz").write_bytes(b"kernel")
    (modules / "initramfs.img").write_bytes(b"initramfs")
    (place / "usr/lib/os-release").write_text(f"ID=acme\nVERSION_ID={version}\n")
    (place / "usr/etc/issue").write_text("issue\n")
    (place / "usr/bin/ping").write_bytes(b"ping" * 100)
    (place / "usr/bin/ping").chmod(0o4755)
    os.setxattr(place / "usr/bin/ping", "user.note", b"kept out of band")
    (place / "usr/bin/big").write_bytes(b"0123456789abcdef" * 200_000)
    (place / "usr/share/doc/same").write_text("unchanged\n")
    (place / "usr/lib/os").symlink_to("os-release")
    os.chown(place / "usr/share/doc", 3, 4)


class Encapsulated:
    """A commit of a repository as layers: the commit's own, and one chunk for each group of files."""

    def __init__(self, home: Path, version: str, *, old_form: bool = False) -> None:
        self.repo, tree = home / "repo", home / f"tree-{version}"
        if not self.repo.exists():
            self.repo.mkdir(parents=True)
            ostree("init", f"--repo={self.repo}", "--mode=bare")
        base_tree(tree, version)
        self.commit = ostree(
            "commit", f"--repo={self.repo}", "-b", "base", f"--tree=dir={tree}",
            f"--add-metadata-string=version={version}", "--timestamp=2026-01-01T00:00:00Z",
        )  # fmt: skip
        self._old = old_form
        first: dict[str, images.Item] = {"sysroot": images.Dir(), PLACE: images.Dir()}
        chunk: dict[str, images.Item] = {}
        links: dict[str, images.Item] = {}
        self._object(first, self.commit, "commit")
        parsed = objects.parse_commit(self._path(self.commit, "commit").read_bytes())
        self._tree(parsed["tree"].hex(), parsed["meta"].hex(), "", first, chunk, links)
        self.layers = [{**first, **links}, chunk]

    def _path(self, checksum: str, kind: str) -> Path:
        return self.repo / f"objects/{checksum[:2]}/{checksum[2:]}.{kind}"

    def _object(self, into: dict[str, images.Item], checksum: str, kind: str) -> None:
        name = f"{PLACE}/{checksum[:2]}/{checksum[2:]}.{kind}"
        into[name] = images.File(self._path(checksum, kind).read_bytes())

    def _tree(self, tree, meta, path, first, chunk, links):
        self._object(first, tree, "dirtree")
        self._object(first, meta, "dirmeta")
        files, directories = objects.parse_dirtree(self._path(tree, "dirtree").read_bytes())
        for name, checksum in files:
            into = chunk if path.startswith(("usr/share", "usr/bin")) else first
            self._content(into, checksum.hex())
            outside = f"{path}/{name}".replace("usr/etc/", "etc/", 1)
            target = f"{PLACE}/{checksum.hex()[:2]}/{checksum.hex()[2:]}.file"
            (links if into is first else chunk)[outside] = images.Hard(target)
        for name, inner, about in directories:
            place = f"{path}/{name}" if path else name
            self._tree(inner.hex(), about.hex(), place, first, chunk, links)

    def _content(self, into: dict[str, images.Item], checksum: str) -> None:
        path, name = self._path(checksum, "file"), f"{PLACE}/{checksum[:2]}/{checksum[2:]}.file"
        info = path.lstat()
        pairs = [
            (key.encode() + b"\0", os.getxattr(path, key, follow_symlinks=False))
            for key in sorted(os.listxattr(path, follow_symlinks=False))
        ]
        data = encode("a(ayay)", pairs)
        own = hashlib.sha256(data).hexdigest()
        if self._old:
            if pairs:
                into[f"sysroot/ostree/repo/xattrs/{own}"] = images.File(data)
                into[f"{name}.xattrs"] = images.Hard(f"sysroot/ostree/repo/xattrs/{own}")
        else:
            attributes = f"{PLACE}/{own[:2]}/{own[2:]}.file-xattrs"
            into[attributes] = images.File(data)
            into[f"{name}-xattrs-link"] = images.Hard(attributes)
        if path.is_symlink():
            into[name] = images.Link(str(path.readlink()))
        else:
            into[name] = images.File(path.read_bytes(), info.st_mode, info.st_uid, info.st_gid)

    def image(self, *derived: images.Layer, version: str) -> FakeImage:
        made = []
        for layer in (*self.layers, *derived):
            data = images.tar(layer)
            name = "sha256:" + hashlib.sha256(data).hexdigest()
            made.append(FakeLayer(gzip.compress(data, 6, mtime=0), name))
        labels = {
            "org.opencontainers.image.version": version,
            "containers.bootc": "1",
            "ostree.commit": self.commit,
            "ostree.final-diffid": made[len(self.layers) - 1].diff_id,
        }
        return FakeImage(tuple(made), labels)


def deploy(system, image):
    system.transport.images[OS] = image
    system.transport.opened.clear()
    return system.switch(OS) if system.status().booted is None else system.upgrade()


@pytest.mark.parametrize("old_form", [False, True])
def test_the_commit_is_the_one_that_was_encapsulated(system, tmp_path, old_form):
    made = Encapsulated(tmp_path / "build", "1", old_form=old_form)
    image = made.image(version="1")
    deploy(system, image)
    repo = f"--repo={system.sysroot.path}/ostree/repo"
    ostree("fsck", repo, "--quiet")
    assert ostree("show", repo, "--print-metadata-key=version", made.commit) == "'1'"
    assert f"Parent:  {made.commit}" in ostree("show", repo, IMAGE)
    ours, theirs = (
        ostree("ls", where, "-R", "-C", "-X", commit)
        for where, commit in ((repo, IMAGE), (f"--repo={made.repo}", made.commit))
    )
    assert ours == theirs, "every file, owner, mode, attribute and checksum"
    refs = [f"ostree/container/blob/{escape_ref(layer.digest)}" for layer in image.layers]
    assert ostree("rev-parse", repo, refs[0]) == made.commit
    listed = ostree("ls", repo, refs[1]).splitlines()
    names = [line.split()[-1].lstrip("/") for line in listed[1:]]
    assert names
    for name in names:
        assert (system.sysroot.path / f"ostree/repo/objects/{name[:2]}/{name[2:]}.file").exists()
    root = next(system.sysroot.path.glob("ostree/deploy/default/deploy/*.0"))
    assert os.getxattr(root / "usr/bin/ping", "user.note") == b"kept out of band"
    assert (root / "usr/bin/ping").stat().st_mode & 0o7777 == 0o4755
    assert (root / "etc/issue").read_text() == "issue\n"
    assert not list((root / "sysroot").iterdir())


def test_derived_layers_and_updates(system, tmp_path):
    derived = {"etc/added": "mine\n", "usr/bin/.wh.ping": b"", "usr/share/doc/more": "x"}
    first = Encapsulated(tmp_path / "build", "1")
    deploy(system, first.image(derived, version="1"))
    root = next(system.sysroot.path.glob("ostree/deploy/default/deploy/*.0"))
    assert not (root / "usr/bin/ping").exists()
    assert (root / "etc/added").read_text() == "mine\n"
    assert (root / "usr/share/doc").stat().st_uid == 3
    second = Encapsulated(tmp_path / "build", "2")
    image = second.image(derived, version="2")
    deploy(system, image)
    assert system.transport.opened == [image.layers[0].digest], "only the commit's layer is new"
    assert system.versions() == ("2", "1")
    for version in ("3", "4"):
        deploy(system, Encapsulated(tmp_path / "build", version).image(version=version))
    repo = f"--repo={system.sysroot.path}/ostree/repo"
    ostree("fsck", repo, "--quiet")
    for commit in (first.commit, second.commit):
        missing = subprocess.run(["ostree", "show", repo, commit], capture_output=True, check=False)
        assert missing.returncode != 0, "a base that nothing needs is gone"


def test_a_squashed_image_is_an_ordinary_one(system):
    data = images.tar(images.bootable())
    layer = FakeLayer(gzip.compress(data, 6), "sha256:" + hashlib.sha256(data).hexdigest())
    labels = {"ostree.final-diffid": "sha256:" + "0" * 64, "containers.bootc": "1"}
    deploy(system, FakeImage((layer,), labels))
    assert system.status().booted is not None


def _object_of(layer, kind):
    return next(name for name in layer if name.endswith(kind))


@pytest.mark.parametrize("case", ["content", "tree", "missing-tree", "missing-content", "xattrs"])
def test_what_does_not_fit_is_refused(system, tmp_path, case):
    made = Encapsulated(tmp_path / "build", "1")
    first, chunk = made.layers
    if case == "content":
        name = next(
            name
            for name in chunk
            if name.endswith(".file") and isinstance(chunk[name], images.File)
        )
        chunk[name] = images.File(chunk[name].data + b"!", chunk[name].mode)
    elif case == "tree":
        first[_object_of(first, ".dirtree")] = images.File(b"\x00")
    elif case == "missing-tree":
        del first[_object_of(first, ".dirtree")]
    elif case == "missing-content":
        name = _object_of(chunk, ".file")
        made.layers[1] = {
            key: value
            for key, value in chunk.items()
            if not key.startswith(name) and value != images.Hard(name)
        }
    else:
        name = _object_of(chunk, ".file-xattrs")
        chunk[name] = images.File(b"\x07\x07\x07")
    with pytest.raises(ContentError) as caught:
        deploy(system, made.image(version="1"))
    assert caught.value.reference == "bad-object"
    assert system.status().booted is None
    assert ostree("refs", f"--repo={system.sysroot.path}/ostree/repo") == ""


@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_names_that_no_directory_has(tmp_path, name):
    repo = Repo(tmp_path)
    repo.objects.mkdir(parents=True)
    content = repo.put_object(b"", "file")
    tree = repo.put_object(objects.dirtree([(name, bytes.fromhex(content))], []), "dirtree")
    meta = repo.put_object(objects.dirmeta(0, 0, 0o40755), "dirmeta")
    data = objects.commit(bytes.fromhex(tree), bytes.fromhex(meta), metadata={}, timestamp=0)
    commit = repo.put_object(data, "commit")
    with pytest.raises(ContentError, match="cannot be deployed"):
        list(repo.layer_members(commit))


def test_few_objects_that_mean_any_number_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ENTRIES", 10_000)
    repo = Repo(tmp_path)
    repo.objects.mkdir(parents=True)
    meta = bytes.fromhex(repo.put_object(objects.dirmeta(0, 0, 0o40755), "dirmeta"))
    tree = bytes.fromhex(repo.put_object(objects.dirtree([], []), "dirtree"))
    for _ in range(64):
        twice = [(name, tree, meta) for name in ("a", "b")]
        tree = bytes.fromhex(repo.put_object(objects.dirtree([], twice), "dirtree"))
    commit = repo.put_object(objects.commit(tree, meta, metadata={}, timestamp=0), "commit")
    with pytest.raises(ContentError) as caught:
        for _ in repo.layer_members(commit):
            pass
    assert caught.value.catalogue == "LIM"
