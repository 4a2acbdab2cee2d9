"""A disk whose every write is recorded, and disks as they would be after a power cut.

    base.raw     the disk before: partition table, boot partition, root partition
    log.raw      every write and flush after that, in the format of the kernel's dm-log-writes, by qemu-storage-daemon:
                     mounted file systems ─▶ loop device ─▶ FUSE export ─┐
                     mounted in a guest ─▶ virtio ─▶ vhost-user export ──┴▶ blklogwrites ─▶ base.raw, log.raw

``Replay`` rebuilds the disk as it was after any entry of the log, or as it could have been: what follows the last flush may
have reached the medium in any order, in part, or torn at a sector.

Everything is mounted in this process's own mount namespace, and is gone with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootc_core.errors import UnsupportedEnvironmentError

_libc = ctypes.CDLL(None, use_errno=True)
_MIB: Final = 1024 * 1024
SECTOR: Final = 512
_TEARS: Final = {"ext4": 4096, "vfat": 512, "xfs": 4096, "btrfs": 4096}
"""What the medium writes whole, in bytes. Linux's own file systems expect a sector of 4096 bytes, which disks have had since 2010:
with less, the superblock of ext4 and the directories of XFS do not survive, whoever writes."""
START: Final = _MIB
"""Of the boot partition; the root partition follows it."""
BOOT_BYTES: Final = 16 * _MIB
ROOT_BYTES: Final = {"ext4": 112 * _MIB, "xfs": 300 * _MIB, "btrfs": 128 * _MIB}
_MKFS: Final = {
    "ext4": [
        "mkfs.ext4",
        "-q",
        "-F",
        "-b",
        "4096",
        "-E",
        "nodiscard,lazy_itable_init=0",
        "-J",
        "size=4",
    ],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K", "-m", "single"],
    "vfat": ["mkfs.vfat", "-F", "16", "-s", "4"],
}
_OPTIONS: Final = {"xfs": b"nouuid", "ext4": b"", "btrfs": b"", "vfat": b""}
_FLUSH, _FUA, _DISCARD = 1, 2, 4
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _AUTOCLEAR = 0x4C82, 0x4C0A, 4
_MS_BIND, _MNT_DETACH = 4096, 2
PROGRAMS: Final = {
    "qemu-storage-daemon": "qemu-system-common",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "sfdisk": "fdisk",
}


def require() -> None:
    """Refuse a machine without the programs, or a user who cannot mount.

    Raises:
        UnsupportedEnvironmentError: names the Debian packages.
    """
    missing = {package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    if missing or os.geteuid() != 0:
        raise UnsupportedEnvironmentError(
            "power cuts need root and some programs",
            reference="unsupported-environment",
            found=f"uid {os.geteuid()}; missing packages: {', '.join(sorted(missing)) or 'none'}",
        )


def private_mounts() -> None:
    """Leave the machine's mount namespace: what is mounted from here on ends with this process.

    Raises:
        OSError: not allowed.
    """
    _check(_libc.unshare(0x00020000), "unshare")
    mount("none", Path("/"), None, flags=(1 << 18) | 16384)  # MS_PRIVATE | MS_REC


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def mount(
    source: str, target: Path, kind: str | None, *, flags: int = 0, options: bytes = b""
) -> None:
    """Mount a file system, as the system call does.

    Raises:
        OSError: as it says.
    """
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() if kind else None, flags, options
    )
    _check(result, f"mount {source} {kind} on {target}")


def unmount(target: Path, *, lazy: bool = False) -> None:
    """Unmount; what is busy for a moment is asked again.

    Raises:
        OSError: it stays busy.
    """
    for attempt in range(50):
        if _libc.umount2(os.fsencode(target), _MNT_DETACH if lazy else 0) == 0:
            return
        if attempt == 49:
            _check(-1, f"umount {target}")
        time.sleep(0.02)


@contextmanager
def loop_device(image: Path, offset: int, size: int) -> Iterator[str]:
    """A loop device on a part of a file; it goes when its last user does."""
    for _ in range(100):
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        finally:
            os.close(control)
        name = f"/dev/loop{number}"
        device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
        backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        information = struct.pack(
            "<5Q4I64s64s32s2Q", 0, 0, 0, offset, size, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0
        )
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, struct.pack("<II232s64x", backing, 0, information))
        except OSError:  # somebody else was faster
            os.close(device)
            continue
        finally:
            os.close(backing)
        try:
            yield name
        finally:
            os.close(device)
        return
    raise OSError("no free loop device")


@dataclass(frozen=True, slots=True)
class Layout:
    """Which file systems a disk has."""

    root: str
    boot: str

    @property
    def size(self) -> int:
        """Of the whole disk, in bytes."""
        return START + BOOT_BYTES + ROOT_BYTES[self.root]

    def __str__(self) -> str:
        return f"{self.root}+{self.boot}"


def make(image: Path, layout: Layout) -> None:
    """A new disk with empty file systems."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(layout.size)
    parts = (("c", START, BOOT_BYTES), ("83", START + BOOT_BYTES, ROOT_BYTES[layout.root]))
    lines = [
        f"start={start // SECTOR}, size={size // SECTOR}, type={kind}"
        for kind, start, size in parts
    ]
    table = "\n".join(("label: dos", *lines, ""))
    _run(["sfdisk", "-q", "--no-reread", "--no-tell-kernel", str(image)], table)
    for kind, offset, size in (
        (layout.boot, START, BOOT_BYTES),
        (layout.root, START + BOOT_BYTES, ROOT_BYTES[layout.root]),
    ):
        with loop_device(image, offset, size) as device:
            _run([*_MKFS[kind], device])
    _punch(image)


