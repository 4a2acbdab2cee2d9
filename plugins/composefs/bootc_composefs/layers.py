"""From an image's layers to objects of the repository: what is there already, what has to be fetched, publishing.

    known      streams/oci-layer-DIFFID with all its objects
    staged     bootc/spool/composefs/<diffID>/, whole, from this run or an interrupted one
    missing    fetched by the import pipeline into such a directory

Staged layers are published together: one sync of the file system, everything read back from the medium, then each object gets its
name. A name in ``streams/`` comes later, after the second sync. Killed anywhere, the next run finds each layer known, staged,
or half published (its objects are in one of both places), and goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from bootc_composefs import members, sink, splitstream
from bootc_composefs.repository import Repository, missing_object
from bootc_composefs.splitstream import Splitstream
from bootc_core import limits
from bootc_core.errors import BootcError, StorageError
from bootc_core.fs import atomic, verity
from bootc_core.models import events
from bootc_core.models.oci import LAYER_TYPES
from bootc_core.oci import medium
from bootc_core.oci.importer import DONE, LayerJob, import_layers

if TYPE_CHECKING:
    from bootc_composefs.cache import Cache
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
    """A layer: its splitstream, and that one's digest.

    ``staged``: its directory, if it has no name in the repository yet; objects are there or in the repository.
    """

    digest: bytes
    stream: Splitstream
    staged: Path | None = None


def known_layers(
    repository: Repository, diff_ids: Iterable[str], names: Collection[str]
) -> dict[str, Layer]:
    """Layers that the repository has with all their objects. A damaged one does not count, so that it is fetched again.

    Args:
        repository: where to look.
        diff_ids: of the layers.
        names: digests in hex of all objects.
    """
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
        if all(name.hex() in names for name in stream.object_refs):
            found[diff_id] = Layer(digest, stream)
    return found


def large_objects(
    repository: Repository, layers: Iterable[Layer], cache: Cache
) -> dict[int, list[str]]:
    """Digests in hex of the objects of layers that arrive in pieces, by their size in bytes."""
    found: dict[int, dict[str, None]] = {}
    for layer in layers:
        digests = layer.stream.object_refs
        large = members.large(cache.members(layer.digest), sink.LARGE_BYTES)
        if large is None or max(large, default=0) >= len(digests):
            large = {number: repository.size(digest) or 0 for number, digest in enumerate(digests)}
        for number, size in large.items():
            if size > sink.LARGE_BYTES:
                found.setdefault(size, {})[digests[number].hex()] = None
    return {size: list(names) for size, names in found.items()}


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


@dataclass
class Imported:
    """All layers of an image, known and staged; ``settle``, then ``publish`` make the staged ones durable and named.

    Attributes:
        layers: by diffID, lowest first (equal layers once).
        bytes_new: bytes that were written for them.
    """

    layers: dict[str, Layer]
    bytes_new: int
    _repository: Repository
    _names: set[str]
    _written: list[medium.Written]
    _step: Callable[[str, str], None]

    async def settle(self) -> None:
        """Bring what is staged to the medium, and compare it with what that gives back.

        Raises:
            StorageError: the medium fails, or gives something else (``read-back``).
        """
        if not self._written:
            return
        self._step("syncing", "Syncing layers")
        await trio.lowlevel.checkpoint()
        try:
            atomic.syncfs(self._written[0].directory)
            if not self._repository.secure:
                self._step("checking", "Reading back what was written")
                await medium.read_back(self._written, self._repository.digest_bytes)
        except StorageError:
            # the next run must not take for finished what the medium lost
            for layer in self._written:
                _drop(layer.directory.parent)
            raise

    async def publish(self) -> None:
        """Give the objects their names. The staged splitstreams stay, so that this can be repeated.

        Raises:
            StorageError: a name did not take effect.
        """
        if not self._written:
            return
        self._step("publishing", "Publishing objects")
        repository = self._repository
        for layer in self.layers.values():
            if layer.staged is None:
                continue
            objects = f"{layer.staged}/{sink.OBJECTS}"
            wanted = {digest.hex() for digest in layer.stream.object_refs}
            for number, name in enumerate(sorted(wanted.intersection(os.listdir(objects)))):
                repository.publish(f"{objects}/{name}", name)
                self._names.add(name)
                if number % _CHECKPOINT == 0:
                    await trio.lowlevel.checkpoint()
            for name in wanted - self._names:
                raise missing_object(bytes.fromhex(name))
            repository.put(layer.stream.data, layer.digest)
        repository.staged = ()


async def import_missing(
    context: Context,
    image: FetchedImage,
    sysroot: Sysroot,
    repository: Repository,
    cache: Cache,
    emit: Emit,
) -> Imported:
    """Fetch the layers that the repository has not, into staging; nothing is synced or named yet.

    Raises:
        ContentError: hostile or damaged layers.
        TransportError: the source does not deliver.
        StorageError: no space, I/O.
    """
    diff_ids = image.config.rootfs.diff_ids
    descriptors = dict(zip(diff_ids, image.manifest.layers, strict=True))
    names = repository.names()
    layers = known_layers(repository, diff_ids, names)
    jobs = [
        LayerJob(descriptor, diff_id, LAYER_TYPES[descriptor.media_type])
        for diff_id, descriptor in descriptors.items()
        if diff_id not in layers
    ]
    needed = [job.descriptor for job in jobs]
    emit(
        events.LayersPlanned(
            context.transaction,
            layers_present=len(layers),
            layers_needed=len(jobs),
            bytes_present=sum(descriptors[diff_id].size for diff_id in layers),
            bytes_needed=sum(descriptor.size for descriptor in needed),
        )
    )

    def step(name: str, description: str) -> None:
        emit(events.StepProgressed(context.transaction, name, description))

    imported = Imported(layers, 0, repository, names, [], step)
    if not jobs:
        return imported
    check_space(
        repository.path, needed, image.requested.display(), fresh=not repository.has_streams()
    )
    staging = spool(sysroot)
    for directory in (sysroot.state, staging.parent, staging):
        atomic.mkdir(directory, 0o700)
    for job in jobs:
        _drop_incomplete(repository, _layer_directory(staging, job.diff_id))
    others = known_layers(repository, set(repository.layers()) - set(layers), names)
    large = large_objects(repository, (*layers.values(), *others.values()), cache)
    results = await import_layers(
        image,
        jobs,
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
    for diff_id, result in results.items():
        directory = _layer_directory(staging, diff_id)
        layers[diff_id] = _staged_layer(repository, directory, result.sink)
        size = int(result.sink.get("bytes_new", 0))
        objects, checks = directory / sink.OBJECTS, directory / sink.CHECKS
        crc = int(result.sink.get("crc", 0))
        imported._written.append(medium.Written(objects, checks, crc, size))
        imported.bytes_new += size
    repository.staged = tuple(str(layer.directory) for layer in imported._written)
    imported.layers = {diff_id: layers[diff_id] for diff_id in diff_ids}
    return imported


def _layer_directory(staging: Path, diff_id: str) -> Path:
    return staging / diff_id.rpartition(":")[2]


def _read_stream(repository: Repository, directory: Path) -> Splitstream:
    path = directory / sink.STREAM
    with atomic.mapped("read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read()
    return splitstream.parse(data, repository.algorithm)


def _staged_layer(repository: Repository, directory: Path, result: dict[str, Any]) -> Layer:
    stream = _read_stream(repository, directory)
    digest = verity.digest(stream.data, repository.algorithm)
    if digest.hex() != result.get("stream"):
        _drop(directory)
        raise StorageError(
            "a staged layer is damaged",
            reference="bad-staging",
            expected=str(result.get("stream"))[:32],
            found=digest.hex()[:32],
            hint="run the command again: the layer is fetched anew",
            catalogue="INT",
        )
    return Layer(digest, stream, directory)


def _drop(directory: Path) -> None:
    """Remove a staged layer after an error that matters more than one of this."""
    with contextlib.suppress(BootcError):
        atomic.rmtree(directory)


def drop_unfinished(sysroot: Sysroot) -> None:
    """Give back the space of layers that an interrupted or failed run did not finish; what arrived of large blobs stays.

    Raises:
        StorageError: something cannot be removed.
    """
    staging = spool(sysroot)
    if not staging.is_dir():
        return
    with atomic.mapped("read", staging):
        names = sorted(os.listdir(staging))
    for name in names:
        if not (staging / name / DONE).exists():
            for part in (sink.OBJECTS, sink.STREAM, sink.CHECKS, sink.MEMBERS):
                atomic.rmtree(staging / name / part)


def _drop_incomplete(repository: Repository, directory: Path) -> None:
    """Remove a staged layer that relies on objects which were deleted since: the pipeline would believe it."""
    if not (directory / sink.STREAM).exists():
        return
    try:
        stream = _read_stream(repository, directory)
        objects = f"{directory}/{sink.OBJECTS}"
        whole = all(
            os.path.lexists(f"{objects}/{digest.hex()}") or _is_whole(repository, digest)
            for digest in stream.object_refs
        )
    except BootcError:
        whole = False
    if not whole:
        atomic.rmtree(directory)
