"""Power cuts: a command on real file systems on a recorded disk, and the disk after every write, in every order that may be.

    prefix      the disk after each entry of the log
    reorder     everything up to the last flush, then a random part of what follows, in random order, one in ten torn

Each state is mounted as at the next boot (journals are replayed) and judged: old or new, whole. After the command had reported
success only new counts, else it is *lost*. In every fiftieth state the command is run again and has to converge.

A case is called ``power:backend:command:root+boot:cut``; the base and the log stay below ``--keep``, so that the same bytes
can be replayed.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootc_core.testing.chaos import calls, disk, guest, tracer
from bootc_core.testing.chaos.bench import Bench, Command, chosen
from bootc_core.testing.chaos.disk import Cut, Layout, Replay
from bootc_core.testing.chaos.report import Tally

ROOTS: Final = ("ext4", "xfs", "btrfs")
_CONVERGE_EVERY: Final = 50
_STATES_OF_A_FLUSH: Final = 150


@dataclass(frozen=True, slots=True)
class Recording:
    """What a run did to a disk.

    Attributes:
        base: the disk before.
        log: every write.
        begun, done: number of entries when the command began, and when it had reported success.
        place: of the bench; records of a host hold absolute paths.
    """

    base: Path
    log: Path
    begun: int
    done: int
    place: Path

    def save(self, place: Path) -> None:
        """Keep it for replaying single cases."""
        place.mkdir(parents=True, exist_ok=True)
        for source, name in ((self.base, "base.raw"), (self.log, "log.raw")):
            disk.copy(source, place / name)
        (place / "marks").write_text(f"{self.begun} {self.done} {self.place}\n")

    @classmethod
    def load(cls, place: Path) -> Recording:
        """The inverse of ``save``."""
        begun, done, bench = (place / "marks").read_text().split()
        return cls(place / "base.raw", place / "log.raw", int(begun), int(done), Path(bench))


def layouts(bench: Bench, roots: Sequence[str] = ROOTS) -> list[Layout]:
    """The combinations that the subject can have: each root with each boot partition."""
    return [Layout(root, boot) for root in roots for boot in bench.subject.boot]


def record(bench: Bench, command: Command, layout: Layout, *, drop: int = 0) -> Recording:
    """Run the command on a recorded disk. ``drop``: its n-th flush does nothing.

    Raises:
        AssertionError: it fails.
    """
    place = bench.place / "disk"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    base, log, export = place / "base.raw", place / "log.raw", place / "export.raw"
    disk.make(base, layout)
    if layout.boot == "vfat":
        return guest.record(bench, command, layout, base, log, export, drop)
    with disk.mounted(base, layout, bench.root):
        bench.advance(command)
    before = place / "before.raw"
    disk.copy(base, before)
    bench.serve(bench.served(command))
    with disk.recorded(base, log, export), disk.mounted(export, layout, bench.root):
        begun = disk.entries(log)
        done = tracer.run(bench.work(command.name, drop=drop), traced=False)
        end = disk.entries(log)
    assert done.status == 0, done.stderr  # noqa: S101 - a test suite
    return Recording(before, log, begun, end, bench.place)


def cuts(replay: Replay, recording: Recording, count: int, seed: int) -> Iterator[Cut]:
    """Every prefix, then reorderings until there are ``count`` different states; ascending, which is cheapest.

    If ``count`` is smaller than the number of prefixes, a random part of them and as many reorderings.
    """
    total = len(replay.log)
    dice = random.Random(seed)  # noqa: S311 - reproducible, not secret
    prefixes = [Cut(number) for number in range(total + 1)]
    if count < 2 * total:
        prefixes = dice.sample(prefixes, min(len(prefixes), count // 2))
    found = {(cut.count, ()): cut for cut in prefixes}
    points = [number for number in range(1, total + 1) if replay.window(number) > 1]
    misses = 0
    while len(found) < count and points and misses < 20 * count:
        cut = Cut(dice.choice(points), dice.randrange(1 << 30))
        whole, rest = replay.plan(cut)
        key = (whole, tuple(sorted(rest)))
        misses += key in found
        found.setdefault(key, cut)  # type: ignore[arg-type]
    return iter(
        sorted(found.values(), key=lambda cut: (replay.plan(cut)[0], cut.count, cut.seed or 0))
    )


def sweep(
    bench: Bench,
    command: Command,
    layout: Layout,
    states: int,
    keep: Path | None,
    *,
    seed: int = 1,
    stop_at_first: bool = False,
    recording: Recording | None = None,
) -> Tally:
    """Record once, judge ``states`` cuts."""
    begin = time.monotonic()
    key = f"power:{bench.subject.name}:{command.name}:{layout}"
    tally = Tally(key)
    if recording is None:
        recording = record(bench, command, layout)
    if keep is not None:
        recording.save(keep / key.replace(":", "-"))
    log = disk.read_log(recording.log)
    tally.counts["entries"] = len(log)
    tally.counts["flushes"] = sum(entry.flushes for entry in log)
    scratch = bench.place / "scratch"
    scratch.mkdir(exist_ok=True)
    replay = Replay(recording.base, log, layout, scratch)
    for number, cut in enumerate(cuts(replay, recording, states, seed)):
        one_cut(
            bench,
            command,
            layout,
            recording,
            replay,
            cut,
            tally,
            converge=number % _CONVERGE_EVERY == 7,
        )
        if stop_at_first and tally.bad:
            break
    tally.seconds = time.monotonic() - begin
    return tally


def replay(bench: Bench, command: Command, layout: Layout, recording: Recording, cut: Cut) -> Tally:
    """One case again, from the disk and the log that were kept."""
    tally = Tally(f"power:{bench.subject.name}:{command.name}:{layout}")
    scratch = bench.place / "scratch"
    scratch.mkdir(exist_ok=True)
    disks = Replay(recording.base, disk.read_log(recording.log), layout, scratch)
    bench.serve(bench.served(command))
    one_cut(bench, command, layout, recording, disks, cut, tally, converge=True)
    return tally


def flushes(bench: Bench, command: Command, every: int, mine: Callable[[int], bool]) -> Tally:
    """Take away one flush of the program after the other; each has to be missed in some state of some disk.

    libostree's own are not the program's, and stay.
    """
    begin = time.monotonic()
    tally = Tally(f"flushes:{bench.subject.name}:{command.name}")
    steps = [
        call
        for call in calls.trace(bench, command)
        if call.own and call.name in {"fsync", "fdatasync", "syncfs"}
    ]
    bench.expected_names = None  # a disk has names of its own (lost+found)
    tally.counts["flushes"] = len(steps)
    for number in chosen(len(steps), every):
        if not mine(number):
            continue
        tally.counts["removed"] += 1
        for layout in layouts(bench, ("ext4",)):
            bench.clear()
            recording = record(bench, command, layout, drop=number)
            found = sweep(
                bench,
                command,
                layout,
                _STATES_OF_A_FLUSH,
                None,
                recording=recording,
                stop_at_first=True,
            )
            tally.counts["states"] += found.counts["states"]
            if found.bad:
                tally.counts["caught"] += 1
                break
        else:
            tally.fail(
                f"{tally.key}:{number}", [f"not missed: {steps[number - 1]}"], kind="not caught"
            )
    tally.seconds = time.monotonic() - begin
    return tally


def one_cut(
    bench: Bench,
    command: Command,
    layout: Layout,
    recording: Recording,
    replay: Replay,
    cut: Cut,
    tally: Tally,
    *,
    converge: bool,
) -> None:
    """Build the disk, mount it, judge it."""
    case = f"{tally.key}:{cut}"
    tally.counts["states"] += 1
    tally.counts["prefix" if cut.seed is None else "reorder"] += 1
    image = replay.disk(cut)
    try:
        with disk.mounted(image, layout, bench.root):
            found = bench.judge()
            reached = replay.plan(cut)[0] if cut.seed is not None else cut.count
            after = reached >= recording.done
            is_new = found.first == command.new[0] and (
                command.old[0] != command.new[0] or found.staged == command.stages
            )
            problems = list(found.problems)
            if not is_new and found.first != command.old[0]:
                problems.append(f"version {found.first} boots")
            if after and not is_new:
                tally.fail(case, ["after success", *problems, f"{found.versions}"], kind="lost")
                return
            if problems:
                tally.fail(case, problems)
                return
            tally.counts["new" if is_new else "old"] += 1
            if converge:
                problems = bench.converges(command, found)
                tally.counts["converged"] += not problems
                if problems:
                    tally.fail(case, problems)
    except OSError as problem:
        tally.fail(case, [f"cannot be mounted or read: {problem}"])
