"""Commands of the running host that its units call, at boot and at shutdown."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import trio

from bootc_core import limits
from bootc_core.cli import common, deploy, outputs
from bootc_core.engine import orchestrator
from bootc_core.engine.notice import read_notice
from bootc_core.engine.sysroots import Storage
from bootc_core.engine.transaction import Transaction
from bootc_core.errors import BootcError, TransactionError
from bootc_core.fs import atomic
from bootc_core.hooks.manager import Plugins
from bootc_core.host import health, partitions, power
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Operation
from bootc_core.models.host import HostStatus
from bootc_core.models.image import StagedDeployment

_GOOD = Path("/run/bootc/boot-good")  # the deadline of a counted boot looks for it
_LOCK_WAIT_S = 60.0  # a run that the shutdown is ending has to let go of the lock


def finalize_staged(arguments: argparse.Namespace) -> int:
    """``bootc composefs-finalize-staged``: at shutdown, make what is staged boot next, unless it waits for more.

    Only backend and bootloader are called: no gate, no participant, no observer of others.
    """
    _, plugins, storage = common.existing(arguments, write=True)
    notice = read_notice(storage)
    if notice is None or notice.locked:
        sys.stdout.write(
            "Nothing is staged.\n"
            if notice is None
            else "What is staged waits for bootc upgrade --from-downloaded.\n"
        )
        return 0
    return deploy.run(lambda: _finalize(arguments, plugins, storage))


async def _finalize(arguments: argparse.Namespace, plugins: Plugins, storage: Storage) -> int:
    end = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return await _finalize_once(arguments, plugins, storage)
        except TransactionError as problem:
            if problem.reference != "locked" or time.monotonic() > end:
                raise
            await trio.sleep(limits.RETRY_WAIT_S)


async def _finalize_once(arguments: argparse.Namespace, plugins: Plugins, storage: Storage) -> int:
    async with orchestrator.transaction(
        plugins, storage, outputs.observers(arguments), Operation.FINALIZE, "", quiet=True
    ) as (run, host):
        notice = read_notice(storage)  # again: what was interrupted is gone now
        if notice is None or notice.locked:
            return 0
        update = health.Pending(notice.staged.deployment_id, notice.digest)
        # before the switch: one that never took effect is told by its missing boot entry
        health.note_pending(storage.sysroot, update)
        try:
            await orchestrator.finalize_staged(run, host, notice)
        except BootcError as problem:
            if not run.switched:
                reason = problem.message + (f": {problem.found}" if problem.found else "")
                health.note_failed(storage.sysroot, "finalize", replace(update, reason=reason))
                health.settle(storage.sysroot)
            raise
        sys.stdout.write(f"Boots next: {notice.staged.deployment_id[:12]}\n")
    return 0


def boot_complete(arguments: argparse.Namespace) -> int:
    """``bootc internals boot-complete``: call this boot good, or see to it that it is not the last one.

    Of a deployment that boots for the first time the health checks are run. Fine: its boot entry is not counted any more,
    ``after-boot`` hooks are called, and what nothing needs goes. Not fine: the reason is kept; a counted boot ends with a
    reboot, and after the last try the boot loader takes the deployment before. Where nobody counts, that one boots next at
    once. It finds out here that it was taken, and removes the other.
    """
    _, plugins, storage = common.existing(arguments, write=True)
    failure = deploy.run(lambda: _judge_boot(arguments, plugins, storage))
    if failure is None:
        atomic.mkdir(_GOOD.parent)
        atomic.write_file(_GOOD, b"", sync=False)
        return 0
    sys.stderr.write(f"error: this boot is not healthy: {failure}\n")
    if partitions.is_counted() or deploy.run(
        lambda: _go_back(arguments, plugins, storage, "health", failure)
    ):
        power.reboot()
    return 1


def boot_deadline(arguments: argparse.Namespace) -> int:
    """``bootc internals boot-deadline``: time is up for a new deployment that was not found healthy.

    Exit status 1 has its unit reboot, without stopping services that may be what hangs.
    """
    if partitions.is_counted():
        sys.stderr.write("error: this boot was not found healthy in time\n")
        return 1
    _, plugins, storage = common.existing(arguments, write=True)
    reason = "it did not reach its health checks in time"
    went = deploy.run(lambda: _go_back(arguments, plugins, storage, "boot", reason))
    return 1 if went else 0


async def _go_back(
    arguments: argparse.Namespace,
    plugins: Plugins,
    storage: Storage,
    kind: health.Kind,
    reason: str,
) -> bool:
    """Where the boot loader does not count: make the deployment before boot next; False if this one is not on trial, or alone."""
    async with orchestrator.transaction(
        plugins, storage, outputs.observers(arguments), Operation.ROLLBACK, "", quiet=True
    ) as (run, host):
        update = health.pending(storage.sysroot)
        running = host.booted.deployment_id if host.booted else None
        if update is None or update.deployment != running:
            return False
        if host.rollback is None or host.rollback_queued:
            return False
        await orchestrator.roll_back(run, host)
        health.note_failed(storage.sysroot, kind, replace(update, reason=reason))
        health.settle(storage.sysroot)
    return True


def _boot_order(host: HostStatus) -> tuple[str, ...]:
    """The deployments that have a boot entry, first boots next."""
    slots = [host.booted, host.rollback, *host.other]
    if host.rollback_queued:
        slots[:2] = [host.rollback, host.booted]
    return tuple(slot.deployment_id for slot in slots if slot and slot.deployment_id)


async def _judge_boot(
    arguments: argparse.Namespace, plugins: Plugins, storage: Storage
) -> str | None:
    """Why this boot is no good, or None; what follows from it is done."""
    sysroot = storage.sysroot
    async with orchestrator.transaction(
        plugins, storage, outputs.observers(arguments), Operation.BOOT, ""
    ) as (run, host):
        order = _boot_order(host)
        running = host.booted.deployment_id if host.booted else None
        first = order[0] if order else None
        update = health.pending(sysroot)
        if update is None and running == first and partitions.is_counted():
            image = host.booted.image if host.booted else None
            update = health.Pending(str(running), image.image_digest if image else "")
        taken_back = health.fell_back(update, running, first, order)
        if taken_back is not None:
            kind: health.Kind = "health" if update and update.reason else "boot"
            health.note_failed(sysroot, kind, taken_back)
        if update is not None and (taken_back or update.deployment not in order):
            health.settle(sysroot)
        if update is None or update.deployment != running:
            await _drop_failed(run, storage, order, running)
            return None
        reasons = health.judge(health.run_checks(), health.baseline(sysroot))
        if reasons:
            reason = "; ".join(reasons)
            health.note_pending(sysroot, replace(update, reason=reason))
            return reason
        if running == first:  # else the administrator has decided otherwise meanwhile
            effective = bool(storage.backend.offer.only_bootloaders)
            plan = BootPlan(entries=order[:2], tries=0, effective=effective)
            await run.hooks.switch_boot(storage.bootloader.plugin, run.context, sysroot, plan)
        health.settle(sysroot)
        health.forget_failed(sysroot)
        failed, warnings = await run.hooks.participants("after_boot", run.context)
        for warning in (*warnings, *([failed.error.message] if failed and failed.error else ())):
            run.warn(warning)
        await run.prune()
    sys.stdout.write("This boot is healthy.\n")
    return None


async def _drop_failed(
    run: Transaction, storage: Storage, order: tuple[str, ...], running: str | None
) -> None:
    """Nobody shall go back to what failed by accident. What it wrote to /var stays."""
    failed = health.failed(storage.sysroot)
    if failed is None or not failed.refused or failed.deployment not in order[1:]:
        return
    if failed.deployment == running:
        return
    sys.stdout.write(f"{failed}\n")
    await run.discard(StagedDeployment(storage.backend.offer.name, failed.deployment))
    await run.prune()
