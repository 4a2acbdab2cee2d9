"""When upgrades may run: settings, and a pure decision."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from bootc_core import Deny, Hold, Proceed, Verdict
from bootc_core.errors import ConfigError

FILE = "etc/bootc/example-window.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """``opens`` and ``closes`` in UTC (a window may span midnight); ``freeze`` refuses, with its reason."""

    opens: time | None = None
    closes: time | None = None
    freeze: str | None = None


def parse_settings(text: str) -> Settings:
    """The settings in a TOML document.

    Raises:
        ValueError: says what is wrong.
    """
    values = tomllib.loads(text)
    if unknown := sorted(set(values) - {"window", "freeze"}):
        raise ValueError(f"{unknown[0]} is not a key")
    window = values.get("window")
    freeze = values.get("freeze")
    if freeze is not None and not isinstance(freeze, str):
        raise ValueError("freeze is not text")
    if window is None:
        return Settings(freeze=freeze)
    if not isinstance(window, str) or not (
        found := re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)", window)
    ):
        raise ValueError('window is not of the form "02:00-05:00"')
    return Settings(time.fromisoformat(found[1]), time.fromisoformat(found[2]), freeze)


def load_settings(config_root: Path) -> Settings:
    """The settings beneath ``config_root``; without a file the window is always open.

    Raises:
        ConfigError: the file is wrong; then upgrades stop, and say so.
    """
    path = config_root / FILE
    try:
        return parse_settings(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError) as problem:
        raise ConfigError(f"cannot use {path}", found=str(problem)) from problem


def decide(settings: Settings, now: datetime) -> Verdict:
    """May an upgrade begin now?"""
    if settings.freeze is not None:
        return Deny(settings.freeze)
    if settings.opens is None or settings.closes is None:
        return Proceed()
    now = now.astimezone(UTC)
    clock = now.time()
    if settings.opens <= settings.closes:
        inside = settings.opens <= clock < settings.closes
    else:
        inside = clock >= settings.opens or clock < settings.closes
    if inside:
        return Proceed()
    until = datetime.combine(now.date(), settings.opens, UTC)
    if until <= now:
        until += timedelta(days=1)
    return Hold(
        until, f"outside the maintenance window {settings.opens:%H:%M}-{settings.closes:%H:%M}"
    )
