"""Layers fetched by the file: the same archive as the whole blob gives, whatever table, server and local files say."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.faulty_http import Asked, FaultyServer, Peer

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError
from bootc_core.models.image import FetchedImage, HttpSource
from bootc_core.models.oci import Descriptor
from bootc_core.models.reference import ImageReference
from bootc_core.oci import chunked
from bootc_core.oci.importer import LayerJob, import_layers
from bootc_core.oci.ranges import RANGES, Range, Ranges
from bootc_core.testing.chunked import compress

PREFIX = "io.github.containers.zstd-chunked."
DICE = random.Random(3)
OLD = {f"usr/lib/file-{number}": DICE.randbytes(20_000 + number) for number in range(60)}
NEW = {
    **OLD,
    "usr/lib/file-7": DICE.randbytes(30_000),
    "usr/lib/file-8": DICE.randbytes(30_000),
    "usr/lib/new": DICE.randbytes(70_000),
    "usr/share/doc/changelog.gz": gzip.compress(DICE.randbytes(3000), mtime=0),
    "usr/share/empty": b"",
    "usr/share/tiny": b"x",
}


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("usr"))
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("usr/link")
        link.type, link.linkname = tarfile.SYMTYPE, "lib"
        tar.addfile(link)
        hard = tarfile.TarInfo("usr/hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "usr/lib/file-1"
        tar.addfile(hard)
    return stream.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def serve(blob: bytes, *, ranges: bool = True) -> Callable[[Peer, Asked], None]:
    def handler(peer: Peer, asked: Asked) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.header("range") or "")
        if not wanted or not ranges:
            peer.reply(200, blob)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(blob) - 1)
        peer.reply(206, blob[start : end + 1], content_range=f"bytes {start}-{end}/{len(blob)}")

    return handler


def seeds(tmp_path: Path, files: dict[str, bytes]) -> Path:
    place = tmp_path / "objects"
    for name, data in files.items():
        if data:
            path = place / hashlib.sha256(name.encode()).hexdigest()[:2] / name.replace("/", "-")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return place


def pull(
    tmp_path: Path,
    blob: bytes,
    tar: bytes,
    annotations: dict[str, str],
    objects: Path,
    handler: Any = None,
    stop: threading.Event | None = None,
) -> tuple[Any, int, FaultyServer]:
    descriptor = Descriptor(
        mediaType="application/vnd.oci.image.layer.v1.tar+zstd",
        digest=digest(blob),
        size=len(blob),
        annotations=annotations,
    )
    with FaultyServer(handler or serve(blob)) as server:

        async def source(wanted: Descriptor) -> HttpSource:
            return HttpSource(server.url("/blob"))

        image = FetchedImage.__new__(FetchedImage)
        values = {
            "requested": ImageReference.parse("docker://x.example/os:1"),
            "manifest": type("M", (), {"layers": (descriptor,)}),
            "blob_source": source,
        }
        for name, value in values.items():
            object.__setattr__(image, name, value)
        staging = tmp_path / "staging"
        staging.mkdir(exist_ok=True)

        async def main() -> Any:
            if stop is None:
                return await run()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await trio.to_thread.run_sync(stop.wait, 60)
                nursery.cancel_scope.cancel()
            return None

        async def run() -> Any:
            return await import_layers(
                image,
                [LayerJob(descriptor, digest(tar), "zstd")],
                sink="support.layer_sinks:NoteSink",
                sink_options={},
                staging=staging,
                pass_directories={"objects": objects},
                emit=lambda event: None,
                transaction="t",
            )

        results = trio.run(main)
    if results is None:
        return None, 0, server
    result = results[digest(tar)]
    return result, result.bytes_compressed, server


def test_only_new_files_are_fetched(tmp_path):
    tar = archive(NEW)
    blob, annotations = compress(tar)
    result, fetched, server = pull(tmp_path, blob, tar, annotations, seeds(tmp_path, OLD))
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert fetched < len(blob) * 0.2
    assert all(asked.header("range") for asked in server.requests)
    assert len(server.requests) <= 5


def test_a_plain_reader_reads_the_same(tmp_path):
    tar = archive(NEW)
    blob, _ = compress(tar)
    result, fetched, server = pull(tmp_path, blob, tar, {}, seeds(tmp_path, OLD))
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert fetched == len(blob)
    assert len(server.requests) == 1


def test_without_local_files_the_whole_is_fetched(tmp_path):
    tar = archive(NEW)
    blob, annotations = compress(tar)
    (tmp_path / "objects").mkdir()
    result, fetched, server = pull(tmp_path, blob, tar, annotations, tmp_path / "objects")
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert fetched == len(blob)
    assert len(server.requests) == 2  # the table, then all of it


def test_a_server_without_ranges(tmp_path):
    tar = archive(NEW)
    blob, annotations = compress(tar)
    result, fetched, _ = pull(
        tmp_path, blob, tar, annotations, seeds(tmp_path, OLD), serve(blob, ranges=False)
    )
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert fetched == len(blob)


def lying(tar: bytes, change: Callable[[dict[str, Any]], None]) -> tuple[bytes, dict[str, str]]:
    """A blob whose table was changed by ``change``, everything around it consistent."""
    from bootc_core.oci.compression import zstd_module

    zstd = zstd_module()
    blob, annotations = compress(tar)
    start, length, _, _ = (int(x) for x in annotations[PREFIX + "manifest-position"].split(":"))
    value = json.loads(zstd.decompress(blob[start : start + length]))
    change(value)
    plain = json.dumps(value).encode()
    toc = zstd.compress(plain)
    split = [int(x) for x in annotations[PREFIX + "tarsplit-position"].split(":")]
    tail = blob[split[0] - 8 :]
    new = blob[: start - 8] + b"\x50\x2a\x4d\x18" + len(toc).to_bytes(4, "little") + toc + tail
    moved = start + len(toc) + 8
    return new, {
        PREFIX + "manifest-checksum": digest(toc),
        PREFIX + "manifest-position": f"{start}:{len(toc)}:{len(plain)}:1",
        PREFIX + "tarsplit-position": f"{moved}:{split[1]}:{split[2]}",
    }


def entry(value: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in value["entries"] if item["name"] == name)


def swap(value: dict[str, Any]) -> None:
    """Another local file of the same size under the digest that the table gives."""
    entry(value, "usr/lib/file-7")["digest"] = digest(OTHER)


OTHER = random.Random(9).randbytes(30_000)


@pytest.mark.parametrize(
    "change",
    [
        swap,
        lambda value: entry(value, "usr/lib/file-7").update(offset=1),
        lambda value: entry(value, "usr/lib/file-7").update(endOffset=10**12),
        lambda value: entry(value, "usr/lib/file-7").update(
            offset=entry(value, "usr/lib/file-8")["offset"],
            endOffset=entry(value, "usr/lib/file-8")["endOffset"],
        ),
        lambda value: value["entries"].remove(entry(value, "usr/lib/new")),
        lambda value: value["entries"].append(entry(value, "usr/lib/new")),
        lambda value: entry(value, "usr/lib/new").update(size=1),
        lambda value: value.update(version=7),
        lambda value: value.update(entries="x"),
        lambda value: value.update(tarSplitDigest=digest(b"")),
        lambda value: entry(value, "usr/lib/new").update(name=["x"]),
        lambda value: entry(value, "usr/lib/new").update(chunkType="zeros"),
    ],
)
def test_z11_a_table_that_lies_costs_a_full_pull_and_nothing_else(tmp_path, change):
    tar = archive(NEW)
    blob, annotations = lying(tar, change)
    objects = seeds(tmp_path, {**OLD, "other": OTHER})
    result, fetched, _ = pull(tmp_path, blob, tar, annotations, objects)
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert fetched == len(blob)


def test_z11_a_blob_whose_files_are_damaged_is_refused(tmp_path):
    tar = archive(NEW)
    blob, annotations = compress(tar)
    place = (
        blob.index(NEW["usr/lib/new"][:64]) if NEW["usr/lib/new"][:64] in blob else len(blob) // 2
    )
    torn = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
    with pytest.raises(ContentError) as caught:
        pull(tmp_path, blob, tar, annotations, seeds(tmp_path, OLD), serve(torn))
    assert caught.value.catalogue == "INT"


def test_z11_the_whole_blob_counts_even_where_the_table_agrees_with_itself(tmp_path):
    """Table and archive describe different contents: the archive's is what is imported, as by a full pull."""
    other = archive({**NEW, "usr/lib/new": OTHER})
    tar = archive(NEW)
    blob, annotations = compress(other)
    with pytest.raises(BootcError) as caught:
        pull(tmp_path, blob, tar, annotations, seeds(tmp_path, OLD))
    assert caught.value.catalogue == "INT"


