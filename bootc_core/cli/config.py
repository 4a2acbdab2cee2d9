"""``bootc config show``: every setting in force and the file it came from; secrets are never part of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from bootc_core import config as configs
from bootc_core.cli import common
from bootc_core.errors import printable

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def _rows(settings: configs.Config) -> list[tuple[str, str, str]]:
    rows = []
    for key, name in configs.fields_by_key().items():
        value = getattr(settings, name)
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        rows.append(
            (key, text if value not in ((), None) else "(none)", settings.sources.get(key, ""))
        )
    return rows


def _proxies() -> list[tuple[str, str, str]]:
    """Variables of the environment that direct our requests; a password in them stays hidden."""
    rows = []
    for upper in _PROXIES:
        for name in (upper, upper.lower()):
            if value := os.environ.get(name):
                scheme, found, rest = value.rpartition("://")
                user, at, host = rest.rpartition("@")
                hidden = f"{user.partition(':')[0]}:***@{host}" if at else rest
                rows.append((name, printable(f"{scheme}{found}{hidden}"), "the environment"))
                break
    return rows


def show(arguments: argparse.Namespace) -> int:
    """Print the merged configuration.

    Raises:
        ConfigError: a file is wrong.
    """
    settings, plugins = common.load(arguments)
    root = arguments.config_root or Path("/")
    sections = [("bootc", _rows(settings))]
    told = set()
    for offered in plugins.transports.values():
        if offered.offer.describe is not None and offered.plugin not in told:
            told.add(offered.plugin)
            sections += [(name, list(rows)) for name, rows in offered.offer.describe(root)]
    if proxies := _proxies():
        sections.append(("proxies", proxies))
    if arguments.json:
        value = {
            name: [
                {"key": key, "value": text, "source": source or None} for key, text, source in rows
            ]
            for name, rows in sections
        }
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return 0
    for number, (name, rows) in enumerate(sections):
        sys.stdout.write(("\n" if number else "") + f"[{name}]\n")
        left = [f"{printable(key)} = {printable(text)}" for key, text, _ in rows]
        width = min(60, max(map(len, left), default=0))
        for text, (_, _, source) in zip(left, rows, strict=True):
            sys.stdout.write(f"{text.ljust(width)}  # {source or 'default'}\n")
        if not rows:
            sys.stdout.write("# nothing\n")
    return 0
