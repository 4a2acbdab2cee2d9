"""Checks bytes on their way against a size and a digest (sha256, sha384 or sha512; OCI image specification, "Digests").

What flows through is hostile until ``finish`` returned: use it for staging only, and give nothing its final name before.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from bootc_core.errors import ContentError, printable

_DIGEST: Final = re.compile(r"(sha256):[0-9a-f]{64}|(sha384):[0-9a-f]{96}|(sha512):[0-9a-f]{128}")
_WAITING: Final = 8  # chunks, so at most 8 MiB
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
        self._take(chunk)

    def _take(self, chunk: bytes | memoryview) -> None:
        self._hash.update(chunk)

    def close(self) -> None:
        """Nothing to release here."""

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


class ThreadedVerifier(Verifier):
    """The same on a thread of its own, for a processor that would be idle; OpenSSL works without the interpreter's lock.

    Chunks are used after ``update`` returned, so they must not change; at most ``_WAITING`` of them wait. ``close`` ends
    the thread, whether ``finish`` was called or not.
    """

    __slots__ = ("_chunks", "_free", "_thread")

    def __init__(self, digest: str, size: int | None, what: str) -> None:
        """As `Verifier`; starts the thread."""
        super().__init__(digest, size, what)
        self._chunks: queue.SimpleQueue[bytes | memoryview | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(_WAITING)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._hash.update(chunk)
            self._free.release()

    def _take(self, chunk: bytes | memoryview) -> None:
        self._free.acquire()
        self._chunks.put(chunk)

    def finish(self) -> None:
        """As `Verifier.finish`."""
        self.close()
        super().finish()

    def close(self) -> None:
        """Let the thread hash what it has, and end it."""
        self._chunks.put(None)
        self._thread.join()


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
