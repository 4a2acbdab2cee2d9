"""The line of ``/`` in /etc/fstab, where an installer wrote it for a root that can be written (parity reference, 9.4)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bootc_core.fs import atomic

_NOTE = "# Updated by bootc-fstab-edit.service"


def edited(text: str) -> str | None:
    """The file with ``ro`` among the options of ``/``, and a note above it; None if nothing is to be changed. Pure."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        fields = line.split()
        if line.lstrip().startswith("#") or len(fields) < 4 or fields[1] != "/":
            continue
        if "ro" in fields[3].split(","):
            return None
        fields[3] += ",ro"
        lines[number : number + 1] = [_NOTE, " ".join(fields)]
        return "\n".join(lines) + "\n"
    return None


def fix(arguments: argparse.Namespace, path: Path = Path("/etc/fstab")) -> int:
    """``bootc internals fixup-etc-fstab``, for a unit that the generator makes.

    Raises:
        StorageError: it cannot be written.
    """
    del arguments
    with atomic.mapped("read", path):
        text = path.read_text("utf-8", "surrogateescape")
    if (new := edited(text)) is not None:
        mode = path.stat().st_mode & 0o7777
        atomic.write_file(path, new.encode("utf-8", "surrogateescape"), mode=mode)
        sys.stdout.write("Added ro for / in /etc/fstab\n")
    return 0
