#!/usr/bin/python3
"""Add a small layer to an image in an OCI layout, so that any image has a next version to go to.

derive.py LAYOUT NAME NEW      # the image NEW: NAME with one more layer and "+demo" after its version
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.layout import Layout, Member


def derive(directory: Path, name: str, new: str) -> None:
    """Add the image ``new`` to the layout; raises SystemExit when the layout has no single image ``name``."""
    layout = Layout(directory)

    def blob(digest: str) -> Any:
        return json.loads(
            (directory / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
        )

    index = json.loads((directory / "index.json").read_bytes())
    named = "org.opencontainers.image.ref.name"
    entries = [
        entry for entry in index["manifests"] if entry.get("annotations", {}).get(named) == name
    ]
    if len(entries) != 1 or "layers" not in (manifest := blob(entries[0]["digest"])):
        raise SystemExit(f"{directory} holds no single image named {name}")
    config = blob(manifest["config"]["digest"])
    layer = layout.add_tar(
        [
            Member("usr", mode=0o755),
            Member("usr/lib", mode=0o755),
            Member("usr/lib/demo", mode=0o755),
            Member("usr/lib/demo/derived", b"a layer on top\n"),
        ],
        "gzip",
    )
    labels = config.setdefault("config", {}).setdefault("Labels", {})
    key = "org.opencontainers.image.version"
    labels[key] = (labels.get(key) or labels.get("version") or "0") + "+demo"
    config["rootfs"]["diff_ids"].append(layer.diff_id)
    config.setdefault("history", []).append({"created_by": "demonstration: one layer on top"})
    manifest["config"].update(layout.put(config))
    manifest["layers"].append(
        {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
    )
    manifest.get("annotations", {}).pop(key, None)
    added = {**entries[0], **layout.put(manifest), "annotations": {named: new}}
    index["manifests"] = [
        entry for entry in index["manifests"] if entry.get("annotations", {}).get(named) != new
    ] + [added]
    (directory / "index.json").write_text(json.dumps(index, separators=(",", ":")))


if __name__ == "__main__":
    derive(Path(sys.argv[1]), *sys.argv[2:4])
