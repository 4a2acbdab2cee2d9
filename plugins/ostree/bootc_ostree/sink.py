"""What a worker does with a layer for an ostree repository: content objects named by ostree's checksum.

    <staging>/objects/<hex>   regular files that the repository has not, of 1970 as ostree has them; mode is on those without
                              another owner or xattrs, which the parent gives them when it names them: it has the privileges
    <staging>/entries         one JSON list a member: path, type, mode, uid, gid, size, mtime, mtime_ns, link name, xattrs, checksum
    <staging>/checks          one record for each of those contents: checksum, size, CRC-32 (``bootc_core.fs.readback``)

The checksum covers owner, mode and extended attributes, so the same bytes with another mode are another object.
``security.selinux`` of the layer is left out: labels come from the image's own policy. ostree keeps names and link targets as
UTF-8 text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Sequence
from typing import Any, Final

from bootc_core.errors import ContentError, StorageError, printable
from bootc_core.oci.tar import TarEntry
from bootc_ostree.objects import file_header

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this architecture
    from zlib import crc32

OBJECTS: Final = "objects"
ENTRIES: Final = "entries"
CHECKS: Final = "checks"

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_PARTIAL: Final = ".partial"
_FLUSH: Final = 1 << 20
_LABEL: Final = b"security.selinux"
_tail: Final = struct.Struct("<QI")


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def has_other_owner(entry: TarEntry, uid: int, gid: int) -> bool:
    """Has the file of ``entry`` an owner that a process of that owner cannot give it?"""
    return entry.uid != uid or entry.gid != gid


def text(name: bytes, what: str) -> str:
    """``name`` as ostree keeps it.

    Raises:
        ContentError: not UTF-8.
    """
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise ContentError(
            f"{what} is not UTF-8, which the ostree backend cannot keep",
            reference="not-utf8",
            found=printable(name),
            hint="rename the file in the image, or use the composefs backend",
        ) from None


class OstreeSink:
    """One layer on its way into an ostree repository.

    Options (JSON values): ``objects``: descriptor of the repository's ``objects`` directory.
    """

    wants_raw = False
    sets_owners = True

    def __init__(self, staging_fd: int, options: dict[str, Any]) -> None:
        """Make the layer's staging directory ready; ``staging_fd`` stays the caller's."""
        self._known = int(options[OBJECTS])
        self._staging = staging_fd
        with contextlib.suppress(FileExistsError):
            os.mkdir(OBJECTS, 0o755, dir_fd=staging_fd)
        self._objects = os.open(OBJECTS, _DIRECTORY, dir_fd=staging_fd)
        self._list = os.open(
            ENTRIES, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=staging_fd
        )
        self._lines: list[str] = []
        self._size = 0
        self._seen: set[str] = set()
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._checks = bytearray()
        self._crc_entries = 0
        self._new = self._reused = self._bytes_new = 0
        self._hash: Any = None
        self._crc = 0
        self._output = -1
        self._entry: TarEntry | None = None

    def raw(self, data: bytes | memoryview) -> None:
        """Never called."""

    def entry(self, entry: TarEntry) -> None:
        """A member without content."""
        self._note(entry, None)

    def _note(self, entry: TarEntry, checksum: str | None) -> None:
        line = json.dumps(
            (
                text(entry.path, "a file name"),
                entry.type,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.size,
                entry.mtime,
                entry.mtime_ns,
                text(entry.linkname, "a link target"),
                [
                    (name.decode("utf-8", "surrogateescape"), value.hex())
                    for name, value in self._pairs(entry)
                ],
                checksum,
            ),
            separators=(",", ":"),
        )
        self._lines.append(line)
        self._size += len(line)
        if self._size > _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            data = ("\n".join(self._lines) + "\n").encode()
            self._crc_entries = crc32(data, self._crc_entries)
            _write_all(self._list, data)
            self._lines.clear()
            self._size = 0

    def _pairs(self, entry: TarEntry) -> Sequence[tuple[bytes, bytes]]:
        """The extended attributes that are kept."""
        return [pair for pair in entry.xattrs if pair[0] != _LABEL] if entry.xattrs else ()

    def _header(self, entry: TarEntry) -> Any:
        header = file_header(
            entry.uid, entry.gid, stat.S_IFREG | entry.mode, "", self._pairs(entry)
        )
        return hashlib.sha256(header)

    def _is_known(self, checksum: str) -> bool:
        if checksum in self._seen:
            return True
        self._seen.add(checksum)
        try:
            os.stat(
                f"{checksum[:2]}/{checksum[2:]}.file", dir_fd=self._known, follow_symlinks=False
            )
        except FileNotFoundError:
            return False
        self._reused += 1
        return True

    def _create(self, name: str) -> int:
        try:
            return os.open(name, _WRITE, 0o600, dir_fd=self._objects)
        except FileExistsError:  # left by a run that was killed; its content cannot be trusted
            os.unlink(name, dir_fd=self._objects)
            return os.open(name, _WRITE, 0o600, dir_fd=self._objects)

    def file(self, entry: TarEntry, body: memoryview) -> None:
        """A regular file whose content is in memory."""
        hasher = self._header(entry)
        hasher.update(body)
        checksum = hasher.hexdigest()
        if not self._is_known(checksum):
            descriptor = self._create(checksum)
            try:
                _write_all(descriptor, body)
                self._dress(descriptor, entry)
            finally:
                os.close(descriptor)
            self._record(checksum, len(body), crc32(body))
        self._note(entry, checksum)

    def _dress(self, descriptor: int, entry: TarEntry) -> None:
        """Give a written file the mode and time of its object; the parent gives it what takes privileges."""
        try:
            if not self._pairs(entry) and not has_other_owner(entry, self._uid, self._gid):
                os.fchmod(descriptor, entry.mode)
            os.utime(descriptor, ns=(0, 0))
        except OSError as problem:
            raise StorageError(
                f"cannot set mode and time of '{printable(entry.path)}'",
                reference="io-error",
                found=printable(str(problem)),
                catalogue="ENV",
            ) from None

    def _record(self, checksum: str, size: int, crc: int) -> None:
        self._new += 1
        self._bytes_new += size
        self._checks += bytes.fromhex(checksum) + _tail.pack(size, crc)

    def begin_file(self, entry: TarEntry) -> None:
        """A large regular file begins."""
        self._entry, self._hash, self._crc = entry, self._header(entry), 0
        self._output = self._create(_PARTIAL)

    def write(self, piece: memoryview) -> None:
        """Its next bytes."""
        self._hash.update(piece)
        self._crc = crc32(piece, self._crc)
        _write_all(self._output, piece)

    def end_file(self) -> None:
        """All its bytes were written."""
        entry, checksum = self._entry, self._hash.hexdigest()
        if entry is None:
            raise ValueError("end_file without begin_file")
        self._dress(self._output, entry)
        os.close(self._output)
        self._output = -1
        if self._is_known(checksum):
            os.unlink(_PARTIAL, dir_fd=self._objects)
        else:
            os.rename(_PARTIAL, checksum, src_dir_fd=self._objects, dst_dir_fd=self._objects)
            self._record(checksum, entry.size, self._crc)
        self._note(entry, checksum)

    def finish(self) -> dict[str, Any]:
        """Counts of the layer; ``crc`` of the records, ``crc_entries`` of the list."""
        self._flush()
        descriptor = os.open(
            CHECKS,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
            0o644,
            dir_fd=self._staging,
        )
        try:
            _write_all(descriptor, self._checks)
        finally:
            os.close(descriptor)
        self.abort()
        return {
            "objects_new": self._new,
            "objects_known": self._reused,
            "bytes_new": self._bytes_new,
            "crc": crc32(self._checks),
            "crc_entries": self._crc_entries,
        }

    def abort(self) -> None:
        """Close descriptors."""
        for descriptor in (self._output, self._list, self._objects):
            if descriptor >= 0:
                os.close(descriptor)
        self._output = self._list = self._objects = -1

    @classmethod
    def recheck(cls, staging_fd: int, options: dict[str, Any], finished: dict[str, Any]) -> bool:
        """Is a layer that was finished before a power cut still whole? Hashes all that it staged.

        What the repository has got since was on the medium before it got its name; its size and owner are looked at.
        """
        try:
            data = _content(ENTRIES, staging_fd)
            if crc32(data) != finished.get("crc_entries"):
                return False
            objects = os.open(OBJECTS, _DIRECTORY, dir_fd=staging_fd)
        except OSError:
            return False
        try:
            return all(
                cls._line_is_whole(json.loads(line), objects, int(options[OBJECTS]))
                for line in data.splitlines()
            )
        except (OSError, ValueError):
            return False
        finally:
            os.close(objects)

    @classmethod
    def _line_is_whole(cls, line: list[Any], staged: int, known: int) -> bool:
        _, _, mode, uid, gid, size, _, _, _, xattrs, checksum = line
        if checksum is None:
            return True
        try:
            descriptor = os.open(
                checksum, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=staged
            )
        except FileNotFoundError:
            found = os.stat(
                f"{checksum[:2]}/{checksum[2:]}.file", dir_fd=known, follow_symlinks=False
            )
            expected = (size, uid, gid, stat.S_IFREG | mode)
            return bool((found.st_size, found.st_uid, found.st_gid, found.st_mode) == expected)
        pairs = [
            (name.encode("utf-8", "surrogateescape"), bytes.fromhex(value))
            for name, value in xattrs
        ]
        hasher = hashlib.sha256(file_header(uid, gid, stat.S_IFREG | mode, "", pairs))
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            while piece := file.read(_FLUSH):
                hasher.update(piece)
        return bool(hasher.hexdigest() == checksum)


def _content(name: str, directory: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
