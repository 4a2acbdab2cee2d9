"""Reading an image out of containers-storage with ``skopeo``, which knows its locks, drivers and formats.

    skopeo inspect --raw [--config]   the stored manifest and configuration: cheap, nothing is copied
    layers.json                       sizes of the layers as they are stored: uncompressed, named by diffID
    skopeo copy … dir:                only when the first layer is wanted: all of them into SYSROOT/bootc/spool, removed afterwards

The stored manifest is the one that was pulled or built, so its layers' digests may be those of compressed blobs that are not here
any more. `FetchedImage.manifest` therefore names the layers as they are; every byte is compared with the diffIDs, which the
configuration, and so the manifest's digest, covers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio

from bootc_core import limits, process
from bootc_core.errors import ContentError, TransportError, UnsupportedEnvironmentError, printable
from bootc_core.fs import atomic
from bootc_core.models.context import Context
from bootc_core.models.image import FetchedImage, FileSource
from bootc_core.models.oci import (
    INDEX_TYPES,
    Descriptor,
    RawDocument,
    parse_config,
    parse_manifest,
    sniff,
)
from bootc_core.models.reference import ImageReference
from bootc_core.oci.platform import check_config, host_platform

_PLAIN: Final = "application/vnd.oci.image.layer.v1.tar"
_INSPECT_S: Final = 120.0
_COPY_S: Final = limits.PHASE_TIMEOUT_S
_SPECIFIER: Final = re.compile(r"\[(?:([a-z0-9]+)@)?(/[^\]+:]+)[^\]]*\]")
_LAYERS_BYTES: Final = 64 * limits.MIB  # layers.json of a machine with some 100,000 layers
_SPOOL: Final = "spool/containers-storage"


def _missing(what: str, problem: Exception) -> TransportError:
    return TransportError(
        f"{what} cannot be read: skopeo is needed for it",
        reference="no-skopeo",
        found=printable(str(problem)),
        hint="install skopeo, or copy the image to oci-archive: or a registry",
        catalogue="ENV",
    )


async def _skopeo(
    arguments: Sequence[str], reference: ImageReference, *, timeout_s: float, output: int
) -> bytes:
    what = reference.display()
    extra = {
        name: os.environ[name]
        for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME")
        if name in os.environ
    }
    extra |= {
        name: os.environ[name]
        for name in ("CONTAINERS_STORAGE_CONF", "STORAGE_DRIVER", "TMPDIR")
        if name in os.environ
    }
    try:
        done = await process.run(
            ["skopeo", *arguments],
            timeout_s=timeout_s,
            env=process.clean_environment(**extra),
            output_limit=output,
            check=False,
            error=TransportError,
            label="skopeo",
        )
    except UnsupportedEnvironmentError as problem:
        raise _missing(what, problem) from problem
    if done.timed_out:
        raise TransportError(
            f"skopeo takes too long with {what}", reference="timeout", retryable=True
        )
    if done.returncode != 0:
        said = done.last_lines(1)
        whole = done.stderr.decode("utf-8", "replace")
        absent = "does not resolve to an image" in whole or "identifier is not an image" in whole
        raise TransportError(
            f"there is no {what} in containers-storage" if absent else f"skopeo cannot read {what}",
            reference="not-found" if absent else "containers-storage",
            found=printable(said, 300),
            hint="podman images lists what there is (of this user)" if absent else None,
            catalogue="NOTFOUND" if absent else "NET",
        )
    if done.truncated:
        raise ContentError(
            f"a document of {what} is too large",
            reference="too-large",
            expected=f"at most {output} bytes",
            catalogue="LIM",
        )
    return done.stdout


def _source(reference: ImageReference) -> str:
    return f"containers-storage:{reference.name}"


async def _manifest(reference: ImageReference) -> RawDocument:
    raw = await _skopeo(
        ["inspect", "--raw", _source(reference)],
        reference,
        timeout_s=_INSPECT_S,
        output=limits.MANIFEST_BYTES,
    )
    what = reference.display()
    media_type, _ = sniff(raw, "", what)
    if media_type in INDEX_TYPES:
        raise ContentError(
            f"{what} is an index",
            reference="not-an-image",
            found=media_type,
            hint="name one of its images",
        )
    return RawDocument(media_type, raw)


async def resolve(reference: ImageReference) -> str:
    """Digest of the manifest that is stored under the name.

    Raises:
        TransportError: no such image, or skopeo is missing or fails.
        ContentError: it is no image.
    """
    return (await _manifest(reference)).digest


async def fetch(context: Context, reference: ImageReference) -> FetchedImage:
    """The image's documents, and its layers as files that appear when the first is wanted.

    Raises:
        TransportError: as ``resolve``.
        ContentError: damaged, or not for this machine.
    """
    what = reference.display()
    document = await _manifest(reference)
    manifest = parse_manifest(document, f"the manifest of {what}")
    title = f"the configuration of {what}"
    raw = await _skopeo(
        ["inspect", "--config", "--raw", _source(reference)],
        reference,
        timeout_s=_INSPECT_S,
        output=limits.CONFIG_BYTES,
    )
    config_document = RawDocument(manifest.config.media_type, raw)
    config_document.check(manifest.config.digest, title)
    config = parse_config(config_document, manifest, title)
    check_config(config, host_platform(), what)
    diff_ids = config.rootfs.diff_ids
    copied = _Copied(Path(context.sysroot) / "bootc" / _SPOOL, reference)
    sizes = await trio.to_thread.run_sync(stored_sizes, reference)
    if not set(diff_ids) <= sizes.keys():
        if context.dry_run:
            sizes = {
                digest: layer.size for digest, layer in zip(diff_ids, manifest.layers, strict=True)
            }
        else:
            sizes = await copied.sizes(diff_ids)
    layers = tuple(
        Descriptor(mediaType=_PLAIN, digest=diff_id, size=sizes[diff_id]) for diff_id in diff_ids
    )

    async def blob_source(descriptor: Descriptor) -> FileSource:
        return await copied.layer(descriptor.digest)

    return FetchedImage(
        requested=reference,
        resolved=reference,
        index=None,
        manifest_document=document,
        manifest=manifest.model_copy(update={"layers": layers}),
        config_document=config_document,
        config=config,
        blob_source=blob_source,
    )


def stored_sizes(reference: ImageReference) -> dict[str, int]:
    """Uncompressed sizes by diffID that the storage's ``layers.json`` tells; empty if it cannot be found or read."""
    found: dict[str, int] = {}
    for place in _storages(reference):
        for path in (
            *place.glob("*-layers/layers.json"),
            *place.glob("*-layers/volatile-layers.json"),
        ):
            try:
                with path.open("rb") as file:
                    value: Any = json.loads(file.read(_LAYERS_BYTES))
                for layer in value:
                    if isinstance(layer.get("diff-size"), int) and layer.get("diff-digest"):
                        found[str(layer["diff-digest"])] = layer["diff-size"]
            except (OSError, ValueError, AttributeError, TypeError):
                continue
    return found


