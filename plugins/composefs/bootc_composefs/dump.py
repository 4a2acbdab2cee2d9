r"""The text form of an image, one line a name: ``composefs-info dump`` prints it, ``mkcomposefs --from-file`` reads it.

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE]...
    /usr/bin/env 48536 100755 1 0 0 0 1700000000.0 54/3ab8... - 543ab8... security.selinux=...
    /usr/bin/other 0 @120000 - - - - 0.0 /usr/bin/env - -

``-`` is "not set", ``@`` a hard link to PAYLOAD, which otherwise is a link's target or a backing path; bytes outside
0x21..0x7e, and the backslash, are written ``\xHH``, ``\n``, ``\r``, ``\t``, ``\\``.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bootc_composefs.erofs_format import Overrides, backing_path
from bootc_core.errors import ContentError, printable
from bootc_core.models.tree import Node, walk

_FIELDS: Final = 11
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.)|$)", re.DOTALL)
_SIMPLE: Final = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_WRITTEN: Final = {
    byte: (b"\\x%02x" % byte) if not 0x21 <= byte <= 0x7E else bytes((byte,)) for byte in range(256)
} | {0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}
_SPECIAL: Final = re.compile(rb"[^\x21-\x7e]|\\")
_SPECIAL_KEY: Final = re.compile(rb"[^\x21-\x7e]|[\\=]")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A tree, and what the text says beyond it."""

    root: Node
    overrides: Overrides


def parse(text: bytes) -> Parsed:
    """The tree that a dump describes.

    Raises:
        ContentError: naming the line.
    """
    lines = text.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    reader = _Reader()
    for number, line in enumerate(lines, 1):
        try:
            reader.line(line)
        except (ValueError, KeyError, IndexError) as problem:
            raise ContentError(
                f"line {number} of a dump cannot be read: {printable(line, 80)}",
                reference="bad-dump",
                found=str(problem),
            ) from problem
    return reader.finish()


class _Reader:
    def __init__(self) -> None:
        self.root: Node | None = None
        self.nodes: dict[bytes, Node] = {}
        self.homes: dict[Node, tuple[Node, bytes]] = {}
        self.stated: dict[Node, int] = {}
        self.links: list[tuple[bytes, bytes]] = []  # path and target
        self.overrides = Overrides()

    def line(self, line: bytes) -> None:
        fields = line.split(b" ")
        if len(fields) < _FIELDS:
            raise ValueError(f"{len(fields)} fields, expected {_FIELDS}")
        path = unescape(fields[0])
        mode = fields[2]
        if path in self.nodes:
            raise ValueError("the path occurs twice")
        if mode.startswith(b"@"):
            target = _optional(fields[8])
            if target is None or stat.S_IFMT(int(mode[1:], 8)) in {0, stat.S_IFDIR}:
                raise ValueError("a hard link without a target, or to a directory")
            self.links.append((path, target))
            parent, name = self._place(path)
            _children(parent)[name] = parent  # keeps the name until the target is known
            return
        node = self._node(fields)
        if path == b"/":
            if self.root is not None or node.children is None:
                raise ValueError("the root is a directory and comes first")
            self.root = node
        else:
            parent, name = self._place(path)
            _children(parent)[name] = node
            self.homes[node] = parent, name
        self.nodes[path] = node

    def _place(self, path: bytes) -> tuple[Node, bytes]:
        head, slash, name = path.rpartition(b"/")
        if not slash or not 0 < len(name) <= 255 or name in {b".", b".."}:
            raise ValueError("not an absolute path")
        parent = self.nodes[head or b"/"]
        if name in _children(parent):
            raise ValueError("the path occurs twice")
        return parent, name

    def _node(self, fields: list[bytes]) -> Node:
        mode = int(fields[2], 8)
        seconds, _, nanoseconds = fields[7].partition(b".")
        payload, content = _optional(fields[8]), _optional(fields[9])
        digest = None if fields[10] == b"-" else bytes.fromhex(fields[10].decode("ascii"))
        xattrs = []
        for pair in fields[_FIELDS:]:
            key, equals, value = pair.partition(b"=")
            if not equals or not key:
                raise ValueError("an attribute without name or value")
            xattrs.append((unescape(key), unescape(value)))
        node = Node(
            mode,
            int(fields[4]),
            int(fields[5]),
            int(seconds),
            int(nanoseconds),
            xattrs=tuple(sorted(xattrs)),
        )
        kind = stat.S_IFMT(mode)
        size = int(fields[1])
        if kind == stat.S_IFLNK:
            if payload is None:
                raise ValueError("a symbolic link without a target")
            node.inline = payload
            node.size = len(payload)
        elif kind == stat.S_IFREG:
            node.size = size
            if content is not None or size == 0:
                node.inline = content or b""
                if len(node.inline) != size:
                    raise ValueError(f"{len(node.inline)} bytes of content, expected {size}")
            else:
                node.object = digest
                if digest is None or payload != backing_path(digest):
                    self.overrides.paths[node] = payload
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            node.rdev = int(fields[6])
        elif kind not in {stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK}:
            raise ValueError("unknown file type")
        if kind in {stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK} and size:
            self.overrides.sizes[node] = size
        self.stated[node] = int(fields[3])
        return node

    def finish(self) -> Parsed:
        if self.root is None:
            raise ContentError("a dump without a root", reference="bad-dump")
        names = dict.fromkeys(self.nodes.values(), 1)
        targets = dict(self.links)
        for path, target in self.links:
            steps = 0
            while target in targets and steps <= len(targets):
                target = targets[target]  # a hard link to a hard link
                steps += 1
            node = self.nodes.get(target)
            if node is None or node.children is not None:
                raise ContentError(
                    f"the hard link {printable(path, 80)} leads to no file",
                    reference="bad-dump",
                    found=printable(target, 80),
                )
            head, _, name = path.rpartition(b"/")
            _children(self.nodes[head or b"/"])[name] = node
            names[node] += 1
        for node, count in names.items():
            if node.children is None:
                if self.stated[node] != count:
                    self.overrides.links[node] = self.stated[node]
                if count > 1:
                    self.overrides.homes[node] = self.homes[node]
        return Parsed(self.root, self.overrides)


