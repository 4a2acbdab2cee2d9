"""OCI image layouts written from directory trees: small, deterministic, standard library only.

    layout = Layout(directory)                           # oci-layout, index.json, blobs/sha256/
    layer = layout.add_layer(root, names, "gzip")        # a tar of these names with their parent folders, compressed
    extra = layout.add_tar(members, "gzip")              # a tar of given members: updates, whiteouts
    layout.add_image("v1", [layer, extra], labels)       # config, manifest, and the name in index.json

Equal trees give equal bytes: members are in byte order, times are whole seconds and never later than ``CREATED``, owners are
numbers, compressors write no time. So a layer that did not change keeps its digest and is stored once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CREATED = 1_750_000_000  # seconds; the date of every image made here
_PROGRAMS = {
    "gzip": ["gzip", "-n", "-6"],
    "zstd": ["zstd", "-q", "-c", "-3", "-T1"],
    "none": ["cat"],
}
_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_TYPE = "application/vnd.oci.image."
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le"}  # as Go spells them


@dataclass(frozen=True)
class Layer:
    """One layer in the layout: its descriptor's fields, and the digest and size of the uncompressed tar."""

    media_type: str
    digest: str
    size: int
    diff_id: str
    uncompressed: int


@dataclass(frozen=True)
class Member:
    """One member of an update layer. ``content`` of a regular file, ``link`` of a symbolic one; else a folder."""

    name: str
    content: bytes | None = None
    link: str | None = None
    mode: int = 0o644


def owners(root: Path) -> dict[str, str]:
    """Which package owns a path (relative, with merged-/usr aliases resolved), from dpkg's lists."""
    owned: dict[str, str] = {}
    database = root / "usr/lib/sysimage/dpkg/info"
    for file in sorted(database.glob("*.list")):
        package = file.name.removesuffix(".list").partition(":")[0]
        for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            path = line.lstrip("/")
            if path.startswith(("bin/", "sbin/", "lib/", "lib64/")):
                path = "usr/" + path
            owned.setdefault(path, package)
    return owned


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every name below ``root``, parents first, in a stable order; links are not followed."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        base = os.path.relpath(folder, root)
        prefix = "" if base == "." else base + "/"
        for name in sorted(folders + files):
            yield prefix + name, Path(folder, name).lstat()


def plan(root: Path, count: int) -> dict[str, int]:
    """Assign packages to layers: 0 is the kernel, 1 to ``count - 2`` share the packages by size, the last takes the rest.

    The result is used for later versions of the same system, so that an update changes the layers of its packages only.
    """
    owned = owners(root)
    sizes: dict[str, int] = {}
    seen: set[int] = set()  # a file with many names is stored once
    for name, about in walk(root):
        if stat.S_ISREG(about.st_mode) and name in owned and about.st_ino not in seen:
            seen.add(about.st_ino)
            package = owned[name]
            sizes[package] = sizes.get(package, 0) + about.st_size
    filled = [0] * (count - 2)
    assigned = {}
    for package, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        slot = min(range(len(filled)), key=filled.__getitem__)
        filled[slot] += size
        assigned[package] = slot + 1
    return assigned


def split(root: Path, assigned: Mapping[str, int], count: int) -> list[list[str]]:
    """The names of each of ``count`` layers, by a ``plan``; names of one hard-linked file stay together."""
    owned = owners(root)
    layers: list[list[str]] = [[] for _ in range(count)]
    linked: dict[tuple[int, int], int] = {}
    for name, about in walk(root):
        if stat.S_ISDIR(about.st_mode) and name in owned and os.listdir(root / name):
            continue  # comes along as the parent of what is in it
        slot = (
            0
            if name.startswith("usr/lib/modules/")
            else assigned.get(owned.get(name, ""), count - 1)
        )
        if stat.S_ISREG(about.st_mode) and about.st_nlink > 1:
            slot = linked.setdefault((about.st_dev, about.st_ino), slot)
        layers[slot].append(name)
    return layers


