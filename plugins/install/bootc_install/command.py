"""``bootc install ACTION``: which module carries it out."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.fs import mounts

if TYPE_CHECKING:
    from bootc_core.models.install import Services

_ACTIONS: Final = {
    "to-disk": "bootc_install.to_disk:run",
    "to-filesystem": "bootc_install.to_filesystem:run",
    "to-existing-root": "bootc_install.to_filesystem:run",
    "finalize": "bootc_install.to_filesystem:finalize",
    "ensure-completion": "bootc_install.completion:run",
}
_MOUNTING: Final = frozenset({"to-disk", "to-filesystem", "to-existing-root"})


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
    if (
        arguments.action in _MOUNTING
        and os.geteuid() == 0
        and "BOOTC_SKIP_UNSHARE" not in os.environ
    ):
        mounts.unshare()  # what is mounted here is nobody else's, and goes with this process
    module, _, function = _ACTIONS[arguments.action].partition(":")
    status: int = getattr(import_module(module), function)(arguments, services)
    return status
