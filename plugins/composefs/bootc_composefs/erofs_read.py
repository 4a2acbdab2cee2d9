"""Trees from EROFS metadata images (versions 0, 1, 2): the whole, or one directory without reading the rest.

What the writer added is taken away again: stubs, marks of whiteouts, the two attributes of external files, one ``overlay.`` of
escaped names. An image may come from anywhere, so nothing in it is believed: every offset is checked, and since parts of
an honest image never overlap, all parts together may not be larger than the image. That one budget bounds time and
memory, whatever refers to what.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from bootc_composefs import erofs_format as form
from bootc_composefs.erofs_format import BLOCK, SLOT, Overrides
from bootc_core import limits
from bootc_core.errors import ContentError, printable
from bootc_core.fs.verity import ALGORITHMS
from bootc_core.models.tree import Node, Xattrs

_DIGEST_LENGTHS: Final = {entry.id: entry.length for entry in ALGORITHMS.values()}
_INCOMPATIBLE: Final = 0xFFFFFFFF & ~4  # 4: chunk-based files, which other writers announce
_FORMAT: Final = struct.Struct("<H")
_WHITEOUT: Final = b"trusted.overlay.overlay.whiteout"
_WHITEOUTS: Final = b"trusted.overlay.overlay.whiteouts"
_MARKS: Final = frozenset(
    {_WHITEOUT, _WHITEOUTS, b"user.overlay.whiteout", b"user.overlay.whiteouts"}
)
_OPAQUE_MARKS: Final = frozenset({b"trusted.overlay.overlay.opaque", b"user.overlay.opaque"})

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image say."""

    version: int  # 0, 1 or 2
    has_acl: bool  # some file has a POSIX ACL; without, the mount needs no ACL support


def read_header(data: Buffer) -> Header:
    """The composefs header (the first 32 bytes are enough).

    Raises:
        ContentError: this is no composefs image, or a newer one.
    """
    if len(data) < form.HEADER.size:
        _bad("it is shorter than a header")
    magic, header, flags, version = form.HEADER.unpack_from(data)
    if magic != form.COMPOSEFS_MAGIC or header != form.HEADER_VERSION or version > 2:
        raise ContentError(
            "this is not a composefs image of a known version",
            reference="bad-erofs-image",
            expected=f"magic {form.COMPOSEFS_MAGIC:#x}, header 1, version 0, 1 or 2",
            found=f"magic {magic:#x}, header {header}, version {version}",
            catalogue="INT",
        )
    return Header(version, bool(flags & form.FLAG_HAS_ACL))


def read_image(data: Buffer, *, overrides: Overrides | None = None) -> Node:
    """The tree of an image.

    Args:
        data: the image; a mapped file will do. Nothing of it is kept.
        overrides: filled with what the tree cannot say (link counts, unusual backing paths), to repeat the image exactly.

    Raises:
        ContentError: the image is damaged or hostile.
    """
    tree = _read(data, b"", overrides)
    if tree is None:
        _bad("it has no root")
    return tree


def read_subtree(data: Buffer, path: bytes) -> Node | None:
    """What is at ``path`` (``b"etc"``, ``b"usr/lib/bootc/kargs.d"``), symbolic links not followed; ``None`` if nothing is.

    Only the directories on the way and the part below are read.

    Raises:
        ContentError: one of those is damaged or hostile.
    """
    return _read(data, path, None)


def _read(data: Buffer, path: bytes, overrides: Overrides | None) -> Node | None:
    with memoryview(data) as whole, whole.cast("B") as view:
        try:
            image = _Image(view)
            nid = image.root_nid
            for part in path.split(b"/"):
                if part in {b"", b"."}:
                    continue
                found = image.find(nid, part)
                if found is None:
                    return None
                nid = found
                image.budget += 2 * form.EXTENDED.size  # inodes on the way are looked at twice
            return image.tree(nid, overrides)
        except (struct.error, IndexError, OverflowError) as problem:
            raise ContentError(
                "an EROFS image is damaged",
                reference="bad-erofs-image",
                found=str(problem),
                catalogue="INT",
            ) from problem


def _bad(what: str) -> NoReturn:
    raise ContentError(
        f"an EROFS image is damaged: {what}", reference="bad-erofs-image", catalogue="INT"
    )


class _Inode(NamedTuple):
    layout: int
    mode: int
    size: int
    union: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    links: int
    area: int  # offset of the attributes
    body: int  # offset of what follows them


