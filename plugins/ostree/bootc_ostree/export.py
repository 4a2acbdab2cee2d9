"""A deployed image as an image again: the commit's tree as one layer, by the real ``ostree export``.

Layers' archives are not kept in the repository, so the layer is made anew: the image has another ID and digest than the one that
was fetched. Labels and all else of its configuration stay; ``/usr/etc`` becomes ``/etc`` again, times are those of commits (0).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any, Final

from bootc_core import process
from bootc_core.errors import StorageError, UnsupportedEnvironmentError, printable
from bootc_core.fs import atomic
from bootc_core.models.image import BlobSource, FetchedImage, FileSource
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
from bootc_ostree.repo import Repo
from bootc_ostree.state import deployments

_PLAIN: Final = "application/vnd.oci.image.layer.v1.tar"
_REMADE: Final = frozenset(
    {
        *("path", "linkpath"),
        *("SCHILY.xattr.security.selinux", "LIBARCHIVE.xattr.security.selinux"),
    }
)


def export(sysroot: Sysroot, reference: ImageReference, digest: str) -> FetchedImage:
    """The deployed image with the manifest digest ``digest``; its layer is a file that goes with the image.

    Raises:
        StorageError: it is not deployed here, or its commit is damaged.
        UnsupportedEnvironmentError: the program ``ostree`` is not there.
    """
    what = reference.display()
    repo = Repo(sysroot.path)
    for present in deployments(sysroot):
        metadata = repo.read_commit(present.checksum)["metadata"]
        if metadata.get("ostree.manifest-digest") == digest:
            break
    else:
        raise StorageError(
            f"{what} is not deployed", reference="missing-object", found=digest, catalogue="STATE"
        )
    # not in the sysroot, which may be read-only
    place = Path(tempfile.mkdtemp(prefix="bootc-copy-", dir=os.environ.get("TMPDIR", "/var/tmp")))  # noqa: S108
    layer = place / "layer.tar"
    try:
        diff_id = _write(repo, present.checksum, layer)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    config: dict[str, Any] = json.loads(str(metadata["ostree.container.image-config"]))
    config["rootfs"] = {"type": "layers", "diff_ids": [diff_id]}
    config["history"] = [{"created_by": f"ostree export {present.checksum}"}]
    config_document = RawDocument(OCI_CONFIG, json.dumps(config).encode())
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": OCI_CONFIG,
            "digest": config_document.digest,
            "size": len(config_document.raw),
        },
        "layers": [{"mediaType": _PLAIN, "digest": diff_id, "size": layer.stat().st_size}],
    }
    manifest_document = RawDocument(OCI_MANIFEST, json.dumps(value).encode())
    manifest = parse_manifest(manifest_document, what)

    async def blob_source(descriptor: Descriptor) -> BlobSource:
        return FileSource(layer)

    weakref.finalize(blob_source, shutil.rmtree, place, ignore_errors=True)
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


def _write(repo: Repo, checksum: str, target: Path) -> str:
    """The commit's tree as a layer; its diffID."""
    command = ["ostree", f"--repo={repo.path}", "export", checksum]
    try:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=process.clean_environment(),
        )
    except OSError as problem:
        raise UnsupportedEnvironmentError(
            "the program ostree, which gives commits back, cannot be started",
            reference="no-ostree",
            found=printable(problem.strerror or ""),
            hint="install the package ostree",
        ) from problem
    assert running.stdout is not None  # noqa: S101 - for the type checker
    assert running.stderr is not None  # noqa: S101
    with running:
        damaged = ""
        try:
            with atomic.mapped("write", target), target.open("xb") as out:
                hashing = _Hashing(out)
                _convert(running.stdout, hashing)
        except tarfile.TarError as problem:
            damaged = str(problem)
        running.stdout.close()
        said = running.stderr.read(4096).decode("utf-8", "replace").strip()
    if running.returncode or damaged:
        raise StorageError(
            "ostree cannot give the deployed image back",
            reference="ostree-export",
            found=printable(said or damaged, 300),
            hint="ostree fsck tells what is damaged",
            catalogue="INT",
        )
    return f"sha256:{hashing.hash.hexdigest()}"


class _Hashing:
    """A file that is written to and hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        self.hash.update(data)
        return self._file.write(data)


def _convert(source: IO[bytes], target: _Hashing) -> None:
    """Bring the defaults of ``/etc`` back to their place, and leave labels to whoever deploys."""
    with (
        tarfile.open(fileobj=source, mode="r|") as given,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as made,  # type: ignore[call-overload]
    ):
        for member in given:
            member.name = _image_name(member.name)
            if member.islnk():
                member.linkname = _image_name(member.linkname)
            member.pax_headers = {
                name: value for name, value in member.pax_headers.items() if name not in _REMADE
            }
            made.addfile(member, given.extractfile(member) if member.isreg() else None)
            given.members.clear()  # type: ignore[attr-defined] # they would pile up


def _image_name(name: str) -> str:
    name = os.path.normpath(name)
    if name == "usr/etc" or name.startswith("usr/etc/"):
        return name.removeprefix("usr/")
    return name
