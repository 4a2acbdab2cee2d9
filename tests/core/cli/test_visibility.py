"""What an administrator can see and switch: blockers, order, site hooks, plugins left out, safe mode."""

from __future__ import annotations

import json
import os
import threading

import pytest

from bootc_core.cli.main import main
from bootc_core.testing import make_image


class Host:
    def __init__(self, path, capsys):
        self.path, self.capsys = path, capsys
        (path / "etc/containers").mkdir(parents=True)
        (path / "etc/containers/policy.json").write_text(
            '{"default": [{"type": "insecureAcceptAnything"}]}'
        )
        (path / "etc/bootc/config.d").mkdir(parents=True)
        self.publish("1")
        assert self("switch", "--transport", "oci", f"{path}/layout:stable")[0] == 0

    def publish(self, version):
        make_image(version).write_layout(self.path / "layout", "stable")

    def __call__(self, *words, sysroot=True):
        where = ["--config-root", str(self.path)]
        if sysroot:
            where += ["--sysroot", str(self.path / "host")]
        self.capsys.readouterr()
        try:
            status = main([*words, *where])
        except SystemExit as end:
            status = end.code
        out = self.capsys.readouterr()
        return status, out.out, out.err

    def script(self, point, text):
        place = self.path / "etc/bootc/hooks.d" / point
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!/bin/sh\n{text}\n")
        place.chmod(0o755)

    def version(self):
        return json.loads(self("status", "--json")[1])["status"]["booted"]["image"]["version"]


@pytest.fixture
def host(tmp_path, capsys):
    return Host(tmp_path, capsys)


def test_why_not_says_who_and_until_when(host):
    assert host("why-not")[:2] == (0, "Nothing stands against an update.\n")
    host.script("gate/10-freeze", 'echo "change freeze"; exit 3')
    host.script(
        "gate/05-window",
        """[ "$BOOTC_PHASE" = stage ] || exit 0
        echo '{"verdict": "hold", "reason": "at night", "until": "2099-01-01T00:00:00Z"}'""",
    )
    status, out, _ = host("why-not")
    assert status == 1
    (line,) = out.splitlines()
    assert line.startswith("hooks_dir: denies fetch, verify, stage, finalize: ")
    assert "10-freeze: change freeze; ends: when it says otherwise" in line
    (host.path / "etc/bootc/hooks.d/gate/10-freeze").unlink()
    status, out, _ = host("why-not", "--json")
    (blocker,) = json.loads(out)
    assert blocker["owner"] == "hooks_dir"
    assert blocker["what"] == "holds stage"
    assert blocker["end"] < "2099"  # a hold has a bound
    host.script("gate/05-window", "kill -9 $$")
    assert "hooks_dir: broke at fetch, verify, stage, finalize" in host("why-not")[1]


def test_why_not_sees_another_run_and_what_waits(host):
    from bootc_core.engine.lock import exclusive
    from bootc_core.engine.sysroots import make_sysroot

    host.publish("2")
    assert host("upgrade", "--download-only")[0] == 0
    assert "administrator: downloaded only" in host("why-not")[1]
    sysroot = make_sysroot(host.path / "host", None, host.path)
    begun, over = threading.Event(), threading.Event()

    def hold():
        with exclusive(sysroot, "upgrade"):
            begun.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    out = host("why-not")[1]
    over.set()
    thread.join()
    assert f"bootc: another run: pid {os.getpid()}, bootc upgrade" in out


def test_holds_are_overridden_with_a_reason_on_record(host):
    host.script("pre-upgrade", 'echo "not now"; exit 21')
    host.publish("2")
    status, _, err = host("upgrade")
    assert status == 1
    assert "asks to wait" in err
    status, _, err = host("upgrade", "--override-holds", "CVE-2026-1")
    assert status == 0, err
    assert "the hold of hooks_dir is overridden" in err
    record = json.loads((host.path / "host/bootc/holds.json").read_bytes())
    assert [one["reason"] for one in record["overrides"]] == ["CVE-2026-1"]
    assert host.version() == "2"


def test_safe_mode_can_always_roll_back(host):
    host.publish("2")
    assert host("upgrade")[0] == 0
    host.script("gate/10-never", "exit 1")
    assert "does not allow rollback" in host("rollback")[2]
    (host.path / "etc/bootc/config.d/10-broken.toml").write_text("[storage\n")
    assert "the configuration has an error" in host("rollback")[2]
    status, _, err = host("rollback", "--safe-mode")
    assert status == 0, err
    assert host("status", "--json", "--safe-mode")[0] == 0
    (host.path / "etc/bootc/config.d/10-broken.toml").unlink()
    assert host.version() == "1"


