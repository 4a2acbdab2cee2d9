"""fs-verity digests, computed here or by the kernel: the names of a composefs repository's objects.

A file is cut into 4096-byte blocks, the last one zero-padded; the hashes of the blocks, joined, are cut and hashed in the
same way until one hash is left, the root. The digest is the hash of a descriptor:

    offset  size
    0       1     version, 1
    1       1     algorithm id: 1 = SHA-256, 2 = SHA-512
    2       1     log2 of the block size, 12
    3       5     no salt, no signature
    8       8     size of the file, little-endian
    16      64    root hash, zero-padded; all zero for an empty file
    80      176   zero

``digest`` is the hottest loop of an import: one call a file, one hash a block, nothing else. Specification: the kernel's
``Documentation/filesystems/fsverity.rst``. This module is used by workers and imports the standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from hashlib import sha256, sha512
from typing import Any, Final, NamedTuple

from bootc_core.errors import StorageError

BLOCK_BYTES: Final = 4096


class Algorithm(NamedTuple):
    """One hash function as fs-verity knows it."""

    name: str
    id: int  # in the descriptor, in ioctls and in the metacopy xattr of overlayfs
    length: int  # of a digest, in bytes


ALGORITHMS: Final = {
    "sha256": Algorithm("sha256", 1, 32),
    "sha512": Algorithm("sha512", 2, 64),
}
ALGORITHM_OF_LENGTH: Final = {entry.length: entry.name for entry in ALGORITHMS.values()}

# The descriptor around size and root hash, per algorithm: constructor, head, tail
_PARTS: Final[dict[str, tuple[Callable[..., Any], bytes, bytes]]] = {
    "sha256": (sha256, bytes((1, 1, 12, 0, 0, 0, 0, 0)), bytes(32 + 176)),
    "sha512": (sha512, bytes((1, 2, 12, 0, 0, 0, 0, 0)), bytes(176)),
}


def _parts(algorithm: str) -> tuple[Callable[..., Any], bytes, bytes]:
    try:
        return _PARTS[algorithm]
    except KeyError:
        raise StorageError(
            f"fs-verity has no algorithm {algorithm!r}",
            reference="unknown-verity-algorithm",
            expected=" or ".join(ALGORITHMS),
            found=algorithm,
            catalogue="STATE",
        ) from None


def digest(data: bytes | bytearray | memoryview, algorithm: str = "sha512") -> bytes:
    """The fs-verity digest of a file with content ``data`` (block size 4096, no salt).

    Raises:
        StorageError: the algorithm is unknown.
    """
    function, head, tail = _PARTS.get(algorithm) or _parts(algorithm)
    size = len(data)
    if size > BLOCK_BYTES:
        root = _root(function, memoryview(data), size)
    elif size:
        root = function(bytes(data).ljust(BLOCK_BYTES, b"\0")).digest()
    else:
        root = bytes(function().digest_size)
    found: bytes = function(b"".join((head, size.to_bytes(8, "little"), root, tail))).digest()
    return found


def _root(function: Callable[..., Any], level: memoryview, size: int) -> bytes:
    """The root hash of more than one block. Hashes of a level are joined: 1/64 of the data for SHA-512."""
    while True:
        whole = size & -BLOCK_BYTES
        hashes = [
            function(level[start : start + BLOCK_BYTES]).digest()
            for start in range(0, whole, BLOCK_BYTES)
        ]
        if whole != size:
            hashes.append(function(bytes(level[whole:]).ljust(BLOCK_BYTES, b"\0")).digest())
        if len(hashes) == 1:
            root: bytes = hashes[0]
            return root
        level = memoryview(b"".join(hashes))
        size = len(level)


class Hasher:
    """The same digest for content that arrives in pieces: memory of one block per tree level, whatever the size."""

    __slots__ = ("_function", "_levels", "_open", "_open_bytes", "algorithm", "size")

    def __init__(self, algorithm: str = "sha512") -> None:
        self._function = _parts(algorithm)[0]
        self.algorithm = algorithm
        self.size = 0  # bytes seen so far
        self._levels = [bytearray()]  # hashes of level n that are not yet hashed into level n + 1
        self._open: Any = None  # hash of the block that is not complete yet
        self._open_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes; nothing of ``data`` is kept."""
        view = memoryview(data)
        size = len(view)
        self.size += size
        start = 0
        if self._open is not None:
            start = min(BLOCK_BYTES - self._open_bytes, size)
            self._open.update(view[:start])
            self._open_bytes += start
            if self._open_bytes < BLOCK_BYTES:
                return
            self._levels[0] += self._open.digest()
            self._open = None
        end = start + ((size - start) & -BLOCK_BYTES)
        function = self._function
        self._levels[0] += b"".join(
            [
                function(view[at : at + BLOCK_BYTES]).digest()
                for at in range(start, end, BLOCK_BYTES)
            ]
        )
        self._lift()
        if end < size:
            self._open = function(view[end:])
            self._open_bytes = size - end

    def _lift(self) -> None:
        """Hash full blocks of each level into the next one, only when more follows: a top level of one hash is the root."""
        number = 0
        while number < len(self._levels):
            level = self._levels[number]
            if len(level) > BLOCK_BYTES:
                whole = (len(level) - 1) & -BLOCK_BYTES
                if number + 1 == len(self._levels):
                    self._levels.append(bytearray())
                view = memoryview(level)
                for at in range(0, whole, BLOCK_BYTES):
                    block = self._function(view[at : at + BLOCK_BYTES])
                    self._levels[number + 1] += block.digest()
                view.release()
                del level[:whole]
            number += 1

    def digest(self) -> bytes:
        """The digest of everything so far; more may follow."""
        function, head, tail = _PARTS[self.algorithm]
        length = function().digest_size
        level = bytes(self._levels[0])
        if self._open is not None:
            last = self._open.copy()
            last.update(bytes(BLOCK_BYTES - self._open_bytes))
            level += last.digest()
        number = 1
        while len(level) > length or number < len(self._levels):
            above = bytes(self._levels[number]) if number < len(self._levels) else b""
            hashes = [
                function(level[at : at + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")).digest()
                for at in range(0, len(level), BLOCK_BYTES)
            ]
            level = above + b"".join(hashes)
            number += 1
        root = level or bytes(length)
        found: bytes = function(
            b"".join((head, self.size.to_bytes(8, "little"), root, tail))
        ).digest()
        return found


# The kernel ---------------------------------------------------------------------------------------------------------

# PowerPC, MIPS, SPARC and Alpha number the directions of an ioctl differently from everybody else.
_ODD_IOCTLS: Final = os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha"))
_ENABLE: Final = 0x80806685 if _ODD_IOCTLS else 0x40806685
_MEASURE: Final = 0xC0046686
_UNSUPPORTED: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS})
_BUSY_TRIES: Final = 3
_BUSY_WAIT_S: Final = 0.001  # a child between fork and exec may hold a writable copy that long


