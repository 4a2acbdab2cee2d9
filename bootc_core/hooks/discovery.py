"""Which plugins are installed: the entry points of group ``bootc.plugins`` of all distributions on ``sys.path``.

``importlib.metadata`` needs some 40 ms for this, which ``status`` does not have; the files are simple:

    site-packages/NAME-VERSION.dist-info/entry_points.txt
        [bootc.plugins]
        composefs = bootc_composefs.plugin

Nothing is imported here. Two distributions that use one plugin name are an error naming both: a shadowed plugin may be the one
that verifies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootc_core.errors import PluginError, printable
from bootc_core.hooks.markers import GROUP


@dataclass(frozen=True, slots=True)
class PluginSource:
    """An entry point: plugin name, module, and the distribution that brings it."""

    name: str
    module: str
    distribution: str
    version: str
    location: str  # directory that holds the distribution

    @property
    def builtin(self) -> bool:
        """Does it come with this program?"""
        return self.distribution == "bootc"


def parse_entry_points(text: str, group: str = GROUP) -> list[tuple[str, str]]:
    """Names and modules of ``group`` in an ``entry_points.txt`` (Python packaging, "Entry points specification")."""
    found, inside = [], False
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line:
            name, _, target = line.partition("=")
            found.append((name.strip(), target.partition("[")[0].partition(":")[0].strip()))
    return found


def _distributions(path: str) -> Iterable[str]:
    try:
        with os.scandir(path or ".") as listing:
            names = sorted(entry.name for entry in listing)
    except OSError:
        return ()
    return [f"{path or '.'}/{name}" for name in names if name.endswith((".dist-info", ".egg-info"))]


def find_plugins(search: Sequence[str] | None = None) -> list[PluginSource]:
    """All installed plugins, sorted by name.

    Raises:
        PluginError: two distributions use one plugin name.
    """
    found: dict[str, PluginSource] = {}
    seen: set[str] = set()
    for path in sys.path if search is None else search:
        for directory in _distributions(path):
            base = directory.rpartition("/")[2].rpartition(".")[0]
            distribution, _, version = base.partition("-")
            distribution = distribution.lower().replace("-", "_")
            if distribution in seen:  # the first on sys.path is the one that Python imports
                continue
            try:
                with Path(directory, "entry_points.txt").open(encoding="utf-8") as file:
                    text = file.read(65536)
            except (OSError, UnicodeDecodeError):
                continue
            entries = parse_entry_points(text)
            if not entries:
                continue
            seen.add(distribution)
            for name, module in entries:
                source = PluginSource(name, module, distribution, version, path)
                if (other := found.get(name)) is not None:
                    raise PluginError(
                        f"two distributions bring a plugin called {printable(name)}",
                        reference="plugin-conflict",
                        found=f"{other.distribution} {other.version} and {distribution} {version}",
                        hint=f"uninstall one of them: pip uninstall {printable(distribution)}",
                    )
                found[name] = source
    return [found[name] for name in sorted(found)]
