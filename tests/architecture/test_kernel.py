"""The kernel of the framework stays readable in one sitting, and neutral."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL = [
    path for part in ("hooks", "engine") for path in (ROOT / "bootc_core" / part).glob("*.py")
]


def code_lines(path):
    """Lines with code on them: no blank ones, comments or docstrings (of which the hooks' are the reference)."""
    source = path.read_text()
    prose = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and body
        ):
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                prose |= set(range(first.lineno, first.end_lineno + 1))
    return [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if number not in prose and line.strip() and not line.strip().startswith("#")
    ]


def test_it_is_small():
    assert sum(len(code_lines(path)) for path in KERNEL) < 1800


def test_it_names_no_backend_transport_or_bootloader():
    # rpm-ostree is named in one message to administrators, which is the original's
    words = re.compile(
        r"\b(composefs|systemd[-_]boot|grub|registry|docker|ostree(?! modifications| reset))\b"
    )
    for path in KERNEL:
        code = re.sub(r'"""(?:.|\n)*?"""', "", path.read_text())
        found = [
            match.group()
            for line in code.splitlines()
            for match in words.finditer(line.partition("#")[0])
        ]
        assert found == [], path


def test_hooks_are_called_in_one_place():
    for path in (ROOT / "bootc_core").rglob("*.py"):
        if path.name not in {"calls.py", "manager.py"}:
            assert ".hook." not in path.read_text(), path


def test_no_unfinished_places():
    # spelt in pieces, or this test would find itself
    words = re.compile(
        "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error"))
    )
    for part in ("bootc_core", "plugins", "examples"):
        for path in (ROOT / part).rglob("*.py"):
            assert not words.search(path.read_text()), path


def test_every_public_name_of_the_package_exists():
    import bootc_core

    for name in bootc_core.__all__:
        assert getattr(bootc_core, name) is not None
