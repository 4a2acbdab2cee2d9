"""Hook implementations only: the transport ``containers-storage``, images that podman or buildah keep on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import TransportOffer

if TYPE_CHECKING:
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.reference import ImageReference

BOOTC_API = 1
_TRANSPORT = "containers-storage"


@hookimpl
def bootc_register_transports() -> Sequence[TransportOffer]:
    """The local storage of podman and buildah."""
    return [TransportOffer("containers_storage", (_TRANSPORT,))]


@hookimpl
async def bootc_resolve(reference: ImageReference) -> str | None:
    """Digest of the manifest that is stored under the name now."""
    if reference.transport != _TRANSPORT:
        return None
    from bootc_containers_storage.storage import resolve

    return await resolve(reference)


@hookimpl
async def bootc_fetch(context: Context, reference: ImageReference) -> FetchedImage | None:
    """Manifest and configuration; layers are copied out when the first one is wanted."""
    if reference.transport != _TRANSPORT:
        return None
    from bootc_containers_storage.storage import fetch

    return await fetch(context, reference)