def enable(descriptor: int, algorithm: str = "sha512") -> bool:
    """Make the file read-only for ever and have the kernel check it: True when it now has fs-verity, also if it had before.

    ``descriptor`` is open for reading only, and no writable descriptor of the file may be left anywhere. False: this file
    system or kernel cannot.

    Raises:
        StorageError: ``verity-busy`` when somebody still has the file open for writing (after three tries), otherwise what
            the kernel says.
    """
    _parts(algorithm)
    argument = struct.pack(
        "<IIIIQIIQ11Q", 1, ALGORITHMS[algorithm].id, BLOCK_BYTES, 0, 0, 0, 0, 0, *(0,) * 11
    )
    for attempt in range(1, _BUSY_TRIES + 1):
        try:
            fcntl.ioctl(descriptor, _ENABLE, argument)
        except OSError as problem:
            number = problem.errno
            if number == errno.EEXIST:
                return True
            if number in _UNSUPPORTED:
                return False
            if number != errno.ETXTBSY:
                raise StorageError(
                    "cannot enable fs-verity",
                    reference="verity-failed",
                    found=f"{errno.errorcode.get(number or 0, number)}: {problem.strerror}",
                    hint=f"the kernel lacks {algorithm}" if number == errno.ENOPKG else None,
                    catalogue="SPC" if number == errno.ENOSPC else "IO",
                ) from problem
            if attempt == _BUSY_TRIES:
                raise StorageError(
                    "cannot enable fs-verity: the file is open for writing somewhere",
                    reference="verity-busy",
                    catalogue="IO",
                ) from problem
            time.sleep(_BUSY_WAIT_S)
        else:
            return True
    raise AssertionError("unreachable")


def measure(descriptor: int) -> bytes | None:
    """The digest that the kernel enforces on an open file (its length tells the algorithm); ``None`` without fs-verity.

    Raises:
        StorageError: the kernel failed in another way.
    """
    room = bytearray(struct.pack("=HH", 0, 64) + bytes(64))
    try:
        fcntl.ioctl(descriptor, _MEASURE, room)
    except OSError as problem:
        if problem.errno == errno.ENODATA or problem.errno in _UNSUPPORTED:
            return None
        raise StorageError(
            "cannot read the fs-verity digest of a file",
            reference="verity-failed",
            found=problem.strerror,
            catalogue="IO",
        ) from problem
    _, length = struct.unpack_from("=HH", room)
    return bytes(room[4 : 4 + length])


def supported(directory: str | os.PathLike[str] | int, algorithm: str = "sha512") -> bool:
    """Can files in ``directory`` (a path or a descriptor) have fs-verity? Tried on an unnamed file that leaves no trace.

    Raises:
        StorageError: not even a file can be made there.
    """
    _parts(algorithm)
    place = f"/proc/self/fd/{directory}" if isinstance(directory, int) else os.fspath(directory)
    try:
        writer = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        if problem.errno in {errno.EOPNOTSUPP, errno.EISDIR}:
            return False  # file systems without unnamed files have no fs-verity either
        raise StorageError(
            f"cannot make a file in {place}",
            reference="io-error",
            found=problem.strerror,
            catalogue="IO",
        ) from problem
    try:
        os.write(writer, b"\0")
        reader = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise StorageError(
            f"cannot write a file in {place}",
            reference="io-error",
            found=problem.strerror,
            catalogue="IO",
        ) from problem
    finally:
        os.close(writer)
    try:
        return enable(reader, algorithm)
    finally:
        os.close(reader)
