"""What kind of system this process runs on (parity reference, environment detection), from files that ``root`` may lead elsewhere.

The order matters: a container of a booted host sees the host's kernel command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Final

from bootc_core.errors import BootcError, UnsupportedEnvironmentError, printable
from bootc_core.fs import mounts
from bootc_core.models.kargs import CommandLine

_ROOT_SOURCE: Final = re.compile(r"(?:transient:composefs=|composefs:)([0-9a-f]{64}|[0-9a-f]{128})")
_HINT: Final = "give --sysroot DIR to work on a mounted disk or a directory"


class Environment(Enum):
    """What this process runs on."""

    CONTAINER = "container"
    COMPOSEFS = "composefs"
    OSTREE = "ostree"
    OTHER = "other"


def in_container(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """Does this process run in a container?"""
    return (
        bool(environ.get("container"))
        or (root / "run/.containerenv").exists()
        or (root / ".dockerenv").exists()
    )


def command_line(root: Path = Path("/")) -> CommandLine:
    """What the kernel was started with; empty if it cannot be read."""
    try:
        text = (root / "proc/cmdline").read_text("utf-8", "replace")
        return CommandLine.parse(text.strip("\n\0"))
    except (OSError, BootcError):
        return CommandLine()


def root_deployment(table: list[mounts.Mount]) -> str | None:
    """The composefs deployment that is mounted as ``/``, as the name of its mount says; None if it is none."""
    mount = mounts.at(table, "/")
    match = _ROOT_SOURCE.fullmatch(mount.source) if mount else None
    return match[1] if match else None


def detect(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Environment:
    """What this process runs on.

    Raises:
        UnsupportedEnvironmentError: the command line names a composefs deployment that is not mounted as ``/``.
    """
    if in_container(root, environ):
        return Environment.CONTAINER
    if (named := command_line(root).deployment) is not None:
        if root_deployment(mounts.table()) is None:
            raise UnsupportedEnvironmentError(
                "Root not mounted using composefs",
                reference="not-composefs",
                expected=f"a root that the initramfs mounted from deployment {named[:12]}",
                found=printable(getattr(mounts.at(mounts.table(), "/"), "source", "nothing")),
                hint="the initramfs lacks the module of this program; see docs/boot.md",
            )
        return Environment.COMPOSEFS
    if (root / "run/ostree-booted").exists():
        return Environment.OSTREE
    return Environment.OTHER


def running_deployment() -> str | None:
    """The composefs deployment that this machine runs: what is mounted, since a soft reboot keeps the command line."""
    return root_deployment(mounts.table()) or command_line().deployment


def require_host(environment: Environment) -> None:
    """Refuse to change anything but a host that was booted from an image; the words are the original's.

    Raises:
        UnsupportedEnvironmentError: a container, or another system.
    """
    if environment is Environment.CONTAINER:
        raise UnsupportedEnvironmentError(
            "Detected container; this command requires a booted host system.",
            reference="container",
            hint=_HINT,
        )
    if environment is Environment.OTHER:
        raise UnsupportedEnvironmentError(
            "System not booted via bootc", reference="not-bootc", hint=_HINT
        )
