"""Every block of the tutorial is a piece of the example that a test installs, or of the contract suite's own header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bootc_core.testing import contract

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/plugin-tutorial.md").read_text(encoding="utf-8")
EXAMPLE = {
    path: path.read_text(encoding="utf-8")
    for pattern in ("*.toml", "*/*.py")
    for path in (ROOT / "examples/third_party_plugin").glob(pattern)
}
BLOCKS = re.findall(r"^```(python|toml)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_blocks_are_pieces_of_the_example(number):
    kind, block = BLOCKS[number]
    suffix = {"python": ".py", "toml": ".toml"}[kind]
    assert any(block in text for path, text in EXAMPLE.items() if path.suffix == suffix), block


def test_there_are_blocks():
    assert len(BLOCKS) >= 9


def test_the_contract_is_shown_as_it_says_itself():
    (block,) = re.findall(r"^```python contract\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in contract.__doc__.splitlines()]
    for line in block.splitlines():
        assert line.strip() in lines


def test_what_it_names_exists():
    for name in re.findall(r"`((?:bootc_core|docs|examples|plugins)/[\w/.]+)`", DOCUMENT):
        assert (ROOT / name).exists(), name
