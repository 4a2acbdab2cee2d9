"""What the hooks do: ask, take, give back. Requests run on threads, so that a run can be stopped meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import trio

from bootc_core import Hold, Proceed, Verdict
from bootc_core.errors import HookError
from bootc_reboot_lock import etcd
from bootc_reboot_lock.settings import load, opens

_SHORTEST = timedelta(seconds=1)


async def ask(config_root: str, now: datetime) -> Verdict:
    """May this host switch now?"""
    settings = load(config_root)
    until = opens(settings, now)
    if until is not None:
        return Hold(until, "outside the maintenance window")
    found = await trio.to_thread.run_sync(
        etcd.holder, settings.endpoint, settings.key, abandon_on_cancel=True
    )
    if found is None or found.host == settings.host:
        return Proceed()
    end = datetime.now(UTC) + max(timedelta(seconds=found.seconds), _SHORTEST)
    return Hold(end, f"{found.host} is switching")


async def take(config_root: str, transaction: str) -> None:
    """Take the lock.

    Raises:
        HookError: another host was faster.
    """
    del transaction  # the lock belongs to the host: an interrupted run's successor has it still
    settings = load(config_root)
    other = await trio.to_thread.run_sync(
        etcd.acquire,
        settings.endpoint,
        settings.key,
        settings.host,
        settings.lease,
        abandon_on_cancel=True,
    )
    if other is not None:
        raise HookError(
            f"{other.host} has the lock {settings.key}",
            reference="reboot-locked",
            hint=f"its lease has {other.seconds} s left; run the command again then",
        )


async def give_back(config_root: str) -> None:
    """Give the lock back; one that is not ours stays."""
    settings = load(config_root)
    await trio.to_thread.run_sync(
        etcd.release, settings.endpoint, settings.key, settings.host, abandon_on_cancel=True
    )
