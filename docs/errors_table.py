"""Writes ``docs/errors.md`` from the code: every error reference with what it says and what helps.

usage: python docs/errors_table.py [--check]

A reference is the stable name of an error (``reference`` in its JSON form). Text in braces is filled in at run time.
``--check`` only tells, by its exit status, whether the page is up to date.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/errors.md"
HEAD = """# Errors

Made by `docs/errors_table.py` from the code; do not edit.

An error is one line on standard error (`error: what: expected …, found …`) and often a second (`hint: what to do`);
the exit status is 1, or 2 for a wrong command line. With `BOOTC_ERROR_FORMAT=json` it is one JSON object instead, whose
`reference` is listed here and whose `class` is the class of the catalogue of bad inputs: USE wrong request · CFG a file
of the administrator · NET network, retry helps · AUTH · NOTFOUND · INT damaged or ambiguous bytes · POL policy · CON
hostile or unsupported content · LIM a bound was hit · SPC space · IO · RO read-only · BUSY · HOOK · PLUG · STATE
recorded state · INTR stopped by a signal · ENV this machine cannot · BUG a defect of ours.

| reference | what it says | what helps |
|---|---|---|
"""


def text(node: ast.expr | None) -> str:
    """A string expression as a template."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            text(part) if isinstance(part, ast.Constant) else "{…}" for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return text(node.left) + text(node.right)
    if isinstance(node, ast.IfExp):
        return text(node.body) or text(node.orelse)
    return "{…}"


def collect() -> dict[str, list[tuple[str, str]]]:
    """Reference to (message, hint) pairs, in order of first appearance."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted([*ROOT.glob("bootc_core/**/*.py"), *ROOT.glob("plugins/*/bootc_*/**/*.py")]):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            reference = keywords.get("reference")
            if not isinstance(reference, ast.Constant) or not isinstance(reference.value, str):
                continue
            message = text(node.args[0]) if node.args else text(keywords.get("message"))
            pair = (message, text(keywords.get("hint")))
            if pair not in found[reference.value]:
                found[reference.value].append(pair)
    return found


def page() -> str:
    """The whole page."""
    rows = []
    for reference, pairs in sorted(collect().items()):
        says = "<br>".join(dict.fromkeys(message for message, _ in pairs if message.strip("{… }")))
        helps = "<br>".join(dict.fromkeys(hint for _, hint in pairs if hint.strip("{… }")))
        cells = [
            cell.replace("|", "\\|").replace("\n", " ")
            for cell in (says or "(see the message)", helps)
        ]
        rows.append(f"| `{reference}` | {cells[0]} | {cells[1]} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Write or check the page."""
    if "--check" in sys.argv:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
