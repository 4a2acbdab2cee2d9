"""What images of all versions do with a tree: its names and links, directories as bytes, checks of what cannot be stored."""

from __future__ import annotations

import stat
import sys
from array import array
from bisect import insort
from itertools import accumulate
from typing import Final

from bootc_composefs import erofs_format as form
from bootc_composefs.erofs_format import BLOCK, METACOPY, REDIRECT, Overrides
from bootc_core.errors import ContentError, StorageError, printable
from bootc_core.fs.verity import Algorithm
from bootc_core.models.tree import Node

DOT: Final = b"."
DOT_DOT: Final = b".."
_FORMAT: Final = 0o170000

Pair = tuple[bytes, bytes]  # name and value of an extended attribute


def survey(root: Node) -> tuple[dict[Node, int], dict[Node, tuple[Node, bytes]], bool]:
    """Link counts of files with several names, their first names (directory, name) in depth-first order, any whiteouts?

    Raises:
        ContentError: a directory has two names, or a name cannot be stored.
    """
    seen = {root}
    linked: set[Node] = set()
    parents: dict[Node, tuple[Node, bytes]] = {}
    whiteouts = False
    stack = [root]
    while stack:
        directory = stack.pop()
        children = directory.children or {}
        for name, child in children.items():
            if child not in seen:
                seen.add(child)
                if child.children is not None:
                    parents[child] = (directory, name)
                    stack.append(child)
                elif child.rdev == 0 and child.mode & _FORMAT == stat.S_IFCHR:
                    whiteouts = True
            elif child.children is not None:
                raise ContentError(
                    f"the directory {printable(name)} has two names", reference="bad-tree"
                )
            else:
                linked.add(child)
    counts: dict[Node, int] = {}
    first: dict[Node, tuple[bytes, ...]] = {}
    homes: dict[Node, tuple[Node, bytes]] = {}
    if linked:
        for directory in (root, *parents):
            path: tuple[bytes, ...] | None = None
            for name, child in (directory.children or {}).items():
                if child not in linked:
                    continue
                counts[child] = counts.get(child, 0) + 1
                if path is None:
                    path = _path(directory, parents)
                # Names in place, depth first, is the order of the paths' components.
                if child not in first or (*path, name) < first[child]:
                    first[child] = (*path, name)
                    homes[child] = (directory, name)
    return counts, homes, whiteouts


def _path(directory: Node, parents: dict[Node, tuple[Node, bytes]]) -> tuple[bytes, ...]:
    parts = []
    while directory in parents:
        directory, name = parents[directory]
        parts.append(name)
    return tuple(reversed(parts))


def check_names(names: list[bytes]) -> None:
    """Refuse names that a directory cannot hold; ``names`` is sorted, without the dots.

    Raises:
        ContentError: naming the first bad one.
    """
    if not names:
        return
    if max(map(len, names)) > 255 or not names[0] or b"/" in b"".join(names):
        bad = next(name for name in names if not 0 < len(name) <= 255 or b"/" in name)
        raise ContentError(
            f"the name {printable(bad, 80)!r} cannot be stored",
            reference="bad-name",
            expected="1 to 255 bytes without a slash",
            found=f"{len(bad)} bytes",
        )
    for dots in (DOT, DOT_DOT):
        if dots in names:
            raise ContentError(f"a directory has an entry {dots.decode()!r}", reference="bad-name")


