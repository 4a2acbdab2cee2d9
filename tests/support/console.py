"""Runs the ``console`` blocks of a document, one shell after the other in one directory, and compares what they print.

$ command            > continues it
expected output      ... stands for anything, within a line or for whole lines
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Command:
    text: str
    expected: str
    line: int


def commands(document: str) -> list[Command]:
    """The commands of all ``console`` blocks, in order."""
    found: list[Command] = []
    inside = False
    for number, line in enumerate(document.splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif not inside:
            continue
        elif line.startswith("$ "):
            found.append(Command(line[2:] + "\n", "", number))
        elif line.startswith("> ") or line == ">":
            found[-1].text += line[2:] + "\n"
        else:
            found[-1].expected += line + "\n"
    return found


def matches(expected: str, found: str) -> bool:
    """Equal, ``...`` standing for anything."""
    pattern = re.escape(expected).replace(re.escape("...\n"), "(?:.*\n)*").replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, found) is not None


def run_document(path: Path, place: Path, search: str) -> int:
    """Run everything in ``place``; the number of commands. AssertionError: what differs, with its line."""
    found = commands(path.read_text(encoding="utf-8"))
    environment = {**os.environ, "PATH": f"{search}:{os.environ['PATH']}", "NO_COLOR": "1"}
    for command in found:
        done = subprocess.run(
            ["/bin/bash", "-c", command.text],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        assert matches(command.expected, done.stdout), (
            f"{path.name}:{command.line}: $ {command.text}"
            f"--- expected\n{command.expected}--- found (status {done.returncode})\n{done.stdout}"
        )
    return len(found)
