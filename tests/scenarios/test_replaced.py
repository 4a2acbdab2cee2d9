"""The built-in plugins are ordinary ones: each is blocked by name, and a plugin of others does its work in a whole run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bootc_core.config import Config
from bootc_core.containment import loading
from bootc_core.errors import Denied, PluginError
from bootc_core.hooks import manager
from bootc_core.hooks.discovery import PluginSource, find_plugins
from bootc_core.testing import FakeImage, System, make_image

ROOT = Path(__file__).parents[2]
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
it = FakeBootloader("systemd-boot")


@hookimpl
def bootc_register_bootloaders():
    return it.bootc_register_bootloaders()


@hookimpl
async def bootc_switch_boot(context, sysroot, plan):
    return await it.bootc_switch_boot(context, sysroot, plan)
"""

BACKEND = """
from bootc_core import hookimpl
from bootc_plain_storage import plugin as plain

BOOTC_API = 1
bootc_plain = plain


@hookimpl
def bootc_register_backends():
    from dataclasses import replace

    return [replace(one, name={name!r}) for one in plain.bootc_register_backends()]


@hookimpl
async def bootc_stage(context, image, sysroot, emit):
    return await plain.bootc_stage(context, image, sysroot, emit)


@hookimpl
async def bootc_finalize(context, sysroot, staged):
    return await plain.bootc_finalize(context, sysroot, staged)


@hookimpl
async def bootc_rollback(sysroot):
    return await plain.bootc_rollback(sysroot)


@hookimpl
async def bootc_discard(sysroot, staged):
    return await plain.bootc_discard(sysroot, staged)


@hookimpl
async def bootc_prune(sysroot):
    return await plain.bootc_prune(sysroot)
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
        "systemd_boot": BOOTLOADER,
        "composefs": BACKEND.format(name="composefs"),
        "ostree": BACKEND.format(name="ostree"),
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
    monkeypatch.syspath_prepend(str(ROOT / "examples/plain_storage"))
    # import processes are started isolated: what is not installed is found by a .pth file in real life
    monkeypatch.setenv("PYTHONPATH", "")
    third = PluginSource(module, module, module, "1", str(place))
    system = System(tmp_path / "host", virtual_time=False)
    system.plugins = manager.load(
        blocked=[name],
        sources=sorted([*builtins(), third], key=lambda s: s.name),
        provide=loading.provider(),
    )
    backend = "ostree" if name == "ostree" else "composefs"
    system.config = Config(backend=backend)
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
        reference = f"{transport}:/somewhere/os" if transport != "registry" else OS
        from bootc_core.models.reference import ImageReference

        system.module.images.images[str(ImageReference.parse(reference))] = image
        return reference
    image.write_layout(system.path / "layout", "stable")
    return f"oci:{system.path}/layout:stable"


NAMES = [source.name for source in builtins()]


@pytest.mark.parametrize(
    "host", [one for one in NAMES if one not in {"composefs", "ostree"}], indirect=True
)
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
    for name in NAMES:
        assert replacement(name)


def test_blocked_and_not_replaced_says_what_is_missing(tmp_path):
    system = System(tmp_path)
    system.plugins = manager.load(blocked=["systemd_boot", "ostree"], sources=builtins())
    system.config = Config()
    with pytest.raises(PluginError, match="no plugin provides the bootloader systemd-boot"):
        system.storage()
