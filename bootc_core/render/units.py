"""Sizes, as GLib formats them."""

from __future__ import annotations


def size(number: int) -> str:
    """Decimal units with one digit: ``12.3 MB``; below 1000 ``1 byte`` or ``N bytes``."""
    if number < 1000:
        return "1 byte" if number == 1 else f"{number} bytes"
    value = float(number)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.95 or unit == "PB":
            return f"{value:.1f} {unit}"
    raise AssertionError
