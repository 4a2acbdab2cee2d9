"""Which partition the running host boots from, and where to reach it.

    systemd-boot, grub-cc    the ESP: the partition that the boot loader says it was started from, else the one with
                             the type of an ESP on the disk that holds the root file system
    anything else            /boot where that is mounted, else /sysroot/boot

It may be mounted anywhere, or not at all (then an automount may stand in its place); so it is looked for by device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.errors import BootError, StorageError
from bootc_core.fs import mounts
from bootc_core.host.environment import command_line

_VARIABLES: Final = "sys/firmware/efi/efivars"
_VENDOR: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # of the Boot Loader Interface
_ESP_TYPE: Final = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_OURS: Final = Path("/run/bootc/esp")  # mounted there in our own namespace only


def loader_variable(name: str, root: Path = Path("/")) -> str | None:
    """A text that the boot loader left (Boot Loader Interface), or None."""
    try:
        with (root / _VARIABLES / f"{name}-{_VENDOR}").open("rb") as file:
            data = file.read(limits.SETTINGS_FILE_BYTES)
    except OSError:
        return None
    return data[4:].decode("utf-16-le", "replace").split("\0")[0] or None


def uses_esp(root: Path = Path("/")) -> bool:
    """Does the running boot loader read its entries from the ESP?"""
    info = (loader_variable("LoaderInfo", root) or "").lower()
    return "systemd-boot" in info or "grub cc" in info


def is_counted(root: Path = Path("/")) -> bool:
    """Does the boot loader count this boot, and take another deployment when its tries are used up?

    systemd-boot says so in a variable, GRUB's menu on the kernel command line.
    """
    if loader_variable("LoaderBootCountPath", root) is not None:
        return True
    return any(one.key == "bootc.counted" for one in command_line(root).parameters)


def _disks(device: str, root: Path) -> Iterator[Path]:
    """Directories in sysfs of the disks below a block device (``major:minor``), partitions and stacked devices followed."""
    place = root / "sys/dev/block" / device
    if not place.exists():
        return
    place = Path(os.path.realpath(place))
    if (place / "partition").exists():
        place = place.parent
    below = sorted((place / "slaves").iterdir()) if (place / "slaves").is_dir() else []
    if not below:
        yield place
    for one in below:
        try:
            number = (one / "dev").read_text().strip()
        except OSError:
            continue
        yield from _disks(number, root)


def _kind_of(device: str, root: Path) -> str | None:
    """The partition's type GUID, as udev knows it."""
    try:
        text = (root / "run/udev/data" / f"b{device}").read_text("utf-8", "replace")
    except OSError:
        return None
    key = "E:ID_PART_ENTRY_TYPE="
    return next((line[len(key) :] for line in text.splitlines() if line.startswith(key)), None)


def find_esp(root_device: str, root: Path = Path("/")) -> str | None:
    """``major:minor`` of the ESP, or None.

    Args:
        root_device: ``major:minor`` of the file system that holds the deployments.
        root: where /sys, /dev and /run are looked for.
    """
    if (uuid := loader_variable("LoaderDevicePartUUID", root)) is not None:
        try:
            info = (root / "dev/disk/by-partuuid" / uuid.lower()).stat()
            return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
        except OSError:
            pass
    for disk in _disks(root_device, root):
        for part in sorted(disk.iterdir()):
            if not (part / "partition").exists():
                continue
            device = (part / "dev").read_text().strip()
            if _kind_of(device, root) == _ESP_TYPE:
                return device
    return None


def _node(device: str, root: Path) -> str:
    place = root / "sys/dev/block" / device
    return f"/dev/{Path(os.path.realpath(place)).name}"


def is_read_only_medium(device: str, root: Path = Path("/")) -> bool:
    """Does the block device itself refuse writing, as a live ISO's does?"""
    try:
        return (root / "sys/dev/block" / device / "ro").read_text().strip() == "1"
    except OSError:
        return False


def device_of(path: Path, table: Sequence[mounts.Mount]) -> str:
    """``major:minor`` of the block device that holds ``path``; btrfs and others number their files otherwise than their device."""
    info = path.stat()
    device = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
    mount = mounts.at(table, str(path))
    if os.major(info.st_dev) == 0 and mount is not None and mount.source.startswith("/dev/"):
        try:
            node = Path(mount.source).stat()
        except OSError:
            return device
        if stat.S_ISBLK(node.st_mode):
            return f"{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}"
    return device


def boot_directory(
    sysroot: Path, table: Sequence[mounts.Mount], *, write: bool, root: Path = Path("/")
) -> Path:
    """The directory with the boot entries of the running host, mounted in this process's namespace if need be.

    Raises:
        BootError: there is no ESP although the boot loader reads one.
        StorageError: it cannot be mounted.
    """
    if not uses_esp(root):
        plain = root / "boot" if mounts.at(table, "/boot") else sysroot / "boot"
        if not (plain / "loader/entries").exists() and (sysroot / "boot/loader/entries").exists():
            plain = (
                sysroot / "boot"
            )  # systemd may show the ESP at /boot, which is not where GRUB reads
        if (plain / "loader/entries").exists() or not sysroot.exists():
            return _prepared(plain, write=write)
        # No variables of firmware (or a loader that sets none): entries on an ESP count where there are no others.
        device = find_esp(device_of(sysroot, table), root)
        if device is None:
            return _prepared(plain, write=write)
    else:
        device = find_esp(device_of(sysroot, table), root)
        if device is None:
            raise BootError(
                "the EFI system partition cannot be found",
                reference="no-esp",
                expected="the partition that LoaderDevicePartUUID names, or one of its type on the system disk",
                hint="check with: bootctl status",
            )
    mounted = [
        one for one in table if one.device == device and one.root == "/" and one.kind != "autofs"
    ]
    if mounted:
        return _prepared(Path(mounted[-1].target), write=write)
    _OURS.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC | (0 if write else mounts.RDONLY)
    mounts.mount(_node(device, root), _OURS, "vfat", flags, "umask=0077,shortname=winnt")
    return _OURS


def _prepared(directory: Path, *, write: bool) -> Path:
    if write and directory.is_dir() and os.statvfs(directory).f_flag & os.ST_RDONLY:
        mounts.make_writable(directory)
    return directory


def check_medium(sysroot: Path, table: Sequence[mounts.Mount]) -> bool:
    """Is the physical root on a medium that cannot be written?"""
    try:
        return is_read_only_medium(device_of(sysroot, table))
    except OSError as problem:
        raise StorageError(
            f"{sysroot} cannot be looked at",
            reference="io-error",
            found=problem.strerror,
            catalogue="IO",
        ) from problem
