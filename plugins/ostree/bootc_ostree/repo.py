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

import fcntl
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import StorageError, printable
from bootc_core.fs import atomic
from bootc_core.models.tree import Node
from bootc_core.oci.tar import TarEntry
from bootc_ostree import objects
from bootc_ostree.sink import text

BLOBS: Final = "ostree/container/blob"
IMAGES: Final = "ostree/container/image"
_OBJECT_BYTES: Final = 128 * limits.MIB  # largest metadata object that libostree reads


@dataclass(frozen=True, slots=True)
class Member:
    """A line of an entries file: the member of a layer and the checksum of its content."""

    entry: TarEntry
    checksum: str | None


class Repo:
    """The repository at ``SYSROOT/ostree/repo``, and the layer cache beside it."""

    def __init__(self, sysroot: Path) -> None:
        self.path = sysroot / "ostree/repo"
        self.objects = self.path / "objects"
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
            raise StorageError(
                f"object {checksum[:16]}….{kind} is damaged",
                reference="damaged-object",
                hint="ostree fsck tells the extent; deploying the image again repairs it",
                catalogue="INT",
            )
        return data

    def put_object(self, data: bytes, kind: str) -> str:
        """Store a metadata object, unsynced; its checksum. One that is there is left alone."""
        checksum = hashlib.sha256(data).hexdigest()
        path = self.object_path(checksum, kind)
        if not path.exists():
            self._directory(checksum)
            atomic.write_file(path, data, sync=False)
        return checksum

    def _directory(self, checksum: str) -> None:
        atomic.mkdir(self.objects / checksum[:2], 0o775)

    def publish(self, staged: Path, member: Member) -> None:
        """Give the content of ``member`` its owner, mode, attributes and final name, if it is staged."""
        if member.checksum is None:
            return
        source = staged / member.checksum
        entry = member.entry
        try:
            os.chown(source, entry.uid, entry.gid)
        except FileNotFoundError:
            return  # known already, or published for an earlier name
        with atomic.mapped("set attributes of", source):
            for name, value in entry.xattrs:
                os.setxattr(source, name, value)
            source.chmod(entry.mode)
            os.utime(source, (0, 0))
        self._directory(member.checksum)
        atomic.rename(source, self.object_path(member.checksum, "file"))

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
                files.append((name, self._put_symlink(child)))
            elif child.object is not None:
                files.append((name, child.object))
        listing = objects.dirtree(files, directories)
        meta = objects.dirmeta(node.uid, node.gid, node.mode, node.xattrs)
        return self.put_object(listing, "dirtree"), self.put_object(meta, "dirmeta")

    def _put_symlink(self, node: Node) -> bytes:
        target = node.inline or b""
        checksum = objects.symlink_checksum(node.uid, node.gid, target, node.xattrs)
        path = self.object_path(checksum.hex(), "file")
        if not path.is_symlink():
            self._directory(checksum.hex())
            temporary = path.with_name(atomic.temporary_name("symlink"))
            with atomic.mapped("write", path):
                temporary.symlink_to(os.fsdecode(target))
                os.chown(temporary, node.uid, node.gid, follow_symlinks=False)
                for name, value in node.xattrs:
                    os.setxattr(temporary, name, value, follow_symlinks=False)
            atomic.rename(temporary, path)
        return checksum

    def commit(self, root: Node, metadata: dict[str, str], timestamp: int) -> str:
        """Store ``root`` as a commit without subject or parent; its checksum. Unsynced."""
        tree, meta = self.write_tree(root)
        data = objects.commit(
            bytes.fromhex(tree), bytes.fromhex(meta), metadata=metadata, timestamp=timestamp
        )
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

    # refs

    def read_ref(self, name: str) -> str | None:
        """The commit that a ref names, or None."""
        try:
            value = (self.heads / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return value if len(value) == 64 and set(value) <= set("0123456789abcdef") else None

    def write_ref(self, name: str, commit: str) -> None:
        """Make a ref name ``commit``, durably."""
        place = self.heads / name
        missing = [
            parent
            for parent in place.relative_to(self.heads).parents
            if not (self.heads / parent).is_dir()
        ]
        for parent in reversed(missing):
            atomic.mkdir(self.heads / parent, 0o775)
        atomic.write_file(place, commit.encode() + b"\n")

    def refs(self, prefix: str) -> dict[str, str]:
        """Refs below ``prefix`` with their commits."""
        base = self.heads / prefix
        found = {}
        for path in sorted(base.rglob("*")) if base.is_dir() else ():
            name = str(path.relative_to(self.heads))
            if path.is_file() and (commit := self.read_ref(name)) is not None:
                found[name] = commit
        return found

    # layers

    def entries_path(self, diff_id: str) -> Path:
        """Where a known layer's members are listed."""
        return self.cache / f"{diff_id.rpartition(':')[2]}.entries"


def read_entries(path: Path) -> Iterator[Member]:
    """The members in an entries file.

    Raises:
        StorageError: it is missing or damaged.
    """
    with atomic.mapped("read", path), path.open("rb") as file:
        for line in file:
            try:
                name, kind, mode, uid, gid, size, mtime, mtime_ns, link, xattrs, checksum = (
                    json.loads(line)
                )
                pairs = tuple(
                    (key.encode("utf-8", "surrogateescape"), bytes.fromhex(value))
                    for key, value in xattrs
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
                    link.encode(),
                    0,
                    pairs,
                )
            except (ValueError, TypeError, AttributeError):
                raise StorageError(
                    f"the list of a layer is damaged: {path}",
                    reference="damaged-cache",
                    hint="remove the file; the layer is fetched again",
                    catalogue="INT",
                ) from None
            yield Member(entry, checksum)
