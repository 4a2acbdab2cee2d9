"""What to do about an interrupted transaction: a pure decision from its journal and from what boots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Recovery:
    """The decision.

    ``discard``: what was staged does not boot; drop it (layers stay), and without ``staged`` only what is half-made.
    ``finish``: the switch had happened; only cleaning up is left. ``none``: nothing had been changed.
    """

    action: Literal["none", "discard", "finish"]
    staged: dict[str, Any] | None = None


def decide(records: Sequence[dict[str, Any]], boots: str | None) -> Recovery:
    """Judge an unfinished journal.

    Args:
        records: of the journal, oldest first; may be empty or cut short.
        boots: identifier of the deployment that boots next, or None.
    """
    record: dict[str, Any] = next(
        (one for one in reversed(records) if one["record"] == "staged"), {}
    )
    staged = record.get("staged")
    phases = [one.get("phase") for one in records if one["record"] == "phase"]
    if staged is not None and staged.get("deployment_id") == boots:
        return Recovery("finish", staged)
    if any(one["record"] == "switched" for one in records):
        return Recovery("finish", staged)
    if record.get("keep"):  # it had been staged by an earlier run, and stays staged
        return Recovery("discard")
    if staged is not None or "stage" in phases or "finalize" in phases or "rollback" in phases:
        return Recovery("discard", staged)
    return Recovery("none")
