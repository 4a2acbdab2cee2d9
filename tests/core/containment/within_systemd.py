"""Run by ``test_unit`` beside a systemd: plugins whose children are its services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.misbehaving import KINDS, package

from bootc_core.containment import declared, unit
from bootc_core.containment.proxy import Bounds, Contained
from bootc_core.errors import BootcError
from bootc_core.models.context import Context, Operation, Phase

LOOK = """
    from bootc_core import Deny
    def writes(place):
        try:
            open(place + "/bootc-unit-test", "w").close()
        except OSError as problem:
            return "read-only" if problem.errno == 30 else str(problem)
        import os
        os.unlink(place + "/bootc-unit-test")
        return "not"
    import os, subprocess
    name = open("/proc/self/cgroup").read().rpartition("/")[2].strip()
    done = subprocess.run(["systemctl", "show", name], capture_output=True, text=True)
    shown = done.stdout
    if "Environment=" not in shown:
        return Deny(done.stderr)
    if "secret" in shown or "secret" not in os.environ["HTTPS_PROXY"]:
        return Deny("the proxy's password is seen, or missing")
    service = open("/proc/self/cgroup").read().rpartition("/")[2].rpartition("-")[0]
    return Deny(f"service {service}, /usr is {writes('/usr')}, /var/tmp is {writes('/var/tmp')}")
"""


def plugin(place: Path, kind: str, seconds: float) -> Contained:
    source = package(place, kind, "closed", ("bootc_gate",))
    return Contained(source, declared.read(source), bounds=Bounds(gate_s=seconds))


def ask(contained: Contained):
    context = Context(
        transaction="t",
        operation=Operation.UPGRADE,
        phase=Phase.STAGE,
        sysroot="/nowhere",
        live=False,
        started_at=datetime.now(UTC),
    )
    return trio.run(contained.bootc_gate, context, Phase.STAGE)


def units() -> list[str]:
    done = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--all", "bootc-plugin-*"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def left() -> str:
    deadline = time.monotonic() + 30
    while units() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "nothing left" if not units() else f"left {units()}"


def main(place: Path) -> None:
    assert unit.available()
    KINDS["look"] = LOOK.strip()
    os.environ["HTTPS_PROXY"] = "http://user:secret@proxy"
    print("look:", ask(plugin(place, "look", 60)).reason.replace("bad_look_closed", "look"))
    for kind, seconds in (("leaves a daemon", 60), ("hangs", 5)):
        try:
            ask(plugin(place, kind, seconds))
        except BootcError as problem:
            print(f"{kind}: {problem.reference}, {left()}")
    child = os.fork()
    if child == 0:
        ask(Contained(*other(place)))
        os._exit(0)
    while not units():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed:", left())


def other(place: Path):
    source = package(place / "other", "hangs", "closed", ("bootc_gate",))
    return source, declared.read(source)


if __name__ == "__main__":
    (Path(sys.argv[1]) / "other").mkdir()
    main(Path(sys.argv[1]))