def test_local_files_that_changed_meanwhile(tmp_path):
    objects = seeds(tmp_path, OLD)
    for path in objects.rglob("*file-9"):
        path.write_bytes(bytes(len(OLD["usr/lib/file-9"])))
    tar = archive(NEW)
    blob, annotations = compress(tar)
    result, fetched, _ = pull(tmp_path, blob, tar, annotations, objects)
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert fetched < len(blob) * 0.25


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("manifest-position", "1:2:3"),
        ("manifest-position", "1:2:3:2"),
        ("manifest-position", "0:2:3:1"),
        ("manifest-position", "-1:2:3:1"),
        ("manifest-position", "999:9999:3:1"),
        ("manifest-position", "1:2:999999999999:1"),
        ("tarsplit-position", ""),
        ("manifest-checksum", "md5:x"),
    ],
)
def test_annotations_that_cannot_be_used(key, value):
    good = {
        PREFIX + "manifest-checksum": "sha256:" + "0" * 64,
        PREFIX + "manifest-position": "500:100:300:1",
        PREFIX + "tarsplit-position": "700:100:300",
    }
    assert chunked.positions(good, 1000) is not None
    assert chunked.positions({**good, PREFIX + key: value}, 1000) is None
    assert (
        chunked.positions({**good, "containerd.io/snapshot/stargz/toc.digest": "x"}, 1000) is None
    )
    assert chunked.positions(None, 1000) is None


