"""A file system that is mounted already: what it is, what is on it, and what of that may go (parity reference, 6.5)."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import StorageError, printable
from bootc_core.fs import atomic, mounts
from bootc_core.models.kargs import CommandLine, Parameter
from bootc_install import partitions
from bootc_install.devices import run
from bootc_install.parser import FILESYSTEMS

_HARMLESS: Final = frozenset({"lost+found"})
_INHERITED: Final = frozenset({"rootflags"})


@dataclass(frozen=True, slots=True)
class Filesystem:
    """What is mounted at a directory.

    Attributes:
        source: the device, or what the mount calls it.
        kind: ext4, vfat, ...
        uuid: or None.
        subvolume: of btrfs, or None.
    """

    source: str
    kind: str
    uuid: str | None
    subvolume: str | None = None


def inspect(place: Path) -> Filesystem:
    """The file system that holds ``place``.

    Raises:
        StorageError: the programs do not know it.
    """
    columns = "SOURCE,FSTYPE,UUID,FSROOT"
    told = run(["findmnt", "--json", "--output", columns, "--target", str(place)]).stdout
    found: dict[str, Any] = json.loads(told)["filesystems"][0]
    source = str(found["source"]).partition("[")[0]
    uuid = found.get("uuid")
    if not uuid and source.startswith("/dev/"):  # no udev here: ask the device itself
        told = run(["blkid", "-s", "UUID", "-o", "value", source], check=False).stdout
        uuid = told.decode().strip() or None
    subvolume = str(found.get("fsroot") or "/")
    kept = subvolume if found["fstype"] == "btrfs" and subvolume != "/" else None
    return Filesystem(source, str(found["fstype"]), uuid, kept)


def check_target(root: Path) -> Path:
    """The physical root of what is mounted at ``root``: itself, or ``sysroot`` of an ostree host's deployment.

    Raises:
        StorageError: no directory, or nothing is mounted there.
    """
    if not root.is_dir():
        raise StorageError(
            f"Not a directory: {printable(str(root))}", reference="bad-target", catalogue="ENV"
        )
    place = root.resolve()
    if (place / "sysroot/ostree").exists():
        place = place / "sysroot"
    if not os.path.ismount(place):
        raise StorageError(
            f"Not a mountpoint: {printable(str(place))}",
            reference="bad-target",
            hint="mount the file system there that shall be the root",
            catalogue="ENV",
        )
    return place


def check_kind(filesystem: Filesystem) -> str:
    """The type, if hosts can have such a root.

    Raises:
        StorageError: they cannot.
    """
    if filesystem.kind not in FILESYSTEMS:
        raise StorageError(
            f"Unknown filesystem: {printable(filesystem.kind)}",
            reference="bad-filesystem",
            expected=" or ".join(FILESYSTEMS),
            found=printable(filesystem.source),
            catalogue="ENV",
        )
    return filesystem.kind


# --- what is on it ---------------------------------------------------------------------------------------------------------


def require_empty(root: Path) -> None:
    """Refuse a root on which something is, apart from directories for mounts.

    Raises:
        StorageError: names the first thing that is there.
    """
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        if entry.name in _HARMLESS or os.path.ismount(entry.path):
            continue
        if not entry.is_dir(follow_symlinks=False):
            raise _not_empty(f'Non-empty root filesystem; found "{printable(entry.name)}"')
        _require_mounts_only(Path(entry.path))


def _require_mounts_only(directory: Path) -> None:
    entries = sorted(os.scandir(directory), key=lambda one: one.name)
    if not entries:
        raise _not_empty(f"Found empty directory: {printable(directory.name)}")
    for entry in entries:
        if os.path.ismount(entry.path):
            continue
        if not entry.is_dir(follow_symlinks=False):
            raise _not_empty(f"Found entry in {printable(directory.name)}: {printable(entry.name)}")
        _require_mounts_only(Path(entry.path))


def _not_empty(message: str) -> StorageError:
    return StorageError(
        message,
        reference="root-not-empty",
        hint="--replace wipe deletes everything there, --replace alongside keeps all but /boot",
        catalogue="STATE",
    )


def wipe(root: Path) -> None:
    """Delete everything on the root.

    Raises:
        StorageError: something is mounted below it.
    """
    print("Wiping contents of root", flush=True)
    for path in _all_below(root):
        if os.path.ismount(path):
            raise StorageError(
                f"Found unexpected mount point: {printable(str(path))}",
                reference="root-not-empty",
                hint="unmount it",
                catalogue="BUSY",
            )
    for entry in list(os.scandir(root)):
        atomic.rmtree(entry.path)


def _all_below(root: Path) -> Iterator[Path]:
    device = root.stat().st_dev
    for directory, names, _ in os.walk(root):
        for name in list(names):
            path = Path(directory, name)
            yield path
            info = path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_dev != device:
                names.remove(name)


def clear_boot(boot: Path, *, keep_loader: bool) -> None:
    """Delete what is in ``/boot``; mount points stay, and ``loader*`` of an ostree host.

    Raises:
        StorageError: a name that is no text, or something that cannot be removed.
    """
    if not boot.is_dir():
        return
    if os.path.ismount(boot) and os.statvfs(boot).f_flag & os.ST_RDONLY:
        mounts.make_writable(boot)
    for entry in list(os.scandir(boot)):
        if any(0xDC80 <= ord(char) <= 0xDCFF for char in entry.name):
            raise StorageError(
                "a name in /boot is no text",
                reference="bad-boot-name",
                found=printable(entry.name),
                catalogue="CON",
            )
        if os.path.ismount(entry.path) or (keep_loader and entry.name.startswith("loader")):
            continue
        atomic.rmtree(entry.path)


# --- where it is -----------------------------------------------------------------------------------------------------------


def root_arguments(
    filesystem: Filesystem, spec: str | None, inherited: CommandLine | None
) -> list[str]:
    """Kernel arguments that lead to the root.

    Args:
        filesystem: of the root.
        spec: as asked for; empty: none.
        inherited: command line of the running system whose root it is, or None.

    Raises:
        StorageError: the file system has no UUID and nothing else was said.
    """
    if spec == "":
        return ["rw"]
    if spec is not None:
        return [f"root={spec}", "rw"]
    if inherited is not None and (value := inherited.get("root")) is not None:
        kept = [one for one in inherited if _is_inherited(one)]
        return [f"root={value}", *map(str, kept), "rw"]
    if filesystem.uuid is None:
        raise StorageError(
            "No filesystem uuid found in target root",
            reference="no-uuid",
            hint="--root-mount-spec says where the root is",
            catalogue="ENV",
        )
    flags = [f"rootflags=subvol={filesystem.subvolume}"] if filesystem.subvolume else []
    return [f"root=UUID={filesystem.uuid}", *flags, "rw"]


def _is_inherited(parameter: Parameter) -> bool:
    return parameter.key in _INHERITED or parameter.key.startswith("rd.")


def fstab_line(text: str, target: str) -> str | None:
    """The source of ``target`` in an ``fstab`` if it is named by UUID."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 4 and not line.lstrip().startswith("#") and words[1] == target:
            return words[0] if words[0].startswith("UUID=") else None
    return None


