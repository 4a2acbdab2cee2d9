"""systemd-boot itself on the EFI system partition, from the image that is installed.

    EFI/systemd/systemd-bootx64.efi    and the same as
    EFI/BOOT/BOOTX64.EFI               where firmware looks when it was told nothing
    loader/loader.conf                 written with the first entry (``switch``)
    loader/keys/NAME/*.auth            Secure Boot keys of the image, if it has some

The signed binary is taken where the image has one. Firmware that can be told (not for generic images) gets an entry by ``bootctl``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.errors import BootError, printable
from bootc_core.fs import atomic
from bootc_core.models.install import BootTarget
from bootc_core.process import clean_environment, run_blocking

BINARIES: Final = "usr/lib/systemd/boot/efi"
KEYS: Final = "usr/lib/bootc/install/secureboot-keys"
_WORDS: Final = {"x86_64": "x64", "aarch64": "aa64", "riscv64": "riscv64"}
_EFI_VARIABLES: Final = Path("/sys/firmware/efi/efivars")


def install(target: BootTarget) -> None:
    """Copy systemd-boot from the image to the ESP; see the module.

    Raises:
        BootError: no ESP, or the image has no systemd-boot for this machine.
    """
    machine = os.uname().machine
    word = _WORDS.get(machine)
    if target.esp is None or word is None:
        raise BootError(
            "systemd-boot needs an EFI system partition",
            reference="no-esp",
            found=f"{machine} without one",
            hint="--bootloader grub",
            catalogue="ENV",
        )
    with tempfile.TemporaryDirectory() as scratch:
        efi, keys = Path(scratch, "efi"), Path(scratch, "keys")
        name = f"systemd-boot{word}.efi"
        found = [efi / f"{name}.signed", efi / name] if target.extract(BINARIES, efi) else []
        binary = next((path for path in found if path.is_file()), None)
        if binary is None:
            raise BootError(
                "the image has no systemd-boot",
                reference="no-bootloader",
                expected=f"/{BINARIES}/{name}",
                hint="add the package systemd-boot-efi (Debian) or systemd-boot-unsigned (Fedora) to the image, "
                "or give --bootloader",
                catalogue="CON",
            )
        data = binary.read_bytes()
        _put(target.esp, f"EFI/systemd/{name}", data)
        _put(target.esp, f"EFI/BOOT/BOOT{word.upper()}.EFI", data)
        if target.extract(KEYS, keys):
            _copy_keys(target.esp, keys)
    if not target.generic and os.path.ismount(target.esp) and _EFI_VARIABLES.is_dir():
        run_blocking(
            ["bootctl", "install", f"--esp-path={target.esp}"],
            timeout_s=limits.FINALIZE_TIMEOUT_S,
            env=clean_environment(SYSTEMD_RELAX_ESP_CHECKS="1"),
            error=BootError,
        )


def _put(esp: Path, name: str, data: bytes) -> None:
    parts = name.split("/")
    for count in range(1, len(parts)):
        atomic.mkdir(esp.joinpath(*parts[:count]), None)
    path = esp / name
    if path.exists():
        atomic.unlink(path)
    atomic.create_file(path, data)


def _copy_keys(esp: Path, keys: Path) -> None:
    for directory in sorted(keys.iterdir()):
        if not directory.is_dir():
            raise BootError(
                "a directory of Secure Boot keys has something else in it",
                reference="bad-secure-boot-keys",
                expected=f"/{KEYS}/NAME/*.auth",
                found=printable(directory.name),
                catalogue="CON",
            )
        for key in sorted(directory.glob("*.auth")):
            _put(esp, f"loader/keys/{directory.name}/{key.name}", key.read_bytes())
            print(f"Wrote Secure Boot key: {directory.name}/{key.name}")
