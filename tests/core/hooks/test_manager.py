import sys
import types

import pytest

from bootc_core import hookimpl
from bootc_core.errors import PluginError
from bootc_core.hooks import manager
from bootc_core.hooks.discovery import PluginSource
from bootc_core.hooks.offers import PolicyOffer


@pytest.fixture
def plugin(monkeypatch):
    """Make an importable plugin module from functions; answers its source."""

    def make(name, *functions, api=1):
        module = types.ModuleType(f"fake_{name}")
        if api is not None:
            module.BOOTC_API = api
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return PluginSource(name, module.__name__, f"dist-{name}", "1.0", "/somewhere")

    return make


@hookimpl
async def bootc_before_fetch(context): ...


@hookimpl
def bootc_register_policies():
    return [PolicyOffer("one")]


def load_error(*sources) -> PluginError:
    with pytest.raises(PluginError) as caught:
        manager.load(sources=sources)
    return caught.value


def test_plugins_are_called_in_alphabetical_order(plugin):
    sources = [plugin("a", bootc_before_fetch), plugin("b", bootc_before_fetch), plugin("c")]
    plugins = manager.load(sources=sources)
    names = [
        one.plugin_name for one in reversed(plugins.manager.hook.bootc_before_fetch.get_hookimpls())
    ]
    assert names == ["a", "b"]
    assert [info.source.name for info in plugins.infos] == ["a", "b", "c"]
    assert plugins.infos[0].hooks == ("bootc_before_fetch",)


def test_a_blocked_plugin_is_not_even_imported(plugin):
    source = PluginSource("bad", "module_that_does_not_exist", "dist", "1", "/x")
    plugins = manager.load(sources=[source], blocked=["bad"])
    assert [(info.source.name, info.state) for info in plugins.infos] == [("bad", "blocked")]
    error = load_error(source)
    assert error.reference == "plugin-broken"
    assert "ModuleNotFoundError" in error.found
    assert 'blocked = ["bad"]' in error.hint


@pytest.mark.parametrize("api", [None, 0, 2, "1"])
def test_another_api_number_stops_with_a_remedy(plugin, api):
    error = load_error(plugin("old", bootc_before_fetch, api=api))
    assert error.found == f"BOOTC_API is {api!r}"
    assert error.hint == "install a version of dist-old for plugin API 1"


def test_a_misspelt_hook_is_an_error(plugin):
    @hookimpl
    async def bootc_befor_fetch(context): ...

    error = load_error(plugin("typo", bootc_befor_fetch))
    assert error.found == "bootc_befor_fetch is not a hook"


def test_an_unknown_argument_is_an_error(plugin):
    @hookimpl
    async def bootc_before_fetch(context, colour): ...

    assert "colour" in load_error(plugin("args", bootc_before_fetch)).found


def test_the_wrong_colour_is_an_error_both_ways(plugin):
    @hookimpl
    def bootc_before_fetch(context): ...

    @hookimpl
    async def bootc_on_event(event): ...

    assert (
        load_error(plugin("sync", bootc_before_fetch)).found
        == "bootc_before_fetch must be async def"
    )
    assert load_error(plugin("async", bootc_on_event)).found == "bootc_on_event must be a plain def"


def test_two_offers_of_one_name_are_an_error_naming_both(plugin):
    error = load_error(plugin("a", bootc_register_policies), plugin("b", bootc_register_policies))
    assert error.reference == "plugin-conflict"
    assert error.found == "a and b (bootc_register_policies)"


def test_a_nonsense_offer_is_an_error(plugin):
    @hookimpl
    def bootc_register_policies():
        return ["one"]

    error = load_error(plugin("a", bootc_register_policies))
    assert (error.expected, error.found) == ("PolicyOffer", "str")


def test_an_absent_provider_lists_what_there_is():
    with pytest.raises(PluginError) as caught:
        manager.load(sources=[]).backend("zfs")
    assert caught.value.reference == "no-provider"
    assert "no such plugin is installed" in caught.value.expected


def test_the_built_in_plugins_load():
    plugins = manager.load()
    names = {info.source.name for info in plugins.infos if info.source.builtin}
    assert {"archives", "composefs", "hooks_dir", "registry", "signing", "systemd_boot"} <= names
