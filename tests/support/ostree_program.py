"""The real ostree, asked by tests."""

from __future__ import annotations

import subprocess


def ostree(*arguments: object) -> str:
    """What ``ostree ARGUMENTS`` prints; fails the test if it fails."""
    done = subprocess.run(
        ["ostree", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stderr}"
    return done.stdout.strip()
