"""Explores the model in ``transaction.pml`` exhaustively with Spin: no error as it is, one at least with each seeded defect.

python docs/model/run.py [--crashes N] [DEFECT ...]     default: 3 crashes, the model itself and all defects
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = Path(__file__).with_name("transaction.pml")
DEFECTS = {
    1: "content is not synced before it gets a name",
    2: "names are not synced before the menu speaks of them",
    3: "boot files and entry are not flushed before the switch",
    4: "nothing is flushed after the switch",
    5: "success is told before the last flush",
    6: "no lock",
    7: "old deployments are pruned before the switch",
    8: "pruning keeps nothing for rollback",
    9: "recovery discards what boots",
    10: "the switch comes before the entry",
    11: "the switch comes before the kernel",
    12: "recovery believes the journal instead of the menu",
    13: "the switch is no single write",
    14: "the order is changed before the boot files are there",
    15: "the entry is flushed, the kernel is not",
    16: "the kernel is flushed, the entry is not",
    17: "pruning takes what rollback returns to",
    18: "the collector does not know the newest image",
    19: "a killed run leaves its lock",
}


def explore(defect: int, crashes: int, place: Path) -> tuple[int, int]:
    """Errors and states."""
    arguments = [f"-DDEFECT={defect}", f"-DCRASHES={crashes}"]
    subprocess.run(["spin", "-a", *arguments, MODEL], cwd=place, check=True, capture_output=True)
    flags = ["-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DNOFAIR", "-DVECTORSZ=2048"]
    subprocess.run(["gcc", *flags, "-o", "pan", "pan.c"], cwd=place, check=True)
    done = subprocess.run(
        ["./pan", "-m200000", "-w22"], cwd=place, check=True, capture_output=True, text=True
    )
    errors = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"(\S+) states, stored", done.stdout)
    if errors is None or states is None or "max search depth too small" in done.stdout:
        raise RuntimeError(done.stdout)
    return int(errors[1]), int(float(states[1]))


def main(argv: list[str] | None = None) -> int:
    """Print a table; 0 if all is as it should be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--crashes", type=int, default=3)
    parser.add_argument("defects", nargs="*", type=int)
    given = parser.parse_args(argv)
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        for defect in [0, *(given.defects or DEFECTS)]:
            errors, states = explore(defect, given.crashes, Path(directory))
            good = (errors > 0) == (defect > 0)
            wrong += not good
            said = "no error" if not errors else "found"
            name = f"defect {defect}: {DEFECTS[defect]}" if defect else "the transaction as it is"
            sys.stdout.write(f"{'ok ' if good else 'BAD'} {said:8} {states:>10} states  {name}\n")
    sys.stdout.write(f"{len(given.defects or DEFECTS)} defects, {wrong} surprises\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
