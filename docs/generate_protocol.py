"""Writes ``docs/schemas/plugin-child-v1.schema.json`` and ``docs/events.md`` from the code; ``--check`` as in ``generate.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from inspect import getdoc
from pathlib import Path

from bootc_core.containment import messages
from bootc_core.models import events
from bootc_core.render import journal, openmetrics

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "docs/schemas/plugin-child-v1.schema.json"
EVENTS = ROOT / "docs/events.md"

_HEAD = """\
# Events and metrics

Made by `docs/generate_protocol.py`; a test fails when code and page differ. One stream of events, in order, is rendered in several
ways. Watching never steers: every observer has a queue and a thread of its own, progress that it cannot
follow is merged, and what it has not read five seconds after the end of a run is lost to it.

| rendering | switched on by |
|---|---|
| bars or lines on standard error | always; `--quiet` hides bars |
| JSON lines, the original's progress protocol 0.1.0 | `--progress-fd FD`, the writing end of a pipe |
| systemd journal | `[events] journal = "auto"` (for root, where there is one), `"yes"`, `"no"` |
| OpenMetrics text file | `[events] metrics-file = "PATH"` |
| plugins | the hook `bootc_on_event`, in a child process unless root says otherwise |

## Events

`to_json` has the name under `event`. Merged: for a slow reader the newest of a kind and digest stays.

"""


def _events() -> Iterator[str]:
    yield "| event | fields beside `transaction` | merged | meaning |\n|---|---|---|---|"
    for kind in events.Event.__subclasses__():
        names = ", ".join(f"`{one.name}`" for one in fields(kind) if one.name != "transaction")
        merged = "yes" if kind.mergeable else ""
        meaning = " ".join((getdoc(kind) or "").replace("``", "`").split())
        yield f"| `{kind.name}` | {names} | {merged} | {meaning} |"


def _journal() -> Iterator[str]:
    yield "\n## Fields in the journal\n"
    yield (
        "`MESSAGE`, `PRIORITY`, `SYSLOG_IDENTIFIER=bootc`, `BOOTC_EVENT`, `BOOTC_TRANSACTION`, and every other field of the\n"
        "event as `BOOTC_<FIELD>`. Progress (`blob.progressed`, `step.progressed`) is left out.\n"
    )
    yield "| event | priority |\n|---|---|"
    for name, priority in journal._PRIORITIES.items():
        yield f"| `{name}` | {priority} |"
    yield "| all others | 6 |"


def _metrics() -> Iterator[str]:
    yield "\n## Metrics\n"
    yield "Written once, by a rename, at the end of each run that had the lock.\n"
    yield "| metric | type | meaning |\n|---|---|---|"
    for name, kind, meaning in openmetrics.METRICS:
        yield f"| `{name}` | {kind} | {meaning} |"


def made() -> dict[Path, str]:
    """Every file with its content."""
    text = _HEAD + "\n".join([*_events(), *_journal(), *_metrics()]) + "\n"
    return {SCHEMA: json.dumps(messages.schema(), indent=2) + "\n", EVENTS: text}


def main(arguments: list[str]) -> int:
    """Write or check."""
    status = 0
    for path, text in made().items():
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{path.name} is out of date: run python docs/generate_protocol.py\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
