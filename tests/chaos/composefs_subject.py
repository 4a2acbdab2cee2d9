"""The embedded backend on systemd-boot entries."""

from __future__ import annotations

import os
import stat

from bootc_composefs import fsck
from bootc_composefs.contents import Contents
from bootc_composefs.erofs_read import read_image
from bootc_composefs.repository import Repository

from bootc_core.models.tree import walk
from bootc_core.testing.chaos import Subject


def content(sysroot, name):
    found = {}
    with Repository.open(sysroot.path / "composefs") as repository:
        contents = Contents(repository)
        root = read_image(repository.read(bytes.fromhex(name)))
        for path, node in walk(root):
            text = os.fsdecode(path).lstrip("/")
            if text.startswith("usr/") and stat.S_ISREG(node.mode):
                with contents.open(node) as file:
                    found[text] = file.read()
    return found


def check(sysroot):
    with Repository.open(sysroot.path / "composefs") as repository:
        return fsck.check(repository)


SUBJECT = Subject(
    "composefs",
    tree=None,
    content=content,
    etc=lambda sysroot, name: sysroot.path / "state/deploy" / name / "etc",
    var=lambda sysroot: sysroot.path / "state/os/default/var",
    check=check,
    boot=("ext4", "vfat"),
    modules=(
        "bootc_composefs.backend",
        "bootc_systemd_boot.switch",
        "bootc_archives.image",
        "bootc_signing.decide",
    ),
)
