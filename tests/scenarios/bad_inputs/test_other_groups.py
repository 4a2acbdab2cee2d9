"""What scripts, signals and other runs do to a real run at the real command line: rows of the groups H and X."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from support.refusal import CLI, ENVIRONMENT, Host, assert_refused, build, error_of


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    place = tmp_path_factory.mktemp("other")
    for version in ("1", "2"):
        build(place / version, version)
    return place


@pytest.fixture
def host(template, tmp_path):
    host = Host(tmp_path, flags=("--config-root", str(tmp_path / "config")))
    (tmp_path / "config/etc/bootc/hooks.d").mkdir(parents=True)
    host.serve(template / "1")
    done = host.switch()
    assert done.returncode == 0, done.stderr
    host.serve(template / "2")
    return host


def script(host, point, text):
    path = host.place / "config/etc/bootc/hooks.d" / point / "50-test"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def command(host, *arguments):
    return [*CLI, arguments[0], *host.flags, "--sysroot", str(host.sysroot), *arguments[1:]]


def test_h09_a_script_that_calls_bootc_is_told_who_holds_the_lock(host):
    again = " ".join(map(str, command(host, "upgrade", "--quiet")))
    script(
        host, "before-stage", f"BOOTC_ERROR_FORMAT=json {again} 2>{host.place}/said; test $? = 1"
    )
    done = host.upgrade(timeout=60)
    assert done.returncode == 0, done.stderr
    (error,) = [
        json.loads(line)["error"]
        for line in (host.place / "said").read_text().splitlines()
        if line.startswith('{"error"')
    ]
    assert (error["class"], error["reference"]) == ("BUSY", "locked")
    assert host.versions() == (None, "2", "1")


def test_h10_a_script_that_deletes_what_was_staged(host):
    before = host.snapshot()
    newest = f"ls -td {host.sysroot}/state/deploy/* | head -1"
    script(host, "after-stage", f"rm -rf $({newest})")
    done = host.upgrade()
    assert_refused(done, "STATE")
    host.assert_unchanged(before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_x02_signals_even_twice_end_a_run_cleanly(host, number):
    before = host.snapshot()
    script(host, "before-stage", f"touch {host.place}/there; sleep 30")
    with subprocess.Popen(
        command(host, "upgrade", "--quiet"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 60
        while not (host.place / "there").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        begin = time.monotonic()
        running.send_signal(number)
        time.sleep(0.05)
        running.send_signal(number)
        _, said = running.communicate(timeout=30)
        assert time.monotonic() - begin < 20
    done = subprocess.CompletedProcess((), running.returncode, "", said)
    assert running.returncode == 1
    assert error_of(done)["class"] == "INTR"
    host.assert_unchanged(before)
    (host.place / "config/etc/bootc/hooks.d/before-stage/50-test").unlink()
    assert host.upgrade().returncode == 0


def test_x08_x09_several_updates_and_readers_at_once(host):
    script(host, "before-stage", "sleep 1")
    runs = [
        subprocess.Popen(
            command(host, "upgrade", "--quiet"),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    seen = set()
    while any(run.poll() is None for run in runs):
        seen.add(host.versions())
    ended = [(run.wait(), run.stderr.read() if run.stderr else "") for run in runs]
    for run in runs:
        if run.stderr:
            run.stderr.close()
    assert seen <= {(None, "1", None), (None, "2", "1"), ("2", "1", None)}
    losers = [said for status, said in ended if status]
    for said in losers:
        error = error_of(subprocess.CompletedProcess((), 1, "", said))
        assert error["class"] == "BUSY"
        assert "pid" in error["found"] or "another process" in error["found"]
    assert len(losers) < 4
    assert host.versions() == (None, "2", "1")


def test_x10_a_lock_file_of_the_dead_holds_nobody_up(host):
    (host.sysroot / "bootc/lock").write_text(
        f'{{"pid": {os.getpid()}, "operation": "x", "since": "y"}}'
    )
    assert host.upgrade().returncode == 0
