"""From an image's layers to objects of the repository: what is there already, what has to be fetched, publishing.

    known      bootc/cache/ostree/DIFFID.entries, or the commit of the blob's ref (a host of the original, or a layer that carries
               objects of a commit, see ``native``), with all its objects
    staged     bootc/spool/ostree-DIGEST/DIFFID/, whole, from this run or an interrupted one
    missing    fetched by the import pipeline into such a directory

Staged layers are published together: one sync of the file system, everything read back from the medium, then each object gets its
owner, mode, attributes and name. What is staged stays until refs keep it, so that a killed run can be repeated: an object is
in one of both places, or its layer is fetched again.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.hooks.specs import Emit
from bootc_core.models import events
from bootc_core.models.context import Context
from bootc_core.models.image import FetchedImage
from bootc_core.models.oci import LAYER_TYPES, Descriptor
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.tree import Node
from bootc_core.oci import medium
from bootc_core.oci import origin as origins
from bootc_core.oci.importer import LayerJob, import_layers
from bootc_ostree import native, objects, sink
from bootc_ostree.repo import BLOBS, IMAGES, Member, Repo, read_entries

_SINK: Final = "bootc_ostree.sink:OstreeSink"
_NATIVE_SINK: Final = "bootc_ostree.native:NativeSink"
_DIGEST_BYTES: Final = 32
_CHECKPOINT: Final = 500  # durable steps between two chances to be cancelled
_RESERVE_PERCENT: Final = 3  # libostree's own default of min-free-space-percent
_RESERVE: Final = re.compile(r"\s*min-free-space-(percent|size)\s*=\s*(\d+)\s*(MB|GB|TB)?\s*")
_UNITS: Final = {"MB": limits.MIB, "GB": limits.GIB, "TB": 1024 * limits.GIB}


def blob_ref(descriptor: Descriptor) -> str:
    """The ref that keeps a layer."""
    return f"{BLOBS}/{objects.escape_ref(descriptor.digest)}"


@dataclass
class Imported:
    """The layers of an image, lowest first; the members of known ones, and where the new ones are staged, by diffID."""

    repo: Repo
    jobs: tuple[LayerJob, ...]
    present: dict[str, list[Member]]
    native: int = 0  # so many of the jobs carry the commit that the others are put over
    staged: dict[str, Path] = field(default_factory=dict)
    bytes_new: int = 0
    _notes: dict[str, tuple[int, int]] = field(default_factory=dict)  # CRC-32, bytes

    async def settle(self) -> None:
        """Bring what is staged to the medium, and compare it with what that gives back.

        Raises:
            StorageError: the medium fails, or gives something else (``read-back``).
        """
        if not self.staged:
            return
        await trio.lowlevel.checkpoint()
        atomic.syncfs(self.repo.path)
        written = [
            medium.Written(place / sink.OBJECTS, place / sink.CHECKS, *self._notes[diff_id])
            for diff_id, place in self.staged.items()
        ]
        await medium.read_back(written, _DIGEST_BYTES)

    async def members(self, job: LayerJob) -> list[Member]:
        """The members of a layer; a staged one's objects get their names.

        Raises:
            StorageError: a name did not take effect, or a list is damaged.
        """
        place = self.staged.get(job.diff_id)
        if place is None:
            return self.present[job.diff_id]
        found = list(read_entries(place / sink.ENTRIES))
        waiting = set(os.listdir(place / sink.OBJECTS))
        for number, member in enumerate(found):
            if member.checksum is not None and member.checksum in waiting:
                source = f"{place}/{sink.OBJECTS}/{member.checksum}"
                self.repo.publish(source, member.checksum, member.entry)
                waiting.discard(member.checksum)
            if number % _CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        return found

    async def base(self) -> tuple[str, list[Member], list[tuple[str, str]]]:
        """The commit that the lowest layers carry, all its objects with their names; its members; refs that keep these layers.

        Raises:
            ContentError: there is no commit in them, or not all of it.
            StorageError: a name did not take effect, or a list is damaged.
        """
        refs: list[tuple[str, str]] = []
        found = ""
        members = self.present.get(self.jobs[0].diff_id)
        for job in self.jobs[: self.native]:
            ref = blob_ref(job.descriptor)
            place = self.staged.get(job.diff_id)
            commit = self.repo.read_ref(ref) or ""
            if place is not None:
                commit = await self._publish_objects(place)
                refs.append((ref, commit))
            found = found or commit
        try:
            members = members or list(self.repo.layer_members(found))
        except StorageError as problem:
            raise ContentError(
                "the image's layers do not carry the whole ostree commit that they announce",
                reference="bad-object",
                expected="a commit in the first layer, and its trees and contents in it and the next ones",
                found=problem.message,
                hint="build the image again; nothing of it boots",
                catalogue="INT",
            ) from None
        return found, members, refs

    async def _publish_objects(self, place: Path) -> str:
        """Name what a layer with objects brought; the commit that keeps them."""
        contents: dict[str, bytes] = {}
        commit = ""
        waiting = set(os.listdir(place / sink.OBJECTS))
        for number, member in enumerate(read_entries(place / sink.ENTRIES)):
            checksum, _, kind = member.entry.path.decode().partition(".")
            staged = place / sink.OBJECTS / member.entry.path.decode()
            if kind in native.METADATA:
                with atomic.mapped("read", staged):
                    data = staged.read_bytes()
                if kind == "commitmeta":
                    detached = self.repo.object_path(checksum, kind)
                    if not detached.exists():
                        self.repo.make_directory(checksum)
                        atomic.write_file(detached, data, sync=False)
                else:
                    self.repo.put_object(data, kind)
                if kind == "commit":
                    commit = checksum
            elif member.checksum is None:
                entry = member.entry
                node = Node(
                    stat.S_IFLNK | 0o777,
                    entry.uid,
                    entry.gid,
                    xattrs=entry.xattrs,
                    inline=entry.linkname,
                )
                contents[checksum] = self.repo.put_symlink(node)
            else:
                if checksum in waiting:
                    source = f"{place}/{sink.OBJECTS}/{checksum}"
                    self.repo.publish(source, checksum, member.entry)
                    waiting.discard(checksum)
                contents[checksum] = bytes.fromhex(checksum)
            if number % _CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        return commit or self.repo.commit_objects(contents)

    def remember(self) -> None:
        """Put the lists of new layers into the cache, unsynced."""
        carrying = {job.diff_id for job in self.jobs[: self.native]}
        staged = {key: place for key, place in self.staged.items() if key not in carrying}
        if not staged:
            return
        for parent in (self.repo.cache.parent, self.repo.cache):
            atomic.mkdir(parent, 0o755)
        for diff_id, place in staged.items():
            with atomic.mapped("read", place):
                data = (place / sink.ENTRIES).read_bytes()
            atomic.write_file(self.repo.entries_path(diff_id), data, sync=False)


def known_members(
    repo: Repo, job: LayerJob, others: Mapping[str, str] | None = None
) -> list[Member]:
    """The members of a layer that the repository has; by its list, or by its commit where another program imported it.

    ``others``: refs of layers by diffID, for one that is known in another compression.

    Raises:
        StorageError: neither is there, or it is damaged.
    """
    path = repo.entries_path(job.diff_id)
    if path.is_file():
        return list(read_entries(path))
    commit = repo.read_ref(blob_ref(job.descriptor))
    if commit is None and others and job.diff_id in others:
        commit = repo.read_ref(others[job.diff_id])
    if commit is None:
        raise StorageError(
            f"the layer {printable(job.diff_id)} is not in the repository",
            reference="missing-layer",
            hint="run the command again",
            catalogue="STATE",
        )
    return list(repo.layer_members(commit))


def needed(repo: Repo, commits: Iterable[str]) -> tuple[set[str], set[str]]:
    """Refs of the layers of images by their merged commits, and hex digits of these layers' diffIDs.

    Raises:
        StorageError: a commit cannot be read.
    """
    refs: set[str] = set()
    diff_ids: set[str] = set()
    for commit in commits:
        metadata = repo.read_commit(commit)["metadata"]
        if "ostree.manifest" not in metadata:
            continue  # not from an image
        manifest = origins.document(str(metadata["ostree.manifest"]).encode())
        refs |= {
            f"{BLOBS}/{objects.escape_ref(str(layer['digest']))}" for layer in manifest["layers"]
        }
        text = str(metadata.get("ostree.container.image-config", "null"))
        config = {} if text == "null" else origins.document(text.encode())  # of old versions
        diff_ids |= {
            str(diff_id).rpartition(":")[2]
            for diff_id in (config.get("rootfs") or {}).get("diff_ids", ())
        }
    return refs, diff_ids


def _refs_by_diff_id(repo: Repo) -> dict[str, str]:
    """Refs of layers of all images in the repository, by diffID; what carries objects is left out."""
    found: dict[str, str] = {}
    for commit in set(repo.refs(IMAGES).values()):
        with contextlib.suppress(BootcError, KeyError, TypeError):
            metadata = repo.read_commit(commit)["metadata"]
            config = origins.document(str(metadata["ostree.container.image-config"]).encode())
            manifest = origins.document(str(metadata["ostree.manifest"]).encode())
            diff_ids = list(config["rootfs"]["diff_ids"])
            final = ((config.get("config") or {}).get("Labels") or {}).get(native.FINAL_LAYER)
            first = diff_ids.index(final) + 1 if final in diff_ids else 0
            for diff_id, layer in list(zip(diff_ids, manifest["layers"], strict=False))[first:]:
                found[str(diff_id)] = f"{BLOBS}/{objects.escape_ref(str(layer['digest']))}"
    return found


def _known(repo: Repo, job: LayerJob, others: Mapping[str, str]) -> list[Member] | None:
    """The members of a layer that is there with all its objects. A damaged one does not count, so that it is fetched again."""
    try:
        members = known_members(repo, job, others)
    except BootcError:
        return None
    if all(member.checksum is None or repo.has_file(member.checksum) for member in members):
        return members
    return None


def _known_objects(repo: Repo, job: LayerJob, *, has_commit: bool) -> list[Member] | None:
    """The same for a layer that carries objects: the members of the commit in it; none for one without commit."""
    commit = repo.read_ref(blob_ref(job.descriptor))
    if commit is None:
        return None
    try:
        if has_commit:
            return list(repo.layer_members(commit))
        return [] if all(map(repo.has_file, repo.list_files(commit, ""))) else None
    except BootcError:
        return None


def reserve(config: str, total: int) -> int:
    """Bytes that ``min-free-space-percent`` or ``-size`` of a repository's configuration keep free of ``total``."""
    percent, size = _RESERVE_PERCENT, None
    for line in config.splitlines():
        if found := _RESERVE.fullmatch(line):
            if found[1] == "percent":
                percent = min(int(found[2]), 99)
            else:
                size = int(found[2]) * _UNITS[found[3] or "MB"]
    return size if size is not None else total * percent // 100


