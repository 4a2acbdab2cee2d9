"""The root that boots, mounted by this kernel, compared with the same image unpacked by another program, name by name.

    assert_same(mounted(sysroot), unpacked(directory))

Compared are type, mode, owner, time to the nanosecond, capabilities, content, link target, device, and which names are one
inode. What may differ is listed in ``EMPTIED`` and below, and is asserted too where the format says what it is.
"""

from __future__ import annotations

import contextlib
import io
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from bootc_core.cli.main import main

LISTING = Path(__file__).parents[1] / "system/listing.py"

# What the mounted root has instead of what the image has (composefs-formats: OCI transformation, boot transformation)
EMPTIED = ("boot", "sysroot", "run", "dev")  # their contents
TIMES_OF_USR = ("boot", "sysroot", "run")  # the folders themselves
KEPT_XATTRS = (
    "security.capability",
)  # all others are dropped, security.selinux is made anew from the image's policy

Listing = dict[str, Any]


def _listed(*command: str | Path) -> Listing:
    done = subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    found: Listing = json.loads(done.stdout)
    return found


def identity(sysroot: Path) -> str:
    """The digest of the tree that boots next: equal digests are equal trees."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["status", "--sysroot", str(sysroot), "--json"]) == 0
    found: str = json.loads(out.getvalue())["status"]["booted"]["composefs"]["verity"]
    return found


def mounted(sysroot: Path) -> Listing:
    """What boots next from ``sysroot``."""
    repository = sysroot / "composefs"
    return _listed(
        *("unshare", "-m", "--propagation", "private", sys.executable, "-I", LISTING),
        *("composefs", repository / "images" / identity(sysroot), repository / "objects"),
    )


def unpacked(directory: Path) -> Listing:
    """An image as another program unpacked it."""
    return _listed(sys.executable, "-I", LISTING, "tree", directory)


def _below(name: str, folders: tuple[str, ...]) -> bool:
    return name.partition("/")[0] in folders and "/" in name


def _comparable(entries: Listing) -> Listing:
    result = {}
    for name, record in entries.items():
        if name == "" or _below(name, EMPTIED):
            continue
        kept = {
            key: value
            for key, value in record.items()
            if not (key == "mtime" and name in TIMES_OF_USR)
        }
        kept["xattrs"] = {
            key: value for key, value in record["xattrs"].items() if key in KEPT_XATTRS
        }
        result[name] = kept
    return result


def assert_same(boots: Listing, image: Listing, *, folder_times: bool = True) -> Listing:
    """The mounted root ``boots`` is the unpacked ``image``; returns what was compared, by name.

    Args:
        boots: from ``mounted``.
        image: from ``unpacked``.
        folder_times: False: podman unpacked it, which leaves the time of unpacking on folders that it put hard links into.
    """
    ours, theirs = boots["entries"], image["entries"]
    usr = theirs["usr"]

    # What the format changes on purpose
    for field in ("mode", "owner", *(["mtime"] if folder_times else [])):
        assert ours[""][field] == usr[field], f"{field} of the root is that of /usr"
    for folder in EMPTIED:
        assert [name for name in ours if _below(name, (folder,))] == []
    for folder in TIMES_OF_USR if folder_times else ():
        assert ours[folder]["mtime"] // 10**9 == usr["mtime"] // 10**9

    # And everything else is equal
    left, right = _comparable(ours), _comparable(theirs)
    if not folder_times:
        for name, record in right.items():
            if record["type"] == stat.S_IFDIR and "mtime" in left.get(name, {}):
                record["mtime"] = left[name]["mtime"]
    assert sorted(left) == sorted(right)
    different = {name: (left[name], right[name]) for name in left if left[name] != right[name]}
    assert not different, f"{len(different)} differ: {list(different.items())[:4]}"
    assert all(
        set(record["xattrs"]) <= {*KEPT_XATTRS, "security.selinux"} for record in ours.values()
    )

    def links(groups: list[list[str]]) -> list[list[str]]:
        return [group for group in groups if not any(_below(name, EMPTIED) for name in group)]

    assert links(boots["links"]) == links(image["links"])
    return left
