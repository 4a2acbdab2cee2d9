"""Linux's own FAT driver where the machine's kernel has none: user-mode Linux, an ordinary process that mounts the recorded disk.

The guest's root is the machine's (hostfs), so it runs this Python with the same packages; its first process is this module.

    machine                                     guest
    base.raw, recorded as export.raw ─virtio─▶ /dev/vda1 vfat, /dev/vda2 root; the command runs here
    result.json                       ◀──────── exit status, and how long the log was before and after
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bootc_core.errors import UnsupportedEnvironmentError
from bootc_core.testing.chaos import defects, disk

if TYPE_CHECKING:
    from bootc_core.testing.chaos.bench import Bench, Command
    from bootc_core.testing.chaos.disk import Layout
    from bootc_core.testing.chaos.power import Recording

PROGRAM: Final = "linux.uml"
_MODULES: Final = (
    "fs/fat/fat",
    "fs/nls/nls_cp437",
    "fs/nls/nls_ascii",
    "fs/nls/nls_iso8859-1",
    "fs/fat/vfat",
    "drivers/block/virtio_blk",
)
_TIMEOUT_S: Final = 300
_libc = ctypes.CDLL(None, use_errno=True)


def require() -> None:
    """Refuse a machine without it.

    Raises:
        UnsupportedEnvironmentError: names the Debian package.
    """
    if shutil.which(PROGRAM) is None:
        raise UnsupportedEnvironmentError(
            "FAT needs user-mode Linux",
            reference="unsupported-environment",
            hint="apt-get install user-mode-linux",
        )


def record(
    bench: Bench,
    command: Command,
    layout: Layout,
    base: Path,
    log: Path,
    export: Path,
    drop: int,
) -> Recording:
    """As ``power.record``, with the command in the guest.

    Raises:
        AssertionError: the command or the guest fails.
    """
    from bootc_core.testing.chaos.power import Recording

    require()
    before = base.with_name("before.raw")
    with disk.recorded(base, log, export, socket=True):
        run(bench, command, layout, export, log=None, drop=0)
    disk.copy(base, before)
    with disk.recorded(base, log, export, socket=True):
        found = run(bench, command, layout, export, log=log, drop=drop)
    return Recording(before, log, found["begun"], found["done"], bench.place)


def run(
    bench: Bench, command: Command, layout: Layout, image: Path, *, log: Path | None, drop: int
) -> dict[str, Any]:
    """Bring the host to the state before the command (no ``log``), or run the command, in the guest."""
    place = bench.place / "guest"
    place.mkdir(exist_ok=True)
    result, task = place / "result.json", place / "task.json"
    result.unlink(missing_ok=True)
    value = {
        "place": str(bench.place),
        "subject": bench.subject.source,
        "installed": bench.subject.installed,
        "command": command.name,
        "root": layout.root,
        "log": str(log) if log else None,
        "drop": drop,
        "defect": next(
            (name for name, change in defects.DEFECTS.items() if change is bench.defect), None
        ),
        "result": str(result),
    }
    task.write_text(json.dumps(value))
    # of the machine's /dev the guest sees nothing until ``main`` has mounted it
    first = Path("/run", f"bootc-chaos-{os.getpid()}")
    first.write_text(f"#!/bin/sh\nexec {sys.executable} -m bootc_core.testing.chaos.guest {task}\n")
    first.chmod(0o755)
    done = subprocess.run(
        [
            PROGRAM,
            "mem=1200M",
            f"virtio_uml.device={image}:2",
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet"),
            *(f"init={first}", f"uml_dir={place}/"),
            *("con=null", "con0=null,fd:1"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/", "TMPDIR": str(place)},
    )
    first.unlink()
    found: dict[str, Any] = {}
    if result.exists():
        found = json.loads(result.read_text())
    if found.get("status") != 0:
        raise AssertionError(f"the guest failed: {found.get('text', '')}\n{done.stdout[-1500:]}")
    return found


# --- in the guest ------------------------------------------------------------------------------------------------------


def _load_modules() -> None:
    release = os.uname().release
    for name in _MODULES:
        descriptor = os.open(f"/usr/lib/uml/modules/{release}/kernel/{name}.ko", os.O_RDONLY)
        _libc.syscall(313, descriptor, b"", 0)  # finit_module
        os.close(descriptor)


def _work(task: dict[str, Any]) -> dict[str, Any]:
    from bootc_core.testing.chaos import tracer
    from bootc_core.testing.chaos.bench import COMMANDS, Bench
    from bootc_core.testing.chaos.subject import load

    place = Path(task["place"])
    command = COMMANDS[task["command"]]
    subject = load(Path(task["subject"]), Path(task["installed"]))
    bench = Bench(place, subject, defects.DEFECTS.get(task["defect"] or ""))
    root = bench.root
    root.mkdir(exist_ok=True)
    disk.mount("/dev/vda2", root, task["root"])
    (root / "boot").mkdir(exist_ok=True)
    disk.mount("/dev/vda1", root / "boot", "vfat", options=b"fmask=0077,dmask=0077")
    log = Path(task["log"]) if task["log"] else None
    found: dict[str, Any] = {"status": 0}
    try:
        if log is None:
            bench.advance(command)
        else:
            bench.serve(bench.served(command))
            begun = disk.entries(log)
            done = tracer.run(bench.work(command.name, drop=task["drop"]), traced=False)
            found = {
                "status": done.status,
                "text": done.stderr,
                "begun": begun,
                "done": disk.entries(log),
            }
    finally:
        disk.unmount(root / "boot")
        disk.unmount(root)
    return found


def main(path: str) -> None:
    """The guest's first process: mount, work, leave the result, power off."""
    disk.mount("proc", Path("/proc"), "proc")
    disk.mount("sysfs", Path("/sys"), "sysfs")
    disk.mount("tmpfs", Path("/run"), "tmpfs")
    memory = Path("/dev/shm")  # noqa: S108 - the machine's, for the benches in it
    memory.mkdir(exist_ok=True)
    disk.mount("none", memory, "hostfs", options=os.fsencode(memory))
    os.environ.update(HOME="/", PATH="/usr/sbin:/usr/bin:/sbin:/bin", LANG="C.UTF-8")
    task = json.loads(Path(path).read_text())
    try:
        _load_modules()
        # or the guest's kernel takes the disk for one without a cache, and sends it no flush
        Path("/sys/block/vda/cache_type").write_text("write back")
        found = _work(task)
    except BaseException:
        found = {"status": 1, "text": traceback.format_exc()}
    Path(task["result"]).write_text(json.dumps(found))
    os.sync()
    _libc.reboot(0x4321FEDC)


if __name__ == "__main__":
    main(sys.argv[1])
