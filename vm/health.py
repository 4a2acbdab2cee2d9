#!/usr/bin/python3
"""Updates that go wrong in a virtual machine: one hangs at boot, one is not healthy. The machine comes back to the old one.

Nobody helps it: the boot loader counts, and the deadline of a counted boot, or the failed check, reboots. Then `status` says what
failed and why, `upgrade` does not take that image again, and the next version is taken and called good. Needs root.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from support.registry import running_registry

from vm import cycle, image
from vm.guest import Guest
from vm.qemu import find_qemu

WHY = {
    "hang": "did not come up: it did not reach its health checks in any of its boots",
    "sick": "was not healthy: 50-vm: the heart does not beat",
}
TRIES_S = 3600.0  # three boots, with their deadlines, and the one after them


def settled(guest: Guest) -> None:
    """Wait until the boot was judged."""
    state = "systemctl show -P ActiveState bootc-boot-complete"
    guest.shell(f'until test "$({state})" = active; do sleep 1; done', timeout_s=600)


def comes_back(told: cycle.Told, guest: Guest, bad: str) -> None:
    """Upgrade to ``bad``, reboot, and see version 1 come back by itself."""
    told.say(guest.shell("bootc upgrade --quiet", timeout_s=900))
    told.check("staged image", cycle.version(cycle.status(guest)["staged"]), bad)
    guest.send("systemctl reboot --no-wall")
    while (marker := guest.wait_marker(TRIES_S))["version"] != "1":
        told.say(f"booted version {marker['version']}")
    told.say("version 1 is back")
    settled(guest)
    document = json.loads(guest.shell("bootc status --json 2>/dev/null"))
    said = document["metadata"]["annotations"]["bootc.python/failed-update"]
    told.check("why", WHY[bad] in said, True)
    told.say(said)
    told.check("booted image", cycle.version(document["status"]["booted"]), "1")
    told.check("the failed deployment is gone", document["status"]["rollback"], None)
    answer = guest.shell("bootc upgrade --quiet", timeout_s=300)
    told.check("not offered again", "No update available" in answer, True)
    told.check("nothing staged", cycle.status(guest)["staged"], None)


def main() -> None:
    """Both updates, then a good one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    layout = image.build(cycle.CACHE.resolve())
    qemu = find_qemu(cycle.CACHE.resolve())
    told = cycle.Told("health")
    with cycle.scratch() as place, running_registry(place) as registry:
        cycle.push(layout, "v1", registry.authority)
        disk = place / "disk.img"
        cycle.install(cycle.KINDS[0], layout, disk)
        port = int(registry.authority.rpartition(":")[2])
        with Guest(disk, qemu, forward={cycle.PORT: port}, log=place / "console.log") as guest:
            told.check("version that booted", guest.wait_marker()["version"], "1")
            settled(guest)
            for bad in ("sick", "hang"):
                cycle.push(layout, bad, registry.authority)
                comes_back(told, guest, bad)
            cycle.push(layout, "v2", registry.authority)
            told.say(guest.shell("bootc upgrade --quiet", timeout_s=900))
            told.check("version after the reboot", guest.reboot()["version"], "2")
            settled(guest)
            names = guest.shell(
                "ls /boot/loader/entries /efi/loader/entries 2>/dev/null", check=False
            )
            told.check("called good", "+" not in names, True)
            document = json.loads(guest.shell("bootc status --json 2>/dev/null"))
            told.check("nothing failed", "annotations" in document["metadata"], False)
    told.say("passed")


if __name__ == "__main__":
    main()
