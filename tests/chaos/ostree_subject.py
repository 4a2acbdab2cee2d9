"""The backend on the real libostree, which writes its boot entries itself."""

from __future__ import annotations

import subprocess

from bootc_ostree import state

from bootc_core.testing.chaos import Subject


def deployment_of(sysroot, entry):
    found = state.deployments(sysroot, [entry])
    return f"{found[0].checksum}.{found[0].serial}" if found else None


def check(sysroot):
    done = subprocess.run(
        ["ostree", "fsck", f"--repo={sysroot.path}/ostree/repo", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [] if done.returncode == 0 else [done.stderr.strip()]


def place(sysroot, name):
    return sysroot.path / "ostree/deploy/default/deploy" / name


SUBJECT = Subject(
    "ostree",
    tree=place,
    etc=lambda sysroot, name: place(sysroot, name) / "etc",
    var=lambda sysroot: sysroot.path / "ostree/deploy/default/var",
    check=check,
    deployment_of=deployment_of,
    modules=("bootc_ostree.backend", "bootc_archives.image", "bootc_signing.decide"),
)
