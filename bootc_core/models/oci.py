"""OCI image documents as values, with their raw bytes kept (OCI image specification 1.1, Docker schema 2).

    index ──(platform)──▶ manifest ──▶ config (diff_ids, labels, architecture)
                              └──────▶ layers (descriptors)

A digest is over bytes, so ``RawDocument`` carries what came over the wire; the parsed value is only read from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from bootc_core import limits
from bootc_core.errors import ContentError, printable
from bootc_core.models.base import Digest, WireModel, parse_json, validate

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})

# media type -> compression, of layers that we take
LAYER_TYPES: Final = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


class Platform(WireModel):
    """The ``platform`` of an index entry."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(WireModel):
    """A pointer to a blob: type, digest and exact size in bytes."""

    media_type: str = Field(alias="mediaType", default="")
    digest: Digest
    size: int = Field(ge=0, le=limits.IMAGE_BYTES)
    urls: tuple[str, ...] | None = Field(default=None, strict=False)
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class Index(WireModel):
    """An image index or Docker manifest list."""

    schema_version: int = Field(alias="schemaVersion")
    media_type: str = Field(alias="mediaType", default="")
    manifests: tuple[Descriptor, ...] = Field(strict=False, max_length=limits.INDEX_ENTRIES)
    annotations: dict[str, str] | None = None


class Manifest(WireModel):
    """An image manifest."""

    schema_version: int = Field(alias="schemaVersion")
    media_type: str = Field(alias="mediaType", default="")
    artifact_type: str | None = Field(alias="artifactType", default=None)
    config: Descriptor
    layers: tuple[Descriptor, ...] = Field(strict=False, max_length=limits.LAYERS)
    annotations: dict[str, str] | None = None
    subject: Descriptor | None = None


class ContainerConfig(WireModel):
    """The ``config`` member of an image configuration; only labels matter to a host."""

    labels: dict[str, str] | None = Field(alias="Labels", default=None)


class RootFS(WireModel):
    """The layers' uncompressed digests, lowest first."""

    type: str
    diff_ids: tuple[Digest, ...] = Field(strict=False, max_length=limits.LAYERS)


class History(WireModel):
    """One line of the build history; for display."""

    created_by: str | None = None
    empty_layer: bool | None = None


class ImageConfig(WireModel):
    """An image configuration."""

    architecture: str
    os: str
    variant: str | None = None
    created: str | None = None
    config: ContainerConfig | None = None
    rootfs: RootFS
    history: tuple[History, ...] | None = Field(default=None, strict=False)

    @property
    def labels(self) -> dict[str, str]:
        """Labels, empty if there are none."""
        return (self.config.labels if self.config else None) or {}

    @property
    def version(self) -> str | None:
        """The label ``org.opencontainers.image.version``, else ``version``."""
        return self.labels.get("org.opencontainers.image.version") or self.labels.get("version")

    @property
    def timestamp(self) -> str | None:
        """The label ``org.opencontainers.image.created``, else ``created`` (RFC 3339, unchecked)."""
        return self.labels.get("org.opencontainers.image.created") or self.created


@dataclass(frozen=True, slots=True)
class RawDocument:
    """The exact bytes of a document with their media type; ``digest`` is computed from them, never believed."""

    media_type: str
    raw: bytes

    @property
    def digest(self) -> str:
        """``sha256:…`` over the raw bytes."""
        return "sha256:" + hashlib.sha256(self.raw).hexdigest()

    def check(self, wanted: str, what: str) -> None:
        """Compare the bytes with a digest of any supported algorithm.

        Raises:
            ContentError: ``digest-mismatch``.
        """
        algorithm, _, hexed = wanted.partition(":")
        found = hashlib.new(algorithm, self.raw).hexdigest()
        if found != hexed:
            raise ContentError(
                f"{what} is not what was asked for",
                reference="digest-mismatch",
                expected=wanted,
                found=f"{algorithm}:{found}",
                hint="the source served damaged or different data; retry, or check the mirror",
                catalogue="INT",
            )


