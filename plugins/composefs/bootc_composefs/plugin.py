"""Hook implementations of the composefs storage backend. Everything heavy is imported inside, since ``status`` loads this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import BackendOffer

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.hooks.specs import Emit
    from bootc_core.models.boot import BootPlan, PresentEntry
    from bootc_core.models.context import Context
    from bootc_core.models.finding import Counted, Finding
    from bootc_core.models.image import FetchedImage, StagedDeployment, VerifiedImage
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot

BOOTC_API: Final = 1


def _check(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> Iterator[Finding | Counted]:
    from bootc_composefs import fsck

    return fsck.check_sysroot(sysroot, entries)


def _extract(sysroot: Sysroot, deployment_id: str, path: str, place: Path) -> bool:
    from bootc_composefs import deployment

    return deployment.extract(sysroot, deployment_id, path, place)


def _export(sysroot: Sysroot, reference: ImageReference, digest: str) -> FetchedImage:
    from bootc_composefs import export

    return export.export(sysroot, reference, digest)


@hookimpl
def bootc_register_backends() -> Sequence[BackendOffer]:
    """The backend ``composefs``."""
    from bootc_composefs import state

    return (
        BackendOffer(
            name=state.NAME,
            claims=state.claims,
            read_host=state.read_host,
            tracked=state.tracked,
            bootloader=state.bootloader,
            manifest=state.manifest,
            check=_check,
            extract=_extract,
            etc=lambda sysroot, name: state.deployment_path(sysroot, name) / "etc",
            finalize_unit="bootc-finalize-staged.service",
            export=_export,
        ),
    )


@hookimpl
async def bootc_stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment:
    """A complete deployment on disk."""
    from bootc_composefs import backend

    return await backend.stage(context, image, sysroot, emit)


@hookimpl
async def bootc_finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
) -> BootPlan:
    """``/etc`` merged; the new entry first."""
    from bootc_composefs import backend

    return await backend.finalize(context, sysroot, staged, emit)


@hookimpl
async def bootc_rollback(context: Context, sysroot: Sysroot) -> BootPlan:
    """The deployment before first."""
    from bootc_composefs import backend

    return await backend.rollback(context, sysroot)


@hookimpl
async def bootc_discard(
    context: Context, sysroot: Sysroot, staged: StagedDeployment | None
) -> BootPlan | None:
    """What boots now, the staged state gone."""
    from bootc_composefs import backend

    return await backend.discard(context, sysroot, staged)


@hookimpl
async def bootc_prune(context: Context, sysroot: Sysroot) -> bool:
    """Nothing left that no deployment needs."""
    from bootc_composefs import backend

    return await backend.prune(context, sysroot)


@hookimpl
async def bootc_repair(
    context: Context,
    image: VerifiedImage,
    sysroot: Sysroot,
    findings: Sequence[Finding],
    emit: Emit,
) -> BootPlan | None:
    """The image whole again."""
    from bootc_composefs import repair

    return await repair.repair(context, image, sysroot, findings, emit)
