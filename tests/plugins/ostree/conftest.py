"""Hosts on the real libostree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import bootc_ostree.plugin
import pytest
from bootc_ostree import state

from bootc_core.models.boot import PresentEntry
from bootc_core.models.sysroot import Sysroot
from bootc_core.testing import System
from bootc_core.testing.harness import remove_tree


def deployment_of(sysroot: Sysroot, entry: PresentEntry) -> str | None:
    found = state.deployments(sysroot, [entry])
    return f"{found[0].checksum}.{found[0].serial}" if found else None


@pytest.fixture
def make_system(tmp_path: Path) -> Iterator[Callable[[], System]]:
    """Makes hosts below ``tmp_path``; in the end the immutable flag of deployments goes."""

    def make(name: str = "host") -> System:
        return System(
            tmp_path / name,
            backend=bootc_ostree.plugin,
            bootloader=bootc_ostree.plugin,
            virtual_time=False,
            deployment_of=deployment_of,
        )

    yield make
    for place in tmp_path.iterdir():
        remove_tree(place)


@pytest.fixture
def system(make_system: Callable[[], System]) -> System:
    return make_system()
