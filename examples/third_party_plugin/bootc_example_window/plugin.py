"""Hook implementations only; importing this costs nothing, what they need is imported when they run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bootc_core import hookimpl

if TYPE_CHECKING:
    from bootc_core import Context, Event, Phase, Verdict

BOOTC_API = 1


@hookimpl
async def bootc_gate(context: Context, phase: Phase) -> Verdict | None:
    """Hold an upgrade until the window opens, before anything is fetched; None: no opinion."""
    from pathlib import Path

    from bootc_example_window.window import decide, load_settings

    if context.operation != "upgrade" or phase != "fetch":
        return None
    return decide(load_settings(Path(context.config_root)), context.started_at)


@hookimpl
def bootc_on_event(event: Event) -> None:
    """Append the event to the file that BOOTC_EXAMPLE_EVENTS names."""
    if path := os.environ.get("BOOTC_EXAMPLE_EVENTS"):
        import json

        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs start-up time
            file.write(json.dumps(event.to_json()) + "\n")
