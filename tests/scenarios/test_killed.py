"""The real command, killed by SIGKILL before a durable step, with both backends: old or new, and the next run converges.

Here at a sample of the steps; ``make chaos-kill`` (BOOTC_KILL_EVERY=1) takes all of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import images

from bootc_core.testing.harness import remove_tree

KILLED = Path(__file__).with_name("killed.py")
EVERY = int(os.environ.get("BOOTC_KILL_EVERY", "9"))
OS = 'ID=acme\nPRETTY_NAME="Acme {0}"\nVERSION_ID={0}\n'


def layers(version):
    base = images.bootable({"etc/issue": "issue\n", "etc/gone": "gone\n", "var/lib/seed": "seed\n"})
    base["usr/lib/os-release"] = OS.format(version)
    extra = {
        f"usr/share/{version}/{number}": f"{version} {number} ".encode() * 40 for number in range(6)
    }
    return [base, {**extra, "usr/lib/bootc/kargs.d/10.toml": f'kargs = ["version={version}"]\n'}]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    for version in ("1", "2"):
        images.build(place / version, layers(version), labels={"version": version})
    return place


def run(*arguments, kill=0, report="/dev/null"):
    return subprocess.run(
        [sys.executable, "-I", KILLED, str(kill), report, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("BOOTC_")},
    )


def ok(*arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(sysroot):
    return json.loads(ok("status", "--json", "--sysroot", sysroot))["status"]


def version(slot):
    return slot["image"]["version"] if slot else None


def first_entry_is_whole(sysroot):
    """The files that the first entry of a systemd-boot menu names are there with the image's content."""
    entries = [path.read_text() for path in (sysroot / "boot/loader/entries").glob("*.conf")]
    keys = [dict(line.split(" ", 1) for line in text.splitlines()) for text in entries]
    first = min(keys, key=lambda entry: entry["sort-key"])
    for key in ("linux", "initrd"):
        assert (sysroot / "boot" / first[key].lstrip("/")).stat().st_size > 0
    name = first["options"].split("composefs=")[1].split()[0].lstrip("?")
    assert (sysroot / f"state/deploy/{name}/etc").is_dir()
    assert (sysroot / f"composefs/images/{name}").exists()


def fsck(sysroot):
    """No object is damaged, and none that a ref needs is missing."""
    done = subprocess.run(
        ["ostree", "fsck", f"--repo={sysroot}/ostree/repo", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def prepare(place, layout, backend):
    sysroot = place / "old"
    ok(
        "switch", "--sysroot", sysroot, "--backend", backend, "--no-signature-verification", "--transport", "oci",
        layout / "live",
    )  # fmt: skip
    return sysroot


@pytest.mark.root
@pytest.mark.real
@pytest.mark.parametrize("backend", ["composefs", "ostree"])
@pytest.mark.parametrize("command", ["switch", "upgrade", "rollback"])
def test_old_or_new_and_convergence(backend, command, layout, tmp_path):
    live = layout / "live"

    def serve(which):
        live.unlink(missing_ok=True)
        live.symlink_to(layout / which)

    serve("1")
    old = tmp_path / "old"
    arguments = [command, "--sysroot", tmp_path / "host"]
    if command == "switch":
        arguments += [
            "--backend",
            backend,
            "--no-signature-verification",
            "--transport",
            "oci",
            live,
        ]
        before, after = None, "1"
    else:
        old = prepare(tmp_path, layout, backend)
        serve("2")
        before, after = "1", "2"
        if command == "rollback":
            ok("upgrade", "--sysroot", old)
            before, after = "2", "1"

    def fresh():
        if (tmp_path / "host").exists():
            remove_tree(tmp_path / "host")
        if old.exists():
            subprocess.run(["cp", "-a", "--reflink=auto", old, tmp_path / "host"], check=True)

    fresh()
    whole = run(*arguments, report=tmp_path / "steps")
    assert whole.returncode == 0, whole.stderr
    steps = (tmp_path / "steps").read_text().splitlines()
    assert version(status(tmp_path / "host")["booted"]) == after
    seen = {before: 0, after: 0}
    for kill in sorted({*range(1, len(steps) + 1, EVERY), len(steps)}):
        where = f"killed before step {kill}: {steps[kill - 1]}"
        fresh()
        died = run(*arguments, kill=kill)
        assert died.returncode == -9, where
        if (tmp_path / "host").exists():
            booted = version(status(tmp_path / "host")["booted"])
            assert booted in seen, where
            seen[booted] += 1
            if booted is not None and backend == "composefs":
                first_entry_is_whole(tmp_path / "host")
        if command == "rollback" and booted == after:
            continue  # asked again, it would go back
        again = run(*arguments)
        assert again.returncode == 0, f"{where}\n{again.stderr}"
        host = status(tmp_path / "host")
        assert (version(host["booted"]), host["staged"]) == (after, None), where
        assert version(host["rollback"]) == before, where
        left = [
            path for path in (tmp_path / "host").rglob(".bootc-tmp-*") if "spool" not in path.parts
        ]
        assert left == [], where
        if backend == "ostree":
            fsck(tmp_path / "host")
    print(f"{backend} {command}: {len(steps)} steps, {sum(seen.values())} kills: {seen}")
    for place in (tmp_path / "host", old):
        if place.exists():
            remove_tree(place)  # libostree makes deployments immutable, and pytest would fail to
