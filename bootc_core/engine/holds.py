"""The record of holds, ``SYSROOT/bootc/holds.json``: since when each source holds, and what was overridden by whom and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bootc_core import limits
from bootc_core.fs import atomic
from bootc_core.models.context import Context
from bootc_core.models.holds import HoldRecord, stamp
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.verdict import Hold, Verdict

Verdicts = Sequence[tuple[str, Verdict]]


def read(sysroot: Sysroot) -> HoldRecord:
    """The record; an empty one if there is none."""
    try:
        with (sysroot.state / "holds.json").open("rb") as file:
            return HoldRecord.parse(file.read(limits.SETTINGS_FILE_BYTES))
    except OSError:
        return HoldRecord()


def settle(
    sysroot: Sysroot, context: Context, verdicts: Verdicts, bounds: Mapping[str, float]
) -> Verdicts:
    """The verdicts with bounded holds, remembered; with an override its use is on record before it counts.

    Raises:
        StorageError: the record cannot be written.
    """
    record = read(sysroot)
    before = record.to_bytes()
    settled = record.settle(context.phase.value, verdicts, datetime.now(UTC), bounds)
    if context.override:
        record.overrides += [
            {
                "time": stamp(datetime.now(UTC)),
                "transaction": context.transaction,
                "source": plugin,
                "phase": context.phase.value,
                "hold": said.reason,
                "reason": context.override,
            }
            for plugin, said in settled
            if isinstance(said, Hold)
        ]
    if record.to_bytes() != before and not context.dry_run:
        atomic.write_file(sysroot.state / "holds.json", record.to_bytes())
    return settled
