"""From an image's layers to what its commits hold.

The layers are merged by the rules of the OCI specification, in names of the image (``/etc``); a commit has the defaults of
``/etc`` in ``/usr/etc``, nothing below ``/run`` and the like, and an empty ``/boot``. Each layer also gets a commit of its own, as
the original makes it: its members alone, with whiteouts as empty files, so that either program knows the other's layers.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bootc_core.errors import ContentError, printable
from bootc_core.models.tree import Node, Xattrs, lookup
from bootc_core.oci import selinux
from bootc_core.oci.layers import LayerTree
from bootc_ostree import objects
from bootc_ostree.repo import Member, Repo

# mounted over in the booted system; in /sysroot of images that carry a commit is a repository
_EMPTIED: Final = (b"run", b"tmp", b"proc", b"sys", b"dev", b"sysroot")
_INJECTED: Final = (b"hostname", b"resolv.conf")  # empty ones in /etc come from container engines


def apply(tree: LayerTree, members: Sequence[Member], what: str) -> None:
    """Merge one layer; see ``LayerTree.apply``."""
    tree.apply(
        (
            (member.entry, None, bytes.fromhex(member.checksum) if member.checksum else None)
            for member in members
        ),
        what,
    )


def layer_tree(members: Iterable[Member], merged: Node) -> Node:
    """A layer's own tree, taken from the merged one right after it was applied; whiteouts are empty files.

    Files and links share the merged tree's nodes, so that they get its labels.
    """
    root = Node(stat.S_IFDIR | 0o755)
    directories: dict[bytes, Node] = {b"": root}
    sources: dict[bytes, Node | None] = {b"": merged}

    def source(path: bytes) -> Node | None:
        if path not in sources:
            parent, _, name = path.rpartition(b"/")
            above = source(parent)
            sources[path] = (above.children or {}).get(name) if above is not None else None
        return sources[path]

    def directory(path: bytes) -> Node:
        found = directories.get(path)
        if found is None:
            parent, _, name = path.rpartition(b"/")
            found = directories[path] = Node(stat.S_IFDIR | 0o755)
            _children(directory(parent))[name] = found
        return found

    for member in members:
        entry = member.entry
        parent, _, name = entry.path.rpartition(b"/")
        if entry.is_whiteout:
            empty = Node(stat.S_IFREG | 0o644, inline=b"")
            _children(directory(parent))[name] = empty
            continue
        above = source(parent)
        node = merged if not entry.path else (above.children or {}).get(name) if above else None
        if node is None:
            continue  # left out of the merged tree, too
        if node.children is None:
            _children(directory(parent))[name] = node
        else:
            place = directory(entry.path)
            place.mode, place.uid, place.gid = node.mode, node.uid, node.gid
            place.xattrs = node.xattrs
    return root


def transform(root: Node, *, keeps_var: bool) -> Node | None:
    """Make a tree what a commit holds, in place; the image's ``/var``.

    Args:
        root: of the merged image, or of one layer.
        keeps_var: libostree fills a new host's ``/var`` from the commit's; older ones find it among the factory defaults.
    """
    children = _children(root)
    for name in _EMPTIED:
        node = children.get(name)
        if node is not None and node.children is not None:
            node.children.clear()
    etc, var = children.pop(b"etc", None), children.get(b"var")
    if etc is not None:
        _children(_make(root, b"usr"))[b"etc"] = etc
    if not keeps_var and var is not None and var.children:
        _children(_make(root, objects.COMMIT_VAR.encode())).update(var.children)
        children[b"var"] = Node(var.mode, var.uid, var.gid, xattrs=var.xattrs)
    return var


def check(root: Node) -> None:
    """Refuse a merged tree, before its transformation, that cannot be deployed.

    Raises:
        ContentError: it has no ``/usr``, or both ``/etc`` and ``/usr/etc``, or other files than ostree keeps.
    """
    usr = (root.children or {}).get(b"usr")
    if usr is None or usr.children is None:
        raise ContentError("the image has no /usr", reference="not-bootable")
    if b"etc" in usr.children:
        raise ContentError(
            "the image has a /usr/etc",
            reference="usr-etc",
            expected="defaults in /etc; the deployment makes /usr/etc of them",
            hint="move its content to /etc",
        )
    for place in _special(root):
        raise ContentError(
            "the ostree backend keeps only files, directories and symbolic links",
            reference="unsupported-file",
            found=printable(place),
            hint="remove it from the image, or use the composefs backend",
        )


def finish(root: Node) -> None:
    """The last steps for a merged and transformed tree: no content in ``/boot``, no files of container engines."""
    boot = (root.children or {}).get(b"boot")
    if boot is not None and boot.children:
        boot.children.clear()
    etc = lookup(root, objects.COMMIT_ETC.encode())
    for name in _INJECTED:
        node = (etc.children or {}).get(name) if etc is not None else None
        if node is not None and stat.S_ISREG(node.mode) and node.size == 0:
            del _children(etc or root)[name]
    _children(root).setdefault(b"var", Node(stat.S_IFDIR | 0o755))


def label(root: Node, repo: Repo) -> None:
    """Give every file the label of the image's own policy, if it has one; before the transformation.

    A label is part of a content object, so files that get another one become other objects.

    Raises:
        ContentError: the policy cannot be used.
    """

    def read_file(node: Node) -> bytes:
        return repo.read_file(node.object or b"") if node.object is not None else node.inline or b""

    policy = selinux.load_policy(root, read_file)
    if policy is None:
        return
    before = {id(node): node.xattrs for node in _files(root)}
    selinux.label(root, policy)
    _end_labels(root)
    for node in _files(root):
        if node.object is not None and before.get(id(node)) != node.xattrs:
            node.object = repo.put_copy(node.object, node)


def _end_labels(root: Node) -> None:
    """Labels of ostree end in NUL, as ``setfilecon`` writes them."""
    known: dict[Xattrs, Xattrs] = {}
    stack, seen = [root], set[int]()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.xattrs:
            if node.xattrs not in known:
                known[node.xattrs] = tuple(
                    (name, value.rstrip(b"\0") + b"\0" if name == selinux.LABEL else value)
                    for name, value in node.xattrs
                )
            node.xattrs = known[node.xattrs]
        stack += (node.children or {}).values()


def _files(root: Node) -> Iterator[Node]:
    seen: set[int] = set()
    stack = [root]
    while stack:
        for child in (stack.pop().children or {}).values():
            if child.children is not None:
                stack.append(child)
            elif stat.S_ISREG(child.mode) and id(child) not in seen:
                seen.add(id(child))
                yield child


def _special(root: Node) -> Iterator[bytes]:
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        for name, child in (node.children or {}).items():
            place = path + b"/" + name
            if child.children is not None:
                if path or name not in _EMPTIED:
                    stack.append((place, child))
            elif not stat.S_ISREG(child.mode) and not stat.S_ISLNK(child.mode):
                yield place


def _children(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise ContentError(
            "the image has a file where a directory belongs", reference="not-bootable"
        )
    return node.children


def _make(root: Node, path: bytes) -> Node:
    node = root
    for part in path.split(b"/"):
        children = _children(node)
        if part not in children:
            children[part] = Node(stat.S_IFDIR | 0o755)
        node = children[part]
    return node
