"""Was the update any good? What was made to boot, what checks say, and what failed: three small files and a comparison.

    SYSROOT/bootc/health/baseline.json   what the checks said of the old system, before the update
                         pending.json    the deployment that was made to boot next, until it is found healthy
                         failed.json     the last update that did not work out, and why

A check is an executable in ``usr/lib/bootc/health.d`` or ``etc/bootc/health.d`` (the same name in etc replaces, a link to
/dev/null masks). Exit status 0: fine. Otherwise each line of its output is a finding. What the old system had wrong as well does
not count against the new one: a failed check counts only if it was fine before, or finds something it did not find then.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from bootc_core import limits
from bootc_core.errors import BootcError, printable
from bootc_core.fs import atomic
from bootc_core.fs.trusted import check_owner
from bootc_core.models.sysroot import Sysroot

DIRECTORIES: Final = ("usr/lib/bootc/health.d", "etc/bootc/health.d")
Kind = Literal["finalize", "boot", "health"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A deployment that was made to boot next, and what the last try of it said."""

    deployment: str
    digest: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """An update that did not work out.

    ``kind``: ``finalize`` (it never became bootable, and may be tried again), ``boot`` (it did not come up), ``health`` (its
    checks failed).
    """

    kind: Kind
    deployment: str
    digest: str
    reason: str
    when: str

    @property
    def refused(self) -> bool:
        """Is the image not to be offered again?"""
        return self.kind != "finalize"

    def __str__(self) -> str:
        what = {
            "finalize": "could not be made bootable",
            "boot": "did not come up",
            "health": "was not healthy",
        }[self.kind]
        return f"update {self.digest} {what}: {self.reason} ({self.when})"


@dataclass(frozen=True, slots=True)
class Result:
    """What one check said."""

    ok: bool
    findings: tuple[str, ...] = ()


# --- records --------------------------------------------------------------------------------------------------------------


def _path(sysroot: Sysroot, name: str) -> Path:
    return sysroot.state / "health" / f"{name}.json"


def _read(sysroot: Sysroot, name: str) -> dict[str, Any]:
    """A record; empty if it is missing or damaged: then nothing is known, and nothing is refused."""
    try:
        with _path(sysroot, name).open("rb") as file:
            value = json.loads(file.read(limits.SETTINGS_FILE_BYTES))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(sysroot: Sysroot, name: str, value: object) -> None:
    path = _path(sysroot, name)
    atomic.mkdir(sysroot.state, 0o755)
    atomic.mkdir(path.parent, 0o700)
    atomic.write_file(path, json.dumps(value, sort_keys=True).encode() + b"\n", mode=0o600)


def pending(sysroot: Sysroot) -> Pending | None:
    """The deployment that has yet to be found healthy, or None."""
    try:
        return Pending(**{key: str(value) for key, value in _read(sysroot, "pending").items()})
    except TypeError:
        return None


def note_pending(sysroot: Sysroot, found: Pending) -> None:
    """Remember what is about to be made bootable.

    Raises:
        StorageError: it cannot be written.
    """
    _write(sysroot, "pending", asdict(found))


def settle(sysroot: Sysroot) -> None:
    """Nothing is pending any more.

    Raises:
        StorageError: it cannot be removed.
    """
    atomic.unlink(_path(sysroot, "pending"))


def failed(sysroot: Sysroot) -> Failed | None:
    """The last update that did not work out, or None."""
    value = _read(sysroot, "failed")
    if value.get("kind") not in {"finalize", "boot", "health"}:
        return None
    try:
        return Failed(**{key: str(text) for key, text in value.items()})  # type: ignore[arg-type]
    except TypeError:
        return None


def note_failed(sysroot: Sysroot, kind: Kind, update: Pending) -> Failed:
    """Remember that an update did not work out; ``update.reason`` says why.

    Raises:
        StorageError: it cannot be written.
    """
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = Failed(kind, update.deployment, update.digest, printable(update.reason, 600), when)
    _write(sysroot, "failed", asdict(found))
    return found


def forget_failed(sysroot: Sysroot) -> None:
    """Nothing failed that still matters.

    Raises:
        StorageError: it cannot be removed.
    """
    atomic.unlink(_path(sysroot, "failed"))


# --- checks ---------------------------------------------------------------------------------------------------------------


def find_checks(root: Path) -> dict[str, Path]:
    """The checks beneath a root by name, in the order in which they run."""
    found: dict[str, Path] = {}
    for directory in DIRECTORIES:
        try:
            names = os.listdir(root / directory)
        except OSError:
            continue
        for name in names:
            if not name.startswith("."):
                found[name] = root / directory / name
    return dict(sorted(found.items()))


def run_checks(root: Path = Path("/")) -> dict[str, Result]:
    """Run all checks, one after the other; one that cannot be run has failed."""
    results = {}
    for name, path in find_checks(root).items():
        if path.is_symlink() and str(path.readlink()) == "/dev/null":
            continue
        results[name] = _run(path, root)
    return results


def _run(path: Path, root: Path) -> Result:
    from bootc_core.process import run_blocking  # here: `status` reads records only

    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
            return Result(False, ("it is not an executable file",))
        check_owner(path, info, root)
        done = run_blocking([str(path)], timeout_s=limits.HOOK_TIMEOUT_S, check=False)
    except BootcError as problem:
        return Result(False, (problem.message,))
    except OSError as problem:
        return Result(False, (problem.strerror or str(problem),))
    if done.returncode == 0:
        return Result(True)
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    lines = [printable(line.strip(), 200) for line in text.splitlines() if line.strip()]
    return Result(False, tuple(lines[:50]) or (f"it ended with {done.ending()}",))


def judge(now: Mapping[str, Result], before: Mapping[str, Result]) -> list[str]:
    """What counts against the new system, a line each; empty: it is as healthy as the old one was. Pure."""
    found = []
    for name, result in now.items():
        if result.ok:
            continue
        earlier = before.get(name, Result(True))
        fresh = [line for line in result.findings if line not in earlier.findings]
        if earlier.ok or fresh:
            found += [f"{name}: {line}" for line in (fresh or result.findings)]
    return found


def take_baseline(sysroot: Sysroot, root: Path = Path("/")) -> None:
    """Ask the checks of the system that is running before an update.

    Raises:
        StorageError: the answer cannot be kept.
    """
    _write(sysroot, "baseline", {name: asdict(one) for name, one in run_checks(root).items()})


def baseline(sysroot: Sysroot) -> dict[str, Result]:
    """What was found before the update; empty if nothing is known, so that every failure counts."""
    found = {}
    for name, value in _read(sysroot, "baseline").items():
        if isinstance(value, dict) and isinstance(value.get("findings"), list):
            found[name] = Result(value.get("ok") is True, tuple(map(str, value["findings"])))
    return found


# --- decisions ------------------------------------------------------------------------------------------------------------


def fell_back(
    update: Pending | None, running: str | None, first: str | None, present: tuple[str, ...]
) -> Pending | None:
    """The update that the boot loader gave up, or None. Pure.

    Args:
        update: what was to boot.
        running: the deployment that runs.
        first: the one that boots next.
        present: all that have a boot entry.
    """
    if update is None or running is None or update.deployment in {running, first}:
        return None
    if update.deployment not in present:
        return None  # it never became bootable, or was taken away since
    return replace(
        update, reason=update.reason or "it did not reach its health checks in any of its boots"
    )