class _Image:
    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.end = len(view)
        self.budget = len(view)
        self.version = read_header(view).version
        if self.end < form.INODES_OFFSET:
            _bad("it is shorter than a superblock")
        fields = form.SUPERBLOCK.unpack_from(view, form.SUPERBLOCK_OFFSET)
        magic, _, _, bits, _, root, _, time_s, time_ns, blocks, meta, xattrs, incompatible = fields
        if magic != form.EROFS_MAGIC or bits != 12:
            _bad(f"superblock with magic {magic:#x} and block size 2^{bits}")
        if incompatible & _INCOMPATIBLE:
            _bad(f"unknown features {incompatible:#x}")
        if blocks * BLOCK > self.end:
            _bad(f"cut off: {self.end} bytes of {blocks * BLOCK}")
        self.root_nid: int = root
        self.time: tuple[int, int] = (time_s, time_ns)
        self.meta: int = meta * BLOCK
        self.xattr_base: int = xattrs * BLOCK
        self.pairs: dict[int, tuple[bytes, bytes]] = {}  # shared attributes by offset
        self.tuples: dict[Xattrs, Xattrs] = {}  # equal attributes, once

    def take(self, offset: int, size: int) -> memoryview:
        """A part of the image, paid from the budget."""
        self.budget -= size
        if self.budget < 0:
            _bad("its parts overlap")
        if offset + size > self.end:
            _bad(f"{size} bytes at {offset} of {self.end}")
        return self.view[offset : offset + size]

    # Inodes

    def inode(self, nid: int) -> _Inode:
        offset = self.meta + nid * SLOT
        head = self.take(offset, form.COMPACT.size)
        (format_,) = _FORMAT.unpack_from(head)
        layout = format_ >> 1
        if layout not in {form.PLAIN, form.INLINE, form.CHUNKED}:
            _bad(f"inode {nid} has format {format_:#x}")
        if format_ & 1:
            self.take(offset + form.COMPACT.size, form.EXTENDED.size - form.COMPACT.size)
            found = form.EXTENDED.unpack_from(self.view, offset)
            _, count, mode, _, size, union, _, uid, gid, seconds, nanoseconds, links = found
            area = offset + form.EXTENDED.size
        else:
            _, count, mode, links, size, _, union, _, uid, gid, _ = form.COMPACT.unpack(head)
            seconds, nanoseconds = self.time
            area = offset + form.COMPACT.size
        if stat.S_IFMT(mode) not in form.FILE_TYPES or mode > 0o177777:
            _bad(f"inode {nid} has mode {mode:o}")
        if nanoseconds > 999_999_999:
            _bad(f"inode {nid} has {nanoseconds} nanoseconds")
        if layout == form.CHUNKED and not stat.S_ISREG(mode):
            _bad(f"inode {nid} is chunk-based, but no file")
        body = area + (12 + 4 * (count - 1) if count else 0)
        return _Inode(layout, mode, size, union, uid, gid, seconds, nanoseconds, links, area, body)

    def content(self, inode: _Inode) -> bytes:
        """What is stored in the image itself: directories, targets, small files."""
        size = inode.size
        tail = size % BLOCK if inode.layout == form.INLINE else 0
        whole = bytes(self.take(inode.union * BLOCK, size - tail)) if size > tail else b""
        return whole + bytes(self.take(inode.body, tail)) if tail else whole

    def entries(self, inode: _Inode) -> Iterator[tuple[bytes, int]]:
        """Names and inode numbers of a directory, dots left out."""
        content = memoryview(self.content(inode))
        for start in range(0, len(content), BLOCK):
            yield from _part(content[start : start + BLOCK])

    def find(self, nid: int, name: bytes) -> int | None:
        """The inode number that a directory has for a name."""
        inode = self.inode(nid)
        if not stat.S_ISDIR(inode.mode):
            return None
        for entry, child in self.entries(inode):
            if entry == name:
                return None if self.is_stub(self.inode(child)) else child
        return None

    def is_stub(self, inode: _Inode) -> bool:
        """Is it one of the whiteouts that hide the object directory? Version 2 has none: there it is a whiteout of the image."""
        return self.version < 2 and inode.union == 0 and stat.S_ISCHR(inode.mode)

    # Attributes

    def xattrs(self, inode: _Inode) -> dict[bytes, bytes]:
        """The attributes as stored; of a name that is there twice, the first."""
        found: dict[bytes, bytes] = {}
        size = inode.body - inode.area
        if not size:
            return found
        area = self.take(inode.area, size)
        _, count = form.XATTR_HEADER.unpack_from(area)
        position = 12 + 4 * count
        if position > size:
            _bad("more shared attributes than there is room")
        for (reference,) in struct.iter_unpack("<I", area[12:position]):
            offset = self.xattr_base + 4 * reference
            pair = self.pairs.get(offset)
            if pair is None:
                pair, length = self._entry(offset)
                self.take(offset, length)
                self.pairs[offset] = pair
            found.setdefault(*pair)
        while position < size:
            pair, length = self._entry(inode.area + position)
            position += length
            if position > size:
                _bad("an attribute that leaves its inode")
            found.setdefault(*pair)
        return found

    def _entry(self, offset: int) -> tuple[tuple[bytes, bytes], int]:
        length, index, value_length = form.XATTR_ENTRY.unpack_from(self.view, offset)
        start = offset + form.XATTR_ENTRY.size
        end = start + length + value_length
        if end > self.end:
            _bad("an attribute beyond the end")
        prefix = form.PREFIX_OF_INDEX.get(index)
        if prefix is None or not prefix + self.view[start : start + length]:
            _bad(f"an attribute with name index {index} and {length} bytes")
        name = prefix + bytes(self.view[start : start + length])
        size = (form.XATTR_ENTRY.size + length + value_length + 3) & ~3
        return (name, bytes(self.view[start + length : end])), size

    # The tree

    def tree(self, nid: int, overrides: Overrides | None) -> Node:
        top, inode = self._node(nid, overrides)
        nodes = {nid: top}
        names: dict[Node, int] = {}
        stated = {top: inode.links}
        todo: list[tuple[Node, _Inode, int]] = [(top, inode, 0)] if top.is_dir else []
        count = 0
        while todo:
            directory, inode, depth = todo.pop()
            if depth >= limits.DEPTH:
                _bad(f"directories deeper than {limits.DEPTH}")
            children: dict[bytes, Node] = {}
            directory.children = children
            for name, child_nid in self.entries(inode):
                count += 1
                if count > limits.ENTRIES:
                    _bad(f"more than {limits.ENTRIES} entries")
                child = nodes.get(child_nid)
                if child is None:
                    child, child_inode = self._node(child_nid, overrides)
                    if self.is_stub(child_inode):
                        continue
                    nodes[child_nid] = child
                    stated[child] = child_inode.links
                    if child.is_dir:
                        todo.append((child, child_inode, depth + 1))
                elif child.is_dir:
                    _bad(f"the directory {printable(name, 80)} is in two places")
                if name in children:
                    _bad(f"the name {printable(name, 80)} is there twice")
                children[name] = child
                names[child] = names.get(child, 0) + 1
        if overrides is not None:
            for node, links in stated.items():
                if not node.is_dir and names.get(node, 1) != links:
                    overrides.links[node] = links
        return top

    def _node(self, nid: int, overrides: Overrides | None) -> tuple[Node, _Inode]:
        inode = self.inode(nid)
        stored = self.xattrs(inode)
        mode = inode.mode
        node = Node(mode, inode.uid, inode.gid, inode.mtime, inode.mtime_ns)
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            node.size = inode.size
            if inode.layout == form.CHUNKED and inode.size:
                node.object = _object(stored.get(form.METACOPY))
                path = stored.get(form.REDIRECT)
                if path is not None:
                    path = path.removeprefix(b"/")
                if overrides is not None and (
                    node.object is None or path != form.backing_path(node.object)
                ):
                    overrides.paths[node] = path
            else:
                node.inline = self.content(inode) if inode.layout != form.CHUNKED else b""
        elif kind == stat.S_IFLNK:
            if not 0 < inode.size <= limits.LINK_BYTES:
                _bad(f"a symbolic link of {inode.size} bytes")
            node.inline = self.content(inode)
            node.size = inode.size
            if b"\0" in node.inline:
                _bad("a symbolic link with a NUL byte")
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            node.rdev = inode.union
        if stored:
            if self.version < 2:
                if kind == stat.S_IFREG and _WHITEOUT in stored and not inode.size:
                    node.mode = stat.S_IFCHR | stat.S_IMODE(mode)
                    node.inline = None
                    stored = {key: stored[key] for key in stored.keys() - _MARKS}
                elif kind == stat.S_IFDIR and _WHITEOUTS in stored:
                    stored = {
                        key: value
                        for key, value in stored.items()
                        if key not in _MARKS and not (key in _OPAQUE_MARKS and value == b"x")
                    }
            xattrs = _unescape(stored)
            node.xattrs = self.tuples.setdefault(xattrs, xattrs)
        return node, inode


