"""What cannot be cancelled ends with the run, and the next run recovers."""

from __future__ import annotations

import os
import time

import pytest

from bootc_core import hookimpl, limits, watchdog
from bootc_core.testing import System, make_image
from bootc_core.watchdog import watching

OS = "quay.io/acme/os:1"


class Blocking:
    """Blocks the event loop in one phase, without awaiting."""

    armed = False

    @hookimpl
    async def bootc_before_finalize(self, context):
        while self.armed:
            time.sleep(0.01)  # noqa: ASYNC251 - what must not be done is what this plugin does


def run_in_child(work) -> tuple[int, str]:
    """Exit status and standard error of ``work`` in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        try:
            work()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_plugin_that_blocks_is_ended_with_the_run_and_the_next_run_recovers(
    tmp_path, monkeypatch
):
    plugin = Blocking()
    system = System(tmp_path, plugins={"blocking": plugin}, virtual_time=False)
    system.transport.images[OS] = make_image("1")
    system.switch(OS)
    system.transport.images[OS] = make_image("2")
    monkeypatch.setattr(limits, "PARTICIPANT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(limits, "WATCHDOG_GRACE_S", 0.2)

    def hang():
        plugin.armed = True
        system.upgrade()

    status, said = run_in_child(hang)
    assert status == watchdog.STATUS
    assert "plugin blocking in bootc_before_finalize neither answers nor can be cancelled" in said
    assert system.versions() == ("1", None)
    system.events.clear()
    assert system.upgrade().kind == "queued"
    assert system.versions() == ("2", "1")
    assert system.status().staged is None
    names = [event.name for event in system.events]
    assert names[0] == "transaction.recovered"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_one_that_holds_the_interpreter_is_ended_too(monkeypatch):
    monkeypatch.setattr(limits, "WATCHDOG_STALL_S", 1.0)
    monkeypatch.setattr(limits, "WATCHDOG_GRACE_S", 0.1)

    def hold():
        import ctypes

        with watching("plugin stuck in bootc_gate", 60.0):
            time.sleep(0.5)  # the watchdog has armed its timer
            ctypes.PyDLL(None).sleep(30)  # without giving the interpreter up

    begin = time.monotonic()
    status, said = run_in_child(hold)
    assert status == 1
    assert time.monotonic() - begin < 10
    assert "Timeout" in said


def test_what_ends_in_time_is_left_alone(monkeypatch):
    with watching("fine", 60.0):
        assert any(what == "fine" for _, what in watchdog._calls.values())
    assert all(what != "fine" for _, what in watchdog._calls.values())
