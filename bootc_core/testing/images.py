"""Small images, built in memory: real OCI documents and real layer tars, the same bytes every time.

    os = make_image("1", files={"usr/bin/tool": b"one"})
    os.digest, os.layers[0].diff_id
    os.damaged(layer=1)              # the same documents; the layer's bytes are served changed

A layer is a mapping of paths to contents (bytes), link targets (``Link``) or None (a whiteout); a
path that ends in ``/`` is a directory. Directories above come by themselves.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bootc_core.models import oci
from bootc_core.oci.platform import host_platform

KERNEL: Final = "6.1.0-test"
KERNEL_BYTES: Final = b"MZ kernel\n" * 1000
INITRD_BYTES: Final = b"initramfs\n" * 1000
_MTIME: Final = 1_700_000_000
_CREATED: Final = "2026-01-02T03:04:05Z"


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link in a layer."""

    target: str


Files = Mapping[str, "bytes | Link | None"]


@dataclass(frozen=True, slots=True)
class FakeLayer:
    """One layer: its compressed bytes, and what its tar's digest is."""

    blob: bytes
    diff_id: str
    media_type: str = "application/vnd.oci.image.layer.v1.tar+gzip"

    @property
    def digest(self) -> str:
        """Digest of the compressed bytes, as the manifest has it."""
        return _sha256(self.blob)


@dataclass(frozen=True, slots=True)
class FakeImage:
    """An image: layers, labels, and the documents that follow from them.

    ``serve`` maps digests to bytes that a transport delivers instead of the right ones.
    """

    layers: tuple[FakeLayer, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    serve: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> oci.RawDocument:
        """The configuration."""
        platform = host_platform()
        value = {
            "architecture": platform.architecture,
            "os": "linux",
            "created": _CREATED,
            "config": {"Labels": dict(self.labels)},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
        }
        return oci.RawDocument(oci.OCI_CONFIG, _json(value))

    @property
    def manifest(self) -> oci.RawDocument:
        """The manifest."""
        config = self.config
        value = {
            "schemaVersion": 2,
            "mediaType": oci.OCI_MANIFEST,
            "config": {
                "mediaType": oci.OCI_CONFIG,
                "digest": config.digest,
                "size": len(config.raw),
            },
            "layers": [
                {"mediaType": layer.media_type, "digest": layer.digest, "size": len(layer.blob)}
                for layer in self.layers
            ],
        }
        return oci.RawDocument(oci.OCI_MANIFEST, _json(value))

    @property
    def digest(self) -> str:
        """The image's identity."""
        return self.manifest.digest

    def blob(self, digest: str) -> bytes:
        """What a transport delivers for the layer ``digest``."""
        if digest in self.serve:
            return self.serve[digest]
        return next(layer.blob for layer in self.layers if layer.digest == digest)

    def write_layout(self, path: Path, tag: str) -> Path:
        """The image as an OCI layout directory that ``oci:PATH:TAG`` names; an existing one gets another tag."""
        blobs = path / "blobs/sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        manifest, config = self.manifest, self.config
        for document in (manifest, config):
            (blobs / document.digest.split(":")[1]).write_bytes(document.raw)
        for layer in self.layers:
            (blobs / layer.digest.split(":")[1]).write_bytes(self.blob(layer.digest))
        (path / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
        index = path / "index.json"
        known = json.loads(index.read_bytes())["manifests"] if index.exists() else []
        name = "org.opencontainers.image.ref.name"
        entry = {
            "mediaType": oci.OCI_MANIFEST,
            "digest": manifest.digest,
            "size": len(manifest.raw),
            "annotations": {name: tag},
        }
        others = [one for one in known if one["annotations"][name] != tag]
        value = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [*others, entry]}
        index.write_bytes(_json(value))
        return path

    def serving(self, layer: int, blob: bytes) -> FakeImage:
        """The same documents, but the bytes ``blob`` come for that layer."""
        return replace(self, serve={**self.serve, self.layers[layer].digest: blob})

    def damaged(self, layer: int = 0) -> FakeImage:
        """One bit of that layer's bytes is wrong when it is served."""
        blob = bytearray(self.layers[layer].blob)
        blob[len(blob) // 2] ^= 1
        return self.serving(layer, bytes(blob))

    def mislabelled(self, layer: int = 0) -> FakeImage:
        """The configuration promises another diffID for that layer; all digests of blobs are right."""
        layers = list(self.layers)
        layers[layer] = replace(layers[layer], diff_id=_sha256(b"something else"))
        return replace(self, layers=tuple(layers))


def make_layer(files: Files) -> FakeLayer:
    """A layer of ``files``, compressed with gzip."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        done: set[str] = set()
        for path in sorted(files):
            parents = path.split("/")[:-1]  # of "boot/" too: the directory itself
            for depth in range(1, len(parents) + 1):
                directory = "/".join(parents[:depth])
                if directory not in done:
                    done.add(directory)
                    archive.addfile(_member(directory, tarfile.DIRTYPE, 0o755))
            if not path.endswith("/"):
                _add(archive, path, files[path])
    tar = stream.getvalue()
    return FakeLayer(gzip.compress(tar, 6, mtime=0), _sha256(tar))


def make_image(
    version: str = "1",
    *,
    files: Files | None = None,
    kernel: bool = True,
    labels: Mapping[str, str] | None = None,
    os_id: str = "test",
) -> FakeImage:
    """A small bootable image of two layers: a base that all versions share, and one of this version.

    The base holds ``/etc`` and ``/var`` content to merge and a kernel unless ``kernel`` is False;
    the second layer ``usr/lib/os-release``, ``usr/share/version`` and ``files``.
    """
    base: dict[str, bytes | Link | None] = {
        **dict.fromkeys(("boot/", "dev/", "proc/", "run/", "sys/", "sysroot/", "tmp/"), b""),
        "bin": Link("usr/bin"),
        "etc/hostname": b"localhost\n",
        "etc/test.conf": b"setting = default\n",
        "etc/removed.conf": b"delete me\n",
        "usr/bin/true": b"#!/bin/sh\nexit 0\n",
        "usr/lib/big": bytes(range(256)) * 512,
        "var/lib/seed": b"once\n",
    }
    if kernel:
        base[f"usr/lib/modules/{KERNEL}/vmlinuz"] = KERNEL_BYTES
        base[f"usr/lib/modules/{KERNEL}/initramfs.img"] = INITRD_BYTES
    release = f'ID={os_id}\nNAME="Test OS"\nPRETTY_NAME="Test OS {version}"\nVERSION_ID={version}\n'
    own: dict[str, bytes | Link | None] = {
        "usr/lib/os-release": release.encode(),
        "usr/share/version": f"{version}\n".encode(),
        f"etc/from-{version}": b"new\n",
        **(files or {}),
    }
    named = {"org.opencontainers.image.version": version, "containers.bootc": "1"}
    return FakeImage((make_layer(base), make_layer(own)), {**named, **(labels or {})})


def _member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.mtime = kind, mode, _MTIME
    return info


def _add(archive: tarfile.TarFile, path: str, content: bytes | Link | None) -> None:
    if isinstance(content, Link):
        info = _member(path, tarfile.SYMTYPE, 0o777)
        info.linkname = content.target
        archive.addfile(info)
        return
    if content is None:
        directory, _, name = path.rpartition("/")
        path = f"{directory}/.wh.{name}" if directory else f".wh.{name}"
    info = _member(path, tarfile.REGTYPE, 0o755 if "/bin/" in path else 0o644)
    info.size = len(content or b"")
    archive.addfile(info, io.BytesIO(content or b""))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
