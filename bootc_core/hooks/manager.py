"""Loads the plugins, checks them against the contract, and knows who offers what.

Order: plugins are registered in reverse alphabetical order, so that hooks call them alphabetically (pluggy calls the
last registered first). Nothing is skipped silently: a plugin that cannot be loaded stops the program, since it may be the
one that verifies; an administrator blocks it by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import pluggy

from bootc_core.errors import PluginError, printable
from bootc_core.hooks import specs
from bootc_core.hooks.discovery import PluginSource, find_plugins
from bootc_core.hooks.markers import API, PROJECT
from bootc_core.hooks.offers import (
    BackendOffer,
    BootloaderOffer,
    PolicyOffer,
    SiteHooksOffer,
    TransportOffer,
)
from bootc_core.models.install import CommandOffer

if TYPE_CHECKING:
    from bootc_core.models.sysroot import Sysroot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Offered(Generic[T]):
    """Something offered, and the plugin that offers it."""

    plugin: str
    offer: T


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One line of ``bootc plugins list``."""

    source: PluginSource
    state: Literal["loaded", "blocked", "left out", "missing"]
    hooks: tuple[str, ...] = ()
    place: str = "in process"  # or in a child process; of a missing one: "required" or "wanted"


@dataclass(slots=True)
class Plugins:
    """The loaded plugins with what they offer, by name."""

    manager: pluggy.PluginManager
    infos: list[PluginInfo] = field(default_factory=list)
    transports: dict[str, Offered[TransportOffer]] = field(default_factory=dict)
    backends: dict[str, Offered[BackendOffer]] = field(default_factory=dict)
    bootloaders: dict[str, Offered[BootloaderOffer]] = field(default_factory=dict)
    policies: dict[str, Offered[PolicyOffer]] = field(default_factory=dict)
    site_hooks: dict[str, Offered[SiteHooksOffer]] = field(default_factory=dict)
    commands: dict[str, Offered[CommandOffer]] = field(default_factory=dict)
    hold_bounds: dict[str, float] = field(default_factory=dict)  # seconds, by plugin
    image_hooks: bool = False  # may images say that a host does not suit them?

    def backend_of(self, sysroot: Sysroot) -> Offered[BackendOffer] | None:
        """The one backend that claims ``sysroot``, or None.

        Raises:
            PluginError: two claim it.
        """
        claims = [offered for offered in self.backends.values() if offered.offer.claims(sysroot)]
        if len(claims) > 1:
            raise PluginError(
                f"two storage backends claim {sysroot.path}",
                reference="plugin-conflict",
                found=" and ".join(f"{one.offer.name} (plugin {one.plugin})" for one in claims),
                hint='block one of them in the configuration: [plugins] blocked = ["NAME"]',
            )
        return claims[0] if claims else None

    def backend(self, name: str) -> Offered[BackendOffer]:
        """The backend called ``name``.

        Raises:
            PluginError: it is not installed; lists those that are.
        """
        return _choose(self.backends, name, "storage backend")

    def bootloader(self, name: str) -> Offered[BootloaderOffer]:
        """The bootloader called ``name``.

        Raises:
            PluginError: it is not installed; lists those that are.
        """
        return _choose(self.bootloaders, name, "bootloader")

    def transport(self, name: str) -> Offered[TransportOffer]:
        """The plugin that serves the transport ``name``.

        Raises:
            PluginError: none does; lists those that are served.
        """
        return _choose(self.transports, name, "transport")


def _choose(offers: dict[str, Offered[T]], name: str, what: str) -> Offered[T]:
    if (offered := offers.get(name)) is None:
        raise PluginError(
            f"no plugin provides the {what} {printable(name)}",
            reference="no-provider",
            expected="one of " + (", ".join(sorted(offers)) or "none: no such plugin is installed"),
            hint="install a plugin package that provides it, or see: bootc plugins list",
        )
    return offered


def new_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks and no plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(specs)
    return manager


def broken(source: PluginSource, why: str, hint: str | None = None) -> PluginError:
    """The error for a plugin that does not fit the contract."""
    return PluginError(
        f"plugin {printable(source.name)} cannot be loaded",
        reference="plugin-broken",
        expected=f"a plugin for API {API} in {source.module} ({source.distribution} {source.version})",
        found=printable(why, 600),
        hint=hint
        or f'update or uninstall the package, or block it: [plugins] blocked = ["{printable(source.name)}"]',
    )


def import_plugin(source: PluginSource) -> ModuleType:
    """The plugin's module, in this process.

    Raises:
        PluginError: it cannot be imported, or was written for another API.
    """
    try:
        module = import_module(source.module)
    except Exception as problem:
        raise broken(source, f"{type(problem).__name__}: {problem}") from problem
    number = getattr(module, "BOOTC_API", None)
    if number != API:
        raise broken(
            source,
            f"BOOTC_API is {number!r}",
            f"install a version of {source.distribution} for plugin API {API}",
        )
    return module


