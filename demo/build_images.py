#!/usr/bin/python3
"""Build the two versions of the demonstration's image: a small real Debian with a kernel, as one OCI layout.

    build_images.py CACHE [SUITE]      # -> CACHE/SUITE/oci with the names v1 and v2

v1 has three layers: kernel, packages, configuration. v2 is v1 and a fourth, small one: changed, added and removed files
below ``/usr``, new defaults in ``/etc``, another kernel argument. Nothing is built again while this file and the two
modules beside it are unchanged. Needs root and mmdebstrap.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import debian, layout

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "procps",
    "iputils-ping",
    "ca-certificates",
    "initramfs-tools",
    "zstd",
)
KARGS = {
    "v1": b'kargs = ["console=ttyS0", "demo.version=1"]\n',
    "v2": b'kargs = ["console=ttyS0", "demo.version=2", "quiet"]\n',
}


def _write(root: Path, name: str, content: bytes, mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def first_version(root: Path) -> None:
    """What v1 holds beside Debian's packages: one file for each thing that the demonstration shows."""
    _write(root, "usr/lib/bootc/kargs.d/10-demo.toml", KARGS["v1"])
    _write(root, "usr/lib/demo/version", b"1\n")
    _write(root, "usr/lib/demo/retired", b"in version 1 only\n")
    _write(root, "usr/lib/demo/catalogue/old-entry", b"in version 1 only\n")
    _write(root, "etc/demo/edited", b"default of version 1\n")
    _write(root, "etc/demo/untouched", b"default of version 1\n")
    _write(root, "etc/demo/deleted", b"default of version 1\n")
    _write(root, "var/lib/demo/seed", b"put here when the host was made\n")
    # cap_net_raw, as setcap writes it: some releases give ping a capability, others do without
    os.setxattr(
        root / "usr/bin/ping", "security.capability", bytes.fromhex("0100000200200000" + 24 * "0")
    )


def second_version() -> list[layout.Member]:
    """The members of v2's own layer; ``.wh.`` names remove what lower layers have."""
    return [
        layout.Member("etc/demo", mode=0o755),
        layout.Member("etc/demo/deleted", b"default of version 2\n"),
        layout.Member("etc/demo/edited", b"default of version 2\n"),
        layout.Member("etc/demo/new", b"new in version 2\n"),
        layout.Member("etc/demo/untouched", b"default of version 2\n"),
        layout.Member("usr/lib/bootc/kargs.d/10-demo.toml", KARGS["v2"]),
        layout.Member("usr/lib/demo", mode=0o755),
        layout.Member("usr/lib/demo/.wh.retired", b""),
        layout.Member("usr/lib/demo/added", b"in version 2 only\n"),
        layout.Member("usr/lib/demo/catalogue", mode=0o755),
        layout.Member("usr/lib/demo/catalogue/.wh..wh..opq", b""),
        layout.Member("usr/lib/demo/catalogue/new-entry", b"in version 2 only\n"),
        layout.Member("usr/lib/demo/version", b"2\n"),
        layout.Member("var/lib/demo/seed", b"version 2 would put this here in a new host\n"),
    ]


def labels(version: str) -> dict[str, str]:
    """The labels that make an image bootable, and its version."""
    return {
        "containers.bootc": "1",
        "org.opencontainers.image.title": "Debian for the bootc demonstration",
        "org.opencontainers.image.version": version,
    }


def build(cache: Path, suite: str) -> Path:
    """The layout with v1 and v2 of ``suite`` below ``cache``, made if it is missing or older than these sources."""
    sources = b"".join(Path(module.__file__ or "").read_bytes() for module in (debian, layout))
    stamp = hashlib.sha256(sources + Path(__file__).read_bytes()).hexdigest()
    home = cache / suite
    marker = home / "built"
    if marker.exists() and marker.read_text() == stamp:
        debian.say(f"cached: {home / 'oci'}")
        return home / "oci"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    root = debian.build_root(suite, [*PACKAGES, debian.kernel_package()], home / "root", cache)
    kernel = debian.lay_out(root)
    first_version(root)
    debian.say(f"kernel {kernel}; writing layers")
    image = layout.Layout(home / "oci")
    base = [
        image.add_layer(root, names, "gzip")
        for names in layout.split(root, layout.plan(root, 3), 3)
    ]
    image.add_image("v1", base, labels("1"))
    image.add_image("v2", [*base, image.add_tar(second_version(), "gzip")], labels("2"))
    for layer in base:
        debian.say(
            f"layer {layer.digest[:19]}: {layer.uncompressed >> 20} MiB, {layer.size >> 20} MiB packed"
        )
    shutil.rmtree(root)
    marker.write_text(stamp)
    return home / "oci"


if __name__ == "__main__":
    print(
        build(
            Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else debian.host_suite()
        )
    )
