"""More of ``test_live_host``: not in the default run, since each of these calls the program many times. ``make live-host``."""

from __future__ import annotations

import os
import sys

import pytest
from support.booted import updated, use_up_tries, verity, version
from support.images import build

pytestmark = [pytest.mark.root]


def test_download_only_waits_for_its_release(host, layout):
    build(layout, [version(2)], tag="os")
    assert "will not be applied on reboot" in host.done("upgrade", "--download-only")
    assert host.status()["staged"]["downloadOnly"] is True
    assert "waits" in host.done("composefs-finalize-staged")
    assert host.boots_next() == host.deployment
    assert "will now be applied on reboot" in host.done("upgrade", "--from-downloaded")
    assert host.status()["staged"]["downloadOnly"] is False
    assert "already set to apply on reboot" in host.done("upgrade", "--from-downloaded")
    second = verity(host.status()["staged"])
    host.done("composefs-finalize-staged")
    assert host.boots_next() == second


def test_what_was_only_downloaded_is_forgotten_by_a_reboot(host, layout):
    build(layout, [version(2)], tag="os")
    host.done("upgrade", "--download-only")
    host.boot(host.deployment)
    assert host.status()["staged"] is None
    assert "Queued for next boot" in host.done("upgrade")


def test_a_rollback_drops_what_is_staged(host, layout):
    first = host.deployment
    build(layout, [version(2)], tag="os")
    host.done("upgrade")
    host.done("composefs-finalize-staged")
    second = host.boots_next()
    host.boot(second)
    build(layout, [version(3)], tag="os")
    host.done("upgrade")
    third = verity(host.status()["staged"])
    host.done("rollback")
    assert host.status()["staged"] is None
    assert sorted(os.listdir(host.sysroot / "state/deploy")) == sorted([first, second])
    assert third not in {first, second}


def test_a_gate_keeps_what_is_staged_from_booting(host, layout):
    hooks = host.home / "config/etc/bootc/hooks.d/gate"
    hooks.mkdir(parents=True)
    for directory in (hooks, *list(hooks.parents)[:5]):
        directory.chmod(0o755)
    gate = hooks / "10-window"
    gate.write_text('#!/bin/sh\n[ "$BOOTC_PHASE" != finalize ] || { echo "not today"; exit 3; }\n')
    gate.chmod(0o755)
    build(layout, [version(2)], tag="os")
    done = host.bootc("upgrade", "--config-root", host.home / "config")
    assert done.returncode == 1
    assert "does not allow finalize" in done.stderr
    assert host.status()["staged"]["downloadOnly"] is True
    host.done("composefs-finalize-staged")
    assert host.boots_next() == host.deployment
    gate.unlink()
    host.done("upgrade", "--config-root", host.home / "config")
    assert host.status()["staged"]["downloadOnly"] is False


def test_a_unit_that_does_not_start_stops_the_upgrade(host, layout):
    build(layout, [version(2)], tag="os")
    host.program = "echo broken >&2; exit 1"
    done = host.bootc("upgrade")
    assert done.returncode == 1
    assert "bootc-finalize-staged.service" in done.stderr
    host.program = "exit 0"
    assert host.status()["staged"] is None


def test_apply_without_an_update_does_not_reboot(host):
    assert host.done("upgrade", "--apply") == "No update available.\n"
    assert not any("reboot" in call for call in host.calls())


def test_an_interrupted_upgrade_leaves_the_running_one(host, layout):
    build(layout, [version(2)], tag="os")
    program = (
        "import os, runpy, sys\n"
        "from bootc_core.fs import atomic\n"
        "def die(step, path):\n"
        "    if 'staged-deployment' in path: os.kill(os.getpid(), 9)\n"
        "atomic._observers.append(die)\n"
        "from bootc_core.cli.main import main\n"
        "sys.exit(main(['upgrade']))\n"
    )
    assert host.run(sys.executable, "-c", program).returncode == 137
    status = host.status()
    assert (verity(status["booted"]), status["staged"]) == (host.deployment, None)
    assert "Queued for next boot" in host.done("upgrade")
    second = verity(host.status()["staged"])
    host.done("composefs-finalize-staged")
    assert host.boots_next() == second


def test_a_healthy_boot_is_called_good(host, layout):
    first, second = host.deployment, updated(host, layout)
    assert host.done("internals", "boot-complete").endswith("This boot is healthy.\n")
    assert not any("+" in name for name in os.listdir(host.sysroot / "boot/loader/entries"))
    assert (host.home / "run/bootc/boot-good").exists()
    assert host.boots_next() == second
    assert verity(host.status()["rollback"]) == first
    assert host.done("internals", "boot-complete") == ""  # every later boot


def test_without_a_counting_loader_an_unhealthy_update_goes_back_at_once(host, layout):
    first = host.deployment
    checks = host.home / "health"
    checks.mkdir()
    host.mounts["/usr/lib/bootc/health.d"] = checks
    second = updated(host, layout)
    (checks / "10-new").write_text("#!/bin/sh\nexit 1\n")
    (checks / "10-new").chmod(0o755)
    assert host.bootc("internals", "boot-complete").returncode == 137
    assert any("systemctl reboot" in call for call in host.calls())
    assert host.boots_next() == first
    host.boot(first)
    assert "10-new: it ended with exit status 1" in host.done("status", "--format", "humanreadable")
    assert "failed on this host" in host.done("upgrade")
    assert verity(host.status()["rollback"]) == second
    host.done("internals", "boot-complete")
    assert host.status()["rollback"] is None  # what failed is gone
    assert "Queued for next boot" in host.done("upgrade", "--retry-failed")


def test_without_a_counting_loader_a_boot_that_hangs_goes_back_at_the_deadline(host, layout):
    first, second = host.deployment, updated(host, layout)
    assert host.bootc("internals", "boot-deadline").returncode == 1  # its unit reboots
    assert host.boots_next() == first
    host.boot(first)
    assert "did not reach its health checks in time" in host.done("internals", "boot-complete")
    assert second not in os.listdir(host.sysroot / "state/deploy")
    assert host.bootc("internals", "boot-deadline").returncode == 0  # nothing is on trial
    assert host.boots_next() == first


def test_an_update_that_never_came_up(host, layout):
    first, _ = host.deployment, updated(host, layout)
    use_up_tries(host)
    host.boot(first)
    assert "did not come up" in host.done("internals", "boot-complete")
    assert "did not reach its health checks" in host.done("status", "--format", "humanreadable")
    status = host.status()
    assert (verity(status["booted"]), status["rollback"]) == (first, None)
    assert host.boots_next() == first
    assert host.bootc("rollback").returncode == 1
