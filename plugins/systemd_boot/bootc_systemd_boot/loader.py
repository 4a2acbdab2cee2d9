"""What systemd-boot will choose: ``loader/loader.conf``, the firmware's variable, and the order of the menu."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootError, printable
from bootc_core.models.boot import PresentEntry

CONF: Final = "loader/loader.conf"
FRESH_CONF: Final = b"timeout 5\n"  # as the original writes where there is none
VARIABLE: Final = Path(
    "/sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)


def parse_default(data: bytes) -> str | None:
    """The pattern of the last ``default`` line in a ``loader.conf``; None if there is none."""
    default = None
    for line in data.decode("utf-8", "replace").splitlines():
        key, _, value = line.strip().replace("\t", " ").partition(" ")
        if key == "default" and value.strip():
            default = value.strip().strip('"')
    return default


def parse_variable(data: bytes) -> str | None:
    """The pattern in the firmware's variable (four bytes of attributes, then UTF-16); None if empty."""
    text = data[4:].decode("utf-16-le", "replace").split("\0")[0]
    return text or None


def pinned(boot_dir: Path, *, live: bool, variable: Path = VARIABLE) -> tuple[str, str] | None:
    """The pinned default and where it is pinned; the firmware's variable counts on the running system only."""
    if live:
        value = parse_variable(_read(variable))
        if value:
            return value, "the firmware variable LoaderEntryDefault"
    value = parse_default(_read(boot_dir / CONF))
    return (value, CONF) if value else None


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(limits.SETTINGS_FILE_BYTES)
    except OSError:
        return b""


def matches(entry: PresentEntry, pattern: str) -> bool:
    """Does the pattern of a ``default`` name the entry, with or without ``.conf``?"""
    stem = bls.tries_of(entry.file)[0].lower()
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for name in (f"{stem}.conf", stem))


def chosen(menu: Sequence[PresentEntry], pattern: str | None) -> PresentEntry | None:
    """The entry that boots: the first one that the pattern matches, else the first one."""
    first = menu[0] if menu else None
    if pattern is None:
        return first
    return next((entry for entry in menu if matches(entry, pattern)), first)


def check_effective(
    menu: Sequence[PresentEntry], target: str, default: tuple[str, str] | None
) -> None:
    """Refuse a switch after which something else than ``target`` would boot.

    Args:
        menu: the entries as they will be, in menu order.
        target: file of the entry that shall boot.
        default: see ``pinned``.

    Raises:
        BootError: naming what stands in the way.
    """
    if default and default[0].startswith("@"):
        raise BootError(
            f"{default[1]} lets the boot loader remember a choice of its own",
            reference="pinned-default",
            found=f"default {printable(default[0])}",
            hint="remove that setting: the order of the entries decides what boots",
        )
    entry = chosen(menu, default[0] if default else None)
    if entry is not None and entry.file == target:
        return
    other = printable(entry.file.rsplit("/", 1)[-1]) if entry is not None else "nothing"
    if default and entry is not None and matches(entry, default[0]):
        raise BootError(
            f"{default[1]} pins another entry as the default",
            reference="pinned-default",
            found=f"default {printable(default[0])}, which is {other}",
            hint="remove that setting, or write `default bootc_*`; then run the command again",
        )
    raise BootError(
        "an entry of another system comes first in the boot menu",
        reference="foreign-first",
        found=other,
        hint=f"write `default bootc_*` into {CONF}, or remove that entry; then run the command again",
    )
