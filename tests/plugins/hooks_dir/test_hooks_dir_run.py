from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from bootc_hooks_dir import plugin
from bootc_hooks_dir.discover import Script
from bootc_hooks_dir.run import decide, strictest
from support.processes import group_gone

from bootc_core import limits
from bootc_core.errors import HookError
from bootc_core.models.context import Context, ImageSummary, Operation, Phase
from bootc_core.models.verdict import Deny, Hold, Proceed
from bootc_core.process import Completed

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
root = pytest.mark.root
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Site:
    """A configuration root with scripts in ``etc/bootc/hooks.d``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hooks = path / "etc/bootc/hooks.d"
        self.hooks.mkdir(parents=True)
        self.log = path / "log"

    def add(self, name: str, body: str, mode: int = 0o755, head: str = "#!/bin/sh\n") -> Path:
        path = self.hooks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + body)
        path.chmod(mode)
        return path

    def context(self, phase: Phase = Phase.FETCH, **changes) -> Context:
        values = {
            "transaction": "t1",
            "operation": Operation.UPGRADE,
            "phase": phase,
            "sysroot": "/target",
            "live": False,
            "config_root": str(self.path),
            "from_image": ImageSummary(reference="docker://quay.io/x/y:1"),
            "to_image": ImageSummary(reference="docker://quay.io/x/y:2"),
            "started_at": NOW,
        }
        return Context(**(values | changes))

    def gate(self, phase: Phase = Phase.FETCH, **changes):
        return trio.run(plugin.bootc_gate, self.context(phase, **changes), phase)

    def call(self, hook: str, phase: Phase = Phase.STAGE, **changes) -> None:
        trio.run(getattr(plugin, f"bootc_{hook}"), self.context(phase, **changes))

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(limits, "HOOK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "HOOK_TERM_GRACE_S", 0.2)


# --- the answer of a gate ----------------------------------------------------------------------

SCRIPT = Script("gate", "10-a", Path("/etc/bootc/hooks.d/gate/10-a"))
P = str(SCRIPT)


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "verdict"),
    [
        (0, b"", b"", Proceed()),
        (0, b"all is well\n", b"noise", Proceed()),
        (0, b'{"verdict": "proceed"}', b"", Proceed()),
        (0, b'{"verdict": "proceed", "reason": "low battery"}', b"", Proceed(f"{P}: low battery")),
        (0, b' {"verdict": "deny", "reason": "frozen"}\n', b"", Deny(f"{P}: frozen")),
        (0, b'{"verdict": "deny"}', b"", Deny(f"{P}: denied")),
        (1, b"", b"a\n\nchange freeze\n", Deny(f"{P}: a | change freeze")),
        (1, b"on stdout", b"", Deny(f"{P}: on stdout")),
        (9, b"", b"", Deny(f"{P}: exit status 9")),
        (1, b'{"verdict": "proceed"}', b"no", Deny(f"{P}: no")),
        (1, b'{"verdict": "hold", "reason": "x"}', b"no", Deny(f"{P}: no")),
        (1, b'{"verdict": "deny", "reason": "frozen"}', b"no", Deny(f"{P}: frozen")),
        (21, b"", b"", Hold(NOW + timedelta(hours=1), f"{P}: not now")),
        (21, b"", b"lunch", Hold(NOW + timedelta(hours=1), f"{P}: lunch")),
        (21, b'{"verdict": "proceed"}', b"x", Hold(NOW + timedelta(hours=1), f"{P}: x")),
        (21, b'{"verdict": "deny", "reason": "y"}', b"x", Deny(f"{P}: y")),
        (
            0,
            b'{"verdict": "hold", "until": "2026-03-02T03:00:00+01:00", "reason": "window"}',
            b"",
            Hold(datetime(2026, 3, 2, 2, 0, tzinfo=UTC), f"{P}: window"),
        ),
        (
            21,
            b'{"verdict": "hold", "until": "2026-03-02T02:00:00Z"}',
            b"",
            Hold(datetime(2026, 3, 2, 2, 0, tzinfo=UTC), f"{P}: not now"),
        ),
        (
            0,
            b'{"verdict": "hold", "until": "2099-01-01T00:00:00Z", "reason": "never"}',
            b"",
            Hold(NOW + timedelta(seconds=limits.HOLD_MAX_S), f"{P}: never"),
        ),
        (
            0,
            b'{"verdict": "hold", "until": "2020-01-01T00:00:00Z"}',
            b"",
            Hold(NOW + timedelta(hours=1), f"{P}: not now"),
        ),
    ],
)
def test_how_a_gate_ends_is_its_answer(status, stdout, stderr, verdict):
    assert decide(SCRIPT, Completed(status, stdout, stderr), NOW) == verdict


@pytest.mark.parametrize(
    ("done", "reference", "found"),
    [
        (Completed(-11, b"", b"boom"), "hook-failed", "boom"),
        (Completed(126, b"", b""), "hook-failed", None),
        (Completed(127, b"", b"foo: not found"), "hook-failed", "foo: not found"),
        (Completed(-15, b"", b"", timed_out=True), "hook-timeout", None),
        (Completed(0, b"{", b""), "bad-json", None),
        (Completed(0, b'{"verdict": "deny", "verdict": "proceed"}', b""), "bad-json", None),
        (Completed(0, b"{}", b""), "bad-verdict", "verdict None"),
        (Completed(0, b'{"verdict": "maybe"}', b""), "bad-verdict", "verdict 'maybe'"),
        (
            Completed(0, b'{"verdict": "hold", "untill": 1}', b""),
            "bad-verdict",
            "unknown key 'untill'",
        ),
        (
            Completed(0, b'{"verdict": "deny", "reason": 1}', b""),
            "bad-verdict",
            "a reason that is not text",
        ),
        (Completed(0, b'{"verdict": "hold", "until": "soon"}', b""), "bad-verdict", "until 'soon'"),
        (
            Completed(0, b'{"verdict": "hold", "until": "2026-03-02T02:00:00"}', b""),
            "bad-verdict",
            "until '2026-03-02T02:00:00'",
        ),
        (Completed(0, b'{"verdict": "proceed"}', b"", truncated=True), "bad-verdict", None),
    ],
)
def test_what_broke_is_an_error_and_no_answer(done, reference, found):  # H04, H05
    with pytest.raises(HookError) as caught:
        decide(SCRIPT, done, NOW)
    assert caught.value.reference == reference
    assert caught.value.catalogue == "HOOK"
    assert P in caught.value.message
    if found is not None:
        assert caught.value.found == found


def test_strictest_answer_counts_and_the_longest_hold():
    early, late = Hold(NOW, "a"), Hold(NOW + timedelta(days=1), "b")
    assert strictest([]) == Proceed()
    assert strictest([Proceed("x"), Proceed(), Proceed("y")]) == Proceed("x; y")
    assert strictest([Proceed("x"), early, late, Proceed()]) == late
    assert strictest([late, Deny("no"), early]) == Deny("no")


# --- what a script gets ------------------------------------------------------------------------


def test_a_script_gets_context_and_a_clean_environment(site, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/nonexistent")
    path = site.add(
        "gate/10-a",
        f"cat > {site.log}.json; env > {site.log}; pwd >> {site.log}; umask >> {site.log}",
    )
    assert site.gate(Phase.STAGE) == Proceed()
    context = json.loads(Path(f"{site.log}.json").read_text())
    assert context == site.context(Phase.STAGE).model_dump(mode="json")
    assert context["to_image"]["reference"] == "docker://quay.io/x/y:2"
    found = dict(line.split("=", 1) for line in site.lines() if "=" in line)
    found.pop("_", None)
    found.pop("SHLVL", None)
    assert found.pop("HOME")
    assert found.pop("PWD") == "/"
    assert found == {
        "BOOTC_API": "1",
        "BOOTC_HOOK": "gate",
        "BOOTC_PHASE": "stage",
        "BOOTC_SCRIPT": str(path),
        "BOOTC_SYSROOT": "/target",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    assert site.lines()[-2:] == ["/", "0022"]


def test_scripts_of_other_languages_run_by_handle(site):
    site.add(
        "gate/10-python",
        "import json, sys; print(json.dumps({'verdict': 'deny', 'reason': json.load(sys.stdin)['transaction']}))\n",
        head=f"#!{sys.executable}\n",
    )
    verdict = site.gate()
    assert isinstance(verdict, Deny)
    assert verdict.reason.endswith("gate/10-python: t1")


def test_programs_run_by_handle(site):
    target = site.hooks / "before-stage/10-true"
    target.parent.mkdir()
    target.write_bytes(Path("/usr/bin/true").read_bytes())
    target.chmod(0o755)
    site.call("before_stage")


# --- which scripts are asked when -----------------------------------------------------------------

EVERYWHERE = (
    "pre-upgrade",
    "gate/10-g",
    *(f"{when}-{phase}/10-x" for phase in Phase for when in ("before", "after")),
    "after-boot/10-x",
    "post-upgrade",
)


@pytest.fixture
def full(site):
    for name in EVERYWHERE:
        site.add(name, f'echo "$BOOTC_HOOK $BOOTC_PHASE" >> {site.log}')
    return site


@pytest.mark.parametrize("operation", [Operation.SWITCH, Operation.UPGRADE])
def test_pre_upgrade_is_asked_before_anything_is_fetched(full, operation):
    for phase in (Phase.FETCH, Phase.VERIFY, Phase.STAGE, Phase.FINALIZE):
        full.gate(phase, operation=operation)
    assert full.lines() == [
        "pre-upgrade fetch",
        "gate fetch",
        "gate verify",
        "gate stage",
        "gate finalize",
    ]


def test_a_rollback_asks_the_gates_only(full):
    full.gate(Phase.ROLLBACK, operation=Operation.ROLLBACK)
    assert full.lines() == ["gate rollback"]


@pytest.mark.parametrize(
    ("hook", "live", "points"),
    [
        *(
            (f"{when}_{phase}", True, [f"{when}-{phase}"])
            for phase in Phase
            for when in ("before", "after")
        ),
        ("after_finalize", False, ["after-finalize", "post-upgrade"]),
        ("after_boot", True, ["after-boot", "post-upgrade"]),
    ],
)
def test_each_hook_runs_its_points(full, hook, live, points):
    full.call(hook, Phase.FINALIZE, live=live)
    assert full.lines() == [f"{point} finalize" for point in points]


def test_every_hook_of_a_participant_is_implemented():
    from bootc_core.hooks import specs

    def asked(module):
        kinds = ("bootc_before", "bootc_after", "bootc_gate")
        return {name for name in vars(module) if name.startswith(kinds)}

    assert asked(plugin) == asked(specs)


def test_without_scripts_nobody_has_an_opinion(site):
    assert site.gate() is None
    site.call("before_stage")


def test_a_misspelt_point_is_a_warning_once_a_run(site):
    site.add("gates/10-a", "exit 1")
    verdict = site.gate(Phase.FETCH)
    assert isinstance(verdict, Proceed)
    assert verdict.warning is not None
    assert verdict.warning.endswith("gates is no hook point, never run; did you mean gate?")
    assert site.gate(Phase.VERIFY) is None


def test_gates_are_asked_in_order_until_one_denies(site):
    site.add("gate/10-a", f"echo a >> {site.log}; exit 21")
    site.add("gate/20-b", f"echo b >> {site.log}; echo frozen >&2; exit 1")
    site.add("gate/30-c", f"echo c >> {site.log}")
    assert site.gate(Phase.STAGE) == Deny(f"{site.hooks}/gate/20-b: frozen")
    assert site.lines() == ["a", "b"]


def test_a_hold_of_one_gate_counts_though_others_proceed(site):
    site.add("gate/10-a", "echo later >&2; exit 21")
    site.add("gate/20-b", "")
    verdict = site.gate(Phase.STAGE)
    assert isinstance(verdict, Hold)
    assert verdict.reason == f"{site.hooks}/gate/10-a: later"
    assert timedelta(minutes=50) < verdict.until - datetime.now(UTC) <= timedelta(hours=1)


def test_pre_upgrade_may_be_a_directory(site):
    site.add("pre-upgrade/10-a", f"echo a >> {site.log}")
    site.add("pre-upgrade/20-b", f"echo b >> {site.log}; exit 5")
    assert isinstance(site.gate(), Deny)
    assert site.lines() == ["a", "b"]


# --- participants ---------------------------------------------------------------------------------


def test_before_the_switch_the_first_failure_ends_it(site):
    site.add("before-stage/10-a", "echo disk sick >&2; exit 3")
    site.add("before-stage/20-b", f"echo b >> {site.log}")
    with pytest.raises(HookError) as caught:
        site.call("before_stage")
    assert caught.value.message == f"{site.hooks}/before-stage/10-a failed: exit status 3"
    assert caught.value.found == "disk sick"
    assert site.lines() == []


def test_a_participant_cannot_ask_to_wait(site):
    site.add("before-stage/10-a", "exit 21")
    with pytest.raises(HookError, match="exit status 21"):
        site.call("before_stage")


def test_after_the_switch_all_run_and_failures_come_together(site):  # H12
    site.add("after-finalize/10-a", "exit 1")
    site.add("after-finalize/20-b", f"echo b >> {site.log}")
    site.add("post-upgrade", f"echo p >> {site.log}; echo bad >&2; exit 2")
    with pytest.raises(HookError) as caught:
        site.call("after_finalize", Phase.FINALIZE)
    assert caught.value.message == "2 scripts failed"
    assert caught.value.found == (
        f"{site.hooks}/after-finalize/10-a failed: exit status 1; "
        f"{site.hooks}/post-upgrade failed: exit status 2 (bad)"
    )
    assert site.lines() == ["b", "p"]


def test_one_failure_after_the_switch_is_itself(site):
    site.add("after-rollback/10-a", "kill -KILL $$")
    with pytest.raises(HookError, match="10-a failed: killed by SIGKILL"):
        site.call("after_rollback", Phase.ROLLBACK)


# --- what is never passed over ----------------------------------------------------------------------


def refused(site, *points: str) -> HookError:
    with pytest.raises(HookError) as caught:
        site.gate(Phase.STAGE)
    assert caught.value.catalogue == "HOOK"
    assert site.lines() == []
    return caught.value


@pytest.mark.parametrize(
    ("head", "body", "mode", "found"),
    [
        ("#!/bin/sh\n", "", 0o644, "mode 0644"),
        ("", "exit 0\n", 0o755, "neither a program for this machine nor a script"),
        ("#!/nonexistent/perl -w\n", "", 0o755, "its interpreter is missing: /nonexistent/perl -w"),
        (
            "\x7fELF\x02\x01\x01" + "\0" * 57,
            "",
            0o755,
            "neither a program for this machine nor a script",
        ),
        ("", "", 0o755, "neither a program for this machine nor a script"),
    ],
)
def test_what_cannot_run_is_named(site, head, body, mode, found):  # H01
    path = site.add("gate/10-a", body, mode, head)
    problem = refused(site)
    assert str(path) in problem.message
    assert problem.reference == "hook-not-executable"
    assert problem.found == found


def test_a_broken_link_is_named(site):
    (site.hooks / "gate").mkdir()
    (site.hooks / "gate/10-a").symlink_to(site.path / "nowhere")
    assert "gate/10-a cannot be opened" in refused(site).message


def test_a_fifo_does_not_block(site):
    (site.hooks / "gate").mkdir()
    os.mkfifo(site.hooks / "gate/10-a", 0o755)
    assert "is not a regular file" in refused(site).message


@root
@as_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_script_that_others_can_write_never_runs(site, mode):  # H02
    site.add("gate/10-a", f"echo ran >> {site.log}", mode)
    problem = refused(site)
    assert problem.reference == "hook-not-trusted"
    assert problem.found == f"mode {mode:04o}"


@root
@as_root
def test_a_script_of_another_user_never_runs(site):  # H02
    path = site.add("gate/10-a", f"echo ran >> {site.log}")
    os.chown(path, 1234, 0)
    problem = refused(site)
    assert (problem.expected, problem.found) == ("root", "uid 1234")


@root
@as_root
@pytest.mark.parametrize("above", ["gate", ".", "..", "../.."])
def test_a_directory_above_that_others_can_write_spoils_it(site, above):  # H02
    site.add("gate/10-a", f"echo ran >> {site.log}")
    (site.hooks / above).resolve().chmod(0o777)
    problem = refused(site)
    assert problem.reference == "hook-not-trusted"
    assert str((site.hooks / above).resolve()) in problem.message


@root
@as_root
def test_the_target_of_a_link_is_checked_with_all_above_it(site):  # H03
    place = site.path / "opt/tools"
    place.mkdir(parents=True)
    target = place / "check"
    target.write_text(f"#!/bin/sh\necho ran >> {site.log}\n")
    target.chmod(0o755)
    (site.hooks / "gate").mkdir()
    (site.hooks / "gate/10-a").symlink_to(target)
    assert site.gate(Phase.STAGE) == Proceed()
    assert site.lines() == ["ran"]
    site.log.unlink()
    place.chmod(0o777)
    assert str(place) in refused(site).message


def test_a_link_out_of_the_configuration_root_never_runs(site, tmp_path_factory):  # H03, C16
    outside = tmp_path_factory.mktemp("outside") / "x"
    outside.write_text(f"#!/bin/sh\necho ran >> {site.log}\n")
    outside.chmod(0o755)
    (site.hooks / "gate").mkdir()
    (site.hooks / "gate/10-a").symlink_to(outside)
    problem = refused(site)
    assert problem.found == str(outside)


def test_what_was_checked_is_what_runs(site, monkeypatch):  # H03
    """Swapped after the check: the opened file runs, not what has its name now."""
    path = site.add("gate/10-a", f"echo checked >> {site.log}")
    from bootc_core import process

    real = process.run

    async def swap_then_run(*args, **options):
        path.rename(path.with_suffix(".orig"))
        site.add("gate/10-a", f"echo swapped >> {site.log}")
        return await real(*args, **options)

    monkeypatch.setattr(process, "run", swap_then_run)
    assert site.gate(Phase.STAGE) == Proceed()
    assert site.lines() == ["checked"]


@root
@as_root
def test_an_unreadable_directory_is_not_passed_over(site, tmp_path):
    site.add("gate/10-a", "exit 1")
    (site.hooks / "gate").chmod(0)
    for above in [site.path, *site.path.parents][:-2]:
        above.chmod(above.stat().st_mode | 0o055)
    program = (
        "import os, sys, trio, json\n"
        "from bootc_hooks_dir import plugin\n"
        "from bootc_core.models.context import Context, Phase\n"
        "context = Context.model_validate_json(sys.stdin.read())\n"
        "from bootc_core.errors import HookError\n"
        "import bootc_hooks_dir.run\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: trio.run(plugin.bootc_gate, context, Phase.STAGE)\n"
        "except HookError as problem: print(problem.reference)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=site.context(Phase.STAGE).model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    (site.hooks / "gate").chmod(0o755)
    assert done.stdout == "hook-directory\n"


# --- unruly scripts ------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_script_that_hangs_costs_its_deadline(site):  # H05
    site.add(
        "gate/10-a", f"trap '' TERM; echo $$ > {site.log}; echo working >&2; sleep 100 & wait; wait"
    )
    begin = time.monotonic()
    with pytest.raises(HookError) as caught:
        site.gate(Phase.STAGE)
    assert time.monotonic() - begin < 5
    assert caught.value.reference == "hook-timeout"
    assert caught.value.found == "working"
    assert group_gone(int(site.lines()[0]))


def test_a_daemon_that_keeps_the_pipes_is_not_waited_for(site):  # H06
    site.add(
        "gate/10-a", f"setsid sh -c 'echo $$ > {site.log}; exec sleep 100' & sleep 0.3; exit 0"
    )
    begin = time.monotonic()
    assert site.gate(Phase.STAGE) == Proceed()
    assert time.monotonic() - begin < 10
    os.kill(int(site.lines()[0]), signal.SIGKILL)


def test_babble_is_capped_and_escaped(site):  # H07
    site.add(
        "gate/10-a",
        "head -c 20000000 /dev/zero >&2; head -c 20000000 /dev/urandom; printf '\\n\\033[31mred\\n' >&2; exit 1",
    )
    verdict = site.gate(Phase.STAGE)
    assert isinstance(verdict, Deny)
    assert len(verdict.reason) < 2000
    assert verdict.reason.endswith("\\x1b[31mred")
    assert verdict.reason.isprintable()


def test_stdin_need_not_be_read(site):  # H08
    site.add("gate/10-a", "exec <&-; exit 0")
    labels = {f"label{number}": "x" * 1000 for number in range(1000)}
    image = ImageSummary(reference="docker://x", labels=labels)
    assert site.gate(Phase.STAGE, to_image=image) == Proceed()


def test_cancelling_the_phase_ends_the_script(site):
    site.add("before-stage/10-a", f"echo $$ > {site.log}; sleep 100")

    async def main() -> None:
        with trio.move_on_after(0.5) as scope:
            await plugin.bootc_before_stage(site.context())
        assert scope.cancelled_caught

    trio.run(main)
    assert group_gone(int(site.lines()[0]))


def test_importing_the_plugin_costs_nothing_heavy():
    program = (
        "import sys, bootc_hooks_dir.plugin\n"
        "sys.exit(str({'trio', 'pydantic', 'yaml', 'ssl', 'rich', 'subprocess'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == "\n" or done.stderr == ""
