"""From an image's layers to objects of the repository: what is there already, what has to be fetched, publishing.

    known      streams/oci-layer-DIFFID with all its objects
    staged     bootc/spool/composefs/<diffID>/, whole, from this run or an interrupted one
    missing    fetched by the import pipeline into such a directory

Staged layers are published together: one sync of the file system, everything read back from the medium, then each object gets its
name. A name in ``streams/`` comes later, after the second sync. Killed anywhere, the next run finds each layer known, staged,
or half published (its objects are in one of both places), and goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from bootc_composefs import sink, splitstream
from bootc_composefs.repository import Repository, missing_object, read_back
from bootc_composefs.splitstream import Splitstream
from bootc_core import limits
from bootc_core.errors import BootcError, StorageError
from bootc_core.fs import atomic
from bootc_core.models import events
from bootc_core.models.oci import LAYER_TYPES
from bootc_core.oci.importer import LayerJob, LayerResult, import_layers

if TYPE_CHECKING:
    from bootc_core.hooks.specs import Emit
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.oci import Descriptor
    from bootc_core.models.sysroot import Sysroot

SPOOL: Final = "spool/composefs"
_SINK: Final = "bootc_composefs.sink:ObjectSink"
_CHECKPOINT: Final = 500  # durable steps between two chances to be cancelled
_OVERHEAD_BYTES: Final = 64 * limits.MIB  # images, splitstreams, /etc
_EXPANSION: Final = 2  # compressed layers at least double; told only where nothing can be shared


def spool(sysroot: Sysroot) -> Path:
    """Where layers are staged: on the repository's file system, the same place for every run."""
    return sysroot.state / SPOOL


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose objects are in the repository: its splitstream and that one's digest; ``fresh``: it has no name yet."""

    digest: bytes
    stream: Splitstream
    fresh: bool


def known_layers(repository: Repository, diff_ids: Sequence[str]) -> dict[str, Layer]:
    """Layers of the image that the repository has, whole. A damaged one does not count, so that it is fetched again."""
    found: dict[str, Layer] = {}
    for diff_id in dict.fromkeys(diff_ids):
        digest = repository.resolve(f"streams/oci-layer-{diff_id}")
        if digest is None:
            continue
        try:
            stream = splitstream.parse(repository.read(digest), repository.algorithm)
        except BootcError as problem:
            if problem.catalogue != "INT":
                raise
            continue
        if all(_is_whole(repository, name) for name in stream.object_refs):
            found[diff_id] = Layer(digest, stream, fresh=False)
    return found


def _is_whole(repository: Repository, digest: bytes) -> bool:
    size = repository.size(digest)
    return (
        size is not None and size > sink.INLINE_BYTES
    )  # a power cut leaves empty files, not shorter ones


def check_space(path: Path, needed: Sequence[Descriptor], reference: str, *, fresh: bool) -> None:
    """Refuse before anything is fetched if the missing layers cannot fit.

    Args:
        path: on the file system that they go to.
        needed: descriptors of the missing layers.
        reference: names the image.
        fresh: nothing is in the repository that they could share, so their expansion counts, too.

    Raises:
        StorageError: ``no-space``.
    """
    required = 0
    for layer in needed:
        plain = LAYER_TYPES.get(layer.media_type) == "none"
        required += layer.size * (_EXPANSION if fresh and not plain else 1)
    required += _OVERHEAD_BYTES
    with atomic.mapped("look at", path):
        found = os.statvfs(path)
    available = found.f_frsize * found.f_bavail
    if required > available:
        raise StorageError(
            f"Insufficient free space for {reference} (available: {size_text(available)} "
            f"required: {size_text(required)})",
            reference="no-space",
            expected=f"{required} bytes on the file system of {path}",
            found=f"{available} bytes",
            hint="free some space and run the command again; nothing was fetched",
            catalogue="SPC",
        )


