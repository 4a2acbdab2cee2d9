"""What is written around the first deployment, and how its file systems are brought to rest."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bootc_core.errors import BootcError, UnsupportedEnvironmentError
from bootc_core.fs import atomic
from bootc_install import devices

if TYPE_CHECKING:
    from bootc_core.models.install import Installed
    from bootc_install.options import Options

SSH_KEYS = "tmpfiles.d/bootc-root-ssh.conf"
ALEPH = ".bootc-aleph.json"


def write_settings(options: Options, installed: Installed, root: Path, fstab: str | None) -> None:
    """``/etc/fstab``, the keys that may log in as root, and where the host came from (``.bootc-aleph.json``).

    Raises:
        StorageError: something cannot be written.
    """
    if fstab is not None:
        atomic.write_file(installed.etc / "fstab", fstab.encode())
    if options.authorized_keys is not None:
        atomic.mkdir(installed.etc / "tmpfiles.d")
        home = _root_home(installed)
        encoded = base64.b64encode(options.authorized_keys).decode()
        text = f"f~ /{home}/.ssh/authorized_keys 600 root root - {encoded}\n"
        atomic.write_file(installed.etc / SSH_KEYS, text.encode())
        print(f"Injected: etc/{SSH_KEYS}")
    record = {
        "image": None if options.source.name.startswith("/tmp") else str(options.source.name),  # noqa: S108 - the original's rule
        "digest": installed.digest,
        "target-image": options.target.display(),
        "labels": installed.labels or None,
        "version": installed.version,
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": os.uname().release,
        "selinux": _selinux(options, installed),
    }
    kept = {key: value for key, value in record.items() if value is not None}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    atomic.write_file(root / ALEPH, text.encode() + b"\n")


def _selinux(options: Options, installed: Installed) -> str:
    """The original's words: what the image has, and whether the machine that installs has it."""
    if not (installed.etc / "selinux/config").exists():
        return "disabled"
    if not options.selinux:
        return "force-target-disabled"
    return "enabled" if Path("/sys/fs/selinux/enforce").exists() else "host-disabled"


def _root_home(installed: Installed) -> str:
    """Root's home as seen from the top: where the image's link ``/root`` leads, or ``root``."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch, "root")
        if not installed.extract("root", found) or not found.is_symlink():
            return "root"
        return os.path.normpath(Path("/", found.readlink())).lstrip("/")


def settle(place: Path) -> None:
    """Trim a file system, write everything out, and leave nothing for its journal to replay.

    Raises:
        StorageError: it cannot be made read-only.
    """
    devices.run(["fstrim", "--quiet-unsupported", "-v", str(place)], check=False)
    devices.run(["mount", "-o", "remount,ro", str(place)])
    try:
        devices.run(["fsfreeze", "-f", str(place)])
        devices.run(["fsfreeze", "-u", str(place)])
    except (BootcError, UnsupportedEnvironmentError):
        devices.run(["fsfreeze", "-u", str(place)], check=False)
