"""Hosts as the real ostree sees them: refs, metadata key by key, deployments, pins, hosts that other programs made."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from bootc_ostree import state
from bootc_ostree.objects import escape_ref
from bootc_ostree.repo import Repo
from support import images
from support.ostree_program import ostree

from bootc_core.errors import ContentError, StorageError, UsageError
from bootc_core.models.reference import ImageReference
from bootc_core.testing.contract import OS
from bootc_core.testing.images import FakeImage, FakeLayer, make_image

pytestmark = [pytest.mark.root, pytest.mark.real]


def image_of(*layers, version="1", **more):
    """An image of layers in the form of ``support.images``."""
    made = []
    for layer in layers:
        data = images.tar(layer)
        name = "sha256:" + hashlib.sha256(data).hexdigest()
        made.append(FakeLayer(gzip.compress(data, 6, mtime=0), name))
    labels = {"org.opencontainers.image.version": version, "containers.bootc": "1"}
    return FakeImage(tuple(made), {**labels, **more})


def deploy(system, image, reference=OS):
    system.transport.images[reference] = image
    return system.switch(reference) if system.status().booted is None else system.upgrade()


def repo_of(system):
    return system.sysroot.path / "ostree/repo"


def image_ref(reference=OS):
    return f"ostree/container/image/{escape_ref('docker://' + reference)}"


# --- what the real ostree reads ---------------------------------------------------------------


def test_refs_and_metadata_key_by_key(system):
    image = make_image("1")
    deploy(system, image)
    repo = repo_of(system)
    ostree("fsck", f"--repo={repo}", "--quiet")
    refs = ostree("refs", f"--repo={repo}", "--list").splitlines()
    blobs = [f"ostree/container/blob/{escape_ref(layer.digest)}" for layer in image.layers]
    assert image_ref() == "ostree/container/image/docker_3A__2F__2F_quay_2E_io/acme/os_3A_stable"
    assert {image_ref(), *blobs} <= set(refs)
    (own,) = [ref for ref in refs if not ref.startswith("ostree/container/")]
    assert re.fullmatch("ostree/[01]/[01]/0", own), "libostree's own, of the deployment"

    def value(ref, key):
        return ostree("show", f"--repo={repo}", f"--print-metadata-key={key}", ref)

    assert value(image_ref(), "ostree.manifest-digest") == f"'{image.digest}'"
    assert json.loads(value(image_ref(), "ostree.manifest")[1:-1]) == json.loads(image.manifest.raw)
    config = value(image_ref(), "ostree.container.image-config")[1:-1]
    assert json.loads(config) == json.loads(image.config.raw)
    for ref in (image_ref(), *blobs):
        assert value(ref, "ostree.importer.version") == "'1'"
        shown = ostree("show", f"--repo={repo}", ref)
        assert "(no subject)" in shown
        assert "Parent" not in shown
    raw = ostree("show", f"--repo={repo}", "--raw", image_ref())
    assert raw.count("'ostree.") == 4, "no key beside those four"
    created = json.loads(image.config.raw)["created"][:10]
    assert f"Date:  {created}" in ostree("show", f"--repo={repo}", image_ref())


def test_a_commit_has_the_images_tree_and_a_layer_its_own(system):
    deploy(system, make_image("1", files={"etc/removed.conf": None, "run/gone": b"x"}))
    repo = repo_of(system)
    listed = ostree("ls", f"--repo={repo}", "-R", image_ref())
    paths = {line.split()[-1] for line in listed.splitlines()}
    assert "/usr/etc/test.conf" in paths
    assert "/etc" not in paths
    assert "/usr/etc/removed.conf" not in paths
    assert "/run" in paths
    assert "/run/gone" not in paths
    top = system.transport.images[OS].layers[1]
    layer = f"ostree/container/blob/{escape_ref(top.digest)}"
    own = {line.split()[-1] for line in ostree("ls", f"--repo={repo}", "-R", layer).splitlines()}
    assert "/usr/etc/.wh.removed.conf" in own, "another program needs the whiteout to merge"
    assert "/usr/etc/test.conf" not in own
    assert "/usr/share/version" in own


def test_the_real_ostree_knows_the_deployments(system):
    deploy(system, make_image("1"))
    deploy(system, make_image("2"))
    first, second = system.booting()
    shown = ostree("admin", "status", f"--sysroot={system.sysroot.path}")
    assert shown.index(first[:64]) < shown.index(second[:64])
    assert "origin: <unknown origin type>" in shown or "container-image-reference" in shown
    origin = (system.sysroot.path / f"ostree/deploy/default/deploy/{first}.origin").read_text()
    assert f"container-image-reference=ostree-unverified-registry:{OS}\n" in origin


def test_every_file_of_a_deployment_is_the_images(system, tmp_path):
    """Against the image as umoci unpacks it: type, mode, owner, attributes, content, link target."""
    base = {
        **images.bootable({"etc/issue": "issue\n", "opt/kept": "x", "usr/lib/gone": "gone"}),
        "usr/bin/suid": images.File(b"s" * 4000, mode=0o4755, uid=7, gid=8),
        "usr/bin/hard": images.Hard("usr/bin/suid"),
        "usr/lib/attributed": images.File(b"a", xattrs={"user.note": "value"}),
        "usr/lib/labelled": images.File(b"l", 0o750, xattrs={"security.selinux": "x:y:z:s0"}),
        "usr/lib/big": b"\x00\x01" * 500_000,
        "usr/lib/sticky": images.Dir(mode=0o1777, uid=3, gid=4),
        "usr/lib/link": images.Link("../bin/suid"),
        "usr/lib/empty": b"",
        "usr/lib/naïve": "utf-8",
    }
    top = {"usr/lib/.wh.gone": b"", "usr/lib/added": "new", "usr/lib/big": b"smaller"}
    layout = images.build(tmp_path / "layout", [base, top])
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout.path}:latest", tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    made = image_of(base, top)
    deploy(system, made)
    found = tmp_path / "host/sysroot/ostree/deploy/default/deploy" / system.booting()[0]
    expected = tmp_path / "bundle/rootfs"

    def table(root, skipped):
        rows, inodes = {}, {}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if name.split("/")[0] in skipped or name.split("/")[0] in {"sys", "proc", "dev"}:
                continue
            info = path.lstat()
            content = (
                os.readlink(path)
                if path.is_symlink()
                else hashlib.sha256(path.read_bytes()).hexdigest()
                if path.is_file()
                else None
            )
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            rows[name] = (info.st_mode, info.st_uid, info.st_gid, attributes, content)
            inodes[name] = info.st_ino
        return rows, inodes

    ours, inodes = table(found, {"etc", "var", "boot", ".ostree.cfs"})
    theirs, _ = table(expected, {"var", "boot"})
    theirs = {
        ("usr/" + name if name == "etc" or name.startswith("etc/") else name): row
        for name, row in theirs.items()
    }
    # libostree before 2024.3 cannot fill /var from a commit: the image's is among the factory defaults
    added = {"usr/share", "usr/share/factory"}
    ours = {
        name: row
        for name, row in ours.items()
        if name not in added and not name.startswith("usr/share/factory/var")
    }
    assert ours == theirs
    assert inodes["usr/bin/suid"] == inodes["usr/bin/hard"]
    etc = found / "etc/issue"
    assert etc.read_text() == "issue\n"


# --- pins, cached updates, modified hosts -------------------------------------------------------


def test_a_pinned_deployment_stays(system):
    deploy(system, make_image("1"))
    ostree("admin", "pin", f"--sysroot={system.sysroot.path}", "0")
    assert system.status().booted.pinned
    for version in ("2", "3", "4"):
        deploy(system, make_image(version))
    host = system.status()
    assert system.versions() == ("4", "3")
    (kept,) = host.other
    assert (kept.image.version, kept.pinned, host.booted.pinned) == ("1", True, False)
    ostree("fsck", f"--repo={repo_of(system)}", "--quiet")


def test_an_update_that_was_seen_is_shown(system):
    deploy(system, make_image("1"))
    commit = system.booting()[0][:64]
    # what others keep there must survive
    signature = f"--repo={repo_of(system)}"
    repo = Repo(system.sysroot.path)
    repo.write_detached(commit, {"ostree.gpgsigs": ("aay", [b"\x01signature\xff"])})
    image = make_image("2")
    system.transport.images[OS] = image
    reference = ImageReference.parse(OS)

    async def fetch():
        from bootc_core.hooks.calls import Hooks
        from bootc_core.testing.contract import Phase, _context

        hooks = Hooks(system.plugins)
        return await hooks.fetch("fake_transport", _context(system, Phase.FETCH), reference)

    fetched = system.run(fetch)
    note = system.storage().backend.offer.note_update
    note(system.sysroot, reference, fetched)
    host = system.status()
    assert host.booted.cached_update.image_digest == image.digest
    assert host.booted.cached_update.version == "2"
    key = "--print-detached-metadata-key=ostree-ext.cached.manifest-digest"
    assert ostree("show", signature, key, commit) == f"'{image.digest}'"
    assert repo.read_detached(commit)["ostree.gpgsigs"] == ("aay", [b"\x01signature\xff"])
    ostree("fsck", signature, "--quiet")
    other = ImageReference.parse("quay.io/else/os:1")
    before = repo.read_detached(commit)
    note(system.sysroot, other, fetched)
    assert repo.read_detached(commit) == before, "another image is no update of this one"
    system.upgrade()
    assert system.status().rollback.cached_update.version == "2"
    assert system.status().booted.cached_update is None


def test_layered_packages_make_a_host_incompatible(system):
    deploy(system, make_image("1"))
    origin = system.sysroot.path / f"ostree/deploy/default/deploy/{system.booting()[0]}.origin"
    origin.write_text(origin.read_text() + "\n[packages]\nrequested=htop;\n")
    host = system.status()
    assert host.booted.incompatible
    assert host.booted.image is None
    system.transport.images[OS] = make_image("2")
    with pytest.raises(UsageError, match="rpm-ostree"):
        system.upgrade()


# --- hosts of other programs --------------------------------------------------------------------


def by_the_original(system, image, reference=OS, *, stateroot="default"):
    """A host as the original leaves it, made with the real ostree by the reference's layout (parity, 7.2 to 7.5)."""
    sysroot = system.sysroot.path
    repo = sysroot / "ostree/repo"
    place = sysroot.parent / "building"
    if not repo.exists():
        sysroot.mkdir(parents=True, exist_ok=True)
        ostree("admin", "init-fs", "--modern", sysroot)
        ostree("config", f"--repo={repo}", "set", "sysroot.bootloader", "none")
        ostree("admin", f"--sysroot={sysroot}", "os-init", stateroot)
    subprocess.run(["rm", "-rf", place], check=True)
    place.mkdir()
    for number, layer in enumerate(image.layers):
        archive = place / f"{number}.tar"
        archive.write_bytes(gzip.decompress(layer.blob))
        ref = f"ostree/container/blob/{escape_ref(layer.digest)}"
        ostree(
            "commit", f"--repo={repo}", "--no-bindings", "--tar-autocreate-parents",
            "--tar-pathname-filter=^etc(/|$),usr/etc\\1", f"--tree=tar={archive}",
            f"--branch={ref}", "--add-metadata-string=ostree.importer.version=0.15.0",
        )  # fmt: skip
        ostree("checkout", f"--repo={repo}", "-H", "--union", ref, place / "merged")
    documents = {
        "ostree.manifest-digest": image.digest,
        "ostree.manifest": json.dumps(
            json.loads(image.manifest.raw), sort_keys=True, separators=(",", ":")
        ),
        "ostree.container.image-config": json.dumps(
            json.loads(image.config.raw), sort_keys=True, separators=(",", ":")
        ),
        "ostree.importer.version": "0.15.0",
    }
    ostree(
        "commit", f"--repo={repo}", "--no-bindings", f"--tree=dir={place / 'merged'}",
        f"--branch={image_ref(reference)}",
        *(f"--add-metadata-string={key}={value}" for key, value in documents.items()),
    )  # fmt: skip
    origin = place / "origin"
    origin.write_text(
        f"[origin]\ncontainer-image-reference=ostree-unverified-registry:{reference}\n"
    )
    ostree(
        "admin", "deploy", f"--sysroot={sysroot}", f"--os={stateroot}", f"--origin-file={origin}",
        "--karg=root=UUID=abc", "--karg=rw", image_ref(reference),
    )  # fmt: skip


