"""``os-release``: what the operating system calls itself (os-release(5)).

A file of shell-like assignments; nothing in it is executed. Bad lines are skipped, as systemd does,
and values end up in a boot menu, so control characters become spaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bootc_core import limits

_LINE: Final = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
_ID: Final = re.compile(r"[a-z0-9._-]{1,64}")
_VALUE_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class OsRelease:
    """Identity for boot entries and status.

    Attributes:
        id: ``ID``, lower-case word; ``linux`` where it is missing or no such word.
        pretty_name: ``PRETTY_NAME``, else ``NAME``, else ``Linux``.
        version: ``VERSION``, else ``VERSION_ID``; None for rolling systems.
        version_id: ``VERSION_ID``, or None.
    """

    id: str = "linux"
    pretty_name: str = "Linux"
    version: str | None = None
    version_id: str | None = None


def parse(data: bytes) -> OsRelease:
    """The identity in an ``os-release`` file, of which one mebibyte is looked at. Never raises."""
    values: dict[str, str] = {}
    text = data[: limits.SETTINGS_FILE_BYTES].decode("utf-8", "replace")
    for line in text.split("\n"):
        match = _LINE.fullmatch(line.strip())
        if match and (value := _unquote(match[2].strip())) is not None:
            values[match[1]] = value
    name = values.get("ID", "")
    return OsRelease(
        id=name if _ID.fullmatch(name) else "linux",
        pretty_name=values.get("PRETTY_NAME") or values.get("NAME") or "Linux",
        version=values.get("VERSION") or values.get("VERSION_ID") or None,
        version_id=values.get("VERSION_ID") or None,
    )


def _unquote(text: str) -> str | None:
    out: list[str] = []
    quote = ""
    chars = iter(text)
    for char in chars:
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                out.append(char)
        elif char == "\\":
            following = next(chars, None)
            if following is None:
                return None
            if quote and following not in '"\\$`':
                out.append("\\")
            out.append(following)
        elif char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        elif not quote and char in " \t;&|<>()":
            return None  # a shell would see more than one word
        else:
            out.append(char)
    if quote:
        return None
    cleaned = "".join(char if char.isprintable() else " " for char in out[:_VALUE_CHARS])
    return " ".join(cleaned.split())
