"""The ostree repository of a sysroot: objects and refs as the real libostree keeps them (mode ``bare``).

    ostree/repo/config                        written by ``ostree admin init-fs``
    ostree/repo/objects/xx/REST.file          content with owner, mode and xattrs on it
    ostree/repo/objects/xx/REST.{dirtree,dirmeta,commit}
    ostree/repo/refs/heads/ostree/container/blob/DIGEST      one commit a layer: keeps its objects
    ostree/repo/refs/heads/ostree/container/image/REFERENCE  the merged image
    bootc/cache/ostree/DIFFID.entries         a layer's members as the sink wrote them (hard links, whiteouts, order)

Objects come first, then one sync of the file system, then the refs: a ref that exists has all its objects. Reading is plain file
access (``status`` has 100 ms and does not load libostree); what boots is written by libostree alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import ContentError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.models.tree import Node, Xattrs
from bootc_core.oci.tar import DIRECTORY, REGULAR, SYMLINK, TarEntry
from bootc_ostree import objects
from bootc_ostree.sink import has_other_owner, text
from bootc_ostree.variant import decode, encode

BLOBS: Final = "ostree/container/blob"
IMAGES: Final = "ostree/container/image"
_LINES_BYTES: Final = 256 * limits.KIB
_OBJECT_BYTES: Final = 128 * limits.MIB  # largest metadata object that libostree reads


@dataclass(frozen=True, slots=True)
class Member:
    """A line of an entries file: the member of a layer and the checksum of its content."""

    entry: TarEntry
    checksum: str | None


class Repo:
    """The repository at ``SYSROOT/ostree/repo`` (or at ``path``), and the layer cache beside it."""

    def __init__(self, sysroot: Path, path: Path | None = None) -> None:
        self.path = path or sysroot / "ostree/repo"
        self.objects = self.path / "objects"
        self._objects = str(self.objects)
        self._made: set[str] = set()  # directories of objects
        self._put: set[str] = set()  # metadata objects
        self._metas: dict[tuple[int, int, int, Xattrs], str] = {}
        self._number = 0
        self._uid, self._gid = os.geteuid(), os.getegid()
        self.heads = self.path / "refs/heads"
        self.cache = sysroot / "bootc/cache/ostree"

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep libostree's prune (which locks exclusively) away while objects are written.

        Raises:
            StorageError: something is pruning right now.
        """
        place = self.path / ".lock"
        with atomic.mapped("lock", place):
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            try:
                request = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
            except OSError:
                raise StorageError(
                    f"the repository {self.path} is being pruned",
                    reference="locked",
                    hint="wait until that has ended",
                    catalogue="BUSY",
                ) from None
            yield
        finally:
            os.close(descriptor)

    # objects

    def object_path(self, checksum: str, kind: str) -> Path:
        """Where an object is, or would be."""
        return self.objects / checksum[:2] / f"{checksum[2:]}.{kind}"

    def read_object(self, checksum: str, kind: str) -> bytes:
        """A metadata object's bytes.

        Raises:
            StorageError: missing, too large, or damaged.
        """
        path = self.object_path(checksum, kind)
        with atomic.mapped("read", path), path.open("rb") as file:
            data = file.read(_OBJECT_BYTES + 1)
        if hashlib.sha256(data).hexdigest() != checksum:
            raise _damaged(checksum, kind, "another checksum")
        return data

    def put_object(self, data: bytes, kind: str) -> str:
        """Store a metadata object, unsynced; its checksum. One that is there is left alone."""
        checksum = hashlib.sha256(data).hexdigest()
        path = f"{self._objects}/{checksum[:2]}/{checksum[2:]}.{kind}"
        if checksum in self._put or os.path.lexists(path):
            return checksum
        self.make_directory(checksum)
        atomic.announce("write", path)
        temporary = self._temporary(checksum)
        with atomic.mapped("write", path):
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fchmod(descriptor, 0o644)
            finally:
                os.close(descriptor)
        atomic.rename(temporary, path)
        self._put.add(checksum)
        return checksum

    def _temporary(self, checksum: str) -> str:
        """A fresh name in the directory of an object: one process writes, under the sysroot's lock."""
        self._number += 1
        return f"{self._objects}/{checksum[:2]}/.bootc-tmp-{os.getpid():x}-{self._number:x}"

    def make_directory(self, checksum: str) -> None:
        """Make the directory of an object."""
        if checksum[:2] not in self._made:
            atomic.mkdir(self.objects / checksum[:2], 0o775)
            self._made.add(checksum[:2])

    def has_file(self, checksum: str) -> bool:
        """Is the content object there?"""
        try:
            os.lstat(f"{self._objects}/{checksum[:2]}/{checksum[2:]}.file")
        except FileNotFoundError:
            return False
        return True

    def publish(self, source: str, checksum: str, entry: TarEntry) -> None:
        """Give the staged file ``source`` its name, and before that what the worker could not: owner, attributes, mode."""
        self.make_directory(checksum)
        if entry.xattrs or has_other_owner(entry, self._uid, self._gid):
            with atomic.mapped("set owner, mode and attributes of", source):
                descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    mode = stat.S_IFREG | entry.mode
                    self._dress(descriptor, Node(mode, entry.uid, entry.gid, xattrs=entry.xattrs))
                finally:
                    os.close(descriptor)
        atomic.rename(source, f"{self._objects}/{checksum[:2]}/{checksum[2:]}.file")

    def read_file(self, checksum: bytes) -> bytes:
        """The content of a regular file, at most the size of a policy's.

        Raises:
            StorageError: missing, or unreadable.
        """
        place = self.object_path(checksum.hex(), "file")
        with atomic.mapped("read", place), place.open("rb") as file:
            return file.read(limits.SELINUX_CONTEXTS_BYTES)

    def put_file(self, data: bytes, node: Node) -> bytes:
        """Store a regular file with the metadata of ``node``, unsynced; its checksum."""
        header = objects.file_header(node.uid, node.gid, node.mode, "", node.xattrs)
        name = hashlib.sha256(header + data).digest()
        if not self.has_file(name.hex()):
            self.make_directory(name.hex())
            path = self.object_path(name.hex(), "file")
            temporary = path.with_name(atomic.temporary_name("file"))
            with atomic.mapped("write", path):
                try:
                    with temporary.open("xb") as file:
                        file.write(data)
                        self._dress(file.fileno(), node)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
            atomic.rename(temporary, path)
        return name

    def put_copy(self, original: bytes, node: Node) -> bytes:
        """Store the content of another object with the metadata of ``node``, unsynced; its checksum."""
        hasher = hashlib.sha256(objects.file_header(node.uid, node.gid, node.mode, "", node.xattrs))
        source = self.object_path(original.hex(), "file")
        with atomic.mapped("read", source), source.open("rb", buffering=0) as file:
            while piece := file.read(limits.MIB):
                hasher.update(piece)
            name = hasher.digest()
            if self.has_file(name.hex()):
                return name
            self.make_directory(name.hex())
            path = self.object_path(name.hex(), "file")
            temporary = path.with_name(atomic.temporary_name("file"))
            with atomic.mapped("write", path):
                try:
                    with temporary.open("xb", buffering=0) as copy:
                        _copy(file.fileno(), copy.fileno())
                        self._dress(copy.fileno(), node)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        atomic.rename(temporary, path)
        return name

    @staticmethod
    def _dress(descriptor: int, node: Node) -> None:
        os.fchown(descriptor, node.uid, node.gid)
        for name, value in node.xattrs:
            os.setxattr(descriptor, name, value)
        os.fchmod(descriptor, stat.S_IMODE(node.mode))
        os.utime(descriptor, ns=(0, 0))

    # trees and commits

    def write_tree(self, node: Node) -> tuple[str, str]:
        """Store the directory ``node`` with all below; checksums of its list and its metadata.

        Content objects of regular files must be there; symbolic links are made here.

        Raises:
            ContentError: a name that is not UTF-8.
        """
        files: list[tuple[str, bytes]] = []
        directories: list[tuple[str, bytes, bytes]] = []
        for raw, child in (node.children or {}).items():
            name = text(raw, "a file name")
            if child.is_dir:
                inner, about = self.write_tree(child)
                directories.append((name, bytes.fromhex(inner), bytes.fromhex(about)))
            elif stat.S_ISLNK(child.mode):
                files.append((name, self.put_symlink(child)))
            else:
                files.append((name, child.object or self.put_file(child.inline or b"", child)))
        listing = objects.dirtree(files, directories)
        key = (node.uid, node.gid, node.mode, node.xattrs)
        meta = self._metas.get(key)
        if meta is None:
            meta = self._metas[key] = self.put_object(objects.dirmeta(*key), "dirmeta")
        return self.put_object(listing, "dirtree"), meta

    def put_symlink(self, node: Node) -> bytes:
        """Store a symbolic link, unsynced; its checksum."""
        target = node.inline or b""
        checksum = objects.symlink_checksum(node.uid, node.gid, target, node.xattrs)
        name = checksum.hex()
        path = f"{self._objects}/{name[:2]}/{name[2:]}.file"
        if not os.path.lexists(path):
            self.make_directory(name)
            temporary = self._temporary(name)
            with atomic.mapped("write", path):
                os.symlink(os.fsdecode(target), temporary)  # noqa: PTH211 - thousands of them
                os.chown(temporary, node.uid, node.gid, follow_symlinks=False)
                for key, value in node.xattrs:
                    os.setxattr(temporary, key, value, follow_symlinks=False)
            atomic.rename(temporary, path)
        return checksum

    def commit(
        self, root: Node, metadata: dict[str, str], timestamp: int, parent: str | None = None
    ) -> str:
        """Store ``root`` as a commit without subject; its checksum. Unsynced."""
        tree, meta = self.write_tree(root)
        data = objects.commit(
            bytes.fromhex(tree),
            bytes.fromhex(meta),
            metadata=metadata,
            timestamp=timestamp,
            parent=bytes.fromhex(parent or ""),
        )
        return self.put_object(data, "commit")

    def commit_objects(self, contents: dict[str, bytes]) -> str:
        """Store a commit whose tree lists content objects under their checksums; its own checksum. Unsynced."""
        tree = self.put_object(objects.dirtree(list(contents.items()), []), "dirtree")
        meta = self.put_object(objects.dirmeta(0, 0, stat.S_IFDIR | 0o755), "dirmeta")
        data = objects.commit(bytes.fromhex(tree), bytes.fromhex(meta), metadata={}, timestamp=0)
        return self.put_object(data, "commit")

    def read_commit(self, checksum: str) -> dict[str, Any]:
        """A commit's fields, as ``objects.parse_commit`` names them.

        Raises:
            StorageError: missing or damaged.
        """
        data = self.read_object(checksum, "commit")
        try:
            return objects.parse_commit(data)
        except ValueError as problem:
            raise StorageError(
                f"commit {checksum[:16]}… is not a commit",
                reference="damaged-object",
                found=printable(str(problem)),
                catalogue="INT",
            ) from None

    def read_detached(self, commit: str) -> dict[str, tuple[str, Any]] | None:
        """A commit's detached metadata, what was learnt after it was made, as (type, value); None: it cannot be read."""
        path = self.object_path(commit, "commitmeta")
        try:
            with path.open("rb") as file:
                return dict(decode("a{sv}", file.read(_OBJECT_BYTES)))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            return None

    def write_detached(self, commit: str, values: dict[str, tuple[str, Any]]) -> None:
        """Replace a commit's detached metadata, durably.

        Raises:
            StorageError: the old ones are untouched.
        """
        data = encode("a{sv}", sorted(values.items()))
        atomic.write_file(self.object_path(commit, "commitmeta"), data)

    def lookup(self, commit: str, path: str) -> bytes | None:
        """The content of the regular file at ``path`` of a commit, or None; links are not followed."""
        found = self._find(commit, path)
        if found is None or isinstance(found, dict):
            return None
        place = self.object_path(found, "file")
        if place.is_symlink():
            return None
        with atomic.mapped("read", place), place.open("rb") as file:
            return file.read(limits.SETTINGS_FILE_BYTES)

    def list_files(self, commit: str, path: str) -> list[str]:
        """Names of the files in the directory at ``path`` of a commit, sorted; none if there is no such directory."""
        found = self._find(commit, path)
        return sorted(found) if isinstance(found, dict) else []

    def _find(self, commit: str, path: str) -> str | dict[str, bytes] | None:
        tree = self.read_commit(commit)["tree"].hex()
        parts = [part for part in path.split("/") if part]
        for index, part in enumerate(parts):
            files, directories = objects.parse_dirtree(self.read_object(tree, "dirtree"))
            inner = next((entry for entry in directories if entry[0] == part), None)
            if inner is not None:
                tree = inner[1].hex()
            elif index == len(parts) - 1:
                return next((checksum.hex() for name, checksum in files if name == part), None)
            else:
                return None
        files, _ = objects.parse_dirtree(self.read_object(tree, "dirtree"))
        return dict(files)

    def copy_out(self, commit: str, path: str, place: Path) -> bool:
        """Copy what is at ``path`` of a commit, with what is below it, to the new name ``place``; False: there is nothing.

        Raises:
            StorageError: an object is missing, or the copy cannot be written.
        """
        found = self._find(commit, path)
        if found is None:
            return False
        with atomic.mapped("copy", place):
            if isinstance(found, str):
                shutil.copy2(self.object_path(found, "file"), place, follow_symlinks=False)
                return True
            place.mkdir()
            for name, checksum in found.items():
                source = self.object_path(checksum.hex(), "file")
                shutil.copy2(source, place / name, follow_symlinks=False)
        for name in self._directories(commit, path):
            self.copy_out(commit, f"{path}/{name}", place / name)
        return True

    def _directories(self, commit: str, path: str) -> list[str]:
        tree = self.read_commit(commit)["tree"].hex()
        for part in (*path.split("/"), ""):
            _, directories = objects.parse_dirtree(self.read_object(tree, "dirtree"))
            if part:
                tree = next(inner.hex() for name, inner, _ in directories if name == part)
        return [name for name, _, _ in directories]

    # refs

    def read_ref(self, name: str) -> str | None:
        """The commit that a ref names, or None."""
        try:
            value = (self.heads / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return value if len(value) == 64 and set(value) <= set("0123456789abcdef") else None

    def write_ref(self, name: str, commit: str, *, sync: bool = True) -> None:
        """Make a ref name ``commit``; with ``sync`` durably. One that does already is left alone."""
        if self.read_ref(name) == commit:
            return
        place = self.heads / name
        missing = [
            parent
            for parent in place.relative_to(self.heads).parents
            if not (self.heads / parent).is_dir()
        ]
        for parent in reversed(missing):
            atomic.mkdir(self.heads / parent, 0o775)
        atomic.write_file(place, commit.encode() + b"\n", sync=sync)

    def remove_ref(self, name: str) -> None:
        """Remove a ref, and the directories above that it leaves empty."""
        place = self.heads / name
        atomic.unlink(place)
        for parent in place.parents:
            if parent == self.heads or any(parent.iterdir()):
                break
            atomic.rmtree(parent)

    def remove_refspec(self, refspec: str) -> None:
        """Remove ``[REMOTE:]BRANCH``, which a deployment followed that was not from an image."""
        remote, colon, branch = refspec.rpartition(":")
        place = f"../remotes/{remote}/{branch}" if colon else branch
        parts = [*remote.split("/"), *branch.split("/")] if colon else branch.split("/")
        if all(part not in {"", ".", ".."} for part in parts) and (self.heads / place).is_file():
            atomic.unlink(self.heads / place)

    def refs(self, prefix: str) -> dict[str, str]:
        """Refs below ``prefix`` with their commits."""
        base = self.heads / prefix
        found = {}
        for path in sorted(base.rglob("*")) if base.is_dir() else ():
            name = str(path.relative_to(self.heads))
            if (
                not path.name.startswith(".")
                and path.is_file()
                and (commit := self.read_ref(name)) is not None
            ):
                found[name] = commit
        return found

    # layers

    def layer_members(self, commit: str) -> Iterator[Member]:
        """The members of a layer that another program imported, from its commit: paths as in the image, whiteouts by name.

        Raises:
            StorageError: an object is missing or damaged.
            ContentError: names that no directory can have, or more than an image may have.
        """
        data = self.read_commit(commit)
        todo = [("", data["tree"].hex(), data["meta"].hex())]
        count = 0
        metas: dict[str, tuple[int, int, int, Xattrs]] = {}
        trees: dict[str, tuple[list[tuple[str, bytes]], list[tuple[str, bytes, bytes]]]] = {}
        while todo:
            path, tree, meta = todo.pop()
            try:  # a tree may be in many places
                if meta not in metas:
                    metas[meta] = objects.parse_dirmeta(self.read_object(meta, "dirmeta"))
                if tree not in trees:
                    trees[tree] = objects.parse_dirtree(self.read_object(tree, "dirtree"))
            except ValueError as problem:
                raise _damaged(tree, "dirtree", str(problem)) from None
            uid, gid, mode, xattrs = metas[meta]
            files, directories = trees[tree]
            count += len(files) + len(directories)
            names = [*(one[0] for one in files), *(one[0] for one in directories)]
            _check_names(path, names, count)
            yield Member(
                TarEntry(image_path(path), DIRECTORY, stat.S_IMODE(mode), uid, gid, xattrs=xattrs),
                None,
            )
            prefix = f"{path}/" if path else ""
            for name, checksum in files:
                yield self._file_member(image_path(prefix + name), checksum.hex())
            todo += [
                (prefix + name, inner.hex(), about.hex())
                for name, inner, about in reversed(directories)
            ]

    def _file_member(self, path: bytes, checksum: str) -> Member:
        place = self.object_path(checksum, "file")
        with atomic.mapped("read", place):
            info = place.lstat()
            xattrs = tuple(
                sorted(
                    (os.fsencode(name), os.getxattr(place, name, follow_symlinks=False))
                    for name in os.listxattr(place, follow_symlinks=False)
                )
            )
            entry = TarEntry(
                path, REGULAR, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, xattrs=xattrs
            )
            if stat.S_ISLNK(info.st_mode):
                entry.type, entry.linkname = SYMLINK, os.fsencode(place.readlink())
                return Member(entry, None)
            entry.size = info.st_size
        return Member(entry, None if entry.is_whiteout else checksum)

    def entries_path(self, diff_id: str) -> Path:
        """Where a known layer's members are listed."""
        return self.cache / f"{diff_id.rpartition(':')[2]}.entries"


def _copy(source: int, target: int) -> None:
    """All of a file, shared where the file system can."""
    size, place = os.fstat(source).st_size, 0
    while place < size:
        count = os.copy_file_range(source, target, size - place, place, place)
        if not count:
            raise OSError(errno.EIO, "it shrank while it was copied")
        place += count


def image_path(path: str) -> bytes:
    """The name in an image of what a commit has at ``path``."""
    for place, name in ((objects.COMMIT_ETC, "etc"), (objects.COMMIT_VAR, "var")):
        if path == place or path.startswith(f"{place}/"):
            return (name + path[len(place) :]).encode()
    return path.encode()


def _check_names(path: str, names: list[str], count: int) -> None:
    """Trees are shared, so that few objects may mean any number of names; and a name may be none."""
    bad = next((name for name in names if name in {"", ".", ".."} or "/" in name), None)
    if bad is not None or count > limits.ENTRIES or path.count("/") >= limits.DEPTH:
        raise ContentError(
            f"the commit's directory '{printable(path)}' cannot be deployed",
            reference="limit-exceeded" if bad is None else "bad-member",
            expected=f"proper names, at most {limits.ENTRIES} in {limits.DEPTH} levels",
            found="more" if bad is None else printable(bad, 80),
            hint="the image is damaged or hostile; nothing of it boots",
            catalogue="LIM" if bad is None else "CON",
        )


def _damaged(checksum: str, kind: str, found: str) -> StorageError:
    return StorageError(
        f"object {checksum[:16]}….{kind} is damaged",
        reference="damaged-object",
        found=printable(found),
        hint="ostree fsck tells the extent; deploying the image again repairs it",
        catalogue="INT",
    )


def read_entries(path: Path) -> Iterator[Member]:
    """The members in an entries file.

    Raises:
        StorageError: it is missing or damaged.
    """
    with atomic.mapped("read", path), path.open("rb") as file:
        while lines := file.readlines(_LINES_BYTES):
            try:
                # one call of the parser for many lines: half of the time
                for line in json.loads(b"[" + b",".join(lines) + b"]"):
                    yield _member(*line)
            except (ValueError, TypeError, AttributeError):
                raise StorageError(
                    f"the list of a layer is damaged: {path}",
                    reference="damaged-cache",
                    hint="remove the file; the layer is fetched again",
                    catalogue="INT",
                ) from None


def _member(
    name: str,
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    mtime_ns: int,
    link: str,
    xattrs: list[tuple[str, str]],
    checksum: str | None,
) -> Member:
    pairs: Xattrs = ()
    if xattrs:
        pairs = tuple(
            (key.encode("utf-8", "surrogateescape"), bytes.fromhex(value)) for key, value in xattrs
        )
    entry = TarEntry(
        name.encode(),
        kind,
        mode,
        uid,
        gid,
        size,
        mtime,
        mtime_ns,
        link.encode() if link else b"",
        0,
        pairs,
    )
    return Member(entry, checksum)