def check_space(repo: Repo, needed: int, name: str) -> None:
    """Refuse before anything is fetched if the missing layers cannot fit (parity reference, 7.7).

    Raises:
        StorageError: ``no-space``.
    """
    found = os.statvfs(repo.path)
    with atomic.mapped("read", repo.path / "config"):
        config = (repo.path / "config").read_text(encoding="utf-8", errors="replace")
    kept = reserve(config, found.f_blocks * found.f_frsize)
    available = max(found.f_bavail * found.f_frsize - kept, 0)
    if needed > available:
        raise StorageError(
            f"Insufficient free space for {printable(name)} (available: {_size(available)} required: {_size(needed)})",
            reference="no-space",
            expected=f"{needed} bytes beside what min-free-space keeps free ({_size(kept)})",
            found=f"{available} bytes",
            hint="free some space, or remove old deployments; nothing was fetched",
            catalogue="SPC",
        )


def _size(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.1f} {unit}" if unit != "bytes" else f"{size} bytes"
        value /= 1000
    return f"{value:.1f} TB"


def _drop_incomplete(repo: Repo, place: Path) -> None:
    """Remove a staged layer that relies on objects which were deleted since: the pipeline would believe it."""
    if not (place / sink.ENTRIES).exists():
        return
    try:
        waiting = set(os.listdir(place / sink.OBJECTS))
        whole = all(
            member.checksum is None or member.checksum in waiting or repo.has_file(member.checksum)
            for member in read_entries(place / sink.ENTRIES)
        )
    except (BootcError, OSError):
        whole = False
    if not whole:
        atomic.rmtree(place)


