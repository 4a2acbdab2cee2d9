"""What a suite found: counts, and every bad case with the identifier that repeats it."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootc_core import __version__

_SHOWN = 20


@dataclass(slots=True)
class Tally:
    """One row: a suite on one backend and one command.

    Attributes:
        key: ``suite:backend:command``, with what distinguishes it further.
        counts: figures by name, in the order in which they came up.
        bad: (identifier of the case, what is wrong).
        seconds: how long it took.
    """

    key: str
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def fail(self, case: str, problems: Sequence[str], *, kind: str = "bad") -> None:
        """Note a case that is not as it should be."""
        self.counts[kind] += 1
        self.bad.append((case, "; ".join(problems)[:1200]))

    def to_json(self) -> dict[str, Any]:
        """For the file of figures."""
        return {
            "key": self.key,
            "counts": dict(self.counts),
            "bad": [list(one) for one in self.bad],
            "seconds": round(self.seconds, 1),
        }

    def line(self) -> str:
        """One line, while others are still at work."""
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        worst = f"; {self.bad[0][0]}: {self.bad[0][1][:200]}" if self.bad else ""
        return f"{self.key}: {counts} ({self.seconds:.0f} s){worst}"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """The inverse of ``to_json``."""
        return cls(
            value["key"],
            Counter(value["counts"]),
            [(case, text) for case, text in value["bad"]],
            value["seconds"],
        )

    def merge(self, other: Tally) -> None:
        """Add another's counts."""
        self.counts += other.counts
        self.bad += other.bad
        self.seconds = max(self.seconds, other.seconds)


def table(tallies: Sequence[Tally]) -> str:
    """Rows and their sum, for people."""
    columns = list(dict.fromkeys(name for tally in tallies for name in tally.counts))
    total = Tally("all")
    for tally in tallies:
        total.counts += tally.counts
        total.seconds += tally.seconds
    rows = [["", *columns, "seconds"]]
    for tally in [*tallies, *([total] if len(tallies) > 1 else [])]:
        rows.append(
            [tally.key, *(str(tally.counts[name]) for name in columns), f"{tally.seconds:.0f}"]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    bad = [one for tally in tallies for one in tally.bad]
    lines += [f"BAD {case}: {text}" for case, text in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"... and {len(bad) - _SHOWN} more")
    return "\n".join(lines) + "\n"


def write(path: Path, tallies: Sequence[Tally]) -> None:
    """Figures as JSON, with what they were measured on."""
    value = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bootc": __version__,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "suites": [tally.to_json() for tally in tallies],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
