"""Layers fetched by the file: zstd:chunked (containers/storage, table of contents version 1), for worker processes.

    blob = frame {frame}                  one zstd frame or more for each file's content, others for the headers between
           skippable(table of contents)   zstd of {"version": 1, "entries": […], "tarSplitDigest": "sha256:…"}
           skippable(tar-split)           zstd of JSON lines: segments of the archive (base64), and names of files in between
    annotations (covered by the manifest's digest):  io.github.containers.zstd-chunked.manifest-position   offset:length:plain:1
                                                     …manifest-checksum, …tarsplit-position   offset:length:plain

What the host holds already is found by size and SHA-256 in whatever local directories are named (objects of other deployments,
of interrupted pulls). The rest comes in few ranges. Everything is put together to the archive, byte for byte, and goes the way of
a full pull: diffID, splitter, sink. So the table is a hint and nothing more: where it lies, the digest fails, and the caller
fetches the whole layer. `NotWorthwhile` says the same for what is not worth it.
"""

from __future__ import annotations

import array
import base64
import binascii
import bisect
import errno
import hashlib
import json
import mmap
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import ContentError, TransportError
from bootc_core.oci.compression import decompress

_PREFIX: Final = "io.github.containers.zstd-chunked."
_ESTARGZ: Final = "containerd.io/snapshot/stargz/toc.digest"
_HOLE: Final = 24 * limits.KIB  # unwanted bytes that cost less than another request does
_REQUEST: Final = 2 * limits.KIB  # what a request costs on the line, both ways
_REQUESTS: Final = 512  # at most for one layer; then larger holes are fetched
_WORTH: Final = 0.8  # of the blob; beyond it the whole blob is simpler
_OBJECT: Final = re.compile("[0-9a-f]{2}/[0-9a-f]{2,}")
_LINES: Final = 512  # of a tar-split, parsed at once
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_RECORD: Final = struct.Struct(">QB")
_NAME_BYTES: Final = 151
RECORD_BYTES: Final = _RECORD.size + _NAME_BYTES

PLACES: Final[ContextVar[tuple[str, ...]]] = ContextVar("bootc-seed-places", default=())
"""Patterns of further directories with files that a layer may share, for the running command."""


class NotWorthwhile(Exception):
    """The layer is better fetched as a whole."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Where table and tar-split are in the blob, by the descriptor's annotations."""

    toc: tuple[int, int, int]  # offset, length, length uncompressed
    toc_digest: str
    split: tuple[int, int, int]

    @property
    def bytes(self) -> int:
        """What has to be fetched to know what to fetch."""
        return self.toc[1] + self.split[1]


def positions(annotations: Mapping[str, str] | None, size: int) -> Positions | None:
    """Positions in a blob of ``size`` bytes; None if it is not chunked, or in a way that cannot be verified (no tar-split)."""
    told = annotations or {}
    digest = told.get(f"{_PREFIX}manifest-checksum", "")
    if not digest.startswith("sha256:") or _ESTARGZ in told:
        return None
    toc = _numbers(told.get(f"{_PREFIX}manifest-position", ""), 4)
    split = _numbers(told.get(f"{_PREFIX}tarsplit-position", ""), 3)
    if toc is None or split is None or toc[3] != 1:
        return None
    for offset, length, plain in (toc[:3], split):
        if not 0 < offset < offset + length <= size or not 0 < plain <= limits.TOC_BYTES:
            return None
    return Positions((toc[0], toc[1], toc[2]), digest, (split[0], split[1], split[2]))


def _numbers(text: str, count: int) -> list[int] | None:
    parts = text.split(":")
    if len(parts) != count or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return [int(part[:19]) for part in parts]


# --- what the host holds ------------------------------------------------------------------------------------------------


def list_seeds(directories: Sequence[Path], least: int) -> bytes:
    """A table of the regular files beneath ``directories``, sorted by size: for `Seeds` in worker processes.

    Args:
        directories: trees of files that never change (names of at most 150 bytes count); others than the first level's
            subdirectories are walked too.
        least: smaller files are left out, in bytes.
    """
    records = []
    for number, top in enumerate(directories):
        todo = [""]
        while todo:
            place = todo.pop()
            try:
                with os.scandir(f"{top}/{place}" if place else top) as entries:
                    for entry in entries:
                        name = f"{place}/{entry.name}" if place else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(name)
                        elif len(name) < _NAME_BYTES and entry.is_file(follow_symlinks=False):
                            size = entry.stat(follow_symlinks=False).st_size
                            if size >= least:
                                records.append(
                                    _RECORD.pack(size, number)
                                    + os.fsencode(name).ljust(_NAME_BYTES, b"\0")[:_NAME_BYTES]
                                )
            except OSError:
                continue
    records.sort()
    return b"".join(records)


