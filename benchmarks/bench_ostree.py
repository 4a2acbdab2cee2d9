#!/usr/bin/python3
"""The ostree backend: import and update of a real Debian image of about 1 GB, against the ostree program on the same blobs.

    bench_ostree.py CACHE [-n RUNS] [--only REGEX] [--json FILE]

- cold     all 10 layers of an image of which the host has nothing
- update   the same after 2 of 10 layers changed

Both in two extents: ``import`` is from blobs to a merged commit in the repository (``bootc upgrade --download-only``, to which the
marks apply), ``whole`` goes on to a deployment that boots, ``/etc`` merged, and to pruning. The peer does what the original
does: ``ostree commit --tree=tar`` for each layer, a union checkout of all, a commit of that, ``ostree admin deploy``. Both read the
same OCI layout; bootc checks digests and diffIDs and reads back what it wrote. Measuring, file systems, image and peers are
those of ``bench.py``. Needs root.
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
from demo import layout as layouts

MARKS = {"cold": 0.6, "update": 0.45}  # times the CPU of the peer's import
PSS_MARK = 150.0


def make_layout(source: Path, target: Path) -> None:
    """The image's layout once more, with a small image ``v0`` beside v1 and v1b: what a host runs that has nothing of them."""
    shutil.rmtree(target, ignore_errors=True)
    made = layouts.Layout(target)
    folders = ("boot", "dev", "etc", "proc", "run", "sys", "sysroot", "tmp", "usr", "var")
    modules = "usr/lib/modules/1"
    names = [*folders, "usr/lib", "usr/lib/modules", modules]
    members = [layouts.Member(name, mode=0o755) for name in names]
    members += [layouts.Member(f"{modules}/{name}", b"x") for name in ("vmlinuz", "initramfs.img")]
    members.append(layouts.Member("usr/lib/os-release", b"ID=small\n"))
    made.add_image("v0", [made.add_tar(members, "gzip")], {"containers.bootc": "1"})
    index = json.loads((target / "index.json").read_bytes())
    index["manifests"] += json.loads((source / "index.json").read_bytes())["manifests"]
    (target / "index.json").write_text(json.dumps(index))
    for blob in (source / "blobs/sha256").iterdir():
        if not (target / "blobs/sha256" / blob.name).exists():
            os.link(blob, target / "blobs/sha256" / blob.name)


def cases(compression: str, layout: Path, disk: Disk, peers: Peers) -> list[Case]:
    """All contenders for one compression."""
    host = disk.path / "host"
    bootc = str(PROJECT / ".venv/bin/bootc")
    switch = [
        *(bootc, "switch", "--sysroot", str(host), "--backend", "ostree"),
        *("--no-signature-verification", "--transport", "oci", f"{layout}:v0"),
    ]

    def upgrade(version: str, *more: str) -> list[str]:
        return [bootc, "upgrade", "--sysroot", str(host), "--tag", version, *more]

    old, new = (bench.layers(layout, name) for name in ("v1", "v1b"))
    peer = disk.path / "peer"

    def shell(*lines: str) -> list[str]:
        return peers.command("sh", "-ec", "\n".join(lines))

    repo = f"--repo={peer}/ostree/repo"
    prepare = [
        f"mkdir {peer}",
        f"ostree admin init-fs --modern {peer}",
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
    changed = [pair for pair in new if pair not in old]
    first, second = add(old, old), add(changed, new)
    before = [shell(*prepare, *first, *deploy)]
    made = []
    for what, last, more in (("import", [], ["--download-only"]), ("whole", deploy, [])):
        mine = f"{compression} bootc {what}"
        theirs = f"{compression} ostree {what}"
        made += [
            Case(f"cold {mine}", upgrade("v1", *more), [switch]),
            Case(f"cold {theirs}", shell(*first, *last), [shell(*prepare)]),
            Case(f"update {mine}", upgrade("v1b", *more), [switch, upgrade("v1")]),
            Case(f"update {theirs}", shell(*second, *last), before),
        ]
    return made


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
        "| bootc against ostree | CPU | durable wall | mark | |",
        "|---|---|---|---|---|",
    ]
    for name, ours in all_cases.items():
        work, compression, contender, what = name.split()
        theirs = all_cases.get(f"{work} {compression} ostree {what}")
        if contender != "bootc" or theirs is None:
            continue
        pairs = list(zip(ours.runs, theirs.runs, strict=True))
        cpu, wall = (
            statistics.median(getattr(a, of) / getattr(b, of) for a, b in pairs)
            for of in ("cpu", "wall")
        )
        mark = MARKS[work]
        told = f"CPU <= {mark} | {'met' if cpu <= mark else 'MISSED'}" if what == "import" else "|"
        lines.append(f"| {work}, {what}, {compression} | {cpu:.2f} x | {wall:.2f} x | {told} |")
    lines.append("")
    lines += [
        f"Memory, {name}: {case.pss:.0f} MB of PSS at most, mark {PSS_MARK:.0f}:"
        f" {'met' if case.pss < PSS_MARK else 'MISSED'}."
        for name, case in all_cases.items()
        if case.pss
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
    inside = peers.root / str(scratch).lstrip("/")
    points = [inside / f"oci-{compression}" for compression in DECODER]
    with peers.mounted(), Disk(scratch, peers, arguments.size) as disk:
        try:
            for point in points:
                point.mkdir(parents=True, exist_ok=True)
                make_layout(cache / point.name, scratch / point.name)
                execute(["mount", "--bind", str(scratch / point.name), str(point)])
            for compression in DECODER:
                for case in cases(compression, scratch / f"oci-{compression}", disk, peers):
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
                if case.name.endswith(" bootc whole"):
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
