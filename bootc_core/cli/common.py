"""What commands share: configuration, plugins, the sysroot."""

from __future__ import annotations

import argparse
from pathlib import Path

from bootc_core import config as configs
from bootc_core.config import Config
from bootc_core.containment import loading
from bootc_core.engine import sysroots
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import UsageError, printable
from bootc_core.hooks import manager
from bootc_core.hooks.discovery import PluginSource
from bootc_core.host import live
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
    loaded = {info.source.name for info in plugins.infos if info.state == "loaded"}
    for place, names in (("required", settings.required), ("wanted", settings.wanted)):
        for name in (one for one in names if one not in loaded):
            source = PluginSource(name, "", "", "", "")
            plugins.infos.append(manager.PluginInfo(source, "missing", place=place))
    plugins.image_hooks = settings.image_hooks == "yes"
    return settings, plugins


def sysroot_of(arguments: argparse.Namespace, *, write: bool | None = False) -> Sysroot:
    """The sysroot that ``--sysroot`` names, else the running host's.

    The latter moves this process into a mount namespace of its own: to be called once, before any thread is started.

    Args:
        arguments: of the command line.
        write: whether the command changes the host; None: where its medium permits that.

    Raises:
        UsageError: ``--sysroot`` is no directory, or a flag makes no sense without it.
        UnsupportedEnvironmentError: without it, this is no host that was booted from an image, or the user may not.
        StorageError: the host is on a medium that cannot be written, or something cannot be mounted.
    """
    if arguments.sysroot is None:
        if arguments.boot_dir is not None:
            raise UsageError(
                "--boot-dir goes with --sysroot", hint="the running host's is found by itself"
            )
        return live.open_sysroot(write=write, config_root=arguments.config_root)
    return sysroots.make_sysroot(arguments.sysroot, arguments.boot_dir, arguments.config_root)


def existing(
    arguments: argparse.Namespace, *, write: bool | None = False
) -> tuple[Config, manager.Plugins, Storage]:
    """Settings, plugins, and the deployments that a command is about; see ``sysroot_of``.

    Raises:
        UsageError: nothing is deployed there.
    """
    settings, plugins = load(arguments)
    sysroot = sysroot_of(arguments, write=write)
    storage = sysroots.open_storage(sysroot, plugins, settings)
    if storage is None:
        raise UsageError(
            f"nothing is deployed in {printable(str(sysroot.path))}",
            reference="no-source",
            hint="bootc switch --sysroot DIR IMAGE deploys the first image",
        )
    return settings, plugins, storage
