"""What a tree looks like to the kernel: every name with all that an image says about it, as one JSON object.

    listing.py tree ROOT                 # a directory as it is
    listing.py composefs IMAGE OBJECTS   # an EROFS image, mounted with its objects as the booted system would be

A script, because mounting happens in a mount namespace of its own (``unshare -m``) that ends with the process. Names are
latin-1 decoded bytes, so that any name survives JSON.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
MS_RDONLY = 1


def describe(path: bytes, about: os.stat_result) -> dict[str, Any]:
    """One inode: what an image can say about it."""
    record: dict[str, Any] = {
        "type": stat.S_IFMT(about.st_mode),
        "mode": stat.S_IMODE(about.st_mode),
        "owner": [about.st_uid, about.st_gid],
        "mtime": about.st_mtime_ns,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        },
    }
    if stat.S_ISREG(about.st_mode):
        with Path(os.fsdecode(path)).open("rb") as content:
            record["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
        record["size"] = about.st_size
    elif stat.S_ISLNK(about.st_mode):
        record["target"] = os.readlink(path).decode("latin-1")
    elif stat.S_ISCHR(about.st_mode) or stat.S_ISBLK(about.st_mode):
        record["device"] = [os.major(about.st_rdev), os.minor(about.st_rdev)]
    return record


def listing(root: str) -> dict[str, Any]:
    """``entries``: name to record ("" is the root); ``links``: sorted groups of names that are one inode."""
    start = os.fsencode(root)
    entries = {"": describe(start, os.lstat(start))}
    inodes: dict[tuple[int, int], list[str]] = {}
    for folder, folders, files in os.walk(start):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            about = os.lstat(path)
            key = os.path.relpath(path, start).decode("latin-1")
            entries[key] = describe(path, about)
            if not stat.S_ISDIR(about.st_mode) and about.st_nlink > 1:
                inodes.setdefault((about.st_dev, about.st_ino), []).append(key)
    return {
        "entries": entries,
        "links": sorted(sorted(names) for names in inodes.values() if len(names) > 1),
    }


def mount_erofs(image: str, point: Path) -> None:
    """Mount straight from the file (Linux 6.12 and later), else over a loop device."""
    if _libc.mount(os.fsencode(image), os.fsencode(point), b"erofs", MS_RDONLY, None) == 0:
        return
    if ctypes.get_errno() not in {errno.ENOTBLK, errno.EINVAL}:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), image)
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, str(point)], check=True)


def composefs(image: str, objects: str) -> dict[str, Any]:
    """The listing of a composefs image. Only in a private mount namespace: nothing is unmounted."""
    point = Path(tempfile.mkdtemp())
    if _libc.mount(b"tmpfs", os.fsencode(point), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "tmpfs")
    for name in ("meta", "root"):
        (point / name).mkdir()
    mount_erofs(image, point / "meta")
    options = f"ro,metacopy=on,redirect_dir=on,lowerdir={point / 'meta'}::{objects}"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "composefs", str(point / "root")], check=True
    )
    return listing(str(point / "root"))


if __name__ == "__main__":
    json.dump({"tree": listing, "composefs": composefs}[sys.argv[1]](*sys.argv[2:]), sys.stdout)
