"""The durable steps of a transaction: all that changes what a reboot would find.

Every sync, rename, link and removal happens here, in the parent process, on one thread, each
announced by name before it takes effect (``observe``), so that fault injectors, traces and crash
tests speak the same step names:

    write     a new file with its content, fsynced, at a temporary or a fresh name
    rename    a name takes effect (replacing, or refusing to)
    symlink   a symbolic link is created at a temporary name
    link      an unnamed file gets a name
    mkdir     a directory appears
    unlink    a name goes away
    rmtree    a directory goes away with its content
    patch     bytes of an existing file change in place
    fsync     a file or directory reaches the medium
    syncfs    a whole file system does
    freeze    a whole file system does, and its journal is empty

Rules: content before name, name before whoever refers to it; the first error of a sync is final
(Linux reports a lost write once), so nobody retries it. Paths are relative to a directory
descriptor or absolute paths of our own; names that come from images never get here without
``fs.beneath``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from bootc_core import limits
from bootc_core.errors import StorageError

StrPath = str | os.PathLike[str]

TEMPORARY: Final = ".bootc-tmp-"
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)
_observers: list[Callable[[str, str], None]] = []
_OWNER_HINT: Final = "run as root, or as the owner of the sysroot"
_CLASS: Final = {
    errno.ENOSPC: (
        "SPC",
        "no space left",
        "free some space and run the command again; nothing was switched",
    ),
    errno.EDQUOT: ("SPC", "the disk quota is used up", "raise the quota, run the command again"),
    errno.EROFS: ("RO", "the file system is read-only", "remount it writable, or check the disk"),
    errno.EIO: ("IO", "the device reports an I/O error", "check the disk before anything else"),
    errno.EACCES: ("ENV", "permission denied", _OWNER_HINT),
    errno.EPERM: ("ENV", "permission denied", _OWNER_HINT),
}


@contextmanager
def observe(observer: Callable[[str, str], None]) -> Iterator[None]:
    """Call ``observer(step, path)`` before each durable step; what it raises happens instead of the step."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def announce(step: str, path: StrPath) -> None:
    """Tell the observers that ``step`` is about to happen to ``path``."""
    for observer in _observers:
        observer(step, os.fspath(path))


def storage_error(
    problem: OSError, doing: str, path: StrPath, *, near: StrPath | int | None = None
) -> StorageError:
    """``problem`` as our error: what was being done, to which path, and what helps.

    ``near``: where to look which kind of space there is none of, if ``path`` is not on that file system.
    """
    number = problem.errno or 0
    default = ("IO", os.strerror(number) if number else str(problem), None)
    catalogue, found, hint = _CLASS.get(number, default)
    if number == errno.ENOSPC and _no_inodes(path if near is None else near):
        found = "no inodes left"
        hint = (
            "remove small files that are not needed (df -i shows inodes), and run the command again"
        )
    names = {"SPC": "no-space", "RO": "read-only", "ENV": "no-permission"}
    return StorageError(
        f"cannot {doing} {os.fspath(path)}",
        reference=names.get(catalogue, "io-error"),
        found=found,
        hint=hint,
        catalogue=catalogue,
    )


def _no_inodes(place: StrPath | int) -> bool:
    """Is the file system of ``place``, or of the nearest directory above it that exists, out of inodes?"""
    candidates = [place] if isinstance(place, int) else [Path(place), *Path(place).parents]
    for candidate in candidates:
        try:
            found = os.statvfs(candidate)
        except OSError:
            continue
        return bool(found.f_files) and found.f_favail == 0
    return False


@contextmanager
def mapped(doing: str, path: StrPath) -> Iterator[None]:
    """Turn ``OSError`` into ``StorageError`` naming the action and the path."""
    try:
        yield
    except OSError as problem:
        raise storage_error(problem, doing, path) from problem


