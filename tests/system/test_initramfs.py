"""The script that mounts the root in the initramfs, run in a mount namespace on a real sysroot, by the shells it meets there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import bootable, build

SCRIPT = Path(__file__).resolve().parents[2] / "packaging/initramfs-setup"
BOOTC = Path(sys.executable).with_name("bootc")
pytestmark = [pytest.mark.root, pytest.mark.real]
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A sysroot with one deployment, and its name."""
    home = tmp_path_factory.mktemp("initramfs")
    build(
        home / "oci",
        [bootable({"usr/lib/large": b"large " * 1000, "etc/motd": "from the image\n"})],
    )
    done = subprocess.run(
        [
            *(BOOTC, "switch", "--sysroot", home / "host", "--no-signature-verification"),
            *("--transport", "oci", f"{home}/oci:latest"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (name,) = os.listdir(home / "host/state/deploy")
    (home / "host/state/os/default/var/kept").write_text("kept\n")
    return home / "host", name


def setup(host, tmp_path, cmdline, then="true", *, shell="dash", conf=""):
    """Run the script on a bind mount of the sysroot, as the initramfs has it, then a command with $r as the new root."""
    place = tmp_path / "sysroot"
    place.mkdir(exist_ok=True)
    (tmp_path / "cmdline").write_text(cmdline + "\n")
    (tmp_path / "conf.toml").write_text(conf)
    words = {"busybox": "busybox sh"}.get(shell, shell)
    program = f"""
        set -e
        mount -t tmpfs run /run
        mount --bind {host} {place}
        {words} {SCRIPT} setup-root {place} {tmp_path}/cmdline
        r={place}
        {then}
    """
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "BOOTC_SETUP_ROOT_CONF": str(tmp_path / "conf.toml")},
        timeout=60,
    )


LOOK = """
    findmnt -no SOURCE,FSTYPE "$r"
    cat "$r/etc/motd" "$r/var/kept"; wc -c < "$r/usr/lib/large"
    touch "$r/usr/x" 2>/dev/null && echo writable usr
    touch "$r/etc/x" && rm "$r/etc/x" && echo writable etc
    touch "$r/var/x" && rm "$r/var/x" && echo writable var
    touch "$r/sysroot/x" 2>/dev/null && echo writable sysroot
    ls "$r/sysroot/composefs" | tr '\\n' ' '
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_root_of_the_deployment(deployed, tmp_path, shell):
    host, name = deployed
    done = setup(host, tmp_path, f"rw composefs=?{name} quiet", LOOK, shell=shell)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"composefs:{name} overlay",
        "from the image",
        "kept",
        "6000",
        "writable etc",
        "writable var",
        "images meta.json objects streams ",
    ]
    assert f"the root is deployment {name}, fs-verity optional" in done.stderr


def test_the_argument_with_the_algorithm_counts_first(deployed, tmp_path):
    host, name = deployed
    line = f"composefs={'0' * 128} composefs.digest=v9-x:1 composefs.digest=?v1-sha512-12:{name}"
    done = setup(host, tmp_path, line)
    assert done.returncode == 0, done.stderr


def test_required_verity_is_not_optional(deployed, tmp_path):
    """Where the file system has fs-verity the image has it too; here it may not, and then nothing is mounted."""
    host, name = deployed
    done = setup(host, tmp_path, f"composefs={name}", 'cat "$r/etc/motd"')
    if done.returncode:
        assert "has no fs-verity, and composefs=" in done.stderr
    else:
        assert "verity=require" in Path("/proc/self/mounts").read_text() or done.stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("quiet", "names no deployment"),
        ("composefs=", "names no deployment"),
        ("composefs=../../etc", "names no deployment"),
        ("composefs=?*", "names no deployment"),
        (f"composefs=?{'0' * 128}", "there is no image"),
        (f"composefs=?{'0' * 127}x", "names no deployment"),
    ],
)
def test_a_bad_name_mounts_nothing(deployed, tmp_path, line, says):
    done = setup(deployed[0], tmp_path, line)
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize("damage", ["a byte", "another image", "cut"])
def test_an_image_that_is_not_what_its_name_promises_is_not_mounted(deployed, tmp_path, damage):
    source, name = deployed
    host = tmp_path / "damaged"
    shutil.copytree(source, host, symlinks=True)
    image = (host / "composefs/images" / name).resolve()
    data = bytearray(image.read_bytes())
    if damage == "a byte":
        data[2000] ^= 1
    elif damage == "another image":
        data += bytes(4096)
    else:
        del data[-4096:]
    image.unlink()
    image.write_bytes(data)
    done = setup(host, tmp_path, f"composefs=?{name}")
    assert done.returncode == 1
    assert "it is damaged or was replaced" in done.stderr


def test_a_deployment_without_state_is_not_mounted(deployed, tmp_path):
    source, name = deployed
    host = tmp_path / "half"
    shutil.copytree(source, host, symlinks=True)
    shutil.rmtree(host / "state/deploy" / name)
    done = setup(host, tmp_path, f"composefs=?{name}")
    assert done.returncode == 1
    assert "there is no state of deployment" in done.stderr


WRITE = (
    'echo new > "$r/etc/motd"; cat "$r/etc/motd"; touch "$r/usr/x" 2>/dev/null && echo usr || true'
)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("conf", "kept", "usr"),
    [
        ("", "state", False),
        ('[etc]\nmount = "bind"\n', "state", False),
        ("[etc]\ntransient = true\n", "nowhere", False),
        ("[etc]\nmount = 'transient' # a comment\n", "nowhere", False),
        ("[etc]\nmount = 'overlay'\n", "upper", False),
        ("[root]\ntransient = true\n", "state", True),
        ("# nothing\n[other]\nmount = 'none'\n[etc]\nunknown = 1\n", "state", False),
    ],
)
def test_transient_and_overlay_modes(deployed, tmp_path, conf, kept, usr, shell):
    source, name = deployed
    host = tmp_path / "host"
    shutil.copytree(source, host, symlinks=True)
    done = setup(host, tmp_path, f"composefs=?{name}", WRITE, conf=conf, shell=shell)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "new\n" + "usr\n" * usr
    etc = host / "state/deploy" / name / "etc"
    assert ((etc / "motd").read_text() == "new\n") is (kept == "state")
    assert (etc / "upper/motd").exists() is (kept == "upper")


def test_an_unknown_mode_mounts_nothing(deployed, tmp_path):
    host, name = deployed
    done = setup(host, tmp_path, f"composefs=?{name}", conf='[etc]\nmount = "maybe"\n')
    assert done.returncode == 1
    assert "it can be none, bind, overlay or transient" in done.stderr


def test_systemd_may_own_var(deployed, tmp_path):
    host, name = deployed
    done = setup(
        host, tmp_path, f"composefs=?{name} systemd.volatile=state", 'test ! -e "$r/var/kept"'
    )
    assert done.returncode == 0, done.stderr
