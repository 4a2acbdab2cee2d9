from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import trio
from support.processes import gone

from bootc_core import process
from bootc_core.errors import HookError, UnsupportedEnvironmentError


def through_trio(argv, **options):
    async def main():
        return await process.run(argv, **options)

    return trio.run(main)


@pytest.fixture(params=[through_trio, process.run_blocking], ids=["trio", "blocking"])
def run(request):
    return request.param


def sh(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def test_streams_and_status(run):
    done = run(sh("cat; echo oops >&2; exit 3"), stdin=b"hello\n", timeout_s=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"hello\n", b"oops\n")
    assert not done.truncated
    assert not done.timed_out
    assert done.ending() == "exit status 3"


def test_large_stdin_passes_through(run):
    data = os.urandom(3_000_000)
    done = run(["sha256sum"], stdin=data, timeout_s=30)
    import hashlib

    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_stdin_that_nobody_reads_is_no_error(run):
    assert run(["true"], stdin=b"x" * 5_000_000, timeout_s=30).returncode == 0


def test_without_stdin_there_is_dev_null(run):
    assert run(sh("readlink /proc/self/fd/0"), timeout_s=30).stdout == b"/dev/null\n"


def test_environment_is_clean(run, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/nonexistent.so")
    monkeypatch.setenv("SECRET", "x")
    done = run(["env"], timeout_s=30, env=process.clean_environment(ONE="1"))
    names = {line.split(b"=")[0] for line in done.stdout.splitlines()}
    assert names == {b"PATH", b"LANG", b"HOME", b"ONE"}


def test_descriptors_are_closed_but_those_passed(run, tmp_path):
    with (tmp_path / "f").open("w") as leaked, (tmp_path / "g").open("w") as passed:
        os.set_inheritable(leaked.fileno(), True)
        done = run(
            [sys.executable, "-Sc", "import os; print(os.listdir('/proc/self/fd'))"],
            timeout_s=30,
            pass_fds=(passed.fileno(),),
        )
        assert f"'{passed.fileno()}'".encode() in done.stdout
        assert f"'{leaked.fileno()}'".encode() not in done.stdout


def test_babble_is_capped_and_does_not_block(run):
    done = run(
        sh("echo first; head -c 50000000 /dev/zero; echo last"), timeout_s=60, output_limit=4096
    )
    assert done.truncated
    assert done.stdout.startswith(b"first\n")
    assert done.stdout.endswith(b"last\n")
    assert b"bytes left out]" in done.stdout
    assert len(done.stdout) < 4096 + 64


def test_deadline_ends_the_whole_group(run):
    begin = time.monotonic()
    done = run(sh("sleep 1000 & echo $!; wait"), timeout_s=0.3, check=False)
    assert done.timed_out
    assert done.returncode == -signal.SIGTERM
    assert time.monotonic() - begin < 5
    assert gone(int(done.stdout))


def test_who_ignores_term_is_killed(run, monkeypatch):
    monkeypatch.setattr("bootc_core.limits.HOOK_TERM_GRACE_S", 0.2)
    done = run(sh("trap '' TERM; while :; do sleep 1; done"), timeout_s=0.3, check=False)
    assert done.timed_out
    assert done.returncode == -signal.SIGKILL


def test_nobody_waits_for_a_daemon_that_keeps_the_pipes(run):
    begin = time.monotonic()
    done = run(sh("setsid sh -c 'echo $$; exec sleep 60' & sleep 0.2; exit 0"), timeout_s=30)
    assert time.monotonic() - begin < 10
    assert done.returncode == 0
    os.kill(int(done.stdout), signal.SIGKILL)  # it left the group on purpose


def test_background_jobs_of_the_group_end_with_it(run):
    done = run(sh("sleep 1000 & echo $!"), timeout_s=30)
    assert gone(int(done.stdout))


def test_failure_says_status_and_last_lines(run):
    with pytest.raises(HookError) as caught:
        run(
            sh(
                "for i in 1 2 3 4 5; do echo line $i >&2; done; printf '\\033[31mred' >&2; exit 127"
            ),
            timeout_s=30,
            error=HookError,
            label="50-x",
        )
    assert caught.value.reference == "program-failed"
    assert caught.value.message == ("50-x failed: exit status 127 (a command in it was not found)")
    assert caught.value.found == "line 4 | line 5 | \\x1b[31mred"


def test_signal_is_named(run):
    done = run(sh("kill -SEGV $$"), timeout_s=30, check=False)
    assert done.ending() == "killed by SIGSEGV"


def test_timeout_is_an_error_when_checked(run):
    with pytest.raises(HookError) as caught:
        run(["sleep", "1000"], timeout_s=0.1, error=HookError)
    assert caught.value.reference == "program-timeout"
    assert caught.value.expected == "an end within 0.1 s"


@pytest.mark.parametrize(
    ("name", "content", "mode", "reference"),
    [
        (None, b"", 0, "program-missing"),
        ("a", b"#!/bin/sh\n", 0o644, "program-not-permitted"),
        ("b", b"\x7fELF\x02\x01\x01" + bytes(57), 0o755, "program-not-executable"),
        ("c", b"#!/nonexistent/sh\n", 0o755, "program-missing"),
    ],
)
def test_what_cannot_be_started_is_named(run, tmp_path, name, content, mode, reference):
    path = tmp_path / (name or "missing\x1b")
    if name:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(UnsupportedEnvironmentError) as caught:
        run([str(path)], timeout_s=10)
    assert caught.value.reference == reference
    assert "\x1b" not in caught.value.message
    assert isinstance(caught.value.__cause__, OSError)


def test_missing_directory_is_named(run):
    with pytest.raises(UnsupportedEnvironmentError) as caught:
        run(["true"], timeout_s=10, cwd="/nonexistent")
    assert caught.value.reference == "program-directory"


def test_cancel_ends_the_group_before_it_goes_on(tmp_path):
    async def main() -> None:
        with trio.move_on_after(0.5) as scope:
            await process.run(
                sh(f"sleep 1000 & echo $! > {tmp_path}/pid; wait"), timeout_s=1000, check=False
            )
        assert scope.cancelled_caught

    trio.run(main)
    assert gone(int((tmp_path / "pid").read_text()))


def test_importing_it_costs_no_trio():
    text = "import bootc_core.process, sys; sys.exit('trio' in sys.modules)"
    assert (
        process.run_blocking([sys.executable, "-c", text], timeout_s=30, cwd=Path.cwd()).returncode
        == 0
    )
