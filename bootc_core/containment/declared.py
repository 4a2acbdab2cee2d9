"""What a plugin module declares, read from its source: none of its code runs in this process for that.

A module that shall run in a child process says all it has to at its top level, which is the style for plugin modules anyhow:
``BOOTC_API``, ``BOOTC_ON_FAILURE`` and functions decorated with ``hookimpl``. What cannot be seen so is refused, never guessed.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import PluginError
from bootc_core.hooks.discovery import PluginSource
from bootc_core.hooks.manager import broken

PARTICIPANTS: Final = (
    *(
        f"bootc_{when}_{phase}"
        for phase in ("fetch", "verify", "stage", "finalize", "rollback")
        for when in ("before", "after")
    ),
    "bootc_after_boot",
)
CONTAINED: Final = frozenset(
    {
        "bootc_register_policies",
        "bootc_gate",
        "bootc_verify",
        "bootc_on_event",
        *PARTICIPANTS,
    }
)
"""Hooks that a child process can answer."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A plugin module as its source says.

    Attributes:
        path: the source file.
        api: ``BOOTC_API``.
        on_failure: ``open`` or ``closed``: what a failure of it means.
        hooks: hook to whether it is ``async``.
        hidden: names of hooks that the module gets from elsewhere.
    """

    path: Path
    api: Any
    on_failure: str = "closed"
    hooks: dict[str, bool] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    @property
    def provides(self) -> bool:
        """Is it a transport, storage backend or bootloader, or has other hooks that only work in this process?"""
        return bool(set(self.hooks) - CONTAINED - {"bootc_around_phase"})


def locate(module: str, search: list[str] | None = None) -> Path | None:
    """The source file of a module, found as Python finds it, without importing the packages above it."""
    path = search
    found: Path | None = None
    parts = module.split(".")
    for depth in range(len(parts)):
        name = ".".join(parts[: depth + 1])
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
            if spec is not None:
                break
        else:
            return None
        found = Path(spec.origin) if spec.origin and spec.has_location else None
        path = (
            list(spec.submodule_search_locations)
            if spec.submodule_search_locations is not None
            else []
        )
    return found


def _is_hookimpl(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        node = node.func
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name == "hookimpl"


def parse(text: str, path: Path) -> Declared:
    """What the source ``text`` declares.

    Raises:
        SyntaxError: it is no Python.
    """
    api: Any = None
    on_failure = "closed"
    hooks: dict[str, bool] = {}
    hidden: list[str] = []
    for node in ast.parse(text).body:
        match node:
            case ast.AsyncFunctionDef() | ast.FunctionDef():
                if any(_is_hookimpl(one) for one in node.decorator_list):
                    hooks[node.name] = isinstance(node, ast.AsyncFunctionDef)
                elif node.name.startswith("bootc_"):
                    hidden.append(node.name)
            case ast.Import() | ast.ImportFrom():
                names = [alias.asname or alias.name for alias in node.names]
                hidden += [name for name in names if name == "*" or _like_hook(name)]
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=value)
            ):
                constant = value.value if isinstance(value, ast.Constant) else None
                if name == "BOOTC_API":
                    api = constant
                elif name == "BOOTC_ON_FAILURE":
                    on_failure = str(constant)
                elif _like_hook(name):
                    hidden.append(name)
            case ast.If() | ast.Try() | ast.For() | ast.While() | ast.With():
                hidden += [
                    inner.name
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                    and _like_hook(inner.name)
                ]
            case _:
                pass
    return Declared(path, api, on_failure, hooks, tuple(hidden))


def _like_hook(name: str) -> bool:
    return name.startswith(("bootc_before", "bootc_after", "bootc_on_", "bootc_register_")) or (
        name in CONTAINED
    )


def read(source: PluginSource) -> Declared:
    """What the plugin's module declares.

    Raises:
        PluginError: it cannot be found or read.
    """
    search = None
    if source.location and source.location not in sys.path:
        search = [source.location, *sys.path]
    try:
        path = locate(source.module, search)
    except Exception as problem:  # a finder of somebody
        raise broken(source, f"{type(problem).__name__}: {problem}") from problem
    if path is None or path.suffix != ".py":
        raise broken(source, f"the source of module {source.module} is not to be found")
    try:
        with path.open("rb") as file:
            data = file.read(limits.PLUGIN_SOURCE_BYTES)
        return parse(data.decode(), path)
    except (OSError, ValueError, SyntaxError, RecursionError) as problem:
        raise broken(source, f"{type(problem).__name__}: {problem}") from problem


def check(source: PluginSource, declared: Declared) -> None:
    """Refuse what a child process cannot do or nobody can see, with the remedy.

    Raises:
        PluginError: names the hook.
    """
    remedy = f'let it run in this process: [plugins] in-process = ["{source.name}"]'
    if declared.hidden:
        raise broken(
            source,
            f"{declared.hidden[0]} is not a function with @hookimpl at the top level of {declared.path.name}",
            f"define it there, or {remedy}",
        )
    if "bootc_around_phase" in declared.hooks:
        raise PluginError(
            f"plugin {source.name} wraps phases, which only works in this process",
            reference="plugin-in-process",
            found=f"bootc_around_phase in {declared.path}",
            hint=f"if root trusts it like this program, {remedy}; or block it",
        )
