#!/usr/bin/python3
"""Build the two versions of the virtual machine's image: a small Debian that has bootc in it, as one OCI layout.

    vm/image.py CACHE [SUITE]      # -> CACHE/SUITE/oci with the names v1 and v2

v1 is Debian with kernel, systemd-boot, GRUB, ostree and this program. v2 has another kernel, changed, added and removed
files, and other defaults in ``/etc``. No container engine is needed: mmdebstrap, and the script that container builds use
for the program (``packaging/install-program.sh``). Debian's part is built once; what changes with this repository is put on top
each time. Needs root.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo import debian, layout

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SUITE = "trixie"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "dracut",
    "ostree",
    "ostree-boot",
    "python3",
    "python3-venv",
    "e2fsprogs",
    "fsverity",
    "zstd",
    "systemd-boot-efi",
    "systemd-boot-tools",
    "grub-efi-amd64-bin",
    "ca-certificates",
)
# What costs most under software emulation, and what would make a test wait for the network
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-rfkill.socket",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
)
KARGS = b"""kargs = ["console=ttyS0", "quiet", "systemd.show_status=0", "mitigations=off", "audit=0", "no_timer_check"]
"""
_NEWEST_KERNELS = """
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
pattern='^linux-image-[0-9][^-]*-cloud-amd64$'
kernels=$(apt-cache pkgnames linux-image- | grep -E "$pattern" | sort -V | tail -n 2)
apt-get -y -oDPkg::Chroot-Directory="$1" install $kernels
"""


def stamp(*values: object) -> str:
    """A short hash of texts and files; of directories, of all that is in them."""
    found = hashlib.sha256()
    for value in values:
        if not isinstance(value, Path):
            found.update(repr(value).encode())
            continue
        for path in sorted(value.rglob("*")) if value.is_dir() else [value]:
            if path.is_file() and "__pycache__" not in path.parts:
                found.update(str(path.relative_to(REPOSITORY)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def base(cache: Path, suite: str) -> Path:
    """Debian's part: a root laid out for bootc, with two kernels in ``usr/lib/modules``."""
    home = cache / suite
    wanted = stamp(PACKAGES, _NEWEST_KERNELS, Path(debian.__file__))
    marker, root = home / "base.built", home / "base"
    if marker.exists() and marker.read_text() == wanted:
        debian.say(f"cached: {root}")
        return root
    shutil.rmtree(root, ignore_errors=True)
    home.mkdir(parents=True, exist_ok=True)
    hook = home / "kernels.sh"
    hook.write_text(f"#!/bin/sh\nset -e\n{_NEWEST_KERNELS}")
    hook.chmod(0o755)
    os.environ["INITRD"] = "No"  # dracut runs when everything is in place
    debian.build_root(suite, PACKAGES, root, cache, hooks=[str(hook)])
    for vmlinuz in (root / "boot").glob("vmlinuz-*"):
        vmlinuz.rename(root / "usr/lib/modules" / vmlinuz.name.removeprefix("vmlinuz-") / "vmlinuz")
    debian.lay_out_tree(root)
    marker.write_text(wanted)
    return root


