"""The image that this process runs in, when it is a podman container (parity reference, 6.3)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from bootc_core import config as configs
from bootc_core.errors import UnsupportedEnvironmentError, printable
from bootc_core.models.reference import ImageReference, Transport

_LINE = re.compile(r'(\w+)="?([^"]*)"?')


def parse_containerenv(text: str) -> dict[str, str]:
    """Keys and values of ``/run/.containerenv``: ``engine``, ``name``, ``id``, ``image``, ``imageid``, ``rootless``."""
    matches = (_LINE.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}


def configured_backend(root: Path) -> str:
    """The storage backend that the settings name."""
    return configs.load(root).backend


def running_image(root: Path = Path("/")) -> ImageReference:
    """The image of the container that this process runs in, pinned by digest.

    Raises:
        UnsupportedEnvironmentError: it is no container that could install itself; says why.
    """
    path = root / "run/.containerenv"
    if not path.exists():
        raise _cannot(
            "Either --source-imgref must be defined or this command must be executed inside a podman container.",
            "no-source",
            "e.g. --source-imgref docker://quay.io/examplecorp/custom:latest",
        )
    found = parse_containerenv(path.read_text(encoding="utf-8", errors="replace"))
    if os.getpid() == 1:
        raise _cannot(
            "This command must be run with the podman --pid=host flag", "no-host-pid", None
        )
    if Path("/proc/1").stat().st_uid != 0 or found.get("rootless") == "1":
        raise _cannot(
            "Cannot install from rootless podman; this command must be run as root",
            "rootless",
            "sudo podman run --privileged --pid=host ...",
        )
    if not found.get("engine", "").startswith("podman"):
        raise _cannot(
            "only podman containers can install themselves",
            "no-source",
            f"found the engine {printable(found.get('engine', ''), 40)}; give --source-imgref",
        )
    image, identifier = found.get("image"), found.get("imageid")
    if not image or not identifier:
        raise _cannot("this container does not know its image", "no-source", "give --source-imgref")
    return ImageReference.make(
        Transport.CONTAINERS_STORAGE, f"{image.partition('@')[0]}@{_digest(identifier)}"
    )


def _digest(identifier: str) -> str:
    from bootc_install.devices import run

    told = run(["nsenter", "-m", "-t", "1", "--", "podman", "image", "inspect", identifier]).stdout
    return str(json.loads(told)[0]["Digest"])


def _cannot(message: str, reference: str, hint: str | None) -> UnsupportedEnvironmentError:
    return UnsupportedEnvironmentError(message, reference=reference, hint=hint)
