"""Decompression, and the compression group of the catalogue of bad inputs by its ids.

Z10 concerns media types (test_oci.py of the models), Z12 and Z13 processes (test_importer.py).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import time
import tracemalloc
import zlib
from functools import partial

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import END, member, refusal, split

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.oci.compression import decompress, gzip_decoder, sniff

BODY = (
    b"".join(member(b"f%d" % number, random.Random(number).randbytes(300)) for number in range(20))
    + END
)
PACKED = {"gzip": gzip.compress(BODY, 6, mtime=0), "zstd": zstd.compress(BODY, 3), "none": BODY}
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"


def cut(data: bytes, step: int) -> list[bytes]:
    return [data[start : start + step] for start in range(0, len(data), step)]


def unpack(data: bytes, compression: str, step: int = 1 << 18, **bounds) -> bytes:
    pieces = []
    for piece in decompress(cut(data, step), compression, "layer 1", **bounds):
        assert 0 < len(piece) <= limits.OUTPUT_CHUNK_BYTES
        pieces.append(bytes(piece))
    return b"".join(pieces)


def refused(data: bytes, compression: str, step: int = 1 << 18, **bounds) -> ContentError:
    with pytest.raises(ContentError) as caught:
        unpack(data, compression, step, **bounds)
    assert caught.value.message.startswith("layer 1 ")
    return caught.value


def drained(data: bytes, compression: str, **bounds) -> ContentError:
    """The error, without keeping what came before it."""
    with pytest.raises(ContentError) as caught:
        for _ in decompress([data], compression, "layer 1", **bounds):
            pass
    return caught.value


@pytest.mark.parametrize("step", [1, 2, 3, 17, 4096, 1 << 20])
@pytest.mark.parametrize("compression", PACKED)
def test_any_cut_gives_the_same(compression, step):
    assert unpack(PACKED[compression], compression, step) == BODY


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_large_output_in_bounded_pieces(compression):
    body = random.Random(0).randbytes(1000) * 12000
    packed = gzip.compress(body, 1) if compression == "gzip" else zstd.compress(body)
    assert unpack(packed, compression) == body


def test_reused_input_buffer():
    """The chunks may be views of one buffer that is filled again."""

    def chunks():
        buffer = bytearray(100)
        for piece in cut(PACKED["gzip"], 100):
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    assert b"".join(bytes(piece) for piece in decompress(chunks(), "gzip")) == BODY


@pytest.mark.parametrize("standard", [False, True])
def test_both_gzip_decoders(standard):
    packed = gzip.compress(b"a" * 3_000_000) + gzip.compress(b"") + gzip.compress(b"b")
    assert unpack(packed, "gzip", 1000, standard_library=standard) == b"a" * 3_000_000 + b"b"
    assert refused(packed[:-1], "gzip", standard_library=standard).reference == "truncated-layer"
    assert refused(packed + b"x", "gzip", standard_library=standard).catalogue == "INT"


@pytest.mark.parametrize("flags", range(0x20))
@pytest.mark.parametrize("step", [1, 11, 1 << 18])
def test_gzip_header_fields(flags, step):
    """Text flag, header checksum, extra field, name and comment (RFC 1952 §2.3.1), in every combination and cut."""
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    head += b"\x03\0abc" if flags & 4 else b""
    head += b"layer.tar\0" if flags & 8 else b""
    head += b"a comment\0" if flags & 16 else b""
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF) if flags & 2 else b""
    data = head + PACKED["gzip"][10:]
    assert unpack(data * 2, "gzip", step) == BODY * 2
    for length in range(1, len(head) if step > 100 else 5):
        assert refused(data + data[:length], "gzip", step).reference == "truncated-layer"


def test_gzip_header_without_end():
    problem = refused(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 300_000, "gzip", 1000)
    assert problem.catalogue == "INT"


def test_z01_gzip_bomb():
    bomb = gzip.compress(bytes(64 << 20), 9)
    started = time.process_time()
    tracemalloc.start()
    try:
        problem = drained(bomb, "gzip", max_bytes=16 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert (problem.catalogue, problem.expected) == ("LIM", f"at most {16 << 20} bytes")
    assert time.process_time() - started < 10


def test_z02_zstd_bomb():
    bomb = zstd.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        problem = drained(bomb, "zstd", ratio_free_bytes=16 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert (problem.catalogue, "bomb" in problem.message) == ("LIM", True)


def test_z02_small_output_of_any_ratio_is_fine():
    assert len(unpack(zstd.compress(bytes(4 << 20)), "zstd")) == 4 << 20


@pytest.mark.parametrize("log", [28, 31])
def test_z03_window(log):
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (log - 10) << 3]) + b"\x01\0\0"
    problem = refused(frame, "zstd")
    assert (problem.catalogue, str(1 << limits.ZSTD_WINDOW_LOG) in (problem.expected or "")) == (
        "LIM",
        True,
    )


def test_z03_largest_window_that_is_accepted():
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, (limits.ZSTD_WINDOW_LOG - 10) << 3]) + b"\x01\0\0"
    assert unpack(frame, "zstd") == b""


@pytest.mark.parametrize("outer", ["gzip", "zstd"])
@pytest.mark.parametrize("inner", ["gzip", "zstd", "xz", "bzip2"])
@pytest.mark.parametrize("step", [1, 1 << 18])
def test_z04_compressed_twice(outer, inner, step):
    body = {"xz": lzma.compress(BODY), "bzip2": bz2.compress(BODY)}.get(inner) or PACKED[inner]
    packed = gzip.compress(body) if outer == "gzip" else zstd.compress(body)
    problem = refused(packed, outer, step)
    assert (problem.catalogue, problem.found) == ("CON", f"{inner} inside {outer}")


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_z05_truncated_at_every_byte(compression):
    small = member(b"a", b"some content\n") + END
    packed = {"gzip": gzip.compress(small), "zstd": zstd.compress(small), "none": small}[
        compression
    ]
    for length in range(len(packed)):
        with pytest.raises(ContentError) as caught:
            split(unpack(packed[:length], compression))
        assert caught.value.catalogue == "INT", (length, caught.value.message)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_z06_flipped_bits_raise_nothing_else(compression):
    """The blob's digest tells (test_worker.py); until then nothing but our own error may come out."""
    packed = bytearray(PACKED[compression][:2000])
    for place in range(len(packed)):
        packed[place] ^= 1 << place % 8
        problem = refusal(lambda: unpack(bytes(packed), compression))
        assert problem is None or problem.catalogue in {"INT", "LIM"}
        packed[place] ^= 1 << place % 8


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("place", range(-8, 0))
def test_z07_wrong_trailer(place, standard):
    packed = bytearray(PACKED["gzip"])
    packed[place] ^= 0x10
    problem = refused(bytes(packed), "gzip", standard_library=standard)
    assert (problem.catalogue, problem.reference) == ("INT", "bad-compression")


