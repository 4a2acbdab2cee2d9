"""``bootc install ACTION``: which module carries it out."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bootc_core.models.install import Services

_ACTIONS: Final = {
    "to-disk": "bootc_install.to_disk",
}


def run(arguments: argparse.Namespace, services: Services) -> int:
    """Carry out the action; its exit status.

    Raises:
        BootcError: see the actions.
    """
    if arguments.action == "print-configuration":
        from bootc_install import config

        found = config.load(getattr(arguments, "config_root", None) or Path("/"))
        sys.stdout.write(config.to_json(found, everything=arguments.all) + "\n")
        return 0
    module = import_module(_ACTIONS[arguments.action])
    status: int = module.run(arguments, services)
    return status
