"""Eight kinds of misbehaviour in every hook that may run in a child: in time, with the declared result, nothing left."""

from __future__ import annotations

import os
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
SLACK_S = 2.0  # ending the process group on a busy machine
BOUNDS = Bounds(DEADLINE_S, DEADLINE_S, DEADLINE_S, 0.5, 512 << 20)
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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def made():
    return {}


def stand_in(place: Path, made: dict, kind: str, policy: str) -> Contained:
    if (kind, policy) not in made:
        source = package(place, kind, policy)
        made[kind, policy] = Contained(source, declared.read(source), bounds=BOUNDS)
    return made[kind, policy]


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


@pytest.mark.parametrize("hook", [name for name in HOOKS if name != "bootc_on_event"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_costs_its_deadline_and_nothing_else(place, made, kind, hook, monkeypatch):
    marker = f"{os.getpid()}-{kind}-{hook}"
    monkeypatch.setenv("BOOTC_TEST_MARKER", marker)
    policies = ("closed",) if hook == "bootc_verify" else ("closed", "open")
    for policy in policies:
        plugin = stand_in(place, made, kind, policy)

        async def call(plugin=plugin):
            arguments = {"context": context()}
            if hook == "bootc_gate":
                arguments["phase"] = Phase.STAGE
            if hook == "bootc_verify":
                arguments["image"] = await image()
            return await getattr(plugin, hook)(**arguments)

        begin = time.monotonic()
        if kind == "babbles" and hook not in {"bootc_gate", "bootc_verify"}:
            assert (
                trio.run(call) is None
            )  # what a participant says means nothing, in process or not
        elif policy == "closed":
            with pytest.raises(BootcError) as caught:
                trio.run(call)
            assert caught.value.reference in REFERENCES[kind], caught.value.to_json()
            assert "\x1b" not in str(caught.value.to_json())
        else:
            answer = trio.run(call)
            assert isinstance(answer, Proceed)
            assert f"{hook} failed, and may" in answer.warning
        assert time.monotonic() - begin < DEADLINE_S + SLACK_S
        assert gone(marker)


@pytest.mark.parametrize("kind", KINDS)
def test_an_observer_cannot_hold_up_the_end(place, made, kind, monkeypatch, caplog):
    marker = f"{os.getpid()}-{kind}-event"
    monkeypatch.setenv("BOOTC_TEST_MARKER", marker)
    seen = []
    plugin = Contained(
        stand_in(place, made, kind, "closed")._source,
        stand_in(place, made, kind, "closed")._declared,
        bounds=BOUNDS,
    )
    begin = time.monotonic()
    with Bus([("bad", plugin.bootc_on_event), ("good", seen.append)]) as bus:
        emitted = time.monotonic()
        for number in range(3000):
            bus.emit(events.Warned("t", "x" * 100 + str(number)))
        assert time.monotonic() - emitted < 1.0  # the run itself does not wait
    assert len(seen) == 3000
    assert time.monotonic() - begin < 5.0 + SLACK_S
    assert gone(marker)


def test_the_table_is_whole():
    assert len(KINDS) == 8
    assert set(HOOKS) == declared.CONTAINED - {"bootc_register_policies"}