@pytest.mark.parametrize("stateroot", ["default", "fedora"])
def test_a_host_of_the_original_is_read_upgraded_and_rolled_back(system, stateroot):
    old = make_image("1")
    by_the_original(system, old, stateroot=stateroot)
    host = system.status()
    assert host.notes == ()
    shown = host.booted
    assert (shown.image.image.image, shown.image.image_digest) == (OS, old.digest)
    assert (shown.image.version, shown.ostree.stateroot) == ("1", stateroot)
    assert host.spec_image.signature is None
    etc = system.sysroot.path / f"ostree/deploy/{stateroot}/deploy/{system.booting()[0]}/etc"
    (etc / "local.conf").write_text("mine\n")
    system.transport.images[OS] = make_image("2")
    system.transport.opened.clear()
    system.upgrade()
    assert system.transport.opened == [make_image("2").layers[1].digest], (
        "the layer that the original imported is not fetched again"
    )
    assert system.versions() == ("2", "1")
    host = system.status()
    assert {host.booted.ostree.stateroot, host.rollback.ostree.stateroot} == {stateroot}
    new = system.sysroot.path / f"ostree/deploy/{stateroot}/deploy/{system.booting()[0]}"
    assert (new / "etc/local.conf").read_text() == "mine\n"
    assert (new / "usr/bin/true").read_bytes().startswith(b"#!/bin/sh")
    assert not (new / "etc/from-1").exists(), "the layer that is gone left nothing"
    options = system.entries()[0].get("options")
    assert "root=UUID=abc" in options
    assert "rw" in options.split()
    system.rollback()
    assert system.versions() == ("1", "2")
    ostree("fsck", f"--repo={repo_of(system)}", "--quiet")


