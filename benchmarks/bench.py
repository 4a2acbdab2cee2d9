#!/usr/bin/python3
"""Pull and import a real Debian image of about 1 GB: bootc as it ships against podman and ostree, on the same work.

    bench.py CACHE [-n RUNS] [--only REGEX] [--json FILE]

- cold     from nothing to a deployed (bootc), pulled (podman), or imported and merged (ostree) image
- update   the same tag again after 2 of 10 layers changed
- check    nothing changed: ``bootc upgrade --check``, ``podman pull`` again

Every run starts on a newly made ext4 in a loop file: neither left-overs nor the file system's own after-effects of deletion
disturb it. Cases run round robin, so that drift hits all alike. What is measured:

- CPU      user and system seconds of the whole process tree (wait4)
- wall     seconds until the command has ended and syncfs on its file system too ("durable")
- written  what reached the block device meanwhile
- PSS      peak of the process tree's proportional set sizes, sampled in one run of its own: sampling costs time

The registry is Debian's docker-registry on loopback; ostree has no client for it and is given local blobs, so its figures lack
the download. Peers are the newest that install here: Debian's rolling suite in a chroot below CACHE. Needs root.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import images
from demo import debian

PROJECT = Path(__file__).resolve().parent.parent
PEERS = ["podman", "ostree", "crun", "netavark", "ca-certificates", "zstd", "gzip"]
DECODER = {"gzip": "gzip -dc", "zstd": "zstd -dqc"}
SAMPLE_S = 0.02
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Run:
    """One measured command. Seconds, and megabytes of 10^6 bytes."""

    cpu: float
    user: float
    system: float
    wall: float
    written: float


@dataclass
class Case:
    """A contender's command for one piece of work. ``prepare`` brings the fresh file system to the state before it."""

    name: str
    command: list[str]
    prepare: list[list[str]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    runs: list[Run] = field(default_factory=list)
    pss: float = 0.0
    processes: int = 0


def execute(command: Sequence[str]) -> None:
    """An unmeasured command; raises SystemExit with its last words when it fails."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)[:200]}\nexit status {done.returncode}: {(done.stderr or done.stdout)[-1500:]}"
        )


class Peers:
    """A chroot with Debian's newest podman and ostree; the scratch folder is at the same path inside."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self.scratch = scratch
        if not root.exists():
            debian.build_root("sid", PEERS, root, root.parent, variant="apt")
        policy = root / "etc/containers/policy.json"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text('{"default":[{"type":"insecureAcceptAnything"}]}')

    def command(self, *words: str) -> list[str]:
        """The command line that runs ``words`` inside."""
        return ["chroot", str(self.root), *words]

    def version(self, program: str) -> str:
        """The program's version."""
        told = subprocess.run(
            self.command(program, "--version"), check=True, capture_output=True, text=True
        )
        found = re.search(r"\d+(\.\d+)+", told.stdout)
        return found[0] if found else "of unknown version"

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """With /proc, /dev and /sys inside."""
        points = [self.root / name for name in ("proc", "dev", "sys")]
        for point in points:
            execute(["mount", "--rbind", "--make-rslave", f"/{point.name}", str(point)])
        try:
            yield
        finally:
            for point in reversed(points):
                subprocess.run(["umount", "-R", "-l", str(point)], check=False)


class Disk:
    """A file system made anew for every run, on a loop file, visible at the same path to host and peers."""

    def __init__(self, scratch: Path, peers: Peers, size: str) -> None:
        self.path = scratch / "fs"
        self._file = scratch / "fs.img"
        self._inside = peers.root / str(self.path).lstrip("/")
        self._size = size
        self._statistics = Path()

    def __enter__(self) -> Disk:
        for folder in (self.path, self._inside):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()
        self._file.unlink(missing_ok=True)

    def _drop(self) -> None:
        for point in (self._inside, self.path):
            while os.path.ismount(point):
                execute(["umount", str(point)])

    def fresh(self) -> None:
        """Unmount, make the file system, mount."""
        self._drop()
        self._file.unlink(missing_ok=True)
        execute(["truncate", "-s", self._size, str(self._file)])
        # Everything ext4 would otherwise do lazily in the background is done now
        lazy = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
        execute(["mkfs.ext4", "-q", "-F", "-E", lazy, str(self._file)])
        execute(["mount", "-o", "loop", str(self._file), str(self.path)])
        execute(["mount", "--bind", str(self.path), str(self._inside)])
        execute(["sync", "-f", str(self._file)])
        device = self.path.stat().st_dev
        self._statistics = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")

    def sync(self) -> None:
        """``syncfs`` on it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if _libc.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(descriptor)

    def written(self) -> int:
        """Bytes that were written to the block device since it was set up."""
        return int(self._statistics.read_text().split()[6]) * 512


class Registry:
    """docker-registry on a free loopback port, its access log kept."""

    def __init__(self, scratch: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = scratch / "registry.log"
        self._settings = scratch / "registry.yml"
        self._settings.write_text(
            "version: 0.1\nlog: {level: warn, accesslog: {disabled: false}}\n"
            f"storage: {{filesystem: {{rootdirectory: {scratch / 'registry'}}}}}\n"
            f'http: {{addr: "{self.address}"}}\n'
        )

    def __enter__(self) -> Registry:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(self._settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        for _ in range(100):
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(tuple(self.address.split(":")), 1).close()  # type: ignore[arg-type]
            except OSError:
                time.sleep(0.1)
            else:
                return self
        raise SystemExit(f"docker-registry did not start, see {self._log}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def push(self, layout: Path, name: str, tag: str) -> None:
        """Put an image of a layout under ``os/...:tag``."""
        execute(
            [
                *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
                *(f"oci:{layout}:{name}", f"docker://{self.address}/{tag}"),
            ]
        )

    def move(self, repository: str, old: str, new: str) -> None:
        """Make the tag ``new`` name what ``old`` names."""
        url = f"http://{self.address}/v2/{repository}/manifests/"
        request = urllib.request.Request(url + old, headers={"Accept": MANIFEST})
        with urllib.request.urlopen(request) as answer:
            body = answer.read()
        request = urllib.request.Request(url + new, body, {"Content-Type": MANIFEST}, method="PUT")
        urllib.request.urlopen(request).close()

    @contextmanager
    def requests(self) -> Iterator[list[str]]:
        """The requests it is asked meanwhile, as ``HEAD /v2/...``."""
        seen: list[str] = []
        start = self._log.stat().st_size
        yield seen
        time.sleep(0.2)  # the log is written after the answer
        text = self._log.read_bytes()[start:].decode(errors="replace")
        seen += [
            f"{method} {path}"
            for method, path in re.findall(r'"([A-Z]+) (\S+) HTTP/1\.[01]"', text)
        ]


def measure(command: Sequence[str], disk: Disk, errors: Path) -> Run:
    """Run a command until what it wrote is on the device."""
    disk.sync()
    written = disk.written()
    start = time.perf_counter()
    with errors.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    disk.sync()
    wall = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)[:300]}\nexit status {process.returncode}: {errors.read_text(errors='replace')[-2000:]}"
        )
    return Run(
        cpu=used.ru_utime + used.ru_stime,
        user=used.ru_utime,
        system=used.ru_stime,
        wall=wall,
        written=(disk.written() - written) / 1e6,
    )


def descendants(root: int) -> list[int]:
    """A process and all that descend from it, whatever sessions they made for themselves."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            about = Path(f"/proc/{name}/stat").read_text()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(about.rpartition(")")[2].split()[1]), []).append(int(name))
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


