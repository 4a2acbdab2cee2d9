"""Bytes against what was promised of them."""

from __future__ import annotations

import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.archives import refusal

from bootc_core.errors import ContentError
from bootc_core.oci.digest import ThreadedVerifier, Verifier, verified


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@given(
    st.lists(st.binary(max_size=50)), st.sampled_from(["sha256", "sha384", "sha512"]), st.booleans()
)
def test_true_promises_are_kept(chunks, algorithm, sized):
    data = b"".join(chunks)
    size = len(data) if sized else None
    assert list(verified(chunks, digest(data, algorithm), size, "blob")) == chunks


@given(st.lists(st.binary(max_size=50), max_size=30), st.booleans())
def test_on_a_thread(chunks, right):
    data = b"".join(chunks)
    check = ThreadedVerifier(digest(data if right else data + b"x"), None, "blob")
    for chunk in chunks:
        check.update(chunk)
    problem = refusal(check.finish)
    check.close()
    assert (problem is None, check.bytes) == (right, len(data))


def test_thread_ends_without_finish():
    before = threading.active_count()
    check = ThreadedVerifier(digest(b""), None, "blob")
    check.update(b"x")
    check.close()
    check.close()
    assert threading.active_count() == before


def test_another_digest():
    with pytest.raises(ContentError, match="blob is not what was promised") as caught:
        list(verified([b"abc"], digest(b"abd"), 3, "blob"))
    problem = caught.value
    assert (problem.reference, problem.catalogue) == ("digest-mismatch", "INT")
    assert problem.expected == digest(b"abd")
    assert problem.found == f"{digest(b'abc')} after 3 bytes"


def test_m03_longer_stops_at_the_first_byte_too_many():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"x" * 10

    with pytest.raises(ContentError, match="longer than promised") as caught:
        list(verified(endless(), digest(b""), 25, "blob"))
    assert (caught.value.catalogue, caught.value.reference, len(taken)) == (
        "INT",
        "size-mismatch",
        3,
    )


def test_m03_shorter():
    with pytest.raises(ContentError, match="shorter than promised") as caught:
        list(verified([b"abc"], digest(b"abc"), 4, "blob"))
    assert (caught.value.expected, caught.value.found) == ("4 bytes", "3 bytes")


@pytest.mark.parametrize(
    "text",
    ["md5:" + "0" * 32, "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:../../x", "", "0" * 64],
)
def test_m19_only_supported_digests(text):
    with pytest.raises(ContentError, match="not a digest"):
        Verifier(text, 0, "blob")
