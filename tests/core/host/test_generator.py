"""The systemd generator, on a made-up root; and where the running host is looked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bootc_core.fs import mounts
from bootc_core.host import environment, fstab, partitions
from bootc_core.host.environment import Environment

GENERATOR = Path(__file__).resolve().parents[3] / "packaging/systemd/bootc-systemd-generator"
COUNTED = "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
FSTAB = "# Created by anaconda\nUUID=1 / xfs defaults 0 0\n"
OVERLAY = "30 1 0:30 / / ro,relatime shared:1 - overlay overlay ro,lowerdir=x\n"


def generate(tmp_path, files):
    root, out = tmp_path / "root", tmp_path / "out"
    out.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(
        ["sh", GENERATOR, out, out, out],
        check=True,
        env={"PATH": "/usr/bin:/bin", "GENERATOR_ROOT": str(root)},
    )
    return {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}


WANTS = {
    f"multi-user.target.wants/{name}"
    for name in (
        "bootc-status-updated.path",
        "bootc-status-updated-onboot.target",
        "bootc-boot-complete.service",
    )
}
DEADLINE = "sysinit.target.wants/bootc-boot-deadline.timer"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"proc/cmdline": "quiet\n", "sysroot/x": ""}, set()),
        ({"proc/cmdline": "composefs=?ab\n"}, set()),  # no physical root
        ({"proc/cmdline": "rw composefs=?ab\n", "sysroot/x": ""}, WANTS),
        ({"proc/cmdline": "composefs.digest=v1-sha512-12:ab", "sysroot/x": ""}, WANTS),
        ({"proc/cmdline": "quiet\n", "sysroot/x": "", "run/ostree-booted": ""}, WANTS),
        ({"proc/cmdline": "composefs=a\n", "sysroot/x": "", COUNTED: "x"}, WANTS | {DEADLINE}),
        ({"proc/cmdline": "composefs=a bootc.counted\n", "sysroot/x": ""}, WANTS | {DEADLINE}),
        (
            {"proc/cmdline": "composefs=a\n", "sysroot/bootc/health/pending.json": "{}"},
            WANTS | {DEADLINE},
        ),
        (
            {
                "proc/cmdline": "x\n",
                "sysroot/x": "",
                "run/ostree-booted": "",
                "proc/self/mountinfo": OVERLAY,
                "etc/fstab": FSTAB,
            },
            WANTS
            | {
                "bootc-fstab-edit.service",
                "local-fs-pre.target.wants/bootc-fstab-edit.service",
            },
        ),
        (
            {
                "proc/cmdline": "x\n",
                "sysroot/x": "",
                "run/ostree-booted": "",
                "proc/self/mountinfo": OVERLAY,
                "etc/fstab": FSTAB + "# Updated by bootc-fstab-edit.service\n",
            },
            WANTS,
        ),
    ],
)
def test_what_the_generator_enables(tmp_path, files, wanted):
    assert generate(tmp_path, files) == wanted


# --- detection ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "environ", "kind"),
    [
        ([], {}, Environment.OTHER),
        (["run/ostree-booted"], {}, Environment.OSTREE),
        (["run/ostree-booted", "run/.containerenv"], {}, Environment.CONTAINER),
        (["run/ostree-booted", ".dockerenv"], {}, Environment.CONTAINER),
        (["run/ostree-booted"], {"container": "podman"}, Environment.CONTAINER),
        (["run/ostree-booted"], {"container": ""}, Environment.OSTREE),
    ],
)
def test_environment(tmp_path, files, environ, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert environment.detect(tmp_path, environ) is kind


ID = "0123456789abcdef" * 8


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (f"composefs:{ID}", ID),
        (f"transient:composefs={ID}", ID),
        (f"composefs:{ID[:64]}", ID[:64]),
        (f"composefs:{ID}0", None),
        (f"composefs={ID}", None),
        ("/dev/vda2", None),
    ],
)
def test_the_running_deployment_by_its_mount(source, found):
    text = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n30 1 0:30 / / ro,relatime - overlay {source} ro\n"
    assert environment.root_deployment(mounts.parse_table(text)) == found


def test_mount_table():
    text = (
        r"36 35 98:0 /mnt\0401 /mnt\0112\134 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
        "\ngarbage\n1 2 3 - x\n"
    )
    (one,) = mounts.parse_table(text)
    assert (one.device, one.root, one.target, one.kind) == ("98:0", "/mnt 1", "/mnt\t2\\", "ext3")
    assert one.options == {"rw", "noatime"}


def sysfs(root):
    """A disk with an ESP and a root on LUKS."""
    block = root / "sys/devices/disk"
    for number, kind in ((1, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), (2, "4f68bce3")):
        part = block / f"vda{number}"
        part.mkdir(parents=True)
        (part / "partition").write_text(f"{number}\n")
        (part / "dev").write_text(f"254:{number}\n")
        data = root / f"run/udev/data/b254:{number}"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(f"S:disk/x\nE:ID_PART_ENTRY_TYPE={kind}\n")
    crypt = root / "sys/devices/virtual/dm-0"
    (crypt / "slaves").mkdir(parents=True)
    (crypt / "slaves/vda2").symlink_to(block / "vda2")
    numbers = root / "sys/dev/block"
    numbers.mkdir(parents=True)
    for number, place in (("254:0", block), ("254:2", block / "vda2"), ("253:0", crypt)):
        (numbers / number).symlink_to(place)
    return root


@pytest.mark.parametrize("device", ["254:2", "253:0"])
def test_the_esp_of_the_disk_that_holds_the_root(tmp_path, device):
    assert partitions.find_esp(device, sysfs(tmp_path)) == "254:1"
    assert partitions.find_esp("9:9", tmp_path) is None


def test_what_the_boot_loader_says(tmp_path):
    vendor = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    place = tmp_path / "sys/firmware/efi/efivars"
    place.mkdir(parents=True)
    assert partitions.uses_esp(tmp_path) is False
    for text, esp in (("systemd-boot 257", True), ("GRUB CC 2", True), ("grub 2.12", False)):
        (place / f"LoaderInfo-{vendor}").write_bytes(
            b"\6\0\0\0" + (text + "\0").encode("utf-16-le")
        )
        assert partitions.uses_esp(tmp_path) is esp
    assert partitions.is_counted(tmp_path) is False
    (place / f"LoaderBootCountPath-{vendor}").write_bytes(b"\6\0\0\0" + "x\0".encode("utf-16-le"))
    assert partitions.is_counted(tmp_path) is True


def test_read_only_media(tmp_path):
    assert partitions.is_read_only_medium("254:2", sysfs(tmp_path)) is False
    (tmp_path / "sys/devices/disk/vda2/ro").write_text("1\n")
    assert partitions.is_read_only_medium("254:2", tmp_path) is True


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            FSTAB,
            "# Created by anaconda\n# Updated by bootc-fstab-edit.service\nUUID=1 / xfs defaults,ro 0 0\n",
        ),
        ("# UUID=1 / xfs defaults 0 0\n", None),
        ("UUID=1 / xfs ro,noatime 0 0\n", None),
        ("UUID=1 /boot xfs defaults 0 0\n/dev/x /\n", None),
        ("", None),
    ],
)
def test_the_root_in_fstab(tmp_path, before, after):
    assert fstab.edited(before) == after
    path = tmp_path / "fstab"
    path.write_text(before)
    path.chmod(0o600)
    assert fstab.fix(None, path) == 0
    assert path.read_text() == (after or before)
    assert path.stat().st_mode & 0o777 == 0o600
