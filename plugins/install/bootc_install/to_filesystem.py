"""``bootc install to-filesystem`` and ``to-existing-root``: file systems that are there already (parity reference, 6.5)."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.errors import StorageError
from bootc_core.fs import atomic
from bootc_core.models.install import BootTarget
from bootc_core.models.kargs import CommandLine
from bootc_core.models.sysroot import Sysroot
from bootc_install import deployment, devices, finish, options, roots
from bootc_install.roots import Filesystem

if TYPE_CHECKING:
    from bootc_core.models.install import Services

_WAIT_S: Final = 20
_HOST: Final = Path("/proc/1/root")
_TARGET: Final = Path("/target")
_CLEANUP: Final = "etc/bootc-destructive-cleanup"


def run(arguments: argparse.Namespace, services: Services) -> int:
    """Install to a mounted file system; exit status 0.

    Raises:
        BootcError: nothing, or a part, was written; says what.
    """
    existing = arguments.action == "to-existing-root"
    asked = options.gather(arguments)
    if existing and arguments.root == _TARGET and not _TARGET.exists():
        _TARGET.mkdir()
        devices.run(["mount", "--rbind", str(_HOST if _HOST.exists() else Path("/")), str(_TARGET)])
    root = roots.check_target(arguments.root)
    ostree = (root / "ostree").is_dir()
    filesystem = roots.inspect(root)
    kind = roots.check_kind(filesystem)
    deployment.check_images(services, asked, root)
    if not arguments.acknowledge_destructive:
        _warn(root)
    _make_room(root, arguments.replace, ostree=ostree)
    with ExitStack() as stack:
        (root / "boot").mkdir(exist_ok=True)
        deployment.check_verity(asked, root, kind)
        esp = _esp(root, filesystem, stack)
        if arguments.replace == "alongside" and esp is not None:
            for path in list(esp.iterdir()):
                atomic.rmtree(path)
        boot = roots.boot_source(
            root, _spec(arguments.boot_mount_spec, asked.config.boot_mount_spec)
        )
        before = roots.root_arguments(
            filesystem,
            _spec(arguments.root_mount_spec, asked.config.root_mount_spec),
            _running() if existing else None,
        )
        if boot is not None:
            before.append(f"boot={boot}")
            if asked.backend == "composefs":
                before.append(f"systemd.mount-extra={boot}:/boot:auto:ro")
        on_esp = asked.bootloader == "systemd-boot"
        if on_esp and esp is None:
            raise StorageError(
                "no EFI system partition is mounted below the target, and its disks have none",
                reference="no-esp",
                expected=f"an ESP at {root}/boot/efi, {root}/efi or {root}/boot",
                hint="mount it there, or give --bootloader grub",
                catalogue="ENV",
            )
        separate = os.path.ismount(root / "boot")
        holder = roots.inspect(root / "boot") if separate else filesystem
        if holder.uuid is None and asked.bootloader == "grub":
            raise StorageError(
                "No uuid for boot/root",
                reference="no-uuid",
                found=holder.source,
                hint="GRUB finds its file system by UUID",
                catalogue="ENV",
            )
        disks = roots.backing_disks(filesystem.source)
        target = partial(
            BootTarget,
            esp,
            esp if on_esp and esp is not None else root / "boot",
            holder.uuid or "",
            "" if separate or on_esp else "/boot",
            disks[0] if len(disks) == 1 else None,
            asked.generic,
        )
        sysroot = Sysroot(
            root,
            esp if on_esp and esp is not None else root / "boot",
            config_root=arguments.config_root or Path("/"),
        )
        installed = deployment.deploy(
            services, asked, sysroot, tuple(before), target, foreign=True, quiet=arguments.quiet
        )
        fstab = (
            f"{boot} /boot auto ro 0 0\n"
            if boot is not None and asked.backend != "composefs"
            else None
        )
        finish.write_settings(asked, installed, root, fstab)
        if existing and arguments.cleanup:
            (root / "etc").mkdir(exist_ok=True)
            atomic.write_file(root / _CLEANUP, b"")
        skip = existing or arguments.replace == "alongside" or arguments.skip_finalize
        if not skip:
            finish.settle(root)
            if boot is not None and separate:
                finish.settle(root / "boot")
    print("Installation complete!")
    return 0


def _spec(flag: str | None, setting: str | None) -> str | None:
    return flag if flag is not None else setting


def _running() -> CommandLine:
    return CommandLine.parse(Path("/proc/cmdline").read_text("utf-8", "replace").strip("\n\0"))


def _warn(root: Path) -> None:
    """Wait before the system that runs is overwritten."""
    try:
        same = root.stat().st_dev == _HOST.stat().st_dev
    except OSError:
        return
    if same:
        sys.stderr.write(
            f"WARNING: this overwrites the booted root file system.\n"
            f"Ctrl-C within {_WAIT_S} s keeps it; --acknowledge-destructive does not wait.\n"
        )
        sys.stderr.flush()
        time.sleep(_WAIT_S)


def _make_room(root: Path, mode: str | None, *, ostree: bool) -> None:
    if mode == "wipe":
        roots.wipe(root)
    elif mode == "alongside":
        roots.clear_boot(root / "boot", keep_loader=ostree)
    else:
        roots.require_empty(root)


def _esp(root: Path, filesystem: Filesystem, stack: ExitStack) -> Path | None:
    """The EFI system partition: mounted below the target, or the first one on its disks, which is mounted then."""
    for place in (root / "boot/efi", root / "efi", root / "boot"):
        if os.path.ismount(place) and roots.inspect(place).kind == "vfat":
            return place
    node = roots.find_esp(roots.backing_disks(filesystem.source))
    if node is None:
        return None
    place = devices.scratch(stack) / "esp"
    if not devices.mount_esp(node, place, stack):
        stack.callback(devices.fill_fat, node, place)
    return place


def finalize(arguments: argparse.Namespace, services: Services) -> int:
    """``bootc install finalize``: an installed root has a deployment; exit status 0.

    Raises:
        StorageError: it has none.
    """
    del services
    root = arguments.root.resolve()
    found = [*root.glob("ostree/deploy/*/deploy/*.0"), *root.glob("state/deploy/*/etc")]
    if not found:
        raise StorageError(
            f"Failed to find deployment in {printable_path(root)}",
            reference="no-deployment",
            expected="ostree/deploy or state/deploy with a deployment",
            catalogue="STATE",
        )
    print(f"Found {len(found)} deployment{'s' if len(found) > 1 else ''}")
    return 0


def printable_path(path: Path) -> str:
    """A path for messages."""
    from bootc_core.errors import printable

    return printable(str(path))