class _Tee:
    """A file object that hashes what is written to a compressor's standard input."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.hash = hashlib.sha256()
        self.size = 0
        self._pipe = pipe

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        self._pipe.write(data)
        return len(data)


class Layout:
    """An OCI image layout on disk. Blobs are written once; images are added to ``index.json`` under a name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs/sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._index: dict[str, dict[str, Any]] = {}
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def add_layer(self, root: Path, names: Sequence[str], compression: str) -> Layer:
        """A layer with ``names`` of the tree ``root`` and the folders above them, with owners, modes, times and xattrs."""

        def fill(archive: tarfile.TarFile) -> None:
            known: set[str] = set()
            first: dict[tuple[int, int], str] = {}
            for name in sorted(names, key=os.fsencode):
                parts = name.split("/")
                for depth in range(1, len(parts)):
                    parent = "/".join(parts[:depth])
                    if parent not in known:
                        known.add(parent)
                        archive.addfile(_describe(root, parent))
                if name in known:
                    continue
                member = _describe(root, name)
                if member.isdir():
                    known.add(name)
                about = os.lstat(root / name)
                if member.isreg() and about.st_nlink > 1:
                    other = first.setdefault((about.st_dev, about.st_ino), name)
                    if other != name:
                        member.type, member.linkname, member.size = tarfile.LNKTYPE, other, 0
                if member.isreg():
                    with (root / name).open("rb") as content:
                        archive.addfile(member, content)
                else:
                    archive.addfile(member)

        return self._pack(fill, compression)

    def add_tar(self, members: Iterable[Member], compression: str) -> Layer:
        """A layer of exactly these members, all owned by root, at ``CREATED``."""

        def fill(archive: tarfile.TarFile) -> None:
            for given in members:
                member = tarfile.TarInfo(given.name)
                member.mode, member.mtime = given.mode, CREATED
                if given.content is not None:
                    member.size = len(given.content)
                    archive.addfile(member, io.BytesIO(given.content))
                    continue
                member.type, member.linkname = tarfile.DIRTYPE, ""
                if given.link is not None:
                    member.type, member.linkname, member.mode = tarfile.SYMTYPE, given.link, 0o777
                archive.addfile(member)

        return self._pack(fill, compression)

    def _pack(self, fill: Callable[[tarfile.TarFile], None], compression: str) -> Layer:
        partial = self._blobs / f"partial-{os.getpid()}-{id(fill):x}"
        with (
            partial.open("wb") as output,
            subprocess.Popen(
                _PROGRAMS[compression], stdin=subprocess.PIPE, stdout=output
            ) as packer,
        ):
            assert packer.stdin is not None  # noqa: S101 - it was asked for
            tee = _Tee(packer.stdin)
            with tarfile.open(
                fileobj=tee, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18
            ) as archive:  # type: ignore[call-overload]
                fill(archive)
            packer.communicate()
        if packer.returncode:
            raise SystemExit(f"{_PROGRAMS[compression][0]} failed ({packer.returncode})")
        with partial.open("rb") as packed:
            digest = hashlib.file_digest(packed, "sha256").hexdigest()
        partial.rename(self._blobs / digest)
        return Layer(
            media_type=f"{_TYPE}layer.v1.tar{_SUFFIX[compression]}",
            digest=f"sha256:{digest}",
            size=(self._blobs / digest).stat().st_size,
            diff_id=f"sha256:{tee.hash.hexdigest()}",
            uncompressed=tee.size,
        )

    def add_image(self, name: str, layers: Sequence[Layer], labels: Mapping[str, str]) -> str:
        """An image of these layers under ``name`` in the index; returns the manifest's digest."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(CREATED))
        config = self.put(
            {
                "created": created,
                "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "config": {"Labels": {**labels, "org.opencontainers.image.created": created}},
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
                "history": [
                    {"created": created, "created_by": f"layer {n}"}
                    for n, _ in enumerate(layers, 1)
                ],
            }
        )
        manifest = self.put(
            {
                "schemaVersion": 2,
                "mediaType": f"{_TYPE}manifest.v1+json",
                "config": {"mediaType": f"{_TYPE}config.v1+json", **config},
                "layers": [
                    {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
                    for layer in layers
                ],
                "annotations": {"org.opencontainers.image.created": created},
            }
        )
        self._index[name] = {
            "mediaType": f"{_TYPE}manifest.v1+json",
            **manifest,
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        (self.directory / "index.json").write_text(
            json.dumps(
                {"schemaVersion": 2, "manifests": list(self._index.values())}, separators=(",", ":")
            )
        )
        return str(manifest["digest"])

    def put(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Store a JSON document as a blob; returns ``digest`` and ``size``."""
        raw = json.dumps(document, separators=(",", ":")).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (self._blobs / digest).write_bytes(raw)
        return {"digest": f"sha256:{digest}", "size": len(raw)}


def _describe(root: Path, name: str) -> tarfile.TarInfo:
    """The tar member of a name in a tree: type, mode, numeric owner, time in whole seconds, and xattrs that images carry."""
    path = root / name
    about = os.lstat(path)
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(about.st_mode)
    member.uid, member.gid = about.st_uid, about.st_gid
    member.mtime = min(int(about.st_mtime), CREATED)
    if stat.S_ISDIR(about.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(about.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif stat.S_ISREG(about.st_mode):
        member.size = about.st_size
    elif stat.S_ISFIFO(about.st_mode):
        member.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
        member.type = tarfile.CHRTYPE if stat.S_ISCHR(about.st_mode) else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(about.st_rdev), os.minor(about.st_rdev)
    else:
        raise SystemExit(f"{path}: a socket cannot be part of an image")
    headers: dict[str, str] = {}
    for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
        if attribute.startswith(("security.capability", "user.")):
            value = os.getxattr(path, attribute, follow_symlinks=False)
            headers[f"SCHILY.xattr.{attribute}"] = value.decode("utf-8", "surrogateescape")
    member.pax_headers = headers
    return member
