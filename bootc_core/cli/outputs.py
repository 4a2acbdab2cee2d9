"""Where events go besides the terminal: the caller's pipe, the journal, a metrics file. They watch and never steer."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from bootc_core import config as configs
from bootc_core.models.events import Event

Observer = tuple[str, Callable[[Event], None]]


def observers(arguments: argparse.Namespace) -> list[Observer]:
    """The observers that flags and settings ask for.

    Raises:
        UsageError: ``--progress-fd`` is not the writing end of a pipe.
        ConfigError: the settings are malformed.
    """
    found: list[Observer] = []
    if (number := getattr(arguments, "progress_fd", None)) is not None:
        from bootc_core.render import jsonl

        found.append(("progress-fd", jsonl.observer(number)))
    settings = (
        configs.Config()
        if getattr(arguments, "safe_mode", False)
        else configs.load(arguments.config_root or Path("/"))
    )
    from bootc_core.render import journal

    wanted = settings.journal == "yes" or (settings.journal == "auto" and os.geteuid() == 0)
    if wanted and journal.SOCKET.exists():
        found.append(("journal", journal.Journal()))
    if settings.metrics_file:
        from bootc_core.render.openmetrics import Metrics

        found.append(("metrics", Metrics(Path(settings.metrics_file))))
    return found
