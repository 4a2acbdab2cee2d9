"""A boot loader reads a file system without its journal: what it finds after a sync, and after a freeze."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc_core.errors import StorageError
from bootc_core.fs import atomic

pytestmark = [pytest.mark.root, pytest.mark.real]


@pytest.fixture
def disk(tmp_path) -> Iterator[tuple[Path, Path]]:
    image, place = tmp_path / "disk.img", tmp_path / "mount"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield image, place
    finally:
        subprocess.run(["fsfreeze", "-u", place], check=False, capture_output=True)
        subprocess.run(["umount", place], check=True)


def without_journal(image: Path, name: str) -> bytes:
    done = subprocess.run(["debugfs", "-R", f"cat {name}", image], capture_output=True, check=True)
    return done.stdout


def test_after_a_freeze_is_seen_what_after_a_sync_is_in_the_journal_only(disk):
    image, place = disk
    for name in ("a", "b"):
        (place / name).write_text(f"in {name}")
    atomic.fsync(place / "a")
    atomic.fsync(place)
    atomic.freeze(place)
    atomic.exchange(place / "a", place / "b")
    atomic.fsync(place)
    assert (place / "a").read_text() == "in b"
    assert without_journal(image, "a") == b"in a"
    atomic.freeze(place)
    assert without_journal(image, "a") == b"in b"
    (place / "c").write_text("written after it was thawed")


def test_a_process_that_is_killed_leaves_nothing_frozen(disk):
    _, place = disk
    code = f"""
import fcntl, os, signal
from bootc_core.fs import atomic
real = fcntl.ioctl
def ioctl(descriptor, number, argument):
    result = real(descriptor, number, argument)
    if number == {0xC0045877:#x}:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
fcntl.ioctl = ioctl
atomic.freeze({str(place)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    writing = subprocess.run(["touch", place / "x"], check=False, timeout=30)
    assert writing.returncode == 0


def test_what_cannot_be_frozen_is_synced():
    steps = []
    with atomic.observe(lambda step, path: steps.append(step)):
        atomic.freeze("/proc/self")
    assert steps == ["freeze"]


def test_exchange_needs_both(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(StorageError):
        atomic.exchange(tmp_path / "a", tmp_path / "missing")
