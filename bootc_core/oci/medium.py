"""Staged layers compared with what the medium gives back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bootc_core import limits, process
from bootc_core.errors import StorageError
from bootc_core.fs import readback

_SHARE_BYTES: Final = 64 * limits.MIB  # less is not worth a process


@dataclass(frozen=True, slots=True)
class Written:
    """A layer's new files: directory, the notes on them (``bootc_core.fs.readback``) with their CRC-32, how many bytes."""

    directory: Path
    notes: Path
    crc: int
    size: int


async def read_back(layers: Sequence[Written], digest_bytes: int) -> None:
    """Compare all files of ``layers``, which were synced, with their notes: as the medium has them, in processes of their own.

    Raises:
        StorageError: ``read-back``: the medium gives something else.
    """
    count = min(len(os.sched_getaffinity(0)), len(layers))
    count = max(1, min(count, sum(layer.size for layer in layers) // _SHARE_BYTES))
    shares: list[list[Written]] = [[] for _ in range(count)]
    for layer in sorted(layers, key=lambda layer: -layer.size):
        min(shares, key=lambda share: sum(item.size for item in share)).append(layer)
    problems: list[StorageError] = []

    async def compare(share: list[Written]) -> None:
        try:
            await _compare(share, digest_bytes)
        except StorageError as problem:  # raised as itself, not as a member of a group
            problems.append(problem)

    async with trio.open_nursery() as nursery:
        for share in shares:
            nursery.start_soon(compare, share)
    if problems:
        raise problems[0]


async def _compare(layers: Sequence[Written], digest_bytes: int) -> None:
    files = [[str(layer.notes), layer.crc, str(layer.directory)] for layer in layers]
    done = await process.run(
        [sys.executable, "-I", readback.__file__],
        stdin=json.dumps({"digest_bytes": digest_bytes, "layers": files}).encode(),
        timeout_s=limits.PHASE_TIMEOUT_S,
        error=StorageError,
        label="reading back",
    )
    answer = json.loads(done.stdout)
    if answer["problem"]:
        raise StorageError(
            "the disk gives back something else than what was written",
            reference="read-back",
            expected=answer["expected"],
            found=f"{answer['problem']}: {answer['path']}",
            hint="check the disk (smartctl, dmesg) before anything else; nothing was switched",
            catalogue="IO",
        )
