"""How long gates may hold: per source, from the first time that it held on, and never longer than an absolute bound.

A gate is asked again at every attempt, so bounding one answer bounds nothing. What is remembered is when a source began to hold a
phase; it ends when the source lets that phase begin. Pure; ``engine.holds`` keeps the record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from bootc_core import limits
from bootc_core.models.verdict import Hold, Proceed, Verdict

FORMAT: Final = 1
OVERRIDES: Final = 50  # kept for reading, newest last


def stamp(time: datetime) -> str:
    """RFC 3339, UTC, seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class HoldRecord:
    """Since when each source holds, and which holds an administrator overrode.

    Attributes:
        since: ``PLUGIN/PHASE`` to the time of the first hold in a row.
        overrides: time, transaction, source, phase, the hold's reason and the administrator's.
    """

    since: dict[str, datetime] = field(default_factory=dict)
    overrides: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def parse(cls, data: bytes) -> HoldRecord:
        """The record in ``data``; damaged entries are left out: then the bound begins anew."""
        try:
            value: Any = json.loads(data)
            since = value["since"]
            overrides = value["overrides"]
            times = {
                str(key): datetime.fromisoformat(text).astimezone(UTC)
                for key, text in since.items()
            }
            return cls(times, [dict(item) for item in overrides])
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        value = {
            "format": FORMAT,
            "since": {key: stamp(time) for key, time in sorted(self.since.items())},
            "overrides": self.overrides[-OVERRIDES:],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    def settle(
        self,
        phase: str,
        verdicts: Sequence[tuple[str, Verdict]],
        now: datetime,
        bounds: Mapping[str, float],
    ) -> list[tuple[str, Verdict]]:
        """The verdicts with their holds cut at the bound; a hold beyond it is a warning.

        Args:
            phase: that shall begin.
            verdicts: plugin and answer; who gave none does not hold.
            now: with time zone.
            bounds: seconds by plugin; ``limits.HOLD_MAX_S`` is the default and the maximum.
        """
        holding = {f"{plugin}/{phase}" for plugin, said in verdicts if isinstance(said, Hold)}
        for key in [one for one in self.since if one.endswith(f"/{phase}")]:
            if key not in holding:
                del self.since[key]
        settled: list[tuple[str, Verdict]] = []
        for plugin, said in verdicts:
            if not isinstance(said, Hold):
                settled.append((plugin, said))
                continue
            key = f"{plugin}/{phase}"
            first = min(self.since.get(key, now), now)
            self.since[key] = first
            bound = timedelta(seconds=min(bounds.get(plugin, limits.HOLD_MAX_S), limits.HOLD_MAX_S))
            if now >= first + bound:
                settled.append(
                    (
                        plugin,
                        Proceed(
                            f"its hold no longer counts: it has held {phase} since {stamp(first)}, and the bound is "
                            f"{bound.total_seconds() / 3600:g} hours ({said.reason})"
                        ),
                    )
                )
            else:
                settled.append(
                    (plugin, Hold(min(said.until.astimezone(UTC), first + bound), said.reason))
                )
        return settled
