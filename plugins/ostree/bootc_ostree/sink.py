"""What a worker does with a layer for an ostree repository: content objects named by ostree's checksum.

    <staging>/objects/<hex>   contents of regular files that the repository has not; owner, mode and xattrs are the parent's work
    <staging>/entries         one JSON list a member: path, type, mode, uid, gid, size, mtime, mtime_ns, link name, xattrs, checksum

The checksum covers owner, mode and extended attributes, so the same bytes with another mode are another object.
``security.selinux`` of the layer is left out: labels come from the image's own policy. ostree keeps names and link targets as UTF-8 text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from typing import Any, Final

from bootc_core.errors import ContentError, printable
from bootc_core.oci.tar import TarEntry
from bootc_ostree.objects import file_header

OBJECTS: Final = "objects"
ENTRIES: Final = "entries"

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_PARTIAL: Final = ".partial"
_FLUSH: Final = 1 << 20
_LABEL: Final = b"security.selinux"


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


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

    def __init__(self, staging_fd: int, options: dict[str, Any]) -> None:
        """Make the layer's staging directory ready; ``staging_fd`` stays the caller's."""
        self._known = int(options[OBJECTS])
        with contextlib.suppress(FileExistsError):
            os.mkdir(OBJECTS, 0o755, dir_fd=staging_fd)
        self._objects = os.open(OBJECTS, _DIRECTORY, dir_fd=staging_fd)
        self._list = os.open(
            ENTRIES, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=staging_fd
        )
        self._lines: list[str] = []
        self._size = 0
        self._seen: set[str] = set()
        self._new = self._reused = self._bytes_new = 0
        self._hash: Any = None
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
                    for name, value in entry.xattrs
                    if name != _LABEL
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
            _write_all(self._list, ("\n".join(self._lines) + "\n").encode())
            self._lines.clear()
            self._size = 0

    def _header(self, entry: TarEntry) -> Any:
        xattrs = [pair for pair in entry.xattrs if pair[0] != _LABEL]
        return hashlib.sha256(
            file_header(entry.uid, entry.gid, stat.S_IFREG | entry.mode, "", xattrs)
        )

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
            finally:
                os.close(descriptor)
            self._new += 1
            self._bytes_new += len(body)
        self._note(entry, checksum)

    def begin_file(self, entry: TarEntry) -> None:
        """A large regular file begins."""
        self._entry, self._hash = entry, self._header(entry)
        self._output = self._create(_PARTIAL)

    def write(self, piece: memoryview) -> None:
        """Its next bytes."""
        self._hash.update(piece)
        _write_all(self._output, piece)

    def end_file(self) -> None:
        """All its bytes were written."""
        os.close(self._output)
        self._output = -1
        entry, checksum = self._entry, self._hash.hexdigest()
        if entry is None:
            raise ValueError("end_file without begin_file")
        if self._is_known(checksum):
            os.unlink(_PARTIAL, dir_fd=self._objects)
        else:
            os.rename(_PARTIAL, checksum, src_dir_fd=self._objects, dst_dir_fd=self._objects)
            self._new += 1
            self._bytes_new += entry.size
        self._note(entry, checksum)

    def finish(self) -> dict[str, Any]:
        """Counts of the layer."""
        self._flush()
        self.abort()
        return {
            "objects_new": self._new,
            "objects_known": self._reused,
            "bytes_new": self._bytes_new,
        }

    def abort(self) -> None:
        """Close descriptors."""
        for descriptor in (self._output, self._list, self._objects):
            if descriptor >= 0:
                os.close(descriptor)
        self._output = self._list = self._objects = -1
