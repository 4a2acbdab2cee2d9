from __future__ import annotations

import json
import subprocess

import pytest
from bootc_install import partitions

from bootc_core.errors import StorageError, UnsupportedEnvironmentError, UsageError

MIB = 1024 * 1024
# name, type GUID, MiB (None: the rest), asked to be bootable (sfdisk ignores that on GPT): parity reference, 6.4
REFERENCE = {
    ("x86_64", "ostree", False): [
        ("BIOS-BOOT", "21686148-6449-6E6F-744E-656564454649", 1, True),
        ("EFI-SYSTEM", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 512, False),
        ("root", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", None, False),
    ],
    ("x86_64", "composefs", False): [
        ("BIOS-BOOT", "21686148-6449-6E6F-744E-656564454649", 1, True),
        ("EFI-SYSTEM", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 1024, False),
        ("root", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", None, False),
    ],
    ("x86_64", "ostree", True): [
        ("BIOS-BOOT", "21686148-6449-6E6F-744E-656564454649", 1, True),
        ("EFI-SYSTEM", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 512, False),
        ("boot", "0FC63DAF-8483-4772-8E79-3D69D8477DE4", 510, False),
        ("root", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", None, False),
    ],
    ("aarch64", "ostree", False): [
        ("EFI-SYSTEM", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 512, False),
        ("root", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE", None, False),
    ],
    ("ppc64le", "ostree", False): [
        ("PowerPC-PReP-boot", "9E1A2D38-C612-4316-AA26-8B49521E5A8B", 4, True),
        ("root", "C31C45E6-3F39-412E-80FB-4809C4980599", None, False),
    ],
    ("s390x", "ostree", False): [("root", "5EEAD9A9-FE09-4A1E-A1D7-520D00531306", None, False)],
}


@pytest.mark.real
@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: "-".join(map(str, case)))
def test_sfdisk_makes_the_references_table(case, tmp_path):
    machine, backend, encrypted = case
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(4096 * MIB)
    layout = partitions.layout(machine, backend, encrypted=encrypted, root_mib=None)
    text = partitions.script(layout)
    subprocess.run(["sfdisk", "-q", "--wipe=always", disk], input=text.encode(), check=True)
    told = subprocess.run(["sfdisk", "--json", disk], capture_output=True, check=True).stdout
    table = json.loads(told)["partitiontable"]
    assert table["label"] == "gpt"
    sector = table["sectorsize"]
    found = [
        (one["name"], one["type"].upper(), one["size"] * sector // MIB)
        for one in table["partitions"]
    ]
    rest = found[-1][2]
    assert 4096 - sum(size for *_, size in found) in {1, 2, 3}
    wanted = REFERENCE[case]
    assert found == [(name, kind, size or rest) for name, kind, size, _ in wanted]
    asked = [", bootable," in line for line in text.splitlines()[1:]]
    assert asked == [bootable for *_, bootable in wanted]


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UnsupportedEnvironmentError, match="Unsupported architecture"):
        partitions.layout("m68k", "ostree", encrypted=False, root_mib=None)


def test_a_disk_without_room_is_refused_with_what_is_needed():
    layout = partitions.layout("x86_64", "composefs", encrypted=False, root_mib=2048)
    partitions.check_size(layout, 3075 * MIB, "disk")
    with pytest.raises(StorageError) as caught:
        partitions.check_size(layout, 3074 * MIB, "disk")
    assert "at least 3075 MiB" in (caught.value.expected or "")


@pytest.mark.parametrize(
    ("text", "mib"), [("1", 1), ("512M", 512), ("2G", 2048), ("1T", 1 << 20), (" 8GiB ", 8192)]
)
def test_sizes(text, mib):
    assert partitions.parse_size(text) == mib


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "10K", "G", "9" * 12])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError):
        partitions.parse_size(text)
