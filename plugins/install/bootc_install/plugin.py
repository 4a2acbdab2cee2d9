"""The command ``bootc install``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl
from bootc_core.models.install import CommandOffer

if TYPE_CHECKING:
    from bootc_core.models.install import Services

BOOTC_API = 1


def _fill(parser: argparse.ArgumentParser) -> None:
    from bootc_install import parser as parsers

    parsers.fill(parser)


def _run(arguments: argparse.Namespace, services: Services) -> int:
    from bootc_install import command

    return command.run(arguments, services)


@hookimpl
def bootc_register_commands() -> Sequence[CommandOffer]:
    """``bootc install``."""
    return [CommandOffer("install", "Install an image to a disk or file system.", _fill, _run)]
