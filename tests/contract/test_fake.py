"""The fakes keep the contract that real backends keep."""

from __future__ import annotations

from pathlib import Path

from bootc_core.testing import System
from bootc_core.testing.contract import StorageContract


class TestFake(StorageContract):
    def system(self, path: Path) -> System:
        return System(path)

    def etc(self, system: System) -> Path:
        return system.sysroot.path / "fake/deploy" / system.booting()[0] / "etc"

    def var(self, system: System) -> Path:
        return system.sysroot.path / "fake/var"
