#!/usr/bin/python3
"""The first half of an upgrade: fetch an image's documents and import its layers beside a repository, publishing nothing.

usage: pull_only.py REFERENCE SYSROOT      prints bytes fetched; what was staged is removed again
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import trio
from bootc_composefs import sink
from bootc_composefs.cache import Cache
from bootc_composefs.layers import known_layers, large_objects
from bootc_composefs.repository import Repository
from bootc_registry.fetch import fetch

from bootc_core.models.oci import LAYER_TYPES
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.oci.importer import LayerJob, import_layers


async def pull(reference: str, sysroot: Path) -> int:
    """Bytes of layers that were fetched."""
    image = await fetch(Path("/"), ImageReference.parse(reference))
    repository = Repository.open(sysroot / "composefs")
    diff_ids = image.config.rootfs.diff_ids
    layers = known_layers(repository, {*repository.layers(), *diff_ids}, repository.names())
    jobs = [
        LayerJob(descriptor, diff_id, LAYER_TYPES[descriptor.media_type])
        for diff_id, descriptor in zip(diff_ids, image.manifest.layers, strict=True)
        if diff_id not in layers
    ]
    staging = sysroot / "pull-only"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    large = large_objects(repository, layers.values(), Cache(Sysroot(sysroot, sysroot / "boot")))
    results = await import_layers(
        image,
        jobs,
        sink="bootc_composefs.sink:ObjectSink",
        sink_options={
            "algorithm": repository.algorithm,
            "verity": repository.secure,
            "large": {str(size): names for size, names in large.items()},
        },
        staging=staging,
        pass_directories={sink.OBJECTS: repository.path / "objects"},
        emit=lambda event: None,
        transaction="bench",
    )
    shutil.rmtree(staging)
    return sum(result.bytes_compressed for result in results.values())


if __name__ == "__main__":
    print(trio.run(pull, sys.argv[1], Path(sys.argv[2])))
