"""The two decorators, the API number and the entry-point group."""

from __future__ import annotations

from typing import Final

import pluggy

PROJECT: Final = "bootc"
GROUP: Final = "bootc.plugins"
API: Final = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
