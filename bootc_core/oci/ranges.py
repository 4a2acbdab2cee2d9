"""What arrived of a chunked layer's ranges, so that a pull which was killed fetches none of it twice; for worker processes.

    ranges     records: start (u64), length (u32), CRC-32 (u32), then so many bytes of the blob

Appended to as the bytes come, never synced. When the layer begins again the file is read once; the first record that is torn or
does not match its sum is its end (after a power cut files may hold zeros).
"""

from __future__ import annotations

import bisect
import contextlib
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from bootc_core import limits

RANGES: Final = "ranges"  # in a layer's staging directory; sinks use other names
_RECORD: Final = struct.Struct("<QII")


class Ranges:
    """The file in ``directory`` (a descriptor, the caller's); ``most`` is the blob's size in bytes."""

    def __init__(self, directory: int, most: int) -> None:
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(RANGES, flags, 0o600, dir_fd=directory)
        self._starts: list[int] = []  # of the pieces, sorted ...
        self._pieces: list[tuple[int, int]] = []  # ... and each one's end, and place in the file
        self._end = self._scan(most)
        os.ftruncate(self._descriptor, self._end)

    def _scan(self, most: int) -> int:
        place = 0
        while len(head := os.pread(self._descriptor, _RECORD.size, place)) == _RECORD.size:
            start, length, total = _RECORD.unpack(head)
            if not 0 < length <= limits.CHUNK_BYTES or start + length > most:
                break
            data = os.pread(self._descriptor, length, place + _RECORD.size)
            if len(data) != length or zlib.crc32(data) != total:
                break
            self._note(start, start + length, place + _RECORD.size)
            place += _RECORD.size + length
        return place

    def _note(self, start: int, end: int, place: int) -> None:
        number = bisect.bisect_left(self._starts, start)
        self._starts.insert(number, start)
        self._pieces.insert(number, (end, place))

    def add(self, start: int, data: memoryview) -> None:
        """Keep bytes of the blob; a full disk ends the keeping, not the import."""
        if self._descriptor < 0:
            return
        record = _RECORD.pack(start, len(data), zlib.crc32(data))
        try:
            if os.pwritev(self._descriptor, [record, data], self._end) < len(record) + len(data):
                self.drop()
                return
        except OSError:
            self.drop()
            return
        self._note(start, start + len(data), self._end + len(record))
        self._end += len(record) + len(data)

    def read(self, position: int, view: memoryview) -> int:
        """Fill the front of ``view`` with what is kept of the blob from ``position`` on; 0 if nothing is."""
        number = bisect.bisect_right(self._starts, position) - 1
        if number < 0 or self._descriptor < 0:
            return 0
        end, place = self._pieces[number]
        if position >= end:
            return 0
        part = view[: end - position]
        return os.preadv(self._descriptor, [part], place + position - self._starts[number])

    def next_start(self, position: int, end: int) -> int:
        """Where the next kept piece behind ``position`` begins, at most ``end``."""
        number = bisect.bisect_right(self._starts, position)
        return min(end, self._starts[number]) if number < len(self._starts) else end

    def close(self) -> None:
        """Leave it for the next run."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def drop(self) -> None:
        """Remove it."""
        self.close()
        self._starts, self._pieces = [], []
        with contextlib.suppress(OSError):
            os.unlink(RANGES, dir_fd=self._directory)


class Range:
    """The blob's bytes from ``start`` to ``end``: what is kept from the file, the rest from ``fetch(start, end)``, and kept."""

    def __init__(
        self, kept: Ranges, start: int, end: int, fetch: Callable[[int, int], Any]
    ) -> None:
        self._kept, self._fetch = kept, fetch
        self._at, self._end = start, end
        self._source: Any = None
        self._stop = start

    def readinto(self, view: memoryview) -> int:
        """Fill the front of ``view``; 0 at the end.

        Raises:
            TransportError: as the source.
        """
        view = view[: min(self._end - self._at, limits.CHUNK_BYTES)]
        if not view:
            return 0
        if self._source is None:
            if count := self._kept.read(self._at, view):
                self._at += count
                return count
            self._stop = self._kept.next_start(self._at, self._end)
            self._source = self._fetch(self._at, self._stop)
        view = view[: self._stop - self._at]
        count = int(self._source.readinto(view))
        if count:
            self._kept.add(self._at, view[:count])
            self._at += count
        if self._at == self._stop or not count:
            self.close()
        return count

    def close(self) -> None:
        """Give up what was not read."""
        if self._source is not None:
            self._source.close()
            self._source = None
