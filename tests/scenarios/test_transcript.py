"""The whole order of a run, as a plugin that implements every hook sees it; then with an error, a veto and a hold in each place."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from bootc_core import limits
from bootc_core.errors import BootcError, Denied, Held, HookError
from bootc_core.models.holds import HoldRecord
from bootc_core.models.verdict import Deny, Hold, Proceed
from bootc_core.testing import Recorder, System, hook_names, make_image

OS = "quay.io/acme/os:1"

FETCH = """\
gate fetch
before_fetch
around_phase fetch
fetch
around_phase:exit fetch
after_fetch
""".splitlines()

VERIFY = """\
gate verify
before_verify
around_phase verify
verify
verify
around_phase:exit verify
after_verify
""".splitlines()

STAGE = """\
gate stage
before_stage
around_phase stage
stage
around_phase:exit stage
after_stage
""".splitlines()

FINALIZE = """\
gate finalize
before_finalize
around_phase finalize
finalize
switch_boot finalize
around_phase:exit finalize
after_finalize
prune finalize
""".splitlines()

ROLLBACK = """\
gate rollback
before_rollback
around_phase rollback
rollback
switch_boot rollback
around_phase:exit rollback
after_rollback
prune rollback
""".splitlines()

UPGRADE = [*FETCH, *VERIFY, *STAGE, *FINALIZE]

EVENTS = """\
transaction.started
phase.started
image.resolved
phase.completed
phase.started
image.verified
phase.completed
phase.started
layers.planned
blob.completed
blob.completed
deployment.staged
phase.completed
phase.started
boot.switched
phase.completed
transaction.completed
""".splitlines()


class Stage:
    """A system with the recorder, its log cleared before each act."""

    def __init__(self, path: Path) -> None:
        self.recorder = Recorder()
        self.system = System(path, plugins={"recorder": self.recorder})
        self.registered = list(self.recorder.names())
        self.recorder.calls = self.system.calls
        self.publish("1")

    def publish(self, version: str) -> None:
        self.system.transport.images[OS] = make_image(version)

    def act(self, work) -> list[str]:
        self.system.calls.clear()
        self.recorder.events.clear()
        self.recorder.contexts.clear()
        try:
            work()
        finally:
            self.seen = list(self.recorder.names())
        return self.seen

    def upgraded(self) -> Stage:
        self.act(lambda: self.system.switch(OS))
        self.publish("2")
        return self


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_every_hook_is_recorded():
    implemented = {name for name in vars(Recorder) if name.startswith("bootc_")}
    assert implemented == set(hook_names())


def test_registration(stage):
    assert stage.registered == [
        "register_transports",
        "register_backends",
        "register_bootloaders",
        "register_policies",
        "register_site_hooks",
        "register_commands",
    ]


def test_switch_upgrade_rollback(stage):
    assert stage.act(lambda: stage.system.switch(OS)) == UPGRADE
    assert [event.name for event in stage.recorder.events] == EVENTS
    stage.publish("2")
    assert stage.act(stage.system.upgrade) == UPGRADE
    # the base layer is on the host already
    assert [event.name for event in stage.recorder.events] == EVENTS[:9] + EVENTS[10:]
    assert stage.system.versions() == ("2", "1")
    assert stage.act(stage.system.rollback) == ROLLBACK
    assert [event.name for event in stage.recorder.events] == [
        "transaction.started",
        "phase.started",
        "boot.switched",
        "phase.completed",
        "transaction.completed",
    ]
    assert stage.system.versions() == ("1", "2")
    assert stage.act(stage.system.rollback) == ROLLBACK
    assert stage.system.versions() == ("2", "1")


def test_an_unchanged_image_ends_after_fetch(stage):
    stage.act(lambda: stage.system.switch(OS))
    assert stage.act(stage.system.upgrade) == FETCH
    assert stage.system.transport.opened.count(make_image("1").layers[0].digest) == 1


def test_download_only_and_later(stage):
    stage.upgraded()
    assert stage.act(lambda: stage.system.upgrade(download_only=True)) == [*FETCH, *VERIFY, *STAGE]
    assert stage.system.versions() == ("1", None)
    assert stage.act(stage.system.apply_downloaded) == FINALIZE
    assert stage.system.versions() == ("2", "1")


def test_observers_see_what_the_engine_reports(stage):
    stage.act(lambda: stage.system.switch(OS))
    assert stage.recorder.events == stage.system.events
    transactions = {event.transaction for event in stage.recorder.events}
    assert len(transactions) == 1


def test_context_grows_and_is_one_transaction(stage):
    stage.upgraded().act(lambda: stage.system.upgrade(reason="patch day"))
    contexts = {}
    for (hook, phase), (name, context) in zip(
        [call for call in stage.system.calls if call[0] in vars(Recorder)],
        stage.recorder.contexts,
        strict=False,
    ):
        contexts.setdefault((name, context.phase), context)
        del hook, phase
    assert len({context.transaction for context in contexts.values()}) == 1
    first = contexts["bootc_gate", "fetch"]
    assert first.from_image.version == "1"
    assert first.to_image.reference == f"docker://{OS}"
    assert first.to_image.digest is None
    assert first.reason == "patch day"
    assert not first.live
    assert not first.dry_run
    later = contexts["bootc_after_fetch", "fetch"]
    assert later.to_image.version == "2"
    assert later.to_image.digest == make_image("2").digest
    assert later.to_image.labels["containers.bootc"] == "1"
    for (_, phase), context in contexts.items():
        assert context.phase == phase
        assert context.deadline > context.started_at


# --- injected ------------------------------------------------------------------------------------

PHASES = ("fetch", "verify", "stage", "finalize")


def upto(line: str) -> list[str]:
    return UPGRADE[: UPGRADE.index(line) + 1]


def unchanged(stage: Stage) -> None:
    """The old state is in force, nothing is staged, and the next run succeeds."""
    host = stage.system.status()
    assert stage.system.versions() == ("1", None)
    assert host.staged is None
    assert not stage.system.sysroot.staged_file.exists()
    stage.recorder.on.clear()
    assert stage.act(stage.system.upgrade) == UPGRADE
    assert stage.system.versions() == ("2", "1")


def undone(phase: str) -> list[str]:
    """What follows a failure in or after staging: discard, and the menu of what remains."""
    return {"stage": ["discard stage", "switch_boot stage"]}.get(
        phase, ["discard finalize", "switch_boot finalize"] if phase == "finalize" else []
    )


@pytest.mark.parametrize("phase", PHASES)
def test_a_veto_stops_before_the_phase(stage, phase):
    stage.upgraded().recorder.on["bootc_gate", phase] = Deny("change freeze")
    with pytest.raises(Denied) as caught:
        stage.act(stage.system.upgrade)
    assert caught.value.message == f"recorder does not allow {phase}: change freeze"
    assert stage.seen == upto(f"gate {phase}") + undone(phase)
    failed = stage.recorder.events[-1]
    assert (failed.name, failed.reference, failed.after_switch) == (
        "transaction.failed",
        "denied",
        False,
    )
    unchanged(stage)


@pytest.mark.parametrize("phase", PHASES)
def test_a_hold_says_until_when(stage, phase):
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=3)
    stage.upgraded().recorder.on["bootc_gate", phase] = Hold(until, "window")
    with pytest.raises(Held) as caught:
        stage.act(stage.system.upgrade)
    assert caught.value.until == until.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert caught.value.message.endswith(f"until {caught.value.until}: window")
    assert stage.seen == upto(f"gate {phase}") + undone(phase)
    unchanged(stage)


def test_a_hold_is_bounded(stage):
    stage.upgraded().recorder.on["bootc_gate", "fetch"] = Hold(
        datetime(2099, 1, 1, tzinfo=UTC), "never"
    )
    with pytest.raises(Held) as caught:
        stage.act(stage.system.upgrade)
    latest = datetime.now(UTC) + timedelta(seconds=limits.HOLD_MAX_S + 60)
    assert datetime.fromisoformat(caught.value.until) <= latest


def test_a_warning_of_a_gate_is_told(stage):
    stage.recorder.on["bootc_gate", "stage"] = Proceed("battery low")
    outcome = stage.system.switch(OS)
    assert outcome.warnings == ("recorder: battery low",)


BEFORE_SWITCH = [
    *((f"bootc_{moment}_{phase}", phase) for phase in PHASES for moment in ("before", "after")),
    *(("bootc_gate", phase) for phase in PHASES),
    *(("bootc_around_phase", phase) for phase in PHASES),
    ("bootc_verify", "verify"),
]
BEFORE_SWITCH.remove(("bootc_after_finalize", "finalize"))


@pytest.mark.parametrize(("hook", "phase"), BEFORE_SWITCH)
def test_an_error_before_the_switch_aborts(stage, hook, phase):
    stage.upgraded().recorder.on[hook, phase] = HookError("broken on purpose")
    with pytest.raises(BootcError) as caught:
        stage.act(stage.system.upgrade)
    assert "broken on purpose" in caught.value.message
    short = hook.removeprefix("bootc_")
    line = short if phase in short else f"{short} {phase}"
    failing = len(stage.seen) - stage.seen[::-1].index(line if line in stage.seen else short) - 1
    after = [
        name
        for name in stage.seen[failing + 1 :]
        if not name.startswith(("around_phase:exit", "verify"))
    ]
    assert after == undone(phase)
    unchanged(stage)


@pytest.mark.parametrize("hook", ["bootc_before_stage", "bootc_gate"])
def test_a_foreign_exception_names_the_plugin(stage, hook):
    stage.upgraded().recorder.on[hook, "stage"] = RuntimeError("not ours")
    with pytest.raises(BootcError) as caught:
        stage.act(stage.system.upgrade)
    assert "recorder" in caught.value.message
    unchanged(stage)


def test_an_error_after_the_switch_only_warns(stage):
    stage.upgraded().recorder.on["bootc_after_finalize", "finalize"] = HookError("no mail today")
    assert stage.act(stage.system.upgrade) == UPGRADE
    assert stage.system.versions() == ("2", "1")
    assert [event.message for event in stage.recorder.events if event.name == "run.warned"] == [
        "recorder: no mail today"
    ]
    assert stage.recorder.events[-1].name == "transaction.completed"


@pytest.mark.parametrize(
    "hook", ["bootc_gate", "bootc_before_rollback", "bootc_around_phase", "bootc_after_rollback"]
)
def test_errors_around_a_rollback(stage, hook):
    stage.upgraded().act(stage.system.upgrade)
    stage.recorder.on[hook, "rollback"] = HookError("broken on purpose")
    if hook == "bootc_after_rollback":
        assert stage.act(stage.system.rollback) == ROLLBACK
        assert stage.system.versions() == ("1", "2")
        return
    with pytest.raises(BootcError, match="broken on purpose"):
        stage.act(stage.system.rollback)
    assert stage.system.versions() == ("2", "1")


def test_a_gate_that_hangs_costs_its_deadline_only(stage):
    class Hanging:
        pass

    from bootc_core import hookimpl

    @hookimpl
    async def bootc_gate(context):
        await trio.sleep_forever()

    plugin = Hanging()
    plugin.bootc_gate = bootc_gate
    system = System(stage.system.path / "second", plugins={"hanging": plugin})
    system.transport.images[OS] = make_image("1")
    with pytest.raises(HookError) as caught:
        system.switch(OS)
    assert caught.value.reference == "hook-timeout"
    assert "hanging" in caught.value.message


def test_an_observer_that_fails_changes_nothing(stage, caplog):
    from bootc_core import hookimpl

    class Broken:
        @hookimpl
        def bootc_on_event(self, event):
            raise RuntimeError("observer")

    system = System(stage.system.path / "second", plugins={"broken": Broken()})
    system.transport.images[OS] = make_image("1")
    assert system.switch(OS).kind == "queued"
    assert [record.message for record in caplog.records if "observer" in record.message] == [
        "the event observer of plugin broken failed"
    ]


@pytest.mark.parametrize("line", UPGRADE)
def test_cancelled_at_every_hook(stage, line):
    """Stopped by a signal: the old state until the switch, the new one after it, and the next run converges."""
    stage.upgraded()
    scopes: list[trio.CancelScope] = []
    reached = []
    position = UPGRADE.index(line)

    class Log(list):
        def append(self, call) -> None:
            super().append(call)
            if len(self) == position + 1:
                reached.append(call)
                scopes[0].cancel()

    system = stage.system
    real = system.run

    def cancellable(work):
        async def scoped():
            with trio.CancelScope() as scope:
                scopes.append(scope)
                return await work()

        return real(scoped)

    log = Log()
    for plugin in (system.transport, system.policy, system.backend, system.bootloader):
        plugin.calls = log
    stage.recorder.calls = system.calls = log
    system.run = cancellable
    system.upgrade()
    assert reached
    system.run = real
    assert system.versions() in {("1", None), ("2", "1")}
    log.clear()
    system.upgrade()
    assert system.versions() == ("2", "1")
    assert system.status().staged is None


def test_holds_are_remembered_and_end(stage):
    far = datetime(2099, 1, 1, tzinfo=UTC)
    stage.upgraded().recorder.on["bootc_gate", "fetch"] = Hold(far, "never")
    with pytest.raises(Held) as first:
        stage.act(stage.system.upgrade)
    with pytest.raises(Held) as second:
        stage.act(stage.system.upgrade)
    assert second.value.until == first.value.until  # asking again does not extend it
    path = stage.system.sysroot.state / "holds.json"
    old = datetime.now(UTC) - timedelta(seconds=limits.HOLD_MAX_S)
    path.write_bytes(HoldRecord({"recorder/fetch": old}).to_bytes())
    outcome = stage.system.upgrade()
    assert outcome.kind == "queued"
    assert "its hold no longer counts" in outcome.warnings[0]


def test_an_override_is_for_holds_only_and_is_on_record(stage):
    far = datetime(2099, 1, 1, tzinfo=UTC)
    stage.upgraded().recorder.on["bootc_gate", "fetch"] = Hold(far, "window")
    stage.recorder.on["bootc_gate", "stage"] = Deny("freeze")
    with pytest.raises(Denied):
        stage.act(lambda: stage.system.upgrade(override="CVE-2026-1"))
    del stage.recorder.on["bootc_gate", "stage"]
    stage.act(lambda: stage.system.upgrade(override="CVE-2026-1"))
    assert stage.system.versions() == ("2", "1")
    seen = [event for event in stage.recorder.events if event.name == "hold.overridden"]
    assert [(event.source, event.hold, event.reason) for event in seen] == [
        ("recorder", "window", "CVE-2026-1")
    ]
    record = HoldRecord.parse((stage.system.sysroot.state / "holds.json").read_bytes())
    assert [one["reason"] for one in record.overrides] == ["CVE-2026-1"] * 2
    context = stage.recorder.contexts[-1][1]
    assert [(said.phase, said.verdict) for said in context.verdicts] == [("fetch", "hold")]
    assert context.verdicts[0].reason == "window"
    assert type(context).model_validate_json(context.model_dump_json()) == context


INJECTED = [
    *((f"bootc_{moment}_{phase}", phase) for phase in PHASES for moment in ("before", "after")),
    *(("bootc_gate", phase) for phase in PHASES),
    ("bootc_verify", "verify"),
]


@pytest.mark.parametrize(("hook", "phase"), INJECTED)
def test_a_timeout_at_every_hook(stage, hook, phase):
    """A hook that never answers costs its deadline: before the switch nothing changed, after it a warning."""
    stage.upgraded()

    class Hanging(Recorder):
        pass

    async def hang(self, context, phase=None):
        self._play(hook, context=context)
        if str(context.phase) == wanted:
            await trio.sleep_forever()

    wanted = phase
    from bootc_core import hookimpl

    names = {"bootc_gate": "context, phase", "bootc_verify": "context"}.get(hook, "context")
    space = {"hang": hang}
    exec(f"async def {hook}(self, {names}):\n    return await hang(self, context)", space)
    setattr(Hanging, hook, hookimpl(space[hook]))
    system = System(stage.system.path / hook, plugins={"recorder": Hanging()})
    system.transport.images[OS] = make_image("1")
    if hook == "bootc_after_finalize":
        outcome = system.switch(OS)
        assert any("did not answer" in line for line in outcome.warnings)
        assert system.versions() == ("1", None)
        return
    with pytest.raises(BootcError) as caught:
        system.switch(OS)
    assert "did not answer" in str(caught.value.message)
    assert system.versions() == (None, None)
    assert system.status().staged is None


@pytest.mark.parametrize(("hook", "phase"), INJECTED)
def test_a_crash_at_every_hook_is_recovered_and_the_hook_is_called_again_resumed(
    stage, hook, phase, tmp_path
):
    """Killed inside the hook: old or new state, the next run converges, and where something was begun it says ``resumed``."""
    stage.upgraded()
    stage.recorder.on[hook, phase] = lambda **arguments: os.kill(os.getpid(), signal.SIGKILL)
    assert stage.system.kill_at(lambda system: system.upgrade(), 1 << 30)  # dies of the hook
    new = hook == "bootc_after_finalize"
    assert stage.system.versions() == (("2", "1") if new else ("1", None))
    stage.recorder.on.clear()
    seen = stage.act(stage.system.upgrade)
    assert stage.system.versions() == ("2", "1")
    assert stage.system.status().staged is None
    if new:
        return
    assert any(line.startswith(hook.removeprefix("bootc_")) for line in seen)
    begun = phase in {"stage", "finalize"}
    resumed = {context.resumed for name, context in stage.recorder.contexts if name == hook}
    assert resumed == {begun}
