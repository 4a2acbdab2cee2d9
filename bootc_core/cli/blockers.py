"""``bootc why-not``: everything that stands against an update now, one line each, with its owner and its end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from bootc_core.cli import common
from bootc_core.cli.checking import checking_context
from bootc_core.engine import holds, journal, plan
from bootc_core.engine.lock import exclusive
from bootc_core.engine.notice import read_notice
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import BootcError, TransactionError, printable
from bootc_core.hooks.calls import Hooks
from bootc_core.hooks.manager import Plugins
from bootc_core.models.context import Phase, PriorVerdict
from bootc_core.models.holds import stamp
from bootc_core.models.verdict import Deny, Hold, told

_PHASES = (Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.FINALIZE)


@dataclass(frozen=True, slots=True)
class Blocker:
    """One thing in the way; ``end`` is a time, or what ends it."""

    owner: str
    what: str
    reason: str
    end: str


def show(arguments: argparse.Namespace) -> int:
    """Print the blockers; exit status 0 if there is none, 1 otherwise.

    Raises:
        BootcError: the host cannot be looked at.
    """
    _, plugins, storage = common.existing(arguments, write=True)  # it tries the lock
    import trio

    found = [*_missing(plugins), *_state(storage), *trio.run(_gates, storage, plugins)]
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=2) + "\n")
    elif not found:
        sys.stdout.write("Nothing stands against an update.\n")
    for one in () if arguments.json else found:
        sys.stdout.write(f"{one.owner}: {one.what}: {printable(one.reason)}; ends: {one.end}\n")
    return 1 if found else 0


def _missing(plugins: Plugins) -> Iterator[Blocker]:
    for info in plugins.infos:
        if info.state == "missing" and info.place == "required":
            yield Blocker(
                "administrator",
                "requires a plugin",
                f"{info.source.name} is not loaded",
                "when it is installed, or [plugins] required does not name it",
            )


def _state(storage: Storage) -> Iterator[Blocker]:
    try:
        with exclusive(storage.sysroot, "why-not"):
            pass
    except TransactionError as problem:
        yield Blocker("bootc", "another run", problem.found or problem.message, "when it has ended")
    except BootcError as problem:
        yield Blocker("bootc", "the lock", problem.message, "when that is repaired")
    try:
        journal.unfinished(storage.sysroot.state / "journal")
    except TransactionError as problem:
        yield Blocker("bootc", "newer state", problem.message, problem.hint or "never by itself")
    notice = read_notice(storage)
    if notice is not None and notice.locked:
        yield Blocker(
            "administrator",
            "downloaded only",
            "a staged deployment waits",
            "bootc upgrade --from-downloaded",
        )


async def _gates(storage: Storage, plugins: Plugins) -> list[Blocker]:
    host = storage.read_host(lambda message: None)
    try:
        target = plan.plan_upgrade(host, None, None)
    except BootcError as problem:
        return [Blocker("bootc", "no target", problem.message, problem.hint or "bootc switch")]
    context = checking_context(storage, target, "")
    hooks = Hooks(plugins)
    record = holds.read(storage.sysroot)
    found: list[Blocker] = []
    for phase in _PHASES:
        context = context.model_copy(update={"phase": phase})
        answers = await hooks.gate_answers(context, phase)
        for answer in answers:
            if answer.error is not None:
                said = f"{answer.error.message}" + (
                    f" ({answer.error.found})" if answer.error.found else ""
                )
                found.append(
                    Blocker(answer.plugin, f"broke at {phase.value}", said, "when it is repaired")
                )
        given = [(one.plugin, one.value) for one in answers if one.value is not None]
        verdicts = record.settle(phase.value, given, datetime.now(UTC), plugins.hold_bounds)
        for plugin, verdict in verdicts:
            if isinstance(verdict, Hold):
                found.append(
                    Blocker(plugin, f"holds {phase.value}", verdict.reason, stamp(verdict.until))
                )
            elif isinstance(verdict, Deny):
                found.append(
                    Blocker(
                        plugin, f"denies {phase.value}", verdict.reason, "when it says otherwise"
                    )
                )
        earlier = [PriorVerdict(plugin=name, phase=phase, **told(v)) for name, v in verdicts]
        context = context.model_copy(update={"verdicts": (*context.verdicts, *earlier)})
    return _joined(found)


def _joined(found: list[Blocker]) -> list[Blocker]:
    """One line for what stands against several phases alike."""
    grouped: dict[tuple[str, str, str], list[Blocker]] = {}
    for one in found:
        key = (one.owner, one.what.partition(" ")[0], one.reason)
        grouped.setdefault(key, []).append(one)
    return [
        Blocker(
            owner,
            f"{what} {'at ' if what == 'broke' else ''}"
            + ", ".join(one.what.rpartition(" ")[2] for one in group),
            reason,
            max(one.end for one in group),
        )
        for (owner, what, reason), group in grouped.items()
    ]
