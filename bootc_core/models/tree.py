r"""The file tree that all storage backends share: what an image's merged layers mean, without file contents.

A ``Node`` is an inode. A hard link is one ``Node`` under several names. File contents are named by ``object`` (the backend's
name for them, e.g. an fs-verity digest) or, for small files and symbolic links, held in ``inline``.

    Node(mode=S_IFDIR|0o755, children={b"usr": Node(...), ...})
    Node(mode=S_IFREG|0o644, size=5, inline=b"hello")
    Node(mode=S_IFREG|0o755, size=70000, object=b"\\x91\\xaa...")
    Node(mode=S_IFLNK|0o777, inline=b"usr/bin")

Memory is about 300 bytes an inode: slots, shared tuples, names as bytes. Times are seconds and nanoseconds, never floats.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

Xattrs = tuple[tuple[bytes, bytes], ...]  # sorted by name


class Node:
    """One inode of an image tree. Mutable while layers are merged, then only read."""

    __slots__ = (
        "children",
        "gid",
        "inline",
        "mode",
        "mtime",
        "mtime_ns",
        "object",
        "rdev",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        mtime_ns: int = 0,
        *,
        size: int = 0,
        inline: bytes | None = None,
        object: bytes | None = None,
        rdev: int = 0,
        xattrs: Xattrs = (),
    ) -> None:
        self.mode = mode  # file type and permission bits, as st_mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime  # seconds
        self.mtime_ns = mtime_ns  # 0..999999999
        self.size = size  # of regular files
        self.inline = inline  # content of a small regular file, or the target of a symbolic link
        self.object = object  # name of the content of other regular files, as raw bytes
        self.rdev = rdev  # of devices, as st_rdev in 32 bits
        self.xattrs = xattrs
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None

    @property
    def is_dir(self) -> bool:
        """Is it a directory?"""
        return self.children is not None

    def __repr__(self) -> str:
        return f"Node({stat.filemode(self.mode)} {self.uid}:{self.gid} size={self.size})"


def lookup(root: Node, path: bytes) -> Node | None:
    """The node at ``path`` (relative to the root, no ``..``), without following symbolic links; ``None`` if there is none."""
    node = root
    for part in path.split(b"/"):
        if part in {b"", b"."}:
            continue
        if node.children is None or (child := node.children.get(part)) is None:
            return None
        node = child
    return node


def resolve(root: Node, path: bytes, *, links: int = 40) -> Node | None:
    """The node at ``path`` with symbolic links followed inside the root, as the booted system would; ``None`` if there is none."""
    todo = [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]
    stack = [root]
    while todo:
        part = todo.pop()
        if part == b"..":
            if len(stack) > 1:
                stack.pop()
            continue
        node = stack[-1]
        if node.children is None or (child := node.children.get(part)) is None:
            return None
        if stat.S_ISLNK(child.mode):
            links -= 1
            if links < 0:
                return None
            target = child.inline or b""
            if target.startswith(b"/"):
                del stack[1:]
            todo += [piece for piece in reversed(target.split(b"/")) if piece not in {b"", b"."}]
            continue
        stack.append(child)
    return stack[-1]


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Every name with its node, depth first in byte order, parents before children; the root is ``b""``, others ``b"usr/bin"``."""
    stack: list[tuple[bytes, Node]] = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if node.children:
            prefix = path + b"/" if path else b""
            stack += [
                (prefix + name, child)
                for name, child in sorted(node.children.items(), reverse=True)
            ]
