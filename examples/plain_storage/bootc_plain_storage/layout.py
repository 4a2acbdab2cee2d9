"""Layers to one tree of files: OCI whiteouts, then writing it out. Names were checked when the layers were imported."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bootc_core.errors import ContentError
from bootc_core.fs import atomic

_OPAQUE = ".wh..wh..opq"
Table = dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]]


def merge(archives: Sequence[tarfile.TarFile]) -> Table:
    """Path to archive and member, lower layers first; what a layer hides is gone."""
    table: Table = {}
    for archive in archives:
        own: Table = {}
        for member in archive:
            path = member.name.strip("/").removeprefix("./")
            directory, _, name = path.rpartition("/")
            if name == _OPAQUE:
                _hide(table, directory, itself=False)
            elif name.startswith(".wh."):
                _hide(table, f"{directory}/{name[4:]}".lstrip("/"), itself=True)
            elif path and path != ".":
                own[path] = (archive, member)
        for path, (_, member) in own.items():
            if path in table and not (member.isdir() and table[path][1].isdir()):
                _hide(table, path, itself=True)
        table |= own
    return table


def _hide(table: Table, path: str, *, itself: bool) -> None:
    for key in [key for key in table if key.startswith(f"{path}/") or (itself and key == path)]:
        del table[key]


def write(table: Table, place: Path) -> None:
    """Lay the tree out in ``place``.

    Raises:
        ContentError: a file below something that is no directory.
        StorageError: space, I/O.
    """
    with atomic.mapped("make the directory", place):
        place.mkdir(parents=True)
    for path in sorted(table):
        with atomic.mapped("write", place / path):
            _write_one(table, path, place)


def _write_one(table: Table, path: str, place: Path) -> None:
    archive, member = table[path]
    target = place / path
    if target.parent != place and (target.parent.is_symlink() or not target.parent.is_dir()):
        if target.parent.exists() or target.parent.is_symlink():
            raise ContentError(f"{path} is below something that is no directory")
        target.parent.mkdir(parents=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.issym():
        target.symlink_to(member.linkname)
        return
    elif member.isreg() or member.islnk():
        source = table.get(member.linkname.strip("/")) if member.islnk() else (archive, member)
        if source is None:
            raise ContentError(f"{path} is a link to nothing")
        content = source[0].extractfile(source[1])
        with target.open("xb") as file:
            if content is not None:
                shutil.copyfileobj(content, file)
    else:
        return  # devices and pipes come from the running system
    if os.geteuid() == 0:
        os.chown(target, member.uid, member.gid)
    target.chmod(member.mode & 0o7777 | (0o700 if member.isdir() else 0))
    os.utime(target, (member.mtime, member.mtime))


def lay_out(layers: Sequence[Path], place: Path) -> None:
    """The merged tree of ``layers`` in the new directory ``place``.

    Raises:
        ContentError: layers that make no tree.
    """
    with ExitStack() as stack:
        write(merge([stack.enter_context(tarfile.open(path)) for path in layers]), place)
