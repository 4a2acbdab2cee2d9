"""EROFS metadata images of version 2, as repositories have them that were made before version 1.

Differences from ``erofs``: inodes are numbered depth first and always 64 bytes long, nanoseconds are dropped, nothing
is added to the root, whiteouts stay what they are, inline content and targets are never moved to blocks, and the
shared attributes are ordered otherwise and referred to by absolute offsets.
"""

from __future__ import annotations

import io
import stat
import struct
from array import array
from itertools import accumulate
from typing import Final

from bootc_composefs import erofs_format as form
from bootc_composefs.erofs_format import BLOCK, SLOT, Overrides
from bootc_composefs.erofs_tree import (
    Directory,
    Pair,
    backing_pairs,
    check_file_type,
    check_target,
    survey,
    xattr_count,
)
from bootc_core.errors import ContentError
from bootc_core.fs.verity import Algorithm
from bootc_core.models.tree import Node, Xattrs

_VERSION: Final = 2
_INLINE_MAX: Final = (
    BLOCK - SLOT
)  # what fits in one block wherever the slot begins; the kernel demands one


def write_v2(root: Node, algorithm: Algorithm, overrides: Overrides) -> bytes:
    """The image; see ``erofs.write_image``.

    Raises:
        ContentError: the tree does not fit in the format.
        StorageError: a file has no object, or one of another algorithm.
    """
    counts, homes, _ = survey(root)
    inodes: list[Node] = []
    directories: dict[int, Directory] = {}
    links: dict[int, int] = {}
    _number(root, counts, homes, inodes, directories, links)
    for number, node in enumerate(inodes):
        if node in overrides.links and node.children is None:
            links[number] = overrides.links[node]
    attributes = _Attributes(inodes, algorithm, overrides)

    nids = array("I")
    types = bytearray()
    blocks = 0
    position = form.INODES_OFFSET
    for number, node in enumerate(inodes):
        types.append(check_file_type(node))
        layout, size, count, tail = _shape(node, number, directories)
        blocks += count
        head = form.EXTENDED.size + attributes.size(node)
        if layout == form.INLINE:
            start = position + head
            if (start - 1) // BLOCK != (start + size % BLOCK) // BLOCK:
                position += BLOCK - (start - 1) % BLOCK
                position = (position + SLOT - 1) & -SLOT
        nids.append(position // SLOT)
        if node.children is not None:
            head += size % BLOCK
        position = (position + head + len(tail) + SLOT - 1) & -SLOT
    attributes.place(position)
    data_start = (position + len(attributes.table) + BLOCK - 1) & -BLOCK

    store = io.BytesIO()
    store.write(
        form.HEADER.pack(form.COMPOSEFS_MAGIC, form.HEADER_VERSION, 0, _VERSION).ljust(
            form.SUPERBLOCK_OFFSET, b"\0"
        )
    )
    store.write(
        form.SUPERBLOCK.pack(
            form.EROFS_MAGIC,
            0,
            form.FEATURE_COMPAT,
            12,
            0,
            nids[0],
            len(inodes),
            0,
            0,
            data_start // BLOCK + blocks,
            0,
            0,
            0,
        )
    )
    block = data_start // BLOCK
    data: list[bytes] = []
    for number, node in enumerate(inodes):
        layout, size, count, tail = _shape(node, number, directories)
        union = node.rdev if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else 0
        if layout == form.CHUNKED:
            union = form.V2_CHUNK_FORMAT
        if node.children is not None:
            if count:
                union = block
                block += count
            parts = directories[number]
            for index in range(count):
                data.append(parts.part(index, nids, types).ljust(BLOCK, b"\0"))
            if layout == form.INLINE:
                tail = parts.part(count, nids, types)
        area = attributes.area(node)
        store.write(bytes(nids[number] * SLOT - store.tell()))
        store.write(
            form.EXTENDED.pack(
                layout << 1 | 1,
                xattr_count(len(area)),
                node.mode,
                0,
                size,
                union,
                nids[number],
                node.uid,
                node.gid,
                node.mtime,
                0,
                links.get(number, 1),
            )
        )
        store.write(area)
        store.write(tail)
    store.write(bytes(position - store.tell()))
    store.write(attributes.table)
    store.write(bytes(data_start - store.tell()))
    store.writelines(data)
    return store.getvalue()


def _number(
    root: Node,
    counts: dict[Node, int],
    homes: dict[Node, tuple[Node, bytes]],
    inodes: list[Node],
    directories: dict[int, Directory],
    links: dict[int, int],
) -> None:
    """Number the inodes depth first; a hard-linked file at its first name, which is seen first in that order."""
    numbers: dict[Node, int] = {}
    stack: list[tuple[Node, int]] = [(root, -1)]  # with the number of the parent
    children_of: dict[int, dict[Node, int]] = {}
    while stack:
        node, parent = stack.pop()
        if node in homes:
            if node in numbers:
                continue
            links[len(inodes)] = counts[node]
        number = len(inodes)
        numbers[node] = number
        inodes.append(node)
        if node.children is None:
            continue
        directory = directories[number] = Directory(sorted(node.children))
        children_of[number] = {}
        links[number] = 2 + sum(child.children is not None for child in node.children.values())
        directory.targets = [number if parent < 0 else parent] * len(directory.names)
        names = [name for name in directory.names if name in node.children]
        stack += [(node.children[name], number) for name in reversed(names)]
    for number, directory in directories.items():
        children = inodes[number].children or {}
        for index, name in enumerate(directory.names):
            if name in children:
                directory.targets[index] = numbers[children[name]]
            elif name == b".":
                directory.targets[index] = number


class _Attributes:
    """The attributes of all inodes: which pairs are shared, and the area of one inode, made when it is needed."""

    def __init__(self, inodes: list[Node], algorithm: Algorithm, overrides: Overrides) -> None:
        self.algorithm = algorithm
        self.overrides = overrides
        self.others: dict[Xattrs, tuple[Pair, ...]] = {}  # escaped, by the attributes of a node
        self.bits: dict[bytes, int] = {}
        seen: set[int] = set()  # of a pair only the hash, until it is there again
        again: set[Pair] = set()
        for node in inodes:
            for pair in self.pairs(node):
                if (key := hash(pair)) in seen:
                    again.add(pair)
                seen.add(key)
        # Two pairs may have one hash.
        uses = dict.fromkeys(again, 0)
        for node in inodes:
            for pair in self.pairs(node):
                if pair in uses:
                    uses[pair] += 1
        shared = [pair for pair, count in uses.items() if count > 1]
        shared.sort(key=lambda pair: (*form.split_name(pair[0], _VERSION), pair[1]))
        entries = [form.xattr_entry(*pair, _VERSION) for pair in shared]
        self.shared = dict(zip(shared, accumulate(map(len, entries), initial=0), strict=False))
        self.table = b"".join(entries)
        self.start = 0

    def place(self, start: int) -> None:
        """Say where in the image the table is."""
        self.start = start

    def pairs(self, node: Node) -> tuple[Pair, ...]:
        """The attributes in their order: the two of external files, then by unescaped names."""
        others = self.others.get(node.xattrs)
        if others is None:
            others = tuple(pair for one in sorted(node.xattrs) for pair in form.escape((one,)))
            self.others[node.xattrs] = others
        if not stat.S_ISREG(node.mode) or node.inline is not None or node.size <= 0:
            return others
        own = backing_pairs(node, self.algorithm, self.overrides)
        return (own if node.object is not None else own[1:]) + others

    def size(self, node: Node) -> int:
        """Bytes of the attribute area."""
        return len(self.area(node))

    def area(self, node: Node) -> bytes:
        """The attribute area of an inode."""
        pairs = self.pairs(node)
        if not pairs:
            return b""
        references = []
        entries = []
        found = 0
        for pair in pairs:
            bit = self.bits.get(pair[0])
            if bit is None:
                bit = self.bits[pair[0]] = form.filter_bit(pair[0], _VERSION)
            found |= bit
            if (offset := self.shared.get(pair)) is not None:
                references.append((self.start + offset) // 4)
            else:
                entries.append(form.xattr_entry(*pair, _VERSION))
        head = form.XATTR_HEADER.pack(~found & 0xFFFFFFFF, len(references))
        return b"".join((head, struct.pack(f"<{len(references)}I", *references), *entries))


def _shape(
    node: Node, number: int, directories: dict[int, Directory]
) -> tuple[int, int, int, bytes]:
    """Layout, size, number of blocks, and the tail unless it is a directory's (which needs all numbers first)."""
    if node.children is not None:
        blocks, tail = directories[number].layout()
        return form.INLINE if tail else form.PLAIN, blocks * BLOCK + tail, blocks, b""
    content = node.inline
    if stat.S_ISLNK(node.mode):
        content = check_target(node)
    elif not stat.S_ISREG(node.mode) or (content is None and node.size <= 0):
        return form.PLAIN, 0, 0, b""
    elif content is None:
        return form.CHUNKED, node.size, 0, b"\xff" * 4 if node.object is not None else b""
    if len(content) > _INLINE_MAX:
        raise ContentError(
            "the target of a symbolic link, or a file's content, does not fit in an older image",
            reference="bad-link-target",
            expected=f"{_INLINE_MAX} bytes at most",
            found=f"{len(content)} bytes",
            hint="new repositories have no such limit",
        )
    return form.INLINE if content else form.PLAIN, len(content), 0, content
