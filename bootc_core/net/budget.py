"""What a command may take of the line: a rate and a number of bytes, shared by all processes that download for it.

    free_at   seconds (CLOCK_MONOTONIC, one for all processes) when the line is free again     rate: a token bucket
    used      bytes that were taken so far                                                      most: a budget

Both numbers lie in a memory file that worker processes inherit; a record lock makes taking atomic. A command installs its
limits before it begins (a context variable, so trio's tasks have them); without any, nothing is counted and nothing costs.
Standard library only: worker processes import this.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import struct
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import TransportError, UsageError, printable

_STATE: Final = struct.Struct("<dQ")
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: Final = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_AMOUNT: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?\s*([KMGT]?I?)B?(?:/S)?", re.ASCII)
_BURST_S: Final = (
    0.25  # of the rate that may be caught up after a pause: a busy machine wakes up late
)
_PIECE_S: Final = 0.05  # of the rate that is taken at once
_PIECE_LEAST: Final = 1500  # a packet

RECEIVE_BUFFER_BYTES: Final = 64 * limits.KIB
"""For connections under limits: what the kernel receives ahead of us was not asked for, and counts on the line."""


def parse_amount(text: str, option: str) -> int:
    """Bytes (or bytes a second) from ``5M``, ``1.5G``, ``512Ki``, ``100000``: decimal units, binary ones with ``i``.

    Raises:
        UsageError: anything else, or zero.
    """
    match = _AMOUNT.fullmatch(text.strip().upper())
    unit = match[3] if match else ""
    factor = _UNITS.get(unit) or _BINARY.get(unit)
    if match and factor:
        value = int(match[1]) * factor + (
            int(f"{match[2]:0<6}") * factor // 10**6 if match[2] else 0
        )
        if value:
            return value
    raise UsageError(
        f"{option} takes a number of bytes",
        expected="such as 500K, 5M, 1.5G or 512Ki",
        found=printable(text, 40),
    )


class Meter:
    """Takes bytes from shared limits; one in each process."""

    def __init__(self, descriptor: int, rate: int | None, most: int | None) -> None:
        self._descriptor = descriptor
        self._state = mmap.mmap(descriptor, mmap.PAGESIZE)
        self.rate, self.most = rate, most
        self._piece = max(_PIECE_LEAST, int(rate * _PIECE_S)) if rate else 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[list[Any]]:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            state = list(_STATE.unpack_from(self._state))
            yield state
            _STATE.pack_into(self._state, 0, *state)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    @property
    def used(self) -> int:
        """Bytes taken by all processes."""
        with self._locked() as state:
            return int(state[1])

    def take(self, want: int) -> int:
        """How many of ``want`` bytes may be read now, at least one; waits for the line to be free.

        Raises:
            TransportError: ``byte-budget``: nothing is left.
        """
        wait = 0.0
        with self._locked() as state:
            if self.most is not None:
                left = self.most - state[1]
                if left <= 0:
                    raise self._exhausted()
                want = min(want, left)
            if self.rate:
                want = min(want, self._piece)
                now = time.monotonic()
                start = max(state[0], now - _BURST_S)
                state[0] = start + want / self.rate
                wait = start - now
            state[1] += want
        if wait > 0:
            time.sleep(wait)
        return want

    def give_back(self, count: int) -> None:
        """``count`` of the bytes taken last were not read."""
        if count:
            with self._locked() as state:
                state[1] -= count
                if self.rate:
                    state[0] -= count / self.rate

    def _exhausted(self) -> TransportError:
        return TransportError(
            "the byte budget is used up",
            reference="byte-budget",
            expected=f"at most {self.most} bytes (--max-bytes)",
            hint="what arrived is kept; run the command again to go on from there",
            catalogue="LIM",
        )


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """Limits of one command; ``descriptor`` is the memory file that all its processes share."""

    rate: int | None
    most: int | None
    descriptor: int

    @classmethod
    def make(cls, rate: int | None, most: int | None) -> TransferLimits:
        """Fresh limits in bytes a second and bytes; None: none of that kind."""
        descriptor = os.memfd_create("bootc-transfer-limits", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        os.pwrite(descriptor, _STATE.pack(time.monotonic(), 0), 0)
        return cls(rate, most, descriptor)

    def meter(self) -> Meter:
        """For this process."""
        return Meter(self.descriptor, self.rate, self.most)

    def to_json(self) -> dict[str, Any]:
        """For a worker process that inherited ``descriptor``."""
        return {"descriptor": self.descriptor, "rate": self.rate, "most": self.most}


CURRENT: Final[ContextVar[TransferLimits | None]] = ContextVar(
    "bootc-transfer-limits", default=None
)
"""The limits of the running command."""
