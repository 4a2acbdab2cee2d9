"""The repository on disk: its form, safety, objects, links, older repositories, and what the check finds."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from bootc_composefs import meta, splitstream
from bootc_composefs.erofs import write_image
from bootc_composefs.fsck import check
from bootc_composefs.repository import Repository, quote_tag

from bootc_core.errors import BootcError, StorageError
from bootc_core.fs import atomic, verity
from bootc_core.models.tree import Node

VECTORS = Path(__file__).parents[2] / "vectors/composefs/splitstream"


@pytest.fixture
def repository(tmp_path):
    with Repository.create(tmp_path / "composefs") as made:
        yield made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- form ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_meta_json_is_what_the_reference_library_writes(algorithm):
    data = meta.to_bytes(algorithm)
    assert data == (VECTORS / f"meta-{algorithm}-v1.json").read_bytes()
    assert meta.parse(data) == meta.Meta(algorithm)


def test_a_new_repository_has_the_common_form(repository):
    path = repository.path
    assert mode(path) == 0o700
    assert sorted(os.listdir(path)) == ["images", "meta.json", "objects", "streams"]
    assert {mode(path / name) for name in ("images", "streams", "objects")} == {0o755}
    assert mode(path / "meta.json") == 0o644
    assert (path / "meta.json").read_bytes() == meta.to_bytes()
    assert (repository.algorithm, repository.formats, repository.writable) == ("sha512", (1,), True)
    assert repository.secure == verity.supported(path)
    assert check(repository) == []


def test_creating_twice_keeps_what_is_recorded_and_asserts_the_mode(tmp_path):
    path = tmp_path / "composefs"
    with Repository.create(path, algorithm="sha256") as made:
        digest = made.put(b"x" * 100)
    path.chmod(0o755)
    with Repository.create(path) as again:
        assert again.algorithm == "sha256"
        assert again.read(digest) == b"x" * 100
    assert mode(path) == 0o700


@pytest.mark.parametrize(
    ("change", "formats"),
    [
        (lambda value: value, (1,)),
        (lambda value: value | {"erofs_formats": {"default": 1, "extra": [2]}}, (1, 2)),
        (lambda value: value | {"erofs_formats": {"default": 2}}, (1,)),
        (lambda value: value | {"erofs_formats": {"default": 2}, "features": {}}, (2,)),
        (lambda value: {key: value[key] for key in ("version", "algorithm")}, (2,)),
        (lambda value: value | {"erofs_formats": {"default": 0}}, (0,)),
        (lambda value: value | {"features": {"compatible": ["future"]}}, (1,)),
    ],
)
def test_formats_of_existing_repositories(change, formats):
    import json

    found = meta.parse(json.dumps(change(json.loads(meta.to_bytes()))).encode())
    assert found.formats == formats
    assert found.writable


def test_an_unknown_read_only_feature_makes_it_read_only(tmp_path):
    path = tmp_path / "composefs"
    Repository.create(path).close()
    text = (path / "meta.json").read_text().replace('"v1_erofs"', '"v1_erofs", "future"')
    (path / "meta.json").write_text(text)
    with Repository.open(path) as opened, pytest.raises(StorageError, match="only be read"):
        opened.require_writable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 2}',
        '{"version": 1, "algorithm": "fsverity-sha512-16"}',
        '{"version": 1, "algorithm": "fsverity-md5-12"}',
        '{"version": 1, "algorithm": "fsverity-sha512-12", "features": {"incompatible": ["x"]}}',
        '{"version": 1, "algorithm": "fsverity-sha512-12", "features": {"incompatible": 3}}',
        '{"version": 1, "algorithm": "fsverity-sha512-12", "features": 3}',
        '{"version": 1, "algorithm": "fsverity-sha512-12", "erofs_formats": {"default": 3}}',
        '{"version": 1, "algorithm": "fsverity-sha512-12", "erofs_formats": {"default": true}}',
        '{"version": 1, "algorithm": "fsverity-sha512-12", "erofs_formats": []}',
        "[" * 100000,
    ],
)
def test_garbage_and_newer_versions_are_refused(text):
    with pytest.raises(StorageError) as caught:
        meta.parse(text.encode())
    assert caught.value.catalogue == "STATE"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_repository_without_meta_json_is_understood_from_its_objects(tmp_path, algorithm):
    path = tmp_path / "composefs"
    with Repository.create(path, algorithm=algorithm) as made:
        digest = made.put(b"y" * 100)
    (path / "meta.json").unlink()
    (path / "objects/aa").mkdir(exist_ok=True)
    (path / "objects/aa/short").write_text("skipped")
    with Repository.open(path, lock=False) as opened:
        assert opened.algorithm == algorithm
        assert not (path / "meta.json").exists()
    with Repository.create(path) as opened:
        assert opened.algorithm == algorithm
        assert opened.read(digest) == b"y" * 100
    assert (path / "meta.json").read_bytes() == meta.to_bytes(algorithm)


def test_what_is_no_repository(tmp_path):
    with pytest.raises(StorageError, match="no composefs repository"):
        Repository.open(tmp_path / "missing")
    (tmp_path / "empty/objects").mkdir(parents=True)
    for lock in (False, True):
        with pytest.raises(StorageError, match="no composefs repository"):
            Repository.open(tmp_path / "empty", lock=lock)


# --- safety (D12) -----------------------------------------------------------------------------------------------------------


def unsafe_link(path: Path) -> None:
    (path / "objects").rename(path / "elsewhere")
    (path / "objects").symlink_to("elsewhere")


def unsafe_mode(path: Path) -> None:
    (path / "objects").chmod(0o777)


def unsafe_file(path: Path) -> None:
    (path / "objects").rmdir()
    (path / "objects").write_text("")


def unsafe_owner(path: Path) -> None:
    os.chown(path / "objects", 12345, 12345)


@pytest.mark.parametrize(
    "change",
    [unsafe_link, unsafe_mode, unsafe_file, pytest.param(unsafe_owner, marks=pytest.mark.root)],
)
def test_objects_that_others_could_change_are_refused(tmp_path, change):
    path = tmp_path / "composefs"
    Repository.create(path).close()
    change(path)
    for action in (Repository.open, Repository.create):
        with pytest.raises(StorageError) as caught:
            action(path)
        assert caught.value.reference == "unsafe-repository"
        assert caught.value.catalogue == "STATE"


# --- objects --------------------------------------------------------------------------------------------------------------


def test_an_object_is_named_by_its_digest_and_comes_back_checked(repository):
    data = b"hello world"
    digest = repository.put(data)
    assert digest.hex().startswith("18430270729d162d")  # as the kernel has it
    path = repository.object_path(digest)
    assert path == repository.path / "objects" / digest.hex()[:2] / digest.hex()[2:]
    assert path.read_bytes() == data
    assert mode(path) == 0o644
    assert mode(path.parent) == 0o755
    assert repository.read(digest) == data
    assert repository.size(digest) == len(data)
    inode = path.stat().st_ino
    assert repository.put(data) == digest
    assert path.stat().st_ino == inode
    assert not [name for name in os.listdir(repository.path / "objects") if len(name) != 2]


def test_a_damaged_object_is_found_when_read_and_repaired_when_put(repository):
    data = b"z" * 5000
    digest = repository.put(data)
    path = repository.object_path(digest)
    for damage in (data[:-1] + b"!", b"", data[:-1]):
        path.write_bytes(damage)
        with pytest.raises(StorageError) as caught:
            repository.read(digest)
        assert (caught.value.reference, caught.value.catalogue) == ("damaged-object", "INT")
        repository.put(data)
        assert repository.read(digest) == data


def test_missing_and_too_large_objects_have_errors_of_their_own(repository):
    with pytest.raises(StorageError) as caught:
        repository.read(bytes(64))
    assert caught.value.reference == "missing-object"
    digest = repository.put(b"1234567890")
    with pytest.raises(StorageError) as caught:
        repository.read(digest, 9)
    assert caught.value.catalogue == "LIM"
    link = repository.object_path(digest)
    link.unlink()
    link.symlink_to("/etc/passwd")
    assert repository.size(digest) is None
    with pytest.raises(StorageError):
        repository.read(digest)


def test_publishing_never_replaces_a_whole_object(repository, tmp_path):
    data = b"staged" * 30
    name = verity.digest(data).hex()
    staged = repository.path / name
    staged.write_bytes(data)
    assert repository.publish(str(staged), name)
    assert not staged.exists()
    staged.write_bytes(b"tsaged" * 30)
    assert not repository.publish(str(staged), name)
    assert repository.read(bytes.fromhex(name)) == data
    repository.object_path(bytes.fromhex(name)).write_bytes(b"")
    staged.write_bytes(data)
    assert repository.publish(str(staged), name)
    assert repository.read(bytes.fromhex(name)) == data


def test_staged_objects_are_read_but_stay_staged(repository, tmp_path):
    data = b"staged" * 30
    digest = verity.digest(data)
    (tmp_path / digest.hex()).write_bytes(data)
    repository.staged = (str(tmp_path),)
    assert repository.read(digest) == data
    assert repository.size(digest) is None
    (tmp_path / digest.hex()).write_bytes(data[:-1])
    with pytest.raises(StorageError, match="damaged"):
        repository.read(digest)


@pytest.mark.parametrize(
    "text", ["", "zz" * 64, "AA" * 64, "aa" * 32, "../" + "a" * 125, "aa" * 65]
)
def test_what_is_no_digest(repository, text):
    assert repository.digest(text) is None


# --- links ------------------------------------------------------------------------------------------------------------------


def test_links_are_relative_and_shortest(repository):
    digest = repository.put(b"i" * 100)
    hexed = digest.hex()
    repository.link_image(digest)
    repository.link_stream("oci-manifest-sha256:ab", digest)
    repository.tag("localhost/bootc-sha256:ab", "oci-manifest-sha256:ab")
    root = repository.path
    target = f"../objects/{hexed[:2]}/{hexed[2:]}"
    assert os.readlink(root / "images" / hexed) == target
    assert os.readlink(root / "streams/oci-manifest-sha256:ab") == target
    tag = root / "streams/refs/oci/localhost%2Fbootc-sha256:ab"
    assert os.readlink(tag) == "../../oci-manifest-sha256:ab"
    assert {mode(root / name) for name in ("streams/refs", "streams/refs/oci")} == {0o755}
    assert repository.tags() == {"localhost/bootc-sha256:ab": "oci-manifest-sha256:ab"}
    assert repository.resolve(f"images/{hexed}") == digest
    assert repository.resolve("streams/oci-manifest-sha256:ab") == digest
    assert repository.resolve("streams/nothing") is None
    repository.untag("localhost/bootc-sha256:ab")
    repository.untag("localhost/bootc-sha256:ab")
    assert repository.tags() == {}


def test_links_are_replaced_atomically_and_left_alone_when_right(repository):
    one, two = repository.put(b"1" * 100), repository.put(b"2" * 100)
    repository.link_stream("oci-config-sha256:ab", one)
    steps = []
    with atomic.observe(lambda step, path: steps.append(step)):
        repository.link_stream("oci-config-sha256:ab", one)
        assert steps == []
        repository.link_stream("oci-config-sha256:ab", two)
    assert steps == ["symlink", "rename"]
    assert repository.resolve("streams/oci-config-sha256:ab") == two
    assert not [name for name in os.listdir(repository.path) if name.startswith(".")]


def test_tags_are_percent_encoded():
    assert quote_tag("a/b%c:d@e") == "a%2Fb%25c:d@e"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a" * 300, "a\nb"])
def test_names_of_streams_are_never_paths(repository, name):
    with pytest.raises(StorageError):
        repository.link_stream(name, bytes(64))
    with pytest.raises(StorageError):
        repository.stream(name)


# --- locking ----------------------------------------------------------------------------------------------------------------


def test_pruning_needs_the_repository_alone(tmp_path):
    path = tmp_path / "composefs"
    with Repository.create(path) as one:
        with Repository.open(path) as two:
            with pytest.raises(StorageError) as caught, one.exclusive():
                pass
            assert caught.value.reference == "repository-busy"
            assert two.put(b"x")
        with one.exclusive():
            opened = threading.Event()

            def reader() -> None:
                with Repository.open(path):
                    opened.set()

            thread = threading.Thread(target=reader)
            thread.start()
            with Repository.open(path, lock=False) as unlocked:  # status is never held up
                assert unlocked.algorithm == "sha512"
            assert not opened.is_set()
        thread.join()
        assert opened.is_set()


# --- check ------------------------------------------------------------------------------------------------------------------


def tree(digest: bytes) -> Node:
    root = Node(stat.S_IFDIR | 0o755)
    root.children[b"file"] = Node(stat.S_IFREG | 0o644, size=100, object=digest)
    return root


def test_check_finds_every_kind_of_damage(repository):
    path = repository.path
    content = repository.put(b"c" * 100)
    image = repository.put(write_image(tree(content)))
    document = repository.put(b"{}")
    stream = repository.put(
        splitstream.encode_document("sha512", splitstream.CONFIG, document, 2, [("x", content)])
    )
    repository.link_image(image)
    repository.link_stream("oci-config-sha256:ab", stream)
    repository.tag("t", "oci-config-sha256:ab")
    assert check(repository) == []

    def found(text: str) -> bool:
        return any(text in problem for problem in check(repository))

    repository.object_path(content).write_bytes(b"d" * 100)
    assert found("its content is another")
    repository.object_path(content).unlink()
    assert found(f"images/{image.hex()}: object {content.hex()[:16]}… is missing")
    assert found(f"streams/oci-config-sha256:ab: object {content.hex()[:16]}… is missing")
    repository.put(b"c" * 100)
    assert check(repository) == []

    (path / "objects/stray").write_text("")
    (path / "objects" / content.hex()[:2] / "stray").write_text("")
    assert found("objects/stray: not a part")
    assert found("/stray: not the name of an object")
    (path / "objects/stray").unlink()
    (path / "objects" / content.hex()[:2] / "stray").unlink()

    repository._object_link("images/" + "0" * 128, image)
    assert found("leads to another object")
    (path / "images" / ("0" * 128)).unlink()
    (path / "streams/plain").write_text("no link")
    assert found("streams/plain: leads to no object")
    (path / "streams/plain").unlink()
    (path / "streams/refs/oci/gone").symlink_to("../../oci-config-sha256:00")
    assert found("streams/refs/oci/gone: leads to no entry")
    (path / "streams/refs/oci/gone").unlink()

    wrong = repository.put(
        splitstream.encode_document("sha512", splitstream.CONFIG, document, 3, [])
    )
    repository.link_stream("oci-config-sha256:cd", wrong)
    assert found("wrong size")
    torn = repository.put(splitstream.encode_document("sha512", b"ociconfg", document, 2, [])[:-3])
    repository.link_stream("oci-config-sha256:cd", torn)
    assert found("splitstream of the repository is damaged")
    (path / "streams/oci-config-sha256:cd").unlink()
    repository.link_image(document)
    assert found(f"images/{document.hex()}: ")
    (path / "images" / document.hex()).unlink()
    assert check(repository) == []


def test_an_error_is_always_one_of_ours(repository):
    """Whatever a stream's link leads to."""
    for data in (b"", b"SplitStream", os.urandom(200)):
        repository.link_stream("oci-layer-sha256:ab", repository.put(data))
        with pytest.raises(BootcError):
            repository.stream("oci-layer-sha256:ab")
