"""Small OCI images for tests, built from dictionaries: layers with any compression, a kernel if wanted, as a layout on disk.

    image = build(tmp_path / "layout", [bootable({"etc/motd": "hello"}), {"usr/bin/tool": File(b"...", mode=0o755)}])
    image.fetched("quay.io/acme/os:1")      the FetchedImage that a transport would give
    image.path                              the layout, for transports that read one

A layer is a dictionary from path to content: text or bytes (a regular file), ``File``, ``Link``, ``Hard``, ``Dir``, or a
``tarfile.TarInfo`` as it is. Names such as ``usr/.wh.x`` are whiteouts as in any layer.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootc_core.models.image import (
    BlobSource,
    FetchedImage,
    FileSource,
    PolicyAnswer,
    VerifiedImage,
)
from bootc_core.models.oci import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    RawDocument,
    parse_config,
    parse_manifest,
)
from bootc_core.models.reference import ImageReference

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MTIME = 1_700_000_000
_TYPES = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True)
class File:
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME
    xattrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dir:
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: float = MTIME


@dataclass(frozen=True)
class Link:
    target: str


@dataclass(frozen=True)
class Hard:
    target: str


Item = str | bytes | File | Dir | Link | Hard | tarfile.TarInfo
Layer = Mapping[str, Item]

OS_RELEASE = 'ID=testos\nPRETTY_NAME="Test OS {version}"\nVERSION_ID={version}\n'


_DIRECTORIES = [
    "boot",
    "dev",
    "etc",
    "proc",
    "run",
    "sys",
    "sysroot",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib/modules",
    "var",
    "var/lib",
]


def bootable(
    more: Layer | None = None,
    *,
    version: str = "1",
    kernel: bytes = b"kernel " * 100,
    initrd: bytes | None = b"initrd " * 200,
    release: str = "6.1.0-test",
) -> dict[str, Item]:
    """A first layer with everything that a bootable image has; ``more`` is put over it."""
    modules = f"usr/lib/modules/{release}"
    layer: dict[str, Item] = {
        "./": Dir(),
        **{name: Dir() for name in (*_DIRECTORIES, modules)},
        "tmp": Dir(mode=0o1777),
        "usr/lib/os-release": OS_RELEASE.format(version=version),
        f"{modules}/vmlinuz": kernel,
    }
    if initrd is not None:
        layer[f"{modules}/initramfs.img"] = initrd
    return {**layer, **(more or {})}


def tar(layer: Layer) -> bytes:
    """The uncompressed archive of a layer, members in the order of the dictionary."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, item in layer.items():
            if isinstance(item, str):
                item = item.encode()
            if isinstance(item, bytes):
                item = File(item)
            if isinstance(item, tarfile.TarInfo):
                item.name = name
                archive.addfile(item)
                continue
            member = tarfile.TarInfo(name)
            member.mtime = MTIME
            if isinstance(item, Link):
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, item.target, 0o777
            elif isinstance(item, Hard):
                member.type, member.linkname = tarfile.LNKTYPE, item.target
            else:
                member.mode, member.uid, member.gid = item.mode, item.uid, item.gid
                member.mtime = item.mtime
            if isinstance(item, Dir):
                member.type = tarfile.DIRTYPE
            if isinstance(item, File):
                member.size = len(item.data)
                member.pax_headers = {
                    f"SCHILY.xattr.{key}": value for key, value in item.xattrs.items()
                }
                archive.addfile(member, io.BytesIO(item.data))
            else:
                archive.addfile(member)
    return out.getvalue()


def compress(data: bytes, compression: str) -> bytes:
    """``data`` as a blob: ``none``, ``gzip`` or ``zstd``."""
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstd.compress(data, 3)
    return data


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Image:
    """An image in a layout on disk, and its documents."""

    path: Path
    manifest_document: RawDocument
    config_document: RawDocument
    index_document: RawDocument

    @property
    def digest(self) -> str:
        return self.manifest_document.digest

    @property
    def diff_ids(self) -> list[str]:
        found: list[str] = json.loads(self.config_document.raw)["rootfs"]["diff_ids"]
        return found

    def blob(self, name: str) -> Path:
        return self.path / "blobs/sha256" / name.partition(":")[2]

    def fetched(
        self, reference: str = "quay.io/acme/os:1", *, with_index: bool = True
    ) -> FetchedImage:
        """What a transport would hand on, its blobs read from the layout."""
        manifest = parse_manifest(self.manifest_document, "the manifest")
        config = parse_config(self.config_document, manifest, "the configuration")

        async def blob_source(descriptor: Descriptor) -> BlobSource:
            return FileSource(self.blob(descriptor.digest))

        requested = ImageReference.parse(reference)
        return FetchedImage(
            requested=requested,
            resolved=requested,
            index=self.index_document if with_index else None,
            manifest_document=self.manifest_document,
            manifest=manifest,
            config_document=self.config_document,
            config=config,
            blob_source=blob_source,
        )

    def verified(self, reference: str = "quay.io/acme/os:1", **kwargs: Any) -> VerifiedImage:
        """The same, accepted by a policy of this test's own."""
        answer = PolicyAnswer(True, "tests accept everything", rule="tests")
        return VerifiedImage._accept(self.fetched(reference, **kwargs), (("test-policy", answer),))


def build(
    path: Path,
    layers: Sequence[Layer | bytes],
    *,
    compression: str | Sequence[str] = "gzip",
    labels: Mapping[str, str] | None = None,
    created: str = "2026-01-02T03:04:05.678901234Z",
    architecture: str = "amd64",
    tag: str = "latest",
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Write an image into the layout at ``path`` (which may hold others already) and give it ``tag``."""
    kinds = [compression] * len(layers) if isinstance(compression, str) else list(compression)
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(data: bytes) -> dict[str, Any]:
        name = digest(data)
        (blobs / name.partition(":")[2]).write_bytes(data)
        return {"digest": name, "size": len(data)}

    descriptors, diff_ids = [], []
    for layer, kind in zip(layers, kinds, strict=True):
        data = layer if isinstance(layer, bytes) else tar(layer)
        diff_ids.append(digest(data))
        media_type = f"application/vnd.oci.image.layer.v1.tar{_TYPES[kind]}"
        descriptors.append({"mediaType": media_type, **put(compress(data, kind))})
    config: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": {"Labels": dict(labels or {})},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    config_raw = json.dumps(config).encode()
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, **put(config_raw)},
        "layers": descriptors,
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    manifest_raw = json.dumps(manifest).encode()
    entry = {
        "mediaType": OCI_MANIFEST,
        **put(manifest_raw),
        "platform": {"os": "linux", "architecture": architecture},
    }
    index_raw = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    ).encode()
    layout_index = path / "index.json"
    present = json.loads(layout_index.read_text())["manifests"] if layout_index.exists() else []
    named = {**entry, "annotations": {"org.opencontainers.image.ref.name": tag}}
    others = [
        item
        for item in present
        if item.get("annotations", {}).get("org.opencontainers.image.ref.name") != tag
    ]
    layout_index.write_text(json.dumps({"schemaVersion": 2, "manifests": [*others, named]}))
    return Image(
        path,
        RawDocument(OCI_MANIFEST, manifest_raw),
        RawDocument(OCI_CONFIG, config_raw),
        RawDocument(OCI_INDEX, index_raw),
    )
