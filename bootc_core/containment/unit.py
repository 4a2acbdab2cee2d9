"""A transient systemd service around a plugin's child process, on hosts that systemd runs.

    bootc ──▶ systemd-run --pipe --wait ──▶ PID 1 ──▶ bootc-plugin-NAME-….service
                                                         └─ the child of ``child``, with its pipes

The cgroup is what the child's own means do not give: memory and processes of all that it starts are bounded together, and at the
end of the service nothing of it is left. The file systems of the operating system are read-only, kernel settings and modules out of
reach; /var, the network and devices are there, as the contract of gates and participants has them everywhere.

The service ends when the child ends, when nobody reads its answer any more (``child`` sees that: the deadline was over, or bootc
was killed), and at the latest some seconds after its deadline.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bootc_core import limits, process

_BOOTED: Final = Path("/run/systemd/system")  # as sd_booted(3) looks
_BUS: Final = Path("/run/dbus/system_bus_socket")  # which systemd-run --wait needs
_LATER_S: Final = 10
_PROPERTIES: Final = (
    "KillMode=control-group",
    "SendSIGKILL=yes",
    "NoNewPrivileges=yes",
    "ProtectSystem=full",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "LockPersonality=yes",
    "OOMPolicy=stop",
)


def available() -> bool:
    """Does systemd run this host, can its system manager be asked, and may this process ask it to start services?"""
    return (
        os.geteuid() == 0
        and _BOOTED.is_dir()
        and _BUS.exists()
        and shutil.which("systemd-run", path=process.SEARCH_PATH) is not None
    )


def command(
    plugin: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    seconds: float,
    memory_bytes: int,
) -> list[str]:
    """The command that runs ``argv`` as a service: same standard streams, same exit status (255: a signal ended it)."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", plugin)[:60]
    properties = (
        *_PROPERTIES,
        f"RuntimeMaxSec={int(seconds) + _LATER_S}",
        f"TimeoutStopSec={int(limits.HOOK_TERM_GRACE_S)}",
        f"MemoryMax={memory_bytes}",
        f"TasksMax={limits.CHILD_PROCESSES}",
    )
    return [
        "systemd-run",
        *("--quiet", "--pipe", "--wait", "--collect"),
        f"--unit=bootc-plugin-{name}-{secrets.token_hex(4)}",
        f"--description=bootc plugin {name}",
        *(f"--property={one}" for one in properties),
        *(f"--setenv={key}={value}" for key, value in environment.items()),
        "--",
        *(
            word.replace("$", "$$") for word in argv
        ),  # systemd expands variables, systemd.service(5)
    ]
