"""Version memory: what this host was last brought to, so that an older image does not come back unseen.

    SYSROOT/bootc/trust/memory.json      {"format": 1, "images": {NAME: {...}}, "permits": {NAME: {...}}, "downgrades": [...]}
    SYSROOT/bootc/trust.pinned           there since the first entry: memory that is gone is not a first use

An image's age is its ``created`` (RFC 3339). One entry per followed name (``quay.io/acme/os:stable``); a reference by digest
names its bytes itself and is not compared. What an administrator permits holds once and is logged with the downgrade.

The file is written when a deployment was staged, with the sysroot's lock held, atomically.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from bootc_core.errors import ContentError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.models.base import Model, parse_json, validate
from bootc_core.models.reference import ImageReference, Transport

_BYTES: Final = 4 * 1024 * 1024
_LOGGED: Final = 100
_AHEAD: Final = timedelta(days=1)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class Seen(Model):
    """The newest image of one name."""

    digest: str
    created: str | None = None
    version: str | None = None
    at: str


class Permit(Model):
    """One downgrade, allowed in advance."""

    at: str
    reason: str = ""


class Downgrade(Model):
    """One that happened."""

    name: str
    before: Seen
    after: Seen
    reason: str = ""


class _File(Model):
    format: int = 1
    images: dict[str, Seen] = Field(default_factory=dict)
    permits: dict[str, Permit] = Field(default_factory=dict)
    downgrades: tuple[Downgrade, ...] = Field(default=(), strict=False)


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered."""

    images: dict[str, Seen] = field(default_factory=dict)
    permits: dict[str, Permit] = field(default_factory=dict)
    downgrades: tuple[Downgrade, ...] = ()


def key(reference: ImageReference) -> str | None:
    """The name under which an image is remembered; None for one that names its bytes itself."""
    if reference.transport is Transport.REGISTRY:
        name = reference.registry_name()
        return None if name.digest else str(name)
    return str(reference)


def instant(text: str | None) -> datetime | None:
    """An RFC 3339 time; None if it is none, or before 1990 (reproducible builds write 1970 or 1980)."""
    match = _TIME.fullmatch(text or "")
    if not match:
        return None
    zone = "+00:00" if match[3] == "Z" else match[3]
    try:
        found = datetime.fromisoformat(match[1] + "." + (match[2] or "0")[:6].ljust(6, "0") + zone)
        found = found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if found.year >= 1990 else None


def _file(state: Path) -> Path:
    return state / "trust/memory.json"


def _pin(state: Path) -> Path:
    return state / "trust.pinned"


def load(state: Path) -> Memory:
    """The memory of a sysroot, whose ``bootc`` directory is ``state``.

    Raises:
        StorageError: STATE: damaged, or it was there and is gone.
    """
    path = _file(state)
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES + 1)
    except FileNotFoundError:
        if _pin(state).exists():
            raise _lost(path, "there is no such file") from None
        return Memory()
    except OSError as problem:
        raise _lost(path, printable(str(problem.strerror))) from None
    try:
        if len(data) > _BYTES:
            raise _lost(path, f"more than {_BYTES} bytes")
        found = validate(_File, parse_json(data, "it"), "it")
    except ContentError as problem:
        raise _lost(path, f"{problem.message}: {problem.found}") from None
    except TypeError as problem:
        raise _lost(path, printable(str(problem))) from None
    if found.format != 1:
        raise _lost(path, f"format {found.format}")
    return Memory(found.images, found.permits, found.downgrades)


def _lost(path: Path, found: str) -> StorageError:
    return StorageError(
        f"the memory of versions was lost or damaged: {printable(str(path))}",
        reference="trust-memory",
        expected="what this host was last brought to; without it an old image would look new",
        found=found,
        hint="after you have checked what the host runs: bootc trust pin",
        catalogue="STATE",
    )


def save(state: Path, memory: Memory) -> None:
    """Write the memory, durably.

    Raises:
        StorageError: the old one is untouched.
    """
    value = _File(
        images=memory.images, permits=memory.permits, downgrades=memory.downgrades[-_LOGGED:]
    )
    directory = _file(state).parent
    fresh = not directory.is_dir()
    atomic.mkdir(directory)
    if fresh:
        atomic.fsync(state)
    atomic.write_file(
        _file(state), (json.dumps(value.model_dump(mode="json"), indent=1) + "\n").encode()
    )
    if not _pin(state).exists():
        atomic.write_file(_pin(state), b"")


@dataclass(frozen=True, slots=True)
class Comparison:
    """An image beside the one before.

    ``kind``: ``first``, ``same``, ``newer``, ``older``,
    ``undated`` (the one before had no usable date: nothing protects), ``unknown`` (only this one has none).
    """

    kind: str
    before: Seen | None = None
    permitted: bool = False

    def text(self, created: str | None) -> str:
        """For people."""
        if self.before is None:
            return "the first image of this name on this host"
        was = f"{self.before.created} ({self.before.digest})"
        return {
            "same": "the image that this host was brought to before",
            "newer": f"newer than the one before, of {was}",
            "older": f"of {created}, older than the one before, of {was}",
            "undated": f"not comparable with the one before ({self.before.digest}), which has no date",
            "unknown": f"it cannot be told whether it is older than the one before, of {was}",
        }[self.kind]


def compare(memory: Memory, name: str, digest: str, created: str | None) -> Comparison:
    """How an image relates to the newest one of its name."""
    before = memory.images.get(name)
    permitted = name in memory.permits
    if before is None:
        return Comparison("first", None, permitted)
    if before.digest == digest:
        return Comparison("same", before, permitted)
    old, new = instant(before.created), instant(created)
    if old is None:
        return Comparison("undated", before, permitted)
    if new is None:
        return Comparison("unknown", before, permitted)
    return Comparison("older" if new < old else "newer", before, permitted)


def too_new(created: str | None, now: datetime) -> bool:
    """Whether an image claims to be from the future: remembered, it would lock out all later ones."""
    when = instant(created)
    return when is not None and when > now + _AHEAD


def remember(memory: Memory, name: str, seen: Seen) -> Memory:
    """The memory after a host was brought to ``seen``; a permit for a downgrade is used up by it, and logged."""
    found = compare(memory, name, seen.digest, seen.created)
    images = {**memory.images, name: seen}
    if found.kind not in {"older", "unknown"} or found.before is None:
        return replace(memory, images=images)
    permit = memory.permits.get(name)
    permits = {other: item for other, item in memory.permits.items() if other != name}
    if found.kind == "unknown" and permit is None:
        return replace(memory, images=images)
    entry = Downgrade(
        name=name, before=found.before, after=seen, reason=permit.reason if permit else ""
    )
    return Memory(images, permits, (*memory.downgrades, entry))


def permit(memory: Memory, name: str, reason: str) -> Memory:
    """The memory with one downgrade of ``name`` allowed."""
    return replace(memory, permits={**memory.permits, name: Permit(at=stamp(), reason=reason)})


def stamp() -> str:
    """Now, for records."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_json(memory: Memory) -> dict[str, Any]:
    """For ``bootc trust show --json``."""
    return _File(
        images=memory.images, permits=memory.permits, downgrades=memory.downgrades
    ).model_dump(mode="json")
