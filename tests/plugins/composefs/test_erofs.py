"""Images and dumps against what mkcomposefs and composefs-rs made of the same trees."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from bootc_composefs import dump
from bootc_composefs.erofs import write_image

from bootc_core.fs import verity

VECTORS = Path(__file__).parents[2] / "vectors" / "composefs"
C_VECTORS = json.loads((VECTORS / "images.json").read_bytes())["vectors"]
RS = json.loads((VECTORS / "images-rs.json").read_bytes())


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("vector", C_VECTORS, ids=lambda vector: vector["name"])
def test_as_mkcomposefs(vector, version):
    text = (VECTORS / vector["dump"]).read_bytes()
    parsed = dump.parse(text)
    image = write_image(
        parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
    )
    wanted = vector["images"][f"v{version}"]
    if "file" in wanted:
        assert image == (VECTORS / wanted["file"]).read_bytes()
    assert len(image) == wanted["size"]
    assert hashlib.sha256(image).hexdigest() == wanted["sha256"]
    for algorithm in ("sha256", "sha512"):
        assert verity.digest(image, algorithm).hex() == wanted[f"fsverity_{algorithm}"]


@pytest.mark.parametrize(
    ("vector", "version"),
    [
        pytest.param(
            vector, int(version[1]), id=f"{vector['name']}-{vector['algorithm']}-{version}"
        )
        for vector in RS["vectors"]
        for version in vector["images"]
    ],
)
def test_as_composefs_rs(vector, version):
    parsed = dump.parse((VECTORS / vector["dump"]).read_bytes())
    algorithm = vector["algorithm"]
    image = write_image(parsed.root, version=version, algorithm=algorithm)
    wanted = vector["images"][f"v{version}"]
    assert len(image) == wanted["size"]
    assert hashlib.sha256(image).hexdigest() == wanted["sha256"]
    assert verity.digest(image, algorithm).hex() == wanted[f"fsverity_{algorithm}"]


@pytest.mark.parametrize(
    "pinned", RS["pinned"]["digests"], ids=lambda pinned: f"{pinned['dump']}-v{pinned['version']}"
)
def test_pinned(pinned):
    root = dump.parse((VECTORS / pinned["dump"]).read_bytes()).root
    image = write_image(root, version=pinned["version"], algorithm=pinned["algorithm"])
    assert verity.digest(image, pinned["algorithm"]).hex() == pinned["fsverity"]
