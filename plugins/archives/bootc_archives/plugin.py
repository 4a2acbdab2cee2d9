"""Hook implementations only; what they do is in ``oci_layout``, ``docker_archive`` and ``directory``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import TransportOffer

if TYPE_CHECKING:
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.reference import ImageReference

BOOTC_API = 1

_TRANSPORTS = ("oci", "oci-archive", "docker-archive", "dir")


@hookimpl
def bootc_register_transports() -> Sequence[TransportOffer]:
    """Four transports, one offer."""
    return (TransportOffer("archives", _TRANSPORTS),)


@hookimpl
async def bootc_resolve(reference: ImageReference) -> str | None:
    """Digest of the manifest or index that the reference names now; layers are not read."""
    if reference.transport not in _TRANSPORTS:
        return None
    import trio

    from bootc_archives.fetch import resolve

    return await trio.to_thread.run_sync(resolve, reference, abandon_on_cancel=True)


@hookimpl
async def bootc_fetch(reference: ImageReference) -> FetchedImage | None:
    """The image for this machine; its layers are ranges of the files they are in."""
    if reference.transport not in _TRANSPORTS:
        return None
    import trio

    from bootc_archives.fetch import fetch

    return await trio.to_thread.run_sync(fetch, reference, abandon_on_cancel=True)
