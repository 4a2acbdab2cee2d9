"""``bootc switch``, ``upgrade`` and ``rollback``: requests to the engine, outcomes to words.

What scripts match is printed in the original's words, results on standard output, talk on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import trio

from bootc_core import config as configs
from bootc_core.cli import checking, common, forecast, outputs, transfers, trust
from bootc_core.cli.checking import checking_context
from bootc_core.engine import orchestrator, plan, sysroots
from bootc_core.engine.notice import read_notice
from bootc_core.engine.orchestrator import Outcome
from bootc_core.engine.sysroots import Storage
from bootc_core.engine.transaction import judge
from bootc_core.errors import (
    BootcError,
    StorageError,
    TransactionError,
    UnsupportedEnvironmentError,
    UsageError,
    VerificationError,
    printable,
)
from bootc_core.hooks.calls import Hooks
from bootc_core.hooks.manager import Plugins
from bootc_core.host import health, power
from bootc_core.models.context import Context, Operation, Phase, SignatureMode
from bootc_core.models.host import HostStatus
from bootc_core.models.image import FetchedImage
from bootc_core.models.oci import Manifest, RawDocument, parse_manifest
from bootc_core.models.reference import ImageReference, Transport
from bootc_core.render import difference, progress, stream
from bootc_core.render.status import to_text
from bootc_core.render.units import size

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PATHS = frozenset({Transport.OCI, Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE, Transport.DIR})


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _single(problem: BaseException) -> BaseException:
    """The error of ours in a nursery's group; the orchestrator's errors come one at a time."""
    while isinstance(problem, BaseExceptionGroup):
        ours = [inner for inner in problem.exceptions if not isinstance(inner, trio.Cancelled)]
        problem = next((inner for inner in ours if isinstance(inner, BootcError)), ours[0])
    return problem


async def _interruptible(work: Callable[[], Awaitable[T]]) -> T:
    """Run ``work``; SIGINT, SIGTERM and SIGHUP cancel it, and it cleans up before it ends."""
    caught: list[int] = []
    result: list[T] = []
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def watch() -> None:
                async for (
                    number
                ) in signals:  # to the end of the cleaning up: a second one must not end that
                    caught.append(number)
                    scope.cancel()

            nursery.start_soon(watch)
            with scope:
                result.append(await work())
            nursery.cancel_scope.cancel()
        if caught:
            with trio.move_on_after(0.01):  # what nobody took would be sent again, and kill us
                async for number in signals:
                    caught.append(number)
    if result:
        return result[0]
    for number in _SIGNALS:  # all is cleaned up: another one must not change how this run ends
        signal.signal(number, signal.SIG_IGN)
    name = signal.Signals(caught[0]).name if caught else "a signal"
    raise TransactionError(
        f"stopped by {name}",
        reference="interrupted",
        hint="nothing was switched; the next run goes on from the layers that are complete",
        catalogue="INTR",
    )


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run a command's asynchronous part: interruptible by signals, one error at a time."""
    try:
        return trio.run(_interruptible, work)
    except BaseExceptionGroup as group:
        raise _single(group) from group


def _check_flags(arguments: argparse.Namespace) -> None:
    if arguments.sysroot is not None and (arguments.apply or arguments.soft_reboot):
        raise UsageError(
            "--apply reboots the running host and cannot be used with --sysroot",
            hint="leave --apply out; what was staged boots next",
        )


def _refused(storage: Storage) -> str | None:
    """Digest of the image that failed on this host and is not offered again."""
    found = health.failed(storage.sysroot)
    return found.digest if found is not None and found.refused else None


@contextlib.contextmanager
def _after_the_switch() -> Iterator[None]:
    """What boots next is decided: an error does not fail the run any more, it is told."""
    try:
        yield
    except BootcError as problem:
        text = f"warning: what boots next is decided, but: {problem.message}: {problem.found}\n"
        stream.tell(sys.stderr, text)


