"""Two hosts, two processes, one real etcd: never both past the lock, and the lock of a killed holder ends with its lease."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from support.installed import ROOT, environment, run

from bootc_core.testing import make_image

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    place = tmp_path_factory.mktemp("fleet")
    return environment(place / "venv", ROOT / "examples/reboot_lock")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    assert shutil.which("etcd"), "apt-get install etcd-server"
    place = tmp_path_factory.mktemp("etcd")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        client, peer = one.getsockname()[1], two.getsockname()[1]
    url, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *("etcd", "--data-dir", place / "data", "--name", "one"),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"one={peers}", "--unsafe-no-fsync"),
            ],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=1) as up:
            if json.load(up)["health"] == "true":
                break
        assert server.poll() is None, (place / "log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(10)


class Host:
    """A sysroot with its configuration, on version 1, and a script that runs while the lock is held."""

    def __init__(self, path: Path, name: str, tools: Path, endpoint: str, key: str, lease: int):
        self.path, self.name, self.tools = path / name, name, tools
        self.log = path / "log"
        config = self.path / "config"
        (config / "etc/containers").mkdir(parents=True)
        (config / "etc/containers/policy.json").write_text(
            '{"default": [{"type": "insecureAcceptAnything"}]}'
        )
        (config / "etc/bootc/hooks.d/after-finalize").mkdir(parents=True)
        (config / "etc/bootc/reboot-lock.toml").write_text(
            f'endpoint = "{endpoint}"\nkey = "{key}"\nhost = "{name}"\nlease = {lease}\n'
        )
        self.where = ("--sysroot", str(self.path / "host"), "--config-root", str(config))
        self.publish("1")
        done = run(
            self.tools / "bootc",
            *("switch", "--transport", "oci", f"{self.path}/layout:stable", *self.where),
        )
        assert done.returncode == 0, done.stderr

    def script(self, text: str) -> None:
        place = self.path / "config/etc/bootc/hooks.d/after-finalize/10-mark"
        place.write_text(f"#!/bin/sh\n{text}\n")
        place.chmod(0o755)

    def publish(self, version: str) -> None:
        make_image(version).write_layout(self.path / "layout", "stable")

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.tools / "bootc", "upgrade", *self.where],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def upgrade(self) -> subprocess.CompletedProcess[str]:
        return run(self.tools / "bootc", "upgrade", *self.where)

    def version(self) -> str:
        done = run(self.tools / "bootc", "status", "--json", *self.where)
        return json.loads(done.stdout)["status"]["booted"]["image"]["version"]


def end_script(host: Host) -> None:
    """The script that was holding the killed run up; it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int((host.path / "pid").read_text()), signal.SIGKILL)


def test_never_both_past_the_lock(tmp_path, tools, endpoint):
    hosts = [Host(tmp_path, name, tools, endpoint, "never-both", 600) for name in ("a", "b")]
    for host in hosts:
        host.script(
            f'echo "in {host.name} $(date +%s%N)" >>{host.log}; sleep 1; '
            f'echo "out {host.name} $(date +%s%N)" >>{host.log}'
        )
    waited = 0
    for version in ("2", "3", "4"):
        for host in hosts:
            host.publish(version)
        left = {host.name: host for host in hosts}
        deadline = time.monotonic() + 120
        while left:
            assert time.monotonic() < deadline
            running = {name: host.start() for name, host in left.items()}
            for name, process in running.items():
                said, _ = process.communicate(timeout=120)
                if process.returncode == 0:
                    assert left.pop(name).version() == version
                    continue
                waited += 1
                assert "is switching" in said or "has the lock" in said, said
    lines = [line.split() for line in hosts[0].log.read_text().splitlines()]
    assert len(lines) == 12
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert (first[0], second[0]) == ("in", "out")
        assert first[1] == second[1], lines
    assert waited > 0, "they never met; this shows nothing"


def test_a_killed_holder_keeps_the_lock_for_its_lease(tmp_path, tools, endpoint):
    lease = 8
    one, other = (
        Host(tmp_path, name, tools, endpoint, "killed", lease) for name in ("one", "other")
    )
    one.script(f"echo $$ >{one.path}/pid.new; mv {one.path}/pid.new {one.path}/pid; sleep 600")
    for host in (one, other):
        host.publish("2")
    holder = one.start()
    deadline = time.monotonic() + 60
    while not (one.path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    taken = time.monotonic()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    end_script(one)
    done = other.upgrade()
    assert done.returncode == 1, done.stdout
    assert "one is switching" in done.stderr, done.stderr
    assert other.version() == "1"
    while (done := other.upgrade()).returncode != 0:
        assert "one is switching" in done.stderr, done.stderr
        assert time.monotonic() - taken < lease + 20
    assert time.monotonic() - taken > 2
    assert other.version() == "2"
    # the killed host had switched; its next run finds that and goes on
    one.script("exit 0")
    one.publish("3")
    assert one.upgrade().returncode == 0
    assert one.version() == "3"


def test_a_killed_host_gets_its_own_lock_again(tmp_path, tools, endpoint):
    host = Host(tmp_path, "again", tools, endpoint, "again", 600)
    host.script(f"echo $$ >{host.path}/pid.new; mv {host.path}/pid.new {host.path}/pid; sleep 600")
    host.publish("2")
    holder = host.start()
    deadline = time.monotonic() + 60
    while not (host.path / "pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    end_script(host)
    host.script("exit 0")
    host.publish("3")
    done = host.upgrade()
    assert done.returncode == 0, done.stderr
    assert host.version() == "3"


def test_its_own_tests_pass_where_it_is_installed(tools, tmp_path):
    shutil.copytree(ROOT / "examples/reboot_lock/tests", tmp_path / "tests")
    done = run(
        tools / "python",
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"),
        *("--rootdir", tmp_path, tmp_path / "tests"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
