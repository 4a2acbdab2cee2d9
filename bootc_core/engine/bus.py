"""Delivers events in order to observers, each on a thread of its own: a slow or blocked one slows neither a run nor the others.

State changes are always delivered; progress that an observer cannot follow is merged (the newest of a kind and subject stays). An
observer's error is logged once and changes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from bootc_core import limits
from bootc_core.models.events import Event

log = logging.getLogger(__name__)
Observer = tuple[str, Callable[[Event], None]]


class _Lane:
    """One observer with its queue and thread."""

    def __init__(self, name: str, observer: Callable[[Event], None]) -> None:
        self.name, self._observer = name, observer
        self._queue: deque[Event] = deque()
        self._condition = threading.Condition()
        self._closed = self._complained = False
        self.thread = threading.Thread(
            target=self._deliver, name=f"bootc-events-{name}", daemon=True
        )

    def put(self, event: Event) -> None:
        with self._condition:
            if event.mergeable and len(self._queue) >= limits.EVENT_QUEUE:
                for index in range(len(self._queue) - 1, -1, -1):
                    other = self._queue[index]
                    if type(other) is type(event) and getattr(other, "digest", "") == getattr(
                        event, "digest", ""
                    ):
                        self._queue[index] = event
                        break
            else:
                self._queue.append(event)
            self._condition.notify()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()

    def abandon(self) -> None:
        if abandon := getattr(self._observer, "abandon", None):
            self._safely(abandon)

    def _deliver(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                if not self._queue:
                    break
                event = self._queue.popleft()
            self._safely(lambda event=event: self._observer(event))  # type: ignore[misc]
        if close := getattr(self._observer, "close", None):
            self._safely(close)

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            if not self._complained:
                self._complained = True
                log.warning("the event observer of plugin %s failed", self.name, exc_info=True)


class Bus:
    """Ordered delivery to ``observers``; use as a context manager, leaving it delivers what is left.

    An observer may have an attribute ``close``, which is called on its thread after its last event, and ``abandon``, which is
    called on ours when it has not finished in time.
    """

    def __init__(self, observers: Sequence[Observer], *, patience_s: float = 5.0) -> None:
        self._lanes = [_Lane(name, observer) for name, observer in observers]
        self._patience_s = patience_s

    def __enter__(self) -> Bus:
        for lane in self._lanes:
            lane.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for lane in self._lanes:
            lane.close()
        deadline = time.monotonic() + self._patience_s
        for lane in self._lanes:
            lane.thread.join(max(0.0, deadline - time.monotonic()))
            if lane.thread.is_alive():
                log.warning(
                    "the event observer of %s did not finish within %s s; the run goes on without it",
                    lane.name,
                    self._patience_s,
                )
                lane.abandon()

    def emit(self, event: Event) -> None:
        """Queue ``event`` for every observer; returns at once."""
        for lane in self._lanes:
            lane.put(event)