def proportional_kb(pid: int) -> int:
    """The proportional set size of a process; 0 when it has just ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) if found else 0


def peak_memory(command: Sequence[str]) -> tuple[float, int]:
    """Megabytes of PSS of the process tree at its peak, and how many processes it had then."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak, count, ended = 0, 0, threading.Event()

    def sample() -> None:
        nonlocal peak, count
        while not ended.wait(SAMPLE_S):
            sizes = [size for pid in descendants(process.pid) if (size := proportional_kb(pid))]
            if sum(sizes) > peak:
                peak, count = sum(sizes), len(sizes)

    watcher = threading.Thread(target=sample)
    watcher.start()
    process.wait()
    ended.set()
    watcher.join()
    return peak * 1024 / 1e6, count


def layers(layout: Path, name: str) -> list[tuple[str, str]]:
    """Blob path and diffID of each layer of an image in a layout."""

    def blob(digest: str) -> Path:
        return layout / "blobs/sha256" / digest.removeprefix("sha256:")

    index = json.loads((layout / "index.json").read_bytes())
    (digest,) = [
        entry["digest"]
        for entry in index["manifests"]
        if entry["annotations"]["org.opencontainers.image.ref.name"] == name
    ]
    manifest = json.loads(blob(digest).read_bytes())
    config = json.loads(blob(manifest["config"]["digest"]).read_bytes())
    pairs = zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    return [(str(blob(layer["digest"])), diff.removeprefix("sha256:")) for layer, diff in pairs]


