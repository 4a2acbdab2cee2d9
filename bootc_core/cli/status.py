"""``bootc status``: no trio, no pydantic, no network; 100 ms in all."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from bootc_core.cli import common
from bootc_core.engine import sysroots
from bootc_core.errors import UsageError, printable
from bootc_core.host import environment, health
from bootc_core.host.environment import Environment
from bootc_core.models.host import HostStatus
from bootc_core.render import status as render
from bootc_core.render import stream

_NO_HOST = (Environment.CONTAINER, Environment.OTHER)


def _warn(message: str) -> None:
    stream.tell(sys.stderr, f"warning: {printable(message, 600)}\n")


def read(arguments: argparse.Namespace) -> HostStatus:
    """Status of the sysroot; empty where nothing is deployed.

    Raises:
        UnsupportedEnvironmentError: no ``--sysroot``, and the user may not look at the running host.
    """
    if arguments.sysroot is None and environment.detect() in _NO_HOST:
        return HostStatus()
    settings, plugins = common.load(arguments)
    sysroot = common.sysroot_of(arguments)
    storage = sysroots.open_storage(sysroot, plugins, settings)
    if storage is None:
        if not sysroot.path.exists():
            raise UsageError(
                f"{printable(str(sysroot.path))} does not exist",
                reference="no-sysroot",
                hint="bootc switch --sysroot DIR IMAGE makes one",
            )
        return HostStatus()
    failed = health.failed(sysroot)
    host = storage.read_host(_warn)
    return replace(host, failed_update=str(failed)) if failed else host


def status(arguments: argparse.Namespace) -> int:
    """Print the host in the wanted format."""
    if arguments.format_version not in {"0", "1"}:
        raise UsageError(
            f"Unsupported format version: {printable(arguments.format_version)}",
            reference="format-version",
        )
    form = arguments.format or ("json" if arguments.json else None)
    form = form or ("humanreadable" if sys.stdout.isatty() else "yaml")
    host = read(arguments)
    if arguments.booted:
        host = host.booted_only()
    if form == "json":
        sys.stdout.write(render.to_json(host))
    elif form == "yaml":
        sys.stdout.write(render.to_yaml(host))
    else:
        sys.stdout.write(render.to_text(host, verbose=arguments.verbose))
    return 0
