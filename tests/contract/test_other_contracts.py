"""The suites pass on honest plugins, the built-in ones among them, and each fails on every broken one, where it should."""

from __future__ import annotations

import inspect
from pathlib import Path

import bootc_archives.plugin
import bootc_grub.plugin
import bootc_systemd_boot.plugin
import pytest
import trio
import trio.lowlevel

from bootc_core import hookimpl
from bootc_core.errors import BootcError, TransportError
from bootc_core.models.reference import ImageReference, Transport
from bootc_core.models.verdict import Proceed
from bootc_core.testing import FakeBootloader, Recorder, broken_plugins, contracts, make_image
from bootc_core.testing.contracts import (
    OS,
    BootloaderContract,
    GateContract,
    PolicyContract,
    SiteHookContract,
    TransportContract,
    fetched,
    make_context,
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(contracts, "PATIENCE_S", 1.0)


class HonestGate:
    @hookimpl
    async def bootc_gate(self, context):
        return Proceed()

    @hookimpl
    async def bootc_before_stage(self, context):
        await trio.lowlevel.checkpoint()


class TestHonestGate(GateContract):
    def plugin(self):
        return HonestGate()


class TestRecorderAsGate(GateContract):
    def plugin(self):
        return Recorder()


class FakeTransportSuite(TransportContract):
    made = broken_plugins.CheckedTransport

    def plugin(self, path):
        return self.made()

    def publish(self, path, plugin, image):
        plugin.images[OS] = image
        return ImageReference.parse(OS)

    def missing(self, path):
        return ImageReference.parse("quay.io/acme/nothing:1")


class TestFakeTransport(FakeTransportSuite):
    pass


class TestOciLayout(TransportContract):
    """A built-in transport on the disk."""

    def plugin(self, path):
        return bootc_archives.plugin

    def publish(self, path, plugin, image):
        if image.config.digest == image.manifest.digest:
            raise AssertionError
        wanted = __import__("json").loads(image.manifest.raw)["config"]["digest"].split(":")[1]
        image.write_layout(path / "layout", "stable")
        (path / "layout/blobs/sha256" / wanted).write_bytes(image.config.raw)
        return ImageReference.make(Transport.OCI, f"{path}/layout:stable")

    def missing(self, path):
        return ImageReference.make(Transport.OCI, f"{path}/nowhere:stable")


class LabelSuite(PolicyContract):
    made = broken_plugins.LabelPolicy

    def plugin(self):
        return self.made()

    def cases(self, path):
        context = make_context(path)
        signed = trio.run(fetched, make_image("1", labels={"signed": "yes"}), path)
        unsigned = trio.run(fetched, make_image("1"), path)

        async def broken(kind):
            raise TransportError("the signatures cannot be read")

        from dataclasses import replace

        return {
            "accepted": (signed, context),
            "refused": (unsigned, context),
            "unreadable": (replace(signed, read_attachments=broken), context),
        }


class TestLabelPolicy(LabelSuite):
    pass


class BootSuite(BootloaderContract):
    made = FakeBootloader

    def plugin(self):
        return self.made()


class TestFakeBootloader(BootSuite):
    pass


class TestSystemdBoot(BootloaderContract):
    kill_every = 4
    deletes_any_file = False

    def plugin(self):
        return bootc_systemd_boot.plugin


class TestGrub(BootloaderContract):
    kill_every = 4
    deletes_any_file = False

    def plugin(self):
        return bootc_grub.plugin


class ScriptSuite(SiteHookContract):
    def __init__(self, path: Path, text: str, mode: int) -> None:
        self.path = path / "script"
        self.path.write_text(text)
        self.path.chmod(mode)

    def script(self):
        return self.path


def test_an_honest_script_passes(tmp_path):
    text = '#!/bin/sh\n[ "$BOOTC_PHASE" = stage ] && { echo "not today"; exit 21; }\nexit 0\n'
    suite = ScriptSuite(tmp_path, text, 0o755)
    for name in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, name)(tmp_path)


def found(suite, test, path):
    """The test fails, with words."""
    with pytest.raises((AssertionError, BootcError, RuntimeError, OSError)) as caught:
        getattr(suite, test)(path)
    assert str(caught.value)


@pytest.mark.parametrize(("made", "test"), broken_plugins.GATES)
def test_broken_gates_are_found(made, test, tmp_path):
    class Suite(GateContract):
        def plugin(self):
            return made()

    found(Suite(), test, tmp_path)


@pytest.mark.parametrize(("broken", "test"), broken_plugins.TRANSPORTS)
def test_broken_transports_are_found(broken, test, tmp_path):
    class Suite(FakeTransportSuite):
        made = broken

    found(Suite(), test, tmp_path)


@pytest.mark.parametrize(("broken", "test"), broken_plugins.POLICIES)
def test_broken_policies_are_found(broken, test, tmp_path):
    class Suite(LabelSuite):
        made = broken

    found(Suite(), test, tmp_path)


@pytest.mark.parametrize(("broken", "test"), broken_plugins.BOOTLOADERS)
def test_broken_bootloaders_are_found(broken, test, tmp_path):
    class Suite(BootSuite):
        made = broken

    found(Suite(), test, tmp_path)


@pytest.mark.parametrize(
    ("text", "mode", "test"),
    [one[1:] for one in broken_plugins.SCRIPTS],
    ids=[one[0] for one in broken_plugins.SCRIPTS],
)
def test_broken_scripts_are_found(text, mode, test, tmp_path):
    found(ScriptSuite(tmp_path, text, mode), test, tmp_path)


def test_every_test_of_every_suite_has_a_defect_that_it_finds():
    """But those that only say what a good one does."""
    tables = {
        GateContract: broken_plugins.GATES,
        TransportContract: broken_plugins.TRANSPORTS,
        PolicyContract: broken_plugins.POLICIES,
        BootloaderContract: broken_plugins.BOOTLOADERS,
    }
    general = {"test_it_lets_a_host_be_brought_up_to_date", "test_repeating_changes_nothing"}
    for suite, table in tables.items():
        tests = {name for name, _ in inspect.getmembers(suite) if name.startswith("test_")}
        assert tests - {test for _, test in table} <= general, suite
        assert all(inspect.getdoc(made) for made, _ in table)
