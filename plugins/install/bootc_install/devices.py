"""Disks, partitions, file systems and mounts, by the programs that every system has for them.

A file as a disk (``--via-loopback``) is taken apart here: each partition gets a loop device of its own at its offset, so that
neither the kernel's partition scanner nor udev is needed. Everything that was attached or mounted is taken away again by the
``ExitStack`` that a function is given.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import StorageError, UnsupportedEnvironmentError, printable
from bootc_core.fs import mounts
from bootc_core.process import Completed, clean_environment, run_blocking
from bootc_install.partitions import Partition, check_size, script

_TIMEOUT_S: Final = 600.0
_NODE_WAIT_S: Final = 10.0  # for udev to make a partition's device
_RUN: Final = Path("/run")


def run(argv: Sequence[str], *, stdin: bytes | None = None, check: bool = True) -> Completed:
    """Run a program of the system; ``StorageError`` with its last lines if it fails."""
    return run_blocking(
        argv, stdin=stdin, timeout_s=_TIMEOUT_S, check=check, error=StorageError, label=argv[0]
    )


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that is to be partitioned.

    Attributes:
        path: what was named.
        node: the block device, or the file itself with ``loopback``.
        size: bytes.
        loopback: it is a regular file.
    """

    path: Path
    node: str
    size: int
    loopback: bool


def open_disk(path: Path, *, loopback: bool) -> Disk:
    """The disk that the administrator named.

    Raises:
        StorageError: no block device, or, with ``loopback``, no regular file.
    """
    try:
        info = path.stat()
    except OSError as problem:
        raise StorageError(
            f"cannot use {printable(str(path))}",
            reference="bad-disk",
            found=problem.strerror,
            catalogue="ENV",
        ) from None
    if loopback:
        if not stat.S_ISREG(info.st_mode):
            raise StorageError(
                f"Not a regular file (to be used via loopback): {printable(str(path))}",
                reference="bad-disk",
                hint="make one, e.g. truncate -s 10G disk.img",
                catalogue="ENV",
            )
        real = path.resolve()
        return Disk(path, str(real), info.st_size, True)
    if not stat.S_ISBLK(info.st_mode):
        raise StorageError(
            f"Not a block device: {printable(str(path))}",
            reference="bad-disk",
            hint="for a file, add --via-loopback" if stat.S_ISREG(info.st_mode) else None,
            catalogue="ENV",
        )
    node = str(path.resolve())
    size = int(run(["blockdev", "--getsize64", node]).stdout)
    return Disk(path, node, size, False)


def describe(disk: Disk) -> tuple[str, str]:
    """Serial number and model, ``<unknown>`` where there is none."""
    found: dict[str, Any] = {}
    if not disk.loopback:
        told = run(["lsblk", "--json", "--nodeps", "-o", "SERIAL,MODEL", disk.node], check=False)
        with contextlib.suppress(ValueError, LookupError):
            found = json.loads(told.stdout)["blockdevices"][0]
    unknown = "<unknown>"
    return (
        str(found.get("serial") or unknown).strip(),
        str(found.get("model") or unknown).strip(),
    )


def _children(disk: Disk) -> list[str]:
    """Device nodes of the disk's partitions and of what is stacked on them."""
    if disk.loopback:
        return []
    told = run(["lsblk", "--json", "--paths", "--list", "-o", "NAME", disk.node], check=False)
    try:
        devices = json.loads(told.stdout)["blockdevices"]
    except (ValueError, LookupError):
        return []
    return [one["name"] for one in devices if one["name"] != disk.node]


