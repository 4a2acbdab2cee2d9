"""A host that booted a composefs deployment, without booting: this machine's files under a root mounted as the initramfs does.

    host = Booted(tmp_path, sysroot, deployment_id)
    host.bootc("status", "--json")

Each call runs in mount namespaces that end with it: the root is an overlay over this machine's root whose source is
``composefs:ID``; /sysroot is the sysroot, read-only; /proc/cmdline and /run are files of this test; ``systemctl`` and
``systemd-run`` write down how they were called. The real thing is what ``make vm`` boots.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.images import Dir, Link, bootable, build

PROJECT = Path(__file__).resolve().parents[2]
BOOTC = Path(sys.executable).with_name("bootc")

_SCRIPT = r"""
set -eu
w=$1; shift
mount -t tmpfs tmpfs "$w/mnt"
mkdir -p "$w/mnt/upper" "$w/mnt/work" "$w/mnt/root"
mount -t overlay "$SOURCE" -o "lowerdir=/,upperdir=$w/mnt/upper,workdir=$w/mnt/work" "$w/mnt/root"
r=$w/mnt/root
mkdir -p "$r/sysroot" "$r/usr/local/sbin"
for name in systemctl systemd-run; do
    printf '#!/bin/sh\necho "%s $*" >> /run/calls\n%s\n' "$name" "$PROGRAM" > "$r/usr/local/sbin/$name"
    chmod 755 "$r/usr/local/sbin/$name"
done
rm -f "$r/.dockerenv" "$r/run/.containerenv"
for d in proc sys dev; do mount --rbind "/$d" "$r/$d"; done
mount --bind "$w/run" "$r/run"
for pair in $MOUNTS; do mkdir -p "$r${pair#*:}"; mount --bind "${pair%%:*}" "$r${pair#*:}"; done
for d in $KEEP; do mkdir -p "$r$d"; mount --bind "$d" "$r$d"; done
mount --bind "$w/cmdline" "$r/proc/cmdline"
mount --bind "$SYSROOT" "$r/sysroot"
mount -o remount,bind,ro "$r/sysroot"
[ -z "$ETC" ] || mount --bind "$SYSROOT/$ETC" "$r/etc"
set +e
chroot "$r" "$@"
status=$?
chroot "$r" sh -c 'touch /sysroot/probe' 2>/dev/null && { echo "the host sees a writable /sysroot" >&2; exit 99; }
exit $status
"""


@dataclass
class Booted:
    """The simulated host; ``boot`` is what a reboot would do: /run is empty, the deployment another one."""

    home: Path
    sysroot: Path
    deployment: str
    optional: bool = True
    source: str | None = None  # of the root's mount; None: as the initramfs names it
    own_etc: bool = False  # the deployment's etc is /etc
    # what systemctl and systemd-run do after it was written down: a reboot ends the program that asked for it
    program: str = 'case "$*" in *reboot*) kill -9 $PPID ;; esac; exit 0'
    environment: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, Path] = field(default_factory=dict)  # directories of the test, by their place

    def __post_init__(self) -> None:
        for name in ("mnt", "run"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        self.boot(self.deployment)

    def boot(self, deployment: str) -> None:
        self.deployment = deployment
        subprocess.run(["find", str(self.home / "run"), "-mindepth", "1", "-delete"], check=True)
        mark = "?" if self.optional else ""
        (self.home / "cmdline").write_text(f"root=UUID=1 rw composefs={mark}{deployment}\n")

    def boots_next(self) -> str:
        """What the boot menu has first."""
        from bootc_core.boot import bls

        return bls.deployment_of(bls.read_entries(self.sysroot / "boot")[0]) or ""

    def run(self, *command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        keep = {str(PROJECT), str(self.home.parent), str(Path(sys.executable).parents[1])}
        variables = {
            "PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            "SOURCE": self.source or f"composefs:{self.deployment}",
            "SYSROOT": str(self.sysroot),
            "PROGRAM": self.program,
            "KEEP": " ".join(shlex.quote(path) for path in sorted(keep)),
            "ETC": f"state/deploy/{self.deployment}/etc" if self.own_etc else "",
            "MOUNTS": " ".join(f"{source}:{place}" for place, source in self.mounts.items()),
            "HOME": "/root",
            **self.environment,
        }
        return subprocess.run(
            [
                *("unshare", "-m", "--propagation", "private", "sh", "-c", _SCRIPT, "sh"),
                *(str(self.home), *map(str, command)),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=variables,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )

    def bootc(
        self, *arguments: str | Path, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return self.run(BOOTC, *arguments, timeout=timeout)

    def done(self, *arguments: str | Path) -> str:
        """Standard output of a command that has to succeed."""
        found = self.bootc(*arguments)
        assert found.returncode == 0, f"{arguments}\n{found.stdout}\n{found.stderr}"
        return found.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done("status", "--json"))["status"]
        return found

    def calls(self) -> list[str]:
        """How systemctl and systemd-run were called."""
        path = self.home / "run/calls"
        return path.read_text().splitlines() if path.exists() else []


# --- images and what happens to them ------------------------------------------------------------------------------------


def version(number: int, **more: Any) -> dict[str, Any]:
    return bootable(
        {"etc/motd": f"version {number}\n", "usr/lib/number": str(number), **more},
        version=str(number),
    )


def verity(slot: dict[str, Any] | None) -> Any:
    return slot and slot["composefs"]["verity"]


COUNTED = {
    "usr/lib/systemd/system": Dir(),
    "usr/lib/systemd/system/boot-complete.target.requires": Dir(),
    "usr/lib/systemd/system/boot-complete.target.requires/bootc-boot-complete.service": Link(
        "../bootc-boot-complete.service"
    ),
    "usr/lib/systemd": Dir(),
}
COUNTED = dict(sorted(COUNTED.items()))


def updated(host: Booted, layout: Path) -> str:
    """The host runs the first try of version 2."""
    build(layout, [version(2, **COUNTED)], tag="os")
    host.done("upgrade")
    host.done("composefs-finalize-staged")
    second = host.boots_next()
    host.boot(second)
    assert [name for name in os.listdir(host.sysroot / "boot/loader/entries") if "+3-0" in name]
    return second


def use_up_tries(host: Booted) -> None:
    """What systemd-boot does to the counted entry when it was tried often enough."""
    (path,) = (host.sysroot / "boot/loader/entries").glob("*+*.conf")
    path.rename(path.with_name(path.name.replace("+3-0", "+0-3")))