def test_a_host_of_ours_goes_on_with_the_original(system):
    """What the original relies on when it upgrades: layer commits that merge to the image."""
    deploy(system, make_image("1", files={"etc/removed.conf": None}))
    repo, place = repo_of(system), system.sysroot.path.parent / "union"
    image = system.transport.images[OS]
    for layer in image.layers:
        ref = f"ostree/container/blob/{escape_ref(layer.digest)}"
        ostree("checkout", f"--repo={repo}", "-H", "--union", "--whiteouts", ref, place)
    assert not (place / "usr/etc/removed.conf").exists()
    assert (place / "usr/etc/test.conf").read_bytes() == b"setting = default\n"
    merged = place.parent / "merged"
    ostree("checkout", f"--repo={repo}", "-H", image_ref(), merged)
    names = {str(path.relative_to(place)) for path in place.rglob("*")}
    dropped = {name for name in names if name.startswith(("var/", "boot/"))}
    wanted = {str(path.relative_to(merged)) for path in merged.rglob("*")}
    kept = {name for name in wanted if name.startswith("var/")}  # from libostree 2024.3 on
    assert names - dropped == wanted - kept


def test_a_layer_is_known_in_another_compression(system):
    by_the_original(system, make_image("1"))
    image = make_image("2")
    packed = [
        FakeLayer(gzip.compress(gzip.decompress(layer.blob), 1, mtime=0), layer.diff_id)
        for layer in image.layers
    ]
    assert packed[0].digest != image.layers[0].digest
    system.transport.images[OS] = FakeImage(tuple(packed), image.labels)
    system.transport.opened.clear()
    system.upgrade()
    assert system.transport.opened == [packed[1].digest]
    ref = f"ostree/container/blob/{escape_ref(packed[0].digest)}"
    assert ostree("ls", f"--repo={repo_of(system)}", ref)
    assert system.versions() == ("2", "1")


