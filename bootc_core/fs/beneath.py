"""Operations that cannot leave a directory, whatever its content is: for trees that others wrote.

A path is bytes relative to the root, without ``.``, ``..`` and empty parts; no symbolic link is
followed anywhere in it, and the last part is never followed either. The kernel enforces that
(``openat2`` with ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS``); where it
cannot (before 5.6, or forbidden by a sandbox) each part is opened with ``O_NOFOLLOW``.

Errors are ``OSError``, as from ``os``; whoever knows the purpose maps them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from bootc_core import limits

StrPath = str | os.PathLike[str]

_SYS_OPENAT2: Final = 437  # the same number on every architecture
_RESOLVE: Final = 0x02 | 0x04 | 0x08  # NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_PARENTS: Final = 16  # directory descriptors that are kept open


class Beneath:
    """A directory whose content is only reached without leaving it. Close it, or use it with ``with``."""

    use_openat2 = True  # turned off for the process when the kernel says that it has no such call

    def __init__(self, directory: StrPath | int) -> None:
        """Open ``directory`` (a path of our own, or a descriptor that stays the caller's)."""
        self._fd = (
            os.dup(directory)
            if isinstance(directory, int)
            else os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        )
        # Directories used last: a tree is worked on directory by directory. Nothing here renames or removes one.
        self._parents: dict[bytes, int] = {}

    def __enter__(self) -> Beneath:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the root's descriptor."""
        while self._parents:
            os.close(self._parents.popitem()[1])
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Descriptor of the root."""
        return self._fd

    # --- opening -------------------------------------------------------------------------

    def open(self, path: bytes, flags: int, mode: int = 0) -> int:
        """A descriptor of ``path``, opened with ``flags`` and never through a link.

        Raises:
            OSError: ``ELOOP`` for a link, ``EINVAL`` for a path that is none of ours, or as
                ``open``.
        """
        check(path)
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW
        if Beneath.use_openat2:
            how = _OpenHow(flags, mode, _RESOLVE)
            for _ in range(16):  # EAGAIN: something was renamed meanwhile, the kernel wants a retry
                result = int(
                    _libc.syscall(
                        _SYS_OPENAT2, self._fd, path or b".", ctypes.byref(how), ctypes.sizeof(how)
                    )
                )
                number = ctypes.get_errno()
                if result >= 0:
                    return result
                if number != errno.EAGAIN:
                    break
            if number not in {errno.ENOSYS, errno.EPERM}:
                raise OSError(number, os.strerror(number), os.fsdecode(path))
            if number == errno.ENOSYS:
                Beneath.use_openat2 = False
        return self._open_by_parts(path, flags, mode)

    def _open_by_parts(self, path: bytes, flags: int, mode: int) -> int:
        if not path:
            return os.open(".", flags, mode, dir_fd=self._fd)
        *parents, name = path.split(b"/")
        current = os.dup(self._fd)
        try:
            for part in parents:
                below = os.open(part, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
            return os.open(name, flags, mode, dir_fd=current)
        finally:
            os.close(current)

    def open_dir(self, path: bytes) -> int:
        """A descriptor of the directory ``path``."""
        return self.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def open_file(self, path: bytes) -> int:
        """A descriptor for reading the regular file ``path``; never waits for a FIFO's other end.

        Raises:
            OSError: ``EINVAL`` if it is something else.
        """
        descriptor = self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        return descriptor

    def create_file(self, path: bytes, mode: int = 0o600) -> int:
        """A descriptor for writing the new file ``path``; an existing name is an error."""
        return self.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that holds ``path``, and its last part: for ``os.*(dir_fd=)``.

        The descriptor stays this object's, and may be closed when many other directories were used.
        """
        check(path)
        directory, _, name = path.rpartition(b"/")
        if not name:
            raise OSError(errno.EINVAL, "the root itself has no parent")
        descriptor = self._parents.pop(directory, None)
        if descriptor is None:
            if (
                len(self._parents) >= _PARENTS
            ):  # the one used longest ago goes; two are in use at most
                os.close(self._parents.pop(next(iter(self._parents))))
            descriptor = self.open_dir(directory)
        self._parents[directory] = descriptor
        return descriptor, name

    # --- reading -------------------------------------------------------------------------

    def lstat(self, path: bytes) -> os.stat_result:
        """Status of ``path`` itself."""
        if not path:
            return os.fstat(self._fd)
        directory, name = self.parent(path)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def exists(self, path: bytes) -> bool:
        """Is there anything at ``path``? A dangling link is something."""
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def readlink(self, path: bytes) -> bytes:
        """Target of the symbolic link ``path``."""
        directory, name = self.parent(path)
        return os.readlink(name, dir_fd=directory)

    def listdir(self, path: bytes) -> list[bytes]:
        """Names in the directory ``path``, sorted."""
        descriptor = self.open_dir(path)
        try:
            return sorted(os.fsencode(name) for name in os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def xattrs(self, path: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Extended attributes of ``path`` itself, sorted by name; none where there is no support."""
        with self._named(path) as place:
            try:
                names = os.listxattr(place, follow_symlinks=False)
            except OSError as problem:
                if problem.errno in {errno.ENOTSUP, errno.ENOSYS}:
                    return ()
                raise
            return tuple(
                sorted(
                    (os.fsencode(name), os.getxattr(place, name, follow_symlinks=False))
                    for name in names
                )
            )

    # --- writing -------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int = 0o700) -> None:
        """Make one directory."""
        directory, name = self.parent(path)
        os.mkdir(name, mode, dir_fd=directory)

    def mkdirs(self, path: bytes, mode: int = 0o755) -> None:
        """Make the directory ``path`` with all its parents; existing ones are fine."""
        check(path)
        parts = path.split(b"/") if path else []
        for count in range(1, len(parts) + 1):
            place = b"/".join(parts[:count])
            try:
                self.mkdir(place, mode)
            except FileExistsError:
                os.close(self.open_dir(place))

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make ``path`` a symbolic link to ``target``, which is only text."""
        directory, name = self.parent(path)
        os.symlink(target, name, dir_fd=directory)

    def link(self, existing: bytes, path: bytes) -> None:
        """Give ``existing`` (itself, not what it may point to) the further name ``path``."""
        source, old = self.parent(existing)
        directory, name = self.parent(path)
        os.link(old, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)

    def mknod(self, path: bytes, mode: int, device: int = 0) -> None:
        """Make a device node, FIFO or socket; ``mode`` includes the type."""
        directory, name = self.parent(path)
        os.mknod(name, mode, device, dir_fd=directory)

    def unlink(self, path: bytes) -> None:
        """Remove a name that is no directory."""
        directory, name = self.parent(path)
        os.unlink(name, dir_fd=directory)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Set owner and group of ``path`` itself."""
        if not path:
            os.fchown(self._fd, uid, gid)
            return
        directory, name = self.parent(path)
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the permission bits of ``path``, which is no symbolic link.

        Raises:
            OSError: ``ELOOP`` if it is one.
        """
        descriptor = self.open(path, os.O_PATH)
        try:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
            # fchmod refuses O_PATH descriptors; the link in /proc leads to the very inode.
            Path(f"/proc/self/fd/{descriptor}").chmod(mode)
        finally:
            os.close(descriptor)

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        """Set an extended attribute of ``path`` itself."""
        with self._named(path) as place:
            os.setxattr(place, name, value, follow_symlinks=False)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """Set access and modification time of ``path`` itself, in nanoseconds."""
        if not path:
            os.utime(self._fd, ns=(mtime_ns, mtime_ns))
            return
        directory, name = self.parent(path)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)

    @contextmanager
    def _named(self, path: bytes) -> Iterator[bytes | int]:
        """What the calls for extended attributes take: they have no ``dir_fd``."""
        if not path:
            yield b"/proc/self/fd/%d/." % self._fd
            return
        directory, name = self.parent(path)
        yield b"/proc/self/fd/%d/" % directory + name


def check(path: bytes) -> None:
    """Refuse what is no plain relative path; ``b""`` is the root itself.

    Raises:
        OSError: ``EINVAL`` or ``ENAMETOOLONG``.
    """
    if not path:
        return
    if len(path) >= limits.PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), os.fsdecode(path[:80]))
    for part in path.split(b"/"):
        if part in {b"", b".", b".."} or b"\0" in part:
            raise OSError(errno.EINVAL, "not a path beneath the root", os.fsdecode(path))
        if len(part) > limits.NAME_BYTES:
            raise OSError(
                errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), os.fsdecode(path[:80])
            )
