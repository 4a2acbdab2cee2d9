"""The sink of a worker: names, splitstream, notes, known content; then read back as entries."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from zlib import crc32

import pytest
from bootc_composefs.repository import Repository, layer_entries
from bootc_composefs.sink import ObjectSink
from bootc_composefs.splitstream import parse

from bootc_core.errors import StorageError
from bootc_core.fs import readback, verity
from bootc_core.oci.tar import Splitter


def archive(files: dict[str, bytes], *, extra=()) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1_600_000_000.25
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return out.getvalue()


def feed(sink: ObjectSink, data: bytes, cut: int = 70_001) -> dict:
    splitter = Splitter(sink)
    for start in range(0, len(data), cut):
        splitter.feed(data[start : start + cut])
    splitter.close()
    return sink.finish()


class Layer:
    """A staging directory and what came of it."""

    def __init__(self, path, data, **options):
        path.mkdir(exist_ok=True)
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.options = {"algorithm": "sha512", **options}
        self.sink = ObjectSink(self.fd, self.options)
        self.result = feed(self.sink, data)

    @property
    def objects(self):
        return {file.name: file.read_bytes() for file in (self.path / "objects").iterdir()}

    @property
    def stream(self):
        return parse((self.path / "stream").read_bytes(), "sha512")

    def join(self, more=()):
        """The tar, put together again."""
        objects = {**self.objects, **dict(more)}
        refs = self.stream.object_refs
        return b"".join(
            objects[refs[chunk].hex()] if isinstance(chunk, int) else chunk
            for chunk in self.stream.chunks()
        )


FILES = {
    "empty": b"",
    "small": b"x" * 64,
    "object": b"y" * 65,
    "again": b"y" * 65,
    "big": bytes(range(256)) * 8192,
    "odd": b"z" * (1024 * 1024 + 1),
}


def name(data: bytes) -> str:
    return verity.digest(data).hex()


@pytest.fixture
def repository(tmp_path):
    with Repository.create(tmp_path / "composefs") as made:
        yield made


def test_small_files_stay_inline_and_larger_ones_become_objects(tmp_path):
    data = archive(FILES)
    layer = Layer(tmp_path / "layer", data)
    assert layer.objects == {name(FILES[key]): FILES[key] for key in ("object", "big", "odd")}
    assert layer.result["objects_new"] == 3
    assert layer.result["objects_known"] == 0
    assert layer.result["stream"] == name((layer.path / "stream").read_bytes())
    assert (
        layer.result["bytes_new"]
        == sum(map(len, layer.objects.values())) + layer.result["stream_bytes"]
    )
    assert layer.join() == data
    assert layer.stream.content_type == b"ocilayer"
    assert layer.stream.size == len(data)
    assert hashlib.sha256(layer.join()).digest() == hashlib.sha256(data).digest()


def test_every_object_has_a_note_for_reading_back(tmp_path):
    layer = Layer(tmp_path / "layer", archive(FILES))
    raw = (layer.path / "checks").read_bytes()
    records = list(readback.notes(raw, 64))
    assert sorted(records) == sorted(
        (key, len(data), crc32(data)) for key, data in layer.objects.items()
    )
    assert layer.result["crc"] == crc32(raw)


def read_back(layer, **changes):
    request = {
        "digest_bytes": 64,
        "layers": [[str(layer.path / "checks"), layer.result["crc"], str(layer.path / "objects")]],
    }
    return readback.run({**request, **changes})


def test_what_the_medium_gives_back_is_compared(tmp_path):
    layer = Layer(
        tmp_path / "layer", archive(FILES | {f"f{n}": bytes([n]) * (100 + n) for n in range(200)})
    )
    os.sync()
    assert read_back(layer) == {"problem": None}
    victim = layer.path / "objects" / name(FILES["big"])
    for data in (FILES["big"][:-1], FILES["big"] + b"x", b"", b"!" + FILES["big"][1:]):
        victim.write_bytes(data)
        answer = read_back(layer)
        assert answer["path"] == str(victim)
        assert answer["problem"].startswith(f"{min(len(data), len(FILES['big']) + 1)} bytes")
        assert answer["expected"].startswith(f"{len(FILES['big'])} bytes")
    victim.unlink()  # published by an earlier run
    assert read_back(layer) == {"problem": None}
    (layer.path / "checks").write_bytes(b"")
    assert "checksum" in read_back(layer)["problem"]
    (layer.path / "checks").unlink()
    assert read_back(layer)["problem"] == "No such file or directory"


def test_modes_do_not_depend_on_the_umask(tmp_path):
    old = os.umask(0o077)
    try:
        layer = Layer(tmp_path / "layer", archive(FILES))
    finally:
        os.umask(old)
    assert {(layer.path / "objects" / key).stat().st_mode & 0o777 for key in layer.objects} == {
        0o644
    }


def known_options(repository):
    descriptor = os.open(repository.path / "objects", os.O_RDONLY | os.O_DIRECTORY)
    large = {}
    for folder in (repository.path / "objects").iterdir():
        for file in folder.iterdir():
            if file.stat().st_size > 1024 * 1024:
                large.setdefault(str(file.stat().st_size), []).append(folder.name + file.name)
    return {"objects": descriptor, "large": large}


def test_known_content_is_never_written(tmp_path, repository):
    for data in FILES.values():
        repository.put(data)
    options = known_options(repository)
    layer = Layer(tmp_path / "layer", archive(FILES), **options)
    os.close(options["objects"])
    assert layer.objects == {}
    assert layer.result["objects_new"] == 0
    assert layer.result["objects_known"] == 3
    assert layer.join({(name(data), data) for data in FILES.values()}) == archive(FILES)


@pytest.mark.parametrize("place", [0, 1_048_570, 2_097_151])
def test_a_large_file_that_differs_from_its_candidate_late_is_whole(tmp_path, repository, place):
    changed = bytearray(FILES["big"])
    changed[place] ^= 1
    repository.put(bytes(changed))
    options = known_options(repository)
    assert options["large"] == {str(len(changed)): [name(changed)]}
    layer = Layer(tmp_path / "layer", archive({"big": FILES["big"]}), **options)
    os.close(options["objects"])
    assert layer.objects == {name(FILES["big"]): FILES["big"]}
    assert list(readback.notes((layer.path / "checks").read_bytes(), 64)) == [
        (name(FILES["big"]), len(changed), crc32(FILES["big"]))
    ]


def test_a_damaged_known_object_is_not_believed(tmp_path, repository):
    """An object whose content is not its name's: equal bytes prove nothing, the digest does."""
    big = FILES["big"]
    repository.put(big)
    wrong = bytearray(big)
    wrong[77] ^= 1
    place = repository.object_path(verity.digest(big))
    place.write_bytes(wrong)
    options = known_options(repository)
    layer = Layer(tmp_path / "layer", archive({"big": bytes(wrong)}), **options)
    os.close(options["objects"])
    assert layer.objects == {name(bytes(wrong)): bytes(wrong)}


