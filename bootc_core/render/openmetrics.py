"""Events as an OpenMetrics text file, for the textfile collector of node_exporter: the last run, in numbers.

Written once at the end of a run, by a rename, so that a collector never reads half of it. ``METRICS`` is the catalogue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bootc_core.models import events

METRICS: Final = (
    ("bootc_run_timestamp_seconds", "gauge", "End of the last run."),
    ("bootc_run_success", "gauge", "1 if the last run ended well, else 0."),
    ("bootc_run_changed", "gauge", "1 if something boots now that did not before the last run."),
    ("bootc_run_recovered", "gauge", "1 if the last run cleared up after an interrupted one."),
    ("bootc_run_warnings", "gauge", "Warnings of the last run."),
    (
        "bootc_run_holds_overridden",
        "gauge",
        "Holds that an administrator overrode in the last run.",
    ),
    ("bootc_run_bytes_fetched", "gauge", "Compressed bytes of layers that the last run fetched."),
    ("bootc_run_layers_fetched", "gauge", "Layers that the last run fetched."),
    ("bootc_run_layers_present", "gauge", "Layers that were there before the last run."),
    ("bootc_phase_duration_seconds", "gauge", "Duration of a phase of the last run, by phase."),
    (
        "bootc_run_info",
        "gauge",
        "1; operation, digest and error reference of the last run as labels.",
    ),
)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Metrics:
    """The observer; writes ``path`` when the run ends. ``clock`` tells seconds since 1970."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._values: dict[str, float] = {
            name: 0 for name, _, _ in METRICS if name.startswith("bootc_run_")
        }
        self._phases: dict[str, float] = {}
        self._labels = {"operation": "", "digest": "", "reference": ""}

    def _add(self, name: str, amount: float = 1) -> None:
        self._values[f"bootc_run_{name}"] += amount

    def __call__(self, event: events.Event) -> None:
        """Count ``event``; the last one of a run writes the file."""
        match event:
            case events.TransactionStarted():
                self._labels["operation"] = event.operation
            case events.ImageResolved():
                self._labels["digest"] = event.digest
            case events.LayersPlanned():
                self._add("layers_present", event.layers_present)
            case events.BlobCompleted():
                self._add("layers_fetched")
                self._add("bytes_fetched", event.bytes_total)
            case events.PhaseCompleted():
                self._phases[event.phase] = event.seconds
            case events.Warned():
                self._add("warnings")
            case events.HoldOverridden():
                self._add("holds_overridden")
            case events.TransactionRecovered():
                self._add("recovered")
            case events.TransactionCompleted():
                self._add("success")
                self._add("changed", int(event.changed))
                self._finish()
            case events.TransactionFailed():
                self._labels["reference"] = event.reference
                self._add("changed", int(event.after_switch))
                self._finish()
            case _:
                pass

    def text(self) -> str:
        """The file's content."""
        lines = []
        for name, kind, help_ in METRICS:
            lines += [f"# TYPE {name} {kind}", f"# HELP {name} {help_}"]
            if name == "bootc_phase_duration_seconds":
                lines += [
                    f'{name}{{phase="{_escape(phase)}"}} {seconds:.3f}'
                    for phase, seconds in self._phases.items()
                ]
            elif name == "bootc_run_info":
                labels = ",".join(f'{key}="{_escape(said)}"' for key, said in self._labels.items())
                lines.append(f"{name}{{{labels}}} 1")
            else:
                lines.append(
                    f"{name} {self._values[name]:g}"
                    if name != METRICS[0][0]
                    else f"{name} {self._values[name]:.3f}"
                )
        return "\n".join((*lines, "# EOF", ""))

    def _finish(self) -> None:
        self._values["bootc_run_timestamp_seconds"] = self._clock()
        new = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        new.write_text(self.text(), encoding="utf-8")
        new.replace(self._path)
