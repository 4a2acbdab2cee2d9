"""``bootc install to-disk``: partition, format, mount, deploy, install the bootloader, bring to rest (parity reference, 6.4)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.errors import UsageError
from bootc_core.models.install import BootTarget
from bootc_core.models.sysroot import Sysroot
from bootc_install import deployment, devices, finish, luks, options, partitions
from bootc_install.devices import Disk
from bootc_install.options import Options

if TYPE_CHECKING:
    from bootc_core.models.install import Services

_ENCRYPTED: Final = "tpm2-luks"


def run(arguments: argparse.Namespace, services: Services) -> int:
    """Install to a disk; exit status 0.

    Raises:
        BootcError: nothing, or a part, was written; says what.
    """
    asked = options.gather(arguments)
    disk = devices.open_disk(arguments.device, loopback=arguments.via_loopback)
    filesystem = _filesystem(arguments, asked)
    setup = _block_setup(arguments, asked)
    if setup == _ENCRYPTED:
        luks.require()
    size = partitions.parse_size(arguments.root_size) if arguments.root_size else None
    layout = partitions.layout(
        os.uname().machine, asked.backend, encrypted=setup == _ENCRYPTED, root_mib=size
    )
    partitions.check_size(layout, disk.size, str(disk.path))
    devices.refuse_in_use(disk)
    deployment.check_images(services, asked, Path("/run/bootc/install"))
    devices.clear(disk, wipe=arguments.wipe)
    if arguments.via_loopback and not arguments.generic_image:
        sys.stderr.write("note: --via-loopback installs for any machine, as --generic-image does\n")
    discoverable = asked.config.discoverable
    if discoverable is None:
        discoverable = asked.chosen and asked.bootloader == "systemd-boot"
    _describe(disk, setup, discoverable=discoverable)
    with ExitStack() as stack:
        place = devices.scratch(stack)
        nodes = devices.partition(disk, layout, stack)
        _install(arguments, services, asked, disk, nodes, filesystem, discoverable, place, stack)
    print("Installation complete!")
    return 0


def _install(
    arguments: argparse.Namespace,
    services: Services,
    asked: Options,
    disk: Disk,
    nodes: Mapping[str, str],
    filesystem: str,
    discoverable: bool,
    place: Path,
    stack: ExitStack,
) -> None:
    """Everything between the partition table and the end; ``nodes`` are the partitions by role."""
    node, before = nodes["root"], list[str]()
    if "boot" in nodes:
        node, before = luks.encrypt(node, place, stack)
    root, esp = place / "root", place / "esp"
    root_uuid = devices.format_root(node, filesystem, "root", force=arguments.wipe)
    devices.mount(node, root, filesystem, stack)
    deployment.check_verity(asked, root, filesystem)
    boot, boot_uuid, fstab = root / "boot", root_uuid, None
    boot.mkdir()
    before += ["rw"] if discoverable else [f"root=UUID={root_uuid}", "rw"]
    if "boot" in nodes:
        boot_uuid = devices.format_root(nodes["boot"], filesystem, "boot", force=arguments.wipe)
        devices.mount(nodes["boot"], boot, filesystem, stack)
        before.append(f"boot=UUID={boot_uuid}")
        fstab = f"UUID={boot_uuid} /boot auto ro 0 0\n"
        if asked.backend == "composefs":
            before.append(f"systemd.mount-extra=UUID={boot_uuid}:/boot:auto:ro")
            fstab = None
    mounted = False
    if "esp" in nodes:
        devices.format_esp(nodes["esp"])
        (boot / "efi").mkdir()
        mounted = devices.mount_esp(nodes["esp"], esp, stack)
    on_esp = asked.bootloader == "systemd-boot"
    target = partial(
        BootTarget,
        esp if "esp" in nodes else None,
        esp if on_esp else boot,
        boot_uuid,
        "" if on_esp or "boot" in nodes else "/boot",
        None if disk.loopback else disk.node,
        asked.generic,
    )
    sysroot = Sysroot(root, esp if on_esp else boot, config_root=arguments.config_root or Path("/"))
    installed = deployment.deploy(
        services, asked, sysroot, tuple(before), target, quiet=arguments.quiet
    )
    finish.write_settings(asked, installed, root, fstab)
    if "esp" in nodes and not mounted:
        devices.fill_fat(nodes["esp"], esp)
    if "boot" in nodes:
        finish.settle(boot)
    finish.settle(root)


def _describe(disk: Disk, setup: str, *, discoverable: bool) -> None:
    serial, model = devices.describe(disk)
    print(f"Block setup: {setup}")
    print(f"       Size: {disk.size}")
    print(f"     Serial: {serial}")
    print(f"      Model: {model}")
    print(f" Partitions: {'Discoverable' if discoverable else 'UUID'}", flush=True)


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
            "No root filesystem specified", reference="no-filesystem", hint="--filesystem ext4"
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