@pytest.mark.parametrize("missing", range(1, 9))
def test_z07_missing_trailer(missing):
    problem = refused(PACKED["gzip"][:-missing], "gzip")
    assert (problem.catalogue, problem.reference) == ("INT", "truncated-layer")


def test_z07_zstd_checksum():
    packed = bytearray(zstd.compress(BODY, options={zstd.CompressionParameter.checksum_flag: 1}))
    assert unpack(bytes(packed), "zstd") == BODY
    packed[-1] ^= 1
    assert refused(bytes(packed), "zstd").catalogue == "INT"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("rubbish", [b"x", b"\0", bytes(512), b"rubbish" * 100, BODY])
@pytest.mark.parametrize("step", [1, 1 << 18])
def test_z08_trailing_rubbish(compression, rubbish, step):
    problem = refused(PACKED[compression] + rubbish, compression, step)
    assert problem.catalogue == "INT"


@pytest.mark.parametrize("step", [1, 100, 1 << 18])
def test_z08_several_members_and_frames(step):
    assert unpack(PACKED["gzip"] + gzip.compress(b"") + PACKED["gzip"], "gzip", step) == BODY * 2
    assert (
        unpack(
            SKIPPABLE + PACKED["zstd"] + SKIPPABLE * 2 + PACKED["zstd"] + SKIPPABLE, "zstd", step
        )
        == BODY * 2
    )


def test_z08_members_are_counted():
    for compression, empty in (("gzip", gzip.compress(b"")), ("zstd", zstd.compress(b""))):
        assert unpack(empty * 1000, compression, max_frames=1000) == b""
        problem = refused(empty * 1001, compression, max_frames=1000)
        assert (problem.catalogue, problem.expected) == ("LIM", "at most 1000")


def test_z08_many_small_members_take_linear_time():
    """Decoders copy what they did not use; whole chunks at once would make that quadratic (10 s here)."""
    packed = b"".join(gzip.compress(b"%d" % number, 1) for number in range(30_000))
    started = time.process_time()
    assert len(unpack(packed, "gzip", 1 << 20)) > 100_000
    assert time.process_time() - started < 8


@pytest.mark.parametrize("said", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("real", ["gzip", "zstd", "none", "xz", "bzip2", "empty"])
def test_z09_media_type_and_bytes_must_agree(said, real):
    data = {**PACKED, "xz": lzma.compress(BODY), "bzip2": bz2.compress(BODY), "empty": b""}[real]
    if said == real:
        assert unpack(data, said) == BODY
    elif (said, real) == ("none", "empty"):
        assert unpack(data, said) == b""  # the tar reader refuses it
    else:
        problem = refused(data, said)
        assert (problem.catalogue, problem.reference) == ("INT", "compression-mismatch")
        assert problem.found == {"none": "plain data", "empty": "nothing"}.get(real, real)


def test_z11_dictionary():
    dictionary = zstd.train_dict(
        [b"sample %d of the training set" % number for number in range(2000)], 2000
    )
    problem = refused(zstd.compress(BODY, zstd_dict=dictionary), "zstd")
    assert (problem.catalogue, problem.reference) == ("INT", "bad-compression")


def test_z11_table_of_contents_is_not_read():
    """zstd:chunked keeps it in a skippable frame, where it may say anything."""
    lie = b"\x50\x2a\x4d\x18" + struct.pack("<I", 100) + b"{" * 100
    assert unpack(PACKED["zstd"] + lie, "zstd") == BODY


@given(st.binary(max_size=400), st.sampled_from(["gzip", "zstd"]), st.integers(1, 50))
@settings(max_examples=200)
def test_rubbish_raises_nothing_else(data, compression, step):
    magic = {"gzip": b"\x1f\x8b\x08\0", "zstd": b"\x28\xb5\x2f\xfd"}[compression]
    for standard in (False, True):
        problem = refusal(
            partial(unpack, magic + data, compression, step, standard_library=standard)
        )
        assert problem is None or problem.catalogue in {"INT", "LIM", "CON"}


def test_sniff():
    assert [sniff(data[:6]) for data in (b"", b"\x1f", BODY, SKIPPABLE)] == [
        "none",
        "none",
        "none",
        "zstd",
    ]


def test_isal_is_used_where_it_is():
    make, _ = gzip_decoder()
    assert type(make()).__name__ == "IgzipDecompressor"