def size_text(size: int) -> str:
    """A size for people, decimal units."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.1f} {unit}" if unit != "bytes" else f"{size} bytes"
        value /= 1000
    return f"{value:.1f} TB"


async def import_missing(
    context: Context, image: FetchedImage, sysroot: Sysroot, repository: Repository, emit: Emit
) -> tuple[dict[str, Layer], int]:
    """Bring all layers of the image into the repository; objects are durable then, their names not yet.

    Returns:
        the layers by diffID, lowest first (equal layers once); bytes written.

    Raises:
        ContentError: hostile or damaged layers.
        TransportError: the source does not deliver.
        StorageError: no space, I/O, or the medium does not give back what was written.
    """
    diff_ids = image.config.rootfs.diff_ids
    known = known_layers(repository, diff_ids)
    jobs: dict[str, LayerJob] = {}
    for descriptor, diff_id in zip(image.manifest.layers, diff_ids, strict=True):
        if diff_id not in known:
            jobs[diff_id] = LayerJob(descriptor, diff_id, LAYER_TYPES[descriptor.media_type])
    present = [
        descriptor.size
        for descriptor, diff_id in zip(image.manifest.layers, diff_ids, strict=True)
        if diff_id in known
    ]
    needed = [job.descriptor for job in jobs.values()]
    emit(
        events.LayersPlanned(
            context.transaction,
            len(present),
            len(needed),
            sum(present),
            sum(layer.size for layer in needed),
        )
    )
    large = repository.large_objects(sink.LARGE_BYTES) if jobs else {}
    check_space(
        repository.path, needed, image.requested.display(), fresh=not repository.has_streams()
    )
    results: Mapping[str, LayerResult] = {}
    written = 0
    if jobs:
        staging = spool(sysroot)
        for directory in (sysroot.state, staging.parent, staging):
            atomic.mkdir(directory, 0o700)
        for diff_id in jobs:
            _drop_incomplete(repository, _layer_directory(staging, diff_id))
        results = await import_layers(
            image,
            list(jobs.values()),
            sink=_SINK,
            sink_options={
                "algorithm": repository.algorithm,
                "verity": repository.secure,
                "large": {str(size): names for size, names in large.items()},
            },
            staging=staging,
            pass_directories={sink.OBJECTS: repository.path / "objects"},
            emit=emit,
            transaction=context.transaction,
        )
        emit(events.StepProgressed(context.transaction, "syncing", "Syncing layers"))
        await trio.lowlevel.checkpoint()
        atomic.syncfs(staging)
        staged = {diff_id: _layer_directory(staging, diff_id) for diff_id in jobs}
        if not repository.secure:
            emit(
                events.StepProgressed(
                    context.transaction, "checking", "Reading back what was written"
                )
            )
            await _read_back(repository, {staged[key]: results[key].sink for key in staged})
        emit(events.StepProgressed(context.transaction, "publishing", "Publishing objects"))
        for diff_id, directory in staged.items():
            known[diff_id] = await _publish(repository, directory, results[diff_id].sink)
            written += int(results[diff_id].sink.get("bytes_new", 0))
    return {diff_id: known[diff_id] for diff_id in diff_ids}, written


def _layer_directory(staging: Path, diff_id: str) -> Path:
    return staging / diff_id.rpartition(":")[2]


def _read_stream(repository: Repository, directory: Path) -> tuple[bytes, Splitstream]:
    path = directory / sink.STREAM
    with atomic.mapped("read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            data = file.read()
    return data, splitstream.parse(data, repository.algorithm)


def _drop_incomplete(repository: Repository, directory: Path) -> None:
    """Remove a staged layer that relies on objects which were deleted since: the pipeline would believe it."""
    if not (directory / sink.STREAM).exists():
        return
    try:
        _, stream = _read_stream(repository, directory)
        objects = f"{directory}/{sink.OBJECTS}"
        whole = all(
            os.path.lexists(f"{objects}/{digest.hex()}") or _is_whole(repository, digest)
            for digest in stream.object_refs
        )
    except BootcError:
        whole = False
    if not whole:
        atomic.rmtree(directory)


async def _read_back(repository: Repository, layers: Mapping[Path, dict[str, Any]]) -> None:
    """Compare all staged files with their notes, on the medium."""
    limiter = trio.CapacityLimiter(min(limits.WORKERS, os.cpu_count() or 1))

    problems: list[BootcError] = []

    async def one(directory: Path, result: dict[str, Any]) -> None:
        try:
            await trio.to_thread.run_sync(
                lambda: read_back(_noted(repository, directory, result)), limiter=limiter
            )
        except BootcError as problem:  # as itself, not as a member of a group
            problems.append(problem)

    async with trio.open_nursery() as nursery:
        for directory, result in layers.items():
            nursery.start_soon(one, directory, result)
    if problems:
        raise problems[0]


def _noted(
    repository: Repository, directory: Path, result: dict[str, Any]
) -> Iterator[tuple[str, int, int]]:
    with atomic.mapped("read", directory / sink.CHECKS):
        data = (directory / sink.CHECKS).read_bytes()
    if sink.checksum(data) != result.get("crc"):
        raise StorageError(
            "the disk gives back something else than what was written",
            reference="read-back",
            found=str(directory / sink.CHECKS),
            hint="check the disk (smartctl, dmesg) before anything else; nothing was switched",
            catalogue="IO",
        )
    objects = f"{directory}/{sink.OBJECTS}"
    for name, size, crc in sink.check_records(data, repository.algorithm):
        yield f"{objects}/{name}", size, crc


async def _publish(repository: Repository, directory: Path, result: dict[str, Any]) -> Layer:
    """Give a staged layer's objects their names. The staged splitstream stays, so that this can be repeated."""
    data, stream = _read_stream(repository, directory)
    objects = f"{directory}/{sink.OBJECTS}"
    for number, name in enumerate(os.listdir(objects)):
        if repository.digest(name) is not None:
            path = f"{objects}/{name}"
            repository.publish(path, name, os.lstat(path).st_size)
        if number % _CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()
    for digest in stream.object_refs:
        if not _is_whole(repository, digest):
            raise missing_object(digest)
    digest = repository.put(data)
    if digest.hex() != result.get("stream"):
        raise StorageError(
            "the disk gives back something else than what was written",
            reference="read-back",
            expected=str(result.get("stream"))[:32],
            found=digest.hex()[:32],
            hint="check the disk (smartctl, dmesg) before anything else; nothing was switched",
            catalogue="IO",
        )
    return Layer(digest, stream, fresh=True)
