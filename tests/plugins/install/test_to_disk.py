"""Real installations to files, by sfdisk, mkfs and loop devices; the image is small, its kernel and loaders are stand-ins."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.images import File, Link, bootable, build

from bootc_core.boot import bls
from bootc_core.cli.main import main

pytestmark = [pytest.mark.root, pytest.mark.real]
BOOTC = str(Path(sys.executable).with_name("bootc"))
GIB = 1 << 30
MIB = 1 << 20
SYSTEMD_BOOT = b"MZ systemd-boot" * 99
GRUB = b"MZ grub" * 99 + b"\0/EFI/debian\0" + b"x" * 99
KARGS = 'kargs = ["console=ttyS0", "quiet", "image=1"]\n'


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("image")
    more = {
        "usr/lib/systemd/boot/efi/systemd-bootx64.efi": SYSTEMD_BOOT,
        "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi": GRUB,
        "usr/lib/bootc/kargs.d/10.toml": KARGS,
        "root": Link("var/roothome"),
        "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
        "ostree": Link("sysroot/ostree"),
        "usr/bin/big": File(os.urandom(70_000), mode=0o2755, gid=42),
    }
    return build(place / "layout", [bootable(more)]).path


@pytest.fixture
def disk(tmp_path) -> Path:
    return make(tmp_path / "disk.img", 2 * GIB)


def make(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def install(disk: Path, layout: Path, config: Path, *flags: str) -> int:
    # a process of its own: it moves into a mount namespace
    done = subprocess.run(
        [
            *(BOOTC, "install"),
            *("to-disk", "--via-loopback", "--source-imgref", f"oci:{layout}:latest", "--quiet"),
            *("--target-no-signature-verification", "--config-root", str(config)),
            *flags,
            str(disk),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    install.said = done.stdout + done.stderr  # type: ignore[attr-defined]
    return done.returncode


def said() -> str:
    return install.said  # type: ignore[attr-defined,no-any-return]


def table(disk: Path) -> list[dict]:
    told = subprocess.run(["sfdisk", "--json", disk], capture_output=True, check=True).stdout
    return json.loads(told)["partitiontable"]["partitions"]


@contextmanager
def root_of(disk: Path, place: Path) -> Iterator[Path]:
    part = table(disk)[-1]
    offset, size = part["start"] * 512, part["size"] * 512
    place.mkdir(exist_ok=True)
    options = f"loop,ro,offset={offset},sizelimit={size}"
    subprocess.run(["mount", "-o", options, disk, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def esp_of(disk: Path, place: Path) -> Path:
    part = next(one for one in table(disk) if one["name"] == "EFI-SYSTEM")
    place.mkdir()
    subprocess.run(
        ["mcopy", "-s", "-Q", "-i", f"{disk}@@{part['start'] * 512}", "::*", place],
        check=True,
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1"},
    )
    return place


def no_loops(disk: Path) -> bool:
    told = subprocess.run(["losetup", "-j", disk], capture_output=True, check=True).stdout
    return told == b""


def uuid_of(disk: Path) -> dict[str, str]:
    offset = table(disk)[-1]["start"] * 512
    command = ["blkid", "-p", "-O", str(offset), "-o", "export", disk]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.partition("=")[::2] for line in told.splitlines())


def test_composefs_with_systemd_boot(disk, layout, tmp_path):
    settings = tmp_path / "config/usr/lib/bootc/install/10.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[install]\nkargs = ["setting=1"]\nkarg-deletes = ["quiet"]\n')
    keys = tmp_path / "keys"
    keys.write_text("ssh-ed25519 AAAA someone\n")
    flags = ("--composefs-backend", "--allow-missing-verity", "--filesystem", "ext4")
    more = ("--karg", "flag=1", "--karg-delete", "image", "--root-ssh-authorized-keys", str(keys))
    target = ("--target-imgref", "quay.io/acme/os:1")
    assert install(disk, layout, tmp_path / "config", *flags, *more, *target) == 0, said()
    assert said().endswith("Installation complete!\n") or "Installation complete!\n" in said()
    assert [(one["name"], one["size"] * 512 // MIB) for one in table(disk)[:2]] == [
        ("BIOS-BOOT", 1),
        ("EFI-SYSTEM", 1024),
    ]
    found = uuid_of(disk)
    assert (found["TYPE"], found["LABEL"]) == ("ext4", "root")
    esp = esp_of(disk, tmp_path / "esp")
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        assert (esp / name).read_bytes() == SYSTEMD_BOOT
    assert (esp / "loader/loader.conf").read_text() == "timeout 5\n"
    (entry,) = bls.read_entries(esp)
    with root_of(disk, tmp_path / "root") as root:
        (deployment,) = os.listdir(root / "state/deploy")
        keys_of_entry = [key for key, _ in entry.keys]
        assert keys_of_entry == ["title", "version", "linux", "initrd", "options", "sort-key"]
        assert entry.get("title") == "Test OS 1"
        assert entry.get("version") == "1"
        assert entry.get("sort-key") == "bootc-testos-0"
        directory = f"/EFI/Linux/bootc_composefs-{deployment}"
        assert entry.get("linux") == f"{directory}/vmlinuz"
        assert entry.get("initrd") == f"{directory}/initrd"
        assert entry.get("options") == (
            f"root=UUID={found['UUID']} rw setting=1 console=ttyS0 flag=1 composefs=?{deployment}"
        )
        origin = (root / f"state/deploy/{deployment}/{deployment}.origin").read_text()
        reference = "ostree-unverified-image:docker://quay.io/acme/os:1"
        assert f"container-image-reference={reference}\n" in origin
        kernel = (esp / entry.get("linux").lstrip("/")).read_bytes()
        initrd = (esp / entry.get("initrd").lstrip("/")).read_bytes()
        assert f"digest={hashlib.sha256(kernel + initrd).hexdigest()}\n" in origin
        assert "boot_type=bls\n" in origin
        conf = root / f"state/deploy/{deployment}/etc/tmpfiles.d/bootc-root-ssh.conf"
        encoded = "c3NoLWVkMjU1MTkgQUFBQSBzb21lb25lCg=="
        assert conf.read_text() == (
            f"f~ /var/roothome/.ssh/authorized_keys 600 root root - {encoded}\n"
        )
        aleph = json.loads((root / ".bootc-aleph.json").read_text())
        assert aleph["target-image"] == "quay.io/acme/os:1"
        assert aleph["kernel"] == os.uname().release
        assert aleph["selinux"] == "disabled"
        assert sorted(aleph) == [
            "digest", "kernel", "selinux", "target-image", "timestamp",
        ]  # fmt: skip
        assert (root / "boot/efi").is_dir()
        assert (root / "boot/efi").stat().st_mode & 0o777 == 0o755
        assert sorted(os.listdir(root)) == [
            ".bootc-aleph.json", "boot", "bootc", "composefs", "lost+found", "state",
        ]  # fmt: skip
    assert no_loops(disk)


def test_composefs_with_grub_on_xfs(disk, layout, tmp_path):
    flags = ("--composefs-backend", "--bootloader", "grub", "--filesystem", "xfs")
    assert install(disk, layout, tmp_path / "none", *flags, "--stateroot", "x") == 0, said()
    found = uuid_of(disk)
    assert (found["TYPE"], found["LABEL"]) == ("xfs", "root")
    esp = esp_of(disk, tmp_path / "esp")
    assert (esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == GRUB
    stub = (esp / "EFI/debian/grub.cfg").read_text()
    assert f"--fs-uuid --set=root {found['UUID']}\n" in stub
    assert "set prefix=($root)/boot/grub\n" in stub
    with root_of(disk, tmp_path / "root") as root:
        (entry,) = bls.read_entries(root / "boot")
        deployment = bls.deployment_of(entry)
        assert entry.file == "loader/entries/bootc_testos-1-0.conf"
        assert entry.get("linux") == f"/boot/bootc_composefs-{deployment}/vmlinuz"
        assert (root / entry.get("linux").lstrip("/")).is_file()
        menu = (root / "boot/loader/entries/bootc.grub").read_text()
        assert f"linux /boot/bootc_composefs-{deployment}/vmlinuz root=UUID=" in menu
        config = (root / "boot/grub/grub.cfg").read_text()
        assert "source /boot/loader/entries/bootc.grub\n" in config


def test_ostree_with_grub(disk, layout, tmp_path):
    flags = ("--backend", "ostree", "--filesystem", "btrfs", "--stateroot", "acme")
    assert install(disk, layout, tmp_path / "none", *flags) == 0, said()
    assert uuid_of(disk)["TYPE"] == "btrfs"
    assert [(one["name"], one["size"] * 512 // MIB) for one in table(disk)[1:2]] == [
        ("EFI-SYSTEM", 512)
    ]
    with root_of(disk, tmp_path / "root") as root:
        (checkout,) = (root / "ostree/deploy/acme/deploy").glob("*.0")
        assert (checkout / "usr/bin/big").is_file()
        menu = (root / "boot/grub/bootc.cfg").read_text()
        assert "ostree=/ostree/boot." in menu
        assert "  linux /boot/ostree/acme-" in menu
        assert "console=ttyS0 quiet image=1" in menu
        config = (root / "ostree/repo/config").read_text()
        for line in ("bootloader=none", "bootprefix=true", "readonly=true"):
            assert line in config
        assert (
            "ostree-unverified-image:oci:"
            in checkout.with_name(f"{checkout.name}.origin").read_text()
        )


@pytest.mark.parametrize(
    ("flags", "size", "message"),
    [
        (("--filesystem", "ext4"), 2 * GIB, "fs-verity is not available"),
        (("--filesystem", "ext4", "--allow-missing-verity"), 512 * MIB, "is too small"),
        (("--filesystem", "ext4", "--root-size", "5G"), 2 * GIB, "is too small"),
        (("--filesystem", "ext4", "--root-size", "much"), 2 * GIB, "--root-size takes a size"),
        ((), 2 * GIB, "No install configuration found, and no filesystem specified"),
        (
            ("--block-setup", "tpm2-luks", "--filesystem", "ext4"),
            2 * GIB,
            "tpm2-luks is not possible",
        ),
        (("--bootloader", "none", "--filesystem", "xfs"), 2 * GIB, "Bootloader set to none is not"),
        (("--bootloader", "grub-cc", "--filesystem", "xfs"), 2 * GIB, "grub-cc is not supported"),
        (
            ("--backend", "ostree", "--bootloader", "systemd"),
            2 * GIB,
            "cannot be booted by systemd",
        ),
        (("--filesystem", "xfs", "--stateroot", "../x"), 2 * GIB, "--stateroot takes a plain name"),
        (("--filesystem", "xfs", "--karg", "a\nb"), 2 * GIB, "control character"),
        (("--filesystem", "xfs", "--root-ssh-authorized-keys", "/nowhere"), 2 * GIB, "cannot read"),
        (("--filesystem", "xfs", "--root-ssh-authorized-keys", __file__), 2 * GIB, "line 1: "),
        (("--filesystem", "xfs", "--source-imgref", "oci:/nowhere:x"), 2 * GIB, "/nowhere"),
    ],
)
def test_what_cannot_be_installed_is_refused_and_nothing_written(
    flags, size, message, layout, tmp_path
):
    disk = make(tmp_path / "disk.img", size)
    before = disk.stat().st_blocks
    assert install(disk, layout, tmp_path / "none", *flags) in {1, 2}
    assert message in said()
    assert said().count("error:") == 1
    if "fs-verity" not in message:
        assert disk.stat().st_blocks == before
    assert no_loops(disk)


def test_a_disk_in_use_or_not_empty_is_refused_until_wiped(disk, layout, tmp_path):
    flags = ("--filesystem", "xfs")
    loop = subprocess.run(
        ["losetup", "-f", "--show", disk], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        assert install(disk, layout, tmp_path / "none", *flags) == 1
        assert "is mounted" in said()
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    subprocess.run(["sfdisk", "-q", disk], input=b"label: gpt\nsize=1MiB\n", check=True)
    assert install(disk, layout, tmp_path / "none", *flags) == 1
    assert "Detected existing partitions on" in said()
    assert "--wipe" in said()
    assert install(disk, layout, tmp_path / "none", *flags, "--wipe") == 0, said()


def test_an_image_that_is_not_accepted_is_refused_before_the_disk_is_touched(
    disk, layout, tmp_path
):
    policy = tmp_path / "config/etc/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "reject"}]}')
    subprocess.run(["sfdisk", "-q", disk], input=b"label: gpt\nsize=1MiB\n", check=True)
    before = hashlib.sha256(disk.read_bytes()[:MIB]).digest()
    done = subprocess.run(
        [
            *(BOOTC, "install", "to-disk"),
            *(
                "--via-loopback",
                "--wipe",
                "--filesystem",
                "xfs",
                "--config-root",
                tmp_path / "config",
            ),
            *("--source-imgref", f"oci:{layout}:latest", disk),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is not accepted by signature policy" in done.stderr
    assert hashlib.sha256(disk.read_bytes()[:MIB]).digest() == before


def test_a_block_device_in_use_is_refused_with_its_holder(disk, layout, tmp_path, capsys):
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    command = ["losetup", "-f", "--show", disk]
    loop = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    place = tmp_path / "mounted"
    place.mkdir()
    base = ["install", "to-disk", "--source-imgref", f"oci:{layout}:latest", "--filesystem", "xfs"]
    try:
        subprocess.run(["mount", loop, place], check=True)
        done = subprocess.run([BOOTC, *base, loop], check=False, capture_output=True, text=True)
        subprocess.run(["umount", place], check=True)
        assert done.returncode == 1
        assert f"Device {loop} is mounted" in done.stderr
        assert f"used by {place}" in done.stderr
        subprocess.run(["blockdev", "--setro", loop], check=True)
        done = subprocess.run([BOOTC, *base, loop], check=False, capture_output=True, text=True)
        # the flag outlives the loop device's file, and the next one to get the device would suffer
        subprocess.run(["blockdev", "--setrw", loop], check=True)
        assert f"{loop} is read-only" in done.stderr
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_what_is_no_disk_is_refused(layout, tmp_path, capsys):
    base = ["install", "to-disk", "--source-imgref", f"oci:{layout}:latest", "--filesystem", "xfs"]
    assert main([*base, str(tmp_path)]) == 1
    assert "Not a block device" in capsys.readouterr().err
    assert main([*base, "--via-loopback", str(tmp_path)]) == 1
    assert "Not a regular file (to be used via loopback)" in capsys.readouterr().err
    assert main(["install", "to-disk", "--filesystem", "xfs", str(tmp_path)]) == 1
    assert "--source-imgref must be defined" in capsys.readouterr().err


def test_an_image_without_the_bootloader_is_refused(disk, tmp_path):
    layout = build(tmp_path / "layout", [bootable()]).path
    assert install(disk, layout, tmp_path / "none", "--filesystem", "xfs") == 1
    assert "the image has no systemd-boot" in said()
    assert no_loops(disk)