class Directory:
    """Entries of one directory in their order, dots included, cut in parts of at most a block."""

    __slots__ = ("names", "parts", "targets")

    def __init__(self, names: list[bytes]) -> None:
        check_names(names)
        insort(names, DOT)
        insort(names, DOT_DOT)
        self.names = names
        self.targets: list[int] = []  # inode numbers, one a name
        lengths = list(map(len, names))
        total = 12 * len(names) + sum(lengths)
        self.parts: list[tuple[int, int, int]] = []  # first name, one past the last, bytes
        if total <= BLOCK:
            self.parts.append((0, len(names), total))
            return
        start = size = 0
        for index, length in enumerate(lengths):
            if size + 12 + length > BLOCK:
                self.parts.append((start, index, size))
                start, size = index, 0
            size += 12 + length
        self.parts.append((start, len(names), size))

    def layout(self) -> tuple[int, int]:
        """Number of blocks and bytes of the inline tail."""
        last = self.parts[-1][2]
        if last > form.TAIL_MAX:
            return len(self.parts), 0
        return len(self.parts) - 1, last

    def part(self, index: int, nids: array[int], types: bytearray) -> bytes:
        """The bytes of one part: fixed records, then the names back to back."""
        start, end, _ = self.parts[index]
        names = self.names[start:end]
        targets = self.targets[start:end]
        offsets = accumulate(map(len, names), initial=12 * len(names))
        records = array("I", bytes(12 * len(names)))
        records[0::3] = array("I", [nids[target] for target in targets])
        # zip drops the last offset, which is where the names end
        kinds = [types[target] for target in targets]
        records[2::3] = array(
            "I", [offset | kind << 16 for offset, kind in zip(offsets, kinds, strict=False)]
        )
        if sys.byteorder == "big":
            records.byteswap()
        return records.tobytes() + b"".join(names)


def metacopy_value(name: bytes | None, algorithm: Algorithm) -> bytes:
    """The value of ``trusted.overlay.metacopy``: the digest that overlayfs demands of the data file, or nothing.

    Raises:
        StorageError: the object was named by another algorithm.
    """
    if name is None:
        return b""
    if len(name) != algorithm.length:
        raise StorageError(
            "an object was named by another algorithm than the repository's",
            reference="wrong-object-name",
            expected=f"{algorithm.length} bytes ({algorithm.name})",
            found=f"{len(name)} bytes",
            catalogue="BUG",
        )
    return bytes((0, 4 + len(name), 0, algorithm.id)) + name


def backing_pairs(node: Node, algorithm: Algorithm, overrides: Overrides) -> tuple[Pair, ...]:
    """The attributes that lead overlayfs from an external file to its object.

    Raises:
        StorageError: it has none.
    """
    pairs = [(METACOPY, metacopy_value(node.object, algorithm))]
    if node in overrides.paths:
        path = overrides.paths[node]
    elif node.object is None:
        raise StorageError(
            "a file has neither content nor an object", reference="missing-object", catalogue="BUG"
        )
    else:
        path = form.backing_path(node.object)
    if path is not None:
        pairs.append((REDIRECT, b"/" + path))
    return tuple(pairs)


def check_target(node: Node) -> bytes:
    """The target of a symbolic link.

    Raises:
        ContentError: it is empty or longer than the kernel can follow.
    """
    target = node.inline or b""
    if not 0 < len(target) < BLOCK:
        raise ContentError(
            "the target of a symbolic link does not fit",
            reference="bad-link-target",
            expected="1 to 4095 bytes",
            found=f"{len(target)} bytes",
        )
    return target


def check_file_type(node: Node) -> int:
    """The number that stands for an inode's type in directories.

    Raises:
        ContentError: the mode has no known type.
    """
    found = form.FILE_TYPES.get(node.mode & _FORMAT)
    if found is None or (found == form.FILE_TYPES[stat.S_IFDIR]) != (node.children is not None):
        raise ContentError(
            "an inode has an unknown type", reference="bad-tree", found=f"mode {node.mode:o}"
        )
    return found


def xattr_count(size: int) -> int:
    """The field that tells the size of an inode's attributes.

    Raises:
        ContentError: there are too many.
    """
    count = (size - 12) // 4 + 1 if size else 0
    if count > 65535:
        raise ContentError(
            "a file has too many extended attributes",
            reference="xattr-too-large",
            found=f"{size} bytes",
            catalogue="LIM",
        )
    return count
