"""The running host: what stages, locks and rolls back there, with the real libostree in a chroot into a deployment.

libostree takes for booted what has the device and inode of ``/``; so a chroot into a deployment, with ``/sysroot``, ``/boot`` and
``/run`` in place, is a booted host to it, in a mount namespace of its own. Shutdown is ``ostree admin finalize-staged``, what the
service of ostree runs; boot is a chroot into the deployment that then comes first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bootc_ostree import libostree, state
from bootc_ostree.variant import decode, encode
from support import images
from support.ostree_program import ostree

from bootc_core.models.sysroot import Sysroot
from bootc_core.testing.harness import remove_tree

PROJECT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("live_host.py")
BOOTC = Path(sys.executable).with_name("bootc")
pytestmark = [pytest.mark.root, pytest.mark.real]

# Python and programs are this machine's, over the deployment's /usr; only the chroot sees it.
BOOT = r"""
set -e
root=$1 sysroot=$2 work=$3 project=$4; shift 4
mkdir -p "$work/root"
mount --bind "$root" "$work/root"; cd "$work/root"
mount --bind /usr usr
mount --bind "$sysroot" sysroot
mount --bind "$sysroot/boot" boot
mount --bind "$work/run" run
mount -t proc proc proc; mount --rbind /dev dev; mount --rbind /sys sys
mount -t tmpfs tmpfs tmp
chattr -i . 2>/dev/null || :
mkdir -p "./$project" "./$work"
chattr +i . 2>/dev/null || :
mount --bind "$project" "./$project"; mount --bind "$work" "./$work"
exec chroot . "$@"
"""


def layer(version: str) -> images.Layer:
    more: dict[str, images.Item] = {
        name: images.Link(f"usr/{name}") for name in ("bin", "lib", "lib64", "sbin")
    }
    more["ostree"] = images.Link("sysroot/ostree")
    more["etc/issue"] = f"issue {version}\n"
    more["usr/lib/bootc/kargs.d/1.toml"] = f'kargs = ["version={version}"]\n'
    return images.bootable(more, version=version)


class Live:
    """A host with version 1 deployed, ready to be booted."""

    def __init__(self, place: Path) -> None:
        self.place, self.sysroot, self.image = place, place / "sysroot", place / "image"
        (place / "run").mkdir()
        self.start_over()
        self.publish("1")
        done = subprocess.run(
            [
                BOOTC, "switch", "--sysroot", self.sysroot, "--backend", "ostree",
                "--no-signature-verification", "--transport", "oci", self.image,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.boot()

    def publish(self, version: str) -> None:
        subprocess.run(["rm", "-rf", self.image], check=True)
        labels = {"containers.bootc": "1", "org.opencontainers.image.version": version}
        images.build(self.image, [layer(version)], labels=labels)

    def start_over(self) -> None:
        """/run after a boot."""
        subprocess.run(["find", self.place / "run", "-mindepth", "1", "-delete"], check=True)
        (self.place / "run/ostree-booted").touch()

    def boot(self) -> None:
        """Boot what comes first."""
        self.start_over()
        shown = ostree("admin", "status", f"--sysroot={self.sysroot}")
        name = shown.split()[1]
        (self.root,) = self.sysroot.glob(f"ostree/deploy/*/deploy/{name}")

    def inside(self, *command: object) -> str:
        """What a program on the booted host prints."""
        done = subprocess.run(
            [
                "unshare", "-m", "-p", "--fork", "--kill-child", "sh", "-c", BOOT, "boot",
                self.root, self.sysroot, self.place, PROJECT, *map(str, command),
            ],
            capture_output=True, text=True, check=False,
            # newer libostree starts its unit by systemctl, which then does as in any chroot
            env={**os.environ, "SYSTEMD_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr}\n{done.stdout}"
        return done.stdout

    def run(self, *commands: str) -> list[dict]:
        found: list[dict] = json.loads(self.inside(sys.executable, SCRIPT, *commands))
        return found

    def shut_down(self) -> None:
        self.inside("ostree", "admin", "finalize-staged")


@pytest.fixture
def host(tmp_path):
    yield Live(tmp_path)
    for place in tmp_path.iterdir():
        remove_tree(place)


def slots(found):
    """Versions of staged, booted and rollback."""
    status = found["host"]["status"]
    return tuple(
        status[slot]["image"]["version"] if status[slot] else None
        for slot in ("staged", "booted", "rollback")
    )


def test_download_upgrade_and_boot(host):
    host.publish("2")
    (done,) = host.run("download")
    assert (done["told"], slots(done)) == ("staged", ("2", "1", None))
    assert done["host"]["status"]["staged"]["downloadOnly"]
    name, locked, _ = done["notice"]
    assert locked
    shown = host.inside("ostree", "admin", "status")
    assert f"{name} (staged" in shown
    text = (host.place / "run/reboot-required").read_text()
    assert text == f"bootc: Reboot required for image: {done['notice'][2]}"
    host.shut_down()
    host.boot()
    after, again, upgrade = host.run("prune", "lock", "upgrade")
    assert (slots(after), after["notice"]) == ((None, "1", None), None), "locked: dropped"
    assert slots(again) == (None, "1", None), "nothing to lock is no error"
    assert (upgrade["told"], slots(upgrade)) == ("queued", ("2", "1", None))
    assert not upgrade["host"]["status"]["staged"]["downloadOnly"]
    locked, unlocked = host.run("lock", "unlock")
    assert (locked["notice"][1], unlocked["notice"][1]) == (True, False)
    (host.root / "etc/late.conf").write_text("written after staging\n")
    host.shut_down()
    host.boot()
    (found,) = host.run("prune")
    assert (slots(found), found["notice"]) == ((None, "2", "1"), None)
    assert (host.root / "etc/late.conf").read_text() == "written after staging\n"
    assert (host.root / "etc/issue").read_text() == "issue 2\n"
    options = [path.read_text() for path in host.sysroot.glob("boot/loader/entries/*.conf")]
    assert sum("version=2" in text for text in options) == 1
    ostree("fsck", f"--repo={host.sysroot}/ostree/repo", "--quiet")


def test_replace_discard_and_roll_back(host):
    host.publish("2")
    host.run("upgrade")
    host.publish("3")
    replaced, discarded = host.run("upgrade", "discard")
    assert slots(replaced) == ("3", "1", None)
    assert (slots(discarded), discarded["notice"]) == ((None, "1", None), None)
    assert len(list(host.sysroot.glob("ostree/deploy/default/deploy/*.0"))) == 1
    host.run("upgrade")
    host.shut_down()
    host.boot()
    host.publish("4")
    staged, back = host.run("upgrade", "rollback")
    assert slots(staged) == ("4", "3", "1")
    assert (back["told"], slots(back)) == ("rolled-back", (None, "3", "1")), "staged goes"
    assert back["host"]["status"]["rollbackQueued"]
    assert back["host"]["spec"]["bootOrder"] == "rollback"
    (forth,) = host.run("rollback")
    assert slots(forth) == (None, "3", "1")
    assert not forth["host"]["status"]["rollbackQueued"]
    host.run("rollback")
    name = host.root.name
    state = host.place / "run/ostree/deployment-state" / name
    state.mkdir(parents=True)
    (state / "unlocked-development").touch()
    (shown,) = host.run("prune")
    overlay = {"accessMode": "readWrite", "persistence": "transient"}
    assert shown["host"]["status"]["usrOverlay"] == overlay
    host.boot()
    (found,) = host.run("prune")
    assert slots(found) == (None, "1", "3")
    assert not found["host"]["status"]["rollbackQueued"]


def test_a_lock_of_newer_versions(tmp_path, monkeypatch):
    """libostree since 2023.8 also has the lock among the staged deployment's values."""
    checksum = "a" * 64
    target = [
        ("name", ("s", f"{checksum}.1")),
        ("osname", ("s", "default")),
        ("bootcsum", ("s", "b" * 64)),
    ]
    values = [
        ("target", ("a{sv}", target)),
        ("locked", ("b", 1)),
        ("kargs", ("as", ["rw", "quiet"])),
        ("bootconfig-extra", ("a{ss}", [("x-options-source-tuned", "a=1")])),
    ]
    place = tmp_path / "staged"
    place.write_bytes(encode("a{sv}", values))
    monkeypatch.setattr(state, "STAGED", place)
    monkeypatch.setattr(state, "STAGED_LOCKED", tmp_path / "locked")
    sysroot = Sysroot(tmp_path, tmp_path / "boot", live=True)
    assert state.live_staged(sysroot) is None, "its directory is gone"
    (tmp_path / f"ostree/deploy/default/deploy/{checksum}.1").mkdir(parents=True)
    staged = state.live_staged(sysroot)
    assert (staged.present.name, staged.present.options) == (f"{checksum}.1", "rw quiet")
    assert staged.locked
    state.lock_staged(sysroot, False)
    expected = [(key, ("b", 0) if key == "locked" else value) for key, value in values]
    assert decode("a{sv}", place.read_bytes()) == expected
    assert not state.live_staged(sysroot).locked
    state.lock_staged(sysroot, True)
    assert decode("a{sv}", place.read_bytes()) == values
    assert (tmp_path / "locked").exists()
    place.write_bytes(b"\x01garbage")
    assert state.live_staged(sysroot) is None


