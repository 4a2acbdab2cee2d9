"""The hooks that an image brings for its own installation: a trust domain apart from those of the site and of the running system.

    IMAGE/usr/lib/bootc/image-hooks.d/gate/NN-name     may this host boot into me?

They are off unless root says ``[plugins] image-hooks = "yes"``, come from an image that was accepted and is staged, are asked last,
and can only refuse or put off. Who runs them contains them (``sandbox``).
"""

from __future__ import annotations

from bootc_core import paths
from bootc_core.errors import PluginError
from bootc_core.fs import atomic
from bootc_core.hooks.manager import Offered
from bootc_core.hooks.offers import BackendOffer
from bootc_core.models.image import StagedDeployment
from bootc_core.models.sysroot import Sysroot


def unpack_image_hooks(
    sysroot: Sysroot, backend: Offered[BackendOffer], staged: StagedDeployment
) -> str:
    """Copy the hooks of a staged image to where they can be run; the directory, or "" if it has none.

    Raises:
        PluginError: the backend cannot say.
        StorageError: they cannot be read or written.
    """
    if backend.offer.extract is None:
        raise PluginError(
            f"storage backend {backend.offer.name} cannot show what an image holds",
            reference="no-provider",
            hint='[plugins] image-hooks = "no" goes on without the hooks of images',
        )
    place = sysroot.state / "image-hooks"
    if place.exists():
        atomic.rmtree(place)
    found = backend.offer.extract(sysroot, staged.deployment_id, paths.IMAGE_HOOKS, place)
    return str(place) if found else ""
