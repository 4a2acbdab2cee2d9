#!/usr/bin/python3
"""Pull the plug of a virtual machine at random moments of an upgrade; it always boots, the old image or the new one.

    vm/kill.py [--times N] [--seed S] NAME...

One host of each kind is installed and booted. Then, N times: an upgrade is begun in the machine (to version 2, or back to version
1, whichever does not run), QEMU is killed at a moment between its beginning and the end of the reboot that follows, and the same
disk is started again. What boots must be one of the two images, whole. What the guest's kernel had not written yet is lost.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.registry import running_registry

from vm import image
from vm.cycle import CACHE, KINDS, PORT, Kind, Told, install, permit_plain, push, scratch
from vm.guest import BOOT_S, Guest
from vm.qemu import find_qemu

_UPGRADE = "bootc upgrade --quiet >/run/upgrade.log 2>&1; systemctl reboot --no-wall"


def run(kind: Kind, layout: Path, qemu: str, times: int, seed: int) -> Counter[str]:
    """One host's life with ``times`` power cuts; how often the old and the new image booted after one."""
    told = Told(kind.name)
    dice = random.Random(f"{seed} {kind.name}")  # noqa: S311 - moments, not secrets
    found: Counter[str] = Counter()
    with scratch() as place, running_registry(place) as registry:
        push(layout, "v1", registry.authority)
        disk, log = place / "disk.img", place / "console.log"
        install(kind, layout, disk)
        forward = {PORT: int(registry.authority.rpartition(":")[2])}
        span, cuts = 0.0, 0
        version = "1"
        while cuts < times:
            with Guest(disk, qemu, forward=forward, log=log) as guest:
                fields = guest.wait_marker()
                version = fields["version"]
                permit_plain(guest)
                check(guest, told)
                push(layout, "v2" if version == "1" else "v1", registry.authority)
                if cuts % 3 == 0:
                    # measured anew now and then: the machine under us is not always as fast
                    begin = guest.clock()
                    guest.send(_UPGRADE)
                    after = guest.wait_marker(4 * BOOT_S)["version"]
                    span = guest.clock() - begin
                    told.check("an upgrade that nobody stops", after != version, True)
                    version = after
                    push(layout, "v2" if version == "1" else "v1", registry.authority)
                moment = dice.uniform(0.0, span)
                guest.send(_UPGRADE)
                guest.wait(moment)
                guest.kill()
            cuts += 1
            with Guest(disk, qemu, forward=forward, log=log) as guest:
                after = guest.wait_marker()["version"]
                check(guest, told)
                guest.kill()
            outcome = "old" if after == version else "new"
            found[outcome] += 1
            told.say(f"cut {cuts} at {moment:.1f} of {span:.1f} s: {outcome} (version {after})")
    return found


def check(guest: Guest, told: Told) -> None:
    """What runs is whole: every file of it can be read, and the host knows itself."""
    del told
    guest.shell("cat /usr/lib/vm/* /usr/bin/* /usr/sbin/* >/dev/null", timeout_s=600)
    guest.shell("bootc status --json >/dev/null", timeout_s=600)


def main() -> None:
    """Run the chosen kinds; exit status 1 if one did not boot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # machines and registry go with us
    layout = image.build(CACHE.resolve())
    qemu = find_qemu(CACHE.resolve())
    subprocess.run(["sync"], check=True)
    for kind in KINDS:
        if not arguments.names or kind.name in arguments.names:
            found = run(kind, layout, qemu, arguments.times, arguments.seed)
            print(f"{kind.name}: {arguments.times} power cuts: {dict(found)}, torn: 0", flush=True)


if __name__ == "__main__":
    main()
