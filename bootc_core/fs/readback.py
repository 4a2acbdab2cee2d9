"""Compares files with what was written to them, as the medium gives it back; run as a process of its own.

    stdin    {"digest_bytes": 64, "layers": [[notes file, its CRC-32, directory of the files], ...]}
    stdout   {"problem": null}, or {"problem": ..., "path": ..., "expected": ...} for the first difference

The files were synced before. Their pages are dropped first, so that the bytes come from the medium; then read-ahead is asked for a
window of files, since each alone would wait for the disk. A file that is gone is skipped: an earlier run read it back and
gave it its name. Standard library and isal only: this file is run by its path.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this architecture
    from zlib import crc32

_WINDOW: Final = 64  # files for which read-ahead runs
_WINDOW_BYTES: Final = 32 << 20
_AHEAD_BYTES: Final = 4 << 20  # of one file; the kernel's own read-ahead takes over
_BUFFER_BYTES: Final = 1 << 20
_tail: Final = struct.Struct("<QI")

Note = tuple[str, int, int]


class Difference(Exception):
    """The medium gives something else: problem, path, what was written."""


def notes(data: bytes, digest_bytes: int) -> Iterator[Note]:
    """The records of a notes file: name in hex, size, CRC-32; a rest that is no record is left out."""
    step = digest_bytes + _tail.size
    for place in range(0, len(data) - step + 1, step):
        yield (
            data[place : place + digest_bytes].hex(),
            *_tail.unpack_from(data, place + digest_bytes),
        )


def compare(files: Iterator[Note]) -> None:
    """Check files: path, size, CRC-32.

    Raises:
        Difference: the first one that is not what was written.
        OSError: it cannot be read.
    """
    view = memoryview(bytearray(_BUFFER_BYTES))
    window: deque[tuple[int, Note]] = deque()
    ahead = 0
    try:
        for note in files:
            try:
                descriptor = os.open(note[0], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            window.append((descriptor, note))
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(descriptor, 0, min(note[1], _AHEAD_BYTES), os.POSIX_FADV_WILLNEED)
            ahead += note[1]
            while len(window) > _WINDOW or (ahead > _WINDOW_BYTES and len(window) > 1):
                ahead -= window[0][1][1]
                _finish(window, view)
        while window:
            _finish(window, view)
    finally:
        for descriptor, _ in window:
            os.close(descriptor)


def _finish(window: deque[tuple[int, Note]], view: memoryview) -> None:
    descriptor, (path, size, wanted) = window[0]
    crc = total = 0
    while True:
        # One byte more than there should be: a file as long as it should be needs one call.
        count = os.readv(descriptor, [view[: size - total + 1]])
        if not count:
            break
        crc = crc32(view[:count], crc)
        total += count
        if count < len(view) and total >= size:
            break
    os.close(descriptor)
    window.popleft()
    if total != size or crc != wanted:
        raise Difference(
            f"{total} bytes with checksum {crc:08x}",
            path,
            f"{size} bytes with checksum {wanted:08x}",
        )


def _layer(path: str, crc: int, directory: str, digest_bytes: int) -> None:
    with open(path, "rb") as file:  # noqa: PTH123 - few imports
        data = file.read()
    if crc32(data) != crc:
        raise Difference(f"checksum {crc32(data):08x}", path, f"checksum {crc:08x}")
    compare(
        (f"{directory}/{name}", size, wanted) for name, size, wanted in notes(data, digest_bytes)
    )


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Check everything in ``request``; the answer."""
    try:
        for path, crc, directory in request["layers"]:
            _layer(path, crc, directory, request["digest_bytes"])
    except Difference as difference:
        problem, path, expected = difference.args
        return {"problem": problem, "path": path, "expected": expected}
    except OSError as problem:
        return {
            "problem": problem.strerror or "I/O error",
            "path": problem.filename or "",
            "expected": None,
        }
    return {"problem": None}


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
