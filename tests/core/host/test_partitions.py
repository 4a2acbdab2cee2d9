from __future__ import annotations

from bootc_core.fs.mounts import Mount
from bootc_core.host import partitions


def test_entries_of_grub_are_found_behind_an_esp_that_systemd_mounts(tmp_path):
    sysroot = tmp_path / "sysroot"
    entries = sysroot / "boot/loader/entries"
    entries.mkdir(parents=True)
    (tmp_path / "boot/EFI").mkdir(parents=True)
    table = [Mount("254:2", "/", "/boot", frozenset({"rw"}), "vfat", "/dev/vda2")]
    found = partitions.boot_directory(sysroot, table, write=False, root=tmp_path)
    assert found == sysroot / "boot"
    (tmp_path / "boot/loader/entries").mkdir(parents=True)
    found = partitions.boot_directory(sysroot, table, write=False, root=tmp_path)
    assert found == tmp_path / "boot"
