"""The menu as GRUB's shell reads it, made from boot entries. Pure.

    menuentry 'Debian GNU/Linux 13 (trixie)' --id 'bootc_debian-13-1' {
      linux /boot/bootc_composefs-<id>/vmlinuz root=UUID=... rw 'composefs=?<id>'
      initrd /boot/bootc_composefs-<id>/initrd
    }

For GRUB that cannot read the entries itself (``blscfg`` is Fedora's, and in GRUB since 2.14). Every word that is not plain is
quoted, so that nothing of an entry is read as a command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from bootc_core.boot import bls
from bootc_core.models.boot import PresentEntry
from bootc_core.models.kargs import CommandLine

_PLAIN: Final = re.compile(r"[A-Za-z0-9=.,_:/@%+-]+")
_HEAD: Final = "# Made by bootc from the boot entries; changes are lost.\n"


def quote(word: str) -> str:
    """A word that GRUB's shell reads as itself."""
    if _PLAIN.fullmatch(word):
        return word
    return "'" + word.replace("'", "'\\''") + "'"


def _words(options: str) -> list[str]:
    """A kernel command line as words; GRUB itself puts quotes around what has blanks in it."""
    return [quote(parameter.text.replace('"', "")) for parameter in CommandLine.parse(options)]


def text(entries: Iterable[PresentEntry], prefix: str = "") -> bytes:
    """The menu of these entries, in this order; those that are no Linux kernels are left out.

    ``prefix`` leads to the boot directory from the top of its file system; older libostree leaves it out of its entries.
    """

    def place(path: str) -> str:
        return quote(path if path.startswith(f"{prefix}/") else prefix + path)

    lines = [_HEAD]
    for entry in entries:
        kernel = entry.get("linux")
        if kernel is None:
            continue
        name = bls.tries_of(entry.file)[0]
        lines.append(f"menuentry {quote(entry.get('title') or name)} --id {quote(name)} {{\n")
        words = _words(" ".join(entry.all("options")))
        lines.append(f"  linux {' '.join([place(kernel), *words])}\n")
        if initrds := entry.all("initrd"):
            lines.append(f"  initrd {' '.join(map(place, initrds))}\n")
        lines.append("}\n")
    return "".join(lines).encode()
