"""Which scripts run at which point, and in which order.

    usr/lib/bootc/hooks.d/        the distribution's
    etc/bootc/hooks.d/            the site's: goes over the distribution's, name by name
        pre-upgrade               a script, or a directory of them
        gate/10-window
        before-stage/50-snapshot
        gate/20-vendor -> /dev/null        masks usr/lib/bootc/hooks.d/gate/20-vendor
        after-boot -> /dev/null            masks the distribution's whole point

Scripts of one point run one after the other in the byte order of their names. Left-overs of editors
and package managers and hidden files never run. A name that is no point is most likely a misspelt
one, so it is a warning and not silence.

``order`` is pure; ``read_levels`` is the only function that looks at the disk.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from bootc_core import paths
from bootc_core.errors import printable

PHASES: Final = ("fetch", "verify", "stage", "finalize", "rollback")
PRE_UPGRADE: Final = "pre-upgrade"
POST_UPGRADE: Final = "post-upgrade"
POINTS: Final = (
    PRE_UPGRADE,
    "gate",
    *(f"{when}-{phase}" for phase in PHASES for when in ("before", "after")),
    "after-boot",
    POST_UPGRADE,
)
IMAGE: Final = "image"  # the domain of what a staged image brings; no point of these directories
PLAIN: Final = frozenset({PRE_UPGRADE, POST_UPGRADE})  # may be a script instead of a directory

_LEFT_OVER: Final = re.compile(
    r".*~|#.*#|.*\.(?:bak|orig|rej|sw[a-p]|tmp|rpm(?:save|new|orig)|dpkg-[a-z]+|ucf-[a-z]+|pac(?:new|save|orig))"
)
_DOCUMENT: Final = re.compile(r"README(?:\..*)?")


class Kind(Enum):
    """What a name in a hook directory is, links followed."""

    SCRIPT = "script"
    DIRECTORY = "directory"
    MASK = "mask"  # a link to /dev/null
    OTHER = "other"  # a socket, a broken link, ...: running it fails and says so


@dataclass(frozen=True, slots=True)
class Level:
    """One hook directory as it was found: its own names, and those inside its directories."""

    path: Path
    names: dict[str, Kind] = field(default_factory=dict)
    inside: dict[str, dict[str, Kind]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Script:
    """One script of a point."""

    point: str
    name: str
    path: Path

    def __str__(self) -> str:
        if self.point == IMAGE:
            return printable(f"the image's {paths.IMAGE_HOOKS}/gate/{self.name}")
        return printable(str(self.path))


@dataclass(frozen=True, slots=True)
class Order:
    """What happens at one point.

    Attributes:
        scripts: in the order in which they run.
        masked: path that does not run, and the path that says so.
        notes: what was ignored and why; not worth a warning.
    """

    scripts: tuple[Script, ...] = ()
    masked: tuple[tuple[Path, Path], ...] = ()
    notes: tuple[str, ...] = ()


def ignored(name: str) -> str | None:
    """Why a file of this name never runs, or None if it does."""
    if name.startswith("."):
        return "hidden"
    if _LEFT_OVER.fullmatch(name):
        return "a backup"
    return "a document" if _DOCUMENT.fullmatch(name) else None


def order(levels: Sequence[Level], point: str) -> Order:
    """The scripts of ``point``; later levels go over earlier ones."""
    chosen: dict[str, Script] = {}
    masked: list[tuple[Path, Path]] = []
    notes: list[str] = []

    def mask(name: str, by: Path) -> None:
        if (script := chosen.pop(name, None)) is not None:
            masked.append((script.path, by))

    for level in levels:
        here = level.path / point
        match level.names.get(point):
            case None:
                continue
            case Kind.MASK:
                for name in tuple(chosen):
                    mask(name, here)
                continue
            case Kind.DIRECTORY:
                found = {name: (kind, here / name) for name, kind in level.inside[point].items()}
            case kind if point in PLAIN:
                found = {point: (kind, here)}
            case _:
                notes.append(f"{printable(str(here))} is ignored: not a directory")
                continue
        for name, (kind, path) in found.items():
            shown = printable(str(path))
            if reason := ignored(name):
                notes.append(f"{shown} is ignored: {reason}")
            elif kind is Kind.DIRECTORY:
                notes.append(f"{shown} is ignored: a directory")
            else:
                mask(name, path)
                if kind is not Kind.MASK:
                    chosen[name] = Script(point, name, path)
    scripts = tuple(chosen[name] for name in sorted(chosen, key=os.fsencode))
    return Order(scripts, tuple(masked), tuple(notes))


def strangers(levels: Sequence[Level]) -> tuple[str, ...]:
    """Warnings for names that are no point and nothing that is ignored: most likely misspelt."""
    lines = []
    for level in levels:
        for name in sorted(level.names, key=os.fsencode):
            if name in POINTS or ignored(name):
                continue
            near = difflib.get_close_matches(name, POINTS, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{printable(str(level.path / name))} is no hook point, never run{meant}")
    return tuple(lines)


def image_scripts(place: Path) -> tuple[Script, ...]:
    """The hooks in ``place``, a copy of an image's directory, in the order in which they run."""
    names = _names(place / "gate") or {}
    return tuple(
        Script(IMAGE, name, place / "gate" / name)
        for name in sorted(names, key=os.fsencode)
        if ignored(name) is None and names[name] is not Kind.DIRECTORY
    )


def read_levels(config_root: Path) -> tuple[Level, ...]:
    """The hook directories beneath ``config_root`` that exist, weakest first.

    Raises:
        OSError: one cannot be read: what it holds may be a gate, so this is not passed over.
    """
    levels = []
    for relative in paths.HOOK_DIRECTORIES:
        path = config_root / relative
        names = _names(path)
        if names is None:
            continue
        inside = {
            name: _names(path / name) or {}
            for name, kind in names.items()
            if kind is Kind.DIRECTORY and name in POINTS
        }
        levels.append(Level(path, names, inside))
    return tuple(levels)


def _names(path: Path) -> dict[str, Kind] | None:
    try:
        with os.scandir(path) as listing:
            return {entry.name: _kind(entry) for entry in listing}
    except FileNotFoundError:
        return None


def _kind(entry: os.DirEntry[str]) -> Kind:
    if entry.is_symlink() and Path(entry.path).readlink() == Path("/dev/null"):
        return Kind.MASK
    try:
        mode = entry.stat().st_mode
    except OSError:
        return Kind.OTHER
    if stat.S_ISDIR(mode):
        return Kind.DIRECTORY
    return Kind.SCRIPT if stat.S_ISREG(mode) else Kind.OTHER


def _domain(script: Script, levels: Sequence[Level]) -> str:
    """Whose code it is: the site's, or that of the running system."""
    where = next(level.path for level in levels if script.path.is_relative_to(level.path))
    return "site" if where.as_posix().endswith("etc/bootc/hooks.d") else "running system"


def describe(config_root: Path) -> tuple[str, ...]:
    """Lines for ``bootc plugins list``: scripts in call order, what is masked, what is ignored."""
    levels = read_levels(config_root)
    lines = []
    for point in POINTS:
        found = order(levels, point)
        lines += [f"{point}: {script} ({_domain(script, levels)})" for script in found.scripts]
        lines += [
            f"{point}: {printable(str(path))} is masked by {printable(str(by))}"
            for path, by in found.masked
        ]
        lines += [f"{point}: {note}" for note in found.notes]
    return (*lines, *strangers(levels))
