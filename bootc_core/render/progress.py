"""Events as progress: bars on a terminal, quiet lines otherwise. Observers of the event bus; they never steer.

``rich`` is imported only when bars are really drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

from bootc_core.errors import printable
from bootc_core.models import events
from bootc_core.render.stream import tell
from bootc_core.render.units import size

_PHASES = {
    "fetch": "Resolving the image",
    "verify": "Checking signature policy",
    "stage": "Writing the deployment",
    "finalize": "Merging /etc and switching the boot entry",
    "rollback": "Switching the boot entry",
}


class Lines:
    """One line a step on ``stream``; nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fetched = 0
        self._begin = 0.0
        self._layers = 0

    def say(self, text: str) -> None:
        """Print a line; a closed stream is nobody's failure."""
        tell(self._stream, f"{text}\n")

    def __call__(self, event: events.Event) -> None:
        """Show ``event``."""
        match event:
            case events.LayersPlanned():
                self._begin = time.monotonic()
                self._fetched = event.bytes_needed
                self._layers = event.layers_needed
                if event.layers_needed:
                    self.say(
                        f"layers already present: {event.layers_present}; "
                        f"layers needed: {event.layers_needed} ({size(event.bytes_needed)})"
                    )
            case events.StepProgressed(step="publishing") if self._layers:
                seconds = max(time.monotonic() - self._begin, 0.001)
                rate = size(int(self._fetched / seconds))
                self.say(f"Fetched layers: {size(self._fetched)} in {seconds:.1f} s ({rate}/s)")
            case events.ImageVerified():
                self.say(f"Accepted by {event.accepted_by}: {printable(event.reason)}")
            case events.TransactionRecovered():
                self.say(
                    f"Cleared up after the interrupted run {event.interrupted} ({event.action})"
                )
            case events.Warned():
                self.say(f"warning: {printable(event.message, 600)}")
            case _:
                pass


class Bars(Lines):
    """Progress bars on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._step: Any = None

    def say(self, text: str) -> None:
        """Print above the bars."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            super().say(text)

    def _start(self) -> Any:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(file=self._stream, stderr=True),
                transient=True,
            )
            self._progress.start()
        return self._progress

    def close(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def __call__(self, event: events.Event) -> None:
        """Show ``event``."""
        match event:
            case events.BlobProgressed():
                progress = self._start()
                if event.digest not in self._tasks:
                    self._tasks[event.digest] = progress.add_task(
                        f"layer {event.digest.rpartition(':')[2][:12]}", total=event.bytes_total
                    )
                progress.update(self._tasks[event.digest], completed=event.bytes_done)
            case events.BlobCompleted():
                if (
                    task := self._tasks.pop(event.digest, None)
                ) is not None and self._progress is not None:
                    self._progress.remove_task(task)
            case events.StepProgressed():
                super().__call__(event)
                if event.step == "publishing":
                    self.close()
            case events.PhaseStarted() if event.phase in _PHASES:
                self.say(f"{_PHASES[event.phase]}…")
            case events.PhaseFailed() | events.PhaseCompleted():
                self.close()
            case _:
                super().__call__(event)


def observer(stream: TextIO, *, quiet: bool, terminal: bool) -> Callable[[events.Event], None]:
    """What shows events on ``stream``: bars, lines, or (``quiet``) lines without bars."""
    return Bars(stream) if terminal and not quiet else Lines(stream)
