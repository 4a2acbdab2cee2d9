"""Typed settings from TOML drop-ins: ``CONFIG_ROOT/usr/lib/bootc/config.d/*.toml`` < ``CONFIG_ROOT/etc/bootc/config.d/*.toml``.

    [storage]
    backend = "composefs"            # for a new sysroot; an existing one keeps its own

    [boot]
    bootloader = "systemd-boot"

    [network]
    max-rate = "5M"                  # bytes a second of all downloads together, or a number
    max-bytes = "2G"                 # bytes of layers that one run may fetch; the next goes on from there
    seeds = ["/srv/trees/*"]         # directories (patterns) with files that an update may share; default: podman's storage
    on-metered = "refuse"            # or "ignore": whether updates wait while NetworkManager calls the line metered

    [plugins]
    blocked = ["NAME", ...]
    required = ["NAME", ...]         # without these no update is made: not installed, blocked or left out
    wanted = ["NAME", ...]           # without these an update is made, with a warning
    in-process = ["NAME", ...]       # plugins of others that root trusts like this program; the others run in child processes
    fail-open = ["NAME", ...]        # a failure of these only warns; never of a signature policy
    fail-closed = ["NAME", ...]      # a failure of these stops, whatever they declare
    image-hooks = "no"               # or "yes": an image that was accepted may refuse this host, in a sandbox
    hold-bounds = ["NAME=72h", ...]  # how long a plugin may hold a run; 14 days are the default and the maximum

    [events]
    journal = "auto"                 # entries in the systemd journal: auto (for root), yes or no
    metrics-file = "/var/lib/node_exporter/bootc.prom"   # OpenMetrics, written at the end of each run

Files are read in order of their names; a file in /etc replaces the one of the same name in /usr/lib (a link to /dev/null masks it);
later files win key by key. All problems of all files are told at once. Plain dataclasses: ``status`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootc_core import paths
from bootc_core.errors import ConfigError, UsageError, printable
from bootc_core.fs.trusted import read_trusted


@dataclass(frozen=True, slots=True)
class Config:
    """The settings in force, and for each key that was set the file that set it."""

    backend: str = "composefs"
    bootloader: str = "systemd-boot"
    blocked: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    in_process: tuple[str, ...] = ()
    fail_open: tuple[str, ...] = ()
    fail_closed: tuple[str, ...] = ()
    hold_bounds: tuple[str, ...] = ()
    image_hooks: str = "no"
    journal: str = "auto"
    metrics_file: str | None = None
    max_rate: int | None = None
    max_bytes: int | None = None
    on_metered: str = "ignore"
    seeds: tuple[str, ...] = (
        "/var/lib/containers/storage/overlay/*/diff",
        "/var/lib/containers/storage/vfs/dir/*",
    )
    sources: dict[str, str] = field(default_factory=dict)


# "section.key" -> (field of Config, expected type in words)
_KEYS = {
    "storage.backend": ("backend", "a string"),
    "boot.bootloader": ("bootloader", "a string"),
    "network.max-rate": ("max_rate", "an amount"),
    "network.max-bytes": ("max_bytes", "an amount"),
    "network.on-metered": ("on_metered", "ignore or refuse"),
    "network.seeds": ("seeds", "a list of strings"),
    "plugins.blocked": ("blocked", "a list of strings"),
    "plugins.required": ("required", "a list of strings"),
    "plugins.wanted": ("wanted", "a list of strings"),
    "plugins.in-process": ("in_process", "a list of strings"),
    "plugins.fail-open": ("fail_open", "a list of strings"),
    "plugins.fail-closed": ("fail_closed", "a list of strings"),
    "plugins.image-hooks": ("image_hooks", "yes or no"),
    "events.journal": ("journal", "auto, yes or no"),
    "events.metrics-file": ("metrics_file", "a string"),
    "plugins.hold-bounds": ("hold_bounds", "a list of NAME=HOURSh or NAME=DAYSd"),
}


def fields_by_key() -> dict[str, str]:
    """``section.key`` to the field of `Config`, in the order of the documentation."""
    return {key: name for key, (name, _) in _KEYS.items()}


def _typed(value: Any, wanted: str) -> Any:
    if wanted == "a string" and isinstance(value, str) and value:
        return value
    if (
        wanted == "a list of strings"
        and isinstance(value, list)
        and all(isinstance(item, str) for item in value)
    ):
        return tuple(value)
    if wanted == "a list of NAME=HOURSh or NAME=DAYSd" and isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                raise ValueError(wanted)  # noqa: TRY004 - as for every wrong value
            parse_bound(item)
        return tuple(value)
    if wanted == "auto, yes or no" and value in ("auto", "yes", "no"):
        return value
    if wanted == "yes or no" and value in ("yes", "no"):
        return value
    if wanted == "ignore or refuse" and value in ("ignore", "refuse"):
        return value
    if wanted == "an amount":
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if isinstance(value, str):
            from bootc_core.net.budget import parse_amount

            return parse_amount(value, "")
    raise ValueError(wanted)


def parse_bound(text: str) -> tuple[str, float]:
    """Name and seconds of ``NAME=72h`` or ``NAME=3d``.

    Raises:
        ValueError: it is neither.
    """
    name, _, amount = text.rpartition("=")
    unit = {"h": 3600.0, "d": 86400.0}.get(amount[-1:])
    if not name or unit is None or not amount[:-1].isdecimal():
        raise ValueError(text)
    return name, int(amount[:-1]) * unit


def parse(text: str, name: str) -> tuple[dict[str, Any], list[str]]:
    """Values by ``section.key``, and the problems of the file, each naming file and key."""
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        return {}, [f"{name}: {printable(str(problem))}"]
    values: dict[str, Any] = {}
    problems = []
    for section, table in document.items():
        known = [key for key in _KEYS if key.startswith(f"{section}.")]
        if not known or not isinstance(table, dict):
            problems.append(f"{name}: [{printable(section)}] is not a section")
            continue
        for key, value in table.items():
            full = f"{section}.{key}"
            if full not in _KEYS:
                problems.append(
                    f"{name}: {printable(full)} is not a key (known: {', '.join(known)})"
                )
                continue
            try:
                values[full] = _typed(value, _KEYS[full][1])
            except (ValueError, UsageError):
                problems.append(
                    f"{name}: {full} must be {_KEYS[full][1]}, found {printable(repr(value), 60)}"
                )
    return values, problems


def load(root: Path) -> Config:
    """The settings beneath the configuration root ``root``.

    Raises:
        ConfigError: any file is malformed or unsafe; lists all problems.
    """
    files: dict[str, Path] = {}
    for directory in paths.CONFIG_DROPINS:
        place = root / directory
        if place.is_dir():
            files.update({path.name: path for path in sorted(place.glob("*.toml"))})
    fields: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    for name in sorted(files):
        data = read_trusted(files[name], root=root)
        if data is None:
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            problems.append(f"{files[name]}: not UTF-8")
            continue
        values, found = parse(text, str(files[name]))
        problems += found
        for key, value in values.items():
            fields[_KEYS[key][0]] = value
            sources[key] = str(files[name])
    if problems:
        raise ConfigError(
            "the configuration has errors"
            if len(problems) > 1
            else "the configuration has an error",
            reference="bad-config",
            found="; ".join(problems),
            hint="correct the file, or mask it: ln -s /dev/null /etc/bootc/config.d/NAME.toml",
        )
    return Config(**fields, sources=sources)
