#!/usr/bin/python3
"""Run the ostree backend's tests with the libostree and Python of other Debian releases, each in a chroot below CACHE.

    ostree_versions.py CACHE [SUITE...] [-- PYTEST ARGUMENT...]     default: trixie sid

Without arguments for pytest the plugin's own tests and the storage contract run. Needs root and mmdebstrap; a chroot is built
once, the project is copied into it anew each time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from demo import debian  # noqa: E402 - the demonstration is no installed package

PACKAGES = ["ostree", "python3", "python3-venv", "ca-certificates", "umoci", "systemd", "mount"]
TESTS = ["tests/plugins/ostree", "tests/contract/test_ostree.py"]
HANDED_ON = ("/etc/pip.conf", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")


def say(text: str) -> None:
    """A progress line."""
    print(f"[ostree] {text}", file=sys.stderr, flush=True)


def root_of(suite: str, cache: Path) -> Path:
    """The chroot of a suite, built if it is missing."""
    root = cache / f"root-{suite}"
    if not root.exists():
        fresh = cache / f"new-{suite}"
        shutil.rmtree(fresh, ignore_errors=True)
        debian.build_root(suite, PACKAGES, fresh, cache, variant="apt")
        fresh.rename(root)
    for name in HANDED_ON:
        if Path(name).is_file():
            (root / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / name.lstrip("/")).unlink(missing_ok=True)
            shutil.copyfile(name, root / name.lstrip("/"))
    return root


def inside(root: Path, script: str, *arguments: str) -> int:
    """A shell script in the chroot with /proc, /dev and /sys, which go with its mount namespace; a mount itself, for unshare."""
    mounts = " && ".join(
        f"mount --rbind --make-rslave /{name} {root}/{name}" for name in ("proc", "dev", "sys")
    )
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec"]
    line = f'mount --bind {root} {root} && {mounts} && exec chroot {root} sh -ec "$0" inside "$@"'
    environment = {key: value for key, value in os.environ.items() if not key.startswith("BOOTC_")}
    environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    return subprocess.run(
        [*command, line, script, *arguments], check=False, env=environment
    ).returncode


def run(suite: str, cache: Path, arguments: list[str]) -> int:
    """The tests in a suite's chroot; pytest's exit status."""
    root = root_of(suite, cache)
    source = root / "tmp/src"  # in /tmp: a deployment has no other folder to see it in
    for old in source.iterdir() if source.is_dir() else ():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, source / name)
    status = inside(
        root,
        "cd /tmp/src; ostree --version | sed -n 2p; [ -d .venv ] || python3 -m venv .venv;"
        " .venv/bin/pip install -q -e .[dev]; .venv/bin/python --version;"
        ' exec .venv/bin/python -m pytest -q -p no:cacheprovider "$@"',
        *arguments,
    )
    say(f"{suite}: exit status {status}")
    return status


def main() -> int:
    """Parse arguments, run; the first exit status that is not 0."""
    words = sys.argv[1:]
    arguments = words[words.index("--") + 1 :] if "--" in words else TESTS
    words = words[: words.index("--")] if "--" in words else words
    if not words or os.geteuid() != 0:
        raise SystemExit(__doc__)
    cache = Path(words[0]).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    statuses = [run(suite, cache, arguments) for suite in words[1:] or ["trixie", "sid"]]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
