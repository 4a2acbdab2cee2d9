"""Hook implementations only; what they do is in ``backend``, imported when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootc_core import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bootc_core.hooks.offers import BackendOffer
    from bootc_core.hooks.specs import Emit
    from bootc_core.models.boot import BootPlan
    from bootc_core.models.context import Context
    from bootc_core.models.image import StagedDeployment, VerifiedImage
    from bootc_core.models.sysroot import Sysroot

BOOTC_API = 1


@hookimpl
def bootc_register_backends() -> Sequence[BackendOffer]:
    """The backend ``plain``."""
    from bootc_core.hooks.offers import BackendOffer
    from bootc_plain_storage import state

    return [
        BackendOffer(
            "plain",
            state.claims,
            state.read_host,
            state.tracked,
            state.bootloader,
            state.manifest,
        )
    ]


@hookimpl
async def bootc_stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment | None:
    """Import the missing layers, lay out a deployment, sync it, name it."""
    from bootc_plain_storage.backend import stage

    return await stage(context, image, sysroot, emit)


@hookimpl
async def bootc_finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment
) -> BootPlan | None:
    """Merge ``/etc``, seed ``/var``; the new one first, then what boots now."""
    from bootc_plain_storage.backend import finalize

    del context
    return finalize(sysroot, staged)


@hookimpl
async def bootc_rollback(sysroot: Sysroot) -> BootPlan | None:
    """The two that are on the menu, the other way round."""
    from bootc_plain_storage.backend import roll_back

    return roll_back(sysroot)


@hookimpl
async def bootc_discard(sysroot: Sysroot, staged: StagedDeployment | None) -> BootPlan | None:
    """Drop the staged one unless it boots, and everything half-made."""
    from bootc_plain_storage.backend import discard

    return discard(sysroot, staged)


@hookimpl
async def bootc_prune(sysroot: Sysroot) -> bool | None:
    """Delete deployments that are not on the menu, then layers that no deployment has."""
    from bootc_plain_storage.backend import prune

    prune(sysroot)
    return True