def _children(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise ValueError("the parent is not a directory")
    return node.children


def _optional(field: bytes) -> bytes | None:
    return None if field == b"-" else unescape(field)


def unescape(text: bytes) -> bytes:
    """The bytes that a field stands for.

    Raises:
        ValueError: an unknown escape.
    """
    if b"\0" in text:
        raise ValueError("a NUL byte")

    def replace(match: re.Match[bytes]) -> bytes:
        if match[1] is not None:
            return bytes.fromhex(match[1].decode())
        if match[2] not in _SIMPLE:
            raise ValueError(f"unknown escape {match[0]!r}")
        return _SIMPLE[match[2]]

    return _ESCAPE.sub(replace, text) if b"\\" in text else text


def escape(data: bytes, *, equals: bool = False) -> bytes:
    """A field's text; with ``equals`` also ``=`` is escaped."""
    pattern = _SPECIAL_KEY if equals else _SPECIAL
    return pattern.sub(lambda match: b"\\x3d" if match[0] == b"=" else _WRITTEN[match[0][0]], data)


def _field(data: bytes | None) -> bytes:
    if data is None or data == b"":
        return b"-"
    return rb"\x2d" if data == b"-" else escape(data)


def format(root: Node) -> bytes:
    """The dump of a tree: depth first in name order, the first name of a file in full, the others as hard links."""
    return b"".join(_lines(root))


def _lines(root: Node) -> Iterator[bytes]:
    counts: dict[Node, int] = {}
    for _, node in walk(root):
        counts[node] = counts.get(node, 0) + 1
    written: dict[Node, bytes] = {}
    for relative, node in walk(root):
        path = escape(b"/" + relative)
        if node in written:
            yield b"%s 0 @120000 - - - - 0.0 %s - -\n" % (path, written[node])
            continue
        size, links, rdev = 0, counts[node], 0
        payload = content = digest = None
        kind = stat.S_IFMT(node.mode)
        if node.children is not None:
            links = 2 + sum(child.children is not None for child in node.children.values())
        else:
            written[node] = path
        if kind == stat.S_IFLNK:
            payload = node.inline
            size = len(payload or b"")
        elif kind == stat.S_IFREG:
            content = node.inline
            size = node.size if content is None else len(content)
            if content is None and node.object is not None:
                payload, digest = backing_path(node.object), node.object.hex().encode()
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            rdev = node.rdev
        yield b"%s %d %o %d %d %d %d %d.%d %s %s %s" % (
            path,
            size,
            node.mode,
            links,
            node.uid,
            node.gid,
            rdev,
            node.mtime,
            node.mtime_ns,
            _field(payload),
            _field(content),
            digest or b"-",
        )
        for name, value in sorted(node.xattrs):
            yield b" %s=%s" % (escape(name, equals=True), escape(value, equals=True))
        yield b"\n"
