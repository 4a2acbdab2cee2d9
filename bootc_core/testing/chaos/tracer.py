"""Runs a function in a process of its own and stops it before each system call that changes a tree.

With all its threads and children: to count the calls, to kill at one, to let it fail, to falsify it.

As ``strace --inject`` does, with two differences: calls are counted over all threads and processes together (strace counts
each on its own, so that the fifth write of two threads is never reached), and only those count that change something beneath
the watched directories. The kernel stops nothing else (seccomp), so a traced run is about as fast as another.

    run(work, watch=[sysroot])                                        every such call, nothing disturbed
    run(work, watch=[sysroot], at={17: Kill()})                       the whole process tree dies before call 17
    run(work, watch=[sysroot], at={17: Fail(errno.ENOSPC, rest=True)})    call 17 and those after it fail
    run(work, watch=[sysroot], at={17: Falsify("lost")})              call 17 lies: it reports success

Linux on x86-64 only: arguments of system calls are in registers, and those are the machine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from bootc_core.errors import UnsupportedEnvironmentError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long

_CONT, _GETREGS, _SETREGS, _SYSCALL = 7, 12, 13, 24
_SEIZE, _GETEVENTMSG = 0x4206, 0x4201
_EVENT_SECCOMP: Final = 7
_EVENT_STOP: Final = 128
# system call stops marked, forks and clones followed, seccomp reported, all killed with the tracer
_OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
_WALL: Final = 0x40000000

# Name to (number, what says where: ("fd", argument), or ("path", directory argument or None, path argument))
_FD, _PATH = "fd", "path"
_CALLS: Final[Mapping[str, tuple[int, str, int | None, int]]] = {
    "write": (1, _FD, None, 0),
    "pwrite64": (18, _FD, None, 0),
    "writev": (20, _FD, None, 0),
    "pwritev": (296, _FD, None, 0),
    "pwritev2": (328, _FD, None, 0),
    "sendfile": (40, _FD, None, 0),
    "copy_file_range": (326, _FD, None, 2),
    "splice": (275, _FD, None, 2),
    "ftruncate": (77, _FD, None, 0),
    "fallocate": (285, _FD, None, 0),
    "fchmod": (91, _FD, None, 0),
    "fchown": (93, _FD, None, 0),
    "fsetxattr": (190, _FD, None, 0),
    "fremovexattr": (199, _FD, None, 0),
    "fsync": (74, _FD, None, 0),
    "fdatasync": (75, _FD, None, 0),
    "syncfs": (306, _FD, None, 0),
    "sync_file_range": (277, _FD, None, 0),
    "ioctl": (16, _FD, None, 0),
    "open": (2, _PATH, None, 0),
    "creat": (85, _PATH, None, 0),
    "openat": (257, _PATH, 0, 1),
    "openat2": (437, _PATH, 0, 1),
    "truncate": (76, _PATH, None, 0),
    "rename": (82, _PATH, None, 1),
    "renameat": (264, _PATH, 2, 3),
    "renameat2": (316, _PATH, 2, 3),
    "mkdir": (83, _PATH, None, 0),
    "mkdirat": (258, _PATH, 0, 1),
    "rmdir": (84, _PATH, None, 0),
    "unlink": (87, _PATH, None, 0),
    "unlinkat": (263, _PATH, 0, 1),
    "link": (86, _PATH, None, 1),
    "linkat": (265, _PATH, 2, 3),
    "symlink": (88, _PATH, None, 1),
    "symlinkat": (266, _PATH, 1, 2),
    "mknod": (133, _PATH, None, 0),
    "mknodat": (259, _PATH, 0, 1),
    "chmod": (90, _PATH, None, 0),
    "fchmodat": (268, _PATH, 0, 1),
    "fchmodat2": (452, _PATH, 0, 1),
    "chown": (92, _PATH, None, 0),
    "lchown": (94, _PATH, None, 0),
    "fchownat": (260, _PATH, 0, 1),
    "utimensat": (280, _PATH, 0, 1),
    "setxattr": (188, _PATH, None, 0),
    "lsetxattr": (189, _PATH, None, 0),
    "removexattr": (197, _PATH, None, 0),
    "lremovexattr": (198, _PATH, None, 0),
}
_NAMES: Final = {number: name for name, (number, *_) in _CALLS.items()}
MUTATING: Final = tuple(sorted(_CALLS))
"""What is counted: of ``open`` and ``openat`` what creates or truncates, of ``ioctl`` what is in ``_IOCTLS``."""
_CREATES: Final = (
    0x40 | 0x200 | 0x400000
)  # O_CREAT, O_TRUNC, the bit of O_TMPFILE that O_DIRECTORY lacks
# FS_IOC_SETFLAGS, FICLONE, FICLONERANGE, FS_IOC_ENABLE_VERITY, FIFREEZE, FITHAW
_IOCTLS: Final = (0x40086602, 0x40049409, 0x4020940D, 0x40806685, 0xC0045877, 0xC0045878)
WRITES: Final = ("write", "pwrite64")
"""What ``Falsify`` can falsify."""
_AT_FDCWD: Final = -100


@dataclass(frozen=True, slots=True)
class Call:
    """One system call on the tree.

    Attributes:
        number: from 1, over all threads and processes.
        name: of the system call.
        path: what it changes.
        own: made by the process itself, not by one that it started.
    """

    number: int
    name: str
    path: str
    own: bool

    def __str__(self) -> str:
        where = "" if self.own else " (in a child)"
        return f"{self.number} {self.name} {self.path}{where}"


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL for everything; ``alone``: only for the process that makes the call."""

    alone: bool = False


