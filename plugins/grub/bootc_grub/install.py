"""GRUB itself on a disk, from the image that is installed.

    ESP/EFI/BOOT/BOOTX64.EFI, EFI/<vendor>/     the image's prebuilt GRUB, behind shim where it has a signed one
    ESP/EFI/<vendor>/grub.cfg                   finds the boot file system by its UUID
    BOOT/grub/grub.cfg                          written once: the menu is what it reads
    BOOT/grub/bootc.cfg                         the menu, where a storage backend writes entries itself

``<vendor>`` is where the binary looks for its settings, which is compiled into it. Machines without EFI get GRUB by
``grub-install``
in front of the partitions, if the program and its files are there.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.errors import BootError
from bootc_core.fs import atomic
from bootc_core.models.install import BootTarget
from bootc_core.models.sysroot import Sysroot
from bootc_core.process import run_blocking
from bootc_grub import switch

_WORDS: Final = {"x86_64": ("x64", "x86_64"), "aarch64": ("aa64", "arm64")}
_VENDOR: Final = re.compile(rb"/EFI/([A-Za-z0-9_-]{1,32})\0")
_BIOS: Final = Path("usr/lib/grub/i386-pc")


def install(sysroot: Sysroot, target: BootTarget) -> None:
    """Put GRUB and its settings on the disk; see the module.

    Raises:
        BootError: the image has no GRUB for this machine.
    """
    directory = target.boot / "grub"
    atomic.mkdir(directory)
    _write(directory / "grub.cfg", settings(target.prefix))
    if not (target.boot / "loader/entries" / switch.MENU).exists():
        switch.refresh(sysroot, directory / switch.DERIVED)
    efi = target.esp is not None and _install_efi(target)
    bios = target.disk is not None and _install_bios(target)
    if not efi and not bios:
        raise BootError(
            "the image has no GRUB for this machine",
            reference="no-bootloader",
            expected="/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi, or a signed one",
            hint="add the package grub-efi-amd64-bin or grub-efi-amd64-signed and shim-signed (Debian) to the image, "
            "or give --bootloader",
            catalogue="CON",
        )


def settings(prefix: str) -> bytes:
    """The text of ``grub.cfg``; ``prefix`` is that of the boot directory on its file system."""
    return f"""# Made by `bootc install`. The menu is bootc's; settings of your own go to $prefix/custom.cfg.
set default=0
set timeout=5
if [ -f $prefix/custom.cfg ]; then source $prefix/custom.cfg; fi
if [ -f {prefix}/loader/entries/{switch.MENU} ]; then
  source {prefix}/loader/entries/{switch.MENU}
else
  source $prefix/{switch.DERIVED}
fi
""".encode()


def stub(boot_uuid: str, prefix: str) -> bytes:
    """The text of the settings on the ESP, which lead to the others."""
    return f"""search --no-floppy --fs-uuid --set=root {boot_uuid}
set prefix=($root){prefix}/grub
configfile $prefix/grub.cfg
""".encode()


def vendor(binary: bytes) -> str | None:
    """The directory below ``EFI`` in which a GRUB binary looks for its settings."""
    found = _VENDOR.findall(binary)
    return found[-1].decode() if found else None


def _install_efi(target: BootTarget) -> bool:
    """GRUB on the ESP; False if the image has none for EFI."""
    machine = os.uname().machine
    if target.esp is None or machine not in _WORDS:
        return False
    word, platform = _WORDS[machine]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        signed, plain, shim = place / "signed", place / "plain", place / "shim"
        name = f"grub{word}.efi"
        files: dict[str, bytes] = {}
        if target.extract(f"usr/lib/grub/{platform}-efi-signed", signed) and target.extract(
            "usr/lib/shim", shim
        ):
            loader, first = signed / f"{name}.signed", shim / f"shim{word}.efi.signed"
            manager = shim / f"mm{word}.efi.signed"
            if loader.is_file() and first.is_file():
                files = {f"BOOT{word.upper()}.EFI": first.read_bytes(), name: loader.read_bytes()}
                if manager.is_file():
                    files[f"mm{word}.efi"] = manager.read_bytes()
        if not files and target.extract(f"usr/lib/grub/{platform}-efi/monolithic", plain):
            loader = plain / name
            if loader.is_file():
                files = {f"BOOT{word.upper()}.EFI": loader.read_bytes(), name: loader.read_bytes()}
    if not files:
        return False
    owner = vendor(files[name]) or "BOOT"
    for parent in ("EFI", "EFI/BOOT", f"EFI/{owner}"):
        atomic.mkdir(target.esp / parent, None)
    for file, data in files.items():
        _write(target.esp / "EFI/BOOT" / file, data)
    _write(target.esp / f"EFI/{owner}/grub.cfg", stub(target.boot_uuid, target.prefix))
    return True


def _install_bios(target: BootTarget) -> bool:
    """GRUB in front of the partitions; False where its files are not there."""
    if target.disk is None or os.uname().machine != "x86_64" or not Path("/", _BIOS).is_dir():
        return False
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch, "i386-pc")
        if not target.extract(str(_BIOS), files):
            return False
        run_blocking(
            [
                "grub-install",
                "--target=i386-pc",
                f"--directory={files}",
                f"--boot-directory={target.boot}",
                "--modules=part_gpt ext2 xfs btrfs search_fs_uuid",
                target.disk,
            ],
            timeout_s=limits.FINALIZE_TIMEOUT_S,
            error=BootError,
        )
    return True


def _write(path: Path, data: bytes) -> None:
    if path.exists():
        atomic.unlink(path)
    atomic.create_file(path, data)