def _settle(storage: Storage, outcome: Outcome | None) -> None:
    """What checks compare with later, while the old system runs; and what was made to boot, until it is found healthy."""
    if outcome is None or outcome.kind not in {"queued", "staged", "unlocked"}:
        return
    live = storage.sysroot.live
    if live:
        health.take_baseline(storage.sysroot)
    # where a unit of ours finalizes, that is when it is noted
    if live and storage.backend.offer.finalize_unit is not None:
        return
    if outcome.kind == "queued" and outcome.image is not None and outcome.deployment_id:
        with _after_the_switch():
            health.note_pending(
                storage.sysroot, health.Pending(outcome.deployment_id, outcome.image.digest)
            )


def _prepare(storage: Storage) -> None:
    """On the running host: what is staged will be finalized at shutdown. Asked for before anything is staged."""
    if storage.sysroot.live and storage.backend.offer.finalize_unit is not None:
        power.start_unit(storage.backend.offer.finalize_unit)


def _apply(arguments: argparse.Namespace, outcome: Outcome | None) -> int:
    """Reboot, if that was asked for and something else boots then.

    Raises:
        UnsupportedEnvironmentError: only userspace was to be restarted, which no storage backend can prepare.
    """
    if outcome is None or outcome.kind in {"unchanged", "skipped", "staged"}:
        return 0
    if arguments.soft_reboot == "required":
        slot = "rollback" if outcome.kind == "rolled-back" else "staged"
        raise UnsupportedEnvironmentError(
            f"Soft reboot was required but {slot} deployment is not soft-reboot capable",
            reference="no-soft-reboot",
            hint="/etc is merged at shutdown, after the next root would be mounted; reboot, or give --soft-reboot=auto",
        )
    if arguments.apply:
        power.reboot()
    return 0


def _mode(host: HostStatus) -> SignatureMode | None:
    for slot in (host.staged, host.booted):
        if slot is not None and slot.image is not None:
            return (
                SignatureMode(slot.signature_mode) if slot.signature_mode else SignatureMode.POLICY
            )
    return None


def _target_signature(target: plan.Target, host: HostStatus) -> SignatureMode:
    """Switched-off verification is kept for the repository it was switched off for, and for no other."""
    if target.signature is not SignatureMode.INSECURE or target.operation is Operation.SWITCH:
        return target.signature
    image = host.spec_image
    same = image is not None and plan.repository_of(plan.reference_of(image)) == plan.repository_of(
        target.reference
    )
    return target.signature if same else SignatureMode.POLICY


def _old_manifest(storage: Storage, host: HostStatus) -> Manifest | None:
    image = host.booted.image if host.booted else None
    if image is None:
        return None
    raw = storage.backend.offer.manifest(storage.sysroot, image.image_digest)
    return (
        parse_manifest(RawDocument("", raw), "the booted image's manifest")
        if raw is not None
        else None
    )


def _show_image(image: FetchedImage) -> None:
    if image.config.version:
        _say(f"  Version: {printable(image.config.version)}")
    _say(f"  Digest: {image.digest}")


def _report(outcome: Outcome, reference: ImageReference, storage: Storage) -> None:
    name = reference.display()
    match outcome.kind:
        case "unchanged":
            _say("No update available.")
        case "skipped":
            _say("No update available.")
            _say(f"The newest image failed on this host: {health.failed(storage.sysroot)}")
            _say("It is taken again with: bootc upgrade --retry-failed")
        case "present":
            _say("Staged update present, not changed")
        case "locked" | "staged":
            _say("Image downloaded, but will not be applied on reboot")
        case "unlocked":
            _say("Staged deployment will now be applied on reboot")
        case _:
            _say(f"Queued for next boot: {name}")
    if outcome.kind in {"queued", "staged"} and outcome.image is not None:
        _show_image(outcome.image)
        if outcome.host_before is not None and outcome.host_before.booted is not None:
            before = outcome.host_before.booted.image
            if before is not None and before.image_digest != outcome.image.digest:
                _say(
                    difference.layers(
                        _old_manifest(storage, outcome.host_before), outcome.image.manifest
                    )
                )


def observers(arguments: argparse.Namespace) -> list[tuple[str, Callable[..., None]]]:
    """Who gets the events: the terminal, and the outputs that ``arguments`` ask for."""
    terminal = sys.stderr.isatty()
    return [
        (
            "terminal",
            progress.observer(
                sys.stderr, quiet=getattr(arguments, "quiet", False), terminal=terminal
            ),
        ),
        *outputs.observers(arguments),
    ]


