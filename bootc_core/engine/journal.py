"""What a transaction did, so that the next run understands an interruption.

    SYSROOT/bootc/journal/<transaction>.jsonl      one JSON object a line, appended and fsynced before what it announces
        {"record": "begin", "time": …, "operation": "upgrade", "target": "docker://…", "format": 1}
        {"record": "phase", "phase": "stage"}
        {"record": "hook", "hook": "bootc_before_stage"}      before plugins are called
        {"record": "staged", "staged": {…}}          the StagedDeployment
        {"record": "switching"}                      from here on the boot partition decides what happened
        {"record": "switched"}
        {"record": "end", "outcome": "completed" | "failed" | "recovered"}

The journal explains, it does not decide: recovery looks at what boots. A torn last line is an unfinished append and is ignored.
Transactions are numbered by time, and one process writes at a time (``lock.py``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import TransactionError
from bootc_core.fs import atomic
from bootc_core.models.sysroot import Sysroot

FORMAT: Final = 1
KEPT: Final = 20  # finished transactions that stay for reading

Record = dict[str, Any]


def parse(data: bytes) -> list[Record]:
    """The whole records in ``data``; a torn or damaged line ends them."""
    records: list[Record] = []
    for line in data.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict) or not isinstance(value.get("record"), str):
            break
        records.append(value)
    return records


def unfinished(directory: Path) -> tuple[str, list[Record]] | None:
    """The newest transaction if it has no end, with its records.

    Raises:
        TransactionError: it was written by a newer version of this program.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except FileNotFoundError:
        return None
    if not names:
        return None
    with (directory / names[-1]).open("rb") as file:
        records = parse(file.read(limits.JOURNAL_BYTES))
    if records and records[0].get("format", FORMAT) > FORMAT:
        raise TransactionError(
            f"{directory / names[-1]} was written by a newer version",
            reference="newer-state",
            expected=f"journal format {FORMAT}",
            found=str(records[0].get("format")),
            hint="use that version to change this sysroot; status works with this one",
        )
    if records and records[-1]["record"] == "end":
        return None
    return names[-1].removesuffix(".jsonl"), records


def has_switched(directory: Path) -> bool:
    """Does any transaction that is still recorded say that it made a deployment boot?"""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except OSError:
        return False
    for name in reversed(names):
        with (directory / name).open("rb") as file:
            if any(
                record["record"] == "switched" for record in parse(file.read(limits.JOURNAL_BYTES))
            ):
                return True
    return False


class Journal:
    """The journal of one transaction, open for appending."""

    def __init__(self, sysroot: Sysroot, transaction: str) -> None:
        self.directory = sysroot.state / "journal"
        self.path = self.directory / f"{transaction}.jsonl"
        atomic.mkdir(self.directory, 0o700)

    def append(self, record: str, **fields: Any) -> None:
        """Add a record and bring it to the medium.

        Raises:
            StorageError: it may not be there.
        """
        line = json.dumps({"record": record, **fields}, separators=(",", ":")).encode() + b"\n"
        first = not self.path.exists()
        atomic.announce("write", self.path)
        with atomic.mapped("append to", self.path):
            descriptor = os.open(
                self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if first:
            atomic.fsync(self.directory)

    def begin(self, operation: str, target: str) -> None:
        """The first record."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.append("begin", time=now, operation=operation, target=target, format=FORMAT)

    def end(self, outcome: str) -> None:
        """The last record; old finished journals are removed."""
        self.append("end", outcome=outcome)
        names: Sequence[str] = sorted(
            name for name in os.listdir(self.directory) if name.endswith(".jsonl")
        )
        for name in names[:-KEPT]:
            atomic.unlink(self.directory / name)
