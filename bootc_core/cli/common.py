"""What commands share: configuration, plugins, the sysroot."""

from __future__ import annotations

import argparse
from pathlib import Path

from bootc_core import config as configs
from bootc_core.config import Config
from bootc_core.engine import sysroots
from bootc_core.hooks import manager
from bootc_core.models.sysroot import Sysroot


def load(arguments: argparse.Namespace) -> tuple[Config, manager.Plugins]:
    """The settings in force and the loaded plugins.

    Raises:
        ConfigError: the settings are malformed.
        PluginError: a plugin cannot be loaded.
    """
    settings = configs.load(arguments.config_root or Path("/"))
    return settings, manager.load(blocked=settings.blocked)


def sysroot_of(arguments: argparse.Namespace) -> Sysroot | None:
    """The sysroot that ``--sysroot`` names, or None for the booted host."""
    if arguments.sysroot is None:
        return None
    return sysroots.make_sysroot(arguments.sysroot, arguments.boot_dir, arguments.config_root)
