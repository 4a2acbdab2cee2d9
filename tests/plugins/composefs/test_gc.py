"""What the collection keeps and deletes, in which order, and what stops it."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest
from bootc_composefs import gc, splitstream
from bootc_composefs.erofs import write_image
from bootc_composefs.fsck import check
from bootc_composefs.repository import Repository

from bootc_core.errors import BootcError, StorageError
from bootc_core.fs import atomic
from bootc_core.models.tree import Node


@pytest.fixture
def repository(tmp_path):
    with Repository.create(tmp_path / "composefs") as made:
        yield made


def objects(repository: Repository) -> set[bytes]:
    found = set()
    for folder in os.listdir(repository.path / "objects"):
        found |= {
            bytes.fromhex(folder + name)
            for name in os.listdir(repository.path / "objects" / folder)
        }
    return found


def image(repository: Repository, *contents: bytes) -> bytes:
    root = Node(stat.S_IFDIR | 0o755)
    for number, digest in enumerate(contents):
        root.children[b"f%d" % number] = Node(
            stat.S_IFREG | 0o644, size=repository.size(digest) or 0, object=digest
        )
    return repository.put(write_image(root, algorithm=repository.algorithm))


def layer(repository: Repository, *contents: bytes) -> bytes:
    descriptor = os.open(repository.path, os.O_RDONLY | os.O_DIRECTORY)
    writer = splitstream.Writer(descriptor, repository.algorithm)
    for digest in contents:
        writer.inline(b"h" * 512)
        writer.external(digest, repository.size(digest) or 0)
    data = b"".join(writer.finish())
    os.close(descriptor)
    return repository.put(data)


class Stored:
    """An image as a pull stores it: two layers with a file each, configuration, manifest, tag, bootable image."""

    def __init__(self, repository: Repository, key: str, shared: bytes | None = None):
        self.repository = repository
        documents = [f'{{"{key}": {n}}}'.encode() for n in (1, 2)]
        config_name, self.name = (f"sha256:{hashlib.sha256(d).hexdigest()}" for d in documents)
        self.files = [
            shared or repository.put(f"{key}1".encode() * 50),
            repository.put(f"{key}2".encode() * 50),
        ]
        self.layers = [layer(repository, digest) for digest in self.files]
        self.boot = image(repository, *self.files)
        for number, digest in enumerate(self.layers):
            repository.link_stream(f"oci-layer-sha256:{number}{key * 63}", digest)
        repository.link_image(self.boot)
        names = [(f"sha256:{number}", digest) for number, digest in enumerate(self.layers)]
        self.json = [repository.put(document) for document in documents]
        config = splitstream.encode_document(
            "sha512",
            splitstream.CONFIG,
            self.json[0],
            8,
            [*names, ("composefs.image.boot.v1", self.boot)],
        )
        self.config = repository.put(config)
        repository.link_stream(f"oci-config-{config_name}", self.config)
        self.manifest = repository.put(
            splitstream.encode_document(
                "sha512", splitstream.MANIFEST, self.json[1], 8, [("config:x", self.config), *names]
            )
        )
        repository.link_stream(f"oci-manifest-{self.name}", self.manifest)

    def tag(self) -> None:
        self.repository.tag(gc.deployment_tag(self.name), f"oci-manifest-{self.name}")

    @property
    def all(self) -> set[bytes]:
        return {*self.files, *self.layers, self.boot, *self.json, self.config, self.manifest}


def test_a_tag_keeps_everything_of_its_image_and_nothing_else(repository):
    one = Stored(repository, "a")
    two = Stored(repository, "b", shared=one.files[0])
    two.tag()
    stray = repository.put(b"nobody's")
    found = gc.collect(repository, ())
    assert objects(repository) == two.all
    assert stray not in objects(repository)
    assert found.images == 1
    assert found.streams == 3  # one layer is the same splitstream in both
    assert found.objects == len(one.all - two.all) + 1
    assert found.bytes > 0
    assert check(repository) == []
    assert gc.collect(repository, ()) == gc.Collected()


def test_a_deployment_keeps_its_image_and_that_ones_objects(repository):
    one = Stored(repository, "a")
    gc.collect(repository, [one.boot.hex(), "f" * 128])
    assert objects(repository) == {one.boot, *one.files}
    assert check(repository) == []


def test_an_image_without_a_root_goes(repository):
    boot = image(repository, repository.put(b"x" * 100))
    repository.link_image(boot)
    assert gc.collect(repository, ()).images == 1
    assert objects(repository) == set()
    (repository.path / "images/refs").mkdir()
    content = repository.put(b"x" * 100)
    repository.link_image(image(repository, content))
    (repository.path / "images/refs/mine").symlink_to(f"../{boot.hex()}")
    gc.collect(repository, ())
    assert objects(repository) == {boot, content}


def test_references_that_lead_nowhere_go(repository):
    one = Stored(repository, "a")
    one.tag()
    refs = repository.path / "streams/refs/oci"
    (refs / "gone").symlink_to("../../oci-manifest-sha256:00")
    (refs / "outside").symlink_to("../../../../../etc/hostname-that-is-not-there")
    gc.collect(repository, ())
    assert os.listdir(refs) == [f"localhost%2Fbootc-{one.name}"]


def test_names_that_are_nobodys_stay_and_temporary_ones_go(repository):
    digest = repository.put(b"x" * 100)
    folder = repository.object_path(digest).parent
    (folder / "strange").write_text("")
    (repository.path / "objects/.tmp-object-1234").write_text("")
    (repository.path / ".symlink-1234").symlink_to("x")
    (repository.path / "objects/lost+found").mkdir()
    gc.collect(repository, ())
    assert os.listdir(folder) == ["strange"]
    assert (repository.path / "objects/lost+found").is_dir()
    assert not (repository.path / "objects/.tmp-object-1234").exists()
    assert not os.path.lexists(repository.path / ".symlink-1234")


def test_links_go_before_objects(repository):
    Stored(repository, "a")
    steps = []
    with atomic.observe(lambda step, path: steps.append(str(path))):
        gc.collect(repository, ())
    kinds = ["object" if "/objects/" in step else "link" for step in steps]
    assert kinds == sorted(kinds)
    assert "object" in kinds


@pytest.mark.parametrize("victim", ["manifest", "config", "boot"])
def test_a_damaged_root_stops_the_collection(repository, victim):
    one = Stored(repository, "a")
    one.tag()
    stray = repository.put(b"nobody's")
    path = repository.object_path(getattr(one, victim))
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    before = objects(repository)
    with pytest.raises(BootcError):
        gc.collect(repository, [one.boot.hex()])
    assert objects(repository) == before
    assert stray in before


def test_a_busy_repository_is_left_alone(repository):
    Stored(repository, "a")
    before = objects(repository)
    with Repository.open(repository.path), pytest.raises(StorageError) as caught:
        gc.collect(repository, ())
    assert caught.value.reference == "repository-busy"
    assert objects(repository) == before


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_objects_of_an_image_are_found_in_every_format(tmp_path, version, algorithm):
    root = Node(stat.S_IFDIR | 0o755)
    wanted = set()
    for number in range(300):
        digest = os.urandom(64 if algorithm == "sha512" else 32)
        wanted.add(digest)
        for copy in range(1 + number % 3):  # attributes used twice are stored in another place
            root.children[b"f%d-%d" % (number, copy)] = Node(
                stat.S_IFREG | 0o644, size=100, object=digest
            )
    data = write_image(root, version=version, algorithm=algorithm)
    assert gc.image_objects(data, algorithm) == wanted


def test_tags_follow_the_deployments(repository):
    one, two = Stored(repository, "a"), Stored(repository, "b")
    one.tag()
    repository.tag("quay.io/acme/os:1", f"oci-manifest-{one.name}")
    gc.retag(repository, [two.name, "sha256:" + "c" * 64])
    assert repository.tags() == {
        gc.deployment_tag(two.name): f"oci-manifest-{two.name}",
        "quay.io/acme/os:1": f"oci-manifest-{one.name}",
    }
