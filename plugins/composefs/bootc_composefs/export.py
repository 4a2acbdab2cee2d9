"""A deployed image as an image again: each layer's archive put together from its splitstream and the objects.

The configuration is the one that was fetched, and so are the layers' diffIDs: the image ID stays. Layers are not compressed, so
the manifest is another one, and has another digest than the registry's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import trio

from bootc_composefs.repository import Repository
from bootc_composefs.state import REPOSITORY, document
from bootc_core import limits
from bootc_core.errors import ContentError, StorageError
from bootc_core.models.image import BlobSource, FetchedImage, PipeSource
from bootc_core.models.oci import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    RawDocument,
    parse_config,
    parse_manifest,
)
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot

_PLAIN = "application/vnd.oci.image.layer.v1.tar"


def export(sysroot: Sysroot, reference: ImageReference, digest: str) -> FetchedImage:
    """The deployed image with the manifest digest ``digest``; its layers are read when they are asked for.

    Raises:
        StorageError: it is not deployed here, or something of it is missing.
        ContentError: what is stored is damaged.
    """
    what = reference.display()
    with Repository.open(sysroot.path / REPOSITORY) as repository:
        raw = document(repository, f"oci-manifest-{digest}", limits.MANIFEST_BYTES)
        stored = json.loads(raw)
        config_digest = str(stored["config"]["digest"])
        config_raw = document(repository, f"oci-config-{config_digest}", limits.CONFIG_BYTES)
        diff_ids = json.loads(config_raw)["rootfs"]["diff_ids"]
        layers = [
            {"mediaType": _PLAIN, "digest": diff_id, "size": _size(repository, diff_id)}
            for diff_id in diff_ids
        ]
    config = {"mediaType": OCI_CONFIG, "digest": config_digest, "size": len(config_raw)}
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config,
        "layers": layers,
    }
    if stored.get("annotations"):
        value["annotations"] = stored["annotations"]
    manifest_document = RawDocument(OCI_MANIFEST, json.dumps(value).encode())
    config_document = RawDocument(OCI_CONFIG, config_raw)
    manifest = parse_manifest(manifest_document, what)

    async def blob_source(descriptor: Descriptor) -> BlobSource:
        return PipeSource(partial(_archive, sysroot, descriptor.digest))

    return FetchedImage(
        requested=reference,
        resolved=reference,
        index=None,
        manifest_document=manifest_document,
        manifest=manifest,
        config_document=config_document,
        config=parse_config(config_document, manifest, what),
        blob_source=blob_source,
    )


def _size(repository: Repository, diff_id: str) -> int:
    stream = repository.stream(f"oci-layer-{diff_id}")
    if stream is None:
        raise StorageError(
            f"the layer {diff_id} is not in the composefs repository",
            reference="missing-object",
            catalogue="STATE",
        )
    return int(stream.size)


def _pieces(sysroot: Sysroot, diff_id: str) -> Iterator[bytes]:
    """The archive in pieces; every object is compared with its name, and the whole with the diffID."""
    hasher = hashlib.sha256()
    with Repository.open(sysroot.path / REPOSITORY) as repository:
        stream = repository.stream(f"oci-layer-{diff_id}")
        assert stream is not None  # noqa: S101 - its size was read before
        for chunk in stream.chunks():
            data = chunk if isinstance(chunk, bytes) else repository.read(stream.object_refs[chunk])
            hasher.update(data)
            yield data
    if f"sha256:{hasher.hexdigest()}" != diff_id:
        raise ContentError(
            f"the stored layer {diff_id} is not what it was",
            reference="digest-mismatch",
            expected=diff_id,
            found=f"sha256:{hasher.hexdigest()}",
            hint="bootc switch to the image again, or another one",
            catalogue="INT",
        )


async def _archive(sysroot: Sysroot, diff_id: str) -> AsyncIterator[bytes]:
    pieces = _pieces(sysroot, diff_id)

    def some() -> bytes:
        """A MiB or so at once: a thread's turn for each small piece would cost more than the pieces."""
        data = bytearray()
        for piece in pieces:
            data += piece
            if len(data) >= limits.MIB:
                break
        return bytes(data)

    while data := await trio.to_thread.run_sync(some):
        yield data
