"""Checks bytes on their way against a size and a digest (sha256, sha384 or sha512; OCI image specification, "Digests").

What flows through is hostile until ``finish`` returned: use it for staging only, and give nothing its final name before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from bootc_core.errors import ContentError, printable

_DIGEST: Final = re.compile(r"(sha256):[0-9a-f]{64}|(sha384):[0-9a-f]{96}|(sha512):[0-9a-f]{128}")
Chunk = TypeVar("Chunk", bytes, memoryview, bytes | memoryview)


class Verifier:
    """Counts and hashes one blob; ``finish`` says whether it is the one that was promised.

    Attributes:
        bytes: how many came so far.
    """

    __slots__ = ("_digest", "_hash", "_size", "_what", "bytes")

    def __init__(self, digest: str, size: int | None, what: str) -> None:
        """Expect ``digest`` (``sha256:…``) and ``size`` bytes (None: any number) of ``what``, named in errors.

        Raises:
            ContentError: not a digest of a supported algorithm.
        """
        if not _DIGEST.fullmatch(digest):
            raise ContentError(
                f"{what}: not a digest",
                reference="bad-digest",
                found=printable(digest, 100),
                catalogue="INT",
            )
        self._digest = digest
        self._size = size
        self._what = what
        self._hash = hashlib.new(digest.partition(":")[0], usedforsecurity=True)
        self.bytes = 0

    def update(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            ContentError: more than promised; nothing beyond the promised size was hashed.
        """
        self.bytes += len(chunk)
        if self._size is not None and self.bytes > self._size:
            raise ContentError(
                f"{self._what} is longer than promised",
                reference="size-mismatch",
                expected=f"{self._size} bytes",
                found="more",
                hint="the source served damaged or different data; retry, or check the mirror",
                catalogue="INT",
            )
        self._hash.update(chunk)

    def finish(self) -> None:
        """Say that no byte follows.

        Raises:
            ContentError: too short, or another digest.
        """
        if self._size is not None and self.bytes < self._size:
            raise ContentError(
                f"{self._what} is shorter than promised",
                reference="size-mismatch",
                expected=f"{self._size} bytes",
                found=f"{self.bytes} bytes",
                hint="the source served damaged or different data; retry, or check the mirror",
                catalogue="INT",
            )
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self._digest:
            raise ContentError(
                f"{self._what} is not what was promised",
                reference="digest-mismatch",
                expected=self._digest,
                found=f"{found} after {self.bytes} bytes",
                hint="the source served damaged or different data; retry, or check the mirror",
                catalogue="INT",
            )


def verified(chunks: Iterable[Chunk], digest: str, size: int | None, what: str) -> Iterator[Chunk]:
    """The same chunks; the iteration ends normally only if together they are what was promised.

    Raises:
        ContentError: at the first byte too many, or at the end: too short, or another digest.
    """
    verifier = Verifier(digest, size, what)
    for chunk in chunks:
        verifier.update(chunk)
        yield chunk
    verifier.finish()
