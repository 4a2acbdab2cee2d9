"""``python -m bootc_core.testing LAYOUT TAG VERSION``: a tiny bootable image, for trying things out."""

from __future__ import annotations

import sys
from pathlib import Path

from bootc_core.testing.images import make_image


def main(arguments: list[str]) -> int:
    """Write the image of that version into an OCI layout under that tag."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python -m bootc_core.testing LAYOUT TAG VERSION\n")
        return 2
    layout, tag, version = arguments
    make_image(version).write_layout(Path(layout), tag)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