def test_a_plain_ostree_host_switches_to_images(system):
    sysroot = system.sysroot.path
    by_the_original(system, make_image("1"))
    repo = sysroot / "ostree/repo"
    commit = ostree("rev-parse", f"--repo={repo}", image_ref())
    tree = sysroot.parent / "plain"
    ostree("checkout", f"--repo={repo}", "-H", commit, tree)
    ostree("commit", f"--repo={repo}", "-b", "acme/x86_64/stable", f"--tree=dir={tree}")
    ostree("admin", "deploy", f"--sysroot={sysroot}", "--os=default", "acme/x86_64/stable")
    ostree("admin", "undeploy", f"--sysroot={sysroot}", "1")
    host = system.status()
    assert host.booted.image is None
    assert not host.booted.incompatible
    assert host.spec_image is None
    with pytest.raises(UsageError, match="No image source"):
        system.upgrade()
    system.transport.images[OS] = make_image("2")
    system.switch(OS)
    assert system.versions() == ("2", None)
    assert "acme/x86_64/stable" not in ostree("refs", f"--repo={repo}"), (
        "the branch is not followed any more"
    )
    host = system.status()
    assert host.rollback.image is None
    assert host.rollback.ostree is not None
    system.rollback()
    system.rollback()
    assert system.versions()[0] == "2"


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_pruned_object_is_fetched_again(system):
    """Another program's prune between two runs: layers that lost content are imported anew."""
    deploy(system, make_image("1"))
    repo = Repo(system.sysroot.path)
    commit = system.booting()[0][:64]
    listed = ostree("ls", f"--repo={repo.path}", "-C", commit, "/usr/lib/big")
    checksum = listed.split()[4]
    repo.object_path(checksum, "file").unlink()
    system.transport.opened.clear()
    deploy(system, make_image("2"))
    assert len(system.transport.opened) == 2
    assert repo.has_file(checksum)
    assert system.versions()[0] == "2"


