"""From an image's layers to objects of the repository: what is there already, what has to be fetched, publishing.

    known      bootc/cache/ostree/DIFFID.entries, or the commit of the blob's ref (a host of the original), with all its objects
    staged     bootc/spool/ostree-DIGEST/DIFFID/, whole, from this run or an interrupted one
    missing    fetched by the import pipeline into such a directory

Staged layers are published together: one sync of the file system, everything read back from the medium, then each object gets its
owner, mode, attributes and name. What is staged stays until refs keep it, so that a killed run can be repeated: an object is
in one of both places, or its layer is fetched again.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from bootc_core import limits
from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.hooks.specs import Emit
from bootc_core.models import events
from bootc_core.models.context import Context
from bootc_core.models.image import FetchedImage
from bootc_core.models.oci import LAYER_TYPES, Descriptor
from bootc_core.models.sysroot import Sysroot
from bootc_core.oci import medium
from bootc_core.oci.importer import LayerJob, import_layers
from bootc_ostree import objects, sink
from bootc_ostree.repo import BLOBS, Member, Repo, read_entries

_SINK: Final = "bootc_ostree.sink:OstreeSink"
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
                self.repo.publish(f"{place}/{sink.OBJECTS}/{member.checksum}", member.checksum)
                waiting.discard(member.checksum)
            if number % _CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        return found

    def remember(self) -> None:
        """Put the lists of new layers into the cache, unsynced."""
        if not self.staged:
            return
        for parent in (self.repo.cache.parent, self.repo.cache):
            atomic.mkdir(parent, 0o755)
        for diff_id, place in self.staged.items():
            with atomic.mapped("read", place):
                data = (place / sink.ENTRIES).read_bytes()
            atomic.write_file(self.repo.entries_path(diff_id), data, sync=False)


def known_members(repo: Repo, job: LayerJob) -> list[Member]:
    """The members of a layer that the repository has; by its list, or by its commit where another program imported it.

    Raises:
        StorageError: neither is there, or it is damaged.
    """
    path = repo.entries_path(job.diff_id)
    if path.is_file():
        return list(read_entries(path))
    commit = repo.read_ref(blob_ref(job.descriptor))
    if commit is None:
        raise StorageError(
            f"the layer {printable(job.diff_id)} is not in the repository",
            reference="missing-layer",
            hint="run the command again",
            catalogue="STATE",
        )
    return list(repo.layer_members(commit))


def _known(repo: Repo, job: LayerJob) -> list[Member] | None:
    """The members of a layer that is there with all its objects. A damaged one does not count, so that it is fetched again."""
    try:
        members = known_members(repo, job)
    except BootcError:
        return None
    if all(member.checksum is None or repo.has_file(member.checksum) for member in members):
        return members
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
    present: dict[str, list[Member]] = {}
    for diff_id, job in distinct.items():
        if (members := _known(repo, job)) is not None:
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
    imported = Imported(repo, jobs, present)
    if not missing:
        return imported
    staging = spool(sysroot, image)
    for directory in (sysroot.state, staging.parent, staging):
        atomic.mkdir(directory, 0o700)
    for job in missing:
        _drop_incomplete(repo, staging / job.diff_id.rpartition(":")[2])
    results = await import_layers(
        image,
        missing,
        sink=_SINK,
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
