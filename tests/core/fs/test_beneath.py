"""Nothing leaves the root, with the kernel's help and without."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootc_core import limits
from bootc_core.fs.beneath import Beneath, check


@pytest.fixture(params=[True, False], ids=["openat2", "by parts"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Beneath]:
    before = Beneath.use_openat2
    Beneath.use_openat2 = request.param
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    tree = tmp_path / "tree"
    (tree / "dir/sub").mkdir(parents=True)
    (tree / "dir/file").write_text("text")
    (tree / "up").symlink_to("..")
    (tree / "out").symlink_to(tmp_path / "outside")
    (tree / "dir/link").symlink_to("file")
    (tree / "here").symlink_to("dir")
    with Beneath(tree) as beneath:
        yield beneath
    Beneath.use_openat2 = before


def content(root: Beneath, path: bytes) -> bytes:
    with os.fdopen(root.open_file(path), "rb") as stream:
        return stream.read()


def test_reading(root: Beneath) -> None:
    assert content(root, b"dir/file") == b"text"
    assert root.listdir(b"") == [b"dir", b"here", b"out", b"up"]
    assert root.listdir(b"dir") == [b"file", b"link", b"sub"]
    assert root.readlink(b"up") == b".."
    assert stat.S_ISLNK(root.lstat(b"out").st_mode)
    assert stat.S_ISDIR(root.lstat(b"").st_mode)
    assert root.exists(b"out")
    assert not root.exists(b"dir/gone")
    assert not root.exists(b"dir/file/x")


@pytest.mark.parametrize(
    "path", [b"out/secret", b"up/outside/secret", b"here/file", b"dir/link", b"out", b"up"]
)
def test_no_link_is_followed(root: Beneath, path: bytes) -> None:
    for call in (root.open_file, root.open_dir, root.listdir, root.create_file):
        with pytest.raises(OSError, match="Errno") as caught:
            call(path)
        assert caught.value.errno in {errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EXDEV}


def test_writing_through_a_link_is_refused(root: Beneath, tmp_path: Path) -> None:
    for call in (
        lambda: root.mkdir(b"out/new"),
        lambda: root.symlink(b"x", b"out/new"),
        lambda: root.mknod(b"out/new", stat.S_IFIFO | 0o600),
        lambda: root.unlink(b"out/secret"),
        lambda: root.link(b"out/secret", b"new"),
        lambda: root.chmod(b"out", 0o700),
        lambda: root.chmod(b"out/secret", 0o700),
        lambda: root.chown(b"out/secret", os.getuid(), os.getgid()),
        lambda: root.utime(b"out/secret", 0),
        lambda: root.setxattr(b"out/secret", b"user.x", b"y"),
        lambda: root.xattrs(b"out/secret"),
        lambda: root.mkdirs(b"out/new/deep"),
    ):
        with pytest.raises(OSError, match="Errno"):
            call()
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["secret"]
    assert (tmp_path / "outside").stat().st_mode == (tmp_path / "tree/dir").stat().st_mode


@pytest.mark.parametrize(
    "path", [b"..", b"../x", b"a/../b", b"/etc", b"a//b", b"a/", b".", b"a/./b", b"a\0b"]
)
def test_paths_that_are_none(root: Beneath, path: bytes) -> None:
    for call in (root.open_dir, root.lstat, root.mkdir, root.mkdirs, root.unlink, root.readlink):
        with pytest.raises(OSError, match="Errno") as caught:
            call(path)
        assert caught.value.errno == errno.EINVAL


def test_bounds() -> None:
    check(b"x" * limits.NAME_BYTES)
    for path in (b"x" * (limits.NAME_BYTES + 1), b"x/" * limits.PATH_BYTES + b"x"):
        with pytest.raises(OSError, match="Errno") as caught:
            check(path)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_writing(root: Beneath, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    root.mkdirs(b"a/b/c")
    root.mkdirs(b"a/b/c")
    os.close(root.create_file(b"a/b/c/file"))
    with pytest.raises(FileExistsError):
        root.create_file(b"a/b/c/file")
    root.chmod(b"a/b/c/file", 0o640)
    root.utime(b"a/b/c/file", 1_000_000_001)
    root.link(b"a/b/c/file", b"a/second")
    root.symlink(b"../\xff", b"a/link")
    root.utime(b"a/link", 5)
    root.mknod(b"a/fifo", stat.S_IFIFO | 0o600)
    root.chown(b"a/link", os.getuid(), os.getgid())
    root.chown(b"", os.getuid(), os.getgid())
    root.utime(b"", 7)
    info = (tree / "a/second").stat()
    assert (info.st_mode & 0o7777, info.st_mtime_ns, info.st_nlink) == (0o640, 1_000_000_001, 2)
    assert os.readlink(os.fsencode(tree / "a/link")) == b"../\xff"
    assert (tree / "a/link").lstat().st_mtime_ns == 5
    assert tree.stat().st_mtime_ns == 7
    with pytest.raises(OSError, match="Errno"):
        root.open_file(b"a/fifo")
    root.unlink(b"a/fifo")
    assert root.listdir(b"a") == [b"b", b"link", b"second"]


@pytest.mark.root
def test_attributes(root: Beneath) -> None:
    for path in (b"", b"dir", b"dir/file", b"dir/link"):
        root.setxattr(path, b"trusted.b", b"2")
        root.setxattr(path, b"trusted.a", b"\0")
        found = [pair for pair in root.xattrs(path) if pair[0].startswith(b"trusted.")]
        assert found == [(b"trusted.a", b"\0"), (b"trusted.b", b"2")]


def test_descriptor_of_the_caller_stays_open(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with Beneath(descriptor) as root:
        assert root.fileno() != descriptor
        root.mkdir(b"x")
    assert os.listdir(descriptor) == ["x"]
    os.close(descriptor)