def refuse_in_use(disk: Disk) -> None:
    """Refuse a disk that is read-only, or that something uses: mounts, swap, RAID, volumes, encryption, loop devices.

    Raises:
        StorageError: says who uses it, as far as that can be found out.
    """
    if disk.loopback:
        if not os.access(disk.node, os.W_OK):
            raise _read_only(disk)
        holders = (
            run(["losetup", "--associated", disk.node], check=False).stdout.decode().split(":")
        )
        if holders[0].strip():
            raise _in_use(disk, holders[0].strip())
        return
    if run(["blockdev", "--getro", disk.node]).stdout.strip() == b"1":
        raise _read_only(disk)
    try:
        # The kernel refuses it while the disk or a part of it is claimed, in whatever mount namespace
        os.close(os.open(disk.node, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as problem:
        if problem.errno == errno.EBUSY:
            raise _in_use(disk, ", ".join(_holders(disk))) from None
        raise
    mounted = _mounts_of("/proc/1/mountinfo", disk) | _mounts_of("/proc/self/mountinfo", disk)
    if mounted:
        raise _in_use(disk, ", ".join(sorted(mounted)))


def _in_use(disk: Disk, holders: str) -> StorageError:
    return StorageError(
        f"Device {printable(str(disk.path))} is mounted",
        reference="disk-in-use",
        found=f"used by {printable(holders)}" if holders else "the kernel says that it is in use",
        hint="unmount everything on it, and stop what is stacked on it (swap, volumes, RAID, loop devices)",
        catalogue="BUSY",
    )


def _read_only(disk: Disk) -> StorageError:
    return StorageError(
        f"{printable(str(disk.path))} is read-only", reference="disk-read-only", catalogue="RO"
    )


def _holders(disk: Disk) -> list[str]:
    """Mount points, and what is stacked on the disk."""
    found = _mounts_of("/proc/1/mountinfo", disk) | _mounts_of("/proc/self/mountinfo", disk)
    for node in (disk.node, *_children(disk)):
        place = Path("/sys/class/block", Path(node).name, "holders")
        with contextlib.suppress(OSError):
            found |= {entry.name for entry in place.iterdir()}
    with contextlib.suppress(OSError):
        nodes = {disk.node, *_children(disk)}
        swaps = Path("/proc/swaps").read_text().splitlines()[1:]
        found |= {f"swap on {line.split()[0]}" for line in swaps if line.split()[0] in nodes}
    return sorted(found)


def _mounts_of(table: str, disk: Disk) -> set[str]:
    """Where the disk's file systems are mounted, by a table of mounts."""
    numbers = set()
    for node in (disk.node, *_children(disk)):
        device = Path(node).stat().st_rdev
        numbers.add(f"{os.major(device)}:{os.minor(device)}")
    try:
        text = Path(table).read_text("utf-8", "surrogateescape")
    except OSError:
        return set()
    return {one.target for one in mounts.parse_table(text) if one.device in numbers}


def clear(disk: Disk, *, wipe: bool) -> None:
    """Take away what is on the disk, or refuse one that is not empty.

    Raises:
        StorageError: something is there, and ``wipe`` was not said.
    """
    if wipe:
        for node in (*reversed(_children(disk)), disk.node):
            run(["wipefs", "--all", "--force", node])
        return
    told = run(["wipefs", "--json", "--noheadings", disk.node], check=False).stdout
    signatures = []
    with contextlib.suppress(ValueError, LookupError, TypeError):
        signatures = [str(one["type"]) for one in json.loads(told or b"{}").get("signatures", ())]
    if _children(disk) or {"gpt", "dos", "PMBR"} & set(signatures):
        raise StorageError(
            f"Detected existing partitions on {printable(str(disk.path))}",
            reference="disk-not-empty",
            found=", ".join(dict.fromkeys(signatures)) or "partitions",
            hint="--wipe destroys what is on it",
            catalogue="STATE",
        )
    if signatures:
        raise StorageError(
            f"Detected existing content on {printable(str(disk.path))}",
            reference="disk-not-empty",
            found=", ".join(dict.fromkeys(signatures)),
            hint="--wipe destroys what is on it",
            catalogue="STATE",
        )


def partition(disk: Disk, wanted: tuple[Partition, ...], stack: ExitStack) -> Mapping[str, str]:
    """Write the partition table; device nodes by role.

    Raises:
        StorageError: too small, or what the programs say.
    """
    check_size(wanted, disk.size, str(disk.path))
    run(["sfdisk", "--quiet", "--wipe=always", disk.node], stdin=script(wanted).encode())
    table = json.loads(run(["sfdisk", "--json", disk.node]).stdout)["partitiontable"]
    found = table["partitions"]
    sector = int(table.get("sectorsize", 512))
    nodes: dict[str, str] = {}
    for one, there in zip(wanted, found, strict=True):
        if str(there["type"]).lower() != one.type.lower():
            raise StorageError(
                f"partition {one.name} of {disk.path} has another type than was written",
                reference="bad-partition-table",
                expected=one.type,
                found=printable(str(there["type"])),
            )
        if disk.loopback:
            start, size = int(there["start"]) * sector, int(there["size"]) * sector
            nodes[one.role] = attach(Path(disk.node), stack, start, size)
        else:
            nodes[one.role] = str(there["node"])
    if not disk.loopback:
        run(["udevadm", "settle"], check=False)
        _wait_for_nodes(nodes.values())
    return nodes


def _wait_for_nodes(nodes: Sequence[str] | Any) -> None:
    end = time.monotonic() + _NODE_WAIT_S
    missing = list(nodes)
    while missing := [node for node in missing if not Path(node).is_block_device()]:
        if time.monotonic() > end:
            raise StorageError(
                "the new partitions do not appear",
                reference="no-partition-device",
                expected=", ".join(missing),
                hint="does this system make device nodes (udev), and is /dev the host's?",
                catalogue="ENV",
            )
        time.sleep(0.1)


def attach(path: Path, stack: ExitStack, start: int = 0, size: int = 0) -> str:
    """A loop device of a part of a file, until the stack ends."""
    argv = ["losetup", "--show", "--find", f"--offset={start}"]
    argv += [f"--sizelimit={size}"] if size else []
    argv += ["--direct-io=on"] if os.environ.get("BOOTC_DIRECT_IO") == "on" else []
    node = run([*argv, str(path)]).stdout.decode().strip()
    stack.callback(run, ["losetup", "--detach", node], check=False)
    return node


def format_root(node: str, kind: str, label: str, *, force: bool) -> str:
    """Make a file system with a fresh UUID, which is returned."""
    identifier = str(uuid.uuid4())
    options = {
        "ext4": ["-q", "-F", "-O", "verity", "-U", identifier],
        "btrfs": ["-q", "-f", "-U", identifier],
        "xfs": ["-q", "-m", f"uuid={identifier}", *(["-f"] if force else [])],
    }[kind]
    run([f"mkfs.{kind}", *options, "-L", label, node])
    return identifier


def format_esp(node: str) -> None:
    """Make the FAT file system of an EFI system partition."""
    run(["mkfs.fat", "-n", "EFI-SYSTEM", node])


def scratch(stack: ExitStack) -> Path:
    """A directory of this run's own for mount points, until the stack ends."""
    place = tempfile.mkdtemp(prefix="bootc-install.", dir=_RUN if _RUN.is_dir() else None)
    made = Path(place)
    stack.callback(_remove, made)
    return made


def _remove(place: Path) -> None:
    from bootc_core.fs import atomic

    with contextlib.suppress(StorageError):  # what is still mounted is not entered
        atomic.rmtree(place)


def mount(node: str, place: Path, kind: str, stack: ExitStack) -> None:
    """Mount a file system at a directory, which is made, until the stack ends."""
    place.mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", kind, node, str(place)])
    stack.callback(run, ["umount", "--recursive", str(place)], check=False)


def has_fat() -> bool:
    """Can this kernel mount FAT?"""
    filesystems = Path("/proc/filesystems")
    if "vfat" in filesystems.read_text().split():
        return True
    with contextlib.suppress(UnsupportedEnvironmentError):
        run(["modprobe", "--quiet", "vfat"], check=False)
    return "vfat" in filesystems.read_text().split()


def mount_esp(node: str, place: Path, stack: ExitStack) -> bool:
    """Mount an EFI system partition; False where the kernel cannot: ``fill_fat`` copies the directory then.

    Raises:
        UnsupportedEnvironmentError: neither the kernel's FAT nor mtools is there.
    """
    if has_fat():
        mount(node, place, "vfat", stack)
        return True
    place.mkdir(parents=True, exist_ok=True)
    try:
        run(["mcopy", "-V"])
    except UnsupportedEnvironmentError:
        raise UnsupportedEnvironmentError(
            "this kernel has no FAT file system, and mtools are not installed",
            reference="no-fat",
            expected="the kernel module vfat, or the program mcopy",
            hint="install the package mtools",
        ) from None
    return False


def fill_fat(node: str, source: Path) -> None:
    """Copy a directory's content to a FAT file system that is not mounted."""
    entries = sorted(str(path) for path in source.iterdir())
    if entries:
        run_blocking(
            ["mcopy", "-i", node, "-s", "-n", "-Q", *entries, "::/"],
            timeout_s=_TIMEOUT_S,
            env=clean_environment(MTOOLS_SKIP_CHECK="1"),
            error=StorageError,
        )
    run(["sync", node], check=False)
