"""Real installations to mounted file systems: ostree without a bootloader, since this kernel may have no FAT for an ESP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootc_install import completion, roots
from bootc_install.roots import Filesystem
from support.images import Link, bootable, build

from bootc_core.errors import StorageError
from bootc_core.models.kargs import CommandLine

real = [pytest.mark.root, pytest.mark.real]
BOOTC = str(Path(sys.executable).with_name("bootc"))


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    more = {"ostree": Link("sysroot/ostree"), "etc/passwd": "root:x:0:0::/root:/bin/sh\n"}
    return build(tmp_path_factory.mktemp("image") / "layout", [bootable(more)]).path


def filesystem(file: Path, place: Path, mib: int) -> str:
    with file.open("wb") as stream:
        stream.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "verity", file], check=True)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", file, place], check=True)
    told = subprocess.run(
        ["blkid", "-s", "UUID", "-o", "value", file], capture_output=True, text=True
    )
    return told.stdout.strip()


@pytest.fixture
def target(tmp_path) -> Iterator[tuple[Path, str]]:
    root = tmp_path / "root"
    uuid = filesystem(tmp_path / "root.img", root, 300)
    try:
        yield root, uuid
    finally:
        subprocess.run(["umount", "-R", root], check=True)


def install(layout: Path, root: Path, *flags: str, action: str = "to-filesystem"):
    return subprocess.run(
        [
            *(BOOTC, "install", action, "--source-imgref", f"oci:{layout}:latest", "--quiet"),
            *("--backend", "ostree", "--bootloader", "none", "--target-no-signature-verification"),
            *("--config-root", "/nowhere", *flags, str(root)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )


def options(root: Path) -> str:
    (entry,) = (root / "boot/loader/entries").glob("*.conf")
    line = next(one for one in entry.read_text().splitlines() if one.startswith("options "))
    return line.removeprefix("options ")


class TestReal:
    pytestmark = real

    def test_an_empty_root(self, target, layout):
        root, uuid = target
        done = install(layout, root, "--karg", "more=1")
        assert done.returncode == 0, done.stderr
        assert options(root).startswith(f"root=UUID={uuid} rw more=1 ostree=/ostree/boot.")
        assert (root / ".bootc-aleph.json").is_file()
        done = subprocess.run([BOOTC, "install", "finalize", root], capture_output=True, text=True)
        assert done.stdout == "Found 1 deployment\n"

    def test_a_boot_file_system_of_its_own(self, target, layout, tmp_path):
        root, _ = target
        boot = filesystem(tmp_path / "boot.img", root / "boot", 100)
        done = install(layout, root, "--root-mount-spec", "LABEL=x", "--skip-finalize")
        assert done.returncode == 0, done.stderr
        assert options(root).startswith(f"root=LABEL=x rw boot=UUID={boot} ")
        (etc,) = (root / "ostree/deploy/default/deploy").glob("*.0/etc")
        assert (etc / "fstab").read_text() == f"UUID={boot} /boot auto ro 0 0\n"

    def test_what_is_there_is_refused_wiped_or_kept(self, target, layout):
        root, _ = target
        (root / "home").mkdir()
        (root / "home/file").write_text("precious")
        done = install(layout, root)
        assert done.returncode == 1
        assert "Found entry in home: file" in done.stderr
        (root / "boot").mkdir()
        (root / "boot/vmlinuz-old").write_text("old")
        done = install(layout, root, "--replace", "alongside")
        assert done.returncode == 0, done.stderr
        assert (root / "home/file").read_text() == "precious"
        assert not (root / "boot/vmlinuz-old").exists()

    def test_wiping_stops_at_mounts(self, target, layout, tmp_path):
        root, _ = target
        (root / "file").touch()
        filesystem(tmp_path / "other.img", root / "data", 20)
        done = install(layout, root, "--replace", "wipe")
        assert done.returncode == 1
        assert "Found unexpected mount point" in done.stderr
        assert (root / "file").exists()
        subprocess.run(["umount", root / "data"], check=True)
        done = install(layout, root, "--replace", "wipe")
        assert done.returncode == 0, done.stderr
        assert not (root / "file").exists()

    def test_a_loader_without_its_partition_is_refused(self, target, layout):
        root, _ = target
        flags = ("--composefs-backend", "--allow-missing-verity")
        done = subprocess.run(
            [
                *(BOOTC, "install", "to-filesystem", "--source-imgref", f"oci:{layout}:latest"),
                *(*flags, "--target-no-signature-verification", str(root)),
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert "no EFI system partition is mounted below the target" in done.stderr

    def test_what_is_no_target_is_refused(self, layout, tmp_path):
        done = install(layout, tmp_path)
        assert done.returncode == 1
        assert "Not a mountpoint" in done.stderr
        done = install(layout, tmp_path / "nothing")
        assert "Not a directory" in done.stderr
        done = subprocess.run(
            [BOOTC, "install", "finalize", tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "Failed to find deployment in" in done.stderr


EXT4 = Filesystem("/dev/vda3", "ext4", "1234")


@pytest.mark.parametrize(
    ("filesystem", "spec", "inherited", "wanted"),
    [
        (EXT4, None, None, ["root=UUID=1234", "rw"]),
        (EXT4, "", None, ["rw"]),
        (EXT4, "LABEL=root", "root=UUID=9 rd.lvm.lv=a", ["root=LABEL=root", "rw"]),
        (
            EXT4,
            None,
            "quiet root=/dev/mapper/a rootflags=x rd.lvm.lv=a/b rw",
            ["root=/dev/mapper/a", "rootflags=x", "rd.lvm.lv=a/b", "rw"],
        ),
        (EXT4, None, "quiet rd.lvm.lv=a", ["root=UUID=1234", "rw"]),
        (
            Filesystem("/dev/vda3", "btrfs", "1234", "/root"),
            None,
            None,
            ["root=UUID=1234", "rootflags=subvol=/root", "rw"],
        ),
    ],
)
def test_root_arguments(filesystem, spec, inherited, wanted):
    line = CommandLine.parse(inherited) if inherited else None
    assert roots.root_arguments(filesystem, spec, line) == wanted


def test_a_root_without_uuid_needs_a_word():
    with pytest.raises(StorageError, match="No filesystem uuid found in target root"):
        roots.root_arguments(Filesystem("x", "ext4", None), None, None)
    with pytest.raises(StorageError, match="Unknown filesystem: zfs"):
        roots.check_kind(Filesystem("x", "zfs", None))


def test_the_boot_line_of_fstab():
    text = "# UUID=0 /boot ext4 ro\nUUID=1 / ext4 ro 0 0\nUUID=2 /boot ext4 ro 0 0\n"
    assert roots.fstab_line(text, "/boot") == "UUID=2"
    assert roots.fstab_line("/dev/vda1 /boot ext4 ro 0 0\n", "/boot") is None
    assert roots.fstab_line("", "/boot") is None


def test_completion_adds_arguments_once(tmp_path):
    entries = tmp_path / "boot/loader/entries"
    entries.mkdir(parents=True)
    entry = entries / "ostree-1.conf"
    entry.write_text("title x\nlinux /v\noptions root=UUID=1 quiet\ninitrd /i\n")
    for place, text in (
        ("usr/lib/bootc/kargs.d", 'kargs = ["quiet", "console=ttyS0"]\n'),
        ("usr/lib/bootc/install", '[install]\nkargs = ["installed=1"]\n'),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "10.toml").write_text(text)
    for _ in range(2):
        completion.complete(tmp_path)
        assert "options root=UUID=1 quiet installed=1 console=ttyS0\n" in entry.read_text()
    os.unlink(entry)
    with pytest.raises(StorageError, match="Failed to find deployment"):
        completion.complete(tmp_path)