def cases(
    compression: str, cache: Path, disk: Disk, registry: Registry, peers: Peers
) -> list[Case]:
    """All contenders for one compression."""
    base = disk.path
    repository = f"os/{compression}"
    tag = f"{registry.address}/{repository}:moving"
    first = lambda: registry.move(repository, "v1", "moving")  # noqa: E731
    second = lambda: registry.move(repository, "v1b", "moving")  # noqa: E731
    bootc = str(PROJECT / ".venv/bin/bootc")
    host = ["--sysroot", str(base / "host")]
    switch = [bootc, "switch", *host, "--no-signature-verification", tag]
    pull = peers.command(
        *(
            "podman",
            "--root",
            f"{base}/pod",
            "--runroot",
            f"{base}/podrun",
            "--storage-driver",
            "overlay",
        ),
        *("pull", "-q", "--tls-verify=false", tag),
    )
    old, new = (layers(cache / f"oci-{compression}", name) for name in ("v1", "v1b"))

    def shell(*lines: str) -> list[str]:
        return peers.command("sh", "-ec", "\n".join(lines))

    def commit(pairs: Sequence[tuple[str, str]]) -> list[str]:
        return [
            f"{DECODER[compression]} {blob} | ostree commit --repo={base}/repo --no-bindings --tar-autocreate-parents"
            f" --tree=tar=/proc/self/fd/0 --branch=layer/{diff}"
            for blob, diff in pairs
        ]

    def merge(pairs: Sequence[tuple[str, str]]) -> list[str]:
        return [
            f"rm -rf {base}/merged",
            *(
                f"ostree checkout --repo={base}/repo -H --union --fsync=false layer/{diff} {base}/merged"
                for _, diff in pairs
            ),
            f"ostree commit --repo={base}/repo --no-bindings --link-checkout-speedup"
            f" --tree=dir={base}/merged --branch=image",
        ]

    ostree = shell(f"ostree init --repo={base}/repo --mode=bare", *commit(old), *merge(old))
    unpack = [
        f"{DECODER[compression]} {blob} | tar -C {base}/tree --xattrs --xattrs-include='*' --numeric-owner -xpf -"
        for blob, _ in old
    ]
    changed = [pair for pair in new if pair not in old]
    return [
        Case(f"cold {compression} bootc", switch, before=first),
        Case(f"cold {compression} podman", pull, before=first),
        Case(f"cold {compression} ostree", ostree),
        Case(f"cold {compression} unpack only", shell(f"mkdir {base}/tree", *unpack)),
        Case(f"update {compression} bootc", [bootc, "upgrade", *host], [switch], second),
        Case(f"update {compression} podman", pull, [pull], second),
        Case(f"update {compression} ostree", shell(*commit(changed), *merge(new)), [ostree]),
        Case(f"check {compression} bootc", [bootc, "upgrade", "--check", *host], [switch], first),
        Case(f"check {compression} podman", pull, [pull], first),
    ]


def ready(case: Case, disk: Disk, registry: Registry, compression: str) -> None:
    """The state before a measured command: a fresh file system, and on it what the case builds on."""
    disk.fresh()
    registry.move(f"os/{compression}", "v1", "moving")
    for command in case.prepare:
        execute(command)
    case.before()


def median(case: Case, what: str) -> float:
    """The median of one figure over a case's runs."""
    return float(statistics.median(getattr(run, what) for run in case.runs))


# What the project promises: (work, figure, peer, at most this times the peer's)
MARKS = [
    ("cold", "cpu", "podman", 0.7),
    ("cold", "cpu", "ostree", 0.7),
    ("cold", "wall", "podman", 0.5),
    ("cold", "wall", "ostree", 0.5),
    ("update", "cpu", "podman", 0.5),
    ("update", "cpu", "ostree", 0.5),
    ("update", "wall", "podman", 0.5),
    ("update", "wall", "ostree", 0.5),
]
PSS_MARK = 150.0