def fsync(path: StrPath) -> None:
    """Bring a file or directory to the medium.

    Raises:
        StorageError: final for this run.
    """
    announce("fsync", path)
    with mapped("sync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def syncfs(path: StrPath) -> None:
    """Bring everything on the file system of ``path`` to the medium.

    Raises:
        StorageError: final for this run.
    """
    announce("syncfs", path)
    flush(path)


def flush(path: StrPath) -> None:
    """As ``syncfs``, but no durable step: nothing relies on when it happens.

    Raises:
        StorageError: final for this run.
    """
    with mapped("sync the file system of", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)


def temporary_name(name: str) -> str:
    """A fresh hidden name beside ``name``; leftovers are recognised by the prefix ``TEMPORARY``."""
    return f"{TEMPORARY}{os.urandom(8).hex()}-{name[:64]}"


def rename(source: StrPath, target: StrPath) -> None:
    """Give ``source`` the name ``target``, replacing what is there, atomically.

    Raises:
        StorageError: nothing changed.
    """
    announce("rename", target)
    with mapped("rename to", target):
        os.rename(source, target)  # noqa: PTH104 - an import makes ten thousands of them


def rename_new(source: StrPath, target: StrPath) -> bool:
    """Give ``source`` the name ``target`` unless that exists; False if it does.

    Raises:
        StorageError: nothing changed.
    """
    announce("rename", target)
    here = -100  # AT_FDCWD
    result = _libc.renameat2(
        here, os.fsencode(source), here, os.fsencode(target), _RENAME_NOREPLACE
    )
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    if number == errno.EINVAL:  # the file system has no such flag
        with mapped("rename to", target):
            try:
                os.link(source, target)
            except FileExistsError:
                return False
            Path(source).unlink()
        return True
    raise storage_error(OSError(number, os.strerror(number)), "rename to", target)


def exchange(first: StrPath, second: StrPath) -> None:
    """Give two names each other's content, atomically.

    Raises:
        StorageError: nothing changed.
    """
    announce("rename", second)
    here = -100  # AT_FDCWD
    with mapped("exchange names with", second):
        if _libc.renameat2(here, os.fsencode(first), here, os.fsencode(second), _RENAME_EXCHANGE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def freeze(path: StrPath) -> None:
    """As ``syncfs``, and bring the file system to rest for a moment, so that a reader without its journal finds all.

    A child thaws it even if this process is killed meanwhile. File systems that cannot be frozen have no journal to replay.

    Raises:
        StorageError: final for this run.
    """
    announce("freeze", path)
    flush(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    waiting, holding = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # idle threads: the child needs none
        child = os.fork()
    if child == 0:  # the pipe ends without a word: the parent is gone
        os.close(holding)
        if not os.read(waiting, 1):
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, _FITHAW, 0)
        os._exit(0)
    os.close(waiting)
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
        fcntl.ioctl(descriptor, _FITHAW, 0)
        os.write(holding, b".")
    except OSError as problem:
        if problem.errno not in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM, errno.EBUSY}:
            raise storage_error(problem, "freeze the file system of", path) from problem
    finally:
        os.close(holding)
        os.waitpid(child, 0)
        os.close(descriptor)


def write_file(path: StrPath, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Replace the file at ``path`` by ``data``, atomically: old or new, never torn.

    With ``sync`` also durably.

    Raises:
        StorageError: the old file is untouched.
    """
    target = Path(path)
    temporary = target.with_name(temporary_name(target.name))
    announce("write", target)
    try:
        with mapped("write", target):
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fchmod(descriptor, mode)
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        rename(temporary, target)
    except BaseException:
        with suppress(OSError):  # the error that brought us here matters more
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        fsync(target.parent)


def create_file(path: StrPath, content: bytes | BinaryIO) -> str:
    """Write a new file at its final name, sync it, read it back from the medium; its SHA-256 in hex.

    For FAT, where a name is written once and never replaced. A crash may leave a part of it, so
    nothing may refer to the name before this returned and its directory was synced.

    Raises:
        StorageError: the name exists, or what was read back is not what was written; a part may be
            left.
    """
    import hashlib  # here: what only reads entries should not pay for it

    announce("write", path)
    with mapped("write", path):
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
        )
        try:
            stream = io.BytesIO(content) if isinstance(content, bytes) else content
            written = hashlib.sha256()
            while chunk := stream.read(limits.OUTPUT_CHUNK_BYTES):
                written.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the medium is asked
            os.lseek(descriptor, 0, os.SEEK_SET)
            found = hashlib.sha256()
            while chunk := os.read(descriptor, limits.OUTPUT_CHUNK_BYTES):
                found.update(chunk)
        finally:
            os.close(descriptor)
    if found.digest() != written.digest():
        raise read_back(path, f"sha256:{written.hexdigest()}", f"sha256:{found.hexdigest()}")
    return written.hexdigest()


def read_back(path: StrPath, expected: str, found: str) -> StorageError:
    """The medium gives back something else than what was written."""
    return StorageError(
        f"{os.fspath(path)} reads back differently from what was written",
        reference="read-back",
        expected=expected,
        found=found,
        hint="the medium is failing; check it before anything else",
        catalogue="IO",
    )


def symlink(target: str, path: StrPath, *, sync: bool = False) -> None:
    """Make ``path`` a symbolic link to ``target``, atomically; one already right is left alone.

    Raises:
        StorageError: nothing changed.
    """
    place = Path(path)
    try:
        if os.readlink(place) == target:  # noqa: PTH115 - as text: pathlib would normalise it
            return
    except OSError:
        pass
    temporary = place.with_name(temporary_name(place.name))
    announce("symlink", place)
    with mapped("link", place):
        temporary.symlink_to(target)
    try:
        rename(temporary, place)
    except BaseException:
        with suppress(OSError):  # the error that brought us here matters more
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        fsync(place.parent)


def mkdir(path: StrPath, mode: int | None = 0o755, *, exist_ok: bool = True) -> None:
    """Make one directory; an existing one is fine unless ``exist_ok`` is False.

    With ``mode`` None it gets what the mount gives (FAT has no modes, and refuses most of them).

    Raises:
        StorageError: something else is there, or it cannot be made.
    """
    place = Path(path)
    if exist_ok and place.is_dir():
        return
    announce("mkdir", place)
    with mapped("make the directory", place):
        place.mkdir(0o777 if mode is None else mode, exist_ok=exist_ok)
        if mode is not None:
            place.chmod(mode)


def unlink(path: StrPath, *, missing_ok: bool = True) -> None:
    """Remove a name.

    Raises:
        StorageError: it is still there.
    """
    announce("unlink", path)
    with mapped("remove", path):
        Path(path).unlink(missing_ok=missing_ok)


def rmtree(path: StrPath) -> None:
    """Remove a directory with all that is in it; missing is fine.

    No link is followed, no mount point entered.

    Raises:
        StorageError: some of it may be left.
    """
    place = Path(path)
    try:
        info = place.lstat()
    except FileNotFoundError:
        return
    announce("rmtree", place)
    with mapped("remove", place):
        if stat.S_ISDIR(info.st_mode):
            _remove_below(os.open(place, _DIRECTORY), info.st_dev)
            place.rmdir()
        else:
            place.unlink()


def _remove_below(descriptor: int, device: int) -> None:
    try:
        with os.scandir(descriptor) as listing:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
        for name, is_directory in names:
            if not is_directory:
                os.unlink(name, dir_fd=descriptor)
                continue
            child = os.open(name, _DIRECTORY, dir_fd=descriptor)
            if os.fstat(child).st_dev != device:
                os.close(child)
                raise OSError(errno.EXDEV, "something is mounted there")
            mode = os.fstat(child).st_mode
            if mode & 0o700 != 0o700:  # an ordinary user's copy of a directory such as 0500
                os.fchmod(child, stat.S_IMODE(mode) | 0o700)
            _remove_below(child, device)
            os.rmdir(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def patch(path: StrPath, offset: int, data: bytes) -> None:
    """Overwrite bytes of an existing file in place, sync it, read it back: one write in one sector.

    A sector has 512 bytes. This is the atomic step on FAT, where no rename is safe.

    Raises:
        StorageError: before anything changed, or final.
        ValueError: the bytes would touch two sectors.
    """
    if offset // 512 != (offset + len(data) - 1) // 512:
        raise ValueError("a patch must stay within one sector")
    announce("patch", path)
    with mapped("change", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.pwrite(descriptor, data, offset) != len(data):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the medium is asked
            found = os.pread(descriptor, len(data), offset)
        finally:
            os.close(descriptor)
    if found != data:
        raise read_back(path, repr(data), repr(found))
