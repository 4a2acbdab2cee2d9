"""Bounded, streaming decompression of layers: ``none``, ``gzip`` (RFC 1952) and ``zstd`` (RFC 8878).

    gzip   = member { member }                    1F 8B 08 …, checksum and length of each member are checked
    zstd   = frame { frame }, skippable frames    28 B5 2F FD … and 50..5F 2A 4D 18 …

One rule for everything that follows the first member or frame: another one, or the layer is refused. What a media type says
and what the first bytes say has to agree. Decoding stops at one layer: an archive inside is a tar, never another stream.
Output comes in pieces of at most ``limits.OUTPUT_CHUNK_BYTES``, so a bomb costs time up to its bound, and no memory.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from bootc_core import limits
from bootc_core.errors import ContentError, printable

COMPRESSIONS: Final = ("none", "gzip", "zstd")
_HEAD: Final = 6  # bytes needed to recognise a format
_HEADER_MOST: Final = 128 * 1024  # of a gzip header, whose extra field alone may have 64 KiB
_STEP_LEAST: Final = 4096
_STEP_MOST: Final = 1024 * 1024


class _Decoder(Protocol):
    """One member or frame (the interface of ``bz2``, ``lzma`` and ``compression.zstd``)."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes | memoryview, max_length: int = -1) -> bytes: ...


class _Zlib:
    """The standard library's gzip decoder in that form; where isal is missing."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int = -1) -> bytes:
        tail = self._inner.unconsumed_tail
        return self._inner.decompress(tail + data if tail else data, max(max_length, 0))


def gzip_decoder(
    *, standard: bool = False
) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """Maker of decoders for one gzip member each, and what they raise: isal, or zlib (2.4 times slower) without it."""
    if not standard:
        try:
            from isal import igzip_lib
        except ImportError:
            pass
        else:
            error: Any = igzip_lib.error  # its stub takes the class for an instance
            return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), (error,)
    return _Zlib, (zlib.error,)


def zstd_module() -> Any:
    """The standard library's ``compression.zstd``, or its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def zstd_decoder() -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """Maker of decoders for one zstd frame each, windows bounded, and what they raise."""
    zstd = zstd_module()
    options = {int(zstd.DecompressionParameter.window_log_max): limits.ZSTD_WINDOW_LOG}
    return lambda: zstd.ZstdDecompressor(options=options), (zstd.ZstdError,)


