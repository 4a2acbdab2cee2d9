"""Debian root file systems as image trees: built by ``mmdebstrap`` from the host's own apt sources, then laid out for bootc.

    tree = build_root("trixie", packages, target, cache)     # mmdebstrap, package files kept in the cache
    lay_out(tree)                                            # kernel below /usr/lib/modules, /var and friends as bootc wants

No mirror is named here: ``apt-get indextargets`` says which ones this machine uses.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# What of the host's apt configuration decides whether packages can be fetched at all; mmdebstrap's own apt starts from
# nothing, so these are handed on.
_HANDED_ON = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::https::CaInfo",
    "Acquire::https::Verify-Peer",
)
# A fixed time makes initramfs and caches the same each time they are built from the same packages.
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    "SOURCE_DATE_EPOCH": "1750000000",
}
_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
DOC_FREE = (
    "usr/share/man",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
)


def say(text: str) -> None:
    """A progress line on standard error."""
    print(f"[image] {text}", file=sys.stderr, flush=True)


def host_suite() -> str:
    """The code name of the running Debian (``bookworm``, ``trixie``), or ``trixie`` where the host is something else."""
    fields = {}
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        fields[key] = value.strip('"')
    name = fields.get("VERSION_CODENAME", "")
    return name if fields.get("ID") == "debian" and _SUITE.fullmatch(name) else "trixie"


def architecture() -> str:
    """The machine as Debian spells it (``amd64``)."""
    known = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64el"}
    return known.get(platform.machine(), platform.machine())


def kernel_package() -> str:
    """The smallest kernel package of this architecture."""
    arch = architecture()
    return f"linux-image-cloud-{arch}" if arch in {"amd64", "arm64"} else f"linux-image-{arch}"


def sources(suite: str, *, updates: bool = True) -> list[str]:
    """Lines for ``sources.list`` that give ``suite`` from the mirrors this host is configured with.

    ``updates`` adds the suite's point updates and security updates where the host has a mirror of them.
    Raises SystemExit when apt knows no Debian mirror.
    """
    told = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    archive = security = None
    for line in told.splitlines():
        uri, release, component = line.split()
        if component != "main":
            continue
        if release.endswith("-security"):
            security = security or uri
        elif re.search(r"/debian/?$", uri) and not release.endswith(("-updates", "-backports")):
            archive = archive or uri
    if archive is None:
        raise SystemExit("apt has no source for Debian's main archive; see sources.list(5)")
    lines = [f"deb {archive} {suite} main"]
    if updates and suite not in {"sid", "unstable"}:
        lines.append(f"deb {archive} {suite}-updates main")
        if security is not None:
            lines.append(f"deb {security} {suite}-security main")
    return lines


def _apt_options() -> list[str]:
    """The host's network settings for apt, as mmdebstrap options."""
    query = [piece for number, key in enumerate(_HANDED_ON) for piece in (f"V{number}", key)]
    told = subprocess.run(
        ["apt-config", "shell", *query], check=True, capture_output=True, text=True
    ).stdout
    options = []
    for line in told.splitlines():
        name, _, value = line.partition("=")
        options.append(f'--aptopt={_HANDED_ON[int(name[1:])]} "{shlex.split(value)[0]}"')
    return options


def build_root(
    suite: str,
    packages: Iterable[str],
    target: Path,
    cache: Path,
    *,
    updates: bool = True,
    exclude: Sequence[str] = DOC_FREE,
    variant: str = "minbase",
    hooks: Sequence[str] = (),
) -> Path:
    """Make the root file system ``target`` of ``suite`` with ``packages``; it must not exist yet.

    Package files are taken from and kept in ``cache``, so that a second build fetches only what is new. ``exclude`` lists
    folders that dpkg leaves out; ``hooks`` are programs that get the tree's path when its packages are there.
    Needs root. Raises SystemExit with mmdebstrap's last lines when it fails.
    """
    archives = cache / "apt-archives"
    archives.mkdir(parents=True, exist_ok=True)
    log = cache / f"mmdebstrap-{target.name}.log"
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    kept = shlex.quote(str(archives))
    command = [
        "mmdebstrap",
        "--mode=root",
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *_apt_options(),
        *(f"--dpkgopt=path-exclude=/{folder}/*" for folder in exclude),
        "--skip=download/empty",
        "--skip=essential/unlink",
        '--setup-hook=mkdir -p "$1"/var/cache/apt/archives',
        f'--setup-hook=find {kept} -name "*.deb" -exec cp -l -t "$1"/var/cache/apt/archives {{}} + || true',
        *(f"--customize-hook={hook}" for hook in hooks),
        f'--customize-hook=find "$1"/var/cache/apt/archives -name "*.deb" -exec cp -n -t {kept} {{}} + || true',
        suite,
        str(partial),
        *sources(suite, updates=updates),
    ]
    say(f"mmdebstrap {suite} -> {target.name} (log: {log})")
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT},
        )
    if done.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"mmdebstrap failed ({done.returncode}):\n{last}\nwhole log: {log}")
    partial.rename(target)
    return target


def empty(directory: Path) -> None:
    """Remove what is in a directory, if it is one."""
    for entry in os.scandir(directory) if directory.is_dir() else ():
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()


def lay_out(root: Path) -> str:
    """Turn a Debian root into the layout that bootc images have; returns the kernel version.

    Kernel and initramfs go to ``/usr/lib/modules/$kver``, ``/boot`` is empty, top-level state folders are links into
    ``/var``, the package database is in ``/usr``, and nothing is left that only one machine may have (machine id, host
    name, devices).
    """
    modules = root / "usr/lib/modules"
    (version,) = [
        entry.name for entry in modules.iterdir() if (root / f"boot/vmlinuz-{entry.name}").exists()
    ]
    (root / f"boot/vmlinuz-{version}").rename(modules / version / "vmlinuz")
    (root / f"boot/initrd.img-{version}").rename(modules / version / "initramfs.img")
    lay_out_tree(root)
    return version


def lay_out_tree(root: Path) -> None:
    """All of ``lay_out`` but the kernel."""
    for name in ("vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"):
        (root / name).unlink(missing_ok=True)
    database = root / "usr/lib/sysimage/dpkg"
    database.parent.mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg").rename(database)
    for name in ("boot", "run", "tmp", "dev", "proc", "sys", "var"):
        empty(root / name)
    for name in ("home", "root", "srv", "mnt", "opt", "media", "usr/local"):
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.rmtree(root / name)
    (root / "sysroot").mkdir(exist_ok=True)
    links = {
        "ostree": "sysroot/ostree",
        "home": "var/home",
        "root": "var/roothome",
        "srv": "var/srv",
        "mnt": "var/mnt",
        "opt": "var/opt",
        "media": "run/media",
        "usr/local": "../var/usrlocal",
    }
    for name, target in links.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    (root / "var/tmp").mkdir()
    (root / "var/tmp").chmod(0o1777)
    (root / "var/lib").mkdir()
    (root / "var/lib/dpkg").symlink_to("../../usr/lib/sysimage/dpkg")
    (root / "etc/machine-id").write_bytes(b"")
    for name in ("etc/hostname", "etc/resolv.conf", "etc/.pwd.lock"):
        (root / name).unlink(missing_ok=True)
