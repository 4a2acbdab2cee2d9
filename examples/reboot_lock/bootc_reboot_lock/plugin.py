"""Hook implementations only; importing this costs nothing, what they need is imported when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootc_core import hookimpl

if TYPE_CHECKING:
    from bootc_core import Context, Phase, Verdict

BOOTC_API = 1
BOOTC_ON_FAILURE = "closed"  # without etcd nobody knows who else is switching


@hookimpl
async def bootc_gate(context: Context, phase: Phase) -> Verdict | None:
    """Hold while the window is closed or another host has the lock; changes nothing."""
    from bootc_reboot_lock.lock import ask

    if phase not in {"fetch", "finalize"}:
        return None
    return await ask(context.config_root, context.started_at)


@hookimpl
async def bootc_before_finalize(context: Context) -> None:
    """Take the lock, or stop the run: another host was faster."""
    from bootc_reboot_lock.lock import take

    await take(context.config_root, context.transaction)


@hookimpl
async def bootc_after_finalize(context: Context) -> None:
    """Offline nothing is rebooted: give the lock back."""
    from bootc_reboot_lock.lock import give_back

    if not context.live:
        await give_back(context.config_root)


@hookimpl
async def bootc_after_boot(context: Context) -> None:
    """The new deployment booted and was found healthy: give the lock back."""
    from bootc_reboot_lock.lock import give_back

    await give_back(context.config_root)
