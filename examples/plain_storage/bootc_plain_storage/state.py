"""What is in a sysroot of this backend: cheap, synchronous, and without trio or pydantic, since ``status`` asks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bootc_core.boot import bls
from bootc_core.models.boot import PresentEntry
from bootc_core.models.host import Deployment, HostImage, HostStatus, ImageStatus
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot


def top(sysroot: Sysroot) -> Path:
    """Where everything of ours is."""
    return sysroot.path / "plain"


def deployment(sysroot: Sysroot, name: str) -> Path:
    """The directory of a deployment."""
    return top(sysroot) / "deploy" / name


def read_state(place: Path) -> dict[str, Any] | None:
    """The record of a deployment, or None: it is not whole."""
    try:
        value: dict[str, Any] = json.loads((place / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    return value


def names(sysroot: Sysroot) -> list[str]:
    """Everything in the directory of deployments, the half-made included."""
    try:
        return sorted(os.listdir(top(sysroot) / "deploy"))
    except FileNotFoundError:
        return []


def claims(sysroot: Sysroot) -> bool:
    """Is it ours?"""
    return top(sysroot).is_dir()


def bootloader(sysroot: Sysroot) -> str | None:
    """The one of the configuration: none is recorded."""
    for name in names(sysroot):
        state = read_state(deployment(sysroot, name))
        if state is not None:
            return str(state["bootloader"])
    return None


def booting(sysroot: Sysroot) -> list[str]:
    """Deployments on the boot menu, first boots next."""
    found = [bls.deployment_of(entry) for entry in bls.read_entries(sysroot.boot_dir)]
    return [name for name in found if name and read_state(deployment(sysroot, name))]


def staged(sysroot: Sysroot) -> tuple[str | None, bool]:
    """The staged deployment and whether it is locked, by bootc's notice."""
    try:
        value = json.loads(sysroot.staged_file.read_bytes())
        return value["depl_id"], value["finalization_locked"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, False


def _slot(sysroot: Sysroot, name: str | None, *, locked: bool = False) -> Deployment | None:
    state = read_state(deployment(sysroot, name)) if name else None
    if state is None:
        return None
    image = ImageStatus(
        HostImage(state["image"], state["transport"]),
        state["digest"],
        state["architecture"],
        state["version"],
        state["timestamp"],
    )
    return Deployment(
        image, download_only=locked, accepted=state["accepted"], signature_mode=state["mode"]
    )


def read_host(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> HostStatus:
    """The host by its boot menu."""
    wanted = [name for entry in entries if (name := bls.deployment_of(entry))]
    there = [name for name in wanted if read_state(deployment(sysroot, name))]
    slots = [_slot(sysroot, name) for name in there]
    waiting, locked = staged(sysroot)
    return HostStatus(
        staged=_slot(sysroot, waiting, locked=locked) if waiting not in there else None,
        booted=slots[0] if slots else None,
        rollback=slots[1] if len(slots) > 1 else None,
        other=tuple(slot for slot in slots[2:] if slot),
        notes=tuple(
            f"the boot entry of {name} has no deployment" for name in wanted if name not in there
        ),
    )


def tracked(sysroot: Sysroot, reference: ImageReference) -> str | None:
    """Digest of the tag when what boots next was fetched."""
    for name in booting(sysroot)[:1]:
        state = read_state(deployment(sysroot, name))
        if state is not None and state["reference"] == str(reference):
            return str(state["tag_digest"])
    return None


def manifest(sysroot: Sysroot, digest: str) -> bytes | None:
    """The manifest kept with a deployment."""
    for name in names(sysroot):
        state = read_state(deployment(sysroot, name))
        if state is not None and state["digest"] == digest:
            return str(state["manifest"]).encode()
    return None
