"""The system that boots is the image: mounted by this kernel, and compared with the same image unpacked by umoci.

Everything is compared for every name: type, mode, owner, time to the nanosecond, xattrs, content, link target, device, and
which names are one inode. What may differ is listed in ``EXCEPTIONS`` and is asserted too, where the format says what it is.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from demo import debian, layout  # noqa: E402 - the demonstration is no installed package

LISTING = Path(__file__).with_name("listing.py")
BOOTC = Path(sys.executable).with_name("bootc")
pytestmark = [pytest.mark.root, pytest.mark.real]

# What the mounted root has instead of what the image has (composefs-formats: OCI transformation, boot transformation)
EMPTIED = ("boot", "sysroot", "run", "dev")  # their contents
TIMES_OF_USR = ("boot", "sysroot", "run")  # the folders themselves
KEPT_XATTRS = (
    "security.capability",
)  # all others are dropped, security.selinux is made anew from the image's policy


def generated_tree(root: Path) -> None:
    """A small image tree with one of everything that file systems have trouble with."""
    for folder in (
        "boot",
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "sysroot",
        "tmp",
        "usr/bin",
        "usr/lib/modules/6.0-test",
        "var/tmp",
    ):
        (root / folder).mkdir(parents=True)
    kernel = root / "usr/lib/modules/6.0-test"
    (kernel / "vmlinuz").write_bytes(b"a kernel" * 5000)
    (kernel / "initramfs.img").write_bytes(b"an initramfs" * 5000)
    (root / "usr/lib/os-release").write_text('ID=test\nVERSION_ID="1"\nPRETTY_NAME="Generated"\n')
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    odd = root / "usr/lib/odd"
    odd.mkdir()
    (odd / "empty").touch()
    for size in (1, 63, 64, 65, 4095, 4096, 4097, 131_073):
        (odd / f"size-{size}").write_bytes(bytes([size % 251]) * size)
    (odd / "hole").touch()
    os.truncate(odd / "hole", 3_000_000)
    (odd / "set-user-id").write_bytes(b"x" * 100)
    os.chown(odd / "set-user-id", 1234, 70_000)
    (odd / "set-user-id").chmod(0o6755)
    (odd / "one").write_bytes(b"one inode, three names" * 10)
    os.link(odd / "one", odd / "two")
    os.link(odd / "one", root / "usr/bin/three")
    (odd / "small-one").write_bytes(b"small")
    os.link(odd / "small-one", odd / "small-two")
    os.mkfifo(odd / "fifo")
    os.mknod(root / "dev/character", stat.S_IFCHR | 0o620, os.makedev(5, 300))
    os.mknod(root / "dev/block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    (odd / "long-target").symlink_to("a/" * 1500 + "end")
    os.symlink(b"\xff\xfe", os.fsencode(odd / "odd-target"))
    Path(os.fsdecode(os.fsencode(odd) + b"/name-\xff\xfe")).write_bytes(b"a name that is no UTF-8")
    (odd / ("n" * 255)).write_bytes(b"the longest name")
    (odd / "with space and\nline").write_bytes(b"odd name")
    (odd / "capable").write_bytes(b"c" * 200)
    # cap_net_raw, version 2, as setcap writes it
    os.setxattr(
        odd / "capable",
        "security.capability",
        bytes.fromhex("0100000200200000000000000000000000000000"),
    )
    many = odd / "many"
    many.mkdir(mode=0o2775)
    for number in range(700):
        (many / f"entry-{number:04}").write_bytes(b"%d" % number)
    (odd / "old").write_bytes(b"from 1970")
    os.utime(odd / "old", (1, 1))
    os.utime(many, (1_000_000_000, 1_000_000_000))


def generated_image(home: Path) -> Path:
    root = home / "tree"
    generated_tree(root)
    image = layout.Layout(home / "oci")
    names = [name for name, _ in layout.walk(root)]
    update = [
        layout.Member("usr/lib/odd", mode=0o755),
        layout.Member("usr/lib/odd/.wh.two", b""),
        layout.Member("usr/lib/odd/many", mode=0o700),
        layout.Member("usr/lib/odd/many/.wh..wh..opq", b""),
        layout.Member("usr/lib/odd/many/only", b"o" * 1000),
        layout.Member("usr/lib/odd/empty", mode=0o755),
        layout.Member("usr/lib/odd/empty/now-a-folder", link="elsewhere"),
    ]
    layers = [image.add_layer(root, names, "gzip"), image.add_tar(update, "gzip")]
    image.add_image(
        "v2", layers, {"containers.bootc": "1", "org.opencontainers.image.version": "2"}
    )
    return home / "oci"


@pytest.fixture(scope="module", params=["generated", "debian"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with an image named v2."""
    if request.param == "generated":
        return generated_image(tmp_path_factory.mktemp("image"))
    home = PROJECT / ".cache/demo" / debian.host_suite()
    if not (home / "built").exists():
        pytest.skip(
            "the demonstration's image is not built: python3 demo/build_images.py .cache/demo"
        )
    return home / "oci"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on a free port."""
    home = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(home / "data")}},
        "http": {"addr": address},
    }
    (home / "settings.yml").write_text(json.dumps(settings))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(home / "settings.yml")], stdout=log, stderr=log
        )
    try:
        host, _, port = address.partition(":")
        for _ in range(200):
            assert process.poll() is None, (home / "log").read_text()
            try:
                socket.create_connection((host, int(port)), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def below(name: str, folders: tuple[str, ...]) -> bool:
    return name.partition("/")[0] in folders and "/" in name


def test_the_mounted_root_is_the_image(image: Path, registry: str, tmp_path: Path) -> None:
    reference = f"{registry}/os/{image.parent.name}:v2"
    run(
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{image}:v2",
        f"docker://{reference}",
    )
    run(BOOTC, "switch", "--sysroot", tmp_path / "host", "--no-signature-verification", reference)
    status = json.loads(run(BOOTC, "status", "--sysroot", tmp_path / "host", "--json"))
    identity = status["status"]["booted"]["composefs"]["verity"]
    repository = tmp_path / "host/composefs"

    mounted = json.loads(
        run(
            *("unshare", "-m", "--propagation", "private", sys.executable, "-I", LISTING),
            *("composefs", repository / "images" / identity, repository / "objects"),
        )
    )
    run("umoci", "unpack", "--image", f"{image}:v2", tmp_path / "unpacked")
    unpacked = json.loads(run(sys.executable, "-I", LISTING, "tree", tmp_path / "unpacked/rootfs"))

    ours, theirs = mounted["entries"], unpacked["entries"]
    usr = theirs["usr"]

    # What the format changes on purpose
    for field in ("mode", "owner", "mtime"):
        assert ours[""][field] == usr[field], f"{field} of the root is that of /usr"
    for folder in EMPTIED:
        assert [name for name in ours if below(name, (folder,))] == []
    for folder in TIMES_OF_USR:
        assert ours[folder]["mtime"] // 10**9 == usr["mtime"] // 10**9

    # And everything else is equal
    def comparable(entries: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for name, record in entries.items():
            if name == "" or below(name, EMPTIED):
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

    left, right = comparable(ours), comparable(theirs)
    assert sorted(left) == sorted(right)
    different = {name: (left[name], right[name]) for name in left if left[name] != right[name]}
    assert different == {}
    assert all(
        set(record["xattrs"]) <= {*KEPT_XATTRS, "security.selinux"} for record in ours.values()
    )

    def links(groups: list[list[str]]) -> list[list[str]]:
        return [group for group in groups if not any(below(name, EMPTIED) for name in group)]

    assert links(mounted["links"]) == links(unpacked["links"])
    assert any(record["xattrs"] for record in left.values()), (
        "the image has a file capability to compare"
    )
    assert mounted["links"], "the image has hard links to compare"