def _storages(reference: ImageReference) -> list[Path]:
    if match := _SPECIFIER.match(reference.name):
        return [Path(match[2])]
    try:
        done = process.run_blocking(
            ["podman", "info", "--format", "{{.Store.GraphRoot}}"],
            timeout_s=_INSPECT_S,
            check=False,
            label="podman",
        )
    except UnsupportedEnvironmentError:
        return []  # only sizes; skopeo copies before instead
    place = done.stdout.decode("utf-8", "replace").strip()
    return [Path(place)] if done.returncode == 0 and place.startswith("/") else []


class _Copied:
    """The image's layers as files, copied once; gone with this object, and what a killed run left with the next one."""

    def __init__(self, spool: Path, reference: ImageReference) -> None:
        self._spool, self._reference = spool, reference
        self._lock = trio.Lock()
        self._place: Path | None = None

    async def _copy(self) -> Path:
        async with self._lock:
            if self._place is not None:
                return self._place
            atomic.rmtree(self._spool)
            for directory in (self._spool.parent.parent, self._spool.parent, self._spool):
                atomic.mkdir(directory, 0o700)
            place = Path(tempfile.mkdtemp(prefix="image-", dir=self._spool))
            weakref.finalize(self, shutil.rmtree, place, ignore_errors=True)
            await _skopeo(
                ["--insecure-policy", "copy", "--quiet", _source(self._reference), f"dir:{place}"],
                self._reference,
                timeout_s=_COPY_S,
                output=limits.HOOK_OUTPUT_BYTES,
            )
            self._place = place
            return place

    def _file(self, place: Path, diff_id: str) -> Path:
        return place / diff_id.partition(":")[2]

    async def sizes(self, diff_ids: Sequence[str]) -> dict[str, int]:
        """Sizes by diffID, of what was copied."""
        place = await self._copy()
        found = {}
        for diff_id in diff_ids:
            try:
                found[diff_id] = self._file(place, diff_id).stat().st_size
            except OSError:
                raise self._lost(diff_id) from None
        return found

    async def layer(self, diff_id: str) -> FileSource:
        """The layer's file."""
        path = self._file(await self._copy(), diff_id)
        if not path.is_file():
            raise self._lost(diff_id)
        return FileSource(path)

    def _lost(self, diff_id: str) -> ContentError:
        return ContentError(
            f"containers-storage has {self._reference.display()} with other layers than its configuration says",
            reference="layer-missing",
            expected=diff_id,
            hint="pull or build the image again",
            catalogue="INT",
        )
