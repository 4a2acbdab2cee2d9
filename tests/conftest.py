"""What holds for all tests: who may run them, and that in CI nothing is skipped by accident."""

from __future__ import annotations

import os
import re
from collections.abc import Generator

import pytest
from hypothesis import settings

# The only reasons for which a test may be skipped where CI=true: things that no package brings to a machine.
ALLOWED_SKIPS = (
    re.compile(r"the kernel has no fs-verity"),
    re.compile(r"the file system has no fs-verity"),
)

# The same examples everywhere, so that a failure is the change's and not the dice's.
settings.register_profile("bootc", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("bootc")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, make a skip that nobody allowed a failure."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not any(allowed.match(reason) for allowed in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped where CI=true, for a reason that tests/conftest.py does not allow: {reason}"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse(report)
    return report
