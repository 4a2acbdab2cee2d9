"""The backend on the real libostree, which writes its boot entries itself."""

from __future__ import annotations

from pathlib import Path

import bootc_ostree.plugin
import pytest
from bootc_ostree import state

from bootc_core.models.boot import PresentEntry
from bootc_core.models.sysroot import Sysroot
from bootc_core.testing import System
from bootc_core.testing.contract import StorageContract
from bootc_core.testing.harness import remove_tree


def deployment_of(sysroot: Sysroot, entry: PresentEntry) -> str | None:
    found = state.deployments(sysroot, [entry])
    return f"{found[0].checksum}.{found[0].serial}" if found else None


@pytest.mark.root
@pytest.mark.real
class TestOstree(StorageContract):
    kill_every = 5
    # libostree syncs on its own, in C: the ledger of our durable steps cannot see it
    test_names_are_durable_before_the_switch = None

    @pytest.fixture(autouse=True)
    def _mutable_in_the_end(self, tmp_path):
        yield
        for place in tmp_path.iterdir():
            remove_tree(place)

    def system(self, path: Path) -> System:
        return System(
            path,
            backend=bootc_ostree.plugin,
            bootloader=bootc_ostree.plugin,
            virtual_time=False,
            deployment_of=deployment_of,
        )

    def etc(self, system: System) -> Path:
        return system.sysroot.path / "ostree/deploy/default/deploy" / system.booting()[0] / "etc"

    def var(self, system: System) -> Path:
        return system.sysroot.path / "ostree/deploy/default/var"
