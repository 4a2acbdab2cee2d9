"""A QEMU that emulates this guest correctly.

QEMU 7.2 (Debian 12) corrupts a guest's memory when several processors are emulated by several threads. So one older than 8 is
left alone, and one from the guest's own suite is unpacked beside the host's programs and run through its own loader.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from demo import debian

_OLDEST = 8
_PROGRAM = "qemu-system-x86_64"


def find_qemu(cache: Path, suite: str = "trixie") -> str:
    """The program to run: ``VM_QEMU``, the host's if it is new enough, or one unpacked in ``cache``."""
    if named := os.environ.get("VM_QEMU"):
        return named
    if shutil.which(_PROGRAM):
        told = subprocess.run([_PROGRAM, "--version"], check=True, capture_output=True, text=True)
        match = re.search(r"version (\d+)", told.stdout)
        if match and int(match[1]) >= _OLDEST:
            return _PROGRAM
    root, wrapper = cache / f"qemu-{suite}", cache / f"qemu-{suite}.sh"
    if wrapper.exists():
        return str(wrapper)
    if not root.exists():
        debian.build_root(suite, ["qemu-system-x86", "ovmf", "seabios"], root, cache)
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    wrapper.write_text(f"""#!/bin/sh
export QEMU_MODULE_DIR={libraries}/qemu
exec {root}/lib64/ld-linux-x86-64.so.2 --library-path {libraries}:{libraries}/pulseaudio \\
    {root}/usr/bin/{_PROGRAM} -L {root}/usr/share/qemu -L {root}/usr/share/seabios "$@"
""")
    wrapper.chmod(0o755)
    return str(wrapper)
