"""Takes away from a worker process what it does not need before it reads an untrusted byte.

    capabilities   all of them, for good; but for a sink that stages files with their owners what that takes
    Landlock       files: read this program's code, and what name resolution and certificates need; write beneath the staging
                   directory. From ABI 4 on no TCP port to listen on, and none to connect to without the network; from 6 on no
                   signals and no abstract sockets to the outside
    seccomp        no other programs or processes, no tracing, mounting, modules, keys, clocks; without the network no sockets

All three are system calls without a library. A kernel that lacks one costs that one only, and the parent logs it. Code that
is needed later must be imported before: directories stay readable, but the bytecode of what is imported later is not kept.

Linux: landlock(7), seccomp(2), capabilities(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITIES: Final = 64
_CAPABILITY_VERSION: Final = 0x20080522
_OWNERS: Final = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 31  # chown, fowner, fsetid, setfcap

_LANDLOCK_CREATE: Final = 444
_LANDLOCK_ADD: Final = 445
_LANDLOCK_RESTRICT: Final = 446
_VERSION: Final = 1  # ask for the ABI
_BENEATH: Final = 1  # a rule for a directory
_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ: Final = 1 << 2 | 1 << 3  # files, directories
_WRITE: Final = (
    _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8
)  # remove, make directories and files
_ALL_BY_ABI: Final = (0, (1 << 13) - 1, (1 << 14) - 1, (1 << 15) - 1, (1 << 15) - 1, (1 << 16) - 1)
_TRUNCATE: Final = 1 << 14  # from ABI 3 on
_BIND: Final = 1 << 0
_CONNECT: Final = 1 << 1
_SCOPES: Final = 1 << 0 | 1 << 1  # abstract sockets, signals

_CODE: Final = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
_DEVICES: Final = ("/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/proc/self")
_NETWORK: Final = (
    *("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"),
    *("/etc/services", "/etc/protocols", "/etc/hostname", "/etc/crypto-policies", "/run/systemd"),
    *("/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates"),
    *("/usr/local/share/ca-certificates", "/var/lib/ca-certificates", "/usr/share/pki"),
)

# System calls that no import makes, by machine: a number, or None where there is no such call.
_DENIED: Final[dict[str, tuple[int, int | None]]] = {
    # name: x86_64, aarch64; those from 424 on have one number everywhere
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "quotactl": (179, 60),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
}
_SOCKETS: Final = {"socket": (41, 198), "connect": (42, 203)}
_KILL_CALL: Final = (62, 129)
_CLONE: Final = (56, 220)
_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x00010000
_AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LOAD: Final = 0x20  # BPF: a word of struct seccomp_data
_EQUAL: Final = 0x15
_GREATER_EQUAL: Final = 0x35
_SET: Final = 0x45  # any of these bits
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_KILL: Final = 0x80000000


def enter(
    writable: Iterable[int],
    readable: Iterable[int],
    *,
    network: bool,
    files: Iterable[str] = (),
    owners: bool = False,
) -> list[str]:
    """Confine this process, which has one thread, for good.

    Args:
        writable: descriptors of directories beneath which files are made, written and removed.
        readable: descriptors of directories beneath which files are read.
        network: sockets, and the files that name resolution and TLS need, stay.
        files: more files that are read.
        owners: files are given owners, modes and file capabilities.

    Returns:
        what this kernel does not have, for a log; empty: all of it took effect.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    missing = []
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("dropped capabilities", lambda: _drop_capabilities(libc, _OWNERS if owners else 0)),
        ("Landlock", lambda: _landlock(libc, writable, readable, files, network=network)),
        ("seccomp", lambda: _seccomp(libc, network=network)),
    )
    for name, work in steps:
        try:
            work()
        except OSError as problem:
            missing.append(f"{name} ({problem.strerror})")
    return missing


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- capabilities ----------------------------------------------------------------------------------------------------------


def _drop_capabilities(libc: ctypes.CDLL, kept: int) -> None:
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(
        _CAPABILITIES
    ):  # beyond what the kernel knows, and without the right to: an error
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    if kept and not os.geteuid():
        _checked(libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)))
    else:
        _checked(libc.capset(header, bytes(24)))


# --- Landlock --------------------------------------------------------------------------------------------------------------


def _landlock(
    libc: ctypes.CDLL,
    writable: Iterable[int],
    readable: Iterable[int],
    files: Iterable[str],
    *,
    network: bool,
) -> None:
    abi = _checked(libc.syscall(_LANDLOCK_CREATE, None, 0, _VERSION))
    handled = _ALL_BY_ABI[min(abi, len(_ALL_BY_ABI) - 1)]
    ports = 0 if abi < 4 else _BIND if network else _BIND | _CONNECT
    scopes = _SCOPES if abi >= 6 else 0
    attributes = struct.pack("QQQ", handled, ports, scopes)[
        : 8 if abi < 4 else 16 if abi < 6 else 24
    ]
    ruleset = _checked(libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0))
    try:
        write = (_READ | _WRITE | _TRUNCATE) & handled
        for descriptor in writable:
            _allow(libc, ruleset, descriptor, write)
        for descriptor in readable:
            _allow(libc, ruleset, descriptor, _READ)
        paths = [*_CODE, *_DEVICES, *_python(), *(_NETWORK if network else ()), *files]
        for path in dict.fromkeys(paths):
            _allow_path(libc, ruleset, path)
        _checked(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _python() -> list[str]:
    """Where the interpreter and its packages are."""
    return [*(path for path in sys.path if path), sys.prefix, sys.base_prefix]


def _allow_path(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    if path == "/":
        return
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no rule
    try:
        directory = os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: PTH112
        _allow(libc, ruleset, descriptor, _READ if directory else 1 << 2)
    finally:
        os.close(descriptor)


def _allow(libc: ctypes.CDLL, ruleset: int, descriptor: int, rights: int) -> None:
    rule = struct.pack("=Qi", rights, descriptor)
    _checked(libc.syscall(_LANDLOCK_ADD, ruleset, _BENEATH, rule, 0))


# --- seccomp ---------------------------------------------------------------------------------------------------------------


def _seccomp(libc: ctypes.CDLL, *, network: bool) -> None:
    machine = os.uname().machine
    if machine not in _AUDIT:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    program = filter_for(machine, os.getpid(), network=network)
    code = ctypes.create_string_buffer(program, len(program))
    prog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _checked(libc.prctl(_PR_SET_SECCOMP, 2, prog, 0, 0))


def filter_for(machine: str, own: int, *, network: bool) -> bytes:
    """The filter's program (struct sock_filter, one after the other) for the process ``own``, which may signal itself."""
    column = 0 if machine == "x86_64" else 1
    denied = [numbers[column] for numbers in _DENIED.values()]
    if not network:
        denied += [numbers[column] for numbers in _SOCKETS.values()]
    refuse = _ERROR | errno.EPERM
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":  # the other ABI's numbers
        steps += [(_GREATER_EQUAL, 0, 1, 0x40000000), (_RETURN, 0, 0, refuse)]
    for number in sorted(found for found in denied if found is not None):
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    steps += [
        (_EQUAL, 0, 4, _KILL_CALL[column]),
        (_LOAD, 0, 0, 16),  # the first argument's low half
        (_EQUAL, 1, 0, own),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    # the C library turns to clone, whose flags can be looked at
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    steps += [
        (_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, 16),
        (_SET, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
