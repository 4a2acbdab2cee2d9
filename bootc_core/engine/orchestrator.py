"""The three things that change a host, as sequences of phases: deploy an image, finalize what is staged, roll back.

    fetch ─▶ verify ─▶ stage ─▶ finalize ─▶ prune            switch, upgrade
    rollback ─▶ prune                                        rollback

``transaction`` takes the lock, clears up after an interrupted run and delivers events; see ``transaction.py`` for a phase.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import trio

from bootc_core import limits
from bootc_core.engine import journal as journals
from bootc_core.engine.bus import Bus
from bootc_core.engine.lock import exclusive
from bootc_core.engine.notice import drop_notice, read_notice, write_notice
from bootc_core.engine.plan import Target
from bootc_core.engine.sysroots import Storage
from bootc_core.engine.transaction import Transaction, new_transaction_id
from bootc_core.errors import BootcError, TransactionError
from bootc_core.fs import atomic
from bootc_core.hooks.calls import Hooks
from bootc_core.hooks.manager import Plugins
from bootc_core.models import events
from bootc_core.models.context import (
    Context,
    ImageSummary,
    Installation,
    Operation,
    Phase,
    SignatureMode,
)
from bootc_core.models.host import HostStatus
from bootc_core.models.image import FetchedImage, StagedDeployment
from bootc_core.models.notice import StagedNotice
from bootc_core.models.sysroot import Sysroot


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    ``kind``: ``unchanged`` (the image boots already), ``skipped`` (it is not wanted), ``present`` (staged already), ``locked`` and
    ``unlocked`` (a staged
    deployment changed between download-only and not), ``staged`` (download-only), ``queued`` (boots next), ``rolled-back``.
    """

    kind: Literal[
        "unchanged", "skipped", "present", "locked", "unlocked", "staged", "queued", "rolled-back"
    ]
    image: FetchedImage | None = None
    deployment_id: str | None = None
    host_before: HostStatus | None = None
    warnings: tuple[str, ...] = ()


def _summary(host: HostStatus) -> ImageSummary | None:
    image = host.booted.image if host.booted else None
    if image is None:
        return None
    return ImageSummary(
        reference=f"{image.image.transport}:{image.image.image}",
        digest=image.image_digest,
        version=image.version,
    )


def _require_boot_entries(storage: Storage) -> None:
    """Before anything is written: a host that once booted has boot entries, unless its boot partition is not where we look.

    Raises:
        TransactionError: there is none; without this its deployments would count as nobody's.
    """
    sysroot = storage.sysroot
    warnings: list[str] = []
    if storage.bootloader.offer.read_entries(sysroot, warnings.append) or warnings:
        return
    if journals.has_switched(sysroot.state / "journal"):
        raise TransactionError(
            f"{sysroot.boot_dir} has no boot entry of {sysroot.path}",
            reference="no-boot-entries",
            expected="the boot partition that this sysroot was last switched on",
            hint=f"mount it there, or give --boot-dir; to start anew, remove {sysroot.state / 'journal'}",
        )


def _sweep(sysroot: Sysroot) -> None:
    """Remove what a killed write left under its temporary name; backends look after their own directories."""
    for pattern in (f"{atomic.TEMPORARY}*", f"*/{atomic.TEMPORARY}*"):
        for path in sysroot.state.glob(pattern):
            atomic.unlink(path)


@asynccontextmanager
async def transaction(
    plugins: Plugins,
    storage: Storage,
    observers: list[tuple[str, Callable[[events.Event], None]]],
    operation: Operation,
    target: str,
    signature: SignatureMode = SignatureMode.POLICY,
    *,
    reason: str = "",
    override: str = "",
    retain: bool = False,
    install: Installation | None = None,
    quiet: bool = False,
) -> AsyncIterator[tuple[Transaction, HostStatus]]:
    """A locked, recovered sysroot with a running transaction, and the host's status at its beginning.

    What was staged is discarded if the body fails before the switch; the journal is ended in every case that this process
    survives.

    Raises:
        TransactionError: another run holds the lock.
    """
    hooks = Hooks(plugins)
    identifier = new_transaction_id()
    sysroot = storage.sysroot
    context = Context(
        transaction=identifier,
        operation=operation,
        phase=Phase.ROLLBACK if operation is Operation.ROLLBACK else Phase.FETCH,
        sysroot=str(sysroot.path),
        live=sysroot.live,
        config_root=str(sysroot.config_root),
        to_image=ImageSummary(reference=target) if target else None,
        signature=signature,
        started_at=datetime.now(UTC),
        reason=reason,
        override=override,
        retain=retain,
        install=install,
    )
    atomic.mkdir(sysroot.path)
    watching = [] if quiet else hooks.observers()
    with exclusive(sysroot, operation.value), Bus([*observers, *watching]) as bus:
        run = Transaction(hooks, storage, bus, context, quiet=quiet)
        _require_boot_entries(storage)
        _sweep(sysroot)
        await run.recover()
        host = storage.read_host(run.warn)
        run.update(from_image=_summary(host))
        bus.emit(events.TransactionStarted(identifier, operation.value, target))
        try:
            yield run, host
        except BaseException as problem:
            error = problem if isinstance(problem, BootcError) else None
            bus.emit(
                events.TransactionFailed(
                    identifier,
                    error.reference if error else type(problem).__name__,
                    str(error or problem),
                    run.switched,
                )
            )
            raise
        bus.emit(events.TransactionCompleted(identifier, run.switched))


