"""Named files of an image: a directory, or a tar file whose members are read in place.

A tar file is walked once, header by header (contents are skipped, not read), with the reader that
layers go through, so the same things are refused. Blobs are then ranges of the file: nothing is
unpacked. Links count one level, as ``docker save`` wrote them for equal layers.

Nothing here decides what a file means; whoever asks for one checks its digest.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, TransportError, printable
from bootc_core.models.image import FileSource
from bootc_core.oci.tar import BLOCK, HARDLINK, REGULAR, SYMLINK, HeaderDecoder, canonical

_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
}
_UNPACK: Final = {"gzip": "gunzip", "zstd": "zstd -d", "xz": "unxz", "bzip2": "bunzip2"}


class Store(Protocol):
    """Files by name (ASCII, relative, ``/`` between parts)."""

    path: Path

    def has(self, name: str) -> bool:
        """Is there something of that name?"""

    def source(self, name: str) -> FileSource:
        """Where its bytes are; ``length`` is always set.

        Raises:
            ContentError: missing, no regular file, or leading out of the image.
            TransportError: unreadable, or replaced meanwhile.
        """


def is_tar(head: bytes) -> bool:
    """Is this the header of a tar file (ustar, pax or GNU; those of V7 have no mark)?"""
    return head[257:262] == b"ustar"


def compression_of(head: bytes) -> str | None:
    """How the file that begins with ``head`` is compressed (gzip, zstd, xz, bzip2); None: not at all.

    Args:
        head: its first 512 bytes, or all if it has fewer. Of a tar file that is a header, which may
            well begin like something compressed: a member can have any name.
    """
    if is_tar(head):
        return None
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def read_error(path: Path, what: str, problem: OSError) -> BootcError:
    """Our error for what the operating system said about ``path``."""
    name = printable(str(path))
    if problem.errno == errno.ENOENT:
        return TransportError(
            f"{what}: there is no {name}", reference="not-found", catalogue="NOTFOUND"
        )
    if problem.errno in (errno.EACCES, errno.EPERM):
        return TransportError(
            f"{what}: no permission to read {name}",
            reference="no-permission",
            found=f"user {os.geteuid()}",
            catalogue="IO",
        )
    return TransportError(
        f"{what}: cannot read {name}",
        reference="unreadable",
        found=os.strerror(problem.errno or 0),
        catalogue="IO",
    )


def open_regular(path: Path, what: str, *, directory_hint: str | None = None) -> int:
    """A descriptor for reading a regular file; a FIFO or device never blocks.

    Args:
        path: the file.
        what: names the image in errors.
        directory_hint: what to do if it is a directory.

    Raises:
        TransportError: missing, not permitted, or something else than a file.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except OSError as problem:
        raise read_error(path, what, problem) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise TransportError(
            f"{what}: {printable(str(path))} is not a regular file",
            reference="not-a-file",
            found=stat.filemode(mode),
            hint=directory_hint if stat.S_ISDIR(mode) else None,
            catalogue="IO",
        )
    return descriptor


def read_source(source: FileSource, what: str, limit: int, at_most: int | None = None) -> bytes:
    """The bytes of a source.

    Args:
        source: with a length.
        what: names the file in errors.
        limit: more than that is refused before it is read.
        at_most: read only the first so many.

    Raises:
        ContentError: too large, or cut off meanwhile.
        TransportError: unreadable.
    """
    length = source.length or 0
    if at_most is not None:
        length = min(length, at_most)
    if length > limit:
        raise ContentError(
            f"{what} is too large",
            reference="too-large",
            expected=f"at most {limit} bytes",
            found=f"{length} bytes",
            catalogue="LIM",
        )
    descriptor = open_regular(source.path, what)
    try:
        data = _read(descriptor, source.offset, length, source.path, what)
    finally:
        os.close(descriptor)
    if len(data) != length:
        raise ContentError(
            f"{what} is cut off",
            reference="truncated",
            expected=f"{length} bytes",
            found=f"{len(data)} bytes",
            catalogue="INT",
        )
    return data