def kernels(root: Path) -> list[str]:
    """Releases of the kernels, oldest first."""

    def key(name: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", name)]

    return sorted(os.listdir(root / "usr/lib/modules"), key=key)


def chroot(root: Path, *command: str) -> None:
    """Run a command of the image, with kernel file systems, in a mount namespace of its own."""
    script = """
        for d in proc dev sys; do mount --rbind /$d "$0/$d"; done
        mount -t tmpfs run "$0/run"; mount -t tmpfs tmp "$0/tmp"
        exec chroot "$0" "$@" """
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-euc", script, str(root), *command]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def initramfs(root: Path, kernel: str) -> None:
    """An initramfs for any machine, with the modules that mount both kinds of roots."""
    target = f"/usr/lib/modules/{kernel}/initramfs.img"
    modules = "base systemd systemd-initrd dracut-systemd udev-rules rootfs-block fs-lib usrmount shutdown ostree bootc"
    drivers = "virtio_blk virtio_pci virtio_scsi sd_mod ext4 xfs btrfs overlay erofs loop vfat nls_ascii nls_cp437"
    chroot(
        root,
        *("dracut", "--force", "--no-hostonly", "--no-hostonly-cmdline", "--reproducible"),
        *("--compress", "zstd -6", "--modules", modules, "--add-drivers", drivers),
        *("--kver", kernel, target),
    )


def write(root: Path, name: str, content: bytes) -> None:
    """A file of the image."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)


def second(old: str, new: str) -> list[layout.Member]:
    """The members of v2's own layer, besides its kernel."""
    return [
        layout.Member("etc/vm-default", b"default of version 2\n"),
        layout.Member("etc/vm-edited", b"from version 2\n"),
        layout.Member("usr/lib/modules", mode=0o755),
        layout.Member(f"usr/lib/modules/.wh.{old}", b""),
        layout.Member("usr/lib/vm", mode=0o755),
        layout.Member("usr/lib/vm/.wh.retired", b""),
        layout.Member("usr/lib/vm/added", f"with kernel {new}\n".encode()),
        layout.Member("usr/lib/vm/version", b"2\n"),
        layout.Member("usr/lib/bootc/kargs.d/20-vm.toml", b'kargs = ["vm.version=2"]\n'),
    ]


def hanging() -> list[layout.Member]:
    """The members of an update whose boot never gets as far as its services; it has two minutes for that."""
    units = "usr/lib/systemd/system"
    service = b"""[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sleep infinity
"""
    return [
        layout.Member("usr/lib/vm/version", b"hang\n"),
        layout.Member(f"{units}/vm-hang.service", service),
        layout.Member(f"{units}/sysinit.target.wants/vm-hang.service", link="../vm-hang.service"),
        layout.Member(f"{units}/bootc-boot-deadline.timer.d", mode=0o755),
        layout.Member(
            f"{units}/bootc-boot-deadline.timer.d/vm.conf", b"[Timer]\nOnBootSec=\nOnBootSec=120\n"
        ),
    ]


def unhealthy() -> list[layout.Member]:
    """The members of an update that boots, and whose own health check says no."""
    check = b"#!/bin/sh\necho the heart does not beat\nexit 1\n"
    return [
        layout.Member("usr/lib/vm/version", b"sick\n"),
        layout.Member("usr/lib/bootc/health.d", mode=0o755),
        layout.Member("usr/lib/bootc/health.d/50-vm", check, mode=0o755),
    ]


def labels(version: str) -> dict[str, str]:
    """The labels that make an image bootable, and its version."""
    return {
        "containers.bootc": "1",
        "ostree.bootable": "1",
        "org.opencontainers.image.title": "Debian with bootc for virtual machines",
        "org.opencontainers.image.version": version,
    }


def system(home: Path, untouched: Path) -> tuple[list[str], dict[str, layout.Layer]]:
    """Everything but the program: releases of the kernels, and the layers, of which the two newest kernels have their own."""
    parts = ("packaging/dracut", "packaging/systemd", "packaging/initramfs-setup", "vm/guest")
    sources = [REPOSITORY / name for name in (*parts, "packaging/install-system.sh", "vm/image.py")]
    wanted = stamp((home / "base.built").read_text(), *sources, Path(layout.__file__))
    marker, root = home / "system.json", home / "root"
    if marker.exists() and (known := json.loads(marker.read_text()))["stamp"] == wanted:
        return known["kernels"], {
            name: layout.Layer(**values) for name, values in known["layers"].items()
        }
    marker.unlink(missing_ok=True)
    for directory in (root, home / "oci"):
        shutil.rmtree(directory, ignore_errors=True)
    subprocess.run(["cp", "-a", str(untouched), str(root)], check=True)
    old, new = kernels(root)[-2:]
    subprocess.run([str(REPOSITORY / "packaging/install-system.sh"), str(root)], check=True)
    subprocess.run(
        ["cp", "-r", "--no-preserve=ownership", f"{HERE}/guest/.", str(root)], check=True
    )
    chroot(root, "systemctl", "enable", "systemd-networkd", "vm-shell", "vm-marker")
    chroot(root, "systemctl", "mask", *MASKED)
    chroot(root, "passwd", "-d", "root")
    for kernel in (old, new):
        debian.say(f"initramfs of {kernel}")
        initramfs(root, kernel)
    write(root, "usr/lib/bootc/kargs.d/10-vm.toml", KARGS)
    write(root, "usr/lib/bootc/kargs.d/20-vm.toml", b'kargs = ["vm.version=1"]\n')
    write(root, "usr/lib/vm/version", b"1\n")
    write(root, "usr/lib/vm/retired", b"in version 1 only\n")
    write(root, "etc/vm-default", b"default of version 1\n")
    write(root, "etc/vm-edited", b"from version 1\n")
    write(root, "etc/hosts", b"127.0.0.1 localhost\n")
    (root / "etc/machine-id").write_bytes(b"")
    for name in ("var", "run", "tmp"):
        debian.empty(root / name)
    (root / "var/tmp").mkdir()
    (root / "var/tmp").chmod(0o1777)
    image = layout.Layout(home / "oci")
    groups: dict[str, list[str]] = {"system": [], old: [], new: []}
    for name, _ in layout.walk(root):
        where = next((one for one in (old, new) if name.startswith(f"usr/lib/modules/{one}")), "")
        groups[where or "system"].append(name)
    layers = {key: image.add_layer(root, names, "gzip") for key, names in groups.items()}
    for key, layer in layers.items():
        debian.say(f"layer {key}: {layer.uncompressed >> 20} MiB, {layer.size >> 20} MiB packed")
    told = {"stamp": wanted, "kernels": [old, new]}
    values = {name: dataclasses.asdict(layer) for name, layer in layers.items()}
    marker.write_text(json.dumps({**told, "layers": values}))
    return [old, new], layers


def build(cache: Path, suite: str = SUITE) -> Path:
    """The layout with v1 and v2, made if anything in it has changed, unless ``VM_STALE`` is set."""
    home = cache / suite
    if "VM_STALE" in os.environ and (home / "built").exists():
        return home / "oci"
    untouched = base(cache, suite)
    (old, new), layers = system(home, untouched)
    marker, root = home / "built", home / "root"
    sources = [REPOSITORY / name for name in ("bootc_core", "plugins", "pyproject.toml")]
    wanted = stamp((home / "system.json").read_text(), *sources, REPOSITORY / "packaging")
    if marker.exists() and marker.read_text() == wanted:
        debian.say(f"cached: {home / 'oci'}")
        return home / "oci"
    marker.unlink(missing_ok=True)
    debian.say("the program")
    subprocess.run(
        [str(REPOSITORY / "packaging/install-program.sh"), str(root)],
        check=True,
        env={**os.environ, "PIP": f"{sys.executable} -m pip"},
    )
    image = layout.Layout(home / "oci")
    program = [
        name
        for name, _ in layout.walk(root)
        if name.startswith(("usr/lib/bootc/python", "usr/bin/bootc"))
    ]
    first = [layers["system"], layers[old], image.add_layer(root, program, "gzip")]
    image.add_image("v1", first, labels("1"))
    update = image.add_tar(second(old, new), "gzip")
    image.add_image("v2", [*first, update, layers[new]], labels("2"))
    for name, members in (("hang", hanging()), ("sick", unhealthy())):
        image.add_image(name, [*first, image.add_tar(members, "gzip")], labels(name))
    marker.write_text(wanted)
    return home / "oci"


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else SUITE))
