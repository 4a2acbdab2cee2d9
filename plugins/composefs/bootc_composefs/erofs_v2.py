"""EROFS metadata images of version 2, as repositories have them that were made before version 1.

Differences from ``erofs``: inodes are numbered depth first and always 64 bytes long, nanoseconds are dropped, nothing
is added to the root, whiteouts stay what they are, inline content and targets are never moved to blocks, and the
shared attributes are ordered otherwise and referred to by absolute offsets.
"""

from __future__ import annotations

import stat
import struct
from array import array

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
from bootc_core.fs.verity import Algorithm
from bootc_core.oci.tree import Node

_VERSION = 2


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

    pairs = [_pairs(node, algorithm, overrides) for node in inodes]
    entries: dict[Pair, bytes] = {}
    uses: dict[Pair, int] = {}
    for mine in pairs:
        for pair in mine:
            uses[pair] = uses.get(pair, 0) + 1
            if pair not in entries:
                entries[pair] = form.xattr_entry(*pair, _VERSION)
    shared = sorted(
        (pair for pair, count in uses.items() if count > 1),
        key=lambda pair: (*form.split_name(pair[0], _VERSION), pair[1]),
    )
    areas = [_area(mine, entries, uses) for mine in pairs]

    nids = array("I")
    types = bytearray()
    shapes: list[
        tuple[int, int, int, bytes]
    ] = []  # layout, size, blocks, tail of other than directories
    position = form.INODES_OFFSET
    for number, node in enumerate(inodes):
        types.append(check_file_type(node))
        layout, size, blocks, tail = shape = _shape(node, number, directories)
        shapes.append(shape)
        head, references, inline = areas[number]
        room = len(head) + 4 * len(references) + len(inline)
        if layout == form.INLINE:
            start = position + 64 + room
            if (start - 1) // BLOCK != (start + size % BLOCK) // BLOCK:
                position += BLOCK - (start - 1) % BLOCK
                position = (position + SLOT - 1) & -SLOT
        nids.append(position // SLOT)
        in_place = (
            size % BLOCK if layout == form.INLINE and node.children is not None else len(tail)
        )
        position = (position + 64 + room + in_place + SLOT - 1) & -SLOT

    offsets: dict[Pair, int] = {}
    for pair in shared:
        offsets[pair] = position
        position += len(entries[pair])
    data_start = (position + BLOCK - 1) & -BLOCK
    image = bytearray(data_start + BLOCK * sum(blocks for _, _, blocks, _ in shapes))
    for pair, offset in offsets.items():
        image[offset : offset + len(entries[pair])] = entries[pair]
    block = data_start // BLOCK
    for number, node in enumerate(inodes):
        layout, size, blocks, tail = shapes[number]
        union = node.rdev if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else 0
        if layout == form.CHUNKED:
            union = form.V2_CHUNK_FORMAT
        directory = directories.get(number)
        if directory is not None:
            if blocks:
                union = block
            for index in range(blocks):
                part = directory.part(index, nids, types)
                image[block * BLOCK : block * BLOCK + len(part)] = part
                block += 1
            if layout == form.INLINE:
                tail = directory.part(blocks, nids, types)
        head, references, inline = areas[number]
        area = head + struct.pack(
            f"<{len(references)}I", *(offsets[pair] // 4 for pair in references)
        )
        area += inline
        body = (
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
            + area
            + tail
        )
        start = nids[number] * SLOT
        image[start : start + len(body)] = body
    form.HEADER.pack_into(image, 0, form.COMPOSEFS_MAGIC, form.HEADER_VERSION, 0, _VERSION)
    form.SUPERBLOCK.pack_into(
        image,
        form.SUPERBLOCK_OFFSET,
        form.EROFS_MAGIC,
        0,
        form.FEATURE_COMPAT,
        12,
        0,
        nids[0],
        len(inodes),
        0,
        0,
        len(image) // BLOCK,
        0,
        0,
        0,
    )
    return bytes(image)


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


def _pairs(node: Node, algorithm: Algorithm, overrides: Overrides) -> tuple[Pair, ...]:
    """The attributes in their order: the two of external files, then by unescaped names."""
    own: tuple[Pair, ...] = ()
    if stat.S_ISREG(node.mode) and node.inline is None and node.size > 0:
        own = backing_pairs(node, algorithm, overrides)
        if node.object is None:
            own = own[1:]
    others = tuple(pair for entry in sorted(node.xattrs) for pair in form.escape((entry,)))
    return own + others


def _area(
    pairs: tuple[Pair, ...], entries: dict[Pair, bytes], uses: dict[Pair, int]
) -> tuple[bytes, list[Pair], bytes]:
    """The attribute area in three parts: header, shared pairs, own entries."""
    if not pairs:
        return b"", [], b""
    references = [pair for pair in pairs if uses[pair] > 1]
    found = 0
    for name, _ in pairs:
        found |= form.filter_bit(name, _VERSION)
    head = form.XATTR_HEADER.pack(~found & 0xFFFFFFFF, len(references))
    return head, references, b"".join([entries[pair] for pair in pairs if uses[pair] == 1])


def _shape(
    node: Node, number: int, directories: dict[int, Directory]
) -> tuple[int, int, int, bytes]:
    """Layout, size, number of blocks, and the tail unless it is a directory's (which needs all numbers first)."""
    if node.children is not None:
        blocks, tail = directories[number].layout()
        return form.INLINE if tail else form.PLAIN, blocks * BLOCK + tail, blocks, b""
    if stat.S_ISLNK(node.mode):
        target = check_target(node)
        return form.INLINE, len(target), 0, target
    if stat.S_ISREG(node.mode):
        if node.inline is not None:
            layout = form.INLINE if node.inline else form.PLAIN
            return layout, len(node.inline), 0, node.inline
        if node.size > 0:
            return form.CHUNKED, node.size, 0, b"\xff" * 4 if node.object is not None else b""
    return form.PLAIN, 0, 0, b""
