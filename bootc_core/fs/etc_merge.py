"""The three-way merge of ``/etc``: a pure plan over three trees, then a fresh directory with the result.

    pristine   the booted image's /etc            pristine -> current: what was changed locally
    current    /etc as it is now                  result = new + local changes
    new        the new image's /etc

Rules (per path; only directories, regular files and symbolic links count):

    added       only in current: kept; an added directory and each of its descendants count
    modified    type, content, link target, owner, mode or an attribute differs: local always wins
    removed     only in pristine (the top of a removed subtree): stays removed
    readded     a directory that the new image lacks, with local changes inside: kept for them
    conflict    a directory locally where the new image newly has something else, or the reverse:
                refused, all named (where the image has not changed its mind, local wins)
    skipped     a device, FIFO, socket or mount point in current: noted, never copied

Anything else follows the new image. There is no merge of contents. ``security.selinux`` does not
count (labels belong to the new image's policy), nor do times. ``.updated`` is left out, so that
units with ``ConditionNeedsUpdate=`` run. Contents are compared only where everything else is equal,
streamed, in bounded memory.

The result is written beside and takes effect by the caller's rename: an interrupted merge leaves
nothing behind but a directory to remove. ``populate`` writes an image's subtree the same way (the
first ``/etc``, and ``/var``).
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from bootc_core import limits
from bootc_core.errors import ContentError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.fs.beneath import Beneath
from bootc_core.fs.owners import Owner, OwnerView
from bootc_core.oci.tree import Node, Xattrs

OpenFile = Callable[[Node], BinaryIO]
"""Opens the content of a regular file of an image tree that is not held inline."""

UPDATED: Final = frozenset({b".updated"})
_LABEL: Final = b"security.selinux"
_IGNORED_PREFIXES: Final = (b"trusted.overlay.",)  # how an overlay mount keeps its books


class Entry:
    """One name of a tree: what the merge compares and writes."""

    __slots__ = (
        "gid",
        "identity",
        "kind",
        "mode",
        "mtime_ns",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        kind: str,
        mode: int,
        uid: int,
        gid: int,
        *,
        mtime_ns: int = 0,
        size: int = 0,
        target: bytes = b"",
        rdev: int = 0,
        xattrs: Xattrs = (),
        identity: object = None,
    ) -> None:
        self.kind = kind  # "d", "f", "l", "m" (something is mounted there), "b", "c", "p", "s"
        self.mode = mode  # permission bits
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = size
        self.target = target
        self.rdev = rdev
        self.xattrs = xattrs  # sorted by name
        self.identity = identity  # equal for the names of one file within a tree (hard links)

    @property
    def counts(self) -> bool:
        """Is it of a type that takes part in the merge?"""
        return self.kind in "dfl"

    def same_metadata(self, other: Entry) -> bool:
        """Equal type, owner, mode, attributes, size or target; content is not looked at."""
        return (
            self.kind == other.kind
            and (self.uid, self.gid) == (other.uid, other.gid)
            and (self.kind == "l" or self.mode == other.mode)
            and (self.kind != "f" or self.size == other.size)
            and (self.kind != "l" or self.target == other.target)
            and _compared(self.xattrs) == _compared(other.xattrs)
        )


class Tree(Protocol):
    """A tree that can be compared and copied; the directory itself is ``b""``."""

    entries: Mapping[bytes, Entry]  # parents before children, each level in byte order

    def open(self, path: bytes) -> BinaryIO:
        """The content of the regular file ``path``."""


def _compared(xattrs: Xattrs) -> Xattrs:
    return tuple(pair for pair in xattrs if pair[0] != _LABEL)


# --- scanners ----------------------------------------------------------------------------


class ImageTree:
    """A subtree of an image."""

    def __init__(
        self, entries: dict[bytes, Entry], nodes: dict[bytes, Node], open_file: OpenFile
    ) -> None:
        """Made by ``scan_tree``."""
        self.entries: Mapping[bytes, Entry] = entries
        self._nodes = nodes
        self._open_file = open_file

    def open(self, path: bytes) -> BinaryIO:
        """The content of the regular file ``path``."""
        node = self._nodes[path]
        return io.BytesIO(node.inline) if node.inline is not None else self._open_file(node)


class DiskTree:
    """A directory on disk."""

    def __init__(self, entries: dict[bytes, Entry], root: Path) -> None:
        """Made by ``scan_directory``."""
        self.entries: Mapping[bytes, Entry] = entries
        self._root = root

    def open(self, path: bytes) -> BinaryIO:
        """The content of the regular file ``path``."""
        with atomic.mapped("read", self._root / os.fsdecode(path)), Beneath(self._root) as root:
            return os.fdopen(root.open_file(path), "rb", buffering=0)


def scan_tree(
    root: Node | None, open_file: OpenFile, exclude: Collection[bytes] = UPDATED
) -> ImageTree:
    """The subtree ``root`` of an image (None: an empty directory), ready to be compared and copied.

    Args:
        root: a directory of the image.
        open_file: opens the content of a regular file that is not inline.
        exclude: names directly below ``root`` that are left out.

    Raises:
        ContentError: ``root`` is no directory.
    """
    if root is None:
        root = Node(stat.S_IFDIR | 0o755)
    if not root.is_dir:
        raise ContentError(
            "the image has something else where a directory belongs",
            reference="bad-image-tree",
            expected="a directory",
            found=stat.filemode(root.mode),
        )
    entries: dict[bytes, Entry] = {}
    nodes: dict[bytes, Node] = {}
    stack: list[tuple[bytes, Node]] = [(b"", root)]
    while stack:
        path, node = stack.pop()
        entries[path] = Entry(
            _kind(node.mode),
            stat.S_IMODE(node.mode),
            node.uid,
            node.gid,
            mtime_ns=node.mtime * 1_000_000_000 + node.mtime_ns,
            size=node.size,
            target=(node.inline or b"") if stat.S_ISLNK(node.mode) else b"",
            rdev=node.rdev,
            xattrs=node.xattrs,
            identity=None if node.is_dir else id(node),
        )
        nodes[path] = node
        if node.children:
            prefix = path + b"/" if path else b""
            stack += [
                (prefix + name, child)
                for name, child in sorted(node.children.items(), reverse=True)
                if path or name not in exclude
            ]
    return ImageTree(entries, nodes, open_file)


def scan_directory(
    directory: Path, owners: OwnerView | None = None, exclude: Collection[bytes] = UPDATED
) -> DiskTree:
    """The directory on disk, ready to be compared and copied.

    Nothing is followed and no mount point is entered. A missing directory is an error, not an empty
    one: as ``current`` it would mean that everything was removed.

    Args:
        directory: its path.
        owners: where an ordinary user's sysroot keeps what could not be set on disk.
        exclude: names directly below it that are left out.

    Raises:
        StorageError: it is missing, or something in it cannot be read.
        ContentError: more entries or levels than ``limits`` allow.
    """
    found: dict[bytes, Entry] = {}
    with atomic.mapped("read", directory), Beneath(directory) as root:
        device = os.fstat(root.fileno()).st_dev
        stack = [b""]
        while stack:
            path = stack.pop()
            info = root.lstat(path)
            entry = found[path] = _disk_entry(root, path, info, device, owners)
            if len(found) > limits.ENTRIES or path.count(b"/") > limits.DEPTH:
                raise ContentError(
                    f"{directory} holds too much to be merged",
                    reference="tree-too-large",
                    expected=f"at most {limits.ENTRIES} entries, {limits.DEPTH} levels",
                    catalogue="LIM",
                )
            if entry.kind == "d":
                prefix = path + b"/" if path else b""
                stack += [
                    prefix + name
                    for name in reversed(root.listdir(path))
                    if path or name not in exclude
                ]
    for path, owner in owners.devices() if owners else ():
        if path not in found and path:
            kind = _kind(owner.mode or 0)
            found[path] = Entry(
                kind,
                stat.S_IMODE(owner.mode or 0),
                owner.uid,
                owner.gid,
                rdev=owner.rdev,
                xattrs=owner.xattrs,
            )
    return DiskTree(dict(sorted(found.items(), key=lambda item: item[0].split(b"/"))), directory)


def _disk_entry(
    root: Beneath, path: bytes, info: os.stat_result, device: int, owners: OwnerView | None
) -> Entry:
    kind = _kind(info.st_mode)
    mode, uid, gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
    xattrs = tuple(pair for pair in root.xattrs(path) if not pair[0].startswith(_IGNORED_PREFIXES))
    if owners is not None:
        owner = owners.get(path) or Owner()
        uid, gid = owner.uid, owner.gid
        if owner.mode is not None and not owner.is_device and mode == owner.disk_mode:
            mode = owner.mode
        xattrs = tuple(sorted({**dict(xattrs), **dict(owner.xattrs)}.items()))
    return Entry(
        "m" if info.st_dev != device else kind,
        mode,
        uid,
        gid,
        mtime_ns=info.st_mtime_ns,
        size=info.st_size if kind == "f" else 0,
        target=root.readlink(path) if kind == "l" else b"",
        rdev=info.st_rdev,
        xattrs=xattrs,
        identity=(info.st_dev, info.st_ino) if kind != "d" and info.st_nlink > 1 else None,
    )


def _kind(mode: int) -> str:
    kind = stat.filemode(mode)[0]
    return "f" if kind == "-" else kind


# --- the plan ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that cannot be merged, and why: one sentence for the administrator."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What differs locally, each list in byte order; paths are relative to ``/etc``, ``b""`` is itself."""

    added: tuple[bytes, ...] = ()
    modified: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    readded: tuple[bytes, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    skipped: tuple[bytes, ...] = ()

    def check(self) -> None:
        """Refuse a merge with conflicts.

        Raises:
            StorageError: naming the first ones.
        """
        if self.conflicts:
            reasons = [conflict.reason for conflict in self.conflicts[:8]]
            if len(self.conflicts) > 8:
                reasons.append(f"and {len(self.conflicts) - 8} more")
            raise StorageError(
                "Merge conflicts found in etc",
                reference="etc-conflict",
                found="; ".join(reasons),
                hint="move the local files in /etc away, or restore what the image has there",
                catalogue="STATE",
            )


def plan(pristine: Tree, current: Tree, new: Tree) -> MergePlan:
    """What was changed locally between ``pristine`` and ``current``, and how that fits ``new``.

    Contents of ``pristine`` and ``current`` are read where only they can tell a difference; nothing
    is written.

    Raises:
        StorageError, ContentError: as their ``open``.
    """
    old, now, then = pristine.entries, current.entries, new.entries
    added: list[bytes] = []
    modified: list[bytes] = []
    skipped: list[bytes] = []
    for path, entry in now.items():
        before = old.get(path)
        if not entry.counts:
            if before is None or before.kind != entry.kind:
                skipped.append(path)
            continue
        if before is None or not before.counts:
            added.append(path)
        elif not entry.same_metadata(before) or (
            entry.kind == "f" and not _same_content(pristine, current, path)
        ):
            modified.append(path)
    removed = [
        path
        for path, entry in old.items()
        if path
        and entry.counts
        and not (path in now and (now[path].counts or now[path].kind == "m"))
        and _parent_is_directory(now, path)
    ]
    changed = set(added) | set(modified)
    conflicts = []
    for path in sorted(changed):
        after, before = then.get(path), old.get(path)
        if after is None or (after.kind == "d") == (now[path].kind == "d"):
            continue
        if before is not None and (before.kind == "d") == (after.kind == "d"):
            continue  # the image is as it was: the administrator replaced it, and local wins
        reason = (
            f"Directory '{printable(path)}' now defaults to a file in new etc"
            if now[path].kind == "d"
            else f"File '{printable(path)}' now defaults to a directory in new etc"
        )
        conflicts.append(Conflict(path, reason))
    readded: set[bytes] = set()
    for path in changed:
        parent = path
        while parent:
            parent = parent.rpartition(b"/")[0]
            if parent in changed or parent in readded:
                continue
            if parent not in then or then[parent].kind != "d":
                readded.add(parent)
    return MergePlan(
        tuple(sorted(added)),
        tuple(sorted(modified)),
        tuple(sorted(removed)),
        tuple(sorted(readded)),
        tuple(conflicts),
        tuple(sorted(skipped)),
    )


def _parent_is_directory(entries: Mapping[bytes, Entry], path: bytes) -> bool:
    parent = entries.get(path.rpartition(b"/")[0])
    return parent is not None and parent.kind == "d"


def _same_content(one: Tree, other: Tree, path: bytes) -> bool:
    with one.open(path) as first, other.open(path) as second:
        while True:
            left, right = _block(first), _block(second)
            if left != right:
                return False
            if not left:
                return True


def _block(stream: BinaryIO) -> bytes:
    """Exactly ``limits.CHUNK_BYTES``, or what is left: so that two streams are cut alike."""
    data = stream.read(limits.CHUNK_BYTES) or b""
    while len(data) < limits.CHUNK_BYTES:
        more = stream.read(limits.CHUNK_BYTES - len(data))
        if not more:
            break
        data += more
    return data


def merged(current: Tree, new: Tree, changes: MergePlan) -> dict[bytes, tuple[Tree, bytes, Entry]]:
    """The result as a table: path to the tree it comes from, the path there, and what to write. Pure.

    Raises:
        StorageError: ``changes`` has conflicts.
    """
    changes.check()
    local = {*changes.readded, *changes.added, *changes.modified}
    cut = {*changes.removed, *(path for path in local if current.entries[path].kind != "d")}
    result: dict[bytes, tuple[Tree, bytes, Entry]] = {}
    gone: set[bytes] = set()
    for path, entry in new.entries.items():  # parents first
        if path in cut or (path and path.rpartition(b"/")[0] in gone):
            gone.add(path)
        else:
            result[path] = (new, path, entry)
    for path in local:
        entry = _relabelled(current.entries[path], new.entries.get(path))
        result[path] = (current, path, entry)
    return dict(sorted(result.items(), key=lambda item: item[0].split(b"/")))


def _relabelled(entry: Entry, after: Entry | None) -> Entry:
    label = [pair for pair in after.xattrs if pair[0] == _LABEL] if after is not None else []
    if not label:
        return entry
    return Entry(
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        mtime_ns=entry.mtime_ns,
        size=entry.size,
        target=entry.target,
        rdev=entry.rdev,
        xattrs=tuple(sorted([*_compared(entry.xattrs), *label])),
        identity=entry.identity,
    )


# --- writing -----------------------------------------------------------------------------


def build_merged(
    target_dir: Path,
    current: Tree,
    new: Tree,
    changes: MergePlan,
    owners: OwnerView | None = None,
) -> None:
    """Write the merged tree into the new directory ``target_dir``, which must not exist.

    The caller brings it to the medium (one ``syncfs``), saves the owners' store and renames the
    directory.

    Args:
        target_dir: a temporary name beside the final one.
        current: as given to ``plan``.
        new: as given to ``plan``.
        changes: the plan.
        owners: an ordinary user's records, of the directory's *final* path; they are written anew.

    Raises:
        StorageError: conflicts, no space, no permission; ``target_dir`` is to be removed by the
            caller.
    """
    _write(target_dir, merged(current, new, changes), owners)


def populate(
    target_dir: Path,
    tree: Node | None,
    open_file: OpenFile,
    owners: OwnerView | None = None,
    exclude: Collection[bytes] = UPDATED,
) -> None:
    """Write an image's subtree into the new directory ``target_dir``, which must not exist.

    Owners, modes, attributes, links (hard and symbolic), devices and times with nanoseconds are the
    image's; what an ordinary user cannot set goes to ``owners``. Sync and rename are the caller's.

    Args:
        target_dir: a temporary name beside the final one.
        tree: a directory of the image; None writes an empty one.
        open_file: opens the content of a regular file that is not inline.
        owners: an ordinary user's records, of the directory's *final* path; they are written anew.
        exclude: names directly below ``tree`` that are left out.

    Raises:
        StorageError: no space, no permission; ``target_dir`` is to be removed by the caller.
        ContentError: ``tree`` is no directory.
    """
    source = scan_tree(tree, open_file, exclude)
    _write(
        target_dir, {path: (source, path, item) for path, item in source.entries.items()}, owners
    )


def _write(
    target_dir: Path,
    items: Mapping[bytes, tuple[Tree, bytes, Entry]],
    owners: OwnerView | None,
) -> None:
    atomic.mkdir(target_dir, 0o700, exist_ok=False)
    if owners is not None:
        owners.clear()
    links: dict[tuple[int, object], bytes] = {}
    directories: list[tuple[bytes, Entry]] = []
    with Beneath(target_dir) as root:
        for path, (source, origin, entry) in items.items():
            with atomic.mapped("write", target_dir / os.fsdecode(path)):
                if entry.kind == "d":
                    if path:
                        root.mkdir(path, 0o700)
                    directories.append((path, entry))
                    continue
                if entry.identity is not None:
                    first = links.setdefault((id(source), entry.identity), path)
                    if first != path:
                        _link(root, first, path, owners)
                        continue
                if _create(root, path, source, origin, entry, owners):
                    _attributes(root, path, entry, owners)
        for path, entry in reversed(directories):  # deepest first: children would touch times
            with atomic.mapped("write", target_dir / os.fsdecode(path)):
                _attributes(root, path, entry, owners)


def _link(root: Beneath, first: bytes, path: bytes, owners: OwnerView | None) -> None:
    record = owners.get(first) if owners is not None else None
    if owners is not None and record is not None:
        owners.set(path, record)
        if record.is_device:
            return
    root.link(first, path)


def _create(
    root: Beneath,
    path: bytes,
    source: Tree,
    origin: bytes,
    entry: Entry,
    owners: OwnerView | None,
) -> bool:
    """Make the name with its content; False if there is nothing on disk to give attributes to."""
    if entry.kind == "l":
        root.symlink(entry.target, path)
    elif entry.kind == "f":
        descriptor = root.create_file(path)
        try:
            with source.open(origin) as stream:
                while chunk := stream.read(limits.CHUNK_BYTES):
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
    elif entry.kind in "bc" and owners is not None:
        kind = stat.S_IFBLK if entry.kind == "b" else stat.S_IFCHR
        owners.set(
            path,
            Owner(entry.uid, entry.gid, kind | entry.mode, None, entry.rdev, entry.xattrs),
        )
        return False
    else:
        kinds = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "p": stat.S_IFIFO, "s": stat.S_IFSOCK}
        root.mknod(path, kinds[entry.kind] | 0o600, entry.rdev)
    return True


