"""An upgrade by the file from a real registry leaves the same repository as one by the layer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support import images
from support.mounted import identity
from support.registry import running_registry

from bootc_core.cli.main import main
from bootc_core.testing.chunked import compress

pytestmark = pytest.mark.real
DICE = random.Random(9)
LARGE = DICE.randbytes(3_000_000)
OLD = {
    **{f"usr/lib/small-{number}": DICE.randbytes(300 + number) for number in range(50)},
    **{f"usr/lib/middle-{number}": DICE.randbytes(40_000) for number in range(20)},
    "usr/lib/large": LARGE,
    "usr/lib/tiny": "tiny",
    "usr/lib/pair": DICE.randbytes(5000),
}
NEW = {
    **OLD,
    "usr/lib/moved/large": LARGE,
    "usr/lib/large": LARGE[:-1] + b"!",
    "usr/lib/middle-3": DICE.randbytes(40_000),
    "usr/lib/again": OLD["usr/lib/middle-4"],
    "usr/lib/pair": OLD["usr/lib/pair"][::-1],
}


def build(place: Path, version: str, files: dict[str, bytes | str], *, chunked: bool) -> Path:
    """A layout; the second layer is packed as zstd:chunked, or plainly."""
    base = images.bootable(version=version)
    image = images.build(place, [base, files], compression=["gzip", "none"])
    if not chunked:
        return place
    tar = images.tar(files)
    blob, annotations = compress(tar)
    manifest = json.loads(image.manifest_document.raw)
    manifest["layers"][1] = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
        "digest": images.digest(blob),
        "size": len(blob),
        "annotations": annotations,
    }
    raw = json.dumps(manifest).encode()
    for data in (blob, raw):
        image.blob(images.digest(data)).write_bytes(data)
    index = json.loads((place / "index.json").read_text())
    (entry,) = index["manifests"]
    entry |= {"digest": images.digest(raw), "size": len(raw)}
    (place / "index.json").write_text(json.dumps(index))
    return place


def run(sysroot: Path, *words: str) -> None:
    assert main([words[0], "--sysroot", str(sysroot), *words[1:]]) == 0


def objects(sysroot: Path) -> set[str]:
    place = sysroot / "composefs/objects"
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def test_the_same_repository(tmp_path, capsys):
    (tmp_path / "registry").mkdir()
    with running_registry(tmp_path / "registry") as registry:
        for version, files in (("1", OLD), ("2", NEW)):
            registry.push(build(tmp_path / version, version, files, chunked=True), f"acme/os:{version}", tag="latest")  # fmt: skip
        by_file = tmp_path / "by-file"
        run(by_file, "switch", "--no-signature-verification", f"{registry.authority}/acme/os:1")
        run(by_file, "switch", f"{registry.authority}/acme/os:2")
    ranged = [path for _, path, status in registry.requests("bootc/") if status == 206]
    assert len(ranged) >= 2, "the second image is fetched by the file"
    by_layer = tmp_path / "by-layer"
    for version, files in (("1", OLD), ("2", NEW)):
        layout = build(tmp_path / f"plain-{version}", version, files, chunked=False)
        options = () if version == "2" else ("--no-signature-verification",)
        run(by_layer, "switch", *options, "--transport", "oci", str(layout))
    assert identity(by_file) == identity(by_layer)
    run(by_file, "fsck")
    # manifests and configurations differ, since the blobs do; all else is the same
    different = objects(by_file) ^ objects(by_layer)
    sizes = {
        (root / "composefs/objects" / name).stat().st_size
        for root in (by_file, by_layer)
        for name in different
        if (root / "composefs/objects" / name).exists()
    }
    assert max(sizes) < 8000
