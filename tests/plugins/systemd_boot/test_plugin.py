"""The plugin as the engine sees it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import bootc_systemd_boot.plugin as plugin
import pytest
import trio

from bootc_core.boot import bls
from bootc_core.errors import BootError
from bootc_core.hooks import markers, specs
from bootc_core.models.boot import BootPlan
from bootc_core.models.sysroot import Sysroot


def test_api_and_hooks() -> None:
    assert plugin.BOOTC_API == markers.API
    hooks = [name for name in vars(plugin) if name.startswith("bootc_")]
    assert hooks == [
        "bootc_register_bootloaders",
        "bootc_switch_boot",
        "bootc_install_bootloader",
    ]
    for name in hooks:
        ours, theirs = getattr(plugin, name), getattr(specs, name)
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
        assert set(inspect.signature(ours).parameters) <= set(inspect.signature(theirs).parameters)


def test_offer(tmp_path: Path) -> None:
    (offer,) = plugin.bootc_register_bootloaders()
    assert offer.name == "systemd-boot"
    sysroot = Sysroot(tmp_path, tmp_path / "boot")
    warnings: list[str] = []
    assert list(offer.read_entries(sysroot, warnings.append)) == []
    entries = tmp_path / "boot/loader/entries"
    entries.mkdir(parents=True)
    (entries / "a.conf").write_bytes(bls.print_entry([("linux", "/v"), ("sort-key", "a")]))
    (entries / "b.conf").touch()
    assert [entry.file for entry in offer.read_entries(sysroot, warnings.append)] == [
        "loader/entries/a.conf"
    ]
    assert len(warnings) == 1
    with pytest.raises(BootError):
        offer.preflight(sysroot, BootPlan(("unknown",)))
    offer.preflight(sysroot, BootPlan((), effective=True))


def test_switch_is_done_when_the_backend_did_it(tmp_path: Path) -> None:
    sysroot = Sysroot(tmp_path, tmp_path / "boot")
    plan = BootPlan((), effective=True)
    assert trio.run(plugin.bootc_switch_boot, None, sysroot, plan) is True
    assert list(tmp_path.iterdir()) == []


def test_reading_entries_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "import bootc_systemd_boot.plugin as plugin\n"
        "from bootc_core.models.sysroot import Sysroot\n"
        "offer, = plugin.bootc_register_bootloaders()\n"
        "offer.read_entries(Sysroot(Path('/x'), Path('/x')), print)\n"
        "heavy = {'trio', 'pydantic', 'ssl', 'http', 'cryptography', 'rich', 'yaml', 'hashlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
