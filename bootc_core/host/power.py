"""What the running system's manager is asked to do: reboot, start a unit."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from bootc_core.process import run_blocking

_TIMEOUT_S = 90.0


def start_unit(name: str) -> None:
    """Have systemd start a unit, and wait for it.

    Raises:
        BootcError: it did not start, or this system has no systemd.
    """
    run_blocking(["systemctl", "start", name], timeout_s=_TIMEOUT_S)


def reboot(*, soft: bool = False) -> NoReturn:
    """Reboot; never returns, so that nobody sees an exit status that races with the shutdown.

    Where a next root is prepared in /run/nextroot, systemd makes it a soft reboot by itself.

    Raises:
        BootcError: systemd refuses.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    verb = ["soft-reboot"] if soft else ["reboot"]
    run_blocking(
        ["systemd-run", "--quiet", "--", "systemctl", *verb, "--message=Initiated by bootc"],
        timeout_s=_TIMEOUT_S,
    )
    while True:
        signal.pause()
