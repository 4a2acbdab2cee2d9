"""Ends what this process started when it is killed: a shell that waits for the end of a pipe only this process holds.

    this process ──"+ GROUP", "- GROUP"──▶ sh, in a session of its own
         ✝                                  end of input: KILL to every group that was not taken back

PR_SET_PDEATHSIG would have to be set between fork and exec, where Python code is not safe beside threads; it also follows the
thread that started a program and spares what that program started. A process group has neither problem. What puts itself into a
group of its own is not followed, as at a deadline.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

log = logging.getLogger("bootc.process")

_SHELL: Final = "/bin/sh"
_PROGRAM: Final = """
groups=' '
while read -r sign group; do
    case $sign in
    +) groups="$groups$group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"""

_lock = threading.Lock()
_groups: set[int] = set()
_pipe = -1


def _start() -> None:
    global _pipe
    if _pipe >= 0:
        os.close(_pipe)
    read, _pipe = os.pipe()  # neither is inherited by a program
    try:
        os.posix_spawn(
            _SHELL,
            ["bootc-undertaker", "-c", _PROGRAM],
            {"PATH": "/usr/bin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(read)
    for group in _groups:
        os.write(_pipe, b"+ %d\n" % group)


def _tell(sign: bytes, group: int) -> None:
    try:
        if _pipe < 0:
            _start()
        else:
            try:
                os.write(_pipe, b"%b %d\n" % (sign, group))
            except BrokenPipeError:  # somebody ended it
                _start()
    except OSError as problem:  # no shell, no descriptors: programs run all the same
        log.info("what this run starts would survive it: %s", problem)


def prepare() -> None:
    """Before a program is started, so that only a moment is left between its start and `add`."""
    with _lock:
        if _pipe < 0:
            _tell(b"", 0)


def add(group: int) -> None:
    """From now on the process group ends if this process is killed."""
    with _lock:
        _groups.add(group)
        _tell(b"+", group)


def remove(group: int) -> None:
    """The group has ended, and its number may come to belong to others."""
    with _lock:
        if group in _groups:
            _groups.discard(group)
            _tell(b"-", group)


def _after_fork_in_child() -> None:
    """A forked child is not what the groups belong to, and must not keep the pipe open."""
    global _lock, _pipe
    _lock = threading.Lock()
    _groups.clear()
    if _pipe >= 0:
        os.close(_pipe)
        _pipe = -1


os.register_at_fork(after_in_child=_after_fork_in_child)