def report(all_cases: dict[str, Case], requests: dict[str, list[str]]) -> list[str]:
    """The result as Markdown lines."""
    lines = [
        "| work | contender | CPU s | user | system | durable wall s | written MB | peak PSS MB (processes) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in all_cases.values():
        if not case.runs:
            continue
        work, compression, contender = case.name.split(" ", 2)
        figures = " | ".join(
            f"{median(case, what):.2f}" for what in ("cpu", "user", "system", "wall")
        )
        memory = f"{case.pss:.0f} ({case.processes})" if case.pss else ""
        lines.append(
            f"| {work}, {compression} | {contender} | {figures} | {median(case, 'written'):.0f} | {memory} |"
        )
    lines += ["", "| bootc against | CPU | durable wall | mark | |", "|---|---|---|---|---|"]
    for compression in ("gzip", "zstd"):
        for work in ("cold", "update"):
            ours = all_cases.get(f"{work} {compression} bootc")
            for peer in ("podman", "ostree"):
                theirs = all_cases.get(f"{work} {compression} {peer}")
                if not (ours and theirs and ours.runs and theirs.runs):
                    continue
                limits = {what: limit for w, what, p, limit in MARKS if (w, p) == (work, peer)}
                ratio = {
                    what: statistics.median(
                        getattr(a, what) / getattr(b, what)
                        for a, b in zip(ours.runs, theirs.runs, strict=False)
                    )
                    for what in limits
                }
                met = all(ratio[what] <= limit for what, limit in limits.items())
                lines.append(
                    f"| {peer}, {work}, {compression} | {ratio['cpu']:.2f} x | {ratio['wall']:.2f} x |"
                    f" CPU <= {limits['cpu']}, wall <= {limits['wall']} | {'met' if met else 'MISSED'} |"
                )
    lines.append("")
    for case in all_cases.values():
        if case.name.endswith(" bootc") and case.pss:
            lines.append(
                f"Memory, {case.name.removesuffix(' bootc')}: {case.pss:.0f} MB of PSS at most, mark"
                f" {PSS_MARK:.0f}: {'met' if case.pss < PSS_MARK else 'MISSED'}."
            )
    for name, seen in requests.items():
        heads = len(seen) == 1 and seen[0].startswith("HEAD ")
        lines.append(
            f"Requests of {name}: {', '.join(seen) or 'none'}; mark one HEAD: {'met' if heads else 'MISSED'}."
        )
    return lines


def machine() -> str:
    """What the figures come from, in one line."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()},"
        " ext4 on a loop file"
    )


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
        raise SystemExit("bench.py needs root: it makes and mounts file systems")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cache = arguments.cache.resolve()
    images.build(cache)
    scratch = cache / "scratch"
    scratch.mkdir(exist_ok=True)
    peers = Peers(cache / "peers", scratch)
    # The layouts must be at the same path inside too: ostree reads its blobs there
    inside = peers.root / str(cache).lstrip("/")
    inside.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(scratch / "registry", ignore_errors=True)
    all_cases: dict[str, Case] = {}
    requests: dict[str, list[str]] = {}
    with (
        peers.mounted(),
        Disk(scratch, peers, arguments.size) as disk,
        Registry(scratch) as registry,
    ):
        for compression in DECODER:
            layout = cache / f"oci-{compression}"
            (peers.root / str(layout).lstrip("/")).mkdir(parents=True, exist_ok=True)
            execute(["mount", "--bind", str(layout), str(peers.root / str(layout).lstrip("/"))])
        try:
            for compression in DECODER:
                for version in ("v1", "v1b"):
                    registry.push(
                        cache / f"oci-{compression}", version, f"os/{compression}:{version}"
                    )
                for case in cases(compression, cache, disk, registry, peers):
                    if re.search(arguments.only, case.name):
                        all_cases[case.name] = case
            run_all(all_cases, arguments.n, disk, registry, requests)
        finally:
            for compression in DECODER:
                subprocess.run(
                    ["umount", str(peers.root / str(cache / f"oci-{compression}").lstrip("/"))],
                    check=False,
                )
        versions = ", ".join(f"{name} {peers.version(name)}" for name in ("podman", "ostree"))
    bootc = subprocess.run(
        [PROJECT / ".venv/bin/bootc", "--version"], check=False, capture_output=True, text=True
    )
    python = subprocess.run(
        [PROJECT / ".venv/bin/python", "--version"], check=False, capture_output=True, text=True
    )
    lines = [
        f"Machine: {machine()}. Peers (Debian sid): {versions}. {bootc.stdout.strip()} on {python.stdout.strip()}.",
        f"Medians of {arguments.n} runs, round robin; ratios are medians of paired runs.",
        "",
        *report(all_cases, requests),
    ]
    print("\n".join(lines))
    if arguments.json:
        record: dict[str, Any] = {name: asdict_runs(case) for name, case in all_cases.items()}
        arguments.json.write_text(json.dumps(record, indent=1))


def asdict_runs(case: Case) -> dict[str, Any]:
    """A case's figures for JSON."""
    return {
        "pss_mb": case.pss,
        "processes": case.processes,
        "runs": [asdict(run) for run in case.runs],
    }


def run_all(
    all_cases: dict[str, Case],
    count: int,
    disk: Disk,
    registry: Registry,
    requests: dict[str, list[str]],
) -> None:
    """Every case ``count`` times, round robin, then once more for memory and for the requests of a check."""
    for number in range(count):
        for case in all_cases.values():
            ready(case, disk, registry, case.name.split()[1])
            case.runs.append(measure(case.command, disk, disk.path.parent / "last.log"))
            last = case.runs[-1]
            debian.say(
                f"{number + 1}/{count} {case.name}: cpu {last.cpu:.2f} wall {last.wall:.2f} written {last.written:.0f}"
            )
    for case in all_cases.values():
        ready(case, disk, registry, case.name.split()[1])
        if case.name.startswith("check ") and case.name.endswith(" bootc"):
            with registry.requests() as seen:
                execute(case.command)
            requests[case.name] = seen
        else:
            case.pss, case.processes = peak_memory(case.command)


if __name__ == "__main__":
    main()
