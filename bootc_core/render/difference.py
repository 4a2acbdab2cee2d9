"""The difference of two manifests in layers, as the original prints it (parity reference, manifest difference output)."""

from __future__ import annotations

from bootc_core.models.oci import Manifest
from bootc_core.render.units import size


def layers(old: Manifest | None, new: Manifest) -> str:
    """Three lines: all layers of ``new``, those that go, those that come; by blob digest, with compressed sizes."""
    before = {layer.digest: layer.size for layer in old.layers} if old else {}
    after = {layer.digest: layer.size for layer in new.layers}
    removed = [number for digest, number in before.items() if digest not in after]
    added = [number for digest, number in after.items() if digest not in before]
    total = [layer.size for layer in new.layers]
    return "\n".join(
        f"{title:<17} {len(sizes):<4}  Size: {size(sum(sizes))}"
        for title, sizes in (
            ("Total new layers:", total),
            ("Removed layers:", removed),
            ("Added layers:", added),
        )
    )
