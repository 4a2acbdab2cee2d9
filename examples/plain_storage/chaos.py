"""How the chaos suites see this backend: ``python -m bootc_core.testing.chaos all --subject examples/plain_storage/chaos.py``."""

from __future__ import annotations

from bootc_core.testing.chaos import Subject

SUBJECT = Subject(
    "plain",
    tree=lambda sysroot, name: sysroot.path / "plain/deploy" / name / "root",
    etc=lambda sysroot, name: sysroot.path / "plain/deploy" / name / "etc",
    var=lambda sysroot: sysroot.path / "plain/var",
    packages=(".",),
    boot=("ext4", "vfat"),
    modules=("bootc_systemd_boot.switch", "bootc_archives.image", "bootc_signing.decide"),
)
