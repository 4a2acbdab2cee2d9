#!/usr/bin/python3
"""The ostree backend: import and update of a real Debian image of about 1 GB, against the ostree program on the same blobs.

    bench_ostree.py CACHE [-n RUNS] [--only REGEX] [--json FILE]

- cold     from nothing to a deployment that boots
- update   the same after 2 of 10 layers changed

The peer does what the original does with layers: ``ostree commit --tree=tar`` for each, a union checkout of all, a commit of that
(``import``). Afterwards ``ostree admin deploy`` makes a deployment, as bootc does in the same command; the ratio counts
without it and with it (``whole``). Both read the same OCI layout; bootc checks digests, diffIDs and reads back what it wrote.
Measuring, file systems, image and peers are those of ``bench.py``. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import bench, images
from benchmarks.bench import DECODER, PROJECT, Case, Disk, Peers, execute, median
from demo import debian

MARKS = {"cold": 0.6, "update": 0.45}  # times the CPU of the peer's import
PSS_MARK = 150.0


def cases(compression: str, cache: Path, disk: Disk, peers: Peers) -> list[Case]:
    """All contenders for one compression."""
    host = disk.path / "host"
    layout = cache / f"oci-{compression}"
    bootc = str(PROJECT / ".venv/bin/bootc")

    def switch(version: str) -> list[str]:
        return [
            *(bootc, "switch", "--sysroot", str(host), "--backend", "ostree"),
            *("--no-signature-verification", "--transport", "oci", f"{layout}:{version}"),
        ]

    old, new = (bench.layers(layout, name) for name in ("v1", "v1b"))
    peer = disk.path / "peer"

    def shell(*lines: str) -> list[str]:
        return peers.command("sh", "-ec", "\n".join(lines))

    repo = f"--repo={peer}/ostree/repo"
    prepare = [
        f"mkdir {peer}; ostree admin init-fs --modern {peer}",
        f"ostree config {repo} set sysroot.bootloader none",
        f"ostree admin os-init --sysroot={peer} default",
    ]

    def add(pairs: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]) -> list[str]:
        return [
            *(
                f"{DECODER[compression]} {blob} | ostree commit {repo} --no-bindings --tar-autocreate-parents"
                f" --tar-pathname-filter='^etc(/|$),usr/etc\\1' --tree=tar=/proc/self/fd/0 --branch=layer/{diff}"
                for blob, diff in pairs
            ),
            f"rm -rf {peer}/merged",
            *(
                f"ostree checkout {repo} -H --union --fsync=false layer/{diff} {peer}/merged"
                for _, diff in wanted
            ),
            f"ostree commit {repo} --no-bindings --link-checkout-speedup --tree=dir={peer}/merged --branch=image",
        ]

    deploy = [f"ostree admin deploy --sysroot={peer} --os=default image"]
    first = [*prepare, *add(old, old)]
    changed = [pair for pair in new if pair not in old]
    return [
        Case(f"cold {compression} bootc", switch("v1")),
        Case(f"cold {compression} ostree import", shell(*first)),
        Case(f"cold {compression} ostree whole", shell(*first, *deploy)),
        Case(f"update {compression} bootc", switch("v1b"), [switch("v1")]),
        Case(
            f"update {compression} ostree import",
            shell(*add(changed, new)),
            [shell(*first, *deploy)],
        ),
        Case(
            f"update {compression} ostree whole",
            shell(*add(changed, new), *deploy),
            [shell(*first, *deploy)],
        ),
    ]


def report(all_cases: dict[str, Case]) -> list[str]:
    """The result as Markdown lines."""
    lines = [
        "| work | contender | CPU s | user | system | durable wall s | written MB | peak PSS MB (processes) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in all_cases.values():
        work, compression, contender = case.name.split(" ", 2)
        figures = " | ".join(
            f"{median(case, what):.2f}" for what in ("cpu", "user", "system", "wall")
        )
        memory = f"{case.pss:.0f} ({case.processes})" if case.pss else ""
        lines.append(
            f"| {work}, {compression} | {contender} | {figures} | {median(case, 'written'):.0f} | {memory} |"
        )
    lines += [
        "",
        "| bootc against ostree | CPU, import | CPU, whole | wall, whole | mark |",
        "|---|---|---|---|---|",
    ]
    for compression in DECODER:
        for work, mark in MARKS.items():
            ours = all_cases.get(f"{work} {compression} bootc")
            peers = [
                all_cases.get(f"{work} {compression} ostree {what}") for what in ("import", "whole")
            ]
            if ours is None or None in peers:
                continue

            def ratio(other: Case | None, what: str, mine: Case = ours) -> float:
                theirs = other.runs if other else []
                pairs = zip(mine.runs, theirs, strict=True)
                return float(
                    statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)
                )

            least = ratio(peers[0], "cpu")
            lines.append(
                f"| {work}, {compression} | {least:.2f} x | {ratio(peers[1], 'cpu'):.2f} x | {ratio(peers[1], 'wall'):.2f} x |"
                f" import <= {mark}: {'met' if least <= mark else 'MISSED'} |"
            )
    lines.append("")
    lines += [
        f"Memory, {case.name.removesuffix(' bootc')}: {case.pss:.0f} MB of PSS at most, mark"
        f" {PSS_MARK:.0f}: {'met' if case.pss < PSS_MARK else 'MISSED'}."
        for case in all_cases.values()
        if case.name.endswith(" bootc")
    ]
    return lines


def ready(case: Case, disk: Disk) -> None:
    """The state before a measured command: a fresh file system, and on it what the case builds on."""
    disk.fresh()
    for command in case.prepare:
        execute(command)


def main() -> None:
    """Parse arguments, prepare, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("-n", type=int, default=3, help="measured runs of each case (default 3)")
    parser.add_argument("--only", default=".", help="cases whose name matches, e.g. 'cold zstd'")
    parser.add_argument("--json", type=Path, help="write all runs there as JSON")
    parser.add_argument("--size", default="8G", help="of the scratch file system")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("bench_ostree.py needs root: it makes and mounts file systems")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cache = arguments.cache.resolve()
    images.build(cache)
    scratch = cache / "scratch-ostree"
    scratch.mkdir(exist_ok=True)
    peers = Peers(cache / "peers", scratch)
    all_cases: dict[str, Case] = {}
    inside = peers.root / str(cache).lstrip("/")
    points = [inside / f"oci-{compression}" for compression in DECODER]
    with peers.mounted(), Disk(scratch, peers, arguments.size) as disk:
        try:
            for point in points:
                point.mkdir(parents=True, exist_ok=True)
                execute(["mount", "--bind", str(cache / point.name), str(point)])
            for compression in DECODER:
                for case in cases(compression, cache, disk, peers):
                    if re.search(arguments.only, case.name):
                        all_cases[case.name] = case
            for number in range(arguments.n):
                for case in all_cases.values():
                    ready(case, disk)
                    case.runs.append(bench.measure(case.command, disk, scratch / "last.log"))
                    last = case.runs[-1]
                    debian.say(
                        f"{number + 1}/{arguments.n} {case.name}: cpu {last.cpu:.2f} wall {last.wall:.2f}"
                        f" written {last.written:.0f}"
                    )
            for case in all_cases.values():
                if case.name.endswith(" bootc"):
                    ready(case, disk)
                    case.pss, case.processes = bench.peak_memory(case.command)
        finally:
            for point in points:
                subprocess.run(["umount", str(point)], check=False)
        version = peers.version("ostree")
    shutil.rmtree(scratch)
    own = subprocess.run(["ostree", "--version"], check=False, capture_output=True, text=True)
    found = re.search(r"\d+\.\d+", own.stdout)
    lines = [
        f"Machine: {bench.machine()}. Peer: ostree {version} (Debian sid); bootc with libostree {found[0] if found else '?'}.",
        f"Medians of {arguments.n} runs, round robin; ratios are medians of paired runs.",
        "",
        *report(all_cases),
    ]
    print("\n".join(lines))
    if arguments.json:
        record = {name: bench.asdict_runs(case) for name, case in all_cases.items()}
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
