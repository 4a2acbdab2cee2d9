# ruff: noqa: E501 - programs of one string
"""A plugin package that misbehaves in one way in every hook that may run in a child process."""

from __future__ import annotations

from pathlib import Path

from bootc_core.containment.declared import PARTICIPANTS
from bootc_core.hooks.discovery import PluginSource

HOOKS = ("bootc_gate", "bootc_verify", *PARTICIPANTS, "bootc_on_event")

KINDS = {
    "hangs": "import signal, time\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(600)",
    "spins": "x = 0\n    while True:\n        x += 1",
    "crashes": "import ctypes\n    ctypes.string_at(0)",
    "vanishes": "import os\n    os._exit(0)",
    "eats memory": "eaten = []\n    while True:\n        eaten.append(bytearray(16 << 20))",
    "babbles": "import os\n    for _ in range(300):\n        os.write(1, b'x' * 65536)\n        os.write(2, b'\\x1b[2J' * 16384)\n    return 7",
    "lies": "import gc, os\n    os.write(max(int(n) for n in os.listdir('/proc/self/fd') if LIAR(int(n))), b'{\"answer\": [[[1')\n    os._exit(0)",
    "leaves a daemon": (
        "import os, time\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(600)\n        os._exit(0)\n"
        "    raise RuntimeError('left one')"
    ),
}

_HEAD = '''"""Misbehaves."""
from bootc_core import hookimpl

BOOTC_API = 1
BOOTC_ON_FAILURE = "{policy}"


def LIAR(number):
    """Is it the pipe for the answer?"""
    import os, stat

    try:
        return number > 2 and stat.S_ISFIFO(os.fstat(number).st_mode)
    except OSError:
        return False

'''


def package(place: Path, kind: str, policy: str, hooks: tuple[str, ...] = HOOKS) -> PluginSource:
    """Write the package; its source as discovery would find it."""
    name = f"bad_{kind.replace(' ', '_')}_{policy}"
    text = [_HEAD.format(policy=policy)]
    for hook in hooks:
        arguments = {"bootc_gate": "context, phase", "bootc_verify": "context, image"}.get(
            hook, "event" if hook == "bootc_on_event" else "context"
        )
        colour = "def" if hook == "bootc_on_event" else "async def"
        text.append(f"@hookimpl\n{colour} {hook}({arguments}):\n    {KINDS[kind]}\n\n")
    directory = place / name
    directory.mkdir()
    (directory / "__init__.py").write_text("")
    (directory / "plugin.py").write_text("\n".join(text))
    return PluginSource(name, f"{name}.plugin", name, "1", str(place))
