"""The members of a layer in columns: what its splitstream says about names and metadata, so that no header is decoded twice.

    0    "bootcMem" version flags members metas texts      40 bytes; CRC-32 of all that follows, sizes of the three blobs
         meta       u32 a member: index into metas
         reference  u32 a member: index into the splitstream's object_refs, or TEXT, or NONE
         seconds    i64 a member
         size       u64 a member
         nanos      u32 a member
         lengths    u32 a text
         metas      type mode uid gid, number of attributes, and these with their lengths
         paths      a member each, NUL after each
         texts      link targets and contents of small files, in the order of the members

Made by the worker while it splits the layer, and by the merge for layers that have none. It is kept in the sysroot's cache by the
digest of the splitstream and never needed: a file that does not fit is ignored. Numbers are in the byte order of the machine.
"""

from __future__ import annotations

import stat
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Final

from bootc_core import limits
from bootc_core.models.tree import Node, Xattrs
from bootc_core.oci import tar

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this architecture
    from zlib import crc32

_MAGIC: Final = b"bootcMem"
_VERSION: Final = 1 if sys.byteorder == "little" else 0x100
_head = struct.Struct("=8sIIIIIQQQ")
_meta = struct.Struct("=BHIII")
_pair = struct.Struct("=HI")
TEXT: Final = 0xFFFFFFFF
NONE: Final = 0xFFFFFFFE
_FORMATS: Final = {
    tar.REGULAR: stat.S_IFREG,
    tar.SYMLINK: stat.S_IFLNK,
    tar.DIRECTORY: stat.S_IFDIR,
    tar.FIFO: stat.S_IFIFO,
}
_COLUMNS: Final = "IIqQI"
_MOST_BYTES: Final = 24 * limits.MIB  # of paths and texts

Members = tuple[list[bytes], list[tuple[bytes, Node | bytes]], int, int]


class Writer:
    """Collects the members of a layer in their order.

    Attributes:
        too_many: more than are worth the memory: such a layer goes without.
    """

    __slots__ = ("_columns", "_lengths", "_metas", "_paths", "_texts", "too_many")

    def __init__(self) -> None:
        self._columns = tuple(array(code) for code in _COLUMNS)
        self._metas: dict[tuple[int, int, int, int, Xattrs], int] = {}
        self._paths = bytearray()
        self._lengths = array("I")
        self._texts = bytearray()
        self.too_many = False

    def add(self, entry: tar.TarEntry, reference: int, text: bytes | memoryview = b"") -> None:
        """One member.

        Args:
            entry: its metadata.
            reference: index of its object; ``TEXT`` if ``text`` is its content; ``NONE`` for what is no regular file.
            text: content of a small file.
        """
        if self.too_many:
            return
        kind = entry.type
        key = (kind, entry.mode, entry.uid, entry.gid, entry.xattrs)
        metas = self._metas
        number = metas.get(key)
        if number is None:
            number = metas[key] = len(metas)
        if kind == tar.SYMLINK or kind == tar.HARDLINK:
            reference, text = TEXT, entry.linkname
        meta, references, seconds, sizes, nanos = self._columns
        meta.append(number)
        references.append(reference)
        seconds.append(entry.mtime)
        sizes.append(entry.size)
        nanos.append(entry.mtime_ns)
        self._paths += entry.path
        self._paths += b"\0"
        if len(self._paths) + len(self._texts) > _MOST_BYTES:
            self.too_many = True
            self._paths.clear()
            self._texts.clear()
        if reference == TEXT:
            self._lengths.append(len(text))
            self._texts += text

    def pieces(self) -> Iterator[bytes | bytearray]:
        """The file."""
        metas = bytearray()
        for kind, mode, uid, gid, xattrs in self._metas:
            metas += _meta.pack(kind, mode, uid, gid, len(xattrs))
            for name, value in xattrs:
                metas += _pair.pack(len(name), len(value)) + name + value
        body: list[bytes | bytearray] = [
            *(column.tobytes() for column in self._columns),
            self._lengths.tobytes(),
        ]
        body += [metas, self._paths, self._texts]
        crc = 0
        for piece in body:
            crc = crc32(piece, crc)
        count = len(self._columns[0])
        sizes = len(metas), len(self._paths), len(self._texts)
        yield _head.pack(_MAGIC, _VERSION, crc, count, len(self._metas), len(self._lengths), *sizes)
        yield from body


def noted(
    entries: Iterable[tar.Merged], objects: dict[bytes, int], writer: Writer
) -> Iterator[tar.Merged]:
    """``entries``, each added to ``writer`` on the way; ``objects`` has the indices of their objects."""
    for found in entries:
        entry, inline, name = found
        if name is not None:
            writer.add(entry, objects[name])
        elif entry.type == tar.REGULAR:
            writer.add(entry, TEXT, inline or b"")
        else:
            writer.add(entry, NONE)
        yield found