def test_few_ranges():
    far = [(number * 10_000_000, number * 10_000_000 + 10) for number in range(600)]
    assert len(chunked.plan_runs(far)) <= 512
    assert chunked.plan_runs([(0, 10), (20, 30)]) == [chunked.Run(0, 30)]
    with pytest.raises(ContentError):
        chunked.plan_runs([(0, 10), (5, 30)])


def test_chunks_end_where_the_next_begins():
    """As podman writes them: the file's entry has the end of all, the chunks have none."""
    table = {
        "version": 1,
        "entries": [
            {"type": "reg", "name": "a", "size": 30, "digest": "sha256:" + "0" * 64}
            | {"offset": 100, "endOffset": 180, "chunkSize": 10},
            {
                "type": "chunk",
                "name": "a",
                "chunkSize": 12,
                "chunkOffset": 10,
                "chunkType": "zeros",
            },
            {"type": "chunk", "name": "a", "offset": 150, "chunkSize": 8, "chunkOffset": 22},
        ],
    }
    files, _ = chunked.parse_toc(json.dumps(table).encode(), None, 1000)
    found = [
        (chunk.offset, chunk.end, chunk.size) for chunk in files["a"].chunks if not chunk.zeros
    ]
    assert found == [(100, 150, 10), (150, 180, 8)]
    with pytest.raises(ContentError):
        chunked.parse_toc(json.dumps(table).encode(), None, 170)


# --- interrupted ------------------------------------------------------------------------------------------------------------


def counting(blob: bytes, sent: list[tuple[int, int]], after: int, stop: threading.Event) -> Any:
    """Serves ranges slowly, notes what went out, and tells when ``after`` bytes did."""

    def handler(peer: Peer, asked: Asked) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.header("range") or "")
        assert wanted, "a range is asked for"
        start, end = int(wanted[1]), int(wanted[2]) + 1
        size = (
            f"Content-Length: {end - start}\r\nContent-Range: bytes {start}-{end - 1}/{len(blob)}"
        )
        peer.send(f"HTTP/1.1 206 Part\r\n{size}\r\n\r\n".encode())
        for place in range(start, end, 16384):
            peer.send(blob[place : min(end, place + 16384)])
            sent.append((place, min(end, place + 16384)))
            if sum(last - first for first, last in sent) >= after:
                stop.set()
                stop_sending.wait(0.2)

    stop_sending = threading.Event()
    return handler


def test_interrupted_pulls_fetch_nothing_twice(tmp_path):
    dice = random.Random(5)
    new = {**OLD, **{f"usr/lib/new-{number}": dice.randbytes(60_000) for number in range(14)}}
    tar = archive(new)
    blob, annotations = compress(tar)
    objects = seeds(tmp_path, OLD)
    sent: list[tuple[int, int]] = []
    points = [300_000, 420_000, 700_000]
    for point in points:
        stop = threading.Event()
        handler = counting(blob, sent, point, stop)
        result, _, _ = pull(tmp_path, blob, tar, annotations, objects, handler, stop)
        assert result is None
        place = tmp_path / "staging" / digest(tar).partition(":")[2] / RANGES
        assert place.stat().st_size > 0
    never = threading.Event()
    handler = counting(blob, sent, 10**9, never)
    result, received, _ = pull(tmp_path, blob, tar, annotations, objects, handler)
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert not place.exists()
    assert received < len(blob) * 0.5
    covered = bytearray(len(blob))
    for first, last in sent:
        covered[first:last] = b"\1" * (last - first)
    twice = sum(last - first for first, last in sent) - covered.count(1)
    assert twice <= len(points) * limits.CHUNK_BYTES, f"{twice} bytes twice"


