"""Splitstreams against vectors of the reference library, damaged files, and long runs in little memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bootc_composefs import splitstream
from bootc_composefs.splitstream import Splitstream, Writer, encode_document, parse
from hypothesis import given
from hypothesis import strategies as st

from bootc_core.errors import ContentError
from bootc_core.fs import verity

VECTORS = Path(__file__).parents[2] / "vectors/composefs"
CASES = json.loads((VECTORS / "splitstream.json").read_text())["vectors"]


def pattern(size: int) -> bytes:
    return bytes(i % 251 for i in range(size))


def decoded(stream: Splitstream) -> list[bytes | int]:
    """Chunks with neighbouring inline pieces joined, as the format has them."""
    out: list[bytes | int] = []
    for chunk in stream.chunks():
        if out and isinstance(chunk, bytes) and isinstance(out[-1], bytes):
            out[-1] += chunk
        else:
            out.append(chunk)
    return out


def everything(data: bytes) -> None:
    stream = Splitstream(data)
    stream.named_refs()
    list(stream.chunks())


@pytest.fixture
def staging(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("case", CASES, ids=[case["file"] for case in CASES])
def test_reads_what_the_reference_library_wrote(case):
    import hashlib

    data = (VECTORS / case["file"]).read_bytes()
    assert verity.digest(data, case["algorithm"]).hex() == case["fsverity"]
    stream = parse(data, case["algorithm"])
    assert stream.content_type == (case["content_type"] or "").encode() or not case["content_type"]
    assert stream.size == case["stream_size"]
    assert [digest.hex() for digest in stream.stream_refs] == case["stream_refs"]
    assert [digest.hex() for digest in stream.object_refs] == case["object_refs"]
    names = {}
    for record in case["named_refs_raw"].split("\0")[:-1]:
        index, _, name = record.partition(":")
        names[name] = stream.stream_refs[int(index)]
    assert stream.named_refs() == names
    found = decoded(stream)
    assert len(found) == len(case["chunks"])
    for chunk, wanted in zip(found, case["chunks"], strict=True):
        if "object" in wanted:
            assert chunk == wanted["object"]
        elif "inline_hex" in wanted:
            assert chunk == bytes.fromhex(wanted["inline_hex"])
        else:
            assert isinstance(chunk, bytes)
            assert len(chunk) == wanted["inline_len"]
            assert hashlib.sha256(chunk).hexdigest() == wanted["inline_sha256"]


def assert_same(built: bytes, vector: str) -> None:
    """Byte for byte with the vectors' version of zstd, else what it expands to."""
    wanted = (VECTORS / f"splitstream/{vector}.splitstream").read_bytes()
    if splitstream.zstd.zstd_version == "1.5.7":
        assert built == wanted
    ours, theirs = Splitstream(built), Splitstream(wanted)
    assert decoded(ours) == decoded(theirs)
    for name in ("algorithm", "content_type", "size", "stream_refs", "object_refs"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.named_refs() == theirs.named_refs()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_writes_the_bytes_of_the_reference_library(algorithm, staging):
    a, b = (verity.digest(pattern(size), algorithm) for size in (100000, 65))
    writer = Writer(staging, algorithm)
    writer.inline(b"hello ")
    writer.inline(memoryview(b"world"))
    writer.external(a, 100000)
    writer.inline(bytes(352))
    writer.external(b, 65)
    writer.external(a, 100000)
    writer.inline(b"end")
    assert_same(b"".join(writer.finish()), f"layer.{algorithm}")

    wanted = parse(
        (VECTORS / f"splitstream/config.{algorithm}.splitstream").read_bytes(), algorithm
    )
    refs = wanted.named_refs()
    order = ["sha256:1111", "sha256:2222", "composefs.image.v1"]
    names = [(name, refs[name]) for name in order]
    document = wanted.document()
    assert_same(
        encode_document(algorithm, b"ociconfg", document, wanted.size, names), f"config.{algorithm}"
    )
    assert_same(b"".join(Writer(staging, algorithm).finish(b"")), f"empty.{algorithm}")


def test_reads_the_header_of_old_hosts(staging):
    data = bytearray((VECTORS / "splitstream/layer.sha512.splitstream").read_bytes())
    head = bytes(data[:32])
    data[:32] = head[16:32] + head[12:14] + head[:11] + head[11:12] + head[14:16]
    assert decoded(parse(bytes(data), "sha512")) == decoded(
        parse((VECTORS / "splitstream/layer.sha512.splitstream").read_bytes(), "sha512")
    )


def test_refuses_the_other_algorithm():
    with pytest.raises(ContentError, match="damaged") as caught:
        parse((VECTORS / "splitstream/empty.sha256.splitstream").read_bytes(), "sha512")
    assert caught.value.catalogue == "INT"


@pytest.mark.parametrize("name", ["layer.sha512", "config.sha256", "empty.sha512"])
def test_every_truncation_is_an_error(name):
    data = (VECTORS / f"splitstream/{name}.splitstream").read_bytes()
    for size in range(len(data)):
        with pytest.raises(ContentError):
            everything(data[:size])


@pytest.mark.parametrize("name", ["layer.sha512", "config.sha256"])
def test_a_flipped_byte_never_escapes_as_another_exception(name):
    data = (VECTORS / f"splitstream/{name}.splitstream").read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        try:
            stream = Splitstream(bytes(changed))
            stream.named_refs()
            for chunk in stream.chunks():
                assert isinstance(chunk, bytes) or chunk < len(stream.object_refs)
        except ContentError:
            continue


def test_a_stream_that_expands_beyond_its_claim_is_an_error():
    bomb = splitstream._frame(splitstream._int64.pack(-(1 << 24)) + bytes(1 << 24))
    data = splitstream.head("sha512", b"ocilayer", 512, b"", b"", 0, len(bomb)) + bomb
    with pytest.raises(ContentError, match="damaged") as caught:
        list(Splitstream(data).chunks())
    assert "bounds" in caught.value.found


def test_a_reference_outside_the_table_is_an_error():
    frame = splitstream._frame(splitstream._int64.pack(1))
    data = splitstream.head("sha512", b"ocilayer", 512, b"", bytes(64), 0, len(frame)) + frame
    with pytest.raises(ContentError):
        list(Splitstream(data).chunks())


@pytest.mark.parametrize("number", [b"1", b"-1", b"99999999999", b"x", b""])
def test_bad_named_references_are_errors(number):
    frame = splitstream._frame(number + b":sha256:00\0")
    data = splitstream.head("sha512", b"ociconfg", 8, bytes(64), b"", len(frame), 0) + frame
    with pytest.raises(ContentError):
        Splitstream(data).named_refs()


def test_a_very_long_inline_run_is_one_chunk_and_needs_no_memory(staging, tmp_path):
    writer = Writer(staging)
    block = os.urandom(512) * 128
    total = 0
    for _ in range(200):  # 13 MB, beyond both bounds at which a run leaves memory
        writer.inline(block)
        total += len(block)
    writer.external(bytes(64), 70)
    writer.inline(b"tail")
    data = b"".join(writer.finish())
    stream = parse(data, "sha512")
    assert stream.size == total + 70 + 4
    assert decoded(stream) == [block * 200, 0, b"tail"]
    raw = b"".join(stream._inflate(stream._stream, 1 << 30))
    assert splitstream._int64.unpack_from(raw)[0] == -total
    assert all(not isinstance(chunk, bytes) or len(chunk) <= 1 << 20 for chunk in stream.chunks())
    assert list(tmp_path.iterdir()) == []


@given(
    st.lists(
        st.one_of(
            st.binary(min_size=1, max_size=300),
            st.tuples(st.integers(0, 5), st.integers(65, 100000)),
        ),
        max_size=40,
    )
)
def test_round_trip(pieces):
    directory = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
    try:
        writer = Writer(directory)
        wanted: list[bytes | bytes] = []
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.inline(piece)
                if wanted and isinstance(wanted[-1], bytes):
                    wanted[-1] += piece
                else:
                    wanted.append(piece)
            else:
                writer.external(bytes([piece[0]]) * 64, piece[1])
                wanted.append((bytes([piece[0]]) * 64,))
        stream = parse(b"".join(writer.finish()), "sha512")
    finally:
        os.close(directory)
    refs = stream.object_refs
    assert len(set(refs)) == len(refs)
    assert [(refs[c],) if isinstance(c, int) else c for c in decoded(stream)] == wanted
