"""Ends this process when a call that runs in it does not come back: what cannot be cancelled is ended with the run.

A deadline under trio cancels what awaits. A plugin that computes, sleeps or blocks without awaiting stops the event loop, and
with it every deadline; this thread sees that and ends the process, as a power cut would, and the next run recovers. A C function
that holds the interpreter stops this thread too: then a timer of ``faulthandler``, which needs no interpreter, does it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from bootc_core import limits

STATUS: Final = 75  # of the process, as EX_TEMPFAIL: try again
_TICK_S: Final = 1.0

_calls: dict[int, tuple[float, str]] = {}
_lock = threading.Lock()
_serial = 0
_started = False


def _watch() -> None:
    armed = False
    while True:
        time.sleep(min(_TICK_S, limits.WATCHDOG_GRACE_S))
        with _lock:
            overdue = [what for until, what in _calls.values() if time.monotonic() > until]
            busy = bool(_calls)
            if overdue:
                _end(overdue[0])
            if busy:
                faulthandler.dump_traceback_later(limits.WATCHDOG_STALL_S, exit=True, file=2)
            elif armed:
                faulthandler.cancel_dump_traceback_later()
        armed = busy


def _end(what: str) -> None:
    text = (
        f"error: {what} neither answers nor can be cancelled; this run ends here, and the next one goes on from "
        "what is on disk\n"
    )
    with suppress(OSError):
        os.write(2, text.encode())
    with suppress(OSError, ValueError):
        if os.environ.get("BOOTC_DEBUG"):
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(STATUS)


def _before_fork() -> None:
    # A timer that runs would be waited for in the child, where its thread does not exist; so would a lock that is held.
    _lock.acquire()
    faulthandler.cancel_dump_traceback_later()


def _after_fork_in_child() -> None:
    global _lock, _started
    _lock = threading.Lock()
    _calls.clear()
    _started = False


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _lock.release(),
    after_in_child=_after_fork_in_child,
)


@contextmanager
def watching(what: str, seconds: float) -> Iterator[None]:
    """End this process if the body takes longer than ``seconds`` and ``limits.WATCHDOG_GRACE_S``."""
    global _serial, _started
    with _lock:
        _serial += 1
        number = _serial
        _calls[number] = (time.monotonic() + seconds + limits.WATCHDOG_GRACE_S, what)
        if not _started:
            _started = True
            threading.Thread(target=_watch, name="bootc-watchdog", daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            del _calls[number]
