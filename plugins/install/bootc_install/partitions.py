"""The partition table of an installed disk: what is on it, as data and as input of ``sfdisk``. Pure.

1  BIOS-BOOT     1 MiB                x86_64      bios boot loader's own
1  PowerPC-PReP-boot  4 MiB           ppc64(le)
2  EFI-SYSTEM    512 MiB, composefs 1024 MiB      x86_64, aarch64
3  boot          510 MiB              encrypted roots only
4  root          the rest, or as asked for; type GUID of the architecture
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bootc_core.errors import StorageError, UnsupportedEnvironmentError, UsageError, printable

MIB: Final = 1024 * 1024
BIOS_BOOT: Final = "21686148-6449-6E6F-744E-656564454649"
PREP: Final = "9E1A2D38-C612-4316-AA26-8B49521E5A8B"
ESP: Final = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX_DATA: Final = "0fc63daf-8483-4772-8e79-3d69d8477de4"
DPS_ROOT: Final = {
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "s390x": "5eead9a9-fe09-4a1e-a1d7-520d00531306",
    "ppc64": "912ade1d-a839-4913-8964-a10eee08fbd2",
    "ppc64le": "c31c45e6-3f39-412e-80fb-4809c4980599",
}
"""Type GUIDs of the Discoverable Partitions Specification, for architectures that can be installed."""

ESP_MIB: Final = {"composefs": 1024}
_ESP_OTHER_MIB: Final = 512
_BOOT_MIB: Final = 510
_TABLES_MIB: Final = 2  # both partition tables and alignment
_SMALLEST_ROOT_MIB: Final = 64


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; ``size_mib`` None takes the rest."""

    role: str  # bios, prep, esp, boot, root
    name: str
    type: str
    size_mib: int | None
    bootable: bool = False


def layout(
    machine: str, backend: str, *, encrypted: bool, root_mib: int | None
) -> tuple[Partition, ...]:
    """The partitions for an architecture (as ``uname -m`` spells it) and a storage backend.

    Raises:
        UnsupportedEnvironmentError: the architecture has no layout.
    """
    if machine not in DPS_ROOT:
        raise UnsupportedEnvironmentError(
            "Unsupported architecture",
            reference="unsupported-architecture",
            expected=", ".join(sorted(DPS_ROOT)),
            found=printable(machine),
        )
    found = []
    if machine == "x86_64":
        found.append(Partition("bios", "BIOS-BOOT", BIOS_BOOT, 1, bootable=True))
    if machine.startswith("ppc64"):
        found.append(Partition("prep", "PowerPC-PReP-boot", PREP, 4, bootable=True))
    if machine in {"x86_64", "aarch64"}:
        found.append(Partition("esp", "EFI-SYSTEM", ESP, ESP_MIB.get(backend, _ESP_OTHER_MIB)))
    if encrypted:
        found.append(Partition("boot", "boot", LINUX_DATA, _BOOT_MIB))
    found.append(Partition("root", "root", DPS_ROOT[machine], root_mib))
    return tuple(found)


def script(partitions: tuple[Partition, ...]) -> str:
    """The layout as ``sfdisk`` reads it."""
    lines = ["label: gpt"]
    for one in partitions:
        words = [f"size={one.size_mib}MiB"] if one.size_mib is not None else []
        words += ["bootable"] if one.bootable else []
        lines.append(", ".join([*words, f"type={one.type}", f'name="{one.name}"']))
    return "\n".join(lines) + "\n"


def check_size(partitions: tuple[Partition, ...], disk_bytes: int, what: str) -> None:
    """Refuse a disk on which the layout has no room.

    Raises:
        StorageError: with what is needed.
    """
    needed = _TABLES_MIB + sum(
        one.size_mib if one.size_mib is not None else _SMALLEST_ROOT_MIB for one in partitions
    )
    if disk_bytes < needed * MIB:
        raise StorageError(
            f"{printable(what)} is too small",
            reference="disk-too-small",
            expected=f"at least {needed} MiB for "
            + ", ".join(f"{one.name} {one.size_mib or 'rest'}" for one in partitions),
            found=f"{disk_bytes // MIB} MiB",
            hint="use a larger disk; an image itself needs about three times its packed size",
            catalogue="SPC",
        )


def parse_size(text: str) -> int:
    """MiB in ``--root-size``: a number of MiB, or one with the suffix M, G or T.

    Raises:
        UsageError: something else, or nothing at all.
    """
    match = re.fullmatch(r"([0-9]{1,9})(M|MB|MiB|G|GB|GiB|T|TB|TiB)?", text.strip())
    size = int(match[1]) * {"M": 1, "G": 1024, "T": 1024**2}[(match[2] or "M")[0]] if match else 0
    if size < 1:
        raise UsageError(
            "--root-size takes a size",
            expected="MiB, or a number with M, G or T, e.g. 20G",
            found=printable(text, 40),
        )
    return size
