"""The hooks, in lifecycle order. This file is the contract; ``docs/hooks.md`` is made from it.

An implementation names only the arguments it uses. ``async def`` here means ``async def`` there. None of a provider means "not
mine"; an exception means "it broke"; only gates say "wait" or "stop".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

from bootc_core.hooks.markers import hookspec

if TYPE_CHECKING:
    from bootc_core.hooks.offers import (
        BackendOffer,
        BootloaderOffer,
        PolicyOffer,
        SiteHooksOffer,
        TransportOffer,
    )
    from bootc_core.models.boot import BootPlan
    from bootc_core.models.context import Context, Phase
    from bootc_core.models.events import Event
    from bootc_core.models.finding import Finding
    from bootc_core.models.image import FetchedImage, PolicyAnswer, StagedDeployment, VerifiedImage
    from bootc_core.models.install import BootTarget, CommandOffer
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot
    from bootc_core.models.verdict import Verdict

Emit: TypeAlias = "Callable[[Event], None]"


# --- registration: sync, once, after loading ---------------------------------------------------------------------------


@hookspec
def bootc_register_transports() -> Sequence[TransportOffer]:
    """Transports the plugin serves. Two plugins for one transport are an error naming both. Since API 1."""
    raise AssertionError


@hookspec
def bootc_register_backends() -> Sequence[BackendOffer]:
    """The storage backend the plugin is (at most one a plugin). Since API 1."""
    raise AssertionError


@hookspec
def bootc_register_bootloaders() -> Sequence[BootloaderOffer]:
    """The bootloader the plugin is (at most one a plugin). Since API 1."""
    raise AssertionError


@hookspec
def bootc_register_policies() -> Sequence[PolicyOffer]:
    """The signature policy the plugin is (at most one a plugin). Since API 1."""
    raise AssertionError


@hookspec
def bootc_register_site_hooks() -> Sequence[SiteHooksOffer]:
    """Hooks that sites add without a package: for ``bootc hooks list`` and ``bootc hooks run``. Since API 1."""
    raise AssertionError


@hookspec
def bootc_register_commands() -> Sequence[CommandOffer]:
    """Commands that the plugin adds to the command line; asked when a command is not a built-in one. Since API 1."""
    raise AssertionError


# --- providers: async, only the chosen plugin is called -------------------------------------------------------------------


@hookspec
async def bootc_resolve(context: Context, reference: ImageReference) -> str | None:
    """Digest that the reference has now, by the cheapest means (one HEAD request), nothing fetched.

    Asked by ``upgrade --check`` before anything else. None: the transport cannot tell without fetching.

    Raises:
        TransportError: not found, not permitted, unreachable.
    """
    raise AssertionError


@hookspec
async def bootc_fetch(context: Context, reference: ImageReference) -> FetchedImage | None:
    """Metadata of the image for this machine's platform: index, manifest, configuration, each checked against its digest.

    No layer byte is read here. Called in phase ``fetch``; free of effects on the host, so nothing is to be undone.

    Raises:
        TransportError: the source does not deliver.
        ContentError: it delivers something else than an image for this machine.
    """
    raise AssertionError


@hookspec
async def bootc_verify(context: Context, image: FetchedImage) -> PolicyAnswer | None:
    """One policy's answer. All registered policies are asked, concurrently; any refusal refuses, nobody's acceptance refuses.

    Called in phase ``verify``, also when an interrupted run is resumed. None or ``accept=None``: abstain.
    """
    raise AssertionError


@hookspec
async def bootc_stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment | None:
    """Write a complete deployment beside the others, and sync it; nothing that boots is touched.

    Every layer byte is hashed against its descriptor and diffID before its content gets a final name. Killed at any
    moment, a repetition with the same image converges and fetches no finished layer again. Undone by ``bootc_discard``.

    Raises:
        ContentError: hostile or damaged layers.
        StorageError: space, I/O.
    """
    raise AssertionError


@hookspec
async def bootc_finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
) -> BootPlan | None:
    """Merge ``/etc`` into the staged deployment and say which entries shall boot. Idempotent.

    Live, this runs at shutdown without network. The bootloader then makes the plan effective.

    Raises:
        StorageError: the merge is impossible (conflicts are named).
    """
    raise AssertionError


@hookspec
async def bootc_switch_boot(context: Context, sysroot: Sysroot, plan: BootPlan) -> bool | None:
    """Make the plan effective: the point of no return is one atomic step in here. Idempotent. True: done.

    Raises:
        BootError: before the point of no return only.
    """
    raise AssertionError


@hookspec
async def bootc_install_bootloader(
    context: Context, sysroot: Sysroot, target: BootTarget
) -> bool | None:
    """Put the bootloader's own programs and settings on a disk whose entries were written. Called by an installation only.

    Raises:
        BootError: the image lacks them, or they cannot be written.
    """
    raise AssertionError


@hookspec
async def bootc_rollback(context: Context, sysroot: Sysroot) -> BootPlan | None:
    """The plan that returns to the deployment before (or, when that is queued already, back again).

    Raises:
        StorageError: there is none.
    """
    raise AssertionError


@hookspec
async def bootc_discard(
    context: Context, sysroot: Sysroot, staged: StagedDeployment | None
) -> BootPlan | None:
    """Drop what a failed or superseded run staged; ``None`` for ``staged``: whatever is found half-made. Idempotent.

    Finished layers are kept for the next run. The answer is the plan of what remains (the entries that boot now, without
    the discarded one), which the bootloader then makes effective, so that half-made entries vanish. None: nothing boots yet.
    """
    raise AssertionError


@hookspec
async def bootc_prune(context: Context, sysroot: Sysroot) -> bool | None:
    """Delete what no deployment needs. Called after the switch; a failure only warns. Idempotent."""
    raise AssertionError


@hookspec
async def bootc_repair(
    context: Context,
    image: VerifiedImage,
    sysroot: Sysroot,
    findings: Sequence[Finding],
    emit: Emit,
) -> BootPlan | None:
    """Put back what is damaged or missing of an image that is deployed: ``bootc fsck --repair``, once for each such image.

    What is damaged is replaced only when its replacement is there and was checked: a failure leaves no less than there was.
    Idempotent. The answer is the boot menu as it should be if an entry has to be made again; the bootloader then makes it
    effective. A backend without this hook cannot be repaired, only checked.

    Raises:
        ContentError: hostile or damaged layers.
        TransportError: the source does not deliver.
        StorageError: space, I/O, or the image is not what was deployed.
    """
    raise AssertionError


# --- gates: async, all are asked, the strictest answer counts ---------------------------------------------------------------


@hookspec
async def bootc_gate(context: Context, phase: Phase) -> Verdict | None:
    """May ``phase`` begin? Free of side effects; asked before every phase while the system is up. None means ``Proceed``."""
    raise AssertionError


# --- participants: async, one after the other in alphabetical order of plugins ----------------------------------------------


@hookspec
async def bootc_before_fetch(context: Context) -> None:
    """Before anything is fetched. An error aborts."""


@hookspec
async def bootc_after_fetch(context: Context) -> None:
    """Metadata is there; ``context.to_image`` is complete. An error aborts."""


@hookspec
async def bootc_before_verify(context: Context) -> None:
    """Before the policies are asked. An error aborts."""


@hookspec
async def bootc_after_verify(context: Context) -> None:
    """The image was accepted. An error aborts."""


@hookspec
async def bootc_before_stage(context: Context) -> None:
    """Before the first layer byte. An error aborts."""


@hookspec
async def bootc_after_stage(context: Context) -> None:
    """A complete deployment is on disk, nothing boots it yet. An error aborts and discards it."""


@hookspec
async def bootc_before_finalize(context: Context) -> None:
    """Before ``/etc`` is merged and the boot menu changes; not called at shutdown. An error aborts."""


@hookspec
async def bootc_after_finalize(context: Context) -> None:
    """After the switch; not called at shutdown. An error only warns."""


@hookspec
async def bootc_before_rollback(context: Context) -> None:
    """Before a rollback. An error aborts."""


@hookspec
async def bootc_after_rollback(context: Context) -> None:
    """After a rollback was made effective. An error only warns."""


@hookspec
async def bootc_after_boot(context: Context) -> None:
    """A new deployment has booted and was found healthy. An error only warns."""


@hookspec
def bootc_around_phase(context: Context, phase: Phase) -> AbstractAsyncContextManager[None] | None:
    """A context manager entered around a phase, in process only; entered in call order, left in reverse. None: nothing."""
    raise AssertionError


@hookspec
def bootc_on_event(event: Event) -> None:
    """Every event, in order. Must not block; errors are logged and change nothing."""
