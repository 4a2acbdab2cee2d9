"""Fixtures for a plugin's tests, and the report that ``bootc plugins check`` makes a certificate of.

# conftest.py
pytest_plugins = ["bootc_core.testing.pytest_plugin"]

def test_it(bootc_system):
    system = bootc_system(plugins={"mine": my_plugin})
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootc_core.testing.contract import StorageContract
from bootc_core.testing.contracts import (
    BootloaderContract,
    GateContract,
    PolicyContract,
    SiteHookContract,
    TransportContract,
)
from bootc_core.testing.harness import System
from bootc_core.testing.recorder import Recorder

SUITES = (
    StorageContract,
    TransportContract,
    PolicyContract,
    BootloaderContract,
    GateContract,
    SiteHookContract,
)


@pytest.fixture
def bootc_system(tmp_path: Path) -> Callable[..., System]:
    """Makes hosts: ``bootc_system(plugins={"mine": plugin})``; the arguments are those of ``System``."""
    count = 0

    def make(**options: Any) -> System:
        nonlocal count
        count += 1
        return System(tmp_path / f"host-{count}", **options)

    return make


@pytest.fixture
def bootc_recorder() -> Recorder:
    """A plugin that implements every hook and writes each call down."""
    return Recorder()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--bootc-report FILE``."""
    parser.addoption("--bootc-report", metavar="FILE", help="write outcomes by suite as JSON")


class _Report:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.suites: dict[str, dict[str, list[str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report: pytest.TestReport = yield
        kind = getattr(item, "cls", None)
        names = [suite.__name__ for suite in SUITES if kind and issubclass(kind, suite)]
        if report.when == "call" or report.outcome != "passed":
            for name in names or ["own tests"]:
                group = self.suites.setdefault(name, {})
                tests = group.setdefault(report.outcome, [])
                if report.nodeid not in tests:
                    tests.append(report.nodeid)
        return report

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.suites), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Register the report where one is wanted."""
    if path := config.getoption("--bootc-report"):
        config.pluginmanager.register(_Report(Path(path)), "bootc-report")
