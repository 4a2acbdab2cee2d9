#!/usr/bin/python3
"""A host's life in a virtual machine: installed, booted, upgraded from a registry, rebooted, rolled back.

    vm/cycle.py NAME...        composefs-systemd, ostree-grub, composefs-grub; none: all of them

Every command is the real one: `bootc install` here, `bootc upgrade` and `bootc rollback` in the machine, whose image is served by
docker-registry on loopback. The second image has another kernel. Needs root; QEMU is found or fetched (``qemu``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from support.registry import running_registry

from vm import image
from vm.guest import Guest, GuestError
from vm.qemu import find_qemu

BOOTC = REPOSITORY / ".venv/bin/bootc"
CACHE = REPOSITORY / ".cache/vm"
NAME = "os/vm"
PORT = 5000  # in the guest
FOLLOWED = f"10.0.2.100:{PORT}/{NAME}:latest"
SIZE = 3 << 30
# An emulated machine on a crowded one takes minutes for what systemd expects within seconds
SLOW = (
    "systemd.default_device_timeout_sec=900",
    "systemd.default_timeout_start_sec=900",
)


@dataclass(frozen=True)
class Kind:
    """A storage backend with a bootloader, as flags of the installation."""

    name: str
    flags: tuple[str, ...]


KINDS = (
    Kind(
        "composefs-systemd",
        ("--composefs-backend", "--bootloader", "systemd", "--allow-missing-verity"),
    ),
    Kind("ostree-grub", ("--backend", "ostree", "--bootloader", "grub")),
    Kind(
        "composefs-grub", ("--composefs-backend", "--bootloader", "grub", "--allow-missing-verity")
    ),
)


class Told:
    """Lines with the seconds since the beginning; a check that fails ends the run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begin = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        print(f"[{self.name} {time.monotonic() - self.begin:6.1f} s] {text}", flush=True)

    def check(self, what: str, found: object, wanted: object) -> None:
        """``found`` is what is wanted."""
        if found != wanted:
            raise SystemExit(f"{self.name}: {what}: expected {wanted!r}, found {found!r}")
        self.say(f"ok: {what}: {found}")


def install(kind: Kind, layout: Path, disk: Path) -> None:
    """Make ``disk`` and install version 1 there; what it follows is the registry that the guest reaches."""
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(SIZE)
    command = [
        *(str(BOOTC), "install", "to-disk", "--via-loopback", "--filesystem", "ext4"),
        *kind.flags,
        *("--source-imgref", f"oci:{layout}:v1", "--target-imgref", FOLLOWED),
        *("--target-no-signature-verification", "--quiet"),
        *(f"--karg={argument}" for argument in SLOW),
        str(disk),
    ]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def push(layout: Path, name: str, authority: str) -> None:
    """Publish an image of the layout."""
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
            *(f"oci:{layout}:{name}", f"docker://{authority}/{NAME}:latest"),
        ],
        check=True,
    )


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for disks and the registry's storage."""
    place = Path(tempfile.mkdtemp(prefix="bootc-vm.", dir=os.environ.get("VM_SCRATCH")))
    try:
        yield place
    finally:
        if "VM_KEEP" in os.environ:
            print(f"kept: {place}")
        else:
            shutil.rmtree(place)


def status(guest: Guest) -> dict[str, Any]:
    """The host as the guest's ``bootc status`` tells it."""
    said = guest.shell("bootc status --json")
    start = said.find("{")
    if start < 0:
        raise GuestError(f"bootc status says no JSON: {said!r}")
    found: dict[str, Any] = json.JSONDecoder().raw_decode(said, start)[0]["status"]
    return found


def permit_plain(guest: Guest) -> None:
    """The registry speaks no TLS, which its administrator says in the host's settings."""
    text = f'[[registry]]\nlocation = "10.0.2.100:{PORT}"\ninsecure = true\n'
    place = "/etc/containers/registries.conf.d"
    guest.shell(f"mkdir -p {place}; printf '%s' '{text}' >{place}/vm.conf")


def settle(guest: Guest) -> None:
    """Wait until the boot has been judged: that run holds the sysroot's lock."""
    guest.shell("systemctl is-system-running --wait", timeout_s=600, check=False)


def version(entry: dict[str, Any] | None) -> str | None:
    """The version of a slot's image, or None."""
    return entry["image"]["version"] if entry and entry["image"] else None


def run(kind: Kind, layout: Path, qemu: str) -> None:
    """The whole life of one kind of host."""
    told = Told(kind.name)
    with scratch() as place, running_registry(place) as registry:
        push(layout, "v1", registry.authority)
        disk = place / "disk.img"
        install(kind, layout, disk)
        told.say("installed")
        port = int(registry.authority.rpartition(":")[2])
        with Guest(disk, qemu, forward={PORT: port}, log=place / "console.log") as guest:
            first = guest.wait_marker()
            settle(guest)
            told.check("version that booted", first["version"], "1")
            host = status(guest)
            told.check("booted image", version(host["booted"]), "1")
            told.check("reference", host["booted"]["image"]["image"]["image"], FOLLOWED)
            told.check(
                "/usr refuses writing",
                guest.shell("touch /usr/x 2>/dev/null; echo $?", check=False),
                "1",
            )
            guest.shell("echo kept >/etc/vm-state; echo mine >/etc/vm-edited")
            permit_plain(guest)
            guest.shell("echo kept >/var/lib/vm-state")
            push(layout, "v2", registry.authority)
            told.say("version 2 is published")
            told.say(guest.shell("bootc upgrade --check", timeout_s=300))
            told.say(guest.shell("time bootc upgrade --quiet", timeout_s=900))
            host = status(guest)
            told.check("staged image", version(host["staged"]), "2")
            told.check("still booted", version(host["booted"]), "1")
            guest.shell("echo late >/etc/vm-late")  # until the shutdown, edits count
            second = guest.reboot()
            settle(guest)
            told.check("version after the reboot", second["version"], "2")
            told.check("another kernel", second["kernel"] != first["kernel"], True)
            told.check("/etc is kept", second["etc"], "kept")
            told.check("/var is kept", second["var"], "kept")
            told.check("an edited file", guest.shell("cat /etc/vm-edited"), "mine")
            told.check("a late edit", guest.shell("cat /etc/vm-late"), "late")
            told.check("a new default", guest.shell("cat /etc/vm-default"), "default of version 2")
            told.check(
                "a removed file", guest.shell("test -e /usr/lib/vm/retired || echo gone"), "gone"
            )
            told.check(
                "a kernel argument",
                guest.shell("grep -o vm.version=. /proc/cmdline"),
                "vm.version=2",
            )
            host = status(guest)
            told.check("booted image", version(host["booted"]), "2")
            told.check("image to go back to", version(host["rollback"]), "1")
            told.say(guest.shell("bootc rollback"))
            third = guest.reboot()
            settle(guest)
            told.check("version after the rollback", third["version"], "1")
            told.check("its kernel", third["kernel"], first["kernel"])
            told.check("/var is still kept", third["var"], "kept")
            host = status(guest)
            told.check("booted image", version(host["booted"]), "1")
            told.check("failed units", guest.shell("systemctl --failed --plain --no-legend"), "")
        told.say("passed")


def main() -> None:
    """Run the chosen kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    chosen = [kind for kind in KINDS if not names or kind.name in names]
    if unknown := set(names) - {kind.name for kind in KINDS}:
        parser.error(f"no such cycle: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # machines and registry go with us
    layout = image.build(CACHE.resolve())
    qemu = find_qemu(CACHE.resolve())
    for kind in chosen:
        run(kind, layout, qemu)


if __name__ == "__main__":
    main()
