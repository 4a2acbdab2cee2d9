"""Writes ``docs/hooks.md`` from the code: the specifications, what hooks receive, and the events.

    python docs/generate.py            write
    python docs/generate.py --check    exit with status 1 if the file is not what would be written

Nothing is imported but read as source, so that comments that group the hooks can be used as well.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "bootc_core"
TARGET = ROOT / "docs/hooks.md"

_HEAD = """\
# Hooks

Made by `docs/generate.py` from `bootc_core/hooks/specs.py`; a test fails when the two differ. The
plugin API is number {api}: a plugin says `BOOTC_API = {api}`.

{module}

A plugin is a module that an entry point of group `bootc.plugins` names. `docs/plugin-tutorial.md`
builds one; `docs/site-hooks.md` shows the way without a package. `bootc plugins list` shows what is
loaded.

"""


def _source(path: str) -> tuple[str, ast.Module]:
    text = (CORE / path).read_text(encoding="utf-8")
    return text, ast.parse(text)


def _markdown(doc: str) -> str:
    """A docstring as Markdown: double backticks to single ones, Google sections to lists."""
    doc = re.sub(r"``(.+?)``", r"`\1`", doc)
    lines: list[str] = []
    section = False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Raises|Attributes|Returns):", line.strip()):
            section = True
            lines += [f"{line.strip()[:-1]}:", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            name, _, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if rest else f"- {name}")
        elif section and line.strip():
            lines[-1] += " " + line.strip()
        else:
            section = section and not line.strip()
            lines.append(line)
    return "\n".join(lines).strip()


def _cleaned(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    doc = ast.get_docstring(node)
    if not doc:
        name = getattr(node, "name", "a module")
        raise SystemExit(f"{name} has no docstring, and it is documentation")
    return _markdown(doc)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = ", ".join(
        f"{one.arg}: {ast.unparse(one.annotation)}" for one in node.args.args if one.annotation
    )
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    answer = ast.unparse(node.returns) if node.returns else "None"
    line = f"{word} {node.name}({arguments}) -> {answer}"
    if len(line) <= 100:
        return line
    parts = ",\n".join(f"    {part}" for part in arguments.split(", "))
    return f"{word} {node.name}(\n{parts},\n) -> {answer}"


def _hooks() -> Iterator[str]:
    text, tree = _source("hooks/specs.py")
    groups = {
        number: match[1].strip()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := re.match(r"# --- (.+?) -{3,}$", line))
    }
    shown: set[int] = set()
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for number, title in groups.items():
            if number < node.lineno and number not in shown:
                shown.add(number)
                name, _, rest = title.partition(": ")
                yield f"## {name.capitalize()}\n\n{rest[:1].upper()}{rest[1:]}.\n"
        yield f"### `{node.name}`\n\n```python\n{_signature(node)}\n```\n\n{_cleaned(node)}\n"


def _classes(path: str, *, skip: tuple[str, ...] = ()) -> Iterator[ast.ClassDef]:
    for node in _source(path)[1].body:
        if isinstance(node, ast.ClassDef) and node.name not in skip:
            yield node


def _fields(node: ast.ClassDef) -> list[str]:
    return [
        f"{one.target.id}: {ast.unparse(one.annotation)}"
        for one in node.body
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and "ClassVar" not in ast.unparse(one.annotation)
    ]


def _values() -> Iterator[str]:
    yield "## What hooks receive and answer\n"
    for path, names in (
        ("models/context.py", ("Context", "ImageSummary", "Phase", "Operation", "SignatureMode")),
        ("models/verdict.py", ("Proceed", "Hold", "Deny")),
    ):
        for node in _classes(path):
            if node.name not in names:
                continue
            yield f"### `{node.name}`\n\n{_cleaned(node)}\n"
            members = [
                ast.literal_eval(one.value) for one in node.body if isinstance(one, ast.Assign)
            ]
            if members and all(isinstance(member, str) for member in members):
                yield "Values: " + ", ".join(f"`{member}`" for member in members) + ".\n"
            elif fields := _fields(node):
                yield "```python\n" + "\n".join(fields) + "\n```\n"
    yield (
        "A site script gets the context as the JSON object that these fields make. The other values "
        "(`FetchedImage`, `VerifiedImage`, `StagedDeployment`, `BootPlan`, the offers) are dataclasses of\n"
        "`bootc_core.models` and `bootc_core.hooks.offers`, documented there.\n"
    )


def _events() -> Iterator[str]:
    yield "## Events\n"
    yield (
        "| event | fields beside `transaction` | meaning |\n|---|---|---|\n"
        + "\n".join(
            f"| `{_name(node)}` | {_names(node)} | {' '.join(_cleaned(node).split())} |"
            for node in _classes("models/events.py", skip=("Event",))
        )
        + "\n"
    )


def _names(node: ast.ClassDef) -> str:
    return ", ".join("`" + field.partition(":")[0] + "`" for field in _fields(node))


def _name(node: ast.ClassDef) -> str:
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "name" and one.value:
            return str(ast.literal_eval(one.value))
    raise SystemExit(f"the event {node.name} has no name")


def _api() -> int:
    for node in _source("hooks/markers.py")[1].body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "API" and node.value:
            return int(ast.literal_eval(node.value))
    raise SystemExit("hooks/markers.py has no API number")


def hooks_md() -> str:
    """The whole document."""
    module = _cleaned(_source("hooks/specs.py")[1]).replace("This file is the contract; ", "")
    module = re.sub(r"\s*`docs/hooks.md` is made from it\.", "", module)
    head = _HEAD.format(api=_api(), module=module)
    return head + "\n".join([*_hooks(), *_values(), *_events()])


def main(arguments: list[str]) -> int:
    """Write or check."""
    text = hooks_md()
    if "--check" in arguments:
        found = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if found != text:
            sys.stderr.write("docs/hooks.md is out of date: run python docs/generate.py\n")
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
