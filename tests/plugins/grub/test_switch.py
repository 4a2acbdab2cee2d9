from __future__ import annotations

import hashlib
import inspect
import os
from pathlib import Path

import bootc_grub.plugin as plugin
import pytest
from bootc_grub import switch

from bootc_core.boot import bls
from bootc_core.errors import BootError, StorageError
from bootc_core.fs import atomic
from bootc_core.hooks import markers, specs
from bootc_core.models.boot import BootEntry, BootFile, BootPlan
from bootc_core.models.sysroot import Sysroot

ID = {name: name * 64 for name in "abc"}


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    (tmp_path / "root/boot").mkdir(parents=True)
    return Sysroot(tmp_path / "root", tmp_path / "root/boot")


def entry(tmp_path: Path, name: str, kernel: bytes = b"kernel", version: str = "1") -> BootEntry:
    def file(what: str, data: bytes) -> BootFile:
        source = tmp_path / f"{name}-{what}"
        source.write_bytes(data)
        path = f"EFI/Linux/bootc_composefs-{ID[name]}/{what}"
        return BootFile(path, source, len(data), hashlib.sha256(data).hexdigest())

    files = file("vmlinuz", kernel), file("initrd", b"initrd")
    options = f"root=UUID=1 rw composefs={ID[name]}"
    return BootEntry(ID[name], "test-os", f"Test {version}", version, options, files[0], files[1:])


def listing(sysroot: Sysroot) -> list[str]:
    return sorted(os.listdir(sysroot.boot_dir / "loader/entries"))


def test_api_and_hooks():
    assert plugin.BOOTC_API == markers.API
    for name in (name for name in vars(plugin) if name.startswith("bootc_")):
        ours, theirs = getattr(plugin, name), getattr(specs, name)
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_names_numbers_and_keys_are_the_originals(sysroot, tmp_path):
    switch.switch(sysroot, BootPlan((entry(tmp_path, "a"),)))
    switch.switch(sysroot, BootPlan((entry(tmp_path, "b", b"other", "2.1-x"), ID["a"])))
    names = ["bootc.grub", "bootc_test_os-2.1_x-0.conf", "bootc_test_os-2.1_x-1.conf"]
    assert listing(sysroot) == names
    first = (sysroot.boot_dir / "loader/entries" / names[2]).read_text()
    assert first == (
        "title Test 2.1-x\nversion 2.1-x\n"
        f"linux /boot/bootc_composefs-{ID['b']}/vmlinuz\n"
        f"initrd /boot/bootc_composefs-{ID['b']}/initrd\n"
        f"options root=UUID=1 rw composefs={ID['b']}\nsort-key bootc-test-os-0\n"
    )
    menu = bls.read_entries(sysroot.boot_dir)
    assert [bls.deployment_of(one) for one in menu] == [ID["b"], ID["a"]]
    assert [one.get("sort-key") for one in menu] == ["bootc-test-os-0", "bootc-test-os-1"]
    assert not (sysroot.boot_dir / "loader/entries.staged").exists()
    assert (sysroot.boot_dir / "boot").readlink() == Path()


def test_a_rollback_rewrites_names_only(sysroot, tmp_path):
    switch.switch(sysroot, BootPlan((entry(tmp_path, "a"),)))
    switch.switch(sysroot, BootPlan((entry(tmp_path, "b", b"other", "2"), ID["a"])))
    steps: list[str] = []
    with atomic.observe(lambda step, path: steps.append(step)):
        switch.switch(sysroot, BootPlan((ID["a"], ID["b"])))
    assert [bls.deployment_of(one) for one in bls.read_entries(sysroot.boot_dir)] == [
        ID["a"],
        ID["b"],
    ]
    assert steps.count("rename") == 1
    before = steps[: steps.index("rename")]
    assert before[-1] == "syncfs"
    assert "syncfs" in steps[steps.index("rename") :]


def test_a_kernel_is_there_once_and_goes_with_its_last_entry(sysroot, tmp_path):
    boot = sysroot.boot_dir
    switch.switch(sysroot, BootPlan((entry(tmp_path, "a"),)))
    switch.switch(sysroot, BootPlan((entry(tmp_path, "b"), ID["a"])))
    assert [path.name for path in boot.glob("bootc_*")] == [f"bootc_composefs-{ID['a']}"]
    switch.switch(sysroot, BootPlan((entry(tmp_path, "c", b"other"), ID["b"])))
    assert len(list(boot.glob("bootc_*"))) == 2
    switch.switch(sysroot, BootPlan((ID["c"],)))
    assert [path.name for path in boot.glob("bootc_*")] == [f"bootc_composefs-{ID['c']}"]


def test_what_the_original_left_staged_goes(sysroot, tmp_path):
    staged = sysroot.boot_dir / "loader/entries.staged"
    staged.mkdir(parents=True)
    (staged / "x.conf").write_text("half")
    switch.switch(sysroot, BootPlan((entry(tmp_path, "a"),)))
    assert not staged.exists()


def test_bad_plans_and_sources_change_nothing(sysroot, tmp_path):
    switch.switch(sysroot, BootPlan((entry(tmp_path, "a"),)))
    before = listing(sysroot)
    for plan in (BootPlan(()), BootPlan((ID["a"], ID["a"])), BootPlan((ID["b"],))):
        with pytest.raises(BootError):
            switch.preflight(sysroot, plan)
    broken = entry(tmp_path, "b", b"other")
    broken.linux.source.write_bytes(b"OTHER")
    with pytest.raises(StorageError, match="is not what the deployment holds"):
        switch.switch(sysroot, BootPlan((broken, ID["a"])))
    assert listing(sysroot) == before
    (sysroot.boot_dir / f"bootc_composefs-{ID['a']}/vmlinuz").unlink()
    with pytest.raises(BootError, match="not usable"):
        switch.preflight(sysroot, BootPlan((ID["a"],)))


def test_a_derived_menu_follows_the_entries_of_others(sysroot):
    boot = sysroot.boot_dir
    (boot / "loader/entries").mkdir(parents=True)
    (boot / "grub").mkdir()

    def write(number: int) -> None:
        text = f"title OS {number}\nversion {number}\nlinux /boot/k{number}\noptions ostree=/{number}\n"
        (boot / f"loader/entries/ostree-{number}.conf").write_text(text)

    write(1)
    switch.refresh(sysroot)
    assert switch.derived_menu(sysroot) is None  # nobody asked for one
    switch.refresh(sysroot, boot / "grub/bootc.cfg")
    write(2)
    steps: list[tuple[str, str]] = []
    with atomic.observe(lambda step, path: steps.append((step, Path(path).name))):
        switch.switch(sysroot, BootPlan(effective=True))
    titles = [
        line for line in (boot / "grub/bootc.cfg").read_text().splitlines() if "menuentry" in line
    ]
    assert titles == ["menuentry 'OS 2' --id ostree-2 {", "menuentry 'OS 1' --id ostree-1 {"]
    names = [step for step, _ in steps]
    assert names.index("link") < names.index("syncfs") < names.index("rename")
    assert steps[-1] == ("unlink", "bootc.cfg.old")
    steps.clear()
    with atomic.observe(lambda step, path: steps.append((step, path))):
        switch.switch(sysroot, BootPlan(effective=True))
    assert steps == []