@dataclass(frozen=True, slots=True)
class Fail:
    """The call is not made and returns this error; with ``rest``, so do all calls after it."""

    errno: int
    rest: bool = False


@dataclass(frozen=True, slots=True)
class Falsify:
    """A write that reports success: ``lost`` writes nothing, ``short`` half, ``flipped`` with one bit changed."""

    kind: Literal["lost", "short", "flipped"]


Action = Kill | Fail | Falsify


@dataclass(slots=True)
class Result:
    """How a traced run ended.

    Attributes:
        status: exit status; -N if signal N ended it.
        calls: what was counted, in order.
        stdout, stderr: what it wrote.
        timed_out: it was ended at its deadline.
    """

    status: int
    calls: list[Call] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False


class _Registers(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_ulonglong)
        for name in (
            *(
                "r15",
                "r14",
                "r13",
                "r12",
                "rbp",
                "rbx",
                "r11",
                "r10",
                "r9",
                "r8",
                "rax",
                "rcx",
                "rdx",
                "rsi",
                "rdi",
            ),
            *(
                "orig_rax",
                "rip",
                "cs",
                "eflags",
                "rsp",
                "ss",
                "fs_base",
                "gs_base",
                "ds",
                "es",
                "fs",
                "gs",
            ),
        )
    )


_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