def sniff(head: bytes) -> str:
    """What a stream that begins with ``head`` is: ``gzip``, ``zstd``, ``xz``, ``bzip2``, or ``none`` for anything else."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (
        head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F
    ):
        return "zstd"
    if head[:6] == b"\xfd7zXZ\0":
        return "xz"
    if head[:3] == b"BZh":
        return "bzip2"
    return "none"


def decompress(
    chunks: Iterable[bytes | memoryview],
    compression: str,
    what: str = "layer",
    *,
    max_bytes: int = limits.LAYER_BYTES,
    max_ratio: int = limits.RATIO,
    ratio_free_bytes: int = limits.RATIO_FREE_BYTES,
    max_frames: int = limits.FRAMES,
    standard_library: bool = False,
    nested: bool = False,
) -> Iterator[bytes | memoryview]:
    """The decoded bytes of ``chunks``, in non-empty pieces of at most ``limits.OUTPUT_CHUNK_BYTES``.

    Args:
        chunks: the stream, cut anywhere; a chunk is used only until the next one is asked for.
        compression: ``none``, ``gzip`` or ``zstd``, as the media type says; with ``none`` the chunks themselves come out.
        what: names the layer in errors.
        max_bytes: bound on the output.
        max_ratio: bound on output per input, looked at from ``ratio_free_bytes`` of output on.
        ratio_free_bytes: see there.
        max_frames: bound on gzip members or zstd frames.
        standard_library: use ``zlib`` even where isal is there.
        nested: what comes out may look compressed itself, since it is a file and no archive.

    Raises:
        ContentError: not of that compression, damaged, cut off, followed by rubbish (INT); compressed twice (CON); beyond
            a bound (LIM).
    """
    source = iter(chunks)
    head, source = _peek(source)
    found = sniff(head)
    if found != compression:
        raise _mismatch(what, compression, found, empty=not head)
    if compression == "none":
        pieces: Iterator[bytes | memoryview] = _plain(source)
    else:
        make, errors = (
            gzip_decoder(standard=standard_library) if compression == "gzip" else zstd_decoder()
        )
        meter = _Meter(what, max_ratio, ratio_free_bytes)
        pieces = _decode(source, compression, make, errors, what, max_frames, meter)
    total, first = 0, b""
    for piece in pieces:
        if total < _HEAD:
            first += bytes(piece[: _HEAD - total])
            looks = sniff(first) if len(first) >= _HEAD and not nested else "none"
            if compression != "none" and looks != "none":
                raise ContentError(
                    f"{what} is compressed twice",
                    reference="nested-compression",
                    found=f"{sniff(first)} inside {compression}",
                    hint="push the image again with layers compressed once",
                )
        total += len(piece)
        if total > max_bytes:
            raise ContentError(
                f"{what} is too large uncompressed",
                reference="limit-exceeded",
                expected=f"at most {max_bytes} bytes",
                catalogue="LIM",
            )
        yield piece


def _peek(source: Iterator[bytes | memoryview]) -> tuple[bytes, Iterator[bytes | memoryview]]:
    """The first bytes, and the whole stream."""
    head = b""
    for chunk in source:
        if not head and len(chunk) >= _HEAD:
            return bytes(chunk[:_HEAD]), _chain(chunk, source)
        head += bytes(chunk)
        if len(head) >= _HEAD:
            break
    return head[:_HEAD], _chain(head, source)


def _chain(
    first: bytes | memoryview, rest: Iterator[bytes | memoryview]
) -> Iterator[bytes | memoryview]:
    if first:
        yield first
    yield from rest


def _plain(source: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    most = limits.OUTPUT_CHUNK_BYTES
    for chunk in source:
        if len(chunk) <= most:
            if chunk:
                yield chunk
        else:
            view = memoryview(chunk)
            for start in range(0, len(view), most):
                yield view[start : start + most]


def _mismatch(what: str, compression: str, found: str, *, empty: bool) -> ContentError:
    names = {"none": "plain data"}
    return ContentError(
        f"{what} is not compressed as its media type says",
        reference="compression-mismatch",
        expected=names.get(compression, compression),
        found="nothing" if empty else names.get(found, found),
        hint="push the image again with a current tool; layers are plain tar, gzip or zstd, and named so",
        catalogue="INT",
    )


class _Meter:
    """Output per input."""

    def __init__(self, what: str, ratio: int, free: int) -> None:
        self._what, self._ratio, self._free = what, ratio, free
        self.taken = self.given = 0

    def check(self) -> None:
        if self.given > self._free and self.given > self._ratio * self.taken:
            raise ContentError(
                f"{self._what} is a decompression bomb",
                reference="limit-exceeded",
                expected=f"at most {self._ratio} times its compressed size",
                found=f"{self.given} bytes out of {self.taken}",
                catalogue="LIM",
            )


def _decode(
    source: Iterator[bytes | memoryview],
    compression: str,
    make: Callable[[], _Decoder],
    errors: tuple[type[Exception], ...],
    what: str,
    max_frames: int,
    meter: _Meter,
) -> Iterator[bytes]:
    most = limits.OUTPUT_CHUNK_BYTES
    step = _STEP_MOST
    frames = 0
    decoder: _Decoder | None = None
    held = b""  # an incomplete gzip header
    for chunk in source:
        view = memoryview(held + chunk if held else chunk)
        held = b""
        position, end = 0, len(view)
        while position < end:
            least = 0
            if decoder is None:
                if compression == "gzip":
                    least = _gzip_header_length(view[position : position + _HEADER_MOST])
                    if least > end - position:
                        if least > _HEADER_MOST:
                            raise _damage(what, compression, None, frames, meter.given)
                        held = bytes(view[position:])
                        break
                frames += 1
                if frames > max_frames:
                    raise ContentError(
                        f"{what} has too many {compression} frames",
                        reference="limit-exceeded",
                        expected=f"at most {max_frames}",
                        catalogue="LIM",
                    )
                decoder = make()
            piece: bytes | memoryview = view[position : position + max(step, least)]
            size = len(piece)
            meter.taken += size
            idle = 0
            while True:
                try:
                    out = decoder.decompress(piece, most)
                except errors as problem:
                    raise _damage(what, compression, problem, frames, meter.given) from None
                except EOFError:
                    raise _damage(what, compression, None, frames, meter.given) from None
                if out:
                    idle = 0
                    meter.given += len(out)
                    meter.check()
                    yield out
                if decoder.eof:
                    used = size - len(decoder.unused_data)
                    # unused_data is a copy of the rest, so many small frames in a large piece would be quadratic
                    step = min(max(4 * used, _STEP_LEAST), _STEP_MOST)
                    meter.taken -= size - used
                    position += used
                    decoder = None
                    break
                if decoder.needs_input:
                    position += size
                    step = min(2 * step, _STEP_MOST)
                    break
                idle += not out
                if idle > 2:
                    raise _damage(what, compression, None, frames, meter.given)
                piece = b""
    if decoder is not None or held:
        raise ContentError(
            f"{what} is cut off",
            reference="truncated-layer",
            expected=f"a complete {compression} stream",
            found=f"it ends after {meter.taken + len(held)} bytes",
            catalogue="INT",
        )


def _gzip_header_length(view: memoryview) -> int:
    """Length of the gzip header at the front; more than ``len(view)`` if it is incomplete.

    isal 1.7 misreads headers with optional fields when they arrive in pieces, so it gets them in one.
    """
    data = bytes(view[:4])
    if not data.startswith(b"\x1f\x8b"[: len(data)]) or (len(data) == 4 and not data[3] & 0x1E):
        return 0  # nothing optional; or rubbish, about which the decoder complains
    data, flags = bytes(view), data[3] if len(data) == 4 else 0
    length = 10
    if flags & 0x04:
        length += 2 + int.from_bytes(data[10:12], "little")
    for flag in (0x08, 0x10):  # name and comment, ended by zero
        if flags & flag:
            length = (data.find(0, length) + 1) or len(data) + 1
    if flags & 0x02:
        length += 2
    return max(length, 12 if flags & 0x04 else 0)


def _damage(
    what: str, compression: str, problem: Exception | None, frames: int, given: int
) -> ContentError:
    text = printable(str(problem or "it cannot be decoded"), 120)
    if "memory" in text:  # libzstd's words for a window beyond the bound
        return ContentError(
            f"{what} wants too much memory to be decoded",
            reference="limit-exceeded",
            expected=f"a zstd window of at most {1 << limits.ZSTD_WINDOW_LOG} bytes",
            found=text,
            hint="compress the layer again without --long or --ultra",
            catalogue="LIM",
        )
    where = f"frame {frames}, after {given} bytes of output"
    return ContentError(
        f"{what} is damaged, or something else follows its {compression} data",
        reference="bad-compression",
        found=f"{text} ({where})",
        hint="the source served damaged data; retry, or push the image again",
        catalogue="INT",
    )
