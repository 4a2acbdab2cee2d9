"""Merges layers into one tree (OCI image specification 1.1, "Image Layer Filesystem Changeset").

Rules, and where the specification leaves a choice, the choice:

1. A whiteout ``DIR/.wh.NAME`` or an opaque marker ``DIR/.wh..wh..opq`` hides what *lower* layers have
   there, wherever in its layer it stands. So all of a layer's whiteouts are applied first.
2. Members come in their order. A directory over a directory keeps the children and takes over the metadata; everything else
   replaces what was there, wholly. The same name twice in a layer: the last one wins, and is counted.
3. A hard link is resolved when its turn comes, against everything merged so far (also lower layers, also a symbolic link itself,
   never through one), and shares the inode. A target that is missing, a directory, or hidden by this very layer is refused:
   implementations disagree about the last.
4. Parents that no layer mentions are directories, 0755, root's, of 1970. A parent that is anything else than a directory is
   refused: symbolic links of the image are never followed.
5. The member for the root gives the root's metadata. What is inside ``/dev`` is dropped and counted; a device node
   elsewhere is refused.

Everything is a name in memory: paths such as ``proc`` or ``ostree`` mean nothing here. No recursion, no I/O.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bootc_core import limits
from bootc_core.errors import ContentError, printable
from bootc_core.models.tree import Node, Xattrs
from bootc_core.oci.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARDLINK,
    OPAQUE,
    REGULAR,
    SYMLINK,
    WHITEOUT,
    Merged,
)

_FORMATS: Final = {
    REGULAR: stat.S_IFREG,
    SYMLINK: stat.S_IFLNK,
    DIRECTORY: stat.S_IFDIR,
    FIFO: stat.S_IFIFO,
}
_DEVICES: Final = frozenset((CHARACTER, BLOCK_DEVICE))


@dataclass(slots=True)
class LayerStats:
    """What merging came to; ``LayerTree.stats`` adds up all layers.

    Attributes:
        entries: members seen, whiteouts included.
        whiteouts: whiteouts and opaque markers.
        hidden: names of lower layers that they hid (with whole trees counted once).
        duplicates: members that replaced one of the same name and layer.
        dropped: members inside ``/dev`` that were left out; worth a note.
    """

    entries: int = 0
    whiteouts: int = 0
    hidden: int = 0
    duplicates: int = 0
    dropped: int = 0

    def add(self, other: LayerStats) -> None:
        """Add the figures of another layer."""
        self.entries += other.entries
        self.whiteouts += other.whiteouts
        self.hidden += other.hidden
        self.duplicates += other.duplicates
        self.dropped += other.dropped


class LayerTree:
    """The merged tree of an image, layer by layer, lowest first.

    Attributes:
        root: the tree so far; valid after every layer.
        stats: figures of all layers so far.
    """

    def __init__(self, root: Node | None = None, *, max_entries: int = limits.ENTRIES) -> None:
        """Begin with an empty tree, or go on with ``root`` (which is changed)."""
        self.root = Node(stat.S_IFDIR | 0o755) if root is None else root
        self.stats = LayerStats()
        self._most = max_entries
        self._xattrs: dict[Xattrs, Xattrs] = {}

    def apply(self, entries: Iterable[Merged], what: str = "layer") -> LayerStats:
        """Merge one layer over what is there.

        Args:
            entries: ``(entry, inline, object)`` in the order of the archive, as ``tar.iter_entries`` yields them: for a regular
                file either its content or the backend's name for it (neither for an empty one).
            what: names the layer in errors.

        Returns:
            this layer's figures.

        Raises:
            ContentError: links that lead nowhere, parents that are no directories, devices (CON); too many members
                (LIM). The tree is unusable then.
        """
        stats = LayerStats()
        whiteouts, members = self._read(entries, stats, what)
        return self._merge(whiteouts, members, stats, what)

    def apply_members(
        self,
        whiteouts: list[bytes],
        members: list[tuple[bytes, Node | bytes]],
        stats: LayerStats,
        what: str = "layer",
    ) -> LayerStats:
        """``apply`` for a layer whose members were decoded before.

        Args:
            whiteouts: paths of all whiteouts.
            members: paths in the order of the archive, with a node each (which becomes part of the tree), or the target of a
                hard link; nothing inside ``/dev``.
            stats: ``entries`` and ``dropped`` of the layer; the rest is filled in.
            what: names the layer in errors.

        Raises:
            ContentError: as ``apply``.
        """
        if stats.entries > self._most - self.stats.entries:
            raise self._too_many(what)
        return self._merge(whiteouts, members, stats, what)

    def _too_many(self, what: str) -> ContentError:
        return ContentError(
            f"{what}: the image has too many files",
            reference="limit-exceeded",
            expected=f"at most {self._most}",
            catalogue="LIM",
        )

    def _merge(
        self,
        whiteouts: list[bytes],
        members: list[tuple[bytes, Node | bytes]],
        stats: LayerStats,
        what: str,
    ) -> LayerStats:
        for path in whiteouts:
            stats.hidden += _hide(self.root, path)
        stats.whiteouts = len(whiteouts)
        self._place(members, stats, what)
        self.stats.add(stats)
        return stats

    @property
    def interned(self) -> dict[Xattrs, Xattrs]:
        """Attributes seen so far: equal ones should be one object."""
        return self._xattrs

    def _read(
        self, entries: Iterable[Merged], stats: LayerStats, what: str
    ) -> tuple[list[bytes], list[tuple[bytes, Node | bytes]]]:
        """Whiteouts; and nodes, or for hard links their targets, by path."""
        whiteouts: list[bytes] = []
        members: list[tuple[bytes, Node | bytes]] = []
        xattrs_of = self._xattrs
        room = self._most - self.stats.entries
        for entry, inline, name in entries:
            path, kind = entry.path, entry.type
            stats.entries += 1
            if stats.entries > room:
                raise self._too_many(what)
            if WHITEOUT in path and entry.is_whiteout:
                whiteouts.append(path)
                continue
            if path[:4] == b"dev/":
                stats.dropped += 1
                continue
            if kind == HARDLINK:
                members.append((path, entry.linkname))
                continue
            xattrs = entry.xattrs
            if xattrs:
                xattrs = xattrs_of.setdefault(xattrs, xattrs)
            if kind == REGULAR:
                size = entry.size
                if inline is None and name is None:
                    if size:
                        raise ValueError("a regular file needs its content or a name for it")
                    inline = b""
            elif kind == SYMLINK:
                size, inline = 0, entry.linkname
            elif kind in _DEVICES:
                raise ContentError(
                    f"{what}: a device node outside /dev is not accepted: '{printable(path)}'",
                    reference="bad-member",
                )
            else:
                size = 0
            node = Node(
                _FORMATS[kind] | entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime,
                entry.mtime_ns,
                size=size,
                inline=inline,
                object=name,
                xattrs=xattrs,
            )
            members.append((path, node))
        return whiteouts, members

    def _place(
        self, members: list[tuple[bytes, Node | bytes]], stats: LayerStats, what: str
    ) -> None:
        root = self.root
        seen: set[bytes] = set()
        directories: dict[bytes, dict[bytes, Node]] = {
            b"": _children(root)
        }  # by path, while nothing replaces them
        for path, member in members:
            if path in seen:
                stats.duplicates += 1
            else:
                seen.add(path)
            parent, _, base = path.rpartition(b"/")
            siblings = directories.get(parent)
            if siblings is None:
                siblings = directories[parent] = _enter(root, parent, path, what)
            if type(member) is bytes:
                node = _link_target(directories, path, member, what)
            else:
                node = member  # type: ignore[assignment] # the other case is above
                if node.children is not None:
                    if not base:
                        _take_metadata(root, node)
                        continue
                    present = siblings.get(base)
                    if present is not None and present.children is not None:
                        _take_metadata(present, node)
                        continue
            present = siblings.get(base)
            if present is not None and present.children is not None:
                siblings[base] = node
                directories = {b"": _children(root)}  # some of them may have been beneath it
            else:
                siblings[base] = node


def apply_layer(root: Node, entries: Iterable[Merged], what: str = "layer") -> LayerStats:
    """Merge one layer over ``root`` in place (`LayerTree.apply` for a single layer).

    Raises:
        ContentError: see there.
    """
    return LayerTree(root).apply(entries, what)


def _children(node: Node) -> dict[bytes, Node]:
    children = node.children
    if children is None:
        raise ValueError("the root of a tree is a directory")
    return children


def _hide(root: Node, path: bytes) -> int:
    """Remove from the lower layers' tree what a whiteout names; how many names that were."""
    parts = path.split(b"/")
    last = parts.pop()
    node = root
    for part in parts:
        if node.children is None or (child := node.children.get(part)) is None:
            return 0
        node = child
    if node.children is None:
        return 0
    if last == OPAQUE:
        hidden = len(node.children)
        node.children.clear()
        return hidden
    return 0 if node.children.pop(last[len(WHITEOUT) :], None) is None else 1


