"""``bootc usr-overlay``: write to ``/usr`` until the next reboot."""

from __future__ import annotations

import argparse
import os
import sys

from bootc_core.errors import UnsupportedEnvironmentError
from bootc_core.fs import mounts
from bootc_core.host import environment, live, overlay
from bootc_core.host.environment import Environment
from bootc_core.process import SEARCH_PATH


def usr_overlay(arguments: argparse.Namespace) -> int:
    """Mount the overlay; on ostree that is libostree's own.

    Raises:
        UnsupportedEnvironmentError: no booted host, or not root.
        StorageError: it cannot be mounted.
    """
    kind = environment.detect()
    if kind not in {Environment.COMPOSEFS, Environment.OSTREE}:
        raise UnsupportedEnvironmentError(
            "usroverlay only applies on booted hosts", reference="not-bootc"
        )
    live.require_root()
    if kind is Environment.OSTREE:
        words = ["ostree", "admin", "unlock", *(["--transient"] if arguments.read_only else [])]
        try:
            os.execvpe(words[0], words, {**os.environ, "PATH": SEARCH_PATH})  # noqa: S606 - it takes over
        except OSError as problem:
            raise UnsupportedEnvironmentError(
                "ostree cannot be started", reference="no-program", found=problem.strerror
            ) from None
    if overlay.present(mounts.table()) is not None:
        sys.stdout.write("An overlayfs is already mounted on /usr\n")
        return 0
    overlay.add(read_only=arguments.read_only)
    access = "read-only" if arguments.read_only else "read/write"
    sys.stdout.write(
        f"A {access} overlayfs is now mounted on /usr\nAll changes there will be discarded on reboot.\n"
    )
    return 0
