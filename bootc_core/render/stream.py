"""Messages to a stream that nobody may be reading: closed, broken or full, none of that is the failure of an update."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from typing import Final, TextIO

PATIENCE_S: Final = (
    0.5  # for a reader that has fallen behind; after that lines are dropped until it reads again
)
_stuck: set[int] = set()


def tell(stream: TextIO, text: str) -> None:
    """Write ``text`` if that does not block for long; otherwise it is lost. Never raises."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        number = -1  # not a file: an io.StringIO
    try:
        if number >= 0 and not _takes(number):
            return
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        return


def _takes(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    ready = bool(poll.poll(0 if number in _stuck else PATIENCE_S * 1000))
    (_stuck.discard if ready else _stuck.add)(number)
    return ready


def repair() -> None:
    """Give the standard streams that were closed before the program began a place: nothing of ours may get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - as long as the process


def abandon(number: int) -> None:
    """From now on standard output (1) or error (2) goes nowhere: flushing it at the end fails nothing any more."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(null, number)
    finally:
        os.close(null)
