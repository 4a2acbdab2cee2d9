"""A writable ``/usr`` until the next reboot, on a host whose root is a composefs deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bootc_core.fs import mounts

_SOURCE: Final = "transient"  # how the mount is named, and found again
_PLACE: Final = Path("/run/bootc/usr-overlay")


def present(table: list[mounts.Mount]) -> tuple[str, str] | None:
    """Access mode and persistence of an overlay on ``/usr``, as status shows them; None without one."""
    mount = mounts.at(table, "/usr")
    if mount is None or mount.kind != "overlay" or mount.source != _SOURCE:
        return None
    return ("readOnly" if "ro" in mount.options else "readWrite"), "transient"


def add(*, read_only: bool) -> None:
    """Mount it for the whole host; what is changed is kept in memory, at most half of it.

    Raises:
        StorageError: what the kernel says.
    """
    _PLACE.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounts.mount("tmpfs", _PLACE, "tmpfs", 0, "mode=0700")
    try:
        upper, work = _PLACE / "upper", _PLACE / "work"
        upper.mkdir(mode=0o755)
        work.mkdir(mode=0o700)
        flags = mounts.RDONLY if read_only else 0
        options = f"lowerdir=/usr,upperdir={upper},workdir={work}"
        mounts.mount(_SOURCE, "/usr", "overlay", flags, options)
    finally:
        mounts.unmount(_PLACE, lazy=True)
