"""What commands share: configuration, plugins, the sysroot."""

from __future__ import annotations

import argparse
from pathlib import Path

from bootc_core import config as configs
from bootc_core.config import Config
from bootc_core.containment import loading
from bootc_core.engine import sysroots
from bootc_core.hooks import manager
from bootc_core.models.sysroot import Sysroot


def load(arguments: argparse.Namespace) -> tuple[Config, manager.Plugins]:
    """The settings in force and the loaded plugins.

    Raises:
        ConfigError: the settings are malformed.
        PluginError: a plugin cannot be loaded.
    """
    safe = getattr(arguments, "safe_mode", False)
    settings = Config() if safe else configs.load(arguments.config_root or Path("/"))
    plugins = manager.load(
        blocked=(*settings.blocked, *(getattr(arguments, "no_plugin", None) or ())),
        safe=safe,
        provide=loading.provider(
            in_process=settings.in_process,
            fail_open=settings.fail_open,
            fail_closed=settings.fail_closed,
        ),
    )
    plugins.hold_bounds.update(map(configs.parse_bound, settings.hold_bounds))
    return settings, plugins


def sysroot_of(arguments: argparse.Namespace) -> Sysroot | None:
    """The sysroot that ``--sysroot`` names, or None for the booted host."""
    if arguments.sysroot is None:
        return None
    return sysroots.make_sysroot(arguments.sysroot, arguments.boot_dir, arguments.config_root)
