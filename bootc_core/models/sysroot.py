"""The physical root that holds deployments, and where its surroundings are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bootc_core import paths


@dataclass(frozen=True, slots=True)
class Sysroot:
    """A physical root: a mounted disk, an image builder's tree, a user's scratch directory, or ``/sysroot`` of this host.

    Attributes:
        path: absolute, symbolic links resolved.
        boot_dir: stands for the ESP or boot partition.
        config_root: policy, registries, hooks and configuration come from here.
        live: it is the running system's.
        read_only: it is on a medium that cannot be written, such as a live ISO.
        unprivileged: the user is not root; owners and special xattrs of ``etc`` and ``var`` go to ``bootc/owners.json``.
    """

    path: Path
    boot_dir: Path
    config_root: Path = Path("/")
    live: bool = False
    unprivileged: bool = False
    read_only: bool = False

    @property
    def state(self) -> Path:
        """``SYSROOT/bootc``: lock, journal, trust, cache, spool."""
        return self.path / paths.STATE

    @property
    def staged_file(self) -> Path:
        """Where the notice of a staged deployment is kept."""
        return paths.LIVE_STAGED if self.live else self.state / "staged-deployment"
