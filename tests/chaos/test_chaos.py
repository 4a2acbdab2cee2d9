"""A short, representative part of every chaos suite, and that each suite fails on what is broken deliberately.

The whole of them: ``make chaos-kill`` and its kin, see docs/chaos.md.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUBJECTS = {
    "composefs": ROOT / "tests/chaos/composefs_subject.py",
    "ostree": ROOT / "tests/chaos/ostree_subject.py",
    "plain": ROOT / "examples/plain_storage/chaos.py",
}
pytestmark = pytest.mark.root


def chaos(tmp_path, *words, backend="composefs"):
    """Run a suite as a person would; its exit status, its figures by key, and what it printed."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bootc_core.testing.chaos", *map(str, words)),
            *("--subject", SUBJECTS[backend], "--json", figures, "--keep", tmp_path / "keep"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("BOOTC_")},
    )
    found = json.loads(figures.read_text())["suites"] if figures.exists() else []
    return done.returncode, {one["key"]: one for one in found}, done.stdout + done.stderr


@pytest.mark.real
@pytest.mark.parametrize(
    ("suite", "backend", "every", "command"),
    [
        ("kill", "composefs", 40, "collect"),
        ("kill", "ostree", 60, "rollback"),
        ("kill", "plain", 80, "upgrade"),
        ("errno", "composefs", 40, "rollback"),
        ("errno", "plain", 200, "upgrade"),
    ],
)
def test_a_part_of_the_points(suite, backend, every, command, tmp_path):
    words = (suite, "--every", every, "--commands", command)
    status, figures, text = chaos(tmp_path, *words, backend=backend)
    assert status == 0, text
    counts = figures[f"{suite}:{backend}:{command}"]["counts"]
    assert counts["converged"] == counts["cases"] >= 8
    assert counts["calls"] > 60


@pytest.mark.real
def test_some_power_cuts_on_the_real_file_systems(tmp_path):
    words = ("power", "--commands", "upgrade", "--roots", "ext4", "--states", "120")
    status, figures, text = chaos(tmp_path, *words)
    assert status == 0, text
    assert set(figures) == {
        "power:composefs:upgrade:ext4+ext4",
        "power:composefs:upgrade:ext4+vfat",
    }
    for one in figures.values():
        counts = one["counts"]
        assert counts["old"] > 0 < counts["new"]
        assert counts["old"] + counts["new"] == counts["states"] == 60


def test_many_at_once(tmp_path):
    words = ("parallel", "--rounds", "1", "--updaters", "6", "--readers", "3")
    status, figures, text = chaos(tmp_path, *words)
    assert status == 0, text
    (one,) = figures.values()
    assert one["counts"]["won"] <= 1
    assert one["counts"]["reads"] == 24


@pytest.mark.real
@pytest.mark.parametrize(
    ("suite", "defect", "words"),
    [
        ("kill", "no-cleaning", ("--commands", "collect", "--every", "150")),
        ("errno", "errors-ignored", ("--commands", "rollback", "--every", "30")),
        ("power", "no-flush", ("--commands", "upgrade", "--roots", "ext4", "--states", "40")),
        ("parallel", "no-lock", ("--rounds", "1", "--updaters", "5", "--readers", "1")),
    ],
)
def test_what_is_broken_is_found(suite, defect, words, tmp_path):
    status, figures, text = chaos(tmp_path, suite, "--defect", defect, *words, backend="plain")
    assert status == 1, text
    assert sum(len(one["bad"]) for one in figures.values()) > 0


def test_a_case_is_repeated_by_its_identifier(tmp_path):
    status, figures, text = chaos(tmp_path, "--replay", "kill:composefs:rollback:40:all")
    assert status == 0, text
    assert figures["kill:composefs:rollback"]["counts"]["cases"] == 1


def test_the_calls_are_those_that_strace_sees(tmp_path):
    """The count that the sweep relies on, against an independent tracer."""
    script = f"""
import sys
from collections import Counter
from pathlib import Path
from bootc_core.testing.chaos import calls, subject, tracer
from bootc_core.testing.chaos.bench import COMMANDS, Bench
place = Path({str(tmp_path)!r})
bench = Bench(place, subject.load(Path({str(SUBJECTS["composefs"])!r}), place / "installed"))
command = COMMANDS["rollback"]
if sys.argv[1] == "ours":
    found = Counter(call.name for call in calls.trace(bench, command))
    print(*sorted(found.items()), sep="\\n", file=open(place / "ours", "w"))
else:
    bench.prepare(command)
    Path("/proc/self/comm").write_text("begin")  # a mark in the trace
    bench.work(command.name)()
"""
    subprocess.run([sys.executable, "-c", script, "ours"], check=True, timeout=120)
    trace = tmp_path / "trace"
    names = "write,pwrite64,ftruncate,fsync,fdatasync,syncfs,fchmod,rename,renameat,renameat2,mkdir,unlink,unlinkat,rmdir,openat"
    strace = ["strace", "-f", "-y", "-o", trace, "-e", f"trace={names}"]
    subprocess.run([*strace, sys.executable, "-c", script, "run"], check=True, timeout=240)
    lines = trace.read_text().partition('"begin"')[2].splitlines()
    seen = {}
    for line in lines:
        name = line.split("(")[0].split()[-1] if "(" in line else ""
        beneath = f"{tmp_path}/host" in line and "resumed" not in line
        if beneath and (name != "openat" or "O_CREAT" in line or "O_TRUNC" in line):
            seen[name] = seen.get(name, 0) + 1
    ours = dict(ast.literal_eval(line) for line in (tmp_path / "ours").read_text().splitlines())
    assert {name: ours[name] for name in seen} == seen
    assert set(ours) - set(seen) <= {"chmod", "fchmodat"}
