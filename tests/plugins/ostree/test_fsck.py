"""``bootc fsck`` on a host of the real libostree: damage of each kind is named and put back, and ``ostree fsck`` agrees."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess

import pytest
from support.ostree_program import ostree
from support.refusal import Host, assert_refused, build

from bootc_core.cli.main import main
from bootc_core.testing.harness import remove_tree

pytestmark = [pytest.mark.root, pytest.mark.real]

BIG = b"0123456789abcdef" * 4096
FULL = os.environ.get("BOOTC_FSCK") == "all"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    place = tmp_path_factory.mktemp("fsck")
    for version in ("1", "2"):
        build(place / "images", version, {"usr/big": BIG + version.encode()}, tag=version)
    host = Host(place, "ostree")
    for version in ("1", "2"):
        flags = ("--backend", "ostree", "--no-signature-verification", "--transport", "oci")
        done = host.command("switch", *flags, f"{place}/images:{version}")
        assert done.returncode == 0, done.stderr
    (place / "host").rename(place / "pristine")
    yield place
    remove_tree(place)


@pytest.fixture
def host(template, monkeypatch):
    monkeypatch.setenv("BOOTC_ERROR_FORMAT", "json")
    remove_tree(template / "host")
    # with hard links kept, as checkouts are made of them
    subprocess.run(["cp", "-a", template / "pristine", template / "host"], check=True)
    return Host(template, "ostree")


def fsck(host, *more):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["fsck", "--sysroot", str(host.sysroot), *more])
    return subprocess.CompletedProcess(more, status, out.getvalue(), err.getvalue())


def report(host, *more):
    done = fsck(host, "--json", "--quiet", *more)
    return done.returncode, json.loads(done.stdout)


def objects(host, kind="*"):
    return sorted((host.sysroot / "ostree/repo/objects").glob(f"??/*.{kind}"))


def flip(path):
    """In place: a medium knows no names."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    with path.open("r+b") as file:
        file.write(data)


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def remove(path):
    path.unlink()


def assert_repaired(host):
    done = fsck(host, "--repair", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("All is well now.\n")
    ostree("fsck", f"--repo={host.sysroot}/ostree/repo", "--quiet")
    assert host.versions() == (None, "2", "1")
    for version in ("1", "2"):
        assert [
            path
            for path in host.sysroot.glob("ostree/deploy/default/deploy/*/usr/big")
            if path.read_bytes() == BIG + version.encode()
        ]


def test_a_whole_host(host):
    done = fsck(host)
    assert (done.returncode, done.stderr) == (0, "")
    status, found = report(host)
    assert (status, found["findings"]) == (0, [])
    assert found["checked"]["object"] == len(objects(host))
    assert (found["checked"]["deployment"], found["checked"]["entry"]) == (2, 2)


@pytest.mark.parametrize("damage", [flip, truncate, remove] if FULL else [flip, remove])
@pytest.mark.parametrize("kind", ["file", "dirtree", "dirmeta", "commit"])
def test_objects(host, kind, damage):
    found = [path for path in objects(host, kind) if path.stat().st_size and not path.is_symlink()]
    victim = next(
        (path for path in found if path.stat().st_size == len(BIG) + 1), found[len(found) // 2]
    )
    damage(victim)
    status, told = report(host)
    assert status == 1
    name = victim.parent.name + victim.name
    texts = [one["name"].replace("/", "") + one["problem"] for one in told["findings"]]
    # a commit is named by the beginning of its checksum
    assert any(name in text or name[:16] in text for text in texts), told
    if kind == "commit":
        assert fsck(host, "--repair", "--quiet").returncode in {0, 1}
        return
    assert_repaired(host)


@pytest.mark.parametrize("kind", ["blob", "image"])
@pytest.mark.parametrize("how", ["removed", "garbage"])
def test_references(host, kind, how):
    victim = container_refs(host, kind)[0]
    if how == "removed":
        victim.unlink()
    else:
        victim.write_bytes(b"no checksum\n")
    assert_named_and_repaired(host, victim)


def test_an_images_reference_names_an_image(host):
    victim = container_refs(host, "image")[0]
    victim.write_bytes(container_refs(host, "blob")[0].read_bytes())
    assert_named_and_repaired(host, victim)


def container_refs(host, kind):
    places = sorted((host.sysroot / "ostree/repo/refs/heads/ostree/container" / kind).rglob("*"))
    return [path for path in places if path.is_file()]


def assert_named_and_repaired(host, victim):
    status, told = report(host)
    assert status == 1, told
    assert str(victim.relative_to(host.sysroot)) in {one["name"] for one in told["findings"]}
    assert_repaired(host)


@pytest.mark.parametrize("how", ["changed", "removed", "another type"])
def test_checkouts(host, how):
    (victim,) = [
        path
        for path in host.sysroot.glob("ostree/deploy/default/deploy/*/usr/big")
        if path.read_bytes() == BIG + b"2"
    ]
    victim.unlink()
    if how == "changed":
        victim.write_bytes(BIG + b"3")
    elif how == "another type":
        victim.symlink_to("/etc/passwd")
    _, told = report(host)
    assert [one["name"] for one in told["findings"]] == [str(victim.relative_to(host.sysroot))]
    assert_repaired(host)


@pytest.mark.parametrize("damage", [flip, remove])
def test_boot_files(host, damage):
    victim = sorted(host.sysroot.glob("boot/ostree/*/vmlinuz*"))[0]
    damage(victim)
    _, told = report(host)
    # it may be one file with the object that it was installed from
    assert "boot-file" in {one["kind"] for one in told["findings"]} <= {"boot-file", "object"}
    assert_repaired(host)


def test_origins_and_entries_are_named(host):
    origin = sorted(host.sysroot.glob("ostree/deploy/default/deploy/*.origin"))[0]
    origin.write_text("[origin]\ncontainer-image-reference=???\n")
    error = assert_refused(fsck(host), "INT", origin.name[:20])
    assert error["reference"] == "fsck"
    shutil.copyfile(host.place / "pristine" / origin.relative_to(host.sysroot), origin)
    link = sorted(host.sysroot.glob("ostree/boot.[01].[01]/default/*/0"))[0]
    link.unlink()
    _, told = report(host)
    assert told["findings"][-1]["problem"] == "boots a deployment that is not here"