def _attributes(root: Beneath, path: bytes, entry: Entry, owners: OwnerView | None) -> None:
    """Owner, then attributes (a change of owner drops capabilities), then mode, then time."""
    if owners is None:
        root.chown(path, entry.uid, entry.gid)
        for name, value in entry.xattrs:
            try:
                root.setxattr(path, name, value)
            except OSError as problem:
                # Without SELinux support in the file system labels are made later, or not needed.
                if name != _LABEL or problem.errno not in {errno.ENOTSUP, errno.EPERM}:
                    raise
        if entry.kind != "l":
            root.chmod(path, entry.mode)
    else:
        kept = []
        for name, value in entry.xattrs:
            try:
                if not name.startswith(b"user."):
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
                root.setxattr(path, name, value)
            except OSError as problem:
                if problem.errno not in {errno.ENOTSUP, errno.EPERM, errno.EACCES}:
                    raise
                kept.append((name, value))
        mode = disk_mode = None
        if entry.kind != "l":
            # No set-user-id for the wrong user, and the owner can still read and replace it.
            disk_mode = (entry.mode & 0o1777) | (0o700 if entry.kind == "d" else 0o600)
            mode = entry.mode
            root.chmod(path, disk_mode)
            if mode == disk_mode:
                mode = disk_mode = None
        owners.set(path, Owner(entry.uid, entry.gid, mode, disk_mode, 0, tuple(kept)))
    root.utime(path, entry.mtime_ns)


def changes_text(changes: MergePlan) -> Iterator[str]:
    """One line for each local change, as ``config-diff`` prints them, without colour."""
    for word, paths in (
        ("Added", changes.added),
        ("Modified", changes.modified),
        ("Removed", changes.removed),
    ):
        for path in paths:
            yield f'{word} "{printable(path)}"'
    for conflict in changes.conflicts:
        yield f"Unmergable {conflict.reason}"