@pytest.mark.parametrize(
    ("files", "reference"),
    [
        ({"usr/etc/x": b"both"}, "usr-etc"),
        ({"usr/lib/bootc/kargs.d/1.toml": b"kargs = 3"}, None),
    ],
)
def test_images_that_cannot_be_deployed_leave_no_ref(system, files, reference):
    system.transport.images[OS] = make_image("1", files=files)
    with pytest.raises((ContentError, StorageError)) as caught:
        system.switch(OS)
    if reference:
        assert caught.value.reference == reference
    assert ostree("refs", f"--repo={repo_of(system)}", "--list") == ""
    assert system.status().booted is None


def test_space_that_libostree_keeps_free_counts(system, monkeypatch):
    deploy(system, make_image("1"))
    ostree("config", f"--repo={repo_of(system)}", "set", "core.min-free-space-size", "900TB")
    system.transport.images[OS] = make_image("2")
    system.transport.opened.clear()
    with pytest.raises(StorageError, match=r"Insufficient free space for .* \(available: 0 bytes"):
        system.upgrade()
    assert system.transport.opened == []
    assert system.versions() == ("1", None)


def test_a_damaged_origin_is_a_note(system):
    deploy(system, make_image("1"))
    deploy(system, make_image("2"))
    second = system.booting()[1]
    Path(system.sysroot.path / f"ostree/deploy/default/deploy/{second}.origin").write_text("[x]\n")
    host = system.status()
    assert host.booted.image.version == "2"
    assert host.rollback is None
    assert any(second[:12] in note for note in host.notes)


def test_key_files():
    data = b"[a]\nkey=1\n[b]\n# key=2\nkey = 3 \n[a2]\nkey=4\n"
    assert state.key_file_value(data, "a", "key") == "1"
    assert state.key_file_value(data, "b", "key") == "3"
    assert state.key_file_value(data, "c", "key") is None
    assert state.key_file_value(b"\xff[", "a", "key") is None
