"""Eight kinds of misbehaviour in every hook that may run in a child: in time, with the declared result, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from support.misbehaving import HOOKS, KINDS, package

from bootc_core.containment import declared
from bootc_core.containment.proxy import Bounds, Contained
from bootc_core.engine.bus import Bus
from bootc_core.errors import BootcError
from bootc_core.models import events
from bootc_core.models.context import Context, Operation, Phase
from bootc_core.models.verdict import Proceed
from bootc_core.testing import FakeTransport, make_image

DEADLINE_S = 1.5
PATIENCE_S = 60.0
SLACK_S = 5.0  # ending the process group on a busy machine
REFERENCES = {
    "hangs": {"hook-timeout"},
    "spins": {"hook-timeout"},
    "crashes": {"plugin-died"},
    "vanishes": {"bad-answer"},
    "eats memory": {"plugin-broken", "plugin-died"},
    "babbles": {"bad-answer"},
    "lies": {"bad-answer", "bad-json"},
    "leaves a daemon": {"plugin-broken"},
}


@pytest.fixture
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("packages")


def context() -> Context:
    return Context(
        transaction="t",
        operation=Operation.UPGRADE,
        phase=Phase.STAGE,
        sysroot="/nowhere",
        live=False,
        started_at=datetime.now(UTC),
    )


def running(name: str) -> list[str]:
    """Processes that have the package's name in their request or command line: children of this test."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
                environment = Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if b"containment.child" in line and name.encode() in environment:
                found.append(entry)
    return found


def gone(name: str) -> bool:
    """Nothing of it runs any more; what was killed may take the kernel a moment."""
    deadline = time.monotonic() + 2.0
    while running(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def image():
    from bootc_core.models.reference import ImageReference

    transport = FakeTransport()
    transport.images["quay.io/x/os:1"] = make_image("1")
    return await transport.bootc_fetch(context(), ImageReference.parse("quay.io/x/os:1"))


def chosen(kind: str) -> list[tuple[str, str]]:
    """Hooks and policies to call: all of them with ``make misbehaviour``, else each kind of hook for each kind of misbehaviour."""
    hooks = [name for name in HOOKS if name != "bootc_on_event"]
    if os.environ.get("BOOTC_MISBEHAVIOUR") != "all":
        participant = declared.PARTICIPANTS[list(KINDS).index(kind) % len(declared.PARTICIPANTS)]
        hooks = ["bootc_gate", "bootc_verify", participant]
    return [
        (hook, policy)
        for hook in hooks
        for policy in ("closed", "open")
        if (hook, policy) != ("bootc_verify", "open")  # a policy cannot be declared so
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_its_deadline_and_nothing_else(place, kind, monkeypatch):
    marker = f"{os.getpid()}-{kind}"
    monkeypatch.setenv("BOOTC_TEST_MARKER", marker)
    # one that ends by itself is given the time to begin on a busy machine
    deadline = DEADLINE_S if "hook-timeout" in REFERENCES[kind] else PATIENCE_S
    bounds = Bounds(deadline, deadline, deadline, 0.5, 512 << 20)
    plugins = {}
    for policy in ("closed", "open"):
        source = package(place, kind, policy)
        plugins[policy] = Contained(source, declared.read(source), bounds=bounds)

    async def call(hook, policy):
        arguments = {"context": context()}
        if hook == "bootc_gate":
            arguments["phase"] = Phase.STAGE
        if hook == "bootc_verify":
            arguments["image"] = await image()
        begin = time.monotonic()
        try:
            return await getattr(plugins[policy], hook)(**arguments)
        except BootcError as problem:
            return problem
        finally:
            assert time.monotonic() - begin < deadline + SLACK_S

    async def call_all():
        async def one(what):
            async with at_once:
                answers[what] = await call(*what)

        at_once, answers = trio.CapacityLimiter(6), {}
        async with trio.open_nursery() as nursery:
            for what in chosen(kind):
                nursery.start_soon(one, what)
        return answers

    for (hook, policy), answer in trio.run(call_all).items():
        if kind == "babbles" and hook not in {"bootc_gate", "bootc_verify"}:
            assert answer is None  # what a participant says means nothing, in process or not
        elif policy == "closed":
            assert isinstance(answer, BootcError)
            assert answer.reference in REFERENCES[kind], answer.to_json()
            assert "\x1b" not in str(answer.to_json())
        else:
            assert isinstance(answer, Proceed)
            assert f"{hook} failed, and may" in answer.warning
    assert gone(marker)


def test_a_daemon_ends_where_process_namespaces_are_forbidden(tmp_path):
    """As for ordinary users: without CAP_SYS_ADMIN the daemons of a plugin end all the same, also at its deadline."""
    program = Path(__file__).with_name("without_namespaces.py")
    command = [sys.executable, str(program), str(tmp_path)]
    if os.geteuid() == 0:
        sets = ("--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
        command = ["setpriv", *sets, *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split("\n")[:2] == ["leaves a daemon: plugin-broken", "stays: hook-timeout"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_observer_cannot_hold_up_the_end(place, kind, monkeypatch, caplog):
    marker = f"{os.getpid()}-{kind}-event"
    monkeypatch.setenv("BOOTC_TEST_MARKER", marker)
    seen = []
    source = package(place, kind, "closed")
    plugin = Contained(source, declared.read(source), bounds=Bounds(events_s=2.0))
    begin = time.monotonic()
    with Bus([("bad", plugin.bootc_on_event), ("good", seen.append)]) as bus:
        emitted = time.monotonic()
        for number in range(3000):
            bus.emit(events.Warned("t", "x" * 100 + str(number)))
        assert time.monotonic() - emitted < 2.0  # the run itself does not wait
    assert len(seen) == 3000
    assert time.monotonic() - begin < 5.0 + SLACK_S
    assert gone(marker)


def test_the_table_is_whole():
    assert len(KINDS) == 8
    assert set(HOOKS) == declared.CONTAINED - {"bootc_register_policies"}