def test_a_plugin_is_left_out_once(host):
    host.script("gate/10-never", "exit 1")
    host.publish("2")
    assert host("upgrade")[0] == 1
    assert host("upgrade", "--no-plugin", "hooks_dir")[0] == 0
    assert host.version() == "2"
    status, _, err = host("upgrade", "--no-plugin", "signing")
    assert status == 1
    assert "no signature policy is loaded" in err


def test_what_the_site_requires_has_to_be_there(host):
    """A gate's package that was lost with an image is not a gate that says yes."""
    settings = host.path / "etc/bootc/config.d/10-required.toml"
    settings.write_text('[plugins]\nrequired = ["hooks_dir", "window"]\nwanted = ["tell_fleet"]\n')
    host.publish("2")
    status, _, err = host("upgrade")
    assert status == 1
    assert "plugin window is required on this host, and not loaded" in err
    assert "administrator: requires a plugin: window is not loaded; ends: " in host("why-not")[1]
    rows = host("plugins", "list", sysroot=False)[1].splitlines()
    assert [row.split() for row in rows if " missing " in row] == [
        ["window", "missing", "required"],
        ["tell_fleet", "missing", "wanted"],
    ]
    assert host("status", "--json")[0] == 0  # looking needs nobody
    settings.write_text('[plugins]\nrequired = ["hooks_dir"]\nwanted = ["tell_fleet"]\n')
    assert "plugin hooks_dir is required" in host("upgrade", "--no-plugin", "hooks_dir")[2]
    status, _, err = host("upgrade")
    assert status == 0
    assert "warning: plugin tell_fleet is wanted on this host, and not loaded" in err
    assert host("rollback", "--safe-mode")[0] == 0


def test_the_order_says_who_and_why(host):
    status, out, _ = host("plugins", "list", "--order", "--no-plugin", "ostree", sysroot=False)
    assert status == 0
    assert "bootc_gate: all at once; the strictest answer counts\n  1. hooks_dir\n" in out
    assert out.endswith("not called: ostree\n")
    value = json.loads(host("plugins", "list", "--order", "--json", sysroot=False)[1])
    stage = next(one for one in value["hooks"] if one["hook"] == "bootc_stage")
    assert stage["plugins"] == ["composefs", "ostree"]
    assert "composefs (storage.backend, --backend)" in stage["why"]


def test_site_hooks_are_listed_and_rehearsed(host):
    host.script("gate/10-yes", "exit 0")
    host.script("before-fetch/10-look", 'grep -q \'"dry_run":true\' && echo "in rehearsal"')
    host.script("after-boot/10-mail", "exit 4")
    out = host("hooks", "list", sysroot=False)[1]
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "gate",
        "before-fetch",
        "after-boot",
        "hooks of images",
    ]
    status, out, _ = host("hooks", "run", "fetch", "--dry-run", sysroot=False)
    assert status == 0
    assert "10-yes: proceed\n" in out
    assert "10-look: exit status 0: in rehearsal\n" in out
    status, out, _ = host("hooks", "run", "after-boot", "--dry-run", sysroot=False)
    assert status == 1
    assert "exit status 4" in out
    assert host("hooks", "run", "rollback", "--dry-run", sysroot=False)[0] == 0
    assert "needs --dry-run" in host("hooks", "run", "fetch", sysroot=False)[2]
    assert "is no hook point" in host("hooks", "run", "lunch", "--dry-run", sysroot=False)[2]


def test_metrics_and_progress_of_a_real_run(host):
    (host.path / "etc/bootc/config.d/10-metrics.toml").write_text(
        f'[events]\nmetrics-file = "{host.path}/bootc.prom"\njournal = "no"\n'
    )
    host.publish("2")
    reading, writing = os.pipe()
    assert host("upgrade", "--progress-fd", str(writing))[0] == 0
    os.close(writing)
    with open(reading, "rb") as pipe:
        lines = [json.loads(line) for line in pipe.read().splitlines()]
    assert lines[0]["type"] == "Start"
    assert lines[-1]["task"] == "staging"
    assert "bootc_run_success 1\n" in (host.path / "bootc.prom").read_text()
    assert "Cannot use fd 1 for progress JSON" in host("upgrade", "--progress-fd", "1")[2]