def sniff(raw: bytes, content_type: str, what: str) -> tuple[str, dict[str, Any]]:
    """Media type and JSON value of a manifest or index; rejects what is ambiguous or not an image.

    The body decides; a ``mediaType`` field and the transport's ``content_type`` must agree with it where they are
    specific (CVE-2021-41190).

    Args:
        raw: the document.
        content_type: what the transport called it, parameters stripped; "" if unknown.
        what: names the document in errors.

    Raises:
        ContentError: not JSON, ambiguous, schema 1, or not an image.
    """
    value = parse_json(raw, what)
    if not isinstance(value, dict):
        raise ContentError(
            f"{what} is not a JSON object", reference="bad-document", catalogue="INT"
        )
    if value.get("schemaVersion") == 1 or "fsLayers" in value:
        raise ContentError(
            f"{what} is a Docker schema 1 manifest",
            reference="schema-1",
            hint="this format was withdrawn in 2019; push the image again with a current tool",
        )
    has_index, has_manifest = "manifests" in value, "layers" in value or "config" in value
    if has_index and has_manifest:
        raise ContentError(
            f"{what} claims to be a manifest and an index at once",
            reference="ambiguous-document",
            catalogue="INT",
        )
    named = value.get("mediaType", "")
    if not isinstance(named, str):
        raise ContentError(f"{what}: mediaType is wrong", reference="bad-document", catalogue="INT")
    kinds = INDEX_TYPES if has_index else MANIFEST_TYPES if has_manifest else frozenset()
    if not kinds or (named and named not in kinds):
        raise ContentError(
            f"{what} is not a container image",
            reference="not-an-image",
            found=printable(named or content_type or "unknown document"),
        )
    specific = content_type if content_type in INDEX_TYPES | MANIFEST_TYPES else ""
    if (specific and specific not in kinds) or (named and specific and named != specific):
        raise ContentError(
            f"{what}: the Content-Type and the document disagree",
            reference="ambiguous-document",
            expected=printable(named or "a type that fits the document"),
            found=printable(content_type),
            catalogue="INT",
        )
    default = OCI_INDEX if has_index else OCI_MANIFEST
    if not named and not specific and has_manifest:
        config = value.get("config")
        if isinstance(config, dict) and config.get("mediaType") == DOCKER_CONFIG:
            default = DOCKER_MANIFEST
    return named or specific or default, value


def _check_annotations(holder: dict[str, str] | None, what: str) -> None:
    if holder and sum(len(k) + len(v) for k, v in holder.items()) > limits.ANNOTATION_BYTES:
        raise ContentError(
            f"{what} carries too many annotations or labels",
            reference="too-large",
            expected=f"at most {limits.ANNOTATION_BYTES} bytes",
            catalogue="LIM",
        )


def parse_manifest(document: RawDocument, what: str) -> Manifest:
    """The manifest in ``document``, with every layer of a type that we take.

    Raises:
        ContentError: wrong form, not an operating system image, foreign or unsupported layers.
    """
    media_type, value = sniff(document.raw, document.media_type, what)
    if media_type not in MANIFEST_TYPES:
        raise ContentError(f"{what} is not a manifest", reference="not-an-image", found=media_type)
    manifest = validate(Manifest, value, what)
    _check_annotations(manifest.annotations, what)
    if manifest.config.media_type not in CONFIG_TYPES:
        raise ContentError(
            f"{what} is an artifact, not an image",
            reference="not-an-image",
            found=printable(manifest.artifact_type or manifest.config.media_type),
        )
    if manifest.config.size > limits.CONFIG_BYTES:
        raise ContentError(
            f"{what}: the configuration is too large",
            reference="too-large",
            expected=f"at most {limits.CONFIG_BYTES} bytes",
            found=str(manifest.config.size),
            catalogue="LIM",
        )
    for number, layer in enumerate(manifest.layers, 1):
        if layer.media_type not in LAYER_TYPES:
            raise ContentError(
                f"{what}: layer {number} has an unsupported type",
                reference="unsupported-layer",
                expected="a tar layer, plain or compressed with gzip or zstd",
                found=printable(layer.media_type),
                hint="foreign, encrypted and other layers are never fetched; push the image with plain layers",
            )
    return manifest


def parse_index(document: RawDocument, what: str) -> Index:
    """The index in ``document``.

    Raises:
        ContentError: wrong form.
    """
    media_type, value = sniff(document.raw, document.media_type, what)
    if media_type not in INDEX_TYPES:
        raise ContentError(f"{what} is not an index", reference="not-an-image", found=media_type)
    return validate(Index, value, what)


def parse_config(document: RawDocument, manifest: Manifest, what: str) -> ImageConfig:
    """The image configuration, checked against its manifest (as many diffIDs as layers).

    Raises:
        ContentError: wrong form or count.
    """
    value = parse_json(document.raw, what)
    config = validate(ImageConfig, value, what)
    _check_annotations(config.labels, what)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise ContentError(
            f"{what} does not fit its manifest",
            reference="layer-count",
            expected=f"{len(manifest.layers)} diffIDs, one a layer",
            found=str(len(config.rootfs.diff_ids)),
            catalogue="INT",
        )
    return config
