"""The tour of site hooks, run as it stands."""

from __future__ import annotations

import sys
from pathlib import Path

from bootc_hooks_dir.discover import POINTS
from support.console import matches, run_document

DOCUMENT = Path(__file__).parents[2] / "docs/site-hooks.md"


def test_it_runs_as_it_stands(tmp_path):
    assert run_document(DOCUMENT, tmp_path, str(Path(sys.executable).parent)) > 15


def test_every_point_is_in_it():
    text = DOCUMENT.read_text(encoding="utf-8")
    for point in POINTS:
        plain = point in {"pre-upgrade", "post-upgrade"}
        around = point.startswith(("before-", "after-")) and point != "after-boot"
        assert ("`before-PHASE/`" if around else f"`{point}{'' if plain else '/'}`") in text


def test_how_output_is_compared():
    assert matches("a ... c\n", "a b c\n")
    assert matches("a\n...\n", "a\nb\nc\n")
    assert matches("...\nz\n", "z\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("a ... c\n", "a b\nc\n")
