"""``bootc plugins list``."""

from __future__ import annotations

import argparse
import json
import sys

from bootc_core.cli import common
from bootc_core.cli.hooks import image_hooks
from bootc_core.config import Config
from bootc_core.hooks.calls import Hooks
from bootc_core.hooks.manager import Plugins
from bootc_core.hooks.markers import API


def list_plugins(arguments: argparse.Namespace) -> int:
    """Print every plugin with its state, version, origin and hooks."""
    settings, plugins = common.load(arguments)
    if arguments.order:
        return _order(settings, plugins, arguments.json)
    if arguments.json:
        value = [
            {
                "name": info.source.name,
                "state": info.state,
                "runs": info.place,
                "version": info.source.version,
                "distribution": info.source.distribution,
                "module": info.source.module,
                "location": info.source.location,
                "builtin": info.source.builtin,
                "api": API,
                "hooks": list(info.hooks),
            }
            for info in plugins.infos
        ]
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return 0
    rows = [("PLUGIN", "STATE", "VERSION", "API", "ORIGIN", "HOOKS")]
    apart = []
    for info in plugins.infos:
        origin = (
            "built-in"
            if info.source.builtin
            else info.place
            if info.state == "missing"
            else f"{info.source.distribution} in {info.source.location}"
        )
        hooks = ", ".join(name.removeprefix("bootc_") for name in info.hooks)
        if info.state == "loaded" and info.place != "in process":
            apart.append(f"{info.source.name} runs {info.place}\n")
        api = str(API) if info.state == "loaded" else ""  # another one is not loaded
        rows.append((info.source.name, info.state, info.source.version, api, origin, hooks))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        sys.stdout.write("  ".join((*cells, row[5])).rstrip() + "\n")
    sys.stdout.write("".join(apart))
    return 0


def _why(hook: str, settings: Config) -> str:
    """Who of those that have the hook is called, and in which order."""
    if hook.startswith("bootc_register_"):
        return "once after loading, each, alphabetically"
    if hook in {"bootc_resolve", "bootc_fetch"}:
        return "the one that offers the reference's transport"
    if hook == "bootc_install_bootloader":
        return f"the bootloader of an installation: {settings.bootloader} (boot.bootloader, --bootloader)"
    if hook == "bootc_switch_boot":
        return f"the sysroot's bootloader; a new one: {settings.bootloader} (boot.bootloader, --bootloader)"
    if hook in {
        "bootc_stage",
        "bootc_finalize",
        "bootc_rollback",
        "bootc_discard",
        "bootc_prune",
        "bootc_repair",
    }:
        return f"the backend that claims the sysroot; a new one: {settings.backend} (storage.backend, --backend)"
    if hook == "bootc_verify":
        return "all at once; any refusal refuses, nobody's acceptance refuses"
    if hook == "bootc_gate":
        return "all at once; the strictest answer counts"
    if hook == "bootc_around_phase":
        return "each, entered alphabetically, left in reverse"
    if hook == "bootc_on_event":
        return "each on a thread or process of its own"
    return "each after the other, alphabetically; the first error ends it"


def _order(settings: Config, plugins: Plugins, as_json: bool) -> int:
    places = {info.source.name: info.place for info in plugins.infos}
    out = [info.source.name for info in plugins.infos if info.state != "loaded"]
    value = []
    for hook, names in Hooks(plugins).order():
        value.append({"hook": hook, "why": _why(hook, settings), "plugins": names})
    if as_json:
        sys.stdout.write(
            json.dumps(
                {"hooks": value, "image_hooks": plugins.image_hooks, "left_out": out}, indent=2
            )
            + "\n"
        )
        return 0
    for hook, names in Hooks(plugins).order():
        sys.stdout.write(f"{hook}: {_why(hook, settings)}\n")
        for number, name in enumerate(names, 1):
            where = "" if places.get(name) == "in process" else f" ({places.get(name, '')})"
            sys.stdout.write(f"  {number}. {name}{where}\n")
        if hook == "bootc_gate" and plugins.site_hooks:
            sys.stdout.write(f"  hooks of images: {image_hooks(plugins)}\n")
    for name in out:
        sys.stdout.write(f"not called: {name}\n")
    return 0
