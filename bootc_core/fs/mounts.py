"""Mounts: the one place that makes, changes and lists them.

A command that changes a host works in a mount namespace of its own, so that nothing it mounts or remounts is seen by others and all
of it goes with the process. ``unshare`` must be called before any thread is started: only the calling thread moves.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootc_core.errors import StorageError

RDONLY: Final = 1
NOSUID: Final = 2
NODEV: Final = 4
NOEXEC: Final = 8
_REMOUNT: Final = 32
_BIND: Final = 4096
_REC: Final = 16384
_PRIVATE: Final = 1 << 18
_DETACH: Final = 2
_CLONE_NEWNS: Final = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``mountinfo``."""

    device: str  # major:minor
    root: str  # what of its file system is mounted
    target: str
    options: frozenset[str]  # of this mount
    kind: str  # ext4, vfat, overlay, autofs, ...
    source: str


def parse_table(text: str) -> list[Mount]:
    """The mounts of a ``mountinfo`` file, in its order: what was mounted last on a directory comes last.

    Lines that are none are left out (proc(5), ``/proc/pid/mountinfo``).
    """
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        first, second = left.split(" "), right.split(" ")
        if not separator or len(first) < 6 or len(second) < 2:
            continue
        options = frozenset(first[5].split(","))
        found.append(
            Mount(
                first[2], _plain(first[3]), _plain(first[4]), options, second[0], _plain(second[1])
            )
        )
    return found


def _plain(text: str) -> str:
    for code, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, char)
    return text


def table() -> list[Mount]:
    """The mounts that this process sees; empty if they cannot be read."""
    try:
        return parse_table(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
    except OSError:
        return []


def at(mounts: Iterable[Mount], target: str) -> Mount | None:
    """What is mounted on exactly this directory, or None; an automount point counts as what it leads to, if that is there."""
    found = [one for one in mounts if one.target == target and one.kind != "autofs"]
    return found[-1] if found else None


def _call(
    source: str | None,
    target: str | os.PathLike[str],
    kind: str | None,
    flags: int,
    data: str | None,
) -> int:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    result = _libc.mount(
        text(source), os.fsencode(target), text(kind), ctypes.c_ulong(flags), text(data)
    )
    return 0 if result == 0 else ctypes.get_errno()


def _error(number: int, doing: str, target: str | os.PathLike[str]) -> StorageError:
    return StorageError(
        f"cannot {doing} {os.fspath(target)}",
        reference="mount-failed",
        found=os.strerror(number),
        hint="a mount namespace of its own needs CAP_SYS_ADMIN" if number == errno.EPERM else None,
        catalogue="ENV" if number == errno.EPERM else "IO",
    )


def unshare() -> None:
    """Move this process into a mount namespace of its own, from which nothing propagates. To be called before any thread starts.

    Raises:
        StorageError: not permitted.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise _error(ctypes.get_errno(), "make a mount namespace for", "/")
    if number := _call(None, "/", None, _REC | _PRIVATE, None):
        raise _error(number, "make private", "/")


def mount(
    source: str, target: str | os.PathLike[str], kind: str, flags: int = 0, data: str = ""
) -> None:
    """Mount a file system.

    Raises:
        StorageError: what the kernel says.
    """
    if number := _call(source, target, kind, flags, data or None):
        raise _error(number, f"mount {source} on", target)


def bind(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Show a directory at a second place.

    Raises:
        StorageError: what the kernel says.
    """
    if number := _call(os.fspath(source), target, None, _BIND, None):
        raise _error(number, f"bind {os.fspath(source)} on", target)


def make_writable(target: str | os.PathLike[str]) -> None:
    """Remount for writing: this mount, and its file system if that alone is not enough.

    Raises:
        StorageError: what the kernel says.
    """
    number = _call(None, target, None, _REMOUNT | _BIND, None)
    if number == 0 and os.statvfs(target).f_flag & os.ST_RDONLY:
        number = _call(None, target, None, _REMOUNT, None)
    if number:
        raise _error(number, "remount for writing", target)


def unmount(target: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """Take away what is mounted last on a directory.

    Raises:
        StorageError: it is busy (unless ``lazy``), or nothing is mounted there.
    """
    if _libc.umount2(os.fsencode(target), _DETACH if lazy else 0) != 0:
        raise _error(ctypes.get_errno(), "unmount", target)
