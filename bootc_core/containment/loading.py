"""Decides for each plugin that is not built in: refused, in this process, or in a child process."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from bootc_core.hooks import manager
from bootc_core.hooks.discovery import PluginSource
from bootc_core.hooks.markers import API


def provider(
    *,
    in_process: Collection[str] = (),
    fail_open: Collection[str] = (),
    fail_closed: Collection[str] = (),
    bounds: Any = None,
) -> Callable[[PluginSource], object]:
    """What ``manager.load`` calls for each plugin of others.

    Transports, storage backends and bootloaders run here; gates, participants, policies and observers in a child, unless root
    names the plugin in ``in_process``.
    """

    def provide(source: PluginSource) -> object:
        # not at the top: most hosts have no plugin of others, and status has a tenth of a second
        from bootc_core.containment import declared as declarations
        from bootc_core.containment import trust

        declared = declarations.read(source)
        trust.check(source, declared.path)
        if declared.provides:
            return manager.import_plugin(source)
        if declared.on_failure not in {"open", "closed"}:
            raise manager.broken(source, f"BOOTC_ON_FAILURE is {declared.on_failure!r}")
        here = source.name in in_process
        if not here:
            declarations.check(source, declared)
        elif declared.hidden or "bootc_around_phase" in declared.hooks:
            return manager.import_plugin(source)
        if declared.api != API:
            raise manager.broken(
                source,
                f"BOOTC_API is {declared.api!r}",
                f"install a version of {source.distribution} for plugin API {API}",
            )
        from bootc_core.containment.proxy import Contained

        says = True if source.name in fail_open else False if source.name in fail_closed else None
        return Contained(
            source,
            declared,
            module=manager.import_plugin(source) if here else None,
            fail_open=says,
            bounds=bounds,
        )

    return provide
