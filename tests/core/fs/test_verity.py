"""fs-verity digests against fsverity-utils, in one piece and streamed, and the kernel's side as far as it has one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootc_core.errors import StorageError
from bootc_core.fs import verity

VECTORS = Path(__file__).parents[2] / "vectors" / "composefs" / "fsverity.json"
FILES = json.loads(VECTORS.read_bytes())["files"]


def content(size: int) -> bytes:
    """The formula of the vectors, a row of 256 bytes at a time."""
    rows = [bytes((i * 31 + add) & 255 for i in range(256)) for add in range(256)]
    highs = range(-(-size // 256))
    return b"".join([rows[(high * 7 + (high >> 8)) & 255] for high in highs])[:size]


def test_formula():
    assert content(70000)[66000] == (66000 * 31 + (66000 >> 8) * 7 + (66000 >> 16)) & 255
    assert len(FILES) == 31


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("entry", FILES, ids=lambda entry: str(entry["size"]))
def test_vectors(entry, algorithm):
    data = content(entry["size"])
    assert verity.digest(data, algorithm).hex() == entry[algorithm]
    assert verity.digest(memoryview(data), algorithm).hex() == entry[algorithm]
    whole = verity.Hasher(algorithm)
    whole.update(data)
    assert whole.digest().hex() == entry[algorithm]
    odd = verity.Hasher(algorithm)
    for start in range(0, len(data), 100003):
        odd.update(memoryview(data)[start : start + 100003])
    assert odd.digest().hex() == entry[algorithm]
    assert odd.size == len(data)


def test_check_values():
    assert verity.digest(b"hello world", "sha256").hex() == (
        "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64"
    )
    assert verity.digest(b"hello world").hex() == (
        "18430270729d162d4e469daca123ae61893db4b0583d8f7081e3bf4f92b88ba5"
        "14e7982f10733fb6aa895195c5ae8fd2eb2c47a8be05513ce5a0c51a6f570409"
    )


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.integers(0, 20000), max_size=12),
    algorithm=st.sampled_from(["sha256", "sha512"]),
)
def test_pieces_do_not_matter(pieces, algorithm):
    data = content(sum(pieces))
    hasher = verity.Hasher(algorithm)
    start = 0
    for piece in pieces:
        hasher.update(memoryview(data)[start : start + piece])
        start += piece
        assert hasher.digest() == verity.digest(data[:start], algorithm)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_three_levels(algorithm):
    """More than 64 * 64 (or 128 * 128) blocks: the streamed digest keeps a block a level, not all leaves."""
    data = content(1 << 20)
    hasher = verity.Hasher(algorithm)
    for _ in range(67):
        hasher.update(data)
    hasher.update(b"x")
    assert hasher.digest() == verity.digest(data * 67 + b"x", algorithm)
    held = sum(len(level) for level in hasher._levels)
    assert held <= 3 * verity.BLOCK_BYTES


def test_unknown_algorithm():
    for call in (
        lambda: verity.digest(b"", "md5"),
        lambda: verity.digest(bytes(5000), "md5"),
        lambda: verity.Hasher("md5"),
        lambda: verity.enable(0, "md5"),
        lambda: verity.supported("/", "md5"),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.reference == "unknown-verity-algorithm"


def test_kernel(tmp_path):
    """Where the file system has fs-verity the kernel must agree with us; elsewhere everything says so without an error."""
    path = tmp_path / "file"
    path.write_bytes(content(10000))
    path.chmod(0o644)
    here = verity.supported(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]
    directory = os.open(tmp_path, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert verity.supported(directory) == here
        assert verity.measure(descriptor) is None
        assert verity.enable(descriptor, "sha512") == here
        if here:
            assert verity.enable(descriptor, "sha512")  # a second time is fine
            assert verity.measure(descriptor) == verity.digest(content(10000))
        else:
            assert verity.measure(descriptor) is None
    finally:
        os.close(descriptor)
        os.close(directory)


def test_supported_needs_a_directory(tmp_path):
    with pytest.raises(StorageError) as caught:
        verity.supported(tmp_path / "missing")
    assert caught.value.reference == "io-error"


def test_kernel_error_is_ours():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(StorageError):
        verity.measure(reader)
    with pytest.raises(StorageError):
        verity.enable(reader)
