"""The embedded backend on the bootloader that ships with it."""

from __future__ import annotations

from pathlib import Path

import bootc_composefs.plugin
import bootc_systemd_boot.plugin

from bootc_core.testing import System
from bootc_core.testing.contract import StorageContract


class TestComposefs(StorageContract):
    kill_every = 7  # imports run in worker processes: each point costs about a second

    def system(self, path: Path) -> System:
        return System(
            path,
            backend=bootc_composefs.plugin,
            bootloader=bootc_systemd_boot.plugin,
            virtual_time=False,
        )

    def etc(self, system: System) -> Path:
        return system.sysroot.path / "state/deploy" / system.booting()[0] / "etc"

    def var(self, system: System) -> Path:
        return system.sysroot.path / "state/os/default/var"
