"""Events as the original's progress protocol: JSON lines on a pipe that the caller gave (``--progress-fd``).

The form is ``progress-v0.schema.json``. ``Start`` comes before the first line and not without one; byte progress is limited to five
lines a second, everything else is always written. A reader that goes away is told about once and fails nothing.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from bootc_core.errors import UsageError
from bootc_core.models import events
from bootc_core.render.stream import tell

VERSION: Final = "0.1.0"
_LOSSY_S: Final = 0.2
_STAGES: Final = ("merging", "deploying", "bound_images", "cleanup")
_TEXTS: Final = {
    "merging": "Merging Image",
    "deploying": "Deploying Image",
    "bound_images": "Pulling Bound Images",
    "cleanup": "Removing old images",
}


def check(number: int) -> int:
    """The descriptor itself if it is one to write progress to.

    Raises:
        UsageError: it is a standard stream, or not the writing end of a pipe.
    """
    if number < 3:
        raise UsageError(f"Cannot use fd {number} for progress JSON")
    try:
        info = os.fstat(number)
    except OSError as problem:
        raise UsageError(
            f"Cannot use fd {number} for progress JSON", found=os.strerror(problem.errno or 0)
        ) from None
    if not stat.S_ISFIFO(info.st_mode):
        raise UsageError(
            f"Cannot use fd {number} for progress JSON",
            expected="the writing end of a pipe",
            found=stat.filemode(info.st_mode),
        )
    return number


class Progress:
    """The observer. ``write`` takes whole lines; ``clock`` tells seconds."""

    def __init__(
        self, write: Callable[[bytes], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._started = self._broken = False
        self._last = float("-inf")
        self._digest = ""
        self._plan: events.LayersPlanned | None = None
        self._done: list[dict[str, Any]] = []
        self._bytes = 0
        self._importing = self._staging = False

    def _send(self, value: dict[str, Any], *, lossy: bool = False) -> None:
        now = self._clock()
        if self._broken or (lossy and now - self._last < _LOSSY_S):
            return
        lines = [value] if self._started else [{"type": "Start", "version": VERSION}, value]
        try:
            for line in lines:
                text = json.dumps(line, sort_keys=True, separators=(",", ":"))
                self._write(text.encode() + b"\n")
        except OSError as problem:
            self._broken = True
            reason = os.strerror(problem.errno or 0)
            tell(sys.stderr, f"Failed to write to jsonl: {reason}\n")
            return
        self._started, self._last = True, now

    def __call__(self, event: events.Event) -> None:
        """Write what the protocol has for ``event``."""
        match event:
            case events.ImageResolved():
                self._digest = event.digest
            case events.LayersPlanned() if event.layers_needed:
                self._plan = event
                self._pulling([], lossy=False)
            case events.BlobProgressed() if self._plan:
                current = _layer(event.digest, event.bytes_done, event.bytes_total)
                self._pulling([current], lossy=True, more=event.bytes_done)
            case events.BlobCompleted() if self._plan:
                self._done.append(_layer(event.digest, event.bytes_total, event.bytes_total))
                self._bytes += event.bytes_total
                self._pulling([], lossy=False)
                if len(self._done) == self._plan.layers_needed:
                    self._import(completed=False)
            case events.StepProgressed():
                self._import(completed=True)
            case events.DeploymentStaged():
                self._import(completed=True)
                self._staging = True
                for steps, count in ((0, 1), (1, 2), (1, 3)):
                    self._stage(steps, count)
            case events.TransactionCompleted() if self._staging:
                self._stage(2, 4)
                self._stage(3, 5)
            case _:
                pass

    def _pulling(self, current: list[dict[str, Any]], *, lossy: bool, more: int = 0) -> None:
        plan = self._plan
        if plan is None:
            return
        value = {
            "type": "ProgressBytes",
            "task": "pulling",
            "description": f"Pulling Image: {self._digest}",
            "id": self._digest,
            "bytesCached": plan.bytes_present,
            "bytes": min(self._bytes + more, plan.bytes_needed),
            "bytesTotal": plan.bytes_needed,
            "stepsCached": plan.layers_present,
            "steps": min(len(self._done), plan.layers_needed),
            "stepsTotal": plan.layers_needed,
            "subtasks": [*self._done, *current],
        }
        self._send(value, lossy=lossy)

    def _import(self, *, completed: bool) -> None:
        if completed and not self._importing:  # nothing was fetched, or it is told already
            return
        self._importing = not completed
        subtask = {
            "subtask": "importing",
            "description": "Importing Image",
            "id": "importing",
            "completed": completed,
        }
        self._steps("importing", "Importing Image", "importing", int(completed), 1, [subtask])

    def _stage(self, steps: int, count: int) -> None:
        names = [*_STAGES, "cleanup"][:count]
        subtasks = [
            {
                "subtask": name,
                "description": _TEXTS[name],
                "id": "fetching" if name == "merging" else name,
                "completed": number < count - 1 or count == 5,
            }
            for number, name in enumerate(names)
        ]
        self._steps("staging", "Deploying Image", self._digest, steps, 3, subtasks)

    def _steps(
        self,
        task: str,
        description: str,
        name: str,
        steps: int,
        total: int,
        subtasks: list[dict[str, Any]],
    ) -> None:
        self._send(
            {
                "type": "ProgressSteps",
                "task": task,
                "description": description,
                "id": name,
                "stepsCached": 0,
                "steps": steps,
                "stepsTotal": total,
                "subtasks": subtasks,
            }
        )


def _layer(digest: str, done: int, total: int) -> dict[str, Any]:
    name = digest.partition(":")[2][:21]
    return {
        "subtask": "layer",
        "description": f"layer: {name}",
        "id": name,
        "bytesCached": 0,
        "bytes": done,
        "bytesTotal": total,
    }


def observer(number: int) -> Progress:
    """Progress on the descriptor ``number``.

    Raises:
        UsageError: it cannot take any.
    """
    check(number)

    def write(data: bytes) -> None:
        while data:
            data = data[os.write(number, data) :]

    return Progress(write)
