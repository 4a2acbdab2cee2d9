"""Runs an image's hook with as few rights as the kernel can take: ``python -I -m bootc_core.containment.sandbox FD NAME``.

    nobody (root drops to it)        no file but those that everybody may read
    namespaces                       no network, no other process, every file system read-only
    bounds                           memory, processor time, processes; no new privileges, nothing left over

An ordinary user gets the same through a user namespace and stays who he is. Where the kernel refuses any of it, the hook is not
run, and says why: it is for root to decide that images have no say then.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.containment.child import PR_SET_PDEATHSIG, confine

REFUSED: Final = 126
_NOBODY: Final = 65534
_NEWNS, _NEWUSER, _NEWIPC, _NEWNET, _NEWUTS = 0x20000, 0x10000000, 0x8000000, 0x40000000, 0x4000000
_MS_REC_PRIVATE: Final = 0x4000 | 0x40000
_SYS_MOUNT_SETATTR: Final = 442  # the same number on every architecture
_AT_FDCWD, _AT_RECURSIVE, _RDONLY_NOSUID = -100, 0x8000, 0x1 | 0x2


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def isolate() -> None:
    """Leave network and all write permission behind, for this process and what it becomes.

    Raises:
        OSError: the kernel does not allow it; says what.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    apart = _NEWNS | _NEWIPC | _NEWNET | _NEWUTS
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _must(libc.unshare(apart), "make namespaces")
    else:
        _must(libc.unshare(apart | _NEWUSER), "make user namespaces")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _must(libc.mount(None, b"/", None, _MS_REC_PRIVATE, None), "detach mounts")
    attributes = _MountAttributes(_RDONLY_NOSUID, 0, 0, 0)
    _must(
        libc.syscall(
            _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE,
            ctypes.byref(attributes), ctypes.sizeof(attributes),
        ),
        "make all mounts read-only",
    )  # fmt: skip
    if user == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # another user: forgotten
    for kind, bound in (
        (resource.RLIMIT_FSIZE, limits.IMAGE_HOOK_FILE_BYTES),
        (resource.RLIMIT_NPROC, limits.IMAGE_HOOK_PROCESSES),
    ):
        resource.setrlimit(kind, (bound, bound))


def main() -> None:
    """Become the hook."""
    descriptor, name = int(sys.argv[1]), sys.argv[2]
    confine(limits.IMAGE_HOOK_MEMORY_BYTES)
    try:
        isolate()
    except OSError as problem:
        sys.stderr.write(
            f"cannot be contained on this machine ({problem.strerror}), and is not run\n"
        )
        sys.stderr.flush()
        os._exit(REFUSED)
    try:
        os.execve(f"/proc/self/fd/{descriptor}", [name], dict(os.environ))  # noqa: S606 - there is no shell
    except OSError as problem:
        sys.stderr.write(f"cannot be started: {problem.strerror}\n")
        sys.stderr.flush()
        os._exit(REFUSED)


if __name__ == "__main__":
    main()
