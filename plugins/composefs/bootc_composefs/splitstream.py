"""Splitstreams: a byte stream (a layer's tar, a JSON document) cut into inline pieces and references to objects.

    0    "SplitStream" version flags algorithm log2-block-size, info range      32 bytes, then
    32   info: ranges of stream_refs, object_refs, stream, named_refs; content type, stream size
    112  stream_refs    digests of other splitstreams and of images
         object_refs    digests of objects, in order of first use, each once
         named_refs     zstd frame: records  INDEX:NAME NUL
         stream         zstd frame: chunks, each an i64: -n and n inline bytes, or an index into object_refs

The file is itself an object of the repository. Integers are little-endian. Deployments of old hosts have a header in another
order, which is read and never written. The compressed bytes, and so the digest of the file, depend on the zstd version:
nobody may compare them (composefs formats, section 6).

The writer runs in worker processes: standard library, errors, limits and zstd only.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import ContentError, printable

if sys.version_info >= (3, 14):  # pragma: no cover - the same module, in the standard library
    from compression import zstd
else:
    from backports import zstd

LAYER: Final = b"ocilayer"
CONFIG: Final = b"ociconfg"
MANIFEST: Final = b"ocimanif"

ALGORITHMS: Final = {1: "sha256", 2: "sha512"}
ALGORITHM_IDS: Final = {name: number for number, name in ALGORITHMS.items()}
DIGEST_BYTES: Final = {"sha256": 32, "sha512": 64}

_MAGIC: Final = b"SplitStream"
_HEADER: Final = 32
_INFO: Final = 80
_LEVEL: Final = 3
_PIECE: Final = 256 * limits.KIB  # compressed at once
_SPILL: Final = (
    4 * limits.MIB
)  # an inline run or a compressed stream beyond this goes to an unnamed file
_int64 = struct.Struct("<q")
_info = struct.Struct("<10Q")


def _bad(found: str) -> ContentError:
    return ContentError(
        "a splitstream of the repository is damaged",
        reference="bad-splitstream",
        found=found,
        catalogue="INT",
    )


def head(
    algorithm: str,
    content_type: bytes,
    stream_size: int,
    stream_refs: bytes,
    object_refs: bytes,
    named_bytes: int,
    stream_bytes: int,
) -> bytes:
    """Everything before the named references: header, info section, both tables.

    Args:
        algorithm: ``sha256`` or ``sha512``.
        content_type: eight ASCII bytes, or ``b""``.
        stream_size: bytes of the stream when put together.
        stream_refs: concatenated digests.
        object_refs: concatenated digests.
        named_bytes: size of the compressed named references.
        stream_bytes: size of the compressed stream.
    """
    first = _HEADER + _INFO
    second = first + len(stream_refs)
    third = second + len(object_refs)
    fourth = third + named_bytes
    fifth = fourth + stream_bytes
    header = struct.pack("<11sBHBBQQ", _MAGIC, 0, 0, ALGORITHM_IDS[algorithm], 12, _HEADER, first)
    kind = int.from_bytes(content_type, "little")
    info = _info.pack(first, second, second, third, fourth, fifth, third, fourth, kind, stream_size)
    return header + info + stream_refs + object_refs


def _frame(data: bytes) -> bytes:
    compressor = zstd.ZstdCompressor(level=_LEVEL)
    # Without data a single flush: that is the nine-byte frame which the format expects for an empty section.
    return (compressor.compress(data) if data else b"") + compressor.flush()


def named_frame(names: Sequence[tuple[str, int]]) -> bytes:
    """The compressed section of named references: pairs of name and index into ``stream_refs``."""
    ordered = sorted((name.encode(), index) for name, index in names)
    return _frame(b"".join(b"%d:%s\0" % (index, name) for name, index in ordered))


def encode_document(
    algorithm: str,
    content_type: bytes,
    document: bytes,
    size: int,
    references: Sequence[tuple[str, bytes]],
) -> bytes:
    """The splitstream of a JSON document that is an object of its own.

    Args:
        algorithm: of the repository.
        content_type: ``CONFIG`` or ``MANIFEST``.
        document: digest of the document's object.
        size: its bytes.
        references: names with the digests that they stand for, in the order of the table.
    """
    table: dict[bytes, int] = {}
    names = [(name, table.setdefault(digest, len(table))) for name, digest in references]
    named, stream = named_frame(names), _frame(_int64.pack(0))
    start = head(algorithm, content_type, size, b"".join(table), document, len(named), len(stream))
    return start + named + stream


class _Spill:
    """Bytes in order: in memory up to ``_SPILL``, then in an unnamed file of the given directory."""

    __slots__ = ("_directory", "_file", "_memory", "size")

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._file = -1
        self._memory: list[bytes] = []
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.size += len(data)
        if self._file < 0:
            self._memory.append(bytes(data))
            if self.size <= _SPILL:
                return
            self._file = unnamed(self._directory)
            data = b"".join(self._memory)
            self._memory = []
        write_all(self._file, data)

    def pieces(self) -> Iterator[bytes]:
        if self._file < 0:
            yield from self._memory
            return
        os.lseek(self._file, 0, os.SEEK_SET)
        while piece := os.read(self._file, limits.MIB):
            yield piece

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file, self._memory, self.size = -1, [], 0


def unnamed(directory: int) -> int:
    """A descriptor, open for reading and writing, of a file in ``directory`` that has no name (or has lost it)."""
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError:  # the file system has no unnamed files
        name = f".spill-{os.getpid()}-{os.urandom(6).hex()}"
        descriptor = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        os.unlink(name, dir_fd=directory)
        return descriptor


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data``; a short write is followed by another."""
    done = os.write(descriptor, data)
    if done != len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.write(descriptor, view[done:])