def spool(sysroot: Sysroot, image: FetchedImage) -> Path:
    """Where the layers of ``image`` are staged: the same place for every run."""
    return sysroot.state / "spool" / f"ostree-{image.digest.rpartition(':')[2]}"


async def import_missing(
    context: Context, image: FetchedImage, sysroot: Sysroot, repo: Repo, emit: Emit
) -> Imported:
    """Fetch the layers that the repository has not, into staging; nothing is synced or named yet.

    Raises:
        ContentError: hostile or damaged layers.
        TransportError: the source does not deliver.
        StorageError: no space, I/O.
    """
    jobs = tuple(
        LayerJob(layer, diff_id, LAYER_TYPES[layer.media_type])
        for layer, diff_id in zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True)
    )
    distinct = {job.diff_id: job for job in jobs}
    lowest = native.count(image)
    carrying = {job.diff_id for job in jobs[:lowest]}
    others = _refs_by_diff_id(repo)
    present: dict[str, list[Member]] = {}
    for diff_id, job in distinct.items():
        carries = diff_id in carrying
        members = (
            _known_objects(repo, job, has_commit=job is jobs[0])
            if carries
            else _known(repo, job, others)
        )
        if members is not None:
            present[diff_id] = members
    missing = [job for diff_id, job in distinct.items() if diff_id not in present]
    needed = sum(job.descriptor.size for job in missing)
    check_space(repo, needed, image.requested.display())
    emit(
        events.LayersPlanned(
            context.transaction,
            layers_present=len(distinct) - len(missing),
            layers_needed=len(missing),
            bytes_present=sum(job.descriptor.size for job in distinct.values()) - needed,
            bytes_needed=needed,
        )
    )
    imported = Imported(repo, jobs, present, lowest)
    if not missing:
        return imported
    staging = spool(sysroot, image)
    for directory in (sysroot.state, staging.parent, staging):
        atomic.mkdir(directory, 0o700)
    for job in missing:
        _drop_incomplete(repo, staging / job.diff_id.rpartition(":")[2])
    for name, wanted in (
        (_NATIVE_SINK, [job for job in missing if job.diff_id in carrying]),
        (_SINK, [job for job in missing if job.diff_id not in carrying]),
    ):
        if not wanted:
            continue
        results = await import_layers(
            image,
            wanted,
            sink=name,
            sink_options={},
            staging=staging,
            pass_directories={sink.OBJECTS: repo.objects},
            emit=emit,
            transaction=context.transaction,
        )
        for diff_id, result in results.items():
            imported.staged[diff_id] = staging / diff_id.rpartition(":")[2]
            size = int(result.sink.get("bytes_new", 0))
            imported._notes[diff_id] = int(result.sink.get("crc", 0)), size
            imported.bytes_new += size
    return imported
