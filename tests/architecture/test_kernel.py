"""The kernel of the framework stays readable in one sitting, and neutral."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL = [
    path for part in ("hooks", "engine") for path in (ROOT / "bootc_core" / part).glob("*.py")
]


def test_it_is_small():
    lines = [line for path in KERNEL for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) < 2000


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
