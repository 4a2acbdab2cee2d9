"""``bootc install ensure-completion``: for installers that deploy an image themselves (parity reference, 6.9).

Run in the installed system's root (``chroot /mnt/sysroot``): the newest deployment gets the kernel arguments of the installation
settings and of the image, which an installer that only unpacks does not know of.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.boot import bls, kargs_d
from bootc_core.errors import StorageError, UnsupportedEnvironmentError, UsageError
from bootc_core.fs import atomic
from bootc_core.models.kargs import CommandLine
from bootc_install import config

if TYPE_CHECKING:
    from bootc_core.models.install import Services

_HINT: Final = "ANA_INSTALL_PATH"
_STAMP: Final = Path("/proc/1/root/run/bootc-install-reconciled")


def run(arguments: argparse.Namespace, services: Services) -> int:
    """Complete the installation in ``/``; exit status 0. Once it is done, nothing more is.

    Raises:
        UsageError: not called by an installer.
        StorageError: there is no deployment, or it cannot be changed.
    """
    del arguments, services
    if os.geteuid() != 0:
        raise UnsupportedEnvironmentError(
            "this command must be run as root", reference="needs-root"
        )
    if _HINT not in os.environ:
        raise UsageError(
            f"Missing environment variable {_HINT}",
            reference="no-installer",
            hint="this command is for installers; a host needs none",
        )
    if _STAMP.exists():
        print("Reconciliation already completed.")
        return 0
    complete(Path("/"))
    atomic.write_file(_STAMP, b"")
    return 0


def complete(root: Path) -> None:
    """Add the arguments of settings and image to the entry that boots next.

    Raises:
        StorageError: there is none, or it cannot be written.
    """
    boot = next(
        (one for one in (root / "boot", root / "sysroot/boot") if (one / bls.ENTRIES).is_dir()),
        None,
    )
    entries = bls.read_entries(boot) if boot is not None else []
    if boot is None or not entries:
        raise StorageError(
            f"Failed to find deployment in {root}",
            reference="no-deployment",
            expected="boot/loader/entries with an entry",
            catalogue="STATE",
        )
    wanted = list(config.load(root).kargs or ())
    directory = root / "usr/lib/bootc/kargs.d"
    for path in sorted(directory.glob("*.toml")):
        wanted += kargs_d.parse(path.name, path.read_bytes(), kargs_d.architecture())
    entry = entries[0]
    line = CommandLine.parse(" ".join(entry.all("options")))
    changed = line.add(CommandLine.parse(" ".join(wanted))).checked()
    if changed != line:
        keys = [pair for pair in entry.keys if pair[0] != "options"]
        place = next((n for n, (key, _) in enumerate(entry.keys) if key == "options"), len(keys))
        keys.insert(place, ("options", str(changed)))
        atomic.write_file(boot / entry.file, bls.print_entry(keys))
