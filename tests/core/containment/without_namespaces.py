"""Run by ``test_misbehaviour``: plugins that leave daemons, in a process that may not make process namespaces."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.misbehaving import KINDS, package

from bootc_core.containment import declared
from bootc_core.containment.proxy import Bounds, Contained
from bootc_core.errors import BootcError
from bootc_core.models.context import Context, Operation, Phase

CONTEXT = Context(
    transaction="t",
    operation=Operation.UPGRADE,
    phase=Phase.STAGE,
    sysroot="/nowhere",
    live=False,
    started_at=datetime.now(UTC),
)
# a daemon of a daemon, both in sessions of their own; and the plugin does not end either
KINDS["stays"] = (
    "import os, signal, time\n"
    "    for _ in range(3):\n"
    "        if os.fork() == 0:\n"
    "            os.setsid()\n"
    "            signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "            os.fork()\n"
    "            time.sleep(600)\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    time.sleep(600)"
)


def left(marker: str) -> list[str]:
    """What still runs with the marker in its environment, other than this process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes()
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marker.encode() in environment and state not in "ZX":
                found.append(entry)
    return found


def main(place: Path) -> None:
    """Call both plugins; a line for each."""
    if ctypes.CDLL(None).unshare(0x20000000) == 0:
        raise SystemExit("this process may make process namespaces: nothing is shown")
    for kind, seconds in (("leaves a daemon", 60.0), ("stays", 3.0)):
        marker = f"{os.getpid()}-{kind}"
        os.environ["BOOTC_TEST_MARKER"] = marker
        source = package(place, kind, "closed", ("bootc_gate",))
        plugin = Contained(source, declared.read(source), bounds=Bounds(gate_s=seconds))
        try:
            trio.run(plugin.bootc_gate, CONTEXT, Phase.STAGE)
        except BootcError as problem:
            print(f"{kind}: {problem.reference}")
        deadline = time.monotonic() + 5
        while left(marker) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left(marker):
            raise SystemExit(f"{kind}: left {left(marker)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