def register(manager: pluggy.PluginManager, plugin: Any, source: PluginSource) -> tuple[str, ...]:
    """Register ``plugin`` under its name after checking its hooks; the names of its hooks.

    Raises:
        PluginError: unknown hook, unknown argument, wrong colour (``async`` or not), or the name is taken.
    """
    try:
        manager.register(plugin, name=source.name)
    except (pluggy.PluginValidationError, ValueError) as problem:
        raise broken(source, str(problem)) from problem
    hooks = []
    for caller in manager.get_hookcallers(plugin) or ():
        hooks.append(caller.name)
        spec = getattr(specs, caller.name, None)
        if spec is None:
            raise broken(
                source,
                f"{caller.name} is not a hook",
                "check the spelling: docs/hooks.md lists all hooks",
            )
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            wanted = inspect.iscoroutinefunction(spec)
            if inspect.iscoroutinefunction(implementation.function) != wanted:
                raise broken(
                    source, f"{caller.name} must be {'async def' if wanted else 'a plain def'}"
                )
            if implementation.hookwrapper or implementation.wrapper:
                raise broken(source, f"{caller.name} is a wrapper; use bootc_around_phase")
    return tuple(sorted(hooks))


def _collect(
    plugins: Plugins,
    hook: str,
    kind: type[T],
    into: dict[str, Offered[T]],
    names: Callable[[T], Iterable[str]],
) -> None:
    caller = getattr(plugins.manager.hook, hook)
    for implementation in reversed(caller.get_hookimpls()):
        try:
            offers: Sequence[Any] = implementation.function()
        except Exception as problem:
            raise PluginError(
                f"plugin {implementation.plugin_name} broke in {hook}",
                reference="plugin-broken",
                found=printable(f"{type(problem).__name__}: {problem}"),
            ) from problem
        for offer in offers:
            if not isinstance(offer, kind):
                raise PluginError(
                    f"plugin {implementation.plugin_name} answered {hook} with something else",
                    reference="plugin-broken",
                    expected=kind.__name__,
                    found=type(offer).__name__,
                )
            for name in names(offer):
                if (other := into.get(name)) is not None:
                    raise PluginError(
                        f"two plugins provide {printable(name)}",
                        reference="plugin-conflict",
                        found=f"{other.plugin} and {implementation.plugin_name} ({hook})",
                        hint='block one of them: [plugins] blocked = ["NAME"]',
                    )
                into[name] = Offered(implementation.plugin_name, offer)


def collect_offers(plugins: Plugins) -> Plugins:
    """Ask all plugins once what they offer; fills and returns ``plugins``.

    Raises:
        PluginError: two plugins offer one name, or one answers nonsense.
    """
    named: tuple[tuple[str, type[Any], dict[str, Any]], ...] = (
        ("bootc_register_transports", TransportOffer, plugins.transports),
        ("bootc_register_backends", BackendOffer, plugins.backends),
        ("bootc_register_bootloaders", BootloaderOffer, plugins.bootloaders),
        ("bootc_register_policies", PolicyOffer, plugins.policies),
        ("bootc_register_site_hooks", SiteHooksOffer, plugins.site_hooks),
        ("bootc_register_commands", CommandOffer, plugins.commands),
    )
    for hook, kind, into in named:
        _collect(
            plugins, hook, kind, into, lambda offer: getattr(offer, "transports", (offer.name,))
        )
    return plugins


def load(
    *,
    blocked: Iterable[str] = (),
    sources: Sequence[PluginSource] | None = None,
    provide: Callable[[PluginSource], object] | None = None,
    safe: bool = False,
) -> Plugins:
    """Find, import, check and register all installed plugins except the blocked ones.

    Args:
        blocked: plugin names; their modules are not even imported.
        sources: instead of what is installed (tests).
        provide: makes the plugin of a source that is not built in, e.g. a stand-in for one in a child process; None: import it.
        safe: built-in plugins only, and of these none that runs code of others (``BOOTC_SAFE_MODE = False``).

    Raises:
        PluginError: any of them cannot be loaded, or two conflict.
    """
    block = frozenset(blocked)
    plugins = Plugins(new_manager())
    for source in reversed(find_plugins() if sources is None else sources):
        if source.name in block:
            plugins.infos.append(PluginInfo(source, "blocked"))
            continue
        if safe and not source.builtin:
            plugins.infos.append(PluginInfo(source, "left out"))
            continue
        plugin = import_plugin(source) if source.builtin or not provide else provide(source)
        if safe and not getattr(plugin, "BOOTC_SAFE_MODE", True):
            plugins.infos.append(PluginInfo(source, "left out"))
            continue
        hooks = register(plugins.manager, plugin, source)
        place = getattr(plugin, "place", "in process")
        plugins.infos.append(PluginInfo(source, "loaded", hooks, place))
    plugins.infos.reverse()
    return collect_offers(plugins)
