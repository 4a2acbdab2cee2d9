"""What the page for administrators says of the tests is what the tests count."""

from __future__ import annotations

from pathlib import Path

from plugins.signing.test_signing_conformance import CASES
from plugins.signing.test_signing_mutations import CHANGED

PAGE = Path(__file__).parents[2] / "docs/trust-and-signatures.md"


def test_the_counted_signatures():
    text = PAGE.read_text()
    for what, least in CHANGED.items():
        assert f"| {what} | {least:,} |\n" in text
    assert f"all {len(CASES)} bundles of sigstore's conformance suite" in text
