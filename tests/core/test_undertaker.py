"""Nothing that this program started outlives it, whatever kills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from support.misbehaving import package
from support.processes import gone

from bootc_core import process, undertaker

SCRIPT = """#!/bin/sh
cat > /dev/null  # fed when the program is known to be ended with the command
sleep 600 &
echo $$ $! > {pids}
trap '' TERM
while :; do sleep 600; done
"""


def wait_for(path):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return [int(word) for word in text.split()]
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def test_a_site_script_ends_with_a_killed_bootc(tmp_path):
    """The script ignores TERM and has a child; the command is killed as the kernel kills when memory is short."""
    hooks = tmp_path / "root/etc/bootc/hooks.d"
    hooks.mkdir(parents=True)
    (hooks / "pre-upgrade").write_text(SCRIPT.format(pids=tmp_path / "pids"))
    (hooks / "pre-upgrade").chmod(0o755)
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "bootc_core.cli.main", "hooks", "run", "pre-upgrade"),
            *("--dry-run", "--config-root", tmp_path / "root"),
        ],
        stdout=subprocess.DEVNULL,
    )
    pids = wait_for(tmp_path / "pids")
    assert len(pids) == 2
    command.kill()
    command.wait()
    assert all(gone(pid) for pid in pids)


PLUGIN = """
import sys
from datetime import UTC, datetime
import trio
from bootc_core.containment import declared
from bootc_core.containment.proxy import Contained
from bootc_core.hooks.discovery import PluginSource
from bootc_core.models.context import Context, Operation, Phase
from bootc_core.models import events

name, place, hook = sys.argv[1:]
source = PluginSource(name, name + ".plugin", name, "1", place)
plugin = Contained(source, declared.read(source))
if hook == "bootc_on_event":
    plugin.bootc_on_event(events.Warned("t", "x"))
    trio.run(trio.sleep_forever)
context = Context(
    transaction="t", operation=Operation.UPGRADE, phase=Phase.STAGE, sysroot="/", live=False, started_at=datetime.now(UTC)
)
trio.run(plugin.bootc_gate, context, Phase.STAGE)
"""


@pytest.mark.parametrize("hook", ["bootc_gate", "bootc_on_event"])
def test_a_plugin_and_what_it_started_end_with_a_killed_bootc(tmp_path, hook):
    source = package(tmp_path, "hangs", "closed", (hook,))
    module = tmp_path / source.name / "plugin.py"
    text = module.read_text()
    start = (
        "import os, subprocess\n"
        "    other = subprocess.Popen(['sleep', '600'])\n"
        f"    with open('{tmp_path}/pids', 'w') as file:\n"
        "        print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('Pid:')], file=file)\n"
        "    import signal"
    )
    module.write_text(text.replace("import signal", start, 1))
    marker = f"undertaker-{os.getpid()}-{hook}"
    command = subprocess.Popen(
        [sys.executable, "-c", PLUGIN, source.name, tmp_path, hook],
        env={**os.environ, "BOOTC_TEST_MARKER": marker},
    )
    wait_for(tmp_path / "pids")
    assert len(marked(marker)) >= 4  # the command, the child's two processes, sleep
    command.kill()
    command.wait()
    assert all(gone(pid) for pid in marked(marker))


def marked(marker):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    text = file.read()
            except OSError:
                continue
            if f"BOOTC_TEST_MARKER={marker}\0".encode() in text:
                found.append(int(entry))
    return found


OWNER = """
import os, signal, subprocess, sys
from bootc_core import undertaker

first = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
second = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
third = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
undertaker.add(first.pid)
undertaker.add(second.pid)
undertaker.remove(second.pid)
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    (shell,) = {int(word) for word in file.read().split()} - {first.pid, second.pid, third.pid}
if sys.argv[1] == "kill":
    os.kill(shell, signal.SIGKILL)
    os.waitpid(shell, 0)
undertaker.add(third.pid)
print(first.pid, second.pid, third.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("undertaker_is", ["left alone", "kill"])
def test_what_was_taken_back_is_spared_and_a_dead_undertaker_is_replaced(undertaker_is):
    done = subprocess.run(
        [sys.executable, "-c", OWNER, undertaker_is],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    first, second, third = (int(word) for word in done.stdout.split())
    assert gone(first)
    assert gone(third)
    os.kill(second, signal.SIGKILL)  # it is there


def test_nothing_is_kept_for_a_program_that_ended():
    process.run_blocking(["true"], timeout_s=60)
    assert not undertaker._groups
