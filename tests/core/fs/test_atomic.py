"""Durable steps: announced, atomic, and with errors that name action and path."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootc_core.errors import StorageError
from bootc_core.fs import atomic


def seen_by(call: object, *arguments: object, **keywords: object) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    with atomic.observe(lambda step, path: seen.append((step, Path(path).name))):
        call(*arguments, **keywords)  # type: ignore[operator]
    return seen


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_write_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    steps = seen_by(atomic.write_file, file, b"one", mode=0o600)
    assert steps == [("write", "a"), ("rename", "a"), ("fsync", tmp_path.name)]
    assert file.read_bytes() == b"one"
    assert file.stat().st_mode & 0o7777 == 0o600
    assert seen_by(atomic.write_file, file, b"two", sync=False) == [("write", "a"), ("rename", "a")]
    assert file.read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("at", ["write", "rename"])
def test_write_file_stopped_leaves_the_old_one(tmp_path: Path, at: str) -> None:
    file = tmp_path / "a"
    atomic.write_file(file, b"old")

    def stop(step: str, path: str) -> None:
        if step == at:
            raise KeyboardInterrupt

    with atomic.observe(stop), pytest.raises(KeyboardInterrupt):
        atomic.write_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_observers_come_and_go(tmp_path: Path) -> None:
    first: list[str] = []
    second: list[str] = []
    with atomic.observe(lambda step, path: first.append(step)):
        with atomic.observe(lambda step, path: second.append(step)):
            atomic.fsync(tmp_path)
        atomic.syncfs(tmp_path)
    atomic.fsync(tmp_path)
    assert first == ["fsync", "syncfs"]
    assert second == ["fsync"]


def test_symlink(tmp_path: Path) -> None:
    link = tmp_path / "l"
    assert seen_by(atomic.symlink, "a/../b", link) == [("symlink", "l"), ("rename", "l")]
    assert os.readlink(link) == "a/../b"
    assert seen_by(atomic.symlink, "a/../b", link) == []  # right already
    assert seen_by(atomic.symlink, "b", link, sync=True)[-1] == ("fsync", tmp_path.name)
    assert os.readlink(link) == "b"
    assert names(tmp_path) == ["l"]


def test_rename_new(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    assert not atomic.rename_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    assert atomic.rename_new(tmp_path / "a", tmp_path / "d")
    assert names(tmp_path) == ["b", "c", "d"]
    with pytest.raises(StorageError, match="cannot rename to"):
        atomic.rename_new(tmp_path / "gone", tmp_path / "e")


def test_mkdir(tmp_path: Path) -> None:
    place = tmp_path / "d"
    assert seen_by(atomic.mkdir, place, 0o750) == [("mkdir", "d")]
    assert place.stat().st_mode & 0o7777 == 0o750
    assert seen_by(atomic.mkdir, place) == []
    with pytest.raises(StorageError):
        atomic.mkdir(place, exist_ok=False)
    (tmp_path / "f").touch()
    with pytest.raises(StorageError):
        atomic.mkdir(tmp_path / "f")
    old = os.umask(0o027)
    try:
        atomic.mkdir(tmp_path / "plain", None)
    finally:
        os.umask(old)
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o750


def test_unlink(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert seen_by(atomic.unlink, tmp_path / "a") == [("unlink", "a")]
    atomic.unlink(tmp_path / "a")
    with pytest.raises(StorageError):
        atomic.unlink(tmp_path / "a", missing_ok=False)


def test_rmtree_follows_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").touch()
    (tree / "a/link").symlink_to(outside)
    (tree / "locked").mkdir()
    (tree / "locked/file").touch()
    (tree / "locked").chmod(0o500)
    assert seen_by(atomic.rmtree, tree) == [("rmtree", "tree")]
    assert names(tmp_path) == ["outside"]
    assert names(outside) == ["keep"]
    assert seen_by(atomic.rmtree, tree) == []
    (tmp_path / "link").symlink_to(outside)
    atomic.rmtree(tmp_path / "link")
    assert names(outside) == ["keep"]


@pytest.mark.root
def test_rmtree_stops_at_a_mount_point(tmp_path: Path) -> None:
    mounted = tmp_path / "tree/mounted"
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mounted)], check=True)
    try:
        (mounted / "keep").touch()
        with pytest.raises(StorageError, match="cannot remove"):
            atomic.rmtree(tmp_path / "tree")
        assert (mounted / "keep").exists()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_patch(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 1024)
    assert seen_by(atomic.patch, file, 511, b"1") == [("patch", "a")]
    atomic.patch(file, 512, b"23")
    assert file.read_bytes()[510:515] == b"x123x"
    assert file.stat().st_size == 1024
    with pytest.raises(ValueError, match="one sector"):
        atomic.patch(file, 511, b"12")
    with pytest.raises(StorageError):
        atomic.patch(tmp_path / "gone", 0, b"1")
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(StorageError):
        atomic.patch(tmp_path / "link", 0, b"1")


def test_create_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    data = bytes(range(256)) * 9000  # more than one chunk
    assert atomic.create_file(file, io.BytesIO(data)) == hashlib.sha256(data).hexdigest()
    assert file.read_bytes() == data
    assert atomic.create_file(tmp_path / "b", b"") == hashlib.sha256().hexdigest()
    with pytest.raises(StorageError, match="cannot write"):
        atomic.create_file(file, b"again")
    assert file.read_bytes() == data
    assert seen_by(atomic.create_file, tmp_path / "c", b"") == [("write", "c")]


@pytest.mark.parametrize(
    ("number", "catalogue", "reference"),
    [
        (errno.ENOSPC, "SPC", "no-space"),
        (errno.EDQUOT, "SPC", "no-space"),
        (errno.EROFS, "RO", "read-only"),
        (errno.EIO, "IO", "io-error"),
        (errno.EACCES, "ENV", "no-permission"),
        (errno.EPERM, "ENV", "no-permission"),
        (errno.EINVAL, "IO", "io-error"),
    ],
)
def test_errors(number: int, catalogue: str, reference: str) -> None:
    with pytest.raises(StorageError) as caught, atomic.mapped("write", "/x/y"):
        raise OSError(number, os.strerror(number))
    problem = caught.value
    assert problem.message == "cannot write /x/y"
    assert (problem.catalogue, problem.reference) == (catalogue, reference)
    assert problem.found
    assert isinstance(problem.__cause__, OSError)


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:  # D01
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        for call in (atomic.write_file, atomic.create_file):
            with pytest.raises(StorageError) as caught:
                call(tmp_path / call.__name__, b"x" * 100_000)
            assert caught.value.catalogue == "SPC"
        assert not (tmp_path / "write_file").exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_reading_entries_does_not_pay_for_hashes() -> None:
    code = "import bootc_core.fs.atomic, sys; sys.exit('hashlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
