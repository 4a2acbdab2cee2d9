"""Delivers events in order to observers, on a thread of its own: a slow or blocked observer never slows a run.

State changes are always delivered; progress that an observer cannot follow is merged (the newest of a kind and subject stays). An
observer's error is logged once and changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from bootc_core import limits
from bootc_core.models.events import Event

log = logging.getLogger(__name__)
Observer = tuple[str, Callable[[Event], None]]


class Bus:
    """Ordered delivery to ``observers``; use as a context manager, leaving it delivers what is left."""

    def __init__(self, observers: Sequence[Observer], *, patience_s: float = 5.0) -> None:
        self._observers = tuple(observers)
        self._queue: deque[Event] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._patience_s = patience_s
        self._complained: set[str] = set()
        self._thread = threading.Thread(target=self._deliver, name="bootc-events", daemon=True)

    def __enter__(self) -> Bus:
        if self._observers:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._observers:
            self._thread.join(self._patience_s)
            if self._thread.is_alive():
                log.warning(
                    "an event observer did not finish within %s s; the run goes on without it",
                    self._patience_s,
                )

    def emit(self, event: Event) -> None:
        """Queue ``event``; returns at once."""
        if not self._observers:
            return
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

    def _deliver(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closed:
                    self._condition.wait()
                if not self._queue:
                    return
                event = self._queue.popleft()
            for name, observer in self._observers:
                try:
                    observer(event)
                except Exception:
                    if name not in self._complained:
                        self._complained.add(name)
                        log.warning("the event observer of plugin %s failed", name, exc_info=True)
