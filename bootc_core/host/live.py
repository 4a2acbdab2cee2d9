"""The sysroot of the running host, opened as a command needs it.

What others see never changes: /sysroot and the boot partition are remounted for writing in a mount namespace of this
process's own, which ends with it. The steps and their order are the parity reference's ("get storage").
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from bootc_core import paths
from bootc_core.errors import StorageError, UnsupportedEnvironmentError
from bootc_core.fs import mounts
from bootc_core.host import environment, partitions
from bootc_core.host.environment import Environment
from bootc_core.models.sysroot import Sysroot

_SYS_ADMIN: Final = 21  # bit of CAP_SYS_ADMIN


def require_root(status: str | None = None) -> None:
    """Refuse ordinary users, and a root that may not mount.

    Raises:
        UnsupportedEnvironmentError: in the original's words.
    """
    if os.geteuid() != 0:
        raise UnsupportedEnvironmentError(
            "This command must be executed as the root user", reference="needs-root"
        )
    text = Path("/proc/self/status").read_text() if status is None else status
    bounding = next(
        (line.split()[1] for line in text.splitlines() if line.startswith("CapBnd:")), ""
    )
    if bounding and not int(bounding, 16) >> _SYS_ADMIN & 1:
        raise UnsupportedEnvironmentError(
            "This command requires full root privileges (CAP_SYS_ADMIN)", reference="needs-root"
        )


def open_sysroot(*, write: bool | None, config_root: Path | None = None) -> Sysroot:
    """The running host's sysroot. To be called once, before any thread is started.

    Args:
        write: the command changes the host; None: where the medium permits it.
        config_root: see ``Sysroot``.

    Raises:
        UnsupportedEnvironmentError: this is no such host, or the user may not.
        StorageError: it is on a medium that cannot be written, or something cannot be mounted.
    """
    kind = environment.detect()
    environment.require_host(kind)
    require_root()
    mounts.unshare()
    table = mounts.table()
    # libostree finds out only at / that this host runs one of its deployments.
    physical = paths.LIVE_SYSROOT
    if not physical.is_dir():
        raise StorageError(
            "the physical root is not there",
            reference="no-sysroot",
            expected=f"{physical}, as the initramfs mounts it",
        )
    read_only = False
    if os.statvfs(physical).f_flag & os.ST_RDONLY:
        read_only = partitions.check_medium(physical, table)
        if write is None:
            write = not read_only
        if write and not read_only:
            mounts.make_writable(physical)
    if write:
        paths.LIVE_STAGED.parent.mkdir(mode=0o755, exist_ok=True)
    if write and read_only:
        raise StorageError(
            "Cannot perform this operation: /sysroot is on a read-only block device (e.g. a live ISO)",
            reference="read-only",
            catalogue="RO",
        )
    if kind is Environment.OSTREE:
        boot = Path("/boot") if mounts.at(table, "/boot") else physical / paths.BOOT
        if write and boot.is_dir() and os.statvfs(boot).f_flag & os.ST_RDONLY:
            mounts.make_writable(boot)
    else:
        boot = partitions.boot_directory(physical, table, write=bool(write))
    return Sysroot(
        path=physical,
        boot_dir=boot,
        config_root=Path(os.path.realpath(config_root)) if config_root else Path("/"),
        live=True,
        read_only=read_only,
    )