class Seeds:
    """Finds content by size and SHA-256; what was hashed once is known for the rest of the process's life."""

    def __init__(self, table: int, directories: Sequence[int]) -> None:
        size = os.fstat(table).st_size
        self._table = mmap.mmap(table, size, prot=mmap.PROT_READ) if size else b""
        self._sizes = array.array(
            "Q",
            (
                _RECORD.unpack_from(self._table, start)[0]
                for start in range(0, size - RECORD_BYTES + 1, RECORD_BYTES)
            ),
        )
        self._directories = directories
        # by size: what was hashed so far, and the record to go on from
        self._known: dict[int, tuple[dict[bytes, tuple[int, str]], int]] = {}

    def find(self, digest: bytes, size: int) -> tuple[int, str] | None:
        """Directory descriptor and name of a file with that content, or None; no more is hashed than that takes."""
        sizes = self._sizes
        known, number = self._known.get(size) or ({}, bisect.bisect_left(sizes, size))
        while digest not in known and number < len(sizes) and sizes[number] == size:
            self._look(known, number, size)
            number += 1
        self._known[size] = known, number
        return known.get(digest)

    def _look(self, known: dict[bytes, tuple[int, str]], number: int, size: int) -> None:
        record = self._table[number * RECORD_BYTES : (number + 1) * RECORD_BYTES]
        directory = self._directories[record[8]]
        name = os.fsdecode(bytes(record[_RECORD.size :]).rstrip(b"\0"))
        hasher = hashlib.sha256()
        try:
            for piece in read_file(directory, name, size):
                hasher.update(piece)
        except OSError:
            return
        known.setdefault(hasher.digest(), (directory, name))


def read_file(directory: int, name: str, size: int) -> Iterable[bytes]:
    """The content of a local file in pieces; large ones as they are asked for.

    Raises:
        OSError: it is gone, something else than a regular file, or of another size.
    """
    descriptor = os.open(name, _READ, dir_fd=directory)
    if size >= limits.OUTPUT_CHUNK_BYTES:
        return _pieces_of(descriptor, size)
    try:
        data = os.read(descriptor, size + 1)  # what is no file gives less or more
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise OSError(errno.EIO, "it changed")
    return (data,)


def _pieces_of(descriptor: int, size: int) -> Iterator[bytes]:
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            raise OSError(errno.EIO, "it changed")
        left = size
        while left:
            piece = os.read(descriptor, min(left, limits.OUTPUT_CHUNK_BYTES))
            if not piece:
                raise OSError(errno.EIO, "it shrank")
            left -= len(piece)
            yield piece
    finally:
        os.close(descriptor)


# --- the plan ---------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunk:
    offset: int
    end: int
    size: int
    zeros: bool


@dataclass(slots=True)
class _File:
    size: int
    chunks: list[_Chunk]
    place: tuple[int, str] | None = None


class _Bad(ContentError):
    """Table or tar-split are not what they should be; the caller fetches the whole layer, so nobody sees this."""


def _bad(found: str) -> _Bad:
    return _Bad("the table of contents cannot be used", reference="bad-toc", found=found)