def switch(arguments: argparse.Namespace) -> int:
    """``bootc switch``."""
    transport = (
        Transport.REGISTRY if arguments.transport == "docker" else Transport(arguments.transport)
    )
    reference = ImageReference.make(transport, arguments.target)
    if transport in _PATHS and not reference.name.startswith("/"):
        # kept with the deployment, and the next upgrade may be run from anywhere
        reference = ImageReference.make(transport, f"{Path.cwd()}/{reference.name}")
    _check_flags(arguments)
    settings, plugins = common.load(arguments)
    transfers.install(arguments, settings)
    checking.check_providers(plugins)
    plugins.transport(reference.transport.value)
    sysroot = common.sysroot_of(arguments, write=True)
    storage = sysroots.create_storage(
        sysroot, plugins, settings, backend=arguments.backend, bootloader=arguments.bootloader
    )
    mode = (
        SignatureMode.INSECURE
        if arguments.no_signature_verification
        else SignatureMode.ENFORCE
        if arguments.enforce_container_sigpolicy
        else SignatureMode.POLICY
    )

    async def work() -> Outcome | None:
        async with orchestrator.transaction(
            plugins,
            storage,
            observers(arguments),
            Operation.SWITCH,
            str(reference),
            mode,
            reason=arguments.reason,
            override=arguments.override_holds,
            retain=arguments.retain,
        ) as (run, host):
            target = plan.plan_switch(
                reference,
                host,
                _mode(host),
                insecure=arguments.no_signature_verification,
                enforce=arguments.enforce_container_sigpolicy,
            )
            if target is None:
                _say("Image specification is unchanged.")
                return Outcome("present") if host.staged else None
            outcome = await orchestrator.deploy(run, host, target)
        _report(outcome, reference, storage)
        return outcome

    _prepare(storage)
    outcome = run(work)
    _settle(storage, outcome)
    return _apply(arguments, outcome)


def _upgrade_flags(arguments: argparse.Namespace) -> None:
    pairs = (
        ("check", "apply"),
        ("check", "soft_reboot"),
        ("check", "download_only"),
        ("check", "from_downloaded"),
        ("apply", "download_only"),
        ("from_downloaded", "download_only"),
    )
    for first, second in pairs:
        if getattr(arguments, first) and getattr(arguments, second):
            one, two = (f"--{name.replace('_', '-')}" for name in (first, second))
            raise UsageError(f"the argument {one} cannot be used with {two}")


def upgrade(arguments: argparse.Namespace) -> int:
    """``bootc upgrade``."""
    _upgrade_flags(arguments)
    _check_flags(arguments)
    _, plugins, storage = common.existing(
        arguments, write=None if getattr(arguments, "check", False) else True
    )
    if arguments.check:
        return run(lambda: _check(arguments, plugins, storage))
    if arguments.from_downloaded:
        _prepare(storage)
        outcome = run(lambda: _from_downloaded(arguments, plugins, storage))
        return _apply(arguments, outcome)
    transfers.install(arguments, configs.load(arguments.config_root or Path("/")))
    checking.check_providers(plugins)

    async def work() -> Outcome:
        seen = storage.read_host(lambda message: None)
        target = plan.plan_upgrade(seen, _mode(seen), arguments.tag)
        async with orchestrator.transaction(
            plugins,
            storage,
            observers(arguments),
            Operation.UPGRADE,
            str(target.reference),
            _target_signature(target, seen),
            reason=arguments.reason,
            override=arguments.override_holds,
        ) as (run, host):
            # planned again under the lock: another run may have changed the host meanwhile
            target = plan.plan_upgrade(host, _mode(host), arguments.tag)
            outcome = await orchestrator.deploy(
                run,
                host,
                target,
                download_only=arguments.download_only,
                skip=None if arguments.retry_failed else _refused(storage),
            )
            if outcome.kind == "present" and arguments.apply:
                await run.ask_gates(Phase.FINALIZE)
        _report(outcome, target.reference, storage)
        return outcome

    _prepare(storage)
    outcome = run(work)
    _settle(storage, outcome)
    return _apply(arguments, outcome)