def require() -> None:
    """Refuse a machine whose registers we do not know.

    Raises:
        UnsupportedEnvironmentError: not Linux on x86-64.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UnsupportedEnvironmentError(
            "system calls can be traced on x86-64 only",
            reference="unsupported-environment",
            found=platform.machine(),
        )


# --- the filter: the kernel stops at calls that may matter --------------------------------------------------------


def _filter() -> bytes:
    """A seccomp program (struct sock_filter: code, jt, jf, k)."""
    allow, trace = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FF00000)

    def load(offset: int) -> tuple[int, int, int, int]:
        return (0x20, 0, 0, offset)

    def equal(value: int, yes: int, no: int) -> tuple[int, int, int, int]:
        return (0x15, yes, no, value)

    program = [load(4), equal(0xC000003E, 1, 0), allow, load(0)]
    for name, offset in (("open", 24), ("openat", 32)):
        program += [
            equal(_CALLS[name][0], 0, 4),
            load(offset),
            (0x45, 0, 1, _CREATES),
            trace,
            allow,
        ]
    program.append(equal(_CALLS["ioctl"][0], 0, 2 + 2 * len(_IOCTLS)))
    program.append(load(24))
    for command in _IOCTLS:
        program += [equal(command, 0, 1), trace]
    program.append(allow)
    for name, (number, *_) in _CALLS.items():
        if name not in {"open", "openat", "ioctl"}:
            program += [equal(number, 0, 1), trace]
    program.append(allow)
    return b"".join(struct.pack("<HBBI", *one) for one in program)


def _install_filter() -> None:
    program = _filter()
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("<H6xQ", len(program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(38, 1, 0, 0, 0) != 0 or _libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


# --- the tracer -----------------------------------------------------------------------------------------------------


class _Tracer:
    def __init__(self, child: int, watch: Sequence[Path], at: Mapping[int, Action]) -> None:
        self.child, self.at = child, at
        self.roots = tuple(os.path.realpath(path) for path in watch)
        self.alive = {child}
        self.calls: list[Call] = []
        self.failing: Fail | None = None
        self.restore: dict[int, Callable[[], None]] = {}
        self.status = 0

    def loop(self) -> None:
        while self.alive:
            pid, status = os.waitpid(-1, _WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                self.alive.discard(pid)
                if pid == self.child:
                    self.status = os.waitstatus_to_exitcode(status)
                continue
            self.alive.add(pid)
            number, event = os.WSTOPSIG(status), status >> 16
            if event == _EVENT_SECCOMP:
                self._at_call(pid)
            elif number == signal.SIGTRAP | 0x80:
                self.restore.pop(pid, lambda: None)()
                self._go(pid)
            else:
                self._go(pid, 0 if event else number)

    def kill_all(self) -> None:
        for pid in list(self.alive):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                self.alive.discard(pid)

    @staticmethod
    def _go(pid: int, number: int = 0, request: int = _CONT) -> None:
        _libc.ptrace(request, pid, None, number)  # it may be gone

    def _at_call(self, pid: int) -> None:
        registers = _Registers()
        if _libc.ptrace(_GETREGS, pid, None, ctypes.byref(registers)) != 0:
            return self._go(pid)
        name = _NAMES.get(registers.orig_rax)
        path = self._where(pid, name, registers) if name else None
        if name is None or path is None:
            return self._go(pid)
        call = Call(len(self.calls) + 1, name, path, _process_of(pid) == self.child)
        self.calls.append(call)
        action = self.at.get(call.number, self.failing)
        match action:
            case Kill(alone=True):
                os.kill(pid, signal.SIGKILL)
            case Kill():
                self.kill_all()
            case Fail(errno=number, rest=rest):
                self.failing = action if rest else self.failing
                registers.orig_rax = ctypes.c_ulonglong(-1).value
                registers.rax = ctypes.c_ulonglong(-number).value
                _libc.ptrace(_SETREGS, pid, None, ctypes.byref(registers))
                self._go(pid)
            case Falsify(kind=kind) if name in WRITES:
                self._falsify(pid, registers, kind)
            case _:
                self._go(pid)
        return None

    def _falsify(self, pid: int, registers: _Registers, kind: str) -> None:
        length = int(registers.rdx)
        if kind == "lost" or length == 0:
            registers.orig_rax, registers.rax = ctypes.c_ulonglong(-1).value, length
            _libc.ptrace(_SETREGS, pid, None, ctypes.byref(registers))
            return self._go(pid)
        if kind == "short":
            registers.rdx = length // 2
            _libc.ptrace(_SETREGS, pid, None, ctypes.byref(registers))

            def undo() -> None:
                after = _Registers()
                _libc.ptrace(_GETREGS, pid, None, ctypes.byref(after))
                after.rax = length
                _libc.ptrace(_SETREGS, pid, None, ctypes.byref(after))

        else:
            place = int(registers.rsi) + length // 2
            byte = _peek(pid, place, 1)
            _poke(pid, place, bytes((byte[0] ^ 0x10,)))

            def undo() -> None:
                _poke(pid, place, byte)

        self.restore[pid] = undo
        return self._go(pid, request=_SYSCALL)

    def _where(self, pid: int, name: str, registers: _Registers) -> str | None:
        """What the call changes, if that is beneath what is watched."""
        _, kind, directory, position = _CALLS[name]
        values = [int(getattr(registers, one)) for one in _ARGUMENTS]
        try:
            if name == "openat2" and not _peek_int(pid, values[2]) & _CREATES:
                return None
            if kind == _FD:
                path = _link(f"/proc/{pid}/fd/{ctypes.c_int(values[position]).value}")
            else:
                path = os.fsdecode(_peek_text(pid, values[position]))
                if not path.startswith("/"):
                    base = _AT_FDCWD if directory is None else ctypes.c_int(values[directory]).value
                    link = "cwd" if base == _AT_FDCWD else f"fd/{base}"
                    above = _link(f"/proc/{pid}/{link}")
                    path = f"{above}/{path}" if path else above
                elif path.startswith("/proc/self/fd/"):
                    path = _link(f"/proc/{pid}/fd/{path.rpartition('/')[2]}")
        except (OSError, ValueError):
            return None
        path = os.path.normpath(path)
        return (
            path
            if any(path == root or path.startswith(f"{root}/") for root in self.roots)
            else None
        )


def _link(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115 - as text, thousands of times


def _process_of(thread: int) -> int:
    try:
        with open(f"/proc/{thread}/status", "rb") as file:  # noqa: PTH123 - thousands of times
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    return thread


def _peek(pid: int, address: int, size: int) -> bytes:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return os.pread(descriptor, size, address)
    finally:
        os.close(descriptor)


def _poke(pid: int, address: int, data: bytes) -> None:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    try:
        os.pwrite(descriptor, data, address)
    finally:
        os.close(descriptor)


def _peek_int(pid: int, address: int) -> int:
    return int(struct.unpack("<Q", _peek(pid, address, 8))[0])


def _peek_text(pid: int, address: int) -> bytes:
    data = b""
    while b"\0" not in data and len(data) < 4096:
        room = 4096 - (address + len(data)) % 4096  # never across the end of a mapping
        data += _peek(pid, address + len(data), room)
    return data.partition(b"\0")[0]


def run(
    work: Callable[[], int],
    *,
    watch: Sequence[Path] = (),
    at: Mapping[int, Action] | None = None,
    traced: bool = True,
    timeout_s: float = 120.0,
) -> Result:
    """Run ``work`` in a forked process and do ``at[n]`` at its n-th call on the tree.

    This process must have no other children and one thread.

    Args:
        work: returns an exit status; nothing that it does stays in this process.
        watch: directories; calls that change something beneath them count.
        at: number of a call (from 1) to what happens instead.
        traced: False: only run it, count nothing.
        timeout_s: then all of it is killed.

    Raises:
        UnsupportedEnvironmentError: no x86-64.
    """
    require()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        go, begin = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(begin)
            _child(work, go, out.fileno(), err.fileno(), traced)
        os.close(go)
        tracer = _Tracer(child, watch, at or {})
        timed_out = False

        def expire(*_: object) -> None:
            nonlocal timed_out
            timed_out = True
            tracer.kill_all()

        if traced and _libc.ptrace(_SEIZE, child, None, _OPTIONS) != 0:
            number = ctypes.get_errno()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise OSError(number, f"ptrace: {os.strerror(number)}")
        before = signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            os.close(begin)
            if traced:
                tracer.loop()
            else:
                _, status = os.waitpid(child, 0)
                tracer.status = os.waitstatus_to_exitcode(status)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            tracer.kill_all() if traced else None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Result(tracer.status, tracer.calls, texts[0], texts[1], timed_out)


def _child(work: Callable[[], int], go: int, out: int, err: int, traced: bool) -> None:
    status = 70
    try:
        os.read(go, 1)
        os.close(go)
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir("/")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if traced:
            _install_filter()
        status = work()
    except SystemExit as problem:
        status = problem.code if isinstance(problem.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
