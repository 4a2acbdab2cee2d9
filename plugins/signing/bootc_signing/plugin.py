"""Hook implementations only; what they do is in ``load`` and ``policy``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import PolicyOffer

if TYPE_CHECKING:
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage, PolicyAnswer

BOOTC_API = 1


@hookimpl
def bootc_register_policies() -> Sequence[PolicyOffer]:
    """One policy: ``signing``."""
    return (PolicyOffer("signing"),)


@hookimpl
async def bootc_verify(context: Context, image: FetchedImage) -> PolicyAnswer:
    """What policy.json says, by the name that the administrator gave the image."""
    from pathlib import Path

    import trio

    from bootc_signing.load import decide

    return await trio.to_thread.run_sync(
        decide, Path(context.config_root), image.requested.canonical(), context.signature
    )
