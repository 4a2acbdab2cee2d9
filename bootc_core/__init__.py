"""The names that plugin authors use, loaded on first use (importing this package costs nothing).

``from bootc_core import hookimpl, Context, Phase, Proceed, Hold, Deny`` is all that most plugins need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootc_core.errors import BootcError
    from bootc_core.hooks.markers import API, hookimpl, hookspec
    from bootc_core.models.context import Context, Phase
    from bootc_core.models.events import Event
    from bootc_core.models.image import FetchedImage, PolicyAnswer, VerifiedImage
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.verdict import Deny, Hold, Proceed, Verdict

__version__ = "0.1.0"

_HOMES = {
    "API": "bootc_core.hooks.markers",
    "BootcError": "bootc_core.errors",
    "Context": "bootc_core.models.context",
    "Deny": "bootc_core.models.verdict",
    "Event": "bootc_core.models.events",
    "FetchedImage": "bootc_core.models.image",
    "Hold": "bootc_core.models.verdict",
    "ImageReference": "bootc_core.models.reference",
    "Phase": "bootc_core.models.context",
    "PolicyAnswer": "bootc_core.models.image",
    "Proceed": "bootc_core.models.verdict",
    "Verdict": "bootc_core.models.verdict",
    "VerifiedImage": "bootc_core.models.image",
    "hookimpl": "bootc_core.hooks.markers",
    "hookspec": "bootc_core.hooks.markers",
}

__all__ = [
    "API",
    "BootcError",
    "Context",
    "Deny",
    "Event",
    "FetchedImage",
    "Hold",
    "ImageReference",
    "Phase",
    "PolicyAnswer",
    "Proceed",
    "Verdict",
    "VerifiedImage",
    "__version__",
    "hookimpl",
    "hookspec",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bootc_core' has no attribute {name!r}")
