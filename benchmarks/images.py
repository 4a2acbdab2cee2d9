#!/usr/bin/python3
"""Build the benchmark's image: a real Debian of about 1 GB in 10 layers, packed with gzip and with zstd.

    images.py CACHE        # -> CACHE/oci-gzip and CACHE/oci-zstd, each with the names v1 and v1b

v1 is trixie as released; v2 (not kept) the same packages with all point and security updates. Layer 0 is the kernel, 1 to 8
share the packages, 9 is what no package owns. v1b is v1 with the last two layers of v2: an update of 2 of 10 layers.
Needs root, mmdebstrap, gzip and zstd, about 8 GB, and some ten minutes; done once.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import debian, layout

LAYERS = 10
SUITE = "trixie"
PACKAGES = """
    initramfs-tools systemd systemd-sysv systemd-boot udev dbus python3 python3-pip python3-yaml
    python3-cryptography podman buildah skopeo ostree crun netavark aardvark-dns openssh-server
    network-manager nftables vim git curl jq rsync tmux man-db less locales ca-certificates sudo
    bash-completion btrfs-progs xfsprogs dosfstools lvm2 cryptsetup tpm2-tools fwupd cockpit strace
    gdb perl gnupg tzdata kbd pciutils usbutils iproute2 iputils-ping firmware-linux-free chrony
    polkitd apt-utils file zstd docbook-xsl erofs-utils mdadm nfs-common cifs-utils ethtool tcpdump
    lsof socat psmisc bind9-dnsutils wget linux-perf
""".split()  # noqa: SIM905 - a block of names is easier to read and to change


def build(cache: Path) -> None:
    """Make what is missing of the two layouts below ``cache``."""
    if (cache / "built").exists():
        debian.say(f"cached: {cache}")
        return
    cache.mkdir(parents=True, exist_ok=True)
    packages = [*PACKAGES, f"linux-image-{debian.architecture()}"]
    trees = {}
    for version, updates in (("v1", False), ("v2", True)):
        tree = cache / f"root-{version}"
        if not tree.exists():
            fresh = cache / f"new-{version}"
            shutil.rmtree(fresh, ignore_errors=True)
            debian.build_root(
                SUITE, packages, fresh, cache, updates=updates, exclude=(), variant="important"
            )
            debian.say(f"{version}: kernel {debian.lay_out(fresh)}")
            fresh.rename(tree)
        trees[version] = layout.split(tree, layout.plan(cache / "root-v1", LAYERS), LAYERS)
    for compression in ("gzip", "zstd"):
        directory = cache / f"oci-{compression}"
        shutil.rmtree(directory, ignore_errors=True)
        image = layout.Layout(directory)
        old = [image.add_layer(cache / "root-v1", names, compression) for names in trees["v1"]]
        new = [image.add_layer(cache / "root-v2", names, compression) for names in trees["v2"][-2:]]
        for name, layers in (("v1", old), ("v1b", [*old[:-2], *new])):
            labels = {"containers.bootc": "1", "org.opencontainers.image.version": name}
            image.add_image(name, layers, labels)
        for layer in (*old, *new):
            debian.say(
                f"{layer.digest[:19]} {layer.uncompressed >> 20} MiB -> {layer.size >> 20} MiB"
            )
    for version in ("v1", "v2"):
        shutil.rmtree(cache / f"root-{version}")
    (cache / "built").touch()


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