async def deploy(
    run: Transaction,
    host: HostStatus,
    target: Target,
    *,
    download_only: bool = False,
    skip: str | None = None,
) -> Outcome:
    """Bring the host to ``target``: fetch, verify, stage, and (offline, unless ``download_only``) finalize at once.

    ``skip``: digest of an image that is not wanted.
    """
    image = await run.fetch(target)
    if image.digest == skip:
        return Outcome("skipped", image, host_before=host, warnings=tuple(run.warnings))
    notice = read_notice(run.storage)
    if notice is not None and notice.digest == image.digest:
        return await _already_staged(run, host, image, notice, download_only=download_only)
    booted = host.booted.image if host.booted else None
    if (
        target.operation is Operation.UPGRADE
        and booted is not None
        and booted.image_digest == image.digest
    ):
        return Outcome("unchanged", image, host_before=host, warnings=tuple(run.warnings))
    verified = await run.verify(image)
    run.journal = journals.Journal(run.storage.sysroot, run.context.transaction)
    run.journal.begin(target.operation.value, str(target.reference))
    staged: StagedDeployment | None = None
    try:
        staged = await run.stage(verified)
        live = run.storage.sysroot.live
        fresh = StagedNotice(staged, download_only or live, image.digest)
        write_notice(run.storage, fresh)
        if notice is not None and notice.staged.deployment_id != staged.deployment_id:
            await run.discard(notice.staged)
        if not download_only and not live:
            await run.finalize(staged)
    except BaseException:
        if not run.switched:
            await _undo(run, staged)
        raise
    if run.switched:
        await _close(run)
    else:
        run.journal.end("completed")
        if live:
            await run.prune()
        if not download_only:
            await unlock(run, fresh)
    kind: Literal["staged", "queued"] = "staged" if download_only else "queued"
    return Outcome(kind, image, staged.deployment_id, host, tuple(run.warnings))


async def unlock(run: Transaction, notice: StagedNotice) -> None:
    """Let what is staged on the running host boot next: finalized at shutdown, so its gates are asked now.

    Raises:
        Denied, Held: it stays staged and locked, until ``upgrade`` is run again.
    """
    run.update(phase=Phase.FINALIZE)
    run.introduce(notice.staged)
    await run.ask_gates(Phase.FINALIZE)
    write_notice(run.storage, replace(notice, locked=False))


async def finalize_staged(run: Transaction, host: HostStatus, notice: StagedNotice) -> Outcome:
    """Make a staged deployment boot next, without network."""
    run.journal = journals.Journal(run.storage.sysroot, run.context.transaction)
    run.journal.begin(run.context.operation.value, notice.digest)
    run.journal.append("staged", staged=notice.staged.to_json(), keep=True)
    try:
        await run.finalize(notice.staged)
    except BaseException:
        if not run.switched:
            run.journal.end("failed")  # what was staged stays staged
        raise
    await _close(run)
    return Outcome("queued", None, notice.staged.deployment_id, host, tuple(run.warnings))


async def roll_back(run: Transaction, host: HostStatus) -> Outcome:
    """Return to the deployment before, or back again; drops what is staged."""
    run.journal = journals.Journal(run.storage.sysroot, run.context.transaction)
    run.journal.begin("rollback", "")
    if (notice := read_notice(run.storage)) is not None:  # goes with the switch, and not before
        run.journal.append("staged", staged=notice.staged.to_json(), keep=True)
    try:
        name = await run.rollback()
    except BaseException:
        if not run.switched:
            run.journal.end("failed")
        raise
    await _close(run)
    return Outcome("rolled-back", None, name, host, tuple(run.warnings))


async def _already_staged(
    run: Transaction,
    host: HostStatus,
    image: FetchedImage,
    notice: StagedNotice,
    *,
    download_only: bool,
) -> Outcome:
    if download_only:
        if notice.locked:
            return Outcome("present", image, notice.staged.deployment_id, host, tuple(run.warnings))
        write_notice(run.storage, StagedNotice(notice.staged, True, notice.digest))
        return Outcome("locked", image, notice.staged.deployment_id, host, tuple(run.warnings))
    if run.storage.sysroot.live:
        if not notice.locked:
            return Outcome("present", image, notice.staged.deployment_id, host, tuple(run.warnings))
        await unlock(run, notice)
        return Outcome("unlocked", image, notice.staged.deployment_id, host, tuple(run.warnings))
    await run.verify(image)  # a resumed run verifies again
    outcome = await finalize_staged(run, host, notice)
    return Outcome("queued", image, outcome.deployment_id, host, outcome.warnings)


async def _close(run: Transaction) -> None:
    """After the switch: nothing here fails the run."""
    try:
        atomic.unlink(run.storage.sysroot.staged_file)
        if not run.quiet:  # the next run does it
            await run.prune()
        if run.journal is not None:
            run.journal.end("completed")
    except BootcError as problem:
        run.warn(f"the new state is in place, but cleaning up failed: {problem.message}")


async def _undo(run: Transaction, staged: StagedDeployment | None) -> None:
    """Before the switch: drop what the failed run staged. What cannot be dropped now is dropped by the next run."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + limits.FINALIZE_TIMEOUT_S):
        try:
            await run.discard(staged)
            if staged is not None:
                drop_notice(run.storage, staged)
            if run.journal is not None:
                run.journal.end("failed")
        except BootcError as problem:
            run.warn(f"what was staged stays until the next run: {problem.message}")