def _part(part: memoryview) -> Iterator[tuple[bytes, int]]:
    """Entries of one part of a directory."""
    if len(part) < form.DIRENT.size:
        _bad("a directory part without entries")
    _, names_at, _, _ = form.DIRENT.unpack_from(part)
    if not names_at or names_at % form.DIRENT.size or names_at > len(part):
        _bad(f"a directory part whose names begin at {names_at}")
    records = list(form.DIRENT.iter_unpack(part[:names_at]))
    for index, (nid, start, _, _) in enumerate(records):
        if index + 1 < len(records):
            end = records[index + 1][1]
            name = bytes(part[start:end]) if end <= len(part) else b""
        else:
            name = bytes(part[start:]).partition(b"\0")[0]
        if name in {b".", b".."}:
            continue
        if not 0 < len(name) <= limits.NAME_BYTES or b"/" in name or b"\0" in name:
            _bad(f"a directory with the name {printable(name, 80)!r}")
        yield name, nid


def _object(value: bytes | None) -> bytes | None:
    """The digest in a metacopy attribute."""
    if not value:
        return None
    if len(value) < 4 or value[0] or value[1] != len(value) or value[2]:
        _bad("a metacopy attribute of unknown form")
    if len(value) - 4 != _DIGEST_LENGTHS.get(value[3]):
        _bad(f"a digest of {len(value) - 4} bytes for algorithm {value[3]}")
    return value[4:]


def _unescape(stored: dict[bytes, bytes]) -> Xattrs:
    """The attributes of the image's content: those of the overlay itself left out, escaped ones as they were."""
    found = []
    for name, value in stored.items():
        if not name.startswith(form.OVERLAY):
            found.append((name, value))
        elif name.startswith(form.ESCAPED):
            found.append((form.OVERLAY + name[len(form.ESCAPED) :], value))
    return tuple(sorted(found))