def parse_toc(data: bytes, seeds: Seeds | None, end: int) -> tuple[dict[str, _File], str]:
    """Files with content by name, and the tar-split's digest.

    Args:
        data: the table, decompressed.
        seeds: where content is looked for.
        end: bound of offsets.

    Raises:
        ContentError: malformed, or ambiguous.
    """
    try:
        value: Any = json.loads(data)
        if value["version"] != 1:
            raise _bad("another version")
        files: dict[str, _File] = {}
        file: _File | None = None
        left = stop = 0
        for entry in value["entries"]:
            kind = entry["type"]
            if kind not in ("reg", "chunk"):
                continue
            size = int(entry.get("size") or 0)
            if kind == "reg":
                if left:
                    raise _bad("a file without all its chunks")
                name = entry["name"]
                file = _File(size, [])
                if size:
                    if name in files:
                        raise _bad("two files of one name")
                    files[name] = file
                    algorithm, _, hexed = entry["digest"].partition(":")
                    if seeds is not None and algorithm == "sha256" and len(hexed) == 64:
                        file.place = seeds.find(bytes.fromhex(hexed), size)
                left = size
            if file is None or not left:
                continue
            length = int(entry.get("chunkSize") or 0) or left
            if kind == "reg":  # the end is the file's; each chunk ends where the next one begins
                stop = int(entry.get("endOffset") or 0)
            if length > left:
                raise _bad("a chunk outside its file")
            start, zeros = int(entry.get("offset") or 0), entry.get("chunkType") == "zeros"
            file.chunks.append(_Chunk(start, stop, length, zeros))
            left -= length
            if not left:
                _close_chunks(file.chunks, end)
        if left:
            raise _bad("a file without all its chunks")
        return files, str(value.get("tarSplitDigest") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise _bad(type(problem).__name__) from None


def _close_chunks(chunks: Sequence[_Chunk], end: int) -> None:
    """Let each chunk end where the next one begins (runs of zeros have frames, too); the last one's end is known."""
    stop = chunks[-1].end
    for chunk in reversed(chunks):
        chunk.end = stop
        stop = chunk.offset or stop
    if any(not (chunk.zeros or 0 <= chunk.offset < chunk.end <= end) for chunk in chunks):
        raise _bad("a chunk outside its blob")


@dataclass(frozen=True, slots=True)
class Run:
    """A range of the blob that is fetched at once."""

    start: int
    end: int


def plan_runs(chunks: Sequence[tuple[int, int]], hole: int = _HOLE) -> list[Run]:
    """Few ranges that cover ``chunks`` (start and end, in order of the archive).

    Raises:
        ContentError: chunks that overlap or go backwards.
    """
    while True:
        runs: list[Run] = []
        for start, end in chunks:
            if runs and start < runs[-1].end:
                raise _bad("chunks that overlap")
            if runs and start - runs[-1].end <= hole:
                runs[-1] = Run(runs[-1].start, end)
            else:
                runs.append(Run(start, end))
        if len(runs) <= _REQUESTS:
            return runs
        hole *= 2


@dataclass(frozen=True, slots=True)
class Known:
    """The content of a member, which is that of a file that the sink knows: by what name, of what size, and the bytes."""

    name: str
    size: int
    content: Iterable[bytes]


class Layer:
    """One layer, fetched by the file. Iteration gives the archive's bytes; the caller checks them against the diffID.

    Args:
        where: table and tar-split.
        size: of the blob.
        fetch: opens a range of the blob: an object with ``readinto`` and ``close``.
        seeds: where content is looked for.
        report: told how many bytes of the blob are done.
        own: the directory among the seeds whose files the sink knows by name: their content comes as `Known`.
    """

    def __init__(
        self,
        where: Positions,
        size: int,
        fetch: Callable[[int, int], Any],
        seeds: Seeds | None,
        report: Callable[[int], None],
        own: int | None = None,
    ) -> None:
        self._fetch, self._report, self._own = fetch, report, own
        self.received = 0
        toc, split = self._documents(where)
        limit = min(where.toc[0], where.split[0]) - 8
        table = _plain(toc, where.toc[2])
        self._files, split_digest = parse_toc(table, seeds, limit)
        if f"sha256:{hashlib.sha256(split).hexdigest()}" != split_digest:
            raise _bad("the tar-split has another digest")
        self._order = list(_segments(_plain(split, where.split[2])))
        wanted = [
            (chunk.offset, chunk.end)
            for file in self._ordered()
            if file.place is None
            for chunk in file.chunks
            if not chunk.zeros
        ]
        self._runs = plan_runs(wanted)
        self.needed = sum(run.end - run.start for run in self._runs)
        if self.needed + len(self._runs) * _REQUEST + where.bytes > size * _WORTH:
            raise NotWorthwhile
        self._run: Any = None
        self._at = self._stop = 0
        self._buffer = memoryview(bytearray(limits.CHUNK_BYTES))
        self._ahead = self._buffer[:0]  # read, and not yet used

    def _documents(self, where: Positions) -> tuple[bytes, bytes]:
        start = min(where.toc[0], where.split[0])
        end = max(where.toc[0] + where.toc[1], where.split[0] + where.split[1])
        if end - start <= where.bytes + limits.KIB:  # beside each other: one request
            both = self._read_range(start, end)
            toc, split = (
                both[place[0] - start : place[0] - start + place[1]]
                for place in (where.toc, where.split)
            )
        else:
            toc, split = (
                self._read_range(place[0], place[0] + place[1])
                for place in (where.toc, where.split)
            )
        if f"sha256:{hashlib.sha256(toc).hexdigest()}" != where.toc_digest:
            raise _bad("the table has another digest than its annotation")
        return toc, split

    def _read_range(self, start: int, end: int) -> bytes:
        data = bytearray(end - start)
        view = memoryview(data)
        source = self._fetch(start, end)
        try:
            done = 0
            while done < len(view):
                count = source.readinto(view[done : done + limits.CHUNK_BYTES])
                if not count:
                    raise _bad("a range ended early")
                done += count
        finally:
            source.close()
        self._count(len(data))
        return bytes(data)

    def _count(self, count: int) -> None:
        self.received += count
        self._report(self.received)

    def _ordered(self) -> Iterator[_File]:
        """The files with content as the archive has them; each once."""
        seen = set()
        for name in self._order:
            if isinstance(name, str):
                file = self._files.get(name)
                if file is None or name in seen:
                    raise _bad("tar-split and table name different files")
                seen.add(name)
                yield file

    def __iter__(self) -> Iterator[bytes | memoryview | Known]:
        try:
            for data in self._order:
                if isinstance(data, bytes):
                    yield data
                    continue
                file = self._files[data]
                if file.place is not None:
                    content = read_file(*file.place, file.size)
                    if file.place[0] == self._own and _OBJECT.fullmatch(file.place[1]):
                        yield Known(file.place[1].replace("/", ""), file.size, content)
                    else:
                        yield from content
                    continue
                for chunk in file.chunks:
                    yield from self._content(chunk)
        finally:
            self.close()

    def _content(self, chunk: _Chunk) -> Iterator[bytes | memoryview]:
        if chunk.zeros:
            left = chunk.size
            while left:
                piece = bytes(min(left, limits.OUTPUT_CHUNK_BYTES))
                left -= len(piece)
                yield piece
            return
        done = 0
        for out in decompress(
            self._pieces(chunk), "zstd", "a file", max_bytes=chunk.size, nested=True
        ):
            done += len(out)
            yield out
        if done != chunk.size:
            raise _bad("a chunk of another size")

    def _pieces(self, chunk: _Chunk) -> Iterator[memoryview]:
        """The chunk's compressed bytes; the hole in front of it is read and dropped."""
        if self._run is None or chunk.offset >= self._stop:
            self.close()
            run = self._runs.pop(0)
            self._run, self._at, self._stop = self._fetch(run.start, run.end), run.start, run.end
        while self._at < chunk.end:
            if not self._ahead:
                count = self._run.readinto(self._buffer)
                if not count:
                    raise _bad("a range ended early")
                self._count(count)
                self._ahead = self._buffer[:count]
            hole = max(0, chunk.offset - self._at)
            piece = self._ahead[hole : chunk.end - self._at]
            used = min(len(self._ahead), chunk.end - self._at)
            self._ahead = self._ahead[used:]
            self._at += used
            if piece:
                yield piece

    def close(self) -> None:
        """Give up what was not read."""
        self._ahead = self._buffer[:0]
        if self._run is not None:
            self._run.close()
            self._run = None


def _segments(split: bytes) -> Iterator[bytes | str]:
    """The archive in order: bytes, or the name of a file whose content comes here."""
    lines = split.splitlines()
    try:
        for first in range(0, len(lines), _LINES):
            text = b",".join(filter(None, lines[first : first + _LINES]))
            for entry in json.loads(b"[" + text + b"]"):
                if entry["type"] == 2:
                    yield base64.b64decode(entry["payload"], validate=True)
                elif entry["type"] == 1:
                    if entry.get("size"):
                        yield _name(entry)
                else:
                    raise _bad("an unknown kind of tar-split entry")
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as problem:
        raise _bad(type(problem).__name__) from None


def _name(entry: Mapping[str, Any]) -> str:
    raw = entry.get("name_raw")
    if raw is None:
        return str(entry["name"])
    return base64.b64decode(raw, validate=True).decode("utf-8", "replace")


def _plain(data: bytes, size: int) -> bytes:
    """A decompressed document of exactly ``size`` bytes."""
    out = b"".join(bytes(piece) for piece in decompress([data], "zstd", "a table", max_bytes=size))
    if len(out) != size:
        raise _bad("a document of another size")
    return out


def falls_back(problem: BaseException) -> bool:
    """Whether the whole layer may be better than the attempt by file that ended with ``problem``."""
    if isinstance(problem, TransportError):
        return problem.reference == "bad-range"
    return isinstance(problem, NotWorthwhile | ContentError | OSError)
