"""Finds the sysroot that a command is about, its backend and its bootloader."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bootc_core import paths
from bootc_core.config import Config
from bootc_core.errors import StorageError, UsageError, printable
from bootc_core.hooks.manager import Offered, Plugins
from bootc_core.hooks.offers import BackendOffer, BootloaderOffer
from bootc_core.models.host import HostStatus
from bootc_core.models.sysroot import Sysroot

# What an empty sysroot may hold: our own state, and what a fresh file system or a mounted boot partition brings.
_HARMLESS = frozenset({paths.STATE, paths.BOOT, "lost+found", "efi"})


@dataclass(frozen=True, slots=True)
class Storage:
    """A sysroot with the providers chosen for it."""

    sysroot: Sysroot
    backend: Offered[BackendOffer]
    bootloader: Offered[BootloaderOffer]

    def read_host(self, warn: Callable[[str], None]) -> HostStatus:
        """Status from the boot entries and the backend's records."""
        return self.backend.offer.read_host(
            self.sysroot, self.bootloader.offer.read_entries(self.sysroot, warn)
        )


def make_sysroot(directory: Path, boot_dir: Path | None, config_root: Path | None) -> Sysroot:
    """The offline sysroot in ``directory``, which may be missing.

    Raises:
        UsageError: it is something else than a directory.
    """
    path = Path(os.path.realpath(directory))
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"{printable(str(directory))} is not a directory", hint="--sysroot takes a directory"
        )
    if path == Path("/"):
        raise UsageError(
            "the root of the running system is not a sysroot",
            hint="--sysroot takes another directory",
        )
    return Sysroot(
        path=path,
        boot_dir=Path(os.path.realpath(boot_dir)) if boot_dir else path / paths.BOOT,
        config_root=Path(os.path.realpath(config_root)) if config_root else Path("/"),
        live=False,
        unprivileged=os.geteuid() != 0,
    )


def open_storage(sysroot: Sysroot, plugins: Plugins, config: Config) -> Storage | None:
    """The existing sysroot with the backend that claims it; None if it is missing, empty or nobody's.

    Raises:
        PluginError: two backends claim it, or its bootloader is not installed.
    """
    backend = plugins.backend_of(sysroot)
    if backend is None:
        return None
    recorded = backend.offer.bootloader(sysroot)
    return Storage(sysroot, backend, plugins.bootloader(recorded or config.bootloader))


def create_storage(
    sysroot: Sysroot,
    plugins: Plugins,
    config: Config,
    *,
    backend: str | None = None,
    bootloader: str | None = None,
    foreign: bool = False,
) -> Storage:
    """The sysroot with its providers, chosen by flag, then configuration, for one that is missing or empty.

    ``foreign``: whatever else is there may stay, since the caller has looked at it.

    Raises:
        StorageError: a non-empty directory that no backend claims, or one of another backend than asked for.
        PluginError: no such provider.
    """
    if (storage := open_storage(sysroot, plugins, config)) is not None:
        if backend is not None and backend != storage.backend.offer.name:
            raise StorageError(
                f"{sysroot.path} belongs to another storage backend",
                reference="other-backend",
                expected=backend,
                found=storage.backend.offer.name,
                hint="leave --backend out, or use another directory",
                catalogue="STATE",
            )
        return storage
    others = set(os.listdir(sysroot.path)) - _HARMLESS if sysroot.path.is_dir() else set()
    if others and not foreign:
        raise StorageError(
            f"{sysroot.path} is not a sysroot",
            reference="foreign-sysroot",
            expected="a sysroot, an empty directory, or one that does not exist yet",
            found=printable(", ".join(sorted(others)[:5]), 200),
            hint="use a new directory; nothing was changed",
            catalogue="STATE",
        )
    chosen = plugins.backend(backend or config.backend)
    only = chosen.offer.only_bootloaders
    if only and bootloader is not None and bootloader not in only:
        raise UsageError(
            f"storage backend {chosen.offer.name} works with the bootloader {' or '.join(only)} only",
            found=printable(bootloader or ""),
            hint="leave --bootloader out",
        )
    name = bootloader or (only[0] if only else config.bootloader)
    return Storage(sysroot, chosen, plugins.bootloader(name))
