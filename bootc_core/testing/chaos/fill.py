"""Nearly full disks: a command with so many bytes left on the root file system, or on the boot partition.

A case is called ``fill:backend:command:root:KIB`` or ``...:boot:KIB``: how much is left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bootc_core.testing.chaos import calls, disk, tracer
from bootc_core.testing.chaos.bench import Bench, Command
from bootc_core.testing.chaos.disk import Layout
from bootc_core.testing.chaos.report import Tally

_LAYOUT: Final = Layout("ext4", "ext4")
# every block where files are written, coarser up to what a first import is refused for
LEVELS: Final = {
    "root": (*range(0, 256, 16), *range(256, 2048, 128), *range(2048, 80 * 1024, 8192)),
    "boot": (*range(0, 128, 4), *range(128, 512, 32)),
}


def _ballast(directory: Path, left_bytes: int) -> Path:
    """A file that leaves so much of the file system."""
    path = directory / "ballast"
    space = os.statvfs(directory)
    size = space.f_bavail * space.f_frsize - left_bytes
    with path.open("wb") as file:
        while size > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                break
            except OSError:  # the file system needs blocks for itself
                size -= 4096
    return path


def sweep(bench: Bench, command: Command, mine: Callable[[int], bool], every: int) -> Tally:
    """All levels, or every n-th."""
    begin = time.monotonic()
    tally = Tally(f"fill:{bench.subject.name}:{command.name}")
    place = bench.place / "disk"
    place.mkdir(exist_ok=True)
    base, image = place / "base.raw", place / "full.raw"
    disk.make(base, _LAYOUT)
    with disk.mounted(base, _LAYOUT, bench.root):
        bench.advance(command)
    bench.serve(bench.served(command))
    for number, (where, level) in enumerate(_levels(every)):
        if not mine(number):
            continue
        case = f"{tally.key}:{where}:{level}"
        tally.counts["cases"] += 1
        disk.copy(base, image)
        with disk.mounted(image, _LAYOUT, bench.root):
            directory = bench.root / "boot" if where == "boot" else bench.root
            ballast = _ballast(directory, level * 1024)
            done = tracer.run(bench.work(command.name), traced=False)
            found = bench.judge()
            problems = calls.failed(bench, command, done, found, tally)
            ballast.unlink()
            if not problems:
                problems = bench.converges(command, found)
                tally.counts["converged"] += not problems
            if problems:
                tally.fail(case, [*problems, f"it said: {done.stderr.strip()[-300:]}"])
    tally.seconds = time.monotonic() - begin
    return tally


def _levels(every: int) -> Iterator[tuple[str, int]]:
    for where, levels in LEVELS.items():
        yield from ((where, level) for level in levels[::every])
