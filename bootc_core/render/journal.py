"""Events as entries of the systemd journal: its native datagrams, so that fields can be searched for.

    journalctl SYSLOG_IDENTIFIER=bootc BOOTC_EVENT=boot.switched -o json

State changes only; progress would fill the journal. A socket that is missing or full loses entries and nothing else.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from bootc_core.errors import printable
from bootc_core.models import events

SOCKET: Final = Path("/run/systemd/journal/socket")
_PRIORITIES: Final = {
    "transaction.failed": "3",
    "phase.failed": "4",
    "run.warned": "4",
    "hold.overridden": "4",
    "boot.switched": "5",
    "transaction.recovered": "5",
}


def fields(event: events.Event) -> dict[str, str]:
    """The entry of ``event``: the usual fields, and its own as ``BOOTC_<FIELD>``."""
    values = event.to_json()
    entry = {
        "MESSAGE": message(event),
        "PRIORITY": _PRIORITIES.get(event.name, "6"),
        "SYSLOG_IDENTIFIER": "bootc",
    }
    for name, value in values.items():
        if value is not None:
            entry[f"BOOTC_{name.upper()}"] = value if isinstance(value, str) else str(value)
    return entry


def message(event: events.Event) -> str:
    """One line for people."""
    values = event.to_json()
    parts = [
        f"{name}={printable(str(value))}"
        for name, value in values.items()
        if name not in {"event", "transaction"} and value not in (None, "")
    ]
    return " ".join((event.name, *parts))


def encode(entry: Mapping[str, str]) -> bytes:
    """The native form: ``NAME=value`` lines, or name, length and bytes where the value has a line break."""
    data = bytearray()
    for name, value in entry.items():
        raw = value.encode("utf-8", "backslashreplace")
        if b"\n" in raw:
            data += name.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n"
        else:
            data += name.encode() + b"=" + raw + b"\n"
    return bytes(data)


class Journal:
    """The observer; ``path`` is the journal's socket."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def __call__(self, event: events.Event) -> None:
        """Send the entry, if the journal takes it now."""
        if not event.mergeable and event.name != "step.progressed":
            with suppress(OSError):
                self._socket.sendto(encode(fields(event)), self._path)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()
