"""The system that boots with the ostree backend is the image: a real Debian, compared with the same image unpacked by umoci.

Compared for every name: type, mode, owner, xattrs, content, link target, and which names are one inode. What a commit has
otherwise: no times; ``/etc`` in two places; nothing below what is mounted over; equal files are one inode.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.mounted import Listing, unpacked

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from bootc_core.testing.harness import remove_tree  # noqa: E402
from demo import debian  # noqa: E402 - the demonstration is no installed package

BOOTC = Path(sys.executable).with_name("bootc")
MOUNTED_OVER = ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var")
FACTORY = "usr/share/factory/var"  # libostree before 2024.3 fills a new /var from there
pytestmark = [pytest.mark.root, pytest.mark.real]


def run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def below(name: str, folders: tuple[str, ...]) -> bool:
    return name.partition("/")[0] in folders and "/" in name


def comparable(entries: Listing, etc: str) -> dict[str, Any]:
    """Names of the image; what is in ``etc`` of a deployment under the name ``etc``, the other one left out."""
    found = {}
    for name, record in entries.items():
        other = "usr/etc" if etc == "etc" else "etc"
        if below(name, MOUNTED_OVER) or name in {"usr/etc", ".ostree.cfs"}:
            continue
        if name.startswith((f"{FACTORY}/", f"{other}/")):
            continue
        place = "etc/" + name.removeprefix(f"{etc}/") if name.startswith(f"{etc}/") else name
        found[place] = {key: value for key, value in record.items() if key != "mtime"}
    return found


def test_the_deployment_is_the_image(tmp_path: Path) -> None:
    home = PROJECT / ".cache/demo" / debian.host_suite()
    if not (home / "built").exists():
        pytest.skip(
            "the demonstration's image is not built: python3 demo/build_images.py .cache/demo"
        )
    image, host = f"{home / 'oci'}:v2", tmp_path / "host"
    run(
        *(BOOTC, "switch", "--sysroot", host, "--backend", "ostree"),
        *("--no-signature-verification", "--transport", "oci", image),
    )
    (root,) = host.glob("ostree/deploy/default/deploy/*.0")
    try:
        deployed = unpacked(root)
    finally:
        remove_tree(host)
    run("umoci", "unpack", "--image", image, tmp_path / "unpacked")
    reference = unpacked(tmp_path / "unpacked/rootfs")
    ours, theirs = deployed["entries"], comparable(reference["entries"], "etc")
    for etc in ("etc", "usr/etc"):
        mine = comparable(ours, etc)
        for name in (FACTORY, str(Path(FACTORY).parent)):
            if name not in theirs:
                mine.pop(name, None)
        assert sorted(mine) == sorted(theirs), etc
        different = {
            name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]
        }
        assert not different, f"{len(different)} differ: {list(different.items())[:4]}"
    assert any(record["xattrs"] for record in theirs.values()), "a file capability to compare"
    groups = {name: number for number, names in enumerate(deployed["links"]) for name in names}
    linked = [
        names
        for names in reference["links"]
        if not any(below(name, (*MOUNTED_OVER, "etc")) for name in names)
    ]
    assert linked, "the image has hard links to compare"
    for names in linked:
        assert len({groups.get(name, name) for name in names}) == 1, names
    for names in deployed["links"]:
        assert all(ours[name] == ours[names[0]] for name in names)
