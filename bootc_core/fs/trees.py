"""Trees on disk and in images: scanned to one form, and written to fresh directories.

An ``Entry`` is one name with its metadata; contents are opened when they are needed. What is
written has the tree's owners, modes, attributes, links (hard and symbolic), devices and times with
nanoseconds; what an ordinary user cannot set goes to ``owners``. Nothing is followed, nothing
leaves the directory, and nothing is synced: that is done once, by whoever gives the directory its
final name.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.fs import atomic
from bootc_core.fs.beneath import Beneath
from bootc_core.fs.owners import Owner, OwnerView
from bootc_core.models.tree import Node, Xattrs

OpenFile = Callable[[Node], BinaryIO]
"""Opens the content of a regular file of an image tree that is not held inline."""

UPDATED: Final = frozenset({b".updated"})
LABEL: Final = b"security.selinux"
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
            and compared(self.xattrs) == compared(other.xattrs)
        )


class Tree(Protocol):
    """A tree that can be compared and copied; the directory itself is ``b""``."""

    entries: Mapping[bytes, Entry]  # parents before children, each level in byte order

    def open(self, path: bytes) -> BinaryIO:
        """The content of the regular file ``path``."""


Written = dict[bytes, str]
"""SHA-256 in hex of the files that were written, by path."""


def compared(xattrs: Xattrs) -> Xattrs:
    """The attributes that count when trees are compared: all but the label."""
    return tuple(pair for pair in xattrs if pair[0] != LABEL)


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


# --- writing -----------------------------------------------------------------------------


def populate(
    target_dir: Path,
    tree: Node | None,
    open_file: OpenFile,
    owners: OwnerView | None = None,
    exclude: Collection[bytes] = UPDATED,
) -> Written:
    """Write an image's subtree into the new directory ``target_dir``, which must not exist; what ``check_tree`` takes.

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
    items: dict[bytes, tuple[Tree, bytes, Entry]] = {
        path: (source, path, item) for path, item in source.entries.items()
    }
    return write_tree(target_dir, items, owners)


def write_tree(
    target_dir: Path,
    items: Mapping[bytes, tuple[Tree, bytes, Entry]],
    owners: OwnerView | None,
) -> Written:
    """Write a table of paths into the new directory ``target_dir``, which must not exist; what ``check_tree`` takes.

    Args:
        target_dir: a temporary name beside the final one.
        items: parents first, ``b""`` is the directory itself: the tree and the path in it that
            hold the content, and what to write.
        owners: an ordinary user's records, of the directory's *final* path; they are written anew.

    Raises:
        StorageError: no space, no permission; ``target_dir`` is to be removed by the caller.
    """
    atomic.mkdir(target_dir, 0o700, exist_ok=False)
    if owners is not None:
        owners.clear()
    written: Written = {}
    links: dict[tuple[int, object], bytes] = {}
    directories: list[tuple[bytes, Entry]] = []
    path = b""
    try:
        with Beneath(target_dir) as root:
            for path, (source, origin, entry) in items.items():
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
                if _create(root, path, source, origin, entry, owners, written):
                    _attributes(root, path, entry, owners)
            for path, entry in reversed(directories):  # deepest first: children would touch times
                _attributes(root, path, entry, owners)
    except OSError as problem:
        place = target_dir / os.fsdecode(path)
        raise atomic.storage_error(problem, "write", place) from problem
    return written


def check_tree(target_dir: Path, written: Written) -> None:
    """Compare the files with what was written, as the medium gives them back: for after the sync.

    Raises:
        StorageError: ``read-back``, naming the file.
    """
    tree = DiskTree({}, target_dir)
    for path, expected in written.items():
        with tree.open(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if found != expected:
            place = target_dir / os.fsdecode(path)
            raise atomic.read_back(place, f"sha256:{expected}", f"sha256:{found}")


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
    written: Written,
) -> bool:
    """Make the name with its content; False if no attributes are left to be given."""
    if entry.kind == "l":
        root.symlink(entry.target, path)
    elif entry.kind == "f":
        descriptor = root.create_file(path)
        content = hashlib.sha256()
        try:
            with source.open(origin) as stream:
                while chunk := stream.read(limits.CHUNK_BYTES):
                    content.update(chunk)
                    view = memoryview(chunk)
                    while view:
                        view = view[os.write(descriptor, view) :]
            written[path] = content.hexdigest()
            if owners is None:
                _give_attributes(descriptor, entry)
                return False
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


def _give_attributes(descriptor: int, entry: Entry) -> None:
    """As ``_attributes``, to an open file."""
    os.fchown(descriptor, entry.uid, entry.gid)
    for name, value in entry.xattrs:
        try:
            os.setxattr(descriptor, name, value)
        except OSError as problem:
            if name != LABEL or problem.errno not in {errno.ENOTSUP, errno.EPERM}:
                raise
    os.fchmod(descriptor, entry.mode)
    os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))


def _attributes(root: Beneath, path: bytes, entry: Entry, owners: OwnerView | None) -> None:
    """Owner, then attributes (a change of owner drops capabilities), then mode, then time."""
    if owners is None:
        root.chown(path, entry.uid, entry.gid)
        for name, value in entry.xattrs:
            try:
                root.setxattr(path, name, value)
            except OSError as problem:
                # Without SELinux support in the file system labels are made later, or not needed.
                if name != LABEL or problem.errno not in {errno.ENOTSUP, errno.EPERM}:
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
