"""Layers that carry an ostree commit instead of files ("encapsulated", "chunked": what Fedora's images are made of).

The layers up to the one whose diffID is the label ``ostree.final-diffid`` hold objects below
``sysroot/ostree/repo/objects/XX/``; the tree beside them, hard links to these objects, is for container engines and passed over:

    REST.file                 content, with owner and mode; symbolic links as they are
    REST.file-xattrs          attributes, a(ayay), named by their own checksum; before whoever uses them
    REST.file-xattrs-link     hard link to the one that a content has
    REST.commit, .commitmeta, .dirtree, .dirmeta     in the first layer

Older images have ``sysroot/ostree/repo/xattrs/CHECKSUM`` and links ``REST.file.xattrs`` to it. Every object is checked against its
name. The first layer's ref names the commit, that of each other one a commit whose tree lists its objects by checksum.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

from bootc_core import limits
from bootc_core.errors import ContentError, printable
from bootc_core.oci.tar import HARDLINK, REGULAR, SYMLINK, TarEntry
from bootc_ostree import objects
from bootc_ostree.sink import OstreeSink, text
from bootc_ostree.variant import decode

FINAL_LAYER: Final = "ostree.final-diffid"  # label of an image's configuration
METADATA: Final = ("commit", "commitmeta", "dirtree", "dirmeta")
if TYPE_CHECKING:
    from bootc_core.models.image import FetchedImage

_PLACE: Final = b"sysroot/ostree/repo/objects/"
_OLD_XATTRS: Final = b"sysroot/ostree/repo/xattrs/"
_HEX: Final = frozenset(b"0123456789abcdef")
_CHECKSUM: Final = 64


def count(image: FetchedImage) -> int:
    """How many of an image's layers, from the lowest, carry its commit; 0 for an ordinary image.

    A squashed image may have inherited the label without having the layer: it is an ordinary one.
    """
    final = image.config.labels.get(FINAL_LAYER)
    diff_ids = image.config.rootfs.diff_ids
    return diff_ids.index(final) + 1 if final in diff_ids else 0


def _refuse(entry: TarEntry, what: str, found: str | None = None) -> ContentError:
    return ContentError(
        f"the layer's object '{printable(entry.path)}' {what}",
        reference="bad-object",
        found=found,
        hint="build the image again; nothing of it was used",
        catalogue="INT",
    )


class NativeSink(OstreeSink):
    """One such layer on its way into the repository; options as ``OstreeSink`` has them.

    The entries list names members ``CHECKSUM.KIND``: content of files with its checksum; links, and metadata objects (staged beside
    the contents under that name), without.
    """

    def __init__(self, staging_fd: int, options: dict[str, Any]) -> None:
        """Make the layer's staging directory ready."""
        super().__init__(staging_fd, options)
        self._sets: dict[bytes, tuple[tuple[bytes, bytes], ...]] = {}  # by path
        self._of: dict[str, tuple[tuple[bytes, bytes], ...]] = {}  # by checksum of the content
        self._noted: set[str] = set()
        self._body: bytearray | None = None
        self._checksum = ""

    @staticmethod
    def _parts(path: bytes) -> tuple[str, str] | None:
        """Checksum and kind of an object by its path; None for what is none."""
        first, _, rest = path.removeprefix(_PLACE).partition(b"/")
        stem, _, kind = rest.partition(b".")
        name = first + stem
        if not path.startswith(_PLACE) or len(name) != _CHECKSUM or set(name) - _HEX:
            return None
        return name.decode(), kind.decode("ascii", "replace")

    def entry(self, entry: TarEntry) -> None:
        """A member without content: a symbolic link, or which attributes a content has."""
        found = self._parts(entry.path)
        if found is None:
            return
        checksum, kind = found
        if kind in {"file-xattrs-link", "file.xattrs"} and entry.type == HARDLINK:
            if entry.linkname not in self._sets:
                raise _refuse(entry, "names attributes that do not come before it")
            self._of[checksum] = self._sets[entry.linkname]
        elif kind == "file" and entry.type == SYMLINK:
            entry.xattrs = self._of.get(checksum, ())
            text(entry.linkname, "a link target")
            made = objects.symlink_checksum(entry.uid, entry.gid, entry.linkname, entry.xattrs)
            self._expect(entry, checksum, made.hex())
            self._list_object(entry, checksum, kind)

    def _expect(self, entry: TarEntry, checksum: str, found: str) -> None:
        if checksum != found:
            raise _refuse(entry, "has another checksum", found)

    def _list_object(self, entry: TarEntry, checksum: str, kind: str) -> None:
        name = f"{checksum}.{kind}"
        if name not in self._noted:
            self._noted.add(name)
            entry.path = name.encode()
            self._note(entry, None)

    def file(self, entry: TarEntry, body: memoryview) -> None:
        """A regular file whose content is in memory."""
        found = self._parts(entry.path)
        old = entry.path.startswith(_OLD_XATTRS)
        if old or (found is not None and found[1] == "file-xattrs"):
            self._sets[entry.path] = self._attributes(entry, bytes(body))
        elif found is None:
            return
        elif found[1] == "file-xattrs-link":
            self._of[found[0]] = self._attributes(entry, bytes(body))
        elif found[1] in METADATA:
            self._metadata(entry, *found, bytes(body))
        elif found[1] == "file":
            entry.xattrs = self._of.get(found[0], ())
            hasher = self._header(entry)
            hasher.update(body)
            self._expect(entry, found[0], hasher.hexdigest())
            path = entry.path
            super().file(entry, body)
            entry.path = path

    def _note(self, entry: TarEntry, checksum: str | None) -> None:
        if checksum is not None and entry.type == REGULAR:
            entry.path = f"{checksum}.file".encode()
        super()._note(entry, checksum)

    def _pairs(self, entry: TarEntry) -> tuple[tuple[bytes, bytes], ...]:
        return entry.xattrs

    def _attributes(self, entry: TarEntry, data: bytes) -> tuple[tuple[bytes, bytes], ...]:
        if len(data) > limits.OSTREE_XATTRS_BYTES:
            raise _refuse(entry, "is too large", f"{len(data)} bytes")
        try:
            pairs = [(name.rstrip(b"\0"), value) for name, value in decode("a(ayay)", data)]
        except ValueError as problem:
            raise _refuse(entry, "is no list of attributes", printable(str(problem))) from None
        return tuple(sorted(pairs))

    def _metadata(self, entry: TarEntry, checksum: str, kind: str, data: bytes) -> None:
        if len(data) > limits.OSTREE_METADATA_BYTES:
            raise _refuse(entry, "is too large", f"{len(data)} bytes")
        if kind != "commitmeta":
            self._expect(entry, checksum, hashlib.sha256(data).hexdigest())
        name = f"{checksum}.{kind}"
        if name not in self._noted:
            descriptor = self._create(name)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            self._bytes_new += len(data)
        self._list_object(entry, checksum, kind)

    def begin_file(self, entry: TarEntry) -> None:
        """A large regular file begins."""
        found = self._parts(entry.path)
        self._body, self._checksum = None, ""
        if found is not None and found[1] == "file":
            entry.xattrs = self._of.get(found[0], ())
            self._checksum = found[0]
            super().begin_file(entry)
        elif found is not None and found[1] in METADATA:
            if entry.size > limits.OSTREE_METADATA_BYTES:
                raise _refuse(entry, "is too large", f"{entry.size} bytes")
            self._entry, self._body = entry, bytearray()

    def write(self, piece: memoryview) -> None:
        """Its next bytes."""
        if self._body is not None:
            self._body += piece
        elif self._checksum:
            super().write(piece)

    def end_file(self) -> None:
        """All its bytes were written."""
        entry = self._entry
        if self._body is not None and entry is not None:
            found = self._parts(entry.path)
            if found is not None:
                self._metadata(entry, *found, bytes(self._body))
        elif self._checksum and entry is not None:
            self._expect(entry, self._checksum, self._hash.hexdigest())
            super().end_file()
        self._entry = None

    @classmethod
    def _line_is_whole(cls, line: list[Any], staged: int, known: int) -> bool:
        name, _, kind = str(line[0]).partition(".")
        if kind == "file":
            return line[1] == SYMLINK or super()._line_is_whole(line, staged, known)
        descriptor = os.open(
            f"{name}.{kind}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=staged
        )
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(limits.OSTREE_METADATA_BYTES + 1)
        return kind == "commitmeta" or hashlib.sha256(data).hexdigest() == name
