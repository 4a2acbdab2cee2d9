"""What a worker does with a layer for a composefs repository: objects named by fs-verity digest, and a splitstream.

    <staging>/objects/<hex>   contents of files larger than 64 bytes that the repository has not
    <staging>/stream          the layer's splitstream, an object too
    <staging>/checks          one record for each file above: digest, size, CRC-32; absent where fs-verity is enabled
    <staging>/members         names and metadata of the layer's members (`bootc_composefs.members`)

Names are created once (O_EXCL); nothing here is synced, the parent does that once for all layers, then reads everything back from
the medium and compares it with ``checks`` (with fs-verity the kernel does it on every read).

A file's content is hashed where it lies, looked up, and only then written: known content costs no write. Large files come in
pieces, so they are compared with a known object of the same size while they are hashed; if they turn out different, the
part that was equal is copied from that object.

This runs in worker processes and is the hottest loop of an import: plain system calls with directory descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable
from typing import Any, Final

from bootc_composefs import members, splitstream
from bootc_core import limits
from bootc_core.errors import ContentError, StorageError
from bootc_core.fs import verity
from bootc_core.oci import tar

try:
    from isal.isal_zlib import crc32 as checksum
except ImportError:  # no wheel for this architecture
    from zlib import crc32 as checksum

INLINE_BYTES: Final = 64  # files up to this size are part of the splitstream and of the image
OBJECTS: Final = "objects"
STREAM: Final = "stream"
CHECKS: Final = "checks"
MEMBERS: Final = "members"
LARGE_BYTES: Final = (
    tar.WHOLE_FILE_BYTES
)  # larger files arrive in pieces, and are compared with known ones

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_PARTIAL: Final = ".partial"  # the large file that is being received
_digest: Final = verity.digest
_tail: Final = struct.Struct("<QI")


__all__ = [
    "CHECKS",
    "INLINE_BYTES",
    "LARGE_BYTES",
    "MEMBERS",
    "OBJECTS",
    "STREAM",
    "ObjectSink",
    "checksum",
]


class ObjectSink:
    """One layer on its way into a composefs repository.

    Options (JSON values): ``algorithm`` of the repository; ``verity``: enable it on every object; ``objects``: descriptor of the
    repository's ``objects`` directory, if there is one; ``large``: digests (hex) of its large objects by size (decimal).
    """

    wants_raw = True

    def __init__(self, staging_fd: int, options: dict[str, Any]) -> None:
        """Make the layer's staging directory ready; ``staging_fd`` stays the caller's.

        Raises:
            OSError: it cannot be written.
        """
        self._algorithm: str = options["algorithm"]
        self._verity = bool(options.get("verity"))
        known = options.get(OBJECTS)
        self._known = -1 if known is None else int(known)
        self._large: dict[str, list[str]] = options.get("large") or {}
        self._staging = staging_fd
        with contextlib.suppress(FileExistsError):
            os.mkdir(OBJECTS, 0o755, dir_fd=staging_fd)
        self._objects = os.open(OBJECTS, _DIRECTORY, dir_fd=staging_fd)
        mask = os.umask(0o022)
        os.umask(mask)
        self._fix_mode = bool(mask & 0o044)  # objects are 0644 whatever the user's umask is
        self._stream = splitstream.Writer(staging_fd, self._algorithm)
        self._seen = self._stream.objects
        self._members = members.Writer()
        self._entry: tar.TarEntry | None = None  # of the large file that is being received
        self._checks = bytearray()
        self._new = self._reused = self._bytes_new = 0
        self._hasher: verity.Hasher | None = None  # of the large file that is being received
        self._crc = 0
        self._candidate = self._output = -1
        self._candidate_name = ""

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes of the tar that are not file content: they stay in the splitstream."""
        self._stream.inline(data)

    def entry(self, entry: tar.TarEntry) -> None:
        """A member without content: its header, passed to ``raw``, is all there is."""
        self._members.add(entry, members.NONE)

    def file(self, entry: tar.TarEntry, body: memoryview) -> None:
        """A regular file whose content is in memory."""
        size = len(body)
        if size <= INLINE_BYTES:
            self._stream.inline(body)
            self._members.add(entry, members.TEXT, body)
            return
        name = _digest(body, self._algorithm)
        if name not in self._seen:
            hexed = name.hex()
            if self._is_known(hexed, size):
                self._reused += 1
            else:
                descriptor = self._create(hexed)
                try:
                    splitstream.write_all(descriptor, body)
                    if self._fix_mode:
                        os.fchmod(descriptor, 0o644)
                finally:
                    os.close(descriptor)
                self._record(name, hexed, size, 0 if self._verity else checksum(body))
        self._members.add(entry, self._stream.external(name, size))

    def _is_known(self, hexed: str, size: int) -> bool:
        if self._known < 0:
            return False
        try:
            found = os.stat(f"{hexed[:2]}/{hexed[2:]}", dir_fd=self._known, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_size == size  # another size is a damaged object; publishing replaces it

    def _create(self, name: str) -> int:
        try:
            return os.open(name, _WRITE, 0o644, dir_fd=self._objects)
        except FileExistsError:  # left by a run that was killed; its content cannot be trusted
            os.unlink(name, dir_fd=self._objects)
            return os.open(name, _WRITE, 0o644, dir_fd=self._objects)

    def _record(self, name: bytes, hexed: str, size: int, crc: int) -> None:
        self._new += 1
        self._bytes_new += size
        if self._verity:
            _enable(hexed, self._objects, self._algorithm)
        else:
            self._checks += name
            self._checks += _tail.pack(size, crc)

    def begin_file(self, entry: tar.TarEntry) -> None:
        """A large file begins: it is compared with a known object of its size, or else written."""
        self._crc = 0
        self._entry = entry
        if entry.size <= INLINE_BYTES:
            return
        self._hasher = verity.Hasher(self._algorithm)
        for hexed in self._large.get(str(entry.size), ()):
            try:
                self._candidate = os.open(f"{hexed[:2]}/{hexed[2:]}", _READ, dir_fd=self._known)
            except OSError:
                continue
            self._candidate_name = hexed
            return
        self._output = self._create(_PARTIAL)

    def write(self, piece: memoryview) -> None:
        """The next bytes of the large file."""
        if self._hasher is None:
            self._stream.inline(piece)
            return
        if self._candidate >= 0:
            if os.pread(self._candidate, len(piece), self._hasher.size) == bytes(piece):
                self._hasher.update(piece)
                return
            self._diverge(self._hasher.size)
        self._hasher.update(piece)
        if not self._verity:
            self._crc = checksum(piece, self._crc)
        splitstream.write_all(self._output, piece)

    def _diverge(self, length: int) -> None:
        """The known object was equal up to ``length`` only: write the file after all."""
        self._output = self._create(_PARTIAL)
        place = 0
        while place < length:
            data = os.pread(self._candidate, min(limits.MIB, length - place), place)
            if not data:
                raise OSError(errno.EIO, "a known object shrank while it was read")
            self._crc = checksum(data, self._crc)
            splitstream.write_all(self._output, data)
            place += len(data)
        os.close(self._candidate)
        self._candidate = -1

    def end_file(self) -> None:
        """All bytes of the large file were written."""
        if self._hasher is None:
            return
        name, size = self._hasher.digest(), self._hasher.size
        hexed = name.hex()
        if self._candidate >= 0 and hexed != self._candidate_name:
            self._diverge(size)  # that object is damaged: its content has another name
        if self._candidate >= 0:
            os.close(self._candidate)
            self._candidate = -1
            self._reused += name not in self._seen
        else:
            if self._fix_mode:
                os.fchmod(self._output, 0o644)
            os.close(self._output)
            self._output = -1
            if name in self._seen or self._is_known(hexed, size):
                self._reused += name not in self._seen
                os.unlink(_PARTIAL, dir_fd=self._objects)
            else:
                os.rename(_PARTIAL, hexed, src_dir_fd=self._objects, dst_dir_fd=self._objects)
                self._record(name, hexed, size, self._crc)
        index = self._stream.external(name, size)
        if self._entry is not None:
            self._members.add(self._entry, index)
        self._hasher = None

    def reuse(self, entry: tar.TarEntry, name: str) -> None:
        """The content is that of a known object: its name is the digest, so nothing is hashed again."""
        if self._hasher is not None:  # begun as a large file
            for descriptor in (self._candidate, self._output):
                if descriptor >= 0:
                    os.close(descriptor)
            if self._output >= 0:
                os.unlink(_PARTIAL, dir_fd=self._objects)
            self._candidate = self._output = -1
            self._hasher = None
        digest = bytes.fromhex(name)
        if len(digest) != splitstream.DIGEST_BYTES[self._algorithm]:
            raise OSError(errno.EIO, "an object that is none")
        self._reused += digest not in self._seen
        self._members.add(entry, self._stream.external(digest, entry.size))

    def finish(self) -> dict[str, Any]:
        """Write splitstream and notes.

        Returns:
            ``stream``: digest in hex; ``stream_bytes``; ``objects_new``, ``objects_known``: distinct objects; ``bytes_new``:
            of new objects and the splitstream; ``crc``: CRC-32 of the notes.
        """
        hasher = verity.Hasher(self._algorithm)
        descriptor = self._replace(STREAM)
        try:
            for piece in self._stream.finish():
                hasher.update(piece)
                splitstream.write_all(descriptor, piece)
            os.fchmod(descriptor, 0o644)
        finally:
            os.close(descriptor)
        if self._verity:
            _enable(STREAM, self._staging, self._algorithm)
        self._put(CHECKS, [self._checks])
        if not self._members.too_many:
            self._put(MEMBERS, self._members.pieces())
        self._close()
        return {
            "stream": hasher.digest().hex(),
            "stream_bytes": hasher.size,
            "objects_new": self._new,
            "objects_known": self._reused,
            "bytes_new": self._bytes_new + hasher.size,
            "crc": checksum(self._checks),
        }

    def _put(self, name: str, pieces: Iterable[bytes | bytearray]) -> None:
        descriptor = self._replace(name)
        try:
            for piece in pieces:
                splitstream.write_all(descriptor, piece)
        finally:
            os.close(descriptor)

    def _replace(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._staging)
        return os.open(name, _WRITE, 0o644, dir_fd=self._staging)

    def abort(self) -> None:
        """Close what is open; the parent removes what was staged."""
        self._close()

    def _close(self) -> None:
        self._stream.close()
        for descriptor in (self._candidate, self._output, self._objects):
            if descriptor >= 0:
                os.close(descriptor)
        self._candidate = self._output = self._objects = -1

    @classmethod
    def recheck(cls, staging_fd: int, options: dict[str, Any], finished: dict[str, Any]) -> bool:
        """Is a layer that was finished before a power cut still whole? Hashes all that it staged.

        Args:
            staging_fd: the layer's directory.
            options: as for the constructor.
            finished: what ``finish`` answered then.
        """
        algorithm: str = options["algorithm"]
        known = options.get(OBJECTS)
        try:
            data = _content(STREAM, staging_fd)
            if verity.digest(data, algorithm).hex() != finished.get("stream"):
                return False
            directory = os.open(OBJECTS, _DIRECTORY, dir_fd=staging_fd)
        except OSError:
            return False
        try:
            for name in splitstream.parse(data, algorithm).object_refs:
                hexed = name.hex()
                try:
                    if _file_digest(hexed, directory, algorithm) != name:
                        return False
                except FileNotFoundError:  # known then, or published since
                    place = f"{hexed[:2]}/{hexed[2:]}"
                    if known is None or os.stat(place, dir_fd=int(known)).st_size <= INLINE_BYTES:
                        return False
        except (OSError, ContentError):
            return False
        finally:
            os.close(directory)
        return True


def _content(name: str, directory: int) -> bytes:
    descriptor = os.open(name, _READ, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _file_digest(name: str, directory: int, algorithm: str) -> bytes:
    descriptor = os.open(name, _READ, dir_fd=directory)
    try:
        hasher = verity.Hasher(algorithm)
        while piece := os.read(descriptor, limits.MIB):
            hasher.update(piece)
        return hasher.digest()
    finally:
        os.close(descriptor)


def _enable(name: str, directory: int, algorithm: str) -> None:
    descriptor = os.open(name, _READ, dir_fd=directory)
    try:
        if not verity.enable(descriptor, algorithm):
            raise StorageError(
                "the file system refuses fs-verity, which this repository requires",
                reference="no-verity",
                catalogue="ENV",
            )
    finally:
        os.close(descriptor)
