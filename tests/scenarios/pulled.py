"""Pulls an image into a staging directory with the real pipeline: fetch, workers, hashing; for tests that kill it.

usage: python pulled.py REFERENCE CONFIG_ROOT STAGING [SINK] [RATE] [MOST]     prints the results as JSON
"""

import json
import logging
import os
import sys
from pathlib import Path

import trio
from bootc_registry.fetch import fetch

from bootc_core.errors import BootcError
from bootc_core.models.oci import LAYER_TYPES
from bootc_core.models.reference import ImageReference
from bootc_core.net import budget
from bootc_core.oci.importer import LayerJob, import_layers

TESTS = Path(__file__).resolve().parent.parent


async def pull(
    reference,
    root,
    staging,
    sink="support.layer_sinks:NoteSink",
    emit=lambda event: None,
    **options,
):
    """Results by diffID."""
    image = await fetch(Path(root), ImageReference.parse(reference))
    jobs = [
        LayerJob(descriptor, diff_id, LAYER_TYPES[descriptor.media_type])
        for diff_id, descriptor in zip(
            image.config.rootfs.diff_ids, image.manifest.layers, strict=True
        )
    ]
    os.makedirs(staging, exist_ok=True)
    return await import_layers(
        image,
        jobs,
        sink=sink,
        sink_options=options.pop("sink_options", {}),
        staging=Path(staging),
        pass_directories=options.pop("pass_directories", {}),
        emit=emit,
        transaction="t",
        **options,
    )


def main() -> int:
    sys.path.insert(0, str(TESTS))
    if os.environ.get("BOOTC_DEBUG"):
        logging.basicConfig(level=logging.DEBUG)
    reference, root, staging, *rest = sys.argv[1:]
    if len(rest) > 1:
        budget.CURRENT.set(
            budget.TransferLimits.make(int(rest[1]) or None, int(rest[2]) if rest[2:] else None)
        )
    try:
        results = trio.run(pull, reference, root, staging, *rest[:1])
    except BootcError as problem:
        print(json.dumps(problem.to_json()))
        return 1
    print(json.dumps({name: result.sink["sha256"] for name, result in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
