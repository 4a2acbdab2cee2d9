"""What the pages on plugins name exists, and their figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bootc_core import __version__, limits
from bootc_core.cli import parser as parsers
from bootc_core.config import fields_by_key
from bootc_core.containment.declared import CONTAINED
from bootc_core.testing import broken_plugins

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("plugins.md", "plugin-protocol.md", "events.md", "plugin-tutorial.md")


@pytest.mark.parametrize("page", PAGES)
def test_paths_settings_and_flags_exist(page):
    text = (DOCS / page).read_text()
    for name in re.findall(r"`((?:bootc_core|docs|tests|examples)/[\w/.-]+)`", text):
        assert (DOCS.parent / name).exists(), name
    for key in re.findall(r"`\[plugins\] ([\w-]+)", text):
        assert f"plugins.{key}" in fields_by_key(), key
    flags = set(parsers._known(parsers.build(__version__)))
    for words in re.findall(r"`[^`\n]*`", text):
        if words.startswith("`python"):
            continue
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", words):
            assert flag in flags or flag == "--check", flag


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ bootc (.*?)(?:\s+#.*)?$", (DOCS / "plugins.md").read_text(), re.M)
)
def test_commands_can_be_given(line):
    assert parsers.build(__version__).parse_args(line.split()).run


def test_bounds_are_the_codes():
    text = (DOCS / "plugin-protocol.md").read_text()
    for value in (
        f"{limits.CHILD_GATE_TIMEOUT_S:g} s",
        f"{limits.CHILD_VERIFY_TIMEOUT_S:g} s",
        f"{limits.CHILD_PARTICIPANT_TIMEOUT_S:g} s",
        f"{limits.CHILD_EVENTS_TIMEOUT_S:g} s",
        f"{limits.CHILD_MEMORY_BYTES // limits.GIB} GiB",
        f"{limits.CHILD_ANSWER_BYTES // limits.KIB} KiB",
        f"each of the {len(CONTAINED) - 1} hooks",
    ):
        assert value in text, value
    assert f"{limits.HOLD_MAX_S / 86400:g} days" in (DOCS / "plugins.md").read_text()
    tables = ("GATES", "TRANSPORTS", "POLICIES", "BOOTLOADERS", "SCRIPTS")
    count = sum(len(getattr(broken_plugins, name)) for name in tables)
    assert f"{count} plugins that are broken" in (DOCS / "plugin-tutorial.md").read_text()
    watchdog = (DOCS / "adr/0012-watchdog-ends-the-process.md").read_text()
    assert f"{limits.WATCHDOG_GRACE_S:g} s after its deadline" in watchdog
    assert f"after {limits.WATCHDOG_STALL_S:g} s" in watchdog
