"""What a gate answers: proceed, wait, or stop."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Proceed:
    """Nothing against it; ``warning`` is shown and recorded."""

    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now: ask again at ``until`` (with time zone). Bounded by ``limits.HOLD_MAX_S``."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Deny:
    """No."""

    reason: str


Verdict: TypeAlias = Proceed | Hold | Deny


def told(verdict: Verdict) -> dict[str, Any]:
    """The verdict in words, for records and messages: ``verdict``, ``reason``, ``until``."""
    match verdict:
        case Proceed():
            return {"verdict": "proceed", "reason": verdict.warning or ""}
        case Hold():
            return {"verdict": "hold", "reason": verdict.reason, "until": verdict.until}
    return {"verdict": "deny", "reason": verdict.reason}


def strictness(verdict: Verdict) -> int:
    """0 proceed, 1 hold, 2 deny: the strictest answer of all gates counts."""
    return {Proceed: 0, Hold: 1, Deny: 2}[type(verdict)]
