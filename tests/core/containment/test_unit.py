"""A plugin's child as a service of systemd: the command, and a real systemd that is PID 1 of a namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bootc_core import limits
from bootc_core.containment import unit

HERE = Path(__file__).parent


def command(**changes):
    values = {"seconds": 60.0, "memory_bytes": 512 << 20, **changes}
    return unit.command("win dow/$x", ["/py thon", "-c", "$HOME"], {"A": "1 $2", "B": ""}, **values)


def test_the_command():
    words = command()
    assert words[:5] == ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
    name = words[5].removeprefix("--unit=")
    assert name.startswith("bootc-plugin-win_dow__x-")
    assert len(name) < 100
    assert words[words.index("--") + 1 :] == ["/py thon", "-c", "$$HOME"]
    assert words[words.index("--") - 2 : words.index("--")] == ["--setenv=A=1 $2", "--setenv=B="]
    properties = {word.partition("=")[2] for word in words if word.startswith("--property=")}
    for wanted in (
        "ProtectSystem=full",
        "NoNewPrivileges=yes",
        "KillMode=control-group",
        "RuntimeMaxSec=70",
        f"MemoryMax={512 << 20}",
        f"TasksMax={limits.CHILD_PROCESSES}",
    ):
        assert wanted in properties


def test_two_calls_are_two_units():
    assert command()[5] != command()[5]


def test_only_where_systemd_runs_the_host(tmp_path, monkeypatch):
    bus = tmp_path / "bus"
    monkeypatch.setattr(unit, "_BOOTED", tmp_path)
    monkeypatch.setattr(unit, "_BUS", bus)
    assert not unit.available()  # no bus: a container, or early at boot
    bus.write_text("")
    installed = shutil.which("systemd-run") is not None
    assert unit.available() is (installed and os.geteuid() == 0)
    monkeypatch.setattr(unit, "_BOOTED", tmp_path / "none")
    assert not unit.available()


def cgroup_mount() -> Path:
    """Where the unified hierarchy is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    pytest.fail("no unified cgroup hierarchy is mounted")


@contextlib.contextmanager
def booted(directory: Path):
    """Process id of a systemd that is PID 1 of its own namespaces, in a cgroup of its own."""
    group = cgroup_mount() / f"bootc-test-{os.getpid()}"
    group.mkdir()
    script = Path(__file__).parents[2] / "support/systemd.sh"
    spaces = (
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        "--mount-proc",
        "--uts",
        "--ipc",
        "--cgroup",
    )
    enter = f"echo $$ > {group}/cgroup.procs && exec unshare {' '.join(spaces)} bash {script} {directory}"
    with (directory / "log").open("w") as log:
        boot = subprocess.Popen(
            ["bash", "-c", enter], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            children = Path(f"/proc/{boot.pid}/task/{boot.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/root/run/dbus/system_bus_socket").exists():
                break
            assert boot.poll() is None, (directory / "log").read_text()
            time.sleep(0.05)
        else:
            pytest.fail((directory / "log").read_text() + (directory / "console").read_text())
        yield int(children[0])
    finally:
        boot.kill()
        boot.wait()
        for _ in range(200):
            for place in sorted(group.rglob("*/"), key=lambda one: -len(one.parts)):
                with contextlib.suppress(OSError):
                    place.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
            if not group.exists():
                break
            time.sleep(0.05)


@pytest.mark.root
@pytest.mark.real
def test_services_of_a_real_systemd(tmp_path):
    """An answer, a denied write, a daemon, a deadline and a killed bootc: each ends with its unit, and no unit is left."""
    with booted(tmp_path) as pid:
        inside = ["nsenter", "--target", str(pid), "--all", "--root", "--wd", "--"]
        done = subprocess.run(
            [*inside, sys.executable, str(HERE / "within_systemd.py"), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        told = done.stdout + done.stderr + (tmp_path / "console").read_text()
        assert done.returncode == 0, told
        assert done.stdout.splitlines() == [
            "look: service bootc-plugin-look, /usr is read-only, /var/tmp is not",
            "leaves a daemon: plugin-broken, nothing left",
            "hangs: hook-timeout, nothing left",
            "killed: nothing left",
        ], told