async def _from_downloaded(
    arguments: argparse.Namespace, plugins: Plugins, storage: Storage
) -> Outcome:
    async with orchestrator.transaction(
        plugins,
        storage,
        observers(arguments),
        Operation.UPGRADE,
        "",
        reason=arguments.reason,
        override=arguments.override_holds,
    ) as (run, host):
        notice = read_notice(storage)
        if notice is None:
            raise UsageError(
                "No staged deployment found",
                reference="nothing-staged",
                hint="bootc upgrade --download-only stages one",
            )
        if not storage.sysroot.live:
            await orchestrator.finalize_staged(run, host, notice)
        elif notice.locked:
            await orchestrator.unlock(run, notice)
        elif arguments.apply:
            await run.ask_gates(Phase.FINALIZE)
    if notice.locked:
        _say("Staged deployment will now be applied on reboot")
    else:
        _say("Staged deployment is already set to apply on reboot")
    return Outcome("present", deployment_id=notice.staged.deployment_id)


async def _tell_acceptance(hooks: Hooks, context: Context, image: FetchedImage) -> None:
    """Say who signed the update, or that it would be refused."""
    found = context.model_copy(update={"phase": Phase.VERIFY, "to_image": image.summary()})
    answers = await trust.ask(hooks, found, image)
    try:
        judge(found, answers)
    except VerificationError as problem:
        _say(f"It would be refused: {printable(problem.found or problem.message, 600)}")
        return
    for _, answer in answers:
        if answer.cryptographic:
            _say(f"  Accepted: {printable(answer.reason, 200)}")


async def _check(arguments: argparse.Namespace, plugins: Plugins, storage: Storage) -> int:
    """Tell whether there is an update: one HEAD request when there is none; changes nothing, takes no lock."""
    host = storage.read_host(lambda message: None)
    target = plan.plan_upgrade(host, _mode(host), arguments.tag)
    name = target.reference.display()
    context = checking_context(storage, target, arguments.reason)
    hooks = Hooks(plugins)
    provider = plugins.transport(target.reference.transport.value).plugin
    digest = await hooks.resolve(provider, context, target.reference)
    if digest is not None and digest == storage.backend.offer.tracked(
        storage.sysroot, target.reference
    ):
        _say(f"No changes in: {name}")
        return 0
    image = await hooks.fetch(provider, context, target.reference)
    booted = host.booted.image if host.booted else None
    if booted is not None and booted.image_digest == image.digest:
        _say(f"No changes in: {name}")
        return 0
    if image.digest == _refused(storage) and not arguments.retry_failed:
        _say(f"No changes in: {name}")
        _say(f"The newest image failed on this host: {health.failed(storage.sysroot)}")
        return 0
    _say(f"Update available for: {name}")
    note = storage.backend.offer.note_update
    if note is not None:
        with contextlib.suppress(StorageError, OSError):  # who cannot write can check
            note(storage.sysroot, target.reference, image)
    _show_image(image)
    await _tell_acceptance(hooks, context, image)
    _say(difference.layers(_old_manifest(storage, host), image.manifest))
    told = forecast.make(storage, host, target, image)
    least = f"{size(told.bytes_least)} to " if told.by_file else ""
    _say(f"Download: {least}{size(told.bytes_plain)}")
    for space in told.spaces:
        if not space.enough:
            _say(
                f"Not enough space for it: {printable(space.path)} has {size(space.free)}, "
                f"up to {size(space.needed)} are needed"
            )
    return 0


def rollback(arguments: argparse.Namespace) -> int:
    """``bootc rollback``."""
    _check_flags(arguments)
    _, plugins, storage = common.existing(
        arguments, write=None if getattr(arguments, "check", False) else True
    )

    async def work() -> Outcome:
        async with orchestrator.transaction(
            plugins, storage, observers(arguments), Operation.ROLLBACK, ""
        ) as (run, host):
            if host.rollback_queued:
                _say("notice: Reverting queued rollback state")
            outcome = await orchestrator.roll_back(run, host)
        after = storage.read_host(lambda message: None)
        _say(f"Next boot: {'current' if host.rollback_queued else 'rollback'} deployment")
        if not storage.sysroot.live and sys.stdout.isatty():
            _say("")
            _say(to_text(after.booted_only()).rstrip())
        return outcome

    outcome = run(work)
    with _after_the_switch():
        health.settle(storage.sysroot)
    return _apply(arguments, outcome)
