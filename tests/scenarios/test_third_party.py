"""A plugin outside the tree, really installed: it vetoes an upgrade and sees every event.

A fresh virtual environment gets this project and ``examples/third_party_plugin`` by pip, from their
own project files, without a network; dependencies come from the environment that runs the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bootc_core.testing import make_image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/third_party_plugin"


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [str(word) for word in argv],
        env={**keep, "LANG": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """``bin`` of an environment with both installed."""
    place = tmp_path_factory.mktemp("environment")
    made = run(sys.executable, "-m", "venv", "--without-pip", place)
    assert made.returncode == 0, made.stderr
    python = place / "bin/python"
    shown = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    packages = Path(shown.stdout.strip())
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(ours)))
    for what in (("-e", ROOT), (EXAMPLE,)):
        installed = run(
            sys.executable,
            *("-m", "pip", "--python", python, "install", "--quiet", "--no-index"),
            *("--no-deps", "--no-build-isolation", *what),
        )
        assert installed.returncode == 0, installed.stderr
    return place / "bin"


class Host:
    """A host in a directory, and the command line of that environment."""

    def __init__(self, path: Path, bin_directory: Path) -> None:
        self.path = path
        self.bin = bin_directory
        self.sysroot = path / "host"
        self.layout = path / "layout"
        self.config = path / "config"
        self.events = path / "events.jsonl"
        (self.config / "etc/bootc").mkdir(parents=True)
        (self.config / "etc/containers").mkdir()
        (self.config / "etc/containers/policy.json").write_text(
            '{"default": [{"type": "insecureAcceptAnything"}]}'
        )

    def publish(self, version: str) -> None:
        make_image(version).write_layout(self.layout, "stable")

    def settings(self, text: str) -> None:
        (self.config / "etc/bootc/example-window.toml").write_text(text)

    def bootc(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        where = ("--config-root", str(self.config))
        if command != "plugins":
            where = ("--sysroot", str(self.sysroot), *where)
        return run(
            self.bin / "bootc", command, *words, *where, BOOTC_EXAMPLE_EVENTS=str(self.events)
        )

    def ok(self, command: str, *words: str) -> str:
        done = self.bootc(command, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict:
        return json.loads(self.ok("status", "--json"))["status"]

    def seen(self) -> list[dict]:
        return [json.loads(line) for line in self.events.read_text().splitlines()]

    def files(self) -> dict[str, bytes]:
        """Everything in the sysroot but the engine's own notes."""
        return {
            str(path.relative_to(self.sysroot)): path.read_bytes()
            for path in sorted(self.sysroot.rglob("*"))
            if path.is_file()
            and not path.is_symlink()
            and not path.is_relative_to(self.sysroot / "bootc")
        }


@pytest.fixture
def host(tmp_path, environment):
    host = Host(tmp_path, environment)
    host.publish("1")
    host.ok("switch", "--transport", "oci", f"{host.layout}:stable")
    host.events.unlink()
    host.publish("2")
    return host


def test_it_is_listed_with_version_and_origin(tmp_path, environment):
    host = Host(tmp_path, environment)
    lines = host.ok("plugins", "list").splitlines()
    line = next(line for line in lines if line.startswith("example_window"))
    columns = re.split(r"\s{2,}", line)
    assert columns[:3] == ["example_window", "loaded", "1.2.3"]
    assert columns[3] == "1"  # the API
    assert columns[4].startswith("bootc_example_window in ")
    assert columns[5] == "gate, on_event"
    entry = next(
        one
        for one in json.loads(host.ok("plugins", "list", "--json"))
        if one["name"] == "example_window"
    )
    assert entry["version"] == "1.2.3"
    assert entry["module"] == "bootc_example_window.plugin"
    assert not entry["builtin"]


def test_it_vetoes_an_upgrade_and_nothing_changes(host):
    host.settings('freeze = "change freeze until May"\n')
    before, files = host.status(), host.files()
    done = host.bootc("upgrade")
    assert done.returncode == 1
    assert "example_window does not allow fetch: change freeze until May" in done.stderr, (
        done.stderr
    )
    assert host.status() == before
    assert host.files() == files
    assert [event["event"] for event in host.seen()] == [
        "transaction.started",
        "transaction.failed",
    ]
    assert host.seen()[-1]["reference"] == "denied"
    assert not host.seen()[-1]["after_switch"]


def test_it_holds_an_upgrade_until_the_window_opens(host):
    host.settings('window = "00:00-00:00"\n')  # never open
    before, files = host.status(), host.files()
    done = host.bootc("upgrade")
    assert done.returncode == 1
    assert re.search(
        r"example_window asks to wait with fetch until \S+T00:00:00Z: outside the maintenance window",
        done.stderr,
    ), done.stderr
    assert host.status() == before
    assert host.files() == files


def test_it_sees_every_event_in_order(host):
    host.ok("upgrade")
    assert host.status()["booted"]["image"]["version"] == "2"
    names = [event["event"] for event in host.seen()]
    steps = [name for name in names if name not in {"blob.progressed", "step.progressed"}]
    assert steps == [
        "transaction.started",
        "phase.started",
        "image.resolved",
        "phase.completed",
        "phase.started",
        "image.verified",
        "phase.completed",
        "phase.started",
        "layers.planned",
        "blob.completed",
        "deployment.staged",
        "phase.completed",
        "phase.started",
        "boot.switched",
        "phase.completed",
        "transaction.completed",
    ]
    phases = [event["phase"] for event in host.seen() if event["event"] == "phase.started"]
    assert phases == ["fetch", "verify", "stage", "finalize"]
    assert len({event["transaction"] for event in host.seen()}) == 1


def test_it_can_be_blocked_by_name(host):
    host.settings('freeze = "change freeze until May"\n')
    place = host.config / "etc/bootc/config.d"
    place.mkdir()
    (place / "10-block.toml").write_text('[plugins]\nblocked = ["example_window"]\n')
    assert re.search(r"^example_window +blocked", host.ok("plugins", "list"), re.MULTILINE)
    host.ok("upgrade")
    assert host.status()["booted"]["image"]["version"] == "2"
    assert not host.events.exists()


def test_its_own_tests_pass_where_it_is_installed(environment, tmp_path):
    """With the test kit that ships, outside of this tree."""
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    done = run(
        environment / "python",
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path),
        tmp_path / "tests",
    )
    assert done.returncode == 0, done.stdout + done.stderr
