"""Writes an image into an OCI layout, wherever it comes from: what is there is kept, what broke off goes on at the byte.

    DIR/oci-layout  index.json                  the index is replaced last, at once: at any moment the layout is whole
        blobs/sha256/HEX                        complete and checked; one that is there is not fetched again
        blobs/sha256/HEX.part                   what arrived before an interruption

A transport may hand out layers packed otherwise than the manifest says (a storage that keeps them unpacked, a deployed image):
then the manifest is made anew for what is written, and has another digest. Configuration and image ID are the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import trio

from bootc_core import limits
from bootc_core.errors import ContentError, TransportError, printable
from bootc_core.fs import atomic
from bootc_core.models.base import parse_json
from bootc_core.models.image import FetchedImage, FileSource, HttpSource, PipeSource
from bootc_core.models.oci import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    RawDocument,
    parse_manifest,
)
from bootc_core.net import budget
from bootc_core.net.http import Pool
from bootc_core.oci.digest import Verifier
from bootc_core.oci.download import Download

REF_NAME: Final = "org.opencontainers.image.ref.name"
_PLACES: Final = 8  # that a transport may offer for one blob

Progress = Callable[[Descriptor, int], None]


def document(image: FetchedImage) -> RawDocument:
    """The manifest that fits the blobs: the image's own where that can be."""
    manifest = parse_manifest(image.manifest_document, image.requested.display())
    if manifest.layers == image.manifest.layers:
        return image.manifest_document

    def entry(one: Descriptor) -> dict[str, Any]:
        return {"mediaType": one.media_type, "digest": one.digest, "size": one.size}

    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {**entry(image.manifest.config), "mediaType": OCI_CONFIG},
        "layers": [entry(layer) for layer in image.manifest.layers],
    }
    if manifest.annotations:
        value["annotations"] = manifest.annotations
    return RawDocument(OCI_MANIFEST, json.dumps(value).encode())


def missing(image: FetchedImage, directory: Path) -> list[Descriptor]:
    """Layers that are not in the layout, each once."""
    unique = {layer.digest: layer for layer in image.manifest.layers}
    return [layer for layer in unique.values() if not _blob(directory, layer.digest).exists()]


def _blob(directory: Path, digest: str) -> Path:
    algorithm, _, digits = digest.partition(":")
    return directory / "blobs" / algorithm / digits


async def write_layout(
    image: FetchedImage, directory: Path, name: str | None, progress: Progress
) -> RawDocument:
    """Write ``image`` into the layout at ``directory``, made if it is not there, under ``name``; synced when this returns.

    Args:
        image: its blobs are read one after the other.
        directory: the layout; images in it stay, one of the same name is replaced.
        name: None: the layout's only image, which replaces all others.
        progress: is told how many bytes of a blob are there.

    Returns:
        the manifest that was written.

    Raises:
        ContentError: a blob is not what it should be, or ``directory`` holds something else than a layout.
        TransportError: the source does not deliver; the next call goes on from there.
        StorageError: space, I/O.
    """
    known = _known(directory)
    for place in (directory, directory / "blobs", directory / "blobs/sha256"):
        atomic.mkdir(place)
    atomic.write_file(directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', sync=False)
    for layer in missing(image, directory):
        path = _blob(directory, layer.digest)
        atomic.mkdir(path.parent)
        await _fetch(image, layer, path, progress)
    manifest = document(image)
    for one in (image.config_document, manifest):
        atomic.write_file(_blob(directory, one.digest), one.raw, sync=False)
    entry: dict[str, Any] = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.raw),
    }
    if name is not None:
        entry["annotations"] = {REF_NAME: name}
        entries = [one for one in known if (one.get("annotations") or {}).get(REF_NAME) != name]
    else:
        entries = []
    index = {"schemaVersion": 2, "manifests": [*entries, entry]}
    atomic.syncfs(directory)  # everything that the index names, before the index
    atomic.write_file(directory / "index.json", json.dumps(index).encode())
    return manifest


