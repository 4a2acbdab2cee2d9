"""Is a killed process, or a group of them, gone? Zombies that wait for another reaper count as gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path


def _living() -> Iterator[tuple[int, int]]:
    """Process id and group of everything that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX":
                yield int(entry.name), int(fields[2])


def _soon(is_there) -> bool:
    deadline = time.monotonic() + 10  # a kill takes effect in moments; this bounds a failing test
    while is_there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """The process does not run (any more, within moments)."""
    return _soon(lambda: any(pid == living for living, _ in _living()))


def group_gone(group: int) -> bool:
    """Nothing of the process group runs (any more, within moments)."""
    return _soon(lambda: any(group == living for _, living in _living()))
