"""The suite counts because it fails: each deliberately broken backend is found by the test that is named for it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from bootc_core.errors import BootcError
from bootc_core.testing import System
from bootc_core.testing.broken import DEFECTS
from bootc_core.testing.contract import StorageContract


@pytest.mark.parametrize(
    ("backend", "test"), DEFECTS, ids=[f"{kind.__name__}-{test}" for kind, test in DEFECTS]
)
def test_the_suite_finds_it(backend, test, tmp_path):
    class Suite(StorageContract):
        def system(self, path: Path) -> System:
            return System(path, backend=backend())

        def etc(self, system: System) -> Path:
            return system.sysroot.path / "fake/deploy" / system.booting()[0] / "etc"

        def var(self, system: System) -> Path:
            return system.sysroot.path / "fake/var"

    with pytest.raises((AssertionError, BootcError)) as caught:
        getattr(Suite(), test)(tmp_path)
    if isinstance(caught.value, AssertionError):
        assert str(caught.value), "a failure of the suite says what is wrong"


def test_each_defect_is_a_backend_and_each_test_exists():
    for kind, test in DEFECTS:
        assert inspect.getdoc(kind)
        assert test in vars(StorageContract)