def _run(command: Sequence[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _punch(image: Path) -> None:
    """Give back blocks of zeros: copies are as cheap as what is on the disk."""
    _run(["fallocate", "--dig-holes", str(image)])


@contextmanager
def mounted(image: Path, layout: Layout, root: Path) -> Iterator[None]:
    """The root file system at ``root``, the boot partition at its ``boot``: as after a boot, journals replayed.

    FAT is read by mtools, which follow its chains as firmware does, into a directory that stands for it; what is written
    there stays there.
    """
    root.mkdir(exist_ok=True)
    with ExitStack() as stack:
        with loop_device(image, START + BOOT_BYTES, ROOT_BYTES[layout.root]) as device:
            mount(device, root, layout.root, options=_OPTIONS[layout.root])
        stack.callback(unmount, root)
        boot = root / "boot"
        boot.mkdir(exist_ok=True)
        if layout.boot == "vfat":
            copy = root.parent / f"{root.name}-fat"
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            read_fat(image, copy)
            mount(str(copy), boot, None, flags=_MS_BIND)
        else:
            with loop_device(image, START, BOOT_BYTES) as device:
                mount(device, boot, layout.boot, options=_OPTIONS[layout.boot])
        stack.callback(unmount, boot)
        yield


def read_fat(image: Path, target: Path) -> None:
    """Copy everything on the FAT boot partition into a directory; a file that cannot be read whole is left out."""
    if _mtools("mcopy", "-s", "-n", image=image, rest=("::*", str(target))).returncode == 0:
        return
    # one file that is not whole, as before the first flush after its name, ends all of that: take them one by one
    listing = _mtools("mdir", "-/", "-b", image=image, rest=("::",)).stdout.decode(errors="replace")
    shutil.rmtree(target)
    target.mkdir()
    for line in listing.splitlines():
        place = target / line.strip().removeprefix("::/")
        if line.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        elif line.startswith("::/"):
            place.parent.mkdir(parents=True, exist_ok=True)
            done = _mtools("mcopy", "-n", image=image, rest=(line.strip(), str(place)))
            if done.returncode != 0:
                place.unlink(missing_ok=True)


def _mtools(
    program: str, *options: str, image: Path, rest: Sequence[str]
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, *options, "-i", f"{image}@@{START}", *rest],
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )


# --- recording --------------------------------------------------------------------------------------------------------


@contextmanager
def recorded(image: Path, log: Path, export: Path, *, socket: bool = False) -> Iterator[None]:
    """``export`` is a file that behaves as ``image``, and every write to it goes into ``log``.

    Or the ``socket`` of such a disk, for a virtual machine (vhost-user).

    Raises:
        OSError: the daemon does not start.
    """
    export.unlink(missing_ok=True)
    kind = f"type=vhost-user-blk,addr.type=unix,addr.path={export}"
    if not socket:
        export.touch()
        kind = f"type=fuse,mountpoint={export}"
    log.write_bytes(b"")
    with log.open("r+b") as file:
        file.truncate(1 << 40)  # sparse; the driver does not let it grow
    pid = export.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    _run(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=bf,filename={image},cache.direct=off"),
            *("--blockdev", "driver=raw,node-name=b,file=bf"),
            *("--blockdev", f"driver=file,node-name=lf,filename={log},cache.direct=off"),
            *("--blockdev", "driver=raw,node-name=l,file=lf"),
            *(
                "--blockdev",
                "driver=blklogwrites,node-name=lw,file=b,log=l,log-super-update-interval=1",
            ),
            *("--export", f"{kind},id=e,node-name=lw,writable=on"),
            *("--pidfile", str(pid), "--daemonize"),
        ]
    )
    number = int(pid.read_text())
    try:
        yield
    finally:
        os.kill(number, 15)
        for _ in range(500):
            if not Path(f"/proc/{number}").exists():
                break
            time.sleep(0.01)


