"""What checks say, what counts of it, and what is remembered of an update that failed."""

from __future__ import annotations

import os

import pytest

from bootc_core.host import health
from bootc_core.host.health import Pending, Result
from bootc_core.models.sysroot import Sysroot


@pytest.fixture
def sysroot(tmp_path):
    (tmp_path / "host").mkdir()
    return Sysroot(tmp_path / "host", tmp_path / "host/boot")


def check(root, name, script, directory="usr/lib/bootc/health.d"):
    path = root / directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_checks_run_in_order_and_etc_counts_more(tmp_path):
    check(tmp_path, "20-b", "exit 0")
    check(tmp_path, "10-a", "echo one; echo two >&2; exit 3")
    check(tmp_path, "30-c", "exit 1")
    check(tmp_path, "30-c", "exit 0", "etc/bootc/health.d")
    check(tmp_path, "40-masked", "exit 1")
    os.symlink("/dev/null", tmp_path / "etc/bootc/health.d/40-masked")
    check(tmp_path, ".hidden", "exit 1")
    found = health.run_checks(tmp_path)
    assert found == {
        "10-a": Result(False, ("one", "two")),
        "20-b": Result(True),
        "30-c": Result(True),
    }


def test_what_cannot_be_run_has_failed(tmp_path):
    check(tmp_path, "10-no", "exit 0").chmod(0o644)
    check(tmp_path, "20-interpreter", "").write_text("#!/no/such/program\n")
    check(tmp_path, "30-silent", "exit 7")
    found = health.run_checks(tmp_path)
    assert [one.ok for one in found.values()] == [False, False, False]
    assert found["10-no"].findings == ("it is not an executable file",)
    assert found["30-silent"].findings == ("it ended with exit status 7",)


@pytest.mark.root
def test_what_others_could_change_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    check(tmp_path, "10-open", f"touch {marker}").chmod(0o777)
    found = health.run_checks(tmp_path)
    assert "can be changed by others" in found["10-open"].findings[0]
    assert not marker.exists()


FINE, BROKEN = Result(True), Result(False, ("x",))


@pytest.mark.parametrize(
    ("now", "before", "counts"),
    [
        ({"a": FINE}, {}, []),
        ({"a": BROKEN}, {}, ["a: x"]),  # nothing is known: every failure counts
        ({"a": BROKEN}, {"a": FINE}, ["a: x"]),
        ({"a": BROKEN}, {"a": BROKEN}, []),  # the old system had that, too
        ({"a": Result(False, ("x", "y"))}, {"a": BROKEN}, ["a: y"]),
        ({"a": Result(False, ())}, {"a": BROKEN}, []),
        ({}, {"a": FINE}, []),  # the new image has no such check
        ({"b": BROKEN}, {"a": BROKEN}, ["b: x"]),
    ],
)
def test_what_counts_against_the_new_system(now, before, counts):
    assert health.judge(now, before) == counts


def test_the_baseline_is_kept(sysroot, tmp_path):
    check(tmp_path, "10-a", "echo was so before; exit 1")
    assert health.baseline(sysroot) == {}
    health.take_baseline(sysroot, tmp_path)
    assert health.baseline(sysroot) == {"10-a": Result(False, ("was so before",))}


def test_records_of_updates(sysroot):
    assert (health.pending(sysroot), health.failed(sysroot)) == (None, None)
    update = Pending("a" * 128, "sha256:" + "1" * 64)
    health.note_pending(sysroot, update)
    assert health.pending(sysroot) == update
    health.settle(sysroot)
    assert health.pending(sysroot) is None
    for kind, refused in (("finalize", False), ("boot", True), ("health", True)):
        health.note_failed(sysroot, kind, Pending(update.deployment, update.digest, "because"))
        found = health.failed(sysroot)
        assert (found.kind, found.refused) == (kind, refused)
        assert "because" in str(found)
        assert update.digest in str(found)
    health.forget_failed(sysroot)
    assert health.failed(sysroot) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "boot"}', '{"x": 1}', "\0\0"])
def test_damaged_records_are_none(sysroot, text):
    (sysroot.state / "health").mkdir(parents=True)
    for name in ("pending", "failed", "baseline"):
        (sysroot.state / f"health/{name}.json").write_text(text)
    assert (health.pending(sysroot), health.failed(sysroot)) == (None, None)
    assert health.baseline(sysroot) == {}


UPDATE = Pending("new", "sha256:1")


@pytest.mark.parametrize(
    ("update", "running", "first", "present", "given_up"),
    [
        (UPDATE, "old", "old", ("old", "new"), True),
        (UPDATE, "new", "new", ("new", "old"), False),  # it is being tried
        (UPDATE, "old", "new", ("new", "old"), False),  # chosen by hand in the boot menu
        (UPDATE, "old", "old", ("old",), False),  # it never became bootable
        (UPDATE, None, "old", ("old", "new"), False),
        (None, "old", "old", ("old", "new"), False),
    ],
)
def test_falling_back_is_recognised(update, running, first, present, given_up):
    found = health.fell_back(update, running, first, present)
    assert (found is not None) is given_up
    if found:
        assert "did not reach" in found.reason
        said = health.fell_back(Pending("new", "d", "disk full"), running, first, present)
        assert said.reason == "disk full"
