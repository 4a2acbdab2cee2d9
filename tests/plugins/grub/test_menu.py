from __future__ import annotations

import subprocess

import pytest
from bootc_grub import install, menu

from bootc_core.models.boot import PresentEntry


def entry(**keys: str) -> PresentEntry:
    pairs = tuple((key.replace("_", "-"), value) for key, value in keys.items())
    return PresentEntry("loader/entries/bootc_os-1-1.conf", pairs)


def test_a_menu():
    first = entry(title="An OS's", linux="/boot/k", initrd="/boot/i", options="rw composefs=?12")
    assert menu.text([first]).decode() == (
        "# Made by bootc from the boot entries; changes are lost.\n"
        "menuentry 'An OS'\\''s' --id bootc_os-1-1 {\n"
        "  linux /boot/k rw 'composefs=?12'\n"
        "  initrd /boot/i\n"
        "}\n"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("a=1 b", "a=1 b"),
        ('dyndbg="file a.c +p" x', "'dyndbg=file a.c +p' x"),
        ("a=$b;c {d}", "'a=$b;c' '{d}'"),
        ("a='b", "'a='\\''b'"),
        ("", ""),
    ],
)
def test_nothing_of_an_entry_is_a_command(options, words):
    text = menu.text([entry(linux="/k", options=options)]).decode()
    assert f"  linux /k{' ' if words else ''}{words}\n" in text


def test_paths_lead_from_the_top_of_the_file_system():
    text = menu.text([entry(linux="/ostree/k", initrd="/boot/i")], "/boot").decode()
    assert "  linux /boot/ostree/k\n  initrd /boot/i\n" in text


def test_what_is_no_kernel_is_left_out():
    assert menu.text([entry(title="x", efi="/a.efi")]).count(b"menuentry") == 0


@pytest.mark.real
def test_grubs_own_parser_accepts_all_of_it(tmp_path):
    hostile = entry(title="a'b\"c$d{e}", linux="/k", initrd="/i", options='x=\'y z="p q" ;reboot')
    for name, data in (
        ("menu", menu.text([hostile, entry(linux="/k")])),
        ("grub.cfg", install.settings("/boot")),
        ("stub", install.stub("1-2", "")),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        done = subprocess.run(["grub-script-check", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_where_a_binary_looks_for_its_settings():
    assert install.vendor(b"x\0/EFI/debian\0y") == "debian"
    assert install.vendor(b"x /EFI/BOOT/y") is None