def boot_source(root: Path, spec: str | None) -> str | None:
    """How ``/boot`` is mounted: as asked for, as the root's ``fstab`` says, by its UUID; None: it is on the root.

    Raises:
        StorageError: it is a file system of its own without UUID.
    """
    if spec is not None:
        return spec or None
    with contextlib.suppress(OSError):
        text = (root / "etc/fstab").read_text(encoding="utf-8", errors="replace")
        if (found := fstab_line(text, "/boot")) is not None:
            return found
    boot = root / "boot"
    if not boot.is_dir() or not os.path.ismount(boot) or boot.stat().st_dev == root.stat().st_dev:
        return None
    filesystem = inspect(boot)
    if filesystem.uuid is None:
        raise StorageError(
            "No uuid for boot",
            reference="no-uuid",
            found=printable(filesystem.source),
            hint="--boot-mount-spec says where it is",
            catalogue="ENV",
        )
    return f"UUID={filesystem.uuid}"


def backing_disks(source: str) -> list[str]:
    """The whole disks below a device, all of them for volumes that span several."""
    if not source.startswith("/dev/"):
        return []
    columns = ["--json", "--paths", "--list", "--inverse", "-o", "NAME,TYPE"]
    told = run(["lsblk", *columns, source], check=False).stdout
    try:
        devices = json.loads(told)["blockdevices"]
    except (ValueError, LookupError):
        return []
    return list(dict.fromkeys(one["name"] for one in devices if one["type"] in {"disk", "loop"}))


def find_esp(disks: list[str]) -> str | None:
    """The first EFI system partition on these disks."""
    for disk in disks:
        told = run(
            ["lsblk", "--json", "--paths", "--list", "-o", "NAME,PARTTYPE", disk], check=False
        )
        with contextlib.suppress(ValueError, LookupError):
            for one in json.loads(told.stdout)["blockdevices"]:
                if str(one.get("parttype") or "").lower() == partitions.ESP:
                    return str(one["name"])
    return None
