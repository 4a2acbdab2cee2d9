"""Each target on what once failed and on what hypothesis thinks of; EROFS against the real checker.

``make fuzz`` and ``make fuzz-diff`` go on for hours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
import fuzz
import targets

EXAMPLES = int(os.environ.get("BOOTC_FUZZ_EXAMPLES", "60"))


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_once_failed(name):
    for data in targets.seeds(name):
        targets.TARGETS[name](data)


@pytest.mark.parametrize("name", [name for name in targets.TARGETS if name != "tar_programs"])
def test_any_bytes(name):
    @settings(max_examples=EXAMPLES)
    @given(data=st.binary(max_size=400))
    def check(data):
        targets.TARGETS[name](data)

    check()


@pytest.mark.real
def test_archives_against_gnu_tar_and_bsdtar():
    if not shutil.which("bsdtar"):
        pytest.skip("bsdtar is not installed (libarchive-tools)")
    accepted = 0

    @settings(max_examples=EXAMPLES)
    @given(data=st.binary(max_size=120))
    def check(data):
        nonlocal accepted
        targets.tar_programs(data)
        accepted += bool(targets.our_listing(targets.archive(targets.Source(data))))

    check()
    assert accepted, "nothing was compared"


@pytest.mark.real
def test_erofs_images_are_those_that_the_real_checker_accepts(tmp_path):
    if not shutil.which("fsck.erofs"):
        pytest.skip("fsck.erofs is not installed (erofs-utils)")
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../plugins/composefs"))
    from bootc_composefs.erofs import write_image
    from test_erofs_read import trees

    @settings(max_examples=max(EXAMPLES // 4, 5))
    @given(tree=trees(), version=st.sampled_from([1, 2]))
    def check(tree, version):
        path = tmp_path / "image"
        path.write_bytes(write_image(tree, version=version, algorithm="sha256"))
        done = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    check()


def test_the_simple_loop_finds_what_is_planted(monkeypatch, tmp_path):
    """It is worth nothing if it does not get behind three conditions in a row."""

    def planted(data: bytes) -> None:
        if data[:1] != b"k":
            return
        if data[1:2] != b"7":
            return
        if len(data) > 20:
            raise ZeroDivisionError

    monkeypatch.setitem(targets.TARGETS, "planted", planted)
    monkeypatch.setattr(fuzz, "HERE", tmp_path)
    monkeypatch.setattr(targets, "seeds", lambda name: [b"abc"])
    with pytest.raises(ZeroDivisionError):
        fuzz.simple("planted", 60, seed=3)
    assert list((tmp_path / "corpus/planted").iterdir())
