"""What to do about an interrupted transaction: a pure decision from its journal and from what boots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Recovery:
    """The decision.

    ``discard``: what was staged does not boot; drop it (layers stay). ``finish``: the switch had happened; only cleaning up
    is left. ``none``: nothing had been changed.
    """

    action: Literal["none", "discard", "finish"]
    staged: dict[str, Any] | None = None


def decide(records: Sequence[dict[str, Any]], boots: str | None) -> Recovery:
    """Judge an unfinished journal.

    Args:
        records: of the journal, oldest first; may be empty or cut short.
        boots: identifier of the deployment that boots next, or None.
    """
    staged = next(
        (record["staged"] for record in reversed(records) if record["record"] == "staged"), None
    )
    phases = [record.get("phase") for record in records if record["record"] == "phase"]
    if staged is not None and staged.get("deployment_id") == boots:
        return Recovery("finish", staged)
    if any(record["record"] == "switched" for record in records):
        return Recovery("finish", staged)
    if staged is not None or "stage" in phases or "finalize" in phases or "rollback" in phases:
        return Recovery("discard", staged)
    return Recovery("none")
