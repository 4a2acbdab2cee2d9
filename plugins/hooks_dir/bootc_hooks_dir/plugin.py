"""Hook implementations only; what they do is in ``run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bootc_core.hooks.offers import SiteHooksOffer
    from bootc_core.models.context import Context, Phase
    from bootc_core.models.verdict import Verdict

BOOTC_API = 1
BOOTC_SAFE_MODE = False  # the scripts are other people's code


async def _take_part(context: Context, *points: str) -> None:
    from bootc_hooks_dir.run import take_part

    await take_part(context, *points)


@hookimpl
def bootc_register_site_hooks() -> Sequence[SiteHooksOffer]:
    """The scripts, for ``bootc hooks``."""
    from bootc_core.hooks.offers import SiteHooksOffer
    from bootc_hooks_dir.discover import POINTS, describe

    return (SiteHooksOffer("scripts", POINTS, describe, _rehearse),)


async def _rehearse(context: Context, point: str) -> Sequence[tuple[str, str, bool]]:
    from bootc_hooks_dir.run import rehearse

    return await rehearse(context, point)


@hookimpl
async def bootc_gate(context: Context, phase: Phase) -> Verdict | None:
    """Ask ``pre-upgrade`` (before the fetch of a switch or upgrade) and ``gate``."""
    from bootc_hooks_dir.run import ask

    return await ask(context, phase)


@hookimpl
async def bootc_before_fetch(context: Context) -> None:
    """Run ``before-fetch``."""
    await _take_part(context, "before-fetch")


@hookimpl
async def bootc_after_fetch(context: Context) -> None:
    """Run ``after-fetch``."""
    await _take_part(context, "after-fetch")


@hookimpl
async def bootc_before_verify(context: Context) -> None:
    """Run ``before-verify``."""
    await _take_part(context, "before-verify")


@hookimpl
async def bootc_after_verify(context: Context) -> None:
    """Run ``after-verify``."""
    await _take_part(context, "after-verify")


@hookimpl
async def bootc_before_stage(context: Context) -> None:
    """Run ``before-stage``."""
    await _take_part(context, "before-stage")


@hookimpl
async def bootc_after_stage(context: Context) -> None:
    """Run ``after-stage``."""
    await _take_part(context, "after-stage")


@hookimpl
async def bootc_before_finalize(context: Context) -> None:
    """Run ``before-finalize``."""
    await _take_part(context, "before-finalize")


@hookimpl
async def bootc_after_finalize(context: Context) -> None:
    """Run ``after-finalize``, and offline ``post-upgrade`` (a live host has yet to boot)."""
    points = ("after-finalize",) if context.live else ("after-finalize", "post-upgrade")
    await _take_part(context, *points)


@hookimpl
async def bootc_before_rollback(context: Context) -> None:
    """Run ``before-rollback``."""
    await _take_part(context, "before-rollback")


@hookimpl
async def bootc_after_rollback(context: Context) -> None:
    """Run ``after-rollback``."""
    await _take_part(context, "after-rollback")


@hookimpl
async def bootc_after_boot(context: Context) -> None:
    """Run ``after-boot`` and ``post-upgrade``: the new deployment booted and was found healthy."""
    await _take_part(context, "after-boot", "post-upgrade")
