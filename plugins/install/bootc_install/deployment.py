"""The deployment itself, as all actions make it: the engine's work between the disk's and what is written around it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.errors import StorageError, UnsupportedEnvironmentError
from bootc_core.fs import verity
from bootc_core.models.install import BootTarget, Installed, InstallRequest
from bootc_core.models.sysroot import Sysroot

if TYPE_CHECKING:
    from bootc_core.models.install import Services
    from bootc_install.options import Options

_WITH_VERITY: Final = frozenset({"ext4", "btrfs"})
_BOUND: Final = "usr/lib/bootc/bound-images.d"


def check_images(services: Services, asked: Options, root: Path) -> None:
    """Before anything is destroyed: the source can be fetched and is accepted, and with ``--run-fetch-check`` the target.

    Raises:
        BootcError: they cannot, or are not.
    """
    sysroot = Sysroot(root, root / "boot", config_root=asked.config_root)
    services.check(asked.source, asked.verify, sysroot)
    if asked.fetch_check and asked.target != asked.source:
        services.check(asked.target, asked.signature, sysroot)


def deploy(
    services: Services,
    asked: Options,
    sysroot: Sysroot,
    root_arguments: tuple[str, ...],
    target: Callable[[Callable[[str, Path], bool]], BootTarget],
    *,
    foreign: bool = False,
    quiet: bool = False,
) -> Installed:
    """Deploy what was asked for in a fresh sysroot, and install the bootloader.

    Raises:
        BootcError: see ``Services.install``; also for an image with bound images, which are not installed.
    """
    print(f"Installing image: {asked.target}", flush=True)
    installed = services.install(
        InstallRequest(
            sysroot=sysroot,
            source=asked.source,
            verify=asked.verify,
            installation=asked.installation(root_arguments),
            backend=asked.backend,
            bootloader=asked.bootloader,
            target=None if asked.bootloader == "none" else target,
            foreign=foreign,
            quiet=quiet,
        )
    )
    print(f"Digest: {installed.digest}")
    if asked.bound_images != "skip":
        _refuse_bound_images(installed)
    return installed


def _refuse_bound_images(installed: Installed) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "bound")
        names = os.listdir(place) if installed.extract(_BOUND, place) else []
    if names:
        raise UnsupportedEnvironmentError(
            "the image has bound application images, which this version does not install",
            reference="bound-images",
            found=", ".join(sorted(names)[:5]),
            hint="--bound-images skip leaves them out; the host pulls them when it runs",
        )


def check_verity(asked: Options, root: Path, filesystem: str) -> None:
    """Refuse a root on which images could be changed unnoticed, unless that was accepted.

    Raises:
        StorageError: no fs-verity.
    """
    if asked.backend != "composefs" or asked.missing_verity or filesystem not in _WITH_VERITY:
        return
    if not verity.supported(root, "sha512"):
        raise StorageError(
            "fs-verity is not available for the new root",
            reference="no-verity",
            expected=f"{filesystem} with fs-verity, by a kernel that has it",
            found=f"the running kernel {os.uname().release} refuses",
            hint="--allow-missing-verity installs a host that boots without it",
            catalogue="ENV",
        )