@pytest.mark.parametrize("where", ["podman", "another pull", "the layer's own staging"])
def test_files_from_elsewhere_on_the_host(tmp_path, where):
    """Podman's storage, and what a pull of another image left; not what is cleared when this layer begins."""
    tar = archive(NEW)
    blob, annotations = compress(tar)
    if where == "podman":
        seeds(tmp_path / "overlay/l1/diff/usr/lib", OLD)
        (tmp_path / "overlay/l1/link").write_text("ABC")
    else:
        own = where != "another pull"
        name = digest(tar).partition(":")[2] if own else hashlib.sha256(b"other").hexdigest()
        seeds(tmp_path / "staging" / name, OLD)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    token = chunked.PLACES.set((f"{tmp_path}/overlay/*/diff", "/nonexistent/*"))
    try:
        result, received, _ = pull(tmp_path, blob, tar, annotations, nothing)
    finally:
        chunked.PLACES.reset(token)
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    assert (received == len(blob)) == (where == "the layer's own staging")


def test_no_more_is_hashed_than_it_takes(tmp_path):
    """Files of one size are looked at one by one; what was hashed is remembered."""
    contents = [bytes([number]) * 1000 for number in range(20)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number:02}").write_bytes(content)
    table = os.memfd_create("seeds")
    os.write(table, chunked.list_seeds([tmp_path], 65))
    directory = os.open(tmp_path, os.O_RDONLY)
    found = chunked.Seeds(table, [directory])
    for number in range(10, 20):
        (tmp_path / f"{number:02}").unlink()
    for number in (3, 1, 9):
        assert found.find(hashlib.sha256(contents[number]).digest(), 1000) == (
            directory,
            f"{number:02}",
        )
    assert found.find(hashlib.sha256(b"x").digest(), 1000) is None
    assert found.find(hashlib.sha256(b"x").digest(), 999) is None
    os.close(directory)
    os.close(table)


@pytest.mark.parametrize("harm", ["cut", "zeros", "flip", "rubbish", "another blob"])
def test_what_was_kept_is_damaged(tmp_path, harm):
    """Records before the damage count, nothing after; where even the sum is right, the diffID finds it and all is fetched."""
    tar = archive(NEW)
    blob, annotations = compress(tar)
    place = tmp_path / "staging" / digest(tar).partition(":")[2]
    place.mkdir(parents=True)
    directory = os.open(place, os.O_RDONLY)
    kept = Ranges(directory, len(blob))
    for start in range(0, len(blob) - 4096, 4096):
        data = blob[start : start + 4096] if harm != "another blob" else bytes(4096)
        kept.add(start, memoryview(data))
    kept.close()
    os.close(directory)
    path = place / RANGES
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if harm == "cut":
        del data[middle:]
    elif harm == "zeros":
        data[middle:] = bytes(len(data) - middle)
    elif harm == "flip":
        data[middle] ^= 1
    elif harm == "rubbish":
        data = bytearray(b"rubbish" * 1000)
    path.write_bytes(data)
    result, received, server = pull(tmp_path, blob, tar, annotations, seeds(tmp_path, OLD))
    assert result.sink["sha256"] == hashlib.sha256(tar).hexdigest()
    if harm == "another blob":
        assert received == len(blob)
    else:
        assert received < len(blob)
    assert server.requests


def test_pieces_that_are_kept(tmp_path):
    blob = random.Random(1).randbytes(50_000)
    directory = os.open(tmp_path, os.O_RDONLY)
    asked: list[tuple[int, int]] = []

    class Source(io.BytesIO):
        pass

    def fetch(start: int, end: int) -> Any:
        asked.append((start, end))
        return Source(blob[start:end])

    def read(kept: Ranges, start: int, end: int, most: int) -> bytes:
        found = bytearray()
        source = Range(kept, start, end, fetch)
        view = memoryview(bytearray(most))
        while (count := source.readinto(view)) and len(found) < end - start:
            found += view[:count]
        source.close()
        return bytes(found)

    kept = Ranges(directory, len(blob))
    assert read(kept, 10_000, 20_000, 700) == blob[10_000:20_000]
    assert read(kept, 30_000, 30_001, 700) == blob[30_000:30_001]
    kept.close()
    again = Ranges(directory, len(blob))
    asked.clear()
    assert read(again, 5_000, 35_000, 999) == blob[5_000:35_000]
    assert asked == [(5_000, 10_000), (20_000, 30_000), (30_001, 35_000)]
    asked.clear()
    assert read(again, 0, 50_000, 1 << 20) == blob
    assert asked == [(0, 5_000), (35_000, 50_000)]
    again.drop()
    assert list(tmp_path.iterdir()) == []
    os.close(directory)