def _enter(root: Node, parent: bytes, path: bytes, what: str) -> dict[bytes, Node]:
    """The children of the directory ``parent``, which is made where it is missing."""
    node = root
    for part in parent.split(b"/"):
        children = _children(node)
        child = children.get(part)
        if child is None:
            child = children[part] = Node(stat.S_IFDIR | 0o755)
        elif child.children is None:
            raise ContentError(
                f"{what}: cannot accept '{printable(path)}': its parent is not a directory",
                reference="parent-not-directory",
                expected="a directory",
                found=f"'{printable(part)}' is {_kind(child)}",
                hint="links of the image are never followed; build the layer with the path that the link leads to",
            )
        node = child
    return _children(node)


def _link_target(
    directories: dict[bytes, dict[bytes, Node]], path: bytes, target: bytes, what: str
) -> Node:
    parent, _, base = target.rpartition(b"/")
    siblings = directories.get(parent)
    if siblings is None:
        node: Node | None = None
        siblings = directories[b""]
        for part in parent.split(b"/"):
            node = siblings.get(part)
            if node is None or node.children is None:
                siblings = {}
                break
            siblings = node.children
    node = siblings.get(base)
    if node is None or node.children is not None:
        raise ContentError(
            f"{what}: cannot accept the hard link '{printable(path)}' to '{printable(target)}'",
            reference="bad-hard-link",
            expected="a file of this image that stands before the link",
            found="nothing of that name" if node is None else "a directory",
        )
    return node


def _take_metadata(present: Node, node: Node) -> None:
    present.mode = node.mode
    present.uid = node.uid
    present.gid = node.gid
    present.mtime = node.mtime
    present.mtime_ns = node.mtime_ns
    present.xattrs = node.xattrs


def _kind(node: Node) -> str:
    if stat.S_ISLNK(node.mode):
        return f"a symbolic link to '{printable(node.inline or b'')}'"
    return "a file" if stat.S_ISREG(node.mode) else "a special file"
