"""What a command may take of the line: its options, the settings, and what NetworkManager says about the line."""

from __future__ import annotations

import argparse

from bootc_core import process
from bootc_core.config import Config
from bootc_core.errors import TransportError, UnsupportedEnvironmentError
from bootc_core.net import budget
from bootc_core.oci import chunked

_METERED = {"1", "3"}  # NMMetered: yes, guess-yes
_ASK = (
    "busctl",
    "get-property",
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
    "Metered",
)


def install(arguments: argparse.Namespace, settings: Config) -> None:
    """Put the limits in force for the rest of this command.

    Raises:
        UsageError: an option is no amount.
        TransportError: ``metered``: the line is metered, and the settings refuse that.
    """
    rate = (
        budget.parse_amount(arguments.max_rate, "--max-rate")
        if arguments.max_rate
        else settings.max_rate
    )
    most = (
        budget.parse_amount(arguments.max_bytes, "--max-bytes")
        if arguments.max_bytes
        else settings.max_bytes
    )
    if settings.on_metered == "refuse" and not arguments.allow_metered and metered():
        raise TransportError(
            "the network is metered",
            reference="metered",
            found=f"on-metered = refuse in {settings.sources.get('network.on-metered', 'the settings')}",
            hint="wait for another network, or give --allow-metered",
        )
    chunked.PLACES.set(settings.seeds)
    limited = rate is not None or most is not None
    budget.CURRENT.set(budget.TransferLimits.make(rate, most) if limited else None)


def metered() -> bool:
    """Whether NetworkManager calls this machine's line metered; without NetworkManager it is not."""
    try:
        done = process.run_blocking(_ASK, timeout_s=5.0, check=False, label="busctl")
    except UnsupportedEnvironmentError:
        return False
    words = done.stdout.decode("ascii", "replace").split()
    return done.returncode == 0 and bool(words) and words[-1] in _METERED
