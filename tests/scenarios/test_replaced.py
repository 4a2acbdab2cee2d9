"""The built-in plugins are ordinary ones: each is blocked by name, and a plugin of others does its work in a whole run."""

from __future__ import annotations

import sys

import pytest

from bootc_core.config import Config
from bootc_core.containment import loading
from bootc_core.errors import Denied, PluginError
from bootc_core.hooks import manager
from bootc_core.hooks.discovery import PluginSource, find_plugins
from bootc_core.models.reference import ImageReference
from bootc_core.testing import FakeImage, System, make_image

OS = "quay.io/acme/os:1"

TRANSPORT = """
from bootc_core import hookimpl
from bootc_core.testing import FakeTransport

BOOTC_API = 1
SERVES = {serves!r}
images = FakeTransport(transports=SERVES)


@hookimpl
def bootc_register_transports():
    return images.bootc_register_transports()


@hookimpl
async def bootc_resolve(context, reference):
    return await images.bootc_resolve(context, reference)


@hookimpl
async def bootc_fetch(context, reference):
    return await images.bootc_fetch(context, reference)
"""

POLICY = """
from bootc_core import hookimpl

BOOTC_API = 1


@hookimpl
def bootc_register_policies():
    return []


@hookimpl
async def bootc_verify(context, image):
    from bootc_core import PolicyAnswer

    good = image.config.version != "bad" and len(image.manifest.layers) == 2
    return PolicyAnswer(good, "looked at in a child process")
"""

GATE = """
from bootc_core import hookimpl

BOOTC_API = 1


@hookimpl
async def bootc_gate(context, phase):
    from bootc_core import Deny

    return Deny("replaced") if context.reason == "stop" else None
"""

BOOTLOADER = """
from bootc_core import hookimpl
from bootc_core.testing import FakeBootloader

BOOTC_API = 1
it = FakeBootloader("{name}")


@hookimpl
def bootc_register_bootloaders():
    return it.bootc_register_bootloaders()


@hookimpl
async def bootc_switch_boot(context, sysroot, plan):
    return await it.bootc_switch_boot(context, sysroot, plan)
"""


COMMANDS = """
from bootc_core import hookimpl
from bootc_core.models.install import CommandOffer

BOOTC_API = 1


@hookimpl
def bootc_register_commands():
    return [CommandOffer("install", "another way", lambda parser: None, lambda arguments, services: 0)]
"""


def _transports() -> dict[str, tuple[str, ...]]:
    loaded = manager.load(sources=builtins())
    found: dict[str, tuple[str, ...]] = {}
    for name, offered in loaded.transports.items():
        found[offered.plugin] = (*found.get(offered.plugin, ()), name)
    return found


def builtins() -> list[PluginSource]:
    return [source for source in find_plugins() if source.builtin]


def replacement(name: str) -> str:
    if name in (serving := _transports()):
        return TRANSPORT.format(serves=serving[name])
    return {
        "signing": POLICY,
        "hooks_dir": GATE,
        "systemd_boot": BOOTLOADER.format(name="systemd-boot"),
        "grub": BOOTLOADER.format(name="grub"),
        "install": COMMANDS,
    }[name]


@pytest.fixture
def host(tmp_path, monkeypatch, request):
    """A system whose plugins are the built-in ones but one, and the replacement of that one."""
    name = request.param
    place = tmp_path / "packages"
    place.mkdir()
    module = f"replaced_{name}"
    (place / f"{module}.py").write_text(f'"""Instead of {name}."""\n' + replacement(name))
    monkeypatch.syspath_prepend(str(place))
    third = PluginSource(module, module, module, "1", str(place))
    system = System(tmp_path / "host", virtual_time=False)
    system.plugins = manager.load(
        blocked=[name],
        sources=sorted([*builtins(), third], key=lambda s: s.name),
        provide=loading.provider(),
    )
    system.config = Config(bootloader="grub") if name == "grub" else Config()
    (system.sysroot.config_root / "etc/containers").mkdir(parents=True)
    (system.sysroot.config_root / "etc/containers/policy.json").write_text(
        '{"default": [{"type": "insecureAcceptAnything"}]}'
    )
    system.module = sys.modules.get(module)
    yield name, system
    sys.modules.pop(module, None)


def publish(name: str, system: System, image: FakeImage) -> str:
    if name in _transports():
        transport = _transports()[name][0]
        reference = {"registry": OS, "containers-storage": f"containers-storage:{OS}"}.get(
            transport, f"{transport}:/somewhere/os"
        )
        system.module.images.images[str(ImageReference.parse(reference))] = image
        return reference
    image.write_layout(system.path / "layout", "stable")
    return f"oci:{system.path}/layout:stable"


BACKENDS = ("composefs", "ostree")  # replaced in test_plain_storage.py
NAMES = [source.name for source in builtins()]


@pytest.mark.parametrize("host", [one for one in NAMES if one not in BACKENDS], indirect=True)
def test_it_is_replaced(host):
    name, system = host
    states = {info.source.name: info.state for info in system.plugins.infos}
    assert states[name] == "blocked"
    assert states[f"replaced_{name}"] == "loaded"
    reference = publish(name, system, make_image("1"))
    system.switch(reference)
    publish(name, system, make_image("2"))
    system.upgrade()
    assert system.versions() == ("2", "1")
    system.rollback()
    assert system.versions() == ("1", "2")
    if name == "install":
        assert system.plugins.commands["install"].plugin == "replaced_install"
    if name == "signing":
        assert system.status().booted.accepted == "replaced_signing: looked at in a child process"
        bad = make_image("bad")
        publish(name, system, bad)
        with pytest.raises(Exception, match="is not accepted by signature policy replaced_signing"):
            system.upgrade()
    if name == "hooks_dir":
        with pytest.raises(Denied, match="replaced_hooks_dir does not allow fetch: replaced"):
            system.upgrade(reason="stop")


def test_every_built_in_one_is_in_the_table():
    for name in set(NAMES) - set(BACKENDS):
        assert replacement(name)


def test_blocked_and_not_replaced_says_what_is_missing(tmp_path):
    system = System(tmp_path)
    system.plugins = manager.load(blocked=["systemd_boot", "ostree"], sources=builtins())
    system.config = Config()
    with pytest.raises(PluginError, match="no plugin provides the bootloader systemd-boot"):
        system.storage()