def _known(directory: Path) -> list[dict[str, Any]]:
    """The entries of the layout that is there already."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        names = ["."]
    if names and "oci-layout" not in names:
        raise ContentError(
            f"{printable(str(directory))} holds something else than an OCI layout",
            reference="not-a-layout",
            expected="an empty directory, or one with a file oci-layout",
            hint="name another directory",
            catalogue="CON",
        )
    try:
        raw = (directory / "index.json").read_bytes()
    except FileNotFoundError:
        return []
    value = parse_json(raw, f"{printable(str(directory))}/index.json")
    found = value.get("manifests") if isinstance(value, dict) else None
    return [one for one in found or [] if isinstance(one, dict)]


async def _fetch(image: FetchedImage, layer: Descriptor, path: Path, progress: Progress) -> None:
    part = path.with_name(f"{path.name}.part")
    what = f"layer {layer.digest} of {image.requested.display()}"
    for _ in range(_PLACES):
        source = await image.blob_source(layer)
        place = source.elsewhere if isinstance(source, HttpSource) else ""
        resumable = isinstance(source, HttpSource)
        verifier = Verifier(layer.digest, layer.size, what)
        begun = 0
        with atomic.mapped("write", part):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with atomic.mapped("write", part):
                if not resumable or os.fstat(descriptor).st_size > layer.size:
                    os.ftruncate(descriptor, 0)
            await trio.to_thread.run_sync(_hash, descriptor, verifier)
            begun = verifier.bytes
            async with aclosing(_pieces(source, layer, verifier.bytes, what)) as pieces:
                async for piece in pieces:
                    verifier.update(piece)
                    with atomic.mapped("write", part):
                        _write(descriptor, piece)
                    progress(layer, verifier.bytes)
            verifier.finish()
        except ContentError:
            atomic.unlink(part)  # what was there may have been no beginning of this blob
            if not place and not begun:
                raise
        except TransportError as problem:
            if not place or problem.reference == "byte-budget":
                raise
        else:
            atomic.rename(part, path)
            return
        finally:
            os.close(descriptor)
    raise TransportError(f"{what} is nowhere to be had", reference="not-found")


def _hash(descriptor: int, verifier: Verifier) -> None:
    while piece := os.read(descriptor, limits.CHUNK_BYTES):
        verifier.update(piece)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _pieces(
    source: HttpSource | FileSource | PipeSource, layer: Descriptor, position: int, what: str
) -> AsyncGenerator[bytes | memoryview, None]:
    """The blob's bytes from ``position`` on (0 but for HTTP)."""
    if isinstance(source, PipeSource):
        async for piece in source.open():
            yield piece
        return
    view = memoryview(bytearray(limits.CHUNK_BYTES))
    if isinstance(source, FileSource):
        left = layer.size + 1 if source.length is None else source.length
        with atomic.mapped("read", source.path), source.path.open("rb", buffering=0) as file:
            file.seek(source.offset)
            while left and (count := await trio.to_thread.run_sync(file.readinto, view[:left])):
                left -= count
                yield view[:count]
        return
    tls = {
        "verify": source.tls_verify,
        "ca_files": [source.ca_file] if source.ca_file else [],
        "client_cert": source.client_cert,
        "client_key": source.client_key,
    }
    told = {"url": source.url, "headers": source.headers, "tls": tls}
    job = {"source": told, "size": layer.size, "what": what}
    current = budget.CURRENT.get()
    buffer = budget.RECEIVE_BUFFER_BYTES if current else None
    with Pool(2, receive_buffer=buffer) as pool:
        meter = current.meter() if current else None
        download = Download(job, position, pool, meter)
        try:
            while count := await trio.to_thread.run_sync(
                download.readinto, view, abandon_on_cancel=True
            ):
                yield view[:count]
        finally:
            download.close()