def entries(log: Path) -> int:
    """How many entries the log has by now."""
    with log.open("rb") as file:
        _, _, count, _ = struct.unpack("<QQQI", file.read(28))
    return int(count)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log: bytes at an offset of the disk, or a flush."""

    offset: int
    data: bytes
    flags: int

    @property
    def flushes(self) -> bool:
        """Does everything before it reach the medium?"""
        return bool(self.flags & _FLUSH)

    @property
    def forced(self) -> bool:
        """Is it on the medium itself when it is done?"""
        return bool(self.flags & _FUA)


def read_log(log: Path) -> list[Entry]:
    """All entries, in order.

    Raises:
        OSError: not such a log.
    """
    found = []
    with log.open("rb") as file:
        magic, _, count, sector = struct.unpack("<QQQI", file.read(28))
        if magic != 0x6A736677736872:
            raise OSError(f"{log} is no log of writes")
        position = sector
        for _ in range(count):
            file.seek(position)
            start, sectors, flags, _ = struct.unpack("<4Q", file.read(32))
            position += sector
            data = b""
            if not flags & _DISCARD:
                file.seek(position)
                data = file.read(sectors * sector)
                position += len(data)
            found.append(Entry(start * sector, data, flags))
    return found


# --- replaying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut: ``count`` entries were made. With ``seed``, of those after the last flush only some arrived, in some order.

    ``lies``: an entry that was lost, halved or changed on its way, and everything else arrived.
    """

    count: int
    seed: int | None = None
    lie: str | None = None

    def __str__(self) -> str:
        return f"{self.count}" + ("" if self.seed is None else f"r{self.seed}") + (self.lie or "")

    @classmethod
    def parse(cls, text: str) -> Cut:
        """The inverse of ``str``."""
        for lie in ("lost", "short", "flipped"):
            if text.endswith(lie):
                return cls(int(text.removesuffix(lie)), lie=lie)
        count, _, seed = text.partition("r")
        return cls(int(count), int(seed) if seed else None)


class Replay:
    """Disks from a base and a log. Cuts are cheapest in ascending order."""

    def __init__(self, base: Path, log: Sequence[Entry], layout: Layout, scratch: Path) -> None:
        self._base, self.log, self._layout = base, log, layout
        self._master, self.image = scratch / "master.raw", scratch / "cut.raw"
        self._done = -1
        self._flushes = [0]
        last = 0
        for number, entry in enumerate(log, 1):
            last = number if entry.flushes else last
            self._flushes.append(last)

    def window(self, count: int) -> int:
        """How many of the first ``count`` entries are not known to be on the medium."""
        return count - self._flushes[count]

    def plan(self, cut: Cut) -> tuple[int, tuple[tuple[int, int], ...]]:
        """What reached the medium: entries up to a number, then (entry, bytes of it) in order."""
        if cut.seed is None:
            return cut.count, ()
        dice = random.Random(f"{cut.count}:{cut.seed}")  # noqa: S311 - reproducible, not secret
        safe = self._flushes[cut.count]
        arrived = []
        for number in range(safe, cut.count):
            entry = self.log[number]
            if entry.forced or (entry.data and dice.random() < 0.6):
                arrived.append(number)
        dice.shuffle(arrived)
        torn = tuple((number, self._torn(number, dice)) for number in arrived)
        return safe, torn

    def _torn(self, number: int, dice: random.Random) -> int:
        """How many bytes of an entry arrive: one in ten is torn."""
        entry = self.log[number]
        kind = self._layout.boot if entry.offset < START + BOOT_BYTES else self._layout.root
        unit, size = _TEARS[kind], len(entry.data)
        if entry.forced or size <= unit or dice.random() >= 0.1:
            return size
        return dice.randrange(unit, size, unit)

    def disk(self, cut: Cut) -> Path:
        """The disk after that cut, as a file that may be changed."""
        if cut.lie is not None:
            return self._lying(cut)
        whole, rest = self.plan(cut)
        if self._done < 0 or whole < self._done:
            copy(self._base, self._master)
            self._done = 0
        with self._master.open("r+b") as file:
            for number in range(self._done, whole):
                _write(file.fileno(), self.log[number].offset, self.log[number].data)
        self._done = whole
        copy(self._master, self.image)
        with self.image.open("r+b") as file:
            for number, size in rest:
                _write(file.fileno(), self.log[number].offset, self.log[number].data[:size])
        return self.image

    def _lying(self, cut: Cut) -> Path:
        copy(self._base, self.image)
        with self.image.open("r+b") as file:
            for number, entry in enumerate(self.log, 1):
                data = entry.data
                if number == cut.count:
                    middle = len(data) // 2 // SECTOR * SECTOR
                    if cut.lie == "flipped":
                        place = random.Random(cut.count).randrange(len(data))  # noqa: S311
                        data = data[:place] + bytes((data[place] ^ 0x10,)) + data[place + 1 :]
                    else:
                        data = data[:middle] if cut.lie == "short" else b""
                _write(file.fileno(), entry.offset, data)
        return self.image


def _write(descriptor: int, offset: int, data: bytes) -> None:
    if data:
        os.pwrite(descriptor, data, offset)


def copy(source: Path, target: Path) -> None:
    """A copy of what is not a hole."""
    target.unlink(missing_ok=True)
    with source.open("rb") as old, target.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        position = 0
        while position < size:
            try:
                position = os.lseek(old.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(old.fileno(), position, os.SEEK_HOLE)
            os.lseek(old.fileno(), position, os.SEEK_SET)
            os.lseek(new.fileno(), position, os.SEEK_SET)
            while position < end:
                sent = os.sendfile(new.fileno(), old.fileno(), None, end - position)
                if sent == 0:
                    break
                position += sent
