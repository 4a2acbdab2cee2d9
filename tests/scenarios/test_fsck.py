"""``bootc fsck`` by its command line: every kind of thing is damaged in turn, named, and put back where that is possible."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.refusal import Host, assert_refused, build, tree

from bootc_core.cli.main import main

BIG = b"0123456789abcdef" * 4096


FULL = os.environ.get("BOOTC_FSCK") == "all"


def sample(*cases):
    """All of them with BOOTC_FSCK=all (``make fsck``), the first and last else."""
    return cases if FULL else (cases[0], cases[-1])


@dataclass
class Stored:
    """A host with two deployments, which are to be had again from where they came."""

    host: Host
    pristine: Path

    @property
    def root(self) -> Path:
        return self.host.sysroot

    def fsck(self, *more: str) -> subprocess.CompletedProcess[str]:
        """In this process: it is asked so often."""
        arguments = ["fsck", "--sysroot", str(self.root), *more]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    def report(self, *more: str):
        done = self.fsck("--json", "--quiet", *more)
        return done.returncode, json.loads(done.stdout)

    def objects(self) -> list[Path]:
        return sorted(path for path in (self.root / "composefs/objects").glob("??/*"))

    def object_of(self, content: bytes) -> Path:
        return next(path for path in self.objects() if path.read_bytes() == content)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    place = tmp_path_factory.mktemp("fsck")
    for version in ("1", "2"):
        build(place / "images", version, {"usr/big": BIG + version.encode()}, tag=version)
    host = Host(place)
    for version in ("1", "2"):
        done = host.command(
            "switch",
            "--no-signature-verification",
            "--transport",
            "oci",
            f"{place}/images:{version}",
        )
        assert done.returncode == 0, done.stderr
    (place / "host").rename(place / "pristine")
    return place


@pytest.fixture
def stored(template, monkeypatch):
    monkeypatch.setenv("BOOTC_ERROR_FORMAT", "json")
    shutil.rmtree(template / "host", ignore_errors=True)
    shutil.copytree(template / "pristine", template / "host", symlinks=True)
    return Stored(Host(template), template / "pristine")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    other = next(one for one in sorted(path.parent.parent.glob("??/*")) if one != path)
    path.write_bytes(other.read_bytes())


def state(root: Path):
    """All but what each run changes of its own accord."""
    return {
        name: what
        for name, what in tree(root).items()
        if not name.startswith(("bootc/journal", "bootc/lock", "bootc/cache", "bootc/spool"))
        and name not in {"bootc", "composefs/objects", "boot/EFI/Linux"}
    }


def assert_repaired(stored: Stored) -> None:
    done = stored.fsck("--repair", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repaired: " in done.stdout
    assert done.stdout.endswith("All is well now.\n")
    assert state(stored.root) == state(stored.pristine)
    assert stored.fsck().returncode == 0


def test_a_whole_host_is_found_whole_and_nothing_changes(stored):
    before = state(stored.root)
    done = stored.fsck()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("No problem was found.\n")
    status, report = stored.report()
    assert (status, report["ok"], report["findings"]) == (0, True, [])
    assert report["checked"] == {
        "deployment": 2,
        "entry": 2,
        "image": 2,
        "journal": 2,
        "object": len(stored.objects()),
        "reference": 2,
        "stream": 8,
    }
    assert state(stored.root) == before


# --- composefs: objects --------------------------------------------------------------------------


@pytest.mark.parametrize("damage", sample(flip, truncate, empty, swap, remove))
def test_every_damage_of_a_files_object_is_named_and_put_back(stored, damage):
    victim = stored.object_of(BIG + b"2")
    damage(victim)
    before = state(stored.root)
    error = assert_refused(stored.fsck(), "INT")
    assert error["reference"] == "fsck"
    assert "--repair" in error["hint"]
    _, report = stored.report()
    name = str(victim.relative_to(stored.root / "composefs"))
    found = [one["name"] for one in report["findings"]]
    if damage is remove:
        prefix = name.removeprefix("objects/").replace("/", "")[:16]
        assert all(prefix in one["problem"] for one in report["findings"])
        assert {one["kind"] for one in report["findings"]} == {"image", "stream"}
    else:
        assert name in found
    assert state(stored.root) == before, "a check changes nothing"
    assert_repaired(stored)


def test_all_objects_at_once(stored):
    """Files, images, splitstreams, documents: what came from the images comes from there again."""
    victims = stored.objects()
    for victim in victims:
        flip(victim)
    _, report = stored.report()
    named = {one["name"] for one in report["findings"] if one["kind"] == "object"}
    assert named == {str(path.relative_to(stored.root / "composefs")) for path in victims}
    assert_repaired(stored)


def test_each_object_is_looked_at(stored):
    for victim in stored.objects()[:: 1 if FULL else 6]:
        flip(victim)
        status, report = stored.report()
        assert status == 1
        name = str(victim.relative_to(stored.root / "composefs"))
        assert name in {one["name"] for one in report["findings"]}
        shutil.copyfile(stored.pristine / victim.relative_to(stored.root), victim)


def test_what_cannot_be_replaced_stays_as_it_is(stored, template):
    victim = stored.object_of(BIG + b"1")
    flip(victim)
    damaged = victim.read_bytes()
    (template / "images").rename(template / "away")
    try:
        done = stored.fsck("--repair", "--quiet")
    finally:
        (template / "away").rename(template / "images")
    assert done.returncode == 1
    assert "not put back: " in done.stdout
    error = assert_refused(done, "INT")
    assert "remain" in error["message"]
    assert victim.read_bytes() == damaged
    assert_repaired(stored)


def test_an_image_that_is_refused_is_not_put_back(stored):
    """Repairing is no way around the policy."""
    victim = stored.object_of(BIG + b"1")
    flip(victim)
    for origin in (stored.root / "state/deploy").glob("*/*.origin"):
        origin.write_text(origin.read_text().replace("signature=insecure", "signature=enforce"))
    done = stored.fsck("--repair", "--quiet")
    assert done.returncode == 1
    assert "accept" in done.stdout


# --- composefs: names ---------------------------------------------------------------------------------


def link(root: Path, pattern: str) -> Path:
    return sorted((root / "composefs").glob(pattern))[0]


NAMES = (
    "images/*[0-9a-f]",
    "streams/oci-layer-*",
    "streams/oci-config-*",
    "streams/oci-manifest-*",
    "streams/refs/oci/*",
)
WAYS = ("removed", "swapped", "dangling", "a file")


@pytest.mark.parametrize(
    ("pattern", "how"),
    [(pattern, how) for pattern in NAMES for how in WAYS]
    if FULL
    else [(pattern, WAYS[number % 2]) for number, pattern in enumerate(NAMES)],
)
def test_every_damage_of_a_name_is_seen_and_put_back(stored, pattern, how):
    victim = link(stored.root, pattern)
    other = [one for one in sorted(victim.parent.iterdir()) if one.is_symlink() and one != victim]
    target = os.readlink(other[-1])
    victim.unlink()
    if how == "dangling":
        victim.symlink_to("../objects/00/11" if "refs" not in pattern else "../../gone")
    elif how == "a file":
        victim.write_text("x")
    elif how == "swapped":
        victim.symlink_to(target)
    status, report = stored.report()
    assert status == 1, report
    assert_repaired(stored)


# --- composefs: deployments and the boot partition -------------------------------------------------


def entries(stored: Stored) -> list[Path]:
    return sorted((stored.root / "boot/loader/entries").glob("*.conf"))


@pytest.mark.parametrize("name", ["vmlinuz", "initrd"])
@pytest.mark.parametrize("damage", sample(flip, truncate, empty, remove))
def test_boot_files_are_those_of_the_image(stored, name, damage):
    victim = next((stored.root / "boot/EFI/Linux").glob(f"*/{name}"))
    damage(victim)
    status, report = stored.report()
    assert status == 1
    (found,) = {(one["kind"], one["name"]) for one in report["findings"]}
    assert found == ("boot-file", f"/{victim.relative_to(stored.root / 'boot')}")
    assert_repaired(stored)


@pytest.mark.parametrize("how", sample("removed", "empty", "torn"))
def test_a_lost_boot_entry_is_made_again(stored, how):
    victim = max(entries(stored), key=lambda path: path.read_text()[-2])  # the rollback's
    data = victim.read_bytes()
    boots = data.split(b"composefs=")[1].split()[0].strip(b"?").decode()
    if how == "removed":
        victim.unlink()
    else:
        victim.write_bytes(b"" if how == "empty" else data[:40])
    status, report = stored.report()
    assert status == 1
    assert f"state/deploy/{boots}" in {one["name"] for one in report["findings"]}
    done = stored.fsck("--repair", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = [path for path in entries(stored) if f"composefs=?{boots}" in path.read_text()]
    assert sorted(again.read_text().split()) == sorted(data.decode().split())
    assert stored.host.versions() == (None, "2", "1")


def test_an_entry_of_nothing_is_named(stored):
    victim = entries(stored)[0]
    text = victim.read_text()
    boots = text.split("composefs=")[1].split()[0].strip("?")
    shutil.rmtree(stored.root / "state/deploy" / boots)
    _, report = stored.report()
    assert {"kind": "entry", "cure": "hand"}.items() <= report["findings"][-1].items()
    assert victim.name in report["findings"][-1]["name"]


@pytest.mark.parametrize("part", ["etc", "var", "origin"])
def test_what_only_the_host_had_is_named(stored, part):
    directory = sorted((stored.root / "state/deploy").iterdir())[0]
    victim = directory / (f"{directory.name}.origin" if part == "origin" else part)
    if part == "etc":
        shutil.rmtree(victim)
    else:
        victim.unlink()
    status, report = stored.report()
    assert status == 1
    assert f"state/deploy/{directory.name}" in {one["name"] for one in report["findings"]}


def test_a_damaged_record_of_owners_is_named(stored):
    (stored.root / "bootc/owners.json").write_text("[")
    _, report = stored.report()
    assert [one["name"] for one in report["findings"]] == ["bootc/owners.json"]


# --- records ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("damage", sample(flip, empty, truncate))
def test_journals(stored, which, damage):
    victim = sorted((stored.root / "bootc/journal").glob("*.jsonl"))[which]
    if damage is flip:
        lines = victim.read_bytes().split(b"\n")
        victim.write_bytes(b"\n".join([lines[0], b"#" + lines[1][1:], *lines[2:]]))
    else:
        damage(victim)
    status, report = stored.report()
    if damage is empty and which == 0:
        assert status == 0, "an old run without records says nothing wrong"
        return
    assert status == 1
    assert [(one["kind"], one["name"]) for one in report["findings"]] == [("journal", victim.name)]
    status, report = stored.report("--repair")
    assert (status, report["ok"]) == (0, True), report
    assert stored.host.versions() == (None, "2", "1")


def test_a_notice_that_cannot_be_read(stored):
    notice = stored.root / "bootc/staged-deployment"
    notice.write_text("{")
    _, report = stored.report()
    assert [one["kind"] for one in report["findings"]] == ["notice"]
    assert stored.report("--repair")[0] == 0
    assert not notice.exists()


def test_a_run_in_progress_is_not_disturbed(stored):
    from bootc_core.engine.lock import exclusive
    from bootc_core.models.sysroot import Sysroot

    with exclusive(Sysroot(stored.root, stored.root / "boot"), "upgrade"):
        assert_refused(stored.fsck(), "BUSY", "upgrade")


def test_wrong_arguments(tmp_path, capsys):
    assert main(["fsck", "--sysroot", str(tmp_path / "none")]) == 1
    with pytest.raises(SystemExit):
        main(["fsck", "--repiar"])
    assert "did you mean --repair" in capsys.readouterr().err
