"""Commands on the running host: what they find, what they change, what others see of it. See ``support.booted``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.booted import BOOTC, updated, use_up_tries, verity, version
from support.images import build

pytestmark = [pytest.mark.root]
PROJECT = str(Path(__file__).resolve().parents[2])


def test_status_of_the_running_host(host):
    status = host.status()
    assert verity(status["booted"]) == host.deployment
    assert status["type"] == "bootcHost"
    assert (status["staged"], status["rollback"], status["rollbackQueued"]) == (None, None, False)
    assert status["readOnly"] is False


def test_the_mounted_root_counts_more_than_the_command_line(host):
    """A soft reboot keeps the command line."""
    (host.home / "cmdline").write_text(f"composefs={'a' * 128}\n")
    assert verity(host.status()["booted"]) == host.deployment


def test_a_root_that_is_not_what_the_command_line_names(host):
    host.source = "overlay"
    done = host.bootc("status")
    assert done.returncode == 1
    assert "Root not mounted using composefs" in done.stderr


def test_in_a_container_nothing_is_changed(host):
    host.environment["container"] = "podman"
    assert json.loads(host.done("status", "--json"))["status"]["booted"] is None
    done = host.bootc("upgrade")
    assert done.returncode == 1
    assert "this command requires a booted host system" in done.stderr


def test_an_ordinary_user_is_refused(host):
    # the environment may be where only root comes, /root say
    reachable = 'd=$1; while [ "$d" != / ]; do d=$(dirname "$d"); chmod a+x "$d" || :; done; shift; exec "$@"'
    user = ["setpriv", "--reuid=65534", "--clear-groups"]
    done = host.run("sh", "-c", reachable, "sh", PROJECT, *user, BOOTC, "rollback")
    assert done.returncode == 1
    assert "must be executed as the root user" in done.stderr
    done = host.run("setpriv", "--bounding-set=-sys_admin", BOOTC, "rollback")
    assert "requires full root privileges (CAP_SYS_ADMIN)" in done.stderr


def test_upgrade_is_staged_finalized_at_shutdown_and_rolled_back(host, layout, tmp_path):
    (host.sysroot / f"state/deploy/{host.deployment}/etc/motd").write_text("mine\n")
    first = host.deployment
    assert host.done("upgrade") == "No update available.\n"
    build(layout, [version(2)], tag="os")
    assert "Update available" in host.done("upgrade", "--check")
    assert host.status()["staged"] is None

    assert "Queued for next boot" in host.done("upgrade")
    assert "systemctl start bootc-finalize-staged.service" in host.calls()
    status = host.status()
    second = verity(status["staged"])
    assert second not in {None, first}
    assert (verity(status["booted"]), status["staged"]["downloadOnly"]) == (first, False)
    assert host.boots_next() == first  # until the shutdown
    assert (
        json.loads((host.home / "run/composefs/staged-deployment").read_text())["depl_id"] == second
    )
    assert host.done("upgrade") == "Staged update present, not changed\n"

    # edits after staging count
    (host.sysroot / f"state/deploy/{first}/etc/late").write_text("late\n")
    assert second[:12] in host.done("composefs-finalize-staged")
    assert host.boots_next() == second
    etc = host.sysroot / f"state/deploy/{second}/etc"
    assert ((etc / "motd").read_text(), (etc / "late").read_text()) == ("mine\n", "late\n")

    host.boot(second)
    status = host.status()
    assert (verity(status["booted"]), verity(status["rollback"])) == (second, first)
    assert status["staged"] is None
    assert host.done("composefs-finalize-staged") == "Nothing is staged.\n"

    assert host.done("rollback") == "Next boot: rollback deployment\n"
    assert host.boots_next() == first
    status = host.status()
    assert (verity(status["booted"]), status["rollbackQueued"]) == (second, True)
    assert host.done("rollback") == (
        "notice: Reverting queued rollback state\nNext boot: current deployment\n"
    )
    assert host.boots_next() == second


def test_apply_reboots_and_never_returns(host, layout):
    build(layout, [version(2)], tag="os")
    assert host.bootc("upgrade", "--apply").returncode == 137  # the reboot ends it
    reboot = "systemd-run --quiet -- systemctl reboot --message=Initiated by bootc"
    assert reboot in host.calls()


def test_boot_dir_is_found_by_itself(host):
    done = host.bootc("status", "--boot-dir", Path("/boot"))
    assert done.returncode == 2


# --- automatic rollback ---------------------------------------------------------------------------------------------------


def test_an_update_that_is_not_healthy_goes_back_and_is_not_taken_again(host, layout):
    first = host.deployment
    checks = host.home / "health"
    checks.mkdir()
    check = checks / "10-site"
    check.write_text("#!/bin/sh\nexit 0\n")
    check.chmod(0o755)
    host.mounts["/usr/lib/bootc/health.d"] = checks
    second = updated(host, layout)
    check.write_text("#!/bin/sh\necho 'the disk is on fire'\nexit 1\n")
    cmdline = host.home / "cmdline"
    cmdline.write_text(cmdline.read_text().strip() + " bootc.counted\n")
    done = host.bootc("internals", "boot-complete")
    assert done.returncode == 137  # the reboot ends it
    assert "10-site: the disk is on fire" in done.stderr
    assert any("systemctl reboot" in call for call in host.calls())
    assert host.boots_next() == second
    use_up_tries(host)
    assert host.boots_next() == first

    host.boot(first)
    assert "was not healthy" in host.done("internals", "boot-complete")
    text = host.done("status", "--format", "humanreadable")
    assert "10-site: the disk is on fire" in text
    document = json.loads(host.done("status", "--json"))
    assert "disk is on fire" in document["metadata"]["annotations"]["bootc.python/failed-update"]
    for arguments in (("upgrade",), ("upgrade", "--check")):
        assert "failed on this host" in host.done(*arguments)
    assert host.status()["staged"] is None
    # another image is taken; so is this one if asked for
    assert "Queued for next boot" in host.done("upgrade", "--retry-failed")
    build(layout, [version(3)], tag="os")
    assert "Queued for next boot" in host.done("upgrade")
    assert verity(host.status()["staged"]) not in {None, first, second}


def test_a_failure_at_shutdown_is_told_at_the_next_boot(host, layout):
    build(layout, [version(2, **{"etc/site": "a file in the new image"})], tag="os")
    host.done("upgrade")
    staged = verity(host.status()["staged"])
    etc = host.sysroot / f"state/deploy/{host.deployment}/etc/site"
    etc.mkdir()  # a conflict that came after staging
    (etc / "x").write_text("x")
    assert host.bootc("composefs-finalize-staged").returncode == 1
    host.boot(host.deployment)
    assert "could not be made bootable" in host.done("status", "--format", "humanreadable")
    assert host.boots_next() == host.deployment != staged
    (etc / "x").unlink()
    etc.rmdir()
    assert "Queued for next boot" in host.done("upgrade")


# --- usr-overlay, edit, soft reboot -----------------------------------------------------------------------------------------


def test_usr_is_writable_until_the_reboot(host):
    root = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "/"], capture_output=True, text=True, check=True
    )
    if root.stdout.strip() == "overlay":
        pytest.skip("this machine's root is an overlay, and the kernel stacks only two")
    script = f"""
        {BOOTC} usr-overlay && touch /usr/written && {BOOTC} usroverlay
        {BOOTC} status --json; echo; umount -l /usr; test ! -e /usr/written
        {BOOTC} usr-overlay --read-only; touch /usr/written || {BOOTC} status --json
    """
    done = host.run("sh", "-c", script)
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "A read/write overlayfs is now mounted on /usr",
        "All changes there will be discarded on reboot.",
        "An overlayfs is already mounted on /usr",
    ]
    first, last = (json.loads(line)["status"]["usrOverlay"] for line in (lines[3], lines[-1]))
    assert first == {"accessMode": "readWrite", "persistence": "transient"}
    assert last == {"accessMode": "readOnly", "persistence": "transient"}
    assert lines[4] == "A read-only overlayfs is now mounted on /usr"


def test_usr_overlay_is_for_booted_hosts(host):
    host.environment["container"] = "docker"
    assert "only applies on booted hosts" in host.bootc("usr-overlay").stderr


def test_edit(host, layout):
    def edited(change):
        (host.home / "editor").write_text(f"#!/bin/sh\n{change}\n")
        (host.home / "editor").chmod(0o755)
        host.environment["EDITOR"] = str(host.home / "editor")
        return host.bootc("edit")

    assert edited("true").stdout == "Edit cancelled, no changes made.\n"
    build(layout, [version(2)], tag="next")
    assert "Queued for next boot" in edited("sed -i 's/oci:os$/oci:next/' $1").stdout
    host.done("composefs-finalize-staged")
    first, second = host.deployment, host.boots_next()
    host.boot(second)
    assert (
        "rollback deployment"
        in edited("sed -i 's/bootOrder: default/bootOrder: rollback/' $1").stdout
    )
    assert host.boots_next() == first
    done = edited("sed -i 's/oci:next$/oci:os/; s/bootOrder: rollback/bootOrder: default/' $1")
    assert "Invalid state transition: rollback and image change" in done.stderr
    for change, says in (
        ("echo '{' > $1", "not a host document"),
        ("exit 3", "the editor failed"),
        ("sed -i '/^  image:/,/^    transport/d' $1", "Missing image in specification"),
    ):
        done = edited(change)
        assert done.returncode == 1, done
        assert says in done.stderr
    document = host.home / "host.yaml"
    document.write_text(host.done("status", "--format", "yaml"))
    assert "no changes made" in host.done("edit", "-f", document)


def test_a_soft_reboot_is_refused_or_done_without(host, layout):
    build(layout, [version(2)], tag="os")
    done = host.bootc("upgrade", "--soft-reboot=required")
    assert done.returncode == 1
    assert "staged deployment is not soft-reboot capable" in done.stderr
    assert host.done("upgrade", "--soft-reboot=auto") == "Staged update present, not changed\n"
    assert host.bootc("upgrade", "--soft-reboot").returncode == 2
    assert host.bootc("upgrade", "--check", "--soft-reboot=auto").returncode == 2
