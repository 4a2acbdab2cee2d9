"""The real engine against the state machine, with the fake backend and with composefs; seeded defects, each of which must be found.

BOOTC_MODEL=all (``make model``): more and longer histories, all defects, and the whole of the model in docs/model with Spin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bootc_composefs.plugin
import bootc_systemd_boot.plugin
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, os.path.dirname(__file__))
from machine import Machine

from bootc_core.engine import journal, orchestrator, recovery, transaction
from bootc_core.engine.recovery import Recovery
from bootc_core.fs import atomic
from bootc_core.testing import System, broken
from bootc_core.testing.fakes import FakeBackend

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("BOOTC_MODEL") == "all"


def explore(system, examples, steps, kills=60):
    class Explored(Machine):
        make = staticmethod(system)

    Explored.kills = kills
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Explored, settings=how)


def test_engine():
    explore(System, 600 if ALL else 6, 40 if ALL else 20)


def test_composefs():
    def system(path):
        return System(
            path,
            backend=bootc_composefs.plugin,
            bootloader=bootc_systemd_boot.plugin,
            virtual_time=False,
        )

    explore(system, 60 if ALL else 1, 30 if ALL else 12, kills=150)


# --- seeded defects ---------------------------------------------------------------------------------


def never(*_args, **_kwargs):
    return None


async def never_async(*_args, **_kwargs):
    return None


def recovery_does_nothing(patch):
    patch.setattr(recovery, "decide", lambda records, boots: Recovery("none"))


def recovery_always_finishes(patch):
    patch.setattr(
        recovery,
        "decide",
        lambda records, boots: Recovery("finish", _staged(records)),
    )


def recovery_always_discards(patch):
    patch.setattr(recovery, "decide", lambda records, boots: Recovery("discard", _staged(records)))


def _staged(records):
    return next((one.get("staged") for one in reversed(records) if one["record"] == "staged"), None)


def failures_are_not_undone(patch):
    patch.setattr(orchestrator, "_undo", never_async)
    patch.setattr(journal, "unfinished", never)


def nothing_is_pruned(patch):
    patch.setattr(transaction.Transaction, "prune", never_async)


def nothing_is_closed(patch):
    patch.setattr(orchestrator, "_close", never_async)
    patch.setattr(journal, "unfinished", never)


def the_notice_is_not_written(patch):
    patch.setattr(orchestrator, "write_notice", never)


def the_notice_stays(patch):
    real = atomic.unlink
    patch.setattr(
        atomic,
        "unlink",
        lambda path, **how: None if str(path).endswith("staged-deployment") else real(path, **how),
    )


def rollback_switches_to_what_boots(patch):
    real = FakeBackend.bootc_rollback

    async def bootc_rollback(self, context, sysroot):
        plan = await real(self, context, sysroot)
        return type(plan)(entries=tuple(reversed(plan.entries)))

    patch.setattr(FakeBackend, "bootc_rollback", transaction_hook(bootc_rollback))


def transaction_hook(function):
    from bootc_core.hooks.markers import hookimpl

    return hookimpl(function)


def the_switch_is_left_out(patch):
    async def switch(self, plan, deployment_id):
        del plan, deployment_id
        self.switched = True

    patch.setattr(transaction.Transaction, "_switch", switch)


def upgrades_are_believed_unchanged(patch):
    real = orchestrator.deploy

    async def deploy(run, host, target, **how):
        if host.rollback is not None:
            return orchestrator.Outcome("unchanged")
        return await real(run, host, target, **how)

    patch.setattr(orchestrator, "deploy", deploy)


def damage_is_overlooked(patch):
    patch.setattr(FakeBackend, "check", lambda self, data, digest, what: None)


ENGINE = [
    recovery_does_nothing,
    recovery_always_discards,
    nothing_is_pruned,
    the_notice_is_not_written,
    the_notice_stays,
    rollback_switches_to_what_boots,
    the_switch_is_left_out,
    upgrades_are_believed_unchanged,
    damage_is_overlooked,
    failures_are_not_undone,
    nothing_is_closed,
    recovery_always_finishes,
]
BACKENDS = [
    broken.StaleEntry,
    broken.Hoarder,
    broken.EagerPrune,
    broken.DiscardsWhatBoots,
    broken.LeavesHalfMade,
    broken.StagesIntoTheMenu,
    broken.RollsBackToNothing,
]


def found(system, examples=40):
    try:
        explore(system, examples, 30)
    except Exception:  # whatever way it shows
        return True
    return False


@pytest.mark.parametrize("defect", ENGINE if ALL else ENGINE[3:8:2])
def test_a_defect_of_the_engine_is_found(defect, monkeypatch):
    defect(monkeypatch)
    assert found(System), "the machine does not see it"


@pytest.mark.parametrize("backend", BACKENDS if ALL else BACKENDS[:2])
def test_a_defect_of_the_backend_is_found(backend):
    assert found(lambda path: System(path, backend=backend())), "the machine does not see it"


# --- the model in Promela --------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif(
    not shutil.which("spin") or not shutil.which("gcc"), reason="spin or gcc is not installed"
)
def test_the_model_holds_and_its_defects_are_found():
    arguments = ["--crashes", "3"] if ALL else ["--crashes", "1", "3", "12"]
    done = subprocess.run(
        [sys.executable, ROOT / "docs/model/run.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
