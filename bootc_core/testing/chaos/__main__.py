"""``python -m bootc_core.testing.chaos SUITE... --subject FILE``: fault injection; exit status 1 if a case is bad."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from bootc_core.errors import BootcError
from bootc_core.testing.chaos import calls, defects, disk, fill, parallel, power, report, tracer
from bootc_core.testing.chaos.bench import COMMANDS, Bench, Defect
from bootc_core.testing.chaos.report import Tally
from bootc_core.testing.chaos.subject import Subject, load

SUITES: Final = ("kill", "errno", "fill", "medium", "power", "flushes", "parallel")
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the benches in it have names that nobody can guess


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bootc_core.testing.chaos", description=__doc__)
    made.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; or all")
    made.add_argument(
        "--subject",
        action="append",
        type=Path,
        required=True,
        metavar="FILE",
        help="Python file with SUBJECT; may be repeated",
    )
    made.add_argument("--commands", default=",".join(COMMANDS), help="default: %(default)s")
    made.add_argument("--every", type=int, default=1, help="every n-th point only")
    made.add_argument("--states", type=int, default=2000, help="power: how many, over all disks")
    made.add_argument("--rounds", type=int, default=20, help="parallel: how many")
    made.add_argument("--updaters", type=int, default=16, help="parallel: at once")
    made.add_argument("--readers", type=int, default=16, help="parallel: at once")
    made.add_argument("--roots", default=",".join(power.ROOTS), help="power: default %(default)s")
    made.add_argument(
        "--keep",
        type=Path,
        default=Path(".cache/chaos/power"),
        help="power: where disks and logs stay",
    )
    made.add_argument("--defect", choices=sorted(defects.DEFECTS), help="break it deliberately")
    made.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--json", type=Path, help="write the figures there")
    made.add_argument(
        "--replay", metavar="CASE", help="one case, by the identifier that was printed"
    )
    made.add_argument("--work", type=Path, default=_MEMORY, help="a directory in memory")
    return made


def shards(
    place: Path,
    subject: Subject,
    count: int,
    defect: Defect | None,
    shard: Callable[[Bench, int, int], Iterator[Tally]],
) -> list[Tally]:
    """Run ``shard(bench, index, count)`` in ``count`` processes with a bench each; their tallies, added up by key."""
    files = []
    children = []
    place.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        output = place / f"result-{index}.json"
        files.append(output)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                bench = Bench(place / f"{index}", subject, defect)
                found = []
                for tally in shard(bench, index, count):
                    found.append(tally.to_json())
                    sys.stderr.write(f"{tally.line()}\n")
                    sys.stderr.flush()
                output.write_text(json.dumps(found))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    if failed:
        raise AssertionError("a part of the suite broke; see above")
    merged: dict[str, Tally] = {}
    for output in files:
        for value in json.loads(output.read_text()):
            tally = Tally.from_json(value)
            if tally.key in merged:
                whole = max(tally.counts["calls"], merged[tally.key].counts["calls"])
                merged[tally.key].merge(tally)
                if whole:  # of one undisturbed run, not of all processes'
                    merged[tally.key].counts["calls"] = whole
            else:
                merged[tally.key] = tally
    return list(merged.values())


def _run(suite: str, options: argparse.Namespace, subject: Subject, place: Path) -> list[Tally]:
    wanted = [COMMANDS[name] for name in options.commands.split(",")]
    defect = defects.DEFECTS.get(options.defect or "")

    def at_calls(bench: Bench, index: int, count: int) -> Iterator[Tally]:
        def mine(number: int) -> bool:
            return bool(number // options.every % count == index)

        yield from (calls.sweep(suite, bench, command, options.every, mine) for command in wanted)

    def power_cuts(bench: Bench, index: int, count: int) -> Iterator[Tally]:
        disk.private_mounts()
        pairs = [
            (command, layout)
            for layout in power.layouts(bench, options.roots.split(","))
            for command in wanted
        ]
        states = -(-options.states // len(pairs))
        keep = options.keep.absolute()
        for command, layout in pairs[index::count]:
            yield power.sweep(bench, command, layout, states, keep)

    def without_flushes(bench: Bench, index: int, count: int) -> Iterator[Tally]:
        disk.private_mounts()

        def mine(number: int) -> bool:
            return bool(number // options.every % count == index)

        yield from (power.flushes(bench, command, options.every, mine) for command in wanted)

    def all_at_once(bench: Bench, index: int, count: int) -> Iterator[Tally]:
        del index, count
        yield parallel.rounds(bench, options.rounds, options.updaters, options.readers)

    def nearly_full(bench: Bench, index: int, count: int) -> Iterator[Tally]:
        disk.private_mounts()
        for command in wanted:
            yield fill.sweep(bench, command, lambda number: number % count == index, options.every)

    if suite == "parallel":
        return shards(place, subject, 1, defect, all_at_once)
    if suite in {"power", "flushes", "fill"}:
        disk.require()
    if suite == "fill":
        return shards(place, subject, options.jobs, defect, nearly_full)
    if suite == "flushes":
        return shards(place, subject, options.jobs, defect, without_flushes)
    if suite == "power":
        return shards(place, subject, options.jobs, defect, power_cuts)
    return shards(place, subject, options.jobs, defect, at_calls)


def _replay(options: argparse.Namespace, subjects: Sequence[Subject], place: Path) -> list[Tally]:
    suite, backend, command, *rest = options.replay.split(":")
    subject = next(one for one in subjects if one.name == backend)
    defect = defects.DEFECTS.get(options.defect or "")
    if suite == "power":
        disk.private_mounts()
        layout = disk.Layout(*rest[0].split("+"))
        kept = power.Recording.load(options.keep.absolute() / f"power-{backend}-{command}-{layout}")
        bench = Bench(kept.place, subject, defect)
        try:
            return [power.replay(bench, COMMANDS[command], layout, kept, disk.Cut.parse(rest[1]))]
        finally:
            shutil.rmtree(kept.place, ignore_errors=True)
    bench = Bench(place / "replay", subject, defect)
    return [calls.replay(suite, bench, COMMANDS[command], int(rest[0]), rest[1])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run suites, print their figures; exit status 0 if nothing is bad."""
    options = _parser().parse_args(arguments)
    tracer.require()
    place = Path(tempfile.mkdtemp(prefix="bootc-chaos-", dir=options.work))
    found: list[Tally] = []
    try:
        subjects = [load(path.absolute(), place / "installed") for path in options.subject]
        if options.replay:
            found = _replay(options, subjects, place)
        else:
            suites = SUITES if options.suites in (["all"], []) else options.suites
            for suite in suites:
                for subject in subjects:
                    found += _run(suite, options, subject, place / f"{suite}-{subject.name}")
    except BootcError as problem:
        sys.stderr.write(f"{problem.message}: {problem.found}\n")
        return 2
    finally:
        shutil.rmtree(place, ignore_errors=True)
    sys.stdout.write(report.table(found))
    if options.json:
        report.write(options.json, found)
    return 1 if any(tally.bad for tally in found) else 0


if __name__ == "__main__":
    sys.exit(main())
