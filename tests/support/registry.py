"""Debian's ``docker-registry`` on a free loopback port, and small images to put into it with ``skopeo``.

with running_registry(tmp_path) as registry:
    digest = write_image(tmp_path / "layout", "1")
    registry.push(tmp_path / "layout", "acme/os:1")
    registry.requests      # what it was asked since, from its own access log: [("GET", "/v2/…", 200), …]
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

USER, PASSWORD = "reader", "sesame"
_HTPASSWD = f"{USER}:$2b$04$1aijfZrhOW1qWXEMsAkZEeDR/htSAJQzmdt0iaH3wd9oS/rep8JS6\n"
_ACCESS = re.compile(
    r'"(GET|HEAD|PUT|POST|PATCH|DELETE) (\S+) HTTP/[0-9.]+" ([0-9]{3}) [0-9]+ "[^"]*" "([^"]*)"'
)
_LISTENING = re.compile(r"listening on (?:127\.0\.0\.1|\[::1\]):([0-9]+)")

have_registry = shutil.which("docker-registry") is not None and shutil.which("skopeo") is not None

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
ARCHITECTURE = MACHINES.get(os.uname().machine, os.uname().machine)
OCI = "application/vnd.oci.image."


@dataclass
class Registry:
    """A running registry.

    Attributes:
        authority: host and port.
        ca_file: the authority that signed its certificate, if it speaks TLS.
    """

    authority: str
    ca_file: Path | None = None
    credentials: str | None = None
    lines: list[str] = field(default_factory=list)

    def push(self, layout: Path, name: str, *, tag: str | None = None) -> None:
        """Copy the image ``tag`` (default: the tag in ``name``) of an OCI layout to ``name``, digests unchanged."""
        command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--all", "--preserve-digests"]
        command += ["--dest-tls-verify=false"]
        if self.credentials:
            command += ["--dest-creds", self.credentials]
        source = f"oci:{layout}:{tag or name.rpartition(':')[2]}"
        subprocess.run([*command, source, f"docker://{self.authority}/{name}"], check=True)

    def requests(self, agent: str = "") -> list[tuple[str, str, int]]:
        """Method, path and status of all requests of programs whose name begins with ``agent``.

        Complete once the registry has ended; before, the log may lag behind the answers.
        """
        found = [_ACCESS.search(line) for line in list(self.lines)]
        return [
            (match[1], match[2], int(match[3]))
            for match in found
            if match and match[4].startswith(agent)
        ]


@contextlib.contextmanager
def running_registry(
    directory: Path,
    *,
    ca: trustme.CA | None = None,
    htpasswd: bool = False,
    token: Mapping[str, str] | None = None,
) -> Iterator[Registry]:
    """A registry with its storage in ``directory``.

    Args:
        directory: exists; storage, configuration and certificates go there.
        ca: speak TLS with a certificate of this authority.
        htpasswd: demand ``USER`` and ``PASSWORD`` (Basic).
        token: the registry's settings for bearer tokens (realm, service, issuer, rootcertbundle).
    """
    http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "for uploads only"}
    http["draintimeout"] = "10s"  # at the end, handlers finish, so that the access log is complete
    ca_file = None
    if ca:
        certificate = ca.issue_cert("127.0.0.1", "localhost")
        chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
        (directory / "server.crt").write_bytes(chain)
        certificate.private_key_pem.write_to_path(directory / "server.key")
        http["tls"] = {
            "certificate": str(directory / "server.crt"),
            "key": str(directory / "server.key"),
        }
        ca_file = directory / "ca.crt"
        ca.cert_pem.write_to_path(ca_file)
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "storage")},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": http,
    }
    if htpasswd:
        (directory / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    if token:
        config["auth"] = {"token": dict(token)}
    path = directory / "config.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    process = subprocess.Popen(
        ["docker-registry", "serve", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        text=True,
    )
    registry = Registry("", ca_file, f"{USER}:{PASSWORD}" if htpasswd else None)
    ready = threading.Event()

    def follow() -> None:
        assert process.stdout
        for line in process.stdout:
            registry.lines.append(line)
            if not registry.authority and (match := _LISTENING.search(line)):
                registry.authority = f"127.0.0.1:{match[1]}"
                ready.set()
        ready.set()

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        ready.wait(30)
        assert registry.authority, "docker-registry did not start:\n" + "".join(registry.lines)
        yield registry
    finally:
        process.terminate()
        process.wait(30)
        reader.join(30)
        if process.stdout:
            process.stdout.close()


# --- images ------------------------------------------------------------------------------------------------------


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def small_layer(content: bytes = b"hello\n") -> bytes:
    """A plain tar with one file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("usr/greeting")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@dataclass
class Image:
    """The documents of an image as bytes, by digest, and how they hang together."""

    manifest: bytes
    config: bytes
    blobs: dict[str, bytes]
    platform: dict[str, str]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        """The image's entry in an index."""
        entry = {
            "mediaType": OCI + "manifest.v1+json",
            "digest": self.digest,
            "size": len(self.manifest),
        }
        return {**entry, "platform": self.platform, **more}


def make_image(
    *,
    architecture: str = ARCHITECTURE,
    os_name: str = "linux",
    variant: str | None = None,
    labels: Mapping[str, str] | None = None,
    layers: tuple[bytes, ...] | None = None,
    docker: bool = False,
) -> Image:
    """A small image, its layers plain tars."""
    layers = layers or (small_layer(),)
    platform = {"architecture": architecture, "os": os_name} | (
        {"variant": variant} if variant else {}
    )
    config = json.dumps(
        {
            **platform,
            "config": {"Labels": dict(labels or {})},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
    ).encode()
    vendor = "application/vnd.docker."
    types = (
        (
            vendor + "distribution.manifest.v2+json",
            vendor + "container.image.v1+json",
            vendor + "image.rootfs.diff.tar",
        )
        if docker
        else (OCI + "manifest.v1+json", OCI + "config.v1+json", OCI + "layer.v1.tar")
    )
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": types[0],
            "config": {"mediaType": types[1], "digest": digest_of(config), "size": len(config)},
            "layers": [
                {"mediaType": types[2], "digest": digest_of(layer), "size": len(layer)}
                for layer in layers
            ],
        }
    ).encode()
    blobs = {digest_of(blob): blob for blob in (config, *layers)}
    return Image(manifest, config, blobs, platform)


def make_index(*entries: Mapping[str, Any]) -> bytes:
    """An index over the descriptors ``entries``."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI + "index.v1+json",
            "manifests": [dict(entry) for entry in entries],
        }
    ).encode()


def write_layout(layout: Path, tag: str, *images: Image, index: bytes | None = None) -> str:
    """Add images to an OCI layout under ``tag``: one alone as manifest, several (or with ``index``) as index.

    Returns the digest that the tag names.
    """
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    if index is None and len(images) > 1:
        index = make_index(*(image.descriptor() for image in images))
    documents = [image.manifest for image in images] + ([index] if index else [])
    for data in [*documents, *(blob for image in images for blob in image.blobs.values())]:
        (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
    top = documents[-1]
    named = {
        "mediaType": OCI + ("index" if index else "manifest") + ".v1+json",
        "digest": digest_of(top),
        "size": len(top),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    path = layout / "index.json"
    document = (
        json.loads(path.read_text()) if path.exists() else {"schemaVersion": 2, "manifests": []}
    )
    kept = [item for item in document["manifests"] if item["annotations"] != named["annotations"]]
    path.write_text(json.dumps({**document, "manifests": [*kept, named]}))
    return digest_of(top)