class Writer:
    """Writes the splitstream of a layer while it streams past, in bounded memory.

    Calls follow the stream: ``inline`` for bytes that stay in it, ``external`` for a file that became an object. Neighbouring
    inline bytes become one chunk, as readers of this format expect of a tar header. Memory grows with the number of distinct
    objects only (some 200 bytes each).
    """

    __slots__ = (
        "_algorithm",
        "_buffer",
        "_compressor",
        "_directory",
        "_index",
        "_run",
        "_spilled",
        "_stream",
        "stream_size",
    )

    def __init__(self, directory: int, algorithm: str = "sha512") -> None:
        self._directory = directory
        self._algorithm = algorithm
        self._compressor = zstd.ZstdCompressor(level=_LEVEL)
        self._index: dict[bytes, int] = {}
        self._run = bytearray()  # the inline chunk that is being collected
        self._spilled: _Spill | None = None  # its beginning, if it is very long
        self._buffer = bytearray()  # chunks that are not compressed yet
        self._stream = _Spill(directory)
        self.stream_size = 0

    @property
    def objects(self) -> dict[bytes, int]:
        """Digests of the objects referred to so far, in order of first use, with their index."""
        return self._index

    def inline(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes that stay in the stream."""
        self._run += data
        if len(self._run) > _SPILL:
            if self._spilled is None:
                self._spilled = _Spill(self._directory)
            self._spilled.write(self._run)
            self._run.clear()

    def external(self, digest: bytes, size: int) -> int:
        """The whole content of the object ``digest``, ``size`` bytes, stands here; its index."""
        if self._run or self._spilled:
            self._end_run()
        index = self._index.setdefault(digest, len(self._index))
        self._buffer += _int64.pack(index)
        self.stream_size += size
        return index

    def _end_run(self) -> None:
        total = len(self._run)
        if self._spilled:
            total += self._spilled.size
        self.stream_size += total
        self._buffer += _int64.pack(-total)
        if self._spilled:
            for piece in self._spilled.pieces():
                self._buffer += piece
                self._compress()
            self._spilled.close()
            self._spilled = None
        self._buffer += self._run
        self._run.clear()
        if len(self._buffer) >= _PIECE:
            self._compress()

    def _compress(self) -> None:
        if self._buffer:
            self._stream.write(self._compressor.compress(self._buffer))
            self._buffer.clear()

    def finish(self, content_type: bytes = LAYER) -> Iterator[bytes]:
        """The pieces of the file, in order; nothing may be added afterwards."""
        if self._run or self._spilled:
            self._end_run()
        self._compress()
        self._stream.write(self._compressor.flush())
        named = named_frame(())
        references = b"".join(self._index)
        yield head(
            self._algorithm,
            content_type,
            self.stream_size,
            b"",
            references,
            len(named),
            self._stream.size,
        )
        yield named
        yield from self._stream.pieces()
        self._stream.close()

    def close(self) -> None:
        """Drop everything."""
        self._stream.close()
        if self._spilled:
            self._spilled.close()
            self._spilled = None


class Splitstream:
    """A splitstream that was read: tables at once, named references and chunks when asked for.

    Attributes:
        data: the file.
        algorithm: ``sha256`` or ``sha512``.
        content_type: eight bytes, NUL bytes stripped.
        size: bytes of the stream when put together, as the file claims.
        stream_refs, object_refs: digests.
    """

    __slots__ = (
        "_data",
        "_named",
        "_stream",
        "algorithm",
        "content_type",
        "data",
        "object_refs",
        "size",
        "stream_refs",
    )

    def __init__(self, data: bytes | memoryview) -> None:
        """Take apart the file ``data``.

        Raises:
            ContentError: it is none, or it is damaged (``bad-splitstream``).
        """
        view = memoryview(data)
        if len(view) < _HEADER + _INFO:
            raise _bad(f"{len(view)} bytes")
        if bytes(view[:11]) == _MAGIC:
            version, number, block = view[11], view[14], view[15]
            start, end = struct.unpack_from("<QQ", view, 16)
        elif bytes(view[18:29]) == _MAGIC:  # as bootc up to 1.15 wrote it
            version, number, block = view[29], view[30], view[31]
            start, end = struct.unpack_from("<QQ", view, 0)
        else:
            raise _bad("no magic number")
        if version != 0 or number not in ALGORITHMS or block != 12:
            raise _bad(f"version {version}, hash algorithm {number}, block size 2^{block}")
        if end > len(view) or end < start or end - start < _INFO:
            raise _bad("the info section is out of bounds")
        self.data = bytes(data)
        self._data = view
        self.algorithm = ALGORITHMS[number]
        fields = _info.unpack_from(view, start)
        stream_refs, object_refs, self._stream, self._named = (
            self._range(fields[place], fields[place + 1]) for place in (0, 2, 4, 6)
        )
        self.content_type = fields[8].to_bytes(8, "little").rstrip(b"\0")
        self.size = fields[9]
        self.stream_refs = self._digests(stream_refs)
        self.object_refs = self._digests(object_refs)

    def _range(self, start: int, end: int) -> memoryview:
        if not start <= end <= len(self._data):
            raise _bad(f"a section at {start}..{end} of {len(self._data)} bytes")
        return self._data[start:end]

    def _digests(self, table: memoryview) -> list[bytes]:
        width = DIGEST_BYTES[self.algorithm]
        if len(table) % width:
            raise _bad("a table of digests has a wrong size")
        raw = bytes(table)
        return [raw[place : place + width] for place in range(0, len(raw), width)]

    @staticmethod
    def _inflate(section: memoryview, limit: int) -> Iterator[bytes]:
        decoder = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: limits.ZSTD_WINDOW_LOG}
        )
        total, feed = 0, section
        try:
            while not decoder.eof:
                piece = decoder.decompress(feed, limits.OUTPUT_CHUNK_BYTES)
                feed = memoryview(b"")
                total += len(piece)
                if total > limit:
                    raise _bad("it expands beyond its own bounds")
                if piece:
                    yield piece
                elif not decoder.eof and decoder.needs_input:
                    raise _bad("a compressed section is cut short")
        except zstd.ZstdError as problem:
            raise _bad(printable(str(problem))) from None
        if decoder.unused_data:
            raise _bad("bytes after a compressed section")

    def named_refs(self) -> dict[str, bytes]:
        """Names with the digests that they stand for.

        Raises:
            ContentError: damaged.
        """
        if not self._named:
            return {}
        raw = b"".join(self._inflate(self._named, limits.CONFIG_BYTES))
        if raw and not raw.endswith(b"\0"):
            raise _bad("the named references are cut short")
        names: dict[str, bytes] = {}
        for record in raw.split(b"\0")[:-1]:
            number, colon, name = record.partition(b":")
            index = int(number) if number.isdigit() and len(number) < 10 else -1
            try:
                text = name.decode()
            except UnicodeDecodeError:
                colon = b""
            if not colon or not 0 <= index < len(self.stream_refs):
                raise _bad(f"the named reference {printable(record, 80)}")
            names[text] = self.stream_refs[index]
        return names

    def chunks(self) -> Iterator[bytes | int]:
        """The stream in order: inline bytes (a long chunk in several pieces), or an index into ``object_refs``.

        Raises:
            ContentError: damaged, or larger than it claims.
        """
        known = len(self.object_refs)
        # Every reference takes eight bytes and stands for one byte at least, so this bounds an honest stream.
        pieces = self._inflate(self._stream, 9 * self.size + 1024) if self._stream else iter(())
        buffer, place, inline = b"", 0, 0
        for piece in pieces:
            buffer = buffer[place:] + piece if place < len(buffer) else piece
            place, end = 0, len(buffer)
            while place < end:
                if end - place < 8:
                    break
                (number,) = _int64.unpack_from(buffer, place)
                if number >= 0:
                    if number >= known:
                        raise _bad(f"a reference to object {number} of {known}")
                    place += 8
                    yield number
                    continue
                if inline - number > self.size:
                    raise _bad("it expands beyond its own bounds")
                if end - place - 8 < -number:
                    if -number <= limits.OUTPUT_CHUNK_BYTES:
                        break  # the rest comes with the next piece
                    # A very long run is handed on in pieces; what is missing is taken from the next ones.
                    rest = -number - (end - place - 8)
                    inline -= number
                    yield buffer[place + 8 :]
                    for more in pieces:
                        if len(more) > rest:
                            yield more[:rest]
                            buffer, place, end, rest = more, rest, len(more), 0
                            break
                        yield more
                        rest -= len(more)
                        if not rest:
                            buffer, place, end = b"", 0, 0
                            break
                    if rest:
                        raise _bad("an inline chunk is cut short")
                    continue
                inline -= number
                place += 8 - number
                yield buffer[place + number : place]
        if place < len(buffer):
            raise _bad("the stream is cut short")

    def document(self) -> bytes:
        """Digest of the only object: what a configuration's or manifest's splitstream stands for.

        Raises:
            ContentError: it refers to none or several.
        """
        if len(self.object_refs) != 1:
            raise _bad(f"a document of {len(self.object_refs)} objects")
        return self.object_refs[0]


def parse(data: bytes | memoryview, algorithm: str) -> Splitstream:
    """The splitstream in ``data``, of a repository with ``algorithm``.

    Raises:
        ContentError: damaged, or of the other algorithm.
    """
    stream = Splitstream(data)
    if stream.algorithm != algorithm:
        raise _bad(f"digests of {stream.algorithm} in a repository of {algorithm}")
    return stream


__all__: Sequence[Any] = (
    "CONFIG",
    "LAYER",
    "MANIFEST",
    "Splitstream",
    "Writer",
    "encode_document",
    "parse",
)
