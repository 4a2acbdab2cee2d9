"""A small tree of an operating system with one of everything that image formats and file systems have trouble with (root)."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def odd_tree(root: Path) -> None:
    """A small image tree with one of everything that file systems have trouble with."""
    for folder in (
        "boot",
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "sysroot",
        "tmp",
        "usr/bin",
        "usr/lib/modules/6.0-test",
        "var/tmp",
    ):
        (root / folder).mkdir(parents=True)
    kernel = root / "usr/lib/modules/6.0-test"
    (kernel / "vmlinuz").write_bytes(b"a kernel" * 5000)
    (kernel / "initramfs.img").write_bytes(b"an initramfs" * 5000)
    (root / "usr/lib/os-release").write_text('ID=test\nVERSION_ID="1"\nPRETTY_NAME="Generated"\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    odd = root / "usr/lib/odd"
    odd.mkdir()
    (odd / "empty").touch()
    for size in (1, 63, 64, 65, 4095, 4096, 4097, 131_073):
        (odd / f"size-{size}").write_bytes(bytes([size % 251]) * size)
    (odd / "hole").touch()
    os.truncate(odd / "hole", 3_000_000)
    (odd / "set-user-id").write_bytes(b"x" * 100)
    os.chown(odd / "set-user-id", 1234, 70_000)
    (odd / "set-user-id").chmod(0o6755)
    (odd / "one").write_bytes(b"one inode, three names" * 10)
    os.link(odd / "one", odd / "two")
    os.link(odd / "one", root / "usr/bin/three")
    (odd / "small-one").write_bytes(b"small")
    os.link(odd / "small-one", odd / "small-two")
    os.mkfifo(odd / "fifo")
    os.mknod(root / "dev/character", stat.S_IFCHR | 0o620, os.makedev(5, 300))
    os.mknod(root / "dev/block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    (odd / "long-target").symlink_to("a/" * 1500 + "end")
    os.symlink(b"\xff\xfe", os.fsencode(odd / "odd-target"))
    Path(os.fsdecode(os.fsencode(odd) + b"/name-\xff\xfe")).write_bytes(b"a name that is no UTF-8")
    (odd / ("n" * 255)).write_bytes(b"the longest name")
    (odd / "with space and\nline").write_bytes(b"odd name")
    (odd / "capable").write_bytes(b"c" * 200)
    # cap_net_raw, version 2, as setcap writes it
    os.setxattr(
        odd / "capable",
        "security.capability",
        bytes.fromhex("0100000200200000000000000000000000000000"),
    )
    many = odd / "many"
    many.mkdir(mode=0o2775)
    for number in range(700):
        (many / f"entry-{number:04}").write_bytes(b"%d" % number)
    (odd / "old").write_bytes(b"from 1970")
    os.utime(odd / "old", (1, 1))
    os.utime(many, (1_000_000_000, 1_000_000_000))
