"""The settings, and whether the window is open: no I/O but one file."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from bootc_core.errors import ConfigError

FILE = "etc/bootc/reboot-lock.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """As in the README; ``lease`` in seconds."""

    endpoint: str
    host: str
    key: str = "bootc/reboot"
    lease: int = 1800
    window: tuple[time, time] | None = None


def parse(text: str, machine: str) -> Settings:
    """The settings in a TOML document.

    Raises:
        ValueError: says what is wrong.
    """
    values = tomllib.loads(text)
    if unknown := sorted(set(values) - {"endpoint", "host", "key", "lease", "window"}):
        raise ValueError(f"{unknown[0]} is not a key")
    for name, kind in (("endpoint", str), ("host", str), ("key", str), ("lease", int)):
        if name in values and not isinstance(values[name], kind):
            raise ValueError(f"{name} is of another type")
    if not re.fullmatch(r"https?://[^/\s]+", values.get("endpoint", "")):
        raise ValueError('endpoint is not of the form "http://host:2379"')
    window = values.pop("window", None)
    if window is not None:
        found = re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)", str(window))
        if not found:
            raise ValueError('window is not of the form "02:00-05:00"')
        values["window"] = (time.fromisoformat(found[1]), time.fromisoformat(found[2]))
    if not 1 <= values.get("lease", 1) <= 86400:
        raise ValueError("lease is not between 1 and 86400 seconds")
    values.setdefault("host", machine)
    if not values["host"]:
        raise ValueError("host is missing, and this machine has no id")
    return Settings(**values)


def load(config_root: str) -> Settings:
    """The settings beneath ``config_root``.

    Raises:
        ConfigError: the file is missing or wrong; then runs stop, and say so.
    """
    root = Path(config_root)
    try:
        machine = (root / "etc/machine-id").read_text(encoding="utf-8").strip()
    except OSError:
        machine = ""
    try:
        return parse((root / FILE).read_text(encoding="utf-8"), machine)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"cannot use {root / FILE}", found=str(problem)) from problem


def opens(settings: Settings, now: datetime) -> datetime | None:
    """When the window opens next, or None: it is open."""
    if settings.window is None:
        return None
    first, last = settings.window
    now = now.astimezone(UTC)
    clock = now.time()
    inside = first <= clock < last if first <= last else clock >= first or clock < last
    if inside:
        return None
    until = datetime.combine(now.date(), first, UTC)
    return until if until > now else until + timedelta(days=1)
