"""Errors as text and as JSON. Pure functions."""

from __future__ import annotations

import json

from bootc_core.errors import BootcError


def to_text(error: BootcError, *, colour: bool = False) -> str:
    """One line with what happened, expected and found, and one with what to do."""
    red, bold, plain = ("\x1b[31m", "\x1b[1m", "\x1b[0m") if colour else ("", "", "")
    line = error.message
    if error.expected and error.found:
        line += f": expected {error.expected}, found {error.found}"
    elif error.found:
        line += f": {error.found}"
    elif error.expected:
        line += f": expected {error.expected}"
    text = f"{red}error:{plain} {line}\n"
    if error.hint:
        text += f"{bold}hint:{plain} {error.hint}\n"
    return text


def to_json(error: BootcError) -> str:
    """One line of JSON."""
    return json.dumps({"error": error.to_json()}, ensure_ascii=False) + "\n"