def _read(descriptor: int, offset: int, length: int, path: Path, what: str) -> bytes:
    pieces = []
    try:
        while length and (piece := os.pread(descriptor, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
    except OSError as problem:
        raise read_error(path, what, problem) from None
    return b"".join(pieces)


def _missing(what: str, name: str) -> ContentError:
    return ContentError(
        f"{what} is incomplete",
        reference="missing-file",
        expected=printable(name),
        found="no such file in it",
        hint="copy the image again",
        catalogue="INT",
    )


class DirectoryStore:
    """Files beneath a directory. Symbolic links count only as long as they stay beneath it."""

    def __init__(self, path: Path, what: str, kind: str) -> None:
        """Look into ``path``.

        Args:
            path: the directory; may itself be a symbolic link.
            what: names the image in errors.
            kind: the transport's name, for a hint.

        Raises:
            TransportError: missing, not permitted, or no directory.
        """
        self.path = path
        self._what = what
        try:
            mode = os.stat(path).st_mode
            self._root = Path(os.path.realpath(path, strict=True))
            if stat.S_ISDIR(mode):
                os.close(os.open(path, _OPEN | os.O_DIRECTORY))
        except OSError as problem:
            raise read_error(path, what, problem) from None
        if not stat.S_ISDIR(mode):
            raise TransportError(
                f"{what}: {printable(str(path))} is not a directory",
                reference="not-a-directory",
                found=stat.filemode(mode),
                hint=f"a tar file is named {kind}-archive:" if kind == "oci" else None,
                catalogue="IO",
            )

    def has(self, name: str) -> bool:
        """Is there something of that name?"""
        try:
            os.lstat(self._root / name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as problem:
            raise read_error(self._root / name, self._what, problem) from None
        return True

    def source(self, name: str) -> FileSource:
        """Where the bytes of ``name`` are (see ``Store``)."""
        real = Path(os.path.realpath(self._root / name))
        if not real.is_relative_to(self._root):
            raise ContentError(
                f"{self._what}: {printable(name)} leads out of the image's directory",
                reference="path-escape",
                expected=f"a file beneath {printable(str(self._root))}",
                found=printable(str(real)),
                hint="copy the file there, or the whole image again",
            )
        try:
            info = os.stat(real, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(self._what, name) from None
        except OSError as problem:
            raise read_error(real, self._what, problem) from None
        if not stat.S_ISREG(info.st_mode):
            raise ContentError(
                f"{self._what}: {printable(name)} is not a regular file",
                reference="not-a-file",
                found=stat.filemode(info.st_mode),
            )
        return FileSource(real, 0, info.st_size)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells whether a file is still the one that was walked."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> _Stamp:
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


class ArchiveStore:
    """Members of an uncompressed tar file, by canonical name."""

    def __init__(self, path: Path, what: str, kind: str) -> None:
        """Walk the archive at ``path``.

        Args:
            path: the tar file.
            what: names the image in errors.
            kind: the transport's name, for a hint.

        Raises:
            TransportError: missing, not permitted, or no regular file.
            ContentError: compressed, damaged, cut off, ambiguous, or too many members.
        """
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - keeps links, which the user named
        self._what = what
        self._files: dict[bytes, tuple[int, int]] = {}
        self._links: dict[bytes, bytes] = {}
        hint = "a directory in OCI layout is named oci:" if kind == "oci-archive" else None
        descriptor = open_regular(self.path, what, directory_hint=hint)
        try:
            info = os.fstat(descriptor)
            self._stamp = _Stamp.of(info)
            self._walk(descriptor, info.st_size)
        finally:
            os.close(descriptor)

    def _walk(self, descriptor: int, size: int) -> None:
        def read(offset: int, length: int) -> bytes:
            data = _read(descriptor, offset, length, self.path, self._what)
            if len(data) != length:
                raise self._truncated(offset + length, size)
            return data

        if compression := compression_of(read(0, min(size, BLOCK))):
            raise ContentError(
                f"{self._what} is compressed with {compression}",
                reference="compressed-archive",
                expected="a plain tar file, which is read in place",
                hint=f"{_UNPACK[compression]} {printable(str(self.path))}",
            )
        decoder = HeaderDecoder(self._what, max_entries=limits.ARCHIVE_MEMBERS)
        offset = 0
        while offset < size and not decoder.ended:
            entry = decoder.header(read(offset, BLOCK))
            offset += BLOCK
            if entry is None:
                if decoder.pending:
                    length = decoder.pending
                    decoder.extension(read(offset, length))
                    offset += length + (-length & (BLOCK - 1))
                continue
            if offset + entry.size > size:
                raise self._truncated(offset + entry.size, size)
            if entry.type == REGULAR:
                self._add(entry.path)
                self._files[entry.path] = (offset, entry.size)
            elif entry.type in (SYMLINK, HARDLINK):
                self._add(entry.path)
                self._links[entry.path] = _target(entry.path, entry.linkname, entry.type)
            offset += entry.size + (-entry.size & (BLOCK - 1))
        decoder.close()
        if size - offset > limits.END_PADDING_BYTES:
            raise self._hidden(f"{size - offset} bytes")
        rest = read(offset, size - offset)
        if rest.count(0) != len(rest):
            raise self._hidden("bytes other than zero")

    def _add(self, name: bytes) -> None:
        if name in self._files or name in self._links:
            raise ContentError(
                f"{self._what} holds one name twice",
                reference="ambiguous-archive",
                found=printable(name),
                hint="save the image again",
                catalogue="INT",
            )

    def _truncated(self, needed: int, size: int) -> ContentError:
        return ContentError(
            f"{self._what} is cut off",
            reference="truncated",
            expected=f"at least {needed} bytes",
            found=f"{size} bytes",
            hint="copy the archive again",
            catalogue="INT",
        )

    def _hidden(self, found: str) -> ContentError:
        return ContentError(
            f"{self._what}: something follows the end of the archive",
            reference="hidden-members",
            found=found,
        )

    def _find(self, name: str) -> tuple[int, int] | None:
        key = canonical(name.encode(), whiteouts=False)
        return self._files.get(self._links.get(key, key))

    def has(self, name: str) -> bool:
        """Is there something of that name?"""
        key = canonical(name.encode(), whiteouts=False)
        return key in self._files or key in self._links

    def source(self, name: str) -> FileSource:
        """Where the bytes of ``name`` are (see ``Store``)."""
        found = self._find(name)
        if found is None:
            raise _missing(self._what, name)
        try:
            info = os.stat(self.path)
        except OSError as problem:
            raise read_error(self.path, self._what, problem) from None
        if _Stamp.of(info) != self._stamp:
            raise TransportError(
                f"{self._what} was replaced while it was read",
                reference="changed-meanwhile",
                hint="start again",
                catalogue="INT",
            )
        return FileSource(self.path, *found)


def _target(path: bytes, linkname: bytes, kind: int) -> bytes:
    """What a link means, as a member's name; ``b""``, which none has, if it leads out of the archive."""
    if kind == HARDLINK:
        return linkname
    parts = [] if linkname.startswith(b"/") else path.split(b"/")[:-1]
    for part in linkname.split(b"/"):
        if part == b"..":
            if not parts:
                return b""
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
