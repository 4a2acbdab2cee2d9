"""``docker-archive:``: what ``docker save`` and ``podman save`` write.

    manifest.json     [{"Config": FILE, "RepoTags": [NAME:TAG, ...], "Layers": [FILE, ...]}, ...]

    Docker 1.10 to 24   HEX.json, ID/layer.tar (a link where two layers are equal), repositories
    Docker 25 on        blobs/sha256/HEX, with an OCI layout in the same archive
    podman, skopeo      HEX.json, HEX.tar

The format has no manifest with digests, so one is made up: an OCI manifest in which each plain layer
has its diffID as digest. Its bytes follow from the archive's content alone, so that the same archive
has the same digest everywhere. A compressed layer (some builders write them) is hashed for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from bootc_archives.image import TYPES, Opened
from bootc_archives.store import ArchiveStore, compression_of, open_regular, read_source
from bootc_core import limits
from bootc_core.errors import ContentError, TransportError, UsageError, printable
from bootc_core.models.base import WireModel, parse_json, validate
from bootc_core.models.image import FileSource
from bootc_core.models.oci import OCI_CONFIG, OCI_MANIFEST, Descriptor, ImageConfig, RawDocument
from bootc_core.models.reference import ImageReference, RegistryName
from bootc_core.oci.tar import BLOCK

_HEX: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_LISTED: Final = 20  # names in an error


class SavedImage(WireModel):
    """One element of manifest.json."""

    config: str = Field(alias="Config")
    repo_tags: tuple[str, ...] | None = Field(alias="RepoTags", default=None, strict=False)
    layers: tuple[str, ...] | None = Field(
        alias="Layers", default=None, strict=False, max_length=limits.LAYERS
    )


class Saved(WireModel):
    """manifest.json."""

    images: tuple[SavedImage, ...] = Field(strict=False, max_length=limits.INDEX_ENTRIES)


def open_docker_archive(reference: ImageReference) -> Opened:
    """The image that ``reference`` names, with a manifest made up for it.

    Raises:
        TransportError: missing, unreadable, no such archive, no image of that name.
        ContentError: damaged or hostile content.
    """
    what = str(reference)
    path, selector = reference.path_and_selector()
    store = ArchiveStore(Path(path), what, reference.transport)
    if not store.has("manifest.json"):
        if store.has("index.json"):
            hint = "this is an OCI layout; name it oci-archive:"
        elif store.has("repositories"):
            hint = "Docker before 1.10 wrote it; load it and save it again with a current one"
        else:
            hint = None
        raise TransportError(
            f"{what} is not an archive of docker save",
            reference="not-a-layout",
            expected="a file manifest.json in it",
            hint=hint,
            catalogue="CON",
        )
    title = f"manifest.json of {what}"
    raw = read_source(store.source("manifest.json"), title, limits.MANIFEST_BYTES)
    saved = validate(Saved, {"images": parse_json(raw, title)}, title)
    image = choose(saved.images, selector, what)
    return _describe(store, image, what)


def choose(images: Sequence[SavedImage], selector: str | None, what: str) -> SavedImage:
    """The image that the reference means: by name, by ``@`` and a number from 0 on, or the only one.

    Raises:
        TransportError: none, or several.
    """
    if selector is None:
        if len(images) == 1:
            return images[0]
        problem = f"{len(images) or 'no'} images, and none was named"
    elif selector.startswith("@"):
        number = int(selector[1:])
        if number < len(images):
            return images[number]
        problem = f"no image {selector}"
    else:
        wanted = str(RegistryName.parse(selector))
        for image in images:
            if wanted in (_normal(tag) for tag in image.repo_tags or ()):
                return image
        problem = f"no image called {printable(selector)!r}"
    names = [
        name for number, image in enumerate(images) for name in (image.repo_tags or (f"@{number}",))
    ]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    listed = ", ".join(printable(name, 100) for name in names[:_LISTED])
    raise TransportError(
        f"{what}: the archive has {problem}",
        reference="no-such-image",
        expected="one image",
        found=(listed or "an empty manifest.json") + more,
        hint="name one of them behind the path, as in docker-archive:/path:NAME" if names else None,
        catalogue="NOTFOUND",
    )


def _normal(tag: str) -> str | None:
    try:
        return str(RegistryName.parse(tag))
    except UsageError:
        return None  # a name that cannot be asked for


def _describe(store: ArchiveStore, image: SavedImage, what: str) -> Opened:
    title = f"configuration of {what}"
    raw = read_source(store.source(image.config), title, limits.CONFIG_BYTES)
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()
    if (named := _HEX.search(image.config)) and digest != f"sha256:{named.group()}":
        raise ContentError(
            f"{title} is not the file that its name promises",
            reference="digest-mismatch",
            expected=f"sha256:{named.group()}",
            found=digest,
            hint="the file is damaged; save the image again",
            catalogue="INT",
        )
    config = validate(ImageConfig, parse_json(raw, title), title)
    files = image.layers or ()
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(files):
        raise ContentError(
            f"{title} does not fit its manifest.json",
            reference="layer-count",
            expected=f"{len(files)} diffIDs, one a layer",
            found=str(len(diff_ids)),
            catalogue="INT",
        )
    names = {digest: image.config}
    layers = []
    for number, (file, diff_id) in enumerate(zip(files, diff_ids, strict=True), 1):
        layer = _describe_layer(store, file, diff_id, f"layer {number} of {what}")
        names[layer["digest"]] = file
        layers.append(layer)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": len(raw)},
        "layers": layers,
    }
    document = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()

    def name(descriptor: Descriptor) -> str:
        return names[descriptor.digest]

    return Opened(RawDocument(OCI_MANIFEST, document), store, name, name)


def _describe_layer(store: ArchiveStore, file: str, diff_id: str, what: str) -> dict[str, Any]:
    source = store.source(file)
    compression = compression_of(read_source(source, what, limits.LAYER_BYTES, at_most=BLOCK))
    if compression is None:
        return {"mediaType": TYPES["none"], "digest": diff_id, "size": source.length}
    if compression not in TYPES:
        raise ContentError(
            f"{what} has an unsupported compression",
            reference="unsupported-layer",
            expected="a tar layer, plain or compressed with gzip or zstd",
            found=compression,
        )
    return {
        "mediaType": TYPES[compression],
        "digest": _hash(source, what),
        "size": source.length,
    }


def _hash(source: FileSource, what: str) -> str:
    """Digest of a whole source; at a read error, whoever reads the layer will say so."""
    digest = hashlib.sha256()
    descriptor = open_regular(source.path, what)
    try:
        offset, left = source.offset, source.length or 0
        while left and (
            piece := os.pread(descriptor, min(left, limits.OUTPUT_CHUNK_BYTES), offset)
        ):
            digest.update(piece)
            offset += len(piece)
            left -= len(piece)
    finally:
        os.close(descriptor)
    return f"sha256:{digest.hexdigest()}"
