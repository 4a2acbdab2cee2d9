"""Small images as files by name, to be written as a directory or as a tar file, whole or damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from bootc_core.oci.platform import host_platform

OCI = "application/vnd.oci.image"
REF_NAME = "org.opencontainers.image.ref.name"
ARCHITECTURE = host_platform().architecture


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(files: dict[str, bytes], links: dict[str, str] | None = None, hard=False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    return buffer.getvalue()


LAYERS = (tar({"etc/os-release": b"ID=sample\n"}), tar({"usr/bin/tool": b"tool" * 3000}))


def config(architecture=ARCHITECTURE, layers=LAYERS, **labels) -> bytes:
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    ).encode()


def descriptor(media_type: str, data: bytes, **more) -> dict:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


class Layout:
    """An OCI layout: ``files`` by name, ready to be changed."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.entries: list[dict] = []
        self.write_index()

    def blob(self, data: bytes) -> bytes:
        self.files["blobs/" + digest(data).replace(":", "/")] = data
        return data

    def manifest(self, architecture=ARCHITECTURE, layers=LAYERS, **labels) -> bytes:
        """Blobs of an image and its manifest, not yet in the index; layers are gzip."""
        raw_config = self.blob(config(architecture, layers, **labels))
        packed = [self.blob(gzip.compress(layer, mtime=0)) for layer in layers]
        value = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": descriptor(f"{OCI}.config.v1+json", raw_config),
            "layers": [descriptor(f"{OCI}.layer.v1.tar+gzip", layer) for layer in packed],
        }
        return self.blob(json.dumps(value).encode())

    def index(self, *manifests: tuple[bytes, dict]) -> bytes:
        """An index of manifests with platforms, not yet in index.json."""
        value = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.index.v1+json",
            "manifests": [
                descriptor(media_type(raw), raw, platform=platform) for raw, platform in manifests
            ],
        }
        return self.blob(json.dumps(value).encode())

    def add(self, document: bytes, name: str | None = None) -> bytes:
        entry = descriptor(media_type(document), document)
        if name is not None:
            entry["annotations"] = {REF_NAME: name}
        self.entries.append(entry)
        self.write_index()
        return document

    def write_index(self) -> None:
        value = {"schemaVersion": 2, "manifests": self.entries}
        self.files["index.json"] = json.dumps(value).encode()

    def write(self, path: Path) -> Path:
        return write(self.files, path)

    def write_tar(self, path: Path) -> Path:
        path.write_bytes(tar(self.files))
        return path


def media_type(document: bytes) -> str:
    return json.loads(document)["mediaType"]


def write(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def simple_layout(name: str | None = "stable") -> Layout:
    layout = Layout()
    layout.add(layout.manifest(version="1"), name)
    return layout


def saved(tags=("quay.io/acme/os:9",), layers=LAYERS, stored=None) -> dict[str, bytes]:
    """The files of ``docker save``, with one image."""
    raw = config(layers=layers)
    name = digest(raw).removeprefix("sha256:") + ".json"
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    value = [{"Config": name, "RepoTags": list(tags), "Layers": names}]
    files = {name: raw, "manifest.json": json.dumps(value).encode()}
    files.update(zip(names, stored or layers, strict=True))
    return files
