"""A blob over HTTP for a worker process: goes on at the byte where a connection broke, within the command's limits.

    GET url                          206 only where a range was asked for, and only that very range
        Range: bytes=POSITION-       200 instead: the known part is skipped, never appended

Attempts are bounded twice: ``limits.RETRIES`` in a row that bring nothing, ``limits.RESUMES`` in all. Nothing that was received
is asked for again unless the server cannot do ranges: a wrong one is asked for some times more before that is believed.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from bootc_core import limits
from bootc_core.errors import TransportError
from bootc_core.net import http

if TYPE_CHECKING:
    from bootc_core.net.budget import Meter

_BAD_RANGES: Final = 3  # in a row; then the server is taken for one that cannot do ranges


def tls_options(source: dict[str, Any]) -> http.TlsOptions:
    """TLS options of a job's source."""
    tls = source.get("tls") or {}
    return http.TlsOptions(
        verify=tls.get("verify", True),
        ca_files=tuple(tls.get("ca_files", ())),
        client_cert=tls.get("client_cert"),
        client_key=tls.get("client_key"),
    )


class Download:
    """The bytes of a job's blob from ``position`` up to ``end`` (default: all)."""

    def __init__(
        self,
        job: dict[str, Any],
        position: int,
        pool: http.Pool,
        meter: Meter | None = None,
        *,
        end: int | None = None,
    ) -> None:
        source = job["source"]
        self._tls = tls_options(source)
        self._url: str = source["url"]
        self._headers = [(str(name), str(value)) for name, value in source.get("headers", ())]
        self._size: int = job["size"]
        self._end = self._size if end is None else end
        self._what: str = job["what"]
        self._wait_s = float(job.get("retry_wait_s", limits.RETRY_WAIT_S))
        self._pool = pool
        self._meter = meter
        self.position = position
        self._reply: http.Response | None = None
        self._bad_ranges = 0
        self._failures = self._resumes = 0
        self.received = 0  # body bytes that were read, twice where something had to be read again

    def readinto(self, buffer: memoryview) -> int:
        """Fill the front of ``buffer``; 0 at the end.

        Raises:
            TransportError: retries do not help, or the byte budget is used up.
        """
        # Only a part is cut at its end: of the whole, a byte too many is for the caller to see and refuse.
        if self._end < self._size and self._end - self.position < len(buffer):
            buffer = buffer[: self._end - self.position]
        while True:
            try:
                if not buffer or (self._reply is None and self.position == self._end):
                    self.close()
                    return 0
                if self._reply is None:
                    self._reply = self._open()
                count = self._read(self._reply, buffer)
                if not count and self.position < self._end:
                    self._ended_early()
            except TransportError as problem:
                self.close()
                self._again(problem)
                continue
            self.position += count
            self._failures = 0
            return count

    def _read(self, reply: http.Response, buffer: memoryview) -> int:
        if self._meter is None:
            count = reply.readinto(buffer)
        else:
            allowed = self._meter.take(len(buffer))
            count = 0
            try:
                count = reply.readinto(buffer[:allowed])
            finally:
                self._meter.give_back(allowed - count)
        self.received += count
        return count

    def _ended_early(self) -> NoReturn:
        raise TransportError(
            f"{self._what} ended early",
            expected=f"{self._size} bytes",
            found=f"{self.position} bytes",
            retryable=True,
        )

    def _again(self, problem: TransportError) -> None:
        """Wait before the next attempt, or give up."""
        self._failures += 1
        self._resumes += 1
        if (
            not problem.retryable
            or self._failures > limits.RETRIES
            or self._resumes > limits.RESUMES
        ):
            raise problem
        wait = problem.retry_after_s
        if wait is None:
            jitter = 0.75 + os.urandom(1)[0] / 512  # many hosts see the same registry fail at once
            wait = 0.0 if self._failures == 1 else self._wait_s * 2 ** (self._failures - 2) * jitter
            wait = min(wait, limits.RETRY_WAIT_GROWN_S)
        time.sleep(min(wait, limits.RETRY_WAIT_MAX_S))

    def _open(self) -> http.Response:
        whole = self._bad_ranges >= _BAD_RANGES and self._end == self._size
        start = 0 if whole else self.position
        ranged = bool(start) or (self._end < self._size and not whole)
        headers = self._headers
        if ranged:
            last = "" if self._end == self._size else str(self._end - 1)
            headers = [*headers, ("Range", f"bytes={start}-{last}")]
        reply = http.request(
            "GET",
            self._url,
            headers=headers,
            tls=self._tls,
            connection_pool=self._pool,
            size=self._end - start if ranged else self._size,
        )
        if reply.status == 206:
            if http.content_range(reply) == (start, self._end - 1, self._size):
                self._bad_ranges = 0
                return reply
        elif reply.status == 200 and self._end == self._size:
            return self._skip(reply, self.position)
        elif reply.status not in {200, 416} or not ranged:
            raise http.status_error(reply, self._what)
        reply.close()
        self._bad_ranges += 1
        raise TransportError(
            f"{self._what}: the server cannot go on where the connection broke",
            reference="bad-range",
            found=f"HTTP {reply.status}",
            retryable=self._end == self._size or self._bad_ranges < _BAD_RANGES,
        )

    def _skip(self, reply: http.Response, count: int) -> http.Response:
        """Read past what is known; the digest tells if it was not the same."""
        scratch = memoryview(bytearray(limits.CHUNK_BYTES if count else 0))
        while count:
            got = self._read(reply, scratch[:count])
            if not got:
                self._ended_early()
            count -= got
        return reply

    def close(self) -> None:
        """Give up what was not read."""
        if self._reply is not None:
            self._reply.close()
            self._reply = None
