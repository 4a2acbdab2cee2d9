"""``bootc install to-disk``: partition, format, mount, deploy, install the bootloader, bring to rest (parity reference, 6.4)."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.errors import StorageError, UsageError
from bootc_core.fs import verity
from bootc_core.models.install import BootTarget, InstallRequest
from bootc_core.models.sysroot import Sysroot
from bootc_install import devices, finish, options, partitions
from bootc_install.options import Options

if TYPE_CHECKING:
    from bootc_core.models.install import Services

_WITH_VERITY: Final = frozenset({"ext4", "btrfs"})


def run(arguments: argparse.Namespace, services: Services) -> int:
    """Install to a disk; exit status 0.

    Raises:
        BootcError: nothing, or a part, was written; says what.
    """
    asked = options.gather(arguments)
    disk = devices.open_disk(arguments.device, loopback=arguments.via_loopback)
    filesystem = _filesystem(arguments, asked)
    setup = _block_setup(arguments, asked)
    size = partitions.parse_size(arguments.root_size) if arguments.root_size else None
    layout = partitions.layout(
        os.uname().machine, asked.backend, encrypted=setup == "tpm2-luks", root_mib=size
    )
    partitions.check_size(layout, disk.size, str(disk.path))
    devices.refuse_in_use(disk)
    if arguments.via_loopback and not arguments.generic_image:
        sys.stderr.write("Note: --via-loopback implies --generic-image: for any machine\n")
    devices.clear(disk, wipe=arguments.wipe)
    discoverable = asked.config.discoverable
    if discoverable is None:
        discoverable = asked.chosen and asked.bootloader == "systemd-boot"
    serial, model = devices.describe(disk)
    print(f"Installing image: {asked.target}")
    print(f"Block setup: {setup}")
    print(f"       Size: {disk.size}")
    print(f"     Serial: {serial}")
    print(f"      Model: {model}")
    print(f" Partitions: {'Discoverable' if discoverable else 'UUID'}", flush=True)
    with ExitStack() as stack:
        place = devices.scratch(stack)
        nodes = devices.partition(disk, layout, stack)
        root_uuid = devices.format_root(nodes["root"], filesystem, "root", force=arguments.wipe)
        root = place / "root"
        devices.mount(nodes["root"], root, filesystem, stack)
        (root / "boot").mkdir()
        _check_verity(asked, root, filesystem)
        esp = place / "esp"
        mounted = False
        if "esp" in nodes:
            devices.format_esp(nodes["esp"])
            (root / "boot/efi").mkdir()
            mounted = devices.mount_esp(nodes["esp"], esp, stack)
        on_esp = asked.bootloader == "systemd-boot"
        arguments_ = ("rw",) if discoverable else (f"root=UUID={root_uuid}", "rw")
        target = partial(
            BootTarget,
            esp if "esp" in nodes else None,
            esp if on_esp else root / "boot",
            root_uuid,
            "" if on_esp else "/boot",
            None if disk.loopback else disk.node,
            asked.generic,
        )
        installed = services.install(
            InstallRequest(
                sysroot=Sysroot(
                    root,
                    esp if on_esp else root / "boot",
                    config_root=arguments.config_root or Path("/"),
                ),
                source=asked.source,
                verify=asked.verify,
                installation=asked.installation(arguments_),
                backend=asked.backend,
                bootloader=asked.bootloader,
                target=None if asked.bootloader == "none" else target,
                quiet=arguments.quiet,
            )
        )
        print(f"Digest: {installed.digest}")
        finish.write_settings(asked, installed, root, None)
        if "esp" in nodes and not mounted:
            devices.fill_fat(nodes["esp"], esp)
        finish.settle(root)
    print("Installation complete!")
    return 0


def _filesystem(arguments: argparse.Namespace, asked: Options) -> str:
    kind: str | None = arguments.filesystem or asked.config.root_fs_type
    if kind is None and arguments.block_setup is None and asked.config.block is None:
        raise UsageError(
            "No install configuration found, and no filesystem specified",
            reference="no-filesystem",
            hint="--filesystem ext4, or root-fs-type in usr/lib/bootc/install/*.toml of the image",
        )
    if kind is None:
        raise UsageError(
            "No root filesystem specified",
            reference="no-filesystem",
            hint="--filesystem ext4",
        )
    return kind


def _block_setup(arguments: argparse.Namespace, asked: Options) -> str:
    allowed = asked.config.block or ("direct",)
    chosen: str = arguments.block_setup or allowed[0]
    if asked.config.block is not None and chosen not in allowed:
        raise UsageError(
            f"Block setup {chosen} is not enabled in installation config",
            expected=", ".join(allowed),
        )
    return chosen


def _check_verity(asked: Options, root: Path, filesystem: str) -> None:
    """Refuse a root on which images could be changed unnoticed, unless that was accepted."""
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
