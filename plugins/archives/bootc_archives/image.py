"""From the document that a reference names down to a ``FetchedImage``: the same for all local forms.

    document ──index?──▶ entry for this machine ──▶ manifest ──▶ config, layers

Every document is compared with size and digest of the descriptor that named it; layers are compared
with their size here, and with their digest when they are read.

Local tools store layers plain whose manifest says gzip (podman's ``docker-dir`` does). The bytes
decide: ``FetchedImage.manifest`` then names what is there, the raw document stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bootc_archives.store import Store, compression_of, is_tar, read_source
from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.models.image import Attachment, FetchedImage, FileSource
from bootc_core.models.oci import (
    INDEX_TYPES,
    LAYER_TYPES,
    Descriptor,
    Platform,
    RawDocument,
    parse_config,
    parse_index,
    parse_manifest,
    sniff,
)
from bootc_core.models.reference import ImageReference
from bootc_core.oci.platform import check_config, check_depth, select
from bootc_core.oci.tar import BLOCK

# compression -> media type
TYPES: Final = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


def _none(kind: str, digest: str) -> tuple[Attachment, ...]:
    """Most local forms keep no signatures."""
    del kind, digest
    return ()


@dataclass(frozen=True, slots=True)
class Opened:
    """An image in a file, found but not yet followed.

    Attributes:
        document: what the reference names: a manifest or an index.
        store: its files.
        manifest_name, blob_name: descriptor to file name, for manifests and for all else.
        attachments: kind and digest of a manifest to the signatures beside it.
    """

    document: RawDocument
    store: Store
    manifest_name: Callable[[Descriptor], str]
    blob_name: Callable[[Descriptor], str]
    attachments: Callable[[str, str], tuple[Attachment, ...]] = _none


def read_blob(store: Store, name: str, descriptor: Descriptor, what: str, limit: int) -> bytes:
    """A small blob, compared with its descriptor.

    Raises:
        ContentError: missing, too large, of another size or digest.
        TransportError: unreadable.
    """
    source = sized(store.source(name), descriptor, what)
    raw = read_source(source, what, limit)
    RawDocument(descriptor.media_type, raw).check(descriptor.digest, what)
    return raw


def sized(source: FileSource, descriptor: Descriptor, what: str) -> FileSource:
    """``source``, whose length is that of the descriptor.

    Raises:
        ContentError: it is not.
    """
    if source.length != descriptor.size:
        raise ContentError(
            f"{what} has the wrong size",
            reference="size-mismatch",
            expected=f"{descriptor.size} bytes",
            found=f"{source.length} bytes",
            hint="the file is damaged; copy the image again",
            catalogue="INT",
        )
    return source


def sniffed(raw: bytes, media_type: str, what: str) -> RawDocument:
    """A manifest or index with its true media type.

    Raises:
        ContentError: neither.
    """
    return RawDocument(sniff(raw, media_type, what)[0], raw)


def follow(opened: Opened, reference: ImageReference, wanted: Platform) -> FetchedImage:
    """The image for ``wanted``.

    Raises:
        ContentError: damaged, incomplete, or no image for that machine.
        TransportError: unreadable.
    """
    what = str(reference)
    store, document = opened.store, opened.document
    index: RawDocument | None = None
    depth = 0
    while document.media_type in INDEX_TYPES:
        depth += 1
        check_depth(depth, what)
        index = index or document
        entry = select(parse_index(document, f"index of {what}"), wanted, what)
        title = f"manifest {entry.digest} of {what}"
        name = opened.manifest_name(entry)
        raw = read_blob(store, name, entry, title, limits.MANIFEST_BYTES)
        document = sniffed(raw, entry.media_type, title)
    manifest = parse_manifest(document, f"manifest of {what}")
    title = f"configuration of {what}"
    name = opened.blob_name(manifest.config)
    config_raw = read_blob(store, name, manifest.config, title, limits.CONFIG_BYTES)
    config_document = RawDocument(manifest.config.media_type, config_raw)
    config = parse_config(config_document, manifest, title)
    check_config(config, wanted, what)

    def source(descriptor: Descriptor) -> FileSource:
        found = store.source(opened.blob_name(descriptor))
        return sized(found, descriptor, f"layer {descriptor.digest} of {what}")

    async def read_attachments(kind: str) -> tuple[Attachment, ...]:
        kind, _, digest = kind.partition("@")
        return opened.attachments(kind, digest or document.digest)

    # a missing layer is better known now than after half of the others
    layers = tuple(_as_stored(layer, source(layer), what) for layer in manifest.layers)

    async def blob_source(descriptor: Descriptor) -> FileSource:
        return source(descriptor)

    return FetchedImage(
        requested=reference,
        resolved=reference,
        index=index,
        manifest_document=document,
        manifest=manifest.model_copy(update={"layers": layers}),
        config_document=config_document,
        config=config,
        blob_source=blob_source,
        read_attachments=read_attachments,
    )


def _as_stored(layer: Descriptor, source: FileSource, what: str) -> Descriptor:
    """The layer's descriptor with the media type that its first bytes show, where they show one."""
    head = read_source(source, f"layer {layer.digest} of {what}", limits.LAYER_BYTES, BLOCK)
    found = "none" if is_tar(head) else compression_of(head)
    if found == LAYER_TYPES[layer.media_type] or found not in TYPES:
        return layer
    return layer.model_copy(update={"media_type": TYPES[found]})
