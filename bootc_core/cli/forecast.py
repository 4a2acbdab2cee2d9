"""What an update would do, from metadata alone: no layer byte is fetched, nothing is changed, no lock is taken.

Layers that a deployed image has need not be fetched. Of layers with a table of contents (zstd:chunked) less than all may be
fetched; how much is known when the tables were read, so only the upper bound is told. What is inside layers (kernel arguments)
is unknown before they are here, unless no layer changes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bootc_core.engine.plan import Target
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import BootcError
from bootc_core.models.host import Deployment, HostStatus
from bootc_core.models.image import FetchedImage
from bootc_core.models.oci import LAYER_TYPES, Descriptor, Manifest, RawDocument, parse_manifest
from bootc_core.oci import chunked

_KERNEL_LABELS: Final = ("ostree.linux", "containers.bootc.kernel")
_EXPANSION: Final = (
    2.5  # real images as gzip or zstd layers; shared files are not written, so this is the most
)
_BOOT_BYTES: Final = 96 * 1024 * 1024  # a kernel and an initrd of a large distribution


@dataclass(frozen=True, slots=True)
class Space:
    """A file system: what the update needs at most, and what is free, in bytes."""

    what: str
    path: str
    needed: int
    free: int

    @property
    def enough(self) -> bool:
        """Whether it fits."""
        return self.needed <= self.free


@dataclass(frozen=True, slots=True)
class Forecast:
    """What ``bootc plan`` shows.

    Attributes:
        reference: what would be followed.
        digest, version, labels: of the new image.
        changed: something else than what boots now, or is staged, would be deployed.
        layers: of the new image.
        missing: those that no deployed image has.
        removed: layers of what boots now that the new image lacks.
        by_file: missing layers of which only new files are fetched.
        spaces: file systems that are written to.
        kernel: version by the image's label, or None.
        kernel_now: of what boots now, or None.
        kernel_changes, arguments_change: None: unknown before the layers are here.
    """

    reference: str
    digest: str
    version: str | None
    version_now: str | None
    labels: dict[str, str]
    changed: bool
    layers: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]
    removed: tuple[Descriptor, ...]
    by_file: tuple[Descriptor, ...]
    spaces: tuple[Space, ...]
    kernel: str | None
    kernel_now: str | None
    kernel_changes: bool | None
    arguments_change: bool | None

    @property
    def bytes_plain(self) -> int:
        """Bytes to fetch if every missing layer is fetched as a whole."""
        return sum(layer.size for layer in self.missing)

    @property
    def bytes_least(self) -> int:
        """Bytes to fetch at least: whole layers that cannot be fetched by file, and tables of contents."""
        total = self.bytes_plain
        for layer in self.by_file:
            where = chunked.positions(layer.annotations, layer.size)
            total -= layer.size - (where.bytes if where else layer.size)
        return total

    def to_json(self) -> dict[str, Any]:
        """The stable machine form."""

        def layer(item: Descriptor) -> dict[str, Any]:
            return {
                "digest": item.digest,
                "size": item.size,
                "mediaType": item.media_type,
                "byFile": item in self.by_file,
            }

        return {
            "apiVersion": "bootc.plan/v1",
            "image": {
                "reference": self.reference,
                "digest": self.digest,
                "version": self.version,
                "labels": self.labels,
            },
            "current": {"version": self.version_now},
            "changed": self.changed,
            "layers": {
                "total": len(self.layers),
                "missing": [layer(item) for item in self.missing],
                "removed": [layer(item) for item in self.removed],
            },
            "bytes": {"most": self.bytes_plain, "least": self.bytes_least},
            "space": [
                {
                    "what": space.what,
                    "path": space.path,
                    "needed": space.needed,
                    "free": space.free,
                    "enough": space.enough,
                }
                for space in self.spaces
            ],
            "kernel": {
                "version": self.kernel,
                "current": self.kernel_now,
                "changes": self.kernel_changes,
            },
            "kernelArguments": {"change": self.arguments_change},
        }


def make(storage: Storage, host: HostStatus, target: Target, image: FetchedImage) -> Forecast:
    """The forecast for deploying ``image``; reads manifests of deployed images and file systems' free space.

    Raises:
        StorageError: a file system cannot be looked at.
    """
    held: dict[str, Descriptor] = {}
    now: dict[str, Descriptor] = {}
    for slot in (host.rollback, *host.other, host.staged, host.booted):
        manifest = _manifest(storage, slot)
        if manifest is not None:
            layers = {layer.digest: layer for layer in manifest.layers}
            held |= layers
            now = layers if slot is host.booted else now
    wanted = {layer.digest: layer for layer in image.manifest.layers}
    missing = tuple(layer for digest, layer in wanted.items() if digest not in held)
    booted = host.booted.image if host.booted else None
    staged = host.staged.image if host.staged else None
    same = booted is not None and booted.image_digest == image.digest
    kernel = _kernel_label(image.config.labels)
    kernel_now = _kernel_now(storage)
    unchanged = bool(now) and list(now) == list(wanted)
    return Forecast(
        reference=str(target.reference),
        digest=image.digest,
        version=image.config.version,
        version_now=booted.version if booted else None,
        labels=dict(image.config.labels),
        changed=not same and not (staged is not None and staged.image_digest == image.digest),
        layers=image.manifest.layers,
        missing=missing,
        removed=tuple(layer for digest, layer in now.items() if digest not in wanted),
        by_file=tuple(
            layer
            for layer in missing
            if chunked.positions(layer.annotations, layer.size) is not None and held
        ),
        spaces=_spaces(storage, missing, same=same),
        kernel=kernel,
        kernel_now=kernel_now,
        kernel_changes=False
        if same or unchanged
        else kernel != kernel_now
        if kernel and kernel_now
        else None,
        arguments_change=False if same or unchanged else None,
    )


def _manifest(storage: Storage, slot: Deployment | None) -> Manifest | None:
    if slot is None or slot.image is None:
        return None
    raw = storage.backend.offer.manifest(storage.sysroot, slot.image.image_digest)
    if raw is None:
        return None
    try:
        return parse_manifest(RawDocument("", raw), "a deployed image's manifest")
    except BootcError:
        return None  # damaged: its layers are fetched again


def _kernel_label(labels: dict[str, str]) -> str | None:
    return next((labels[name] for name in _KERNEL_LABELS if labels.get(name)), None)


def _kernel_now(storage: Storage) -> str | None:
    """The version that the first boot entry names."""
    entries = storage.bootloader.offer.read_entries(storage.sysroot, lambda message: None)
    return entries[0].get("version") if entries else None


def _spaces(storage: Storage, missing: Sequence[Descriptor], *, same: bool) -> tuple[Space, ...]:
    from bootc_core.fs import atomic

    needed = sum(
        int(layer.size * (1 if LAYER_TYPES.get(layer.media_type) == "none" else _EXPANSION))
        for layer in missing
    )
    found: list[Space] = []
    seen = set()
    for what, path, amount in (
        ("system", storage.sysroot.path, needed),
        ("boot", storage.sysroot.boot_dir, 0 if same else _BOOT_BYTES),
    ):
        with atomic.mapped("look at", path):
            device, free = os.stat(path).st_dev, os.statvfs(path)
        if device in seen:
            first = found.pop()
            what, path = f"{first.what} and {what}", type(path)(first.path)
            amount += first.needed
        seen.add(device)
        found.append(Space(what, str(path), amount, free.f_bavail * free.f_frsize))
    return tuple(found)