def load(data: bytes, object_refs: list[bytes], interned: dict[Xattrs, Xattrs]) -> Members | None:
    """What the merge needs of a layer's members; None if ``data`` is not whole, or not of this layer.

    Args:
        data: the file.
        object_refs: digests of the layer's objects.
        interned: equal attributes, once.

    Returns:
        paths of whiteouts; paths with nodes, or with the targets of hard links; how many members there are, and how many of
        them, devices and all else inside ``/dev``, were left out.
    """
    try:
        return _load(data, object_refs, interned)
    except (struct.error, LookupError, ValueError, StopIteration, MemoryError):
        return None


def large(data: bytes, above: int) -> dict[int, int] | None:
    """Indices of a layer's objects of more than ``above`` bytes, with their sizes; None if ``data`` is not whole."""
    found = _columns(data)
    if found is None:
        return None
    _, references, _, sizes, *_ = found[0]
    return {
        reference: size
        for reference, size in zip(references, sizes, strict=True)
        if size > above and reference < NONE
    }


def _columns(data: bytes) -> tuple[list[array[int]], int, int, tuple[int, int, int]] | None:
    """The columns, where the blobs begin, how many metas there are, and the sizes of the blobs."""
    if len(data) < _head.size:
        return None
    magic, version, crc, count, kinds, texts, *blobs = _head.unpack_from(data)
    view = memoryview(data)
    place = _head.size
    if magic != _MAGIC or version != _VERSION or count > limits.ENTRIES:
        return None
    columns = []
    for code, length in [*((code, count) for code in _COLUMNS), ("I", texts)]:
        column = array(code)
        end = place + length * column.itemsize
        if end > len(data):
            return None
        column.frombytes(view[place:end])
        columns.append(column)
        place = end
    if place + sum(blobs) != len(data) or crc32(view[_head.size :]) != crc:
        return None
    return columns, place, kinds, (blobs[0], blobs[1], blobs[2])


def _load(data: bytes, object_refs: list[bytes], interned: dict[Xattrs, Xattrs]) -> Members | None:
    found = _columns(data)
    if found is None:
        return None
    columns, place, kinds, blobs = found
    view = memoryview(data)
    # From here on the bytes are those that this program wrote.
    numbers, references, seconds, sizes, nanos, lengths = columns
    metas = _metas(view[place : place + blobs[0]], kinds, interned)
    place += blobs[0]
    paths = data[place : place + blobs[1]].split(b"\0")
    place += blobs[1]
    pieces = iter([data[start:end] for start, end in pairwise(accumulate(lengths, initial=place))])
    whiteouts: list[bytes] = []
    members: list[tuple[bytes, Node | bytes]] = []
    append = members.append
    dropped = 0
    for path, number, reference, second, size, nano in zip(
        paths, numbers, references, seconds, sizes, nanos, strict=False
    ):
        kind, mode, uid, gid, xattrs = metas[number]
        inline = next(pieces) if reference == TEXT else None
        if tar.WHITEOUT in path and path.rpartition(b"/")[2].startswith(tar.WHITEOUT):
            whiteouts.append(path)
            continue
        if path[:4] == b"dev/":
            dropped += 1
            continue
        if kind == 0:  # a hard link: metas say so, since it has no format of its own
            append((path, inline or b""))
            continue
        name = None
        if inline is None and reference != NONE:
            name = object_refs[reference]
        node = Node(
            mode, uid, gid, second, nano, size=size, inline=inline, object=name, xattrs=xattrs
        )
        append((path, node))
    return whiteouts, members, len(numbers), dropped


def _metas(
    view: memoryview, count: int, interned: dict[Xattrs, Xattrs]
) -> list[tuple[int, int, int, int, Xattrs]]:
    """Format (0 for hard links), mode with format, owner, group, attributes."""
    found = []
    place = 0
    for _ in range(count):
        kind, mode, uid, gid, number = _meta.unpack_from(view, place)
        place += _meta.size
        pairs = []
        for _ in range(number):
            name, value = _pair.unpack_from(view, place)
            place += _pair.size
            pairs.append(
                (
                    bytes(view[place : place + name]),
                    bytes(view[place + name : place + name + value]),
                )
            )
            place += name + value
        xattrs = tuple(pairs)
        xattrs = interned.setdefault(xattrs, xattrs)
        format_ = _FORMATS.get(kind, 0)
        found.append((format_, format_ | mode, uid, gid, xattrs))
    return found
