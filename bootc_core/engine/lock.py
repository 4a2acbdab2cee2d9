"""One writer a sysroot: an open-file-description lock on ``SYSROOT/bootc/lock``.

The kernel drops the lock when its holder dies, so a stale one cannot exist. The file's text only says who holds it
(JSON: pid, operation, since); a lock file that was replaced while we waited is noticed by its inode number.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from bootc_core.errors import TransactionError, printable
from bootc_core.fs import atomic
from bootc_core.models.sysroot import Sysroot


def _holder(path: Path) -> str:
    try:
        value = json.loads(path.read_bytes()[:4096])
        pid, operation, since = int(value["pid"]), str(value["operation"]), str(value["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return f"pid {pid}, bootc {printable(operation, 40)}, since {printable(since, 40)}"


@contextmanager
def exclusive(sysroot: Sysroot, operation: str) -> Iterator[None]:
    """Hold the sysroot's lock for the duration.

    Raises:
        TransactionError: ``locked``, naming the holder; at once, without waiting.
        StorageError: the lock file cannot be made.
    """
    atomic.mkdir(sysroot.state, 0o755)
    path = sysroot.state / "lock"
    with atomic.mapped("open the lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        except OSError as problem:
            if problem.errno not in {errno.EAGAIN, errno.EACCES}:
                raise atomic.storage_error(problem, "lock", path) from problem
            raise TransactionError(
                f"another run is changing {sysroot.path}",
                reference="locked",
                found=_holder(path),
                hint="wait until it has ended; status works meanwhile",
                catalogue="BUSY",
            ) from None
        if os.fstat(descriptor).st_ino != path.stat().st_ino:
            raise TransactionError(
                f"the lock file {path} was replaced",
                reference="locked",
                hint="run the command again",
                catalogue="BUSY",
            )
        note = {
            "pid": os.getpid(),
            "operation": operation,
            "since": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        with atomic.mapped("write", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode() + b"\n", 0)
        yield
    finally:
        # Said, not left to the close: a child that a library forked shares the descriptor until it ends.
        with suppress(OSError):
            unlock = struct.pack("hhqqi", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, unlock)
        os.close(descriptor)
