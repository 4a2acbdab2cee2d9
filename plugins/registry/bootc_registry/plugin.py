"""Hook implementations only: the transport ``registry`` (``docker://``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import TransportOffer

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.hooks.offers import Section
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.reference import ImageReference

BOOTC_API = 1
_TRANSPORT = "registry"


@hookimpl
def bootc_register_transports() -> Sequence[TransportOffer]:
    """Registries that speak the distribution protocol."""
    return [TransportOffer("registry", (_TRANSPORT,), _describe)]


def _describe(root: Path) -> list[Section]:
    from bootc_registry.config import load_registries, registry_files
    from bootc_registry.credentials import describe_auth

    files = [(str(path), "read", "") for path in registry_files(root)]
    return [
        ("registries.conf", load_registries(root).describe()),
        ("registries.conf files", files),
        ("credentials", describe_auth(root)),
    ]


@hookimpl
async def bootc_resolve(context: Context, reference: ImageReference) -> str | None:
    """One HEAD request (and one for a token where the registry wants one)."""
    if reference.transport != _TRANSPORT:
        return None
    from pathlib import Path

    from bootc_registry.fetch import resolve

    return await resolve(Path(context.config_root), reference)


@hookimpl
async def bootc_fetch(context: Context, reference: ImageReference) -> FetchedImage | None:
    """Index, manifest and configuration; blobs come later, from the same endpoint."""
    if reference.transport != _TRANSPORT:
        return None
    from pathlib import Path

    from bootc_registry.fetch import fetch

    return await fetch(Path(context.config_root), reference)