def test_a_known_object_of_another_size_is_written_again(tmp_path, repository):
    repository.put(FILES["object"])
    repository.object_path(verity.digest(FILES["object"])).write_bytes(b"")
    options = known_options(repository)
    layer = Layer(tmp_path / "layer", archive(FILES), **options)
    os.close(options["objects"])
    assert name(FILES["object"]) in layer.objects


def test_what_a_killed_run_left_is_replaced(tmp_path):
    (tmp_path / "layer/objects").mkdir(parents=True)
    (tmp_path / "layer/objects" / name(FILES["object"])).write_bytes(b"torn")
    (tmp_path / "layer/objects/.partial").write_bytes(b"torn")
    (tmp_path / "layer/stream").write_bytes(b"torn")
    layer = Layer(tmp_path / "layer", archive(FILES))
    assert layer.objects == {name(FILES[key]): FILES[key] for key in ("object", "big", "odd")}


def test_recheck_finds_a_torn_object_and_a_torn_stream(tmp_path):
    layer = Layer(tmp_path / "layer", archive(FILES))

    def recheck():
        return ObjectSink.recheck(layer.fd, layer.options, layer.result)

    assert recheck()
    victim = layer.path / "objects" / name(FILES["odd"])
    victim.write_bytes(FILES["odd"][:-1] + b"?")
    assert not recheck()
    victim.write_bytes(FILES["odd"])
    assert recheck()
    victim.unlink()
    assert not recheck()
    victim.write_bytes(FILES["odd"])
    (layer.path / "stream").write_bytes(b"")
    assert not recheck()


def test_recheck_accepts_objects_that_were_published_meanwhile(tmp_path, repository):
    layer = Layer(tmp_path / "layer", archive(FILES))
    repository.put(FILES["odd"])
    (layer.path / "objects" / name(FILES["odd"])).unlink()
    options = known_options(repository)
    assert ObjectSink.recheck(layer.fd, {**layer.options, **options}, layer.result)
    os.close(options["objects"])


def test_abort_leaves_no_descriptor_open(tmp_path):
    def count():
        return len(os.listdir("/proc/self/fd"))

    (tmp_path / "layer").mkdir()
    descriptor = os.open(tmp_path / "layer", os.O_RDONLY | os.O_DIRECTORY)
    before = count()
    sink = ObjectSink(descriptor, {"algorithm": "sha512"})
    splitter = Splitter(sink)
    splitter.feed(archive(FILES)[: 1024 * 1024 + 200_000])
    sink.abort()
    assert count() == before
    os.close(descriptor)


def test_entries_come_back_from_the_repository(tmp_path, repository):
    link = tarfile.TarInfo("hard")
    link.type, link.linkname = tarfile.LNKTYPE, "object"
    directory = tarfile.TarInfo("dir/")
    directory.type, directory.mode = tarfile.DIRTYPE, 0o750
    symbolic = tarfile.TarInfo("soft")
    symbolic.type, symbolic.linkname = tarfile.SYMTYPE, "/x" * 120
    layer = Layer(tmp_path / "layer", archive(FILES, extra=[link, directory, symbolic]))
    for data in FILES.values():
        repository.put(data)
    found = list(layer_entries(repository, layer.stream, "layer 1"))
    assert [(e.path, inline, content) for e, inline, content in found] == [
        (b"empty", b"", None),
        (b"small", FILES["small"], None),
        (b"object", None, verity.digest(FILES["object"])),
        (b"again", None, verity.digest(FILES["object"])),
        (b"big", None, verity.digest(FILES["big"])),
        (b"odd", None, verity.digest(FILES["odd"])),
        (b"hard", None, None),
        (b"dir", None, None),
        (b"soft", None, None),
    ]
    assert found[0][0].mtime_ns == 250_000_000
    assert found[-1][0].linkname == b"/x" * 120
    repository.object_path(verity.digest(FILES["odd"])).unlink()
    with pytest.raises(StorageError, match="missing"):
        list(layer_entries(repository, layer.stream, "layer 1"))
