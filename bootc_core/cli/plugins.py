"""``bootc plugins list``."""

from __future__ import annotations

import argparse
import json
import sys

from bootc_core.cli import common
from bootc_core.hooks.markers import API


def list_plugins(arguments: argparse.Namespace) -> int:
    """Print every plugin with its state, version, origin and hooks."""
    _, plugins = common.load(arguments)
    if arguments.json:
        value = [
            {
                "name": info.source.name,
                "state": info.state,
                "version": info.source.version,
                "distribution": info.source.distribution,
                "module": info.source.module,
                "location": info.source.location,
                "builtin": info.source.builtin,
                "api": API,
                "hooks": list(info.hooks),
            }
            for info in plugins.infos
        ]
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return 0
    rows = [("PLUGIN", "STATE", "VERSION", "ORIGIN", "HOOKS")]
    for info in plugins.infos:
        origin = (
            "built-in"
            if info.source.builtin
            else f"{info.source.distribution} in {info.source.location}"
        )
        hooks = ", ".join(name.removeprefix("bootc_") for name in info.hooks)
        rows.append((info.source.name, info.state, info.source.version, origin, hooks))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        sys.stdout.write("  ".join((*cells, row[4])).rstrip() + "\n")
    return 0