def test_when_a_soft_reboot_does(tmp_path, monkeypatch):
    sysroot = Sysroot(tmp_path, tmp_path / "boot", live=True)
    versions = {(2025, 3), (2025, 7)}
    monkeypatch.setattr(state, "_SOFT_REBOOT", tmp_path)
    monkeypatch.setattr(state, "_SELINUX", tmp_path / "none")
    monkeypatch.setattr(libostree, "at_least", lambda *version: version in versions)

    def present(name, options, kernel="k"):
        return state.Present("default", name * 64, 0, options, kernel)

    def able(target):
        return state._soft_reboot(sysroot, running, target)

    running = present("a", "rw ostree=/ostree/boot.1/default/k/0 quiet")
    assert able(present("b", "rw quiet ostree=/ostree/boot.1/default/k/1"))
    assert able(present("b", "rw quiet"))
    assert not able(present("b", "rw"))
    assert not able(present("b", "rw quiet", "other"))
    versions.remove((2025, 7))
    assert not able(present("b", "rw quiet")), "it would crash"
    assert able(present("b", "rw quiet ostree=/ostree/boot.1/default/k/1"))
    versions.clear()
    assert not able(present("b", "rw quiet ostree=/ostree/boot.1/default/k/1"))
    versions |= {(2025, 3), (2025, 7)}
    monkeypatch.setattr(state, "_SELINUX", tmp_path)
    target = present("b", "rw quiet")
    assert able(target), "neither has a policy"
    for one, policies in ((running, ("33",)), (target, ("9", "33"))):
        for number in policies:
            place = tmp_path / one.directory / "usr/etc/selinux/targeted/policy"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"policy.{number}").write_text(f"policy {number}")
        config = place.parents[1] / "config"
        config.write_text("SELINUX=enforcing\nSELINUXTYPE=targeted\n")
    assert able(target)
    (place / "policy.33").write_text("another")
    assert not able(target)
    monkeypatch.setattr(state, "_SOFT_REBOOT", tmp_path / "none")
    assert not able(running)
