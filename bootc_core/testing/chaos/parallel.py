"""Many at once: updaters, readers and a collector start together on one host, round after round.

One updater wins. The others leave with ``locked`` and name the holder, or come so late that there is nothing left to do.
Readers never wait and always see a whole host: the old one or the new one. The collector is what tidies up after each run, alone.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from bootc_core.engine import orchestrator, sysroots
from bootc_core.errors import BootcError
from bootc_core.models.context import Operation
from bootc_core.testing.chaos import tracer
from bootc_core.testing.chaos.bench import COMMANDS, Bench
from bootc_core.testing.chaos.report import Tally

_READS: Final = 8
_LEAVES_S: Final = 1.0


def _start(work: Callable[[], int], gate: int, output: Path, repeat: int = 1) -> int:
    """A process that waits for the gate, runs ``work`` and leaves the outcome in a file."""
    child = os.fork()
    if child:
        return child
    os.read(gate, 1)
    found = []
    for _ in range(repeat):
        begin, cpu = time.monotonic(), time.process_time()
        done = tracer.run(work, traced=False)
        times = os.times()
        found.append(
            {
                "status": done.status,
                "out": done.stdout,
                "err": done.stderr,
                "wall": time.monotonic() - begin,
                "cpu": time.process_time() - cpu + times.children_user + times.children_system,
            }
        )
    output.write_text(json.dumps(found))
    os._exit(0)


def _collector(bench: Bench) -> Callable[[], int]:
    """Tidying up as a run of its own, as often as the lock is to be had."""

    def work() -> int:
        storage = sysroots.open_storage(bench.sysroot, bench.plugins, bench.config)
        if storage is None:
            return 1

        async def collect() -> None:
            async with orchestrator.transaction(
                bench.plugins, storage, [], Operation.UPGRADE, ""
            ) as (run, _):
                await run.prune()

        for _ in range(20):
            try:
                trio.run(collect)
            except BootcError as problem:
                if problem.reference != "locked":
                    raise
            time.sleep(0.01)
        return 0

    return work


def rounds(bench: Bench, count: int, updaters: int, readers: int) -> Tally:
    """So many rounds; a case is called ``parallel:backend:round``."""
    begin = time.monotonic()
    tally = Tally(f"parallel:{bench.subject.name}:{updaters} updaters, {readers} readers")
    longest = 0.0
    for number in range(count):
        found = _round(bench, updaters, readers)
        problems = _judge(bench, found, tally)
        longest = max([longest, *(one["wall"] for one in found["updaters"] if one["status"])])
        tally.counts["rounds"] += 1
        if problems:
            tally.fail(f"{tally.key}:{number}", problems)
    tally.counts["slowest loser, ms"] = round(longest * 1000)
    tally.seconds = time.monotonic() - begin
    return tally


def _round(bench: Bench, updaters: int, readers: int) -> dict[str, list[dict[str, Any]]]:
    bench.prepare(COMMANDS["collect"])
    gate, opened = os.pipe()
    outputs: dict[str, list[Path]] = {"updaters": [], "readers": [], "collector": []}
    children = []
    plan = [
        *(("updaters", bench.work("upgrade"), 1) for _ in range(updaters)),
        *(("readers", bench.work("status"), _READS) for _ in range(readers)),
        ("collector", _collector(bench), 1),
    ]
    for number, (kind, work, repeat) in enumerate(plan):
        outputs[kind].append(bench.place / f"outcome-{number}.json")
        children.append(_start(work, gate, outputs[kind][-1], repeat))
    os.write(opened, b"." * len(plan))
    os.close(opened)
    os.close(gate)
    for child in children:
        os.waitpid(child, 0)
    return {
        kind: [one for path in paths for one in json.loads(path.read_text())]
        for kind, paths in outputs.items()
    }


def _judge(bench: Bench, found: dict[str, list[dict[str, Any]]], tally: Tally) -> list[str]:
    problems = []
    won = 0
    for one in found["updaters"]:
        text = one["out"] + one["err"]
        if one["status"] == 0 and "Queued for next boot" in one["out"]:
            won += 1
        elif one["status"] == 0 and "No update available" in one["out"]:
            tally.counts["came too late"] += 1
        elif '"reference": "locked"' in text and re.search(r"pid \d+, bootc \w+", text):
            tally.counts["lost"] += 1
            if one["cpu"] > _LEAVES_S:
                problems.append(f"a loser took {one['cpu']:.1f} s of processor time to leave")
        else:
            problems.append(f"an updater: status {one['status']}: {text[-300:]}")
    tally.counts["won"] += won
    if won > 1 or (
        won == 0 and not any("bootc upgrade" in one["err"] for one in found["updaters"])
    ):
        problems.append(f"{won} winners")
    for one in found["readers"]:
        try:
            status = json.loads(one["out"])["status"]
            seen = (
                status["booted"]["image"]["version"],
                status["rollback"] and status["rollback"]["image"]["version"],
            )
        except (ValueError, KeyError, TypeError):
            problems.append(f"a reader: status {one['status']}: {(one['out'] + one['err'])[-300:]}")
            continue
        tally.counts["reads"] += 1
        if seen[0] not in {"2", "3"}:
            problems.append(f"a reader saw {seen}")
    if any(one["status"] for one in found["collector"]):
        problems.append(f"the collector: {found['collector'][0]['err'][-300:]}")
    after = bench.judge()
    problems += [*after.problems, *after.left]
    if won and after.versions != COMMANDS["collect"].new:
        problems.append(f"{after.versions} in the end")
    problems += bench.subject.check(bench.sysroot)
    return problems
