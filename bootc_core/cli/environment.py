"""What kind of system this process runs on (parity reference, environment detection)."""

from __future__ import annotations

import os
from pathlib import Path

from bootc_core.errors import UnsupportedEnvironmentError


def in_container() -> bool:
    """Does this process run in a container (parity reference, environment detection)?"""
    return (
        bool(os.environ.get("container"))  # noqa: SIM112 - the name that systemd gives it
        or Path("/run/.containerenv").exists()
        or Path("/.dockerenv").exists()
    )


def no_host_error() -> UnsupportedEnvironmentError:
    """Why a command without ``--sysroot`` cannot run here, in the original's words where it has them."""
    hint = "give --sysroot DIR to work on a mounted disk or a directory"
    if in_container():
        return UnsupportedEnvironmentError(
            "Detected container; this command requires a booted host system.",
            reference="container",
            hint=hint,
        )
    booted = Path("/run/ostree-booted").exists() or _composefs_booted()
    if booted:
        return UnsupportedEnvironmentError(
            "changing the running host is not supported by this version",
            reference="live-host",
            hint=hint,
        )
    return UnsupportedEnvironmentError(
        "System not booted via bootc", reference="not-bootc", hint=hint
    )


def _composefs_booted() -> bool:
    try:
        line = Path("/proc/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(word.startswith("composefs=") for word in line.split())
