"""Runs the scripts of a point and turns how they end into the contract's three answers.

    stdin        the context as one JSON object and a newline environment  PATH, LANG, HOME,
    BOOTC_API, BOOTC_HOOK (the point), BOOTC_PHASE, BOOTC_SCRIPT, BOOTC_SYSROOT exit status  0
    proceed · 21 not now · 126, 127, a signal, the deadline: it broke · anything else: no stdout
    optionally {"verdict": "proceed"|"hold"|"deny", "reason": "...", "until": "RFC 3339"}

Only ``gate`` and ``pre-upgrade`` may say "not now" or "no"; elsewhere everything but 0 is an error,
which aborts before the point of no return and warns after it (the engine decides). A script that
cannot be trusted (owner, mode, a directory above it) or started is never passed over: its point
fails and names it, because it may be the one that would have said no.

A script is opened once, checked by its handle and executed by that handle, so it cannot be swapped
in between. It therefore sees ``/proc/self/fd/N`` as ``$0``; its own path is in BOOTC_SCRIPT.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bootc_core import limits, process
from bootc_core.errors import BootcError, HookError, UnsupportedEnvironmentError, printable
from bootc_core.hooks.markers import API
from bootc_core.models.base import parse_json
from bootc_core.models.context import Context, Operation, Phase
from bootc_core.models.verdict import Deny, Hold, Proceed, Verdict, strictness
from bootc_hooks_dir.discover import (
    IMAGE,
    POST_UPGRADE,
    PRE_UPGRADE,
    Level,
    Script,
    image_scripts,
    order,
    read_levels,
    strangers,
)

log = logging.getLogger("bootc.hooks_dir")

SANDBOX: Final = "bootc_core.containment.sandbox"
IMAGE_HOOKS_OFF: Final = 'goes on without the hooks of images: [plugins] image-hooks = "no"'
NOT_NOW: Final = 21  # as Mender's state scripts have it
_BROKE: Final = (126, 127)  # what a shell says when a command in it cannot be run
_HOLD_DEFAULT: Final = timedelta(hours=1)
_UNDOABLE: Final = frozenset({"after-finalize", "after-rollback", "after-boot", POST_UPGRADE})
_BY_HANDLE: Final = Path("/proc/self/fd").is_dir()


# --- decisions: pure
# -------------------------------------------------------------------------------


def decide(script: Script, done: process.Completed, now: datetime) -> Verdict:
    """What a gate's ending means; the stricter of exit status and JSON verdict counts.

    Raises:
        HookError: it broke, or its verdict cannot be understood.
    """
    if done.timed_out or done.returncode < 0 or done.returncode in _BROKE:
        raise broken(script, done)
    if (said := parse_verdict(script, done, now)) is not None:
        done = replace(done, stdout=b"")  # understood; not words for people
    if done.returncode == 0:
        return said or Proceed()
    if done.returncode == NOT_NOW:
        if isinstance(said, Hold | Deny):
            return said
        reason = f"{script}: {done.last_lines() or 'not now'}"
        return Hold(now + _HOLD_DEFAULT, reason)
    if isinstance(said, Deny):
        return said
    return Deny(f"{script}: {done.last_lines() or done.ending()}")


def parse_verdict(script: Script, done: process.Completed, now: datetime) -> Verdict | None:
    """The JSON verdict on stdout, or None if stdout is something else (not beginning with ``{``).

    Raises:
        HookError: it begins like one and is none.
    """
    text = done.stdout.strip()
    if not text.startswith(b"{"):
        return None

    def bad(found: str) -> HookError:
        return HookError(
            f"the verdict of {script} cannot be understood",
            reference="bad-verdict",
            expected='{"verdict": "proceed|hold|deny", "reason": "...", "until": "RFC 3339"}',
            found=found,
        )

    if done.truncated:
        raise bad(f"more than {limits.HOOK_OUTPUT_BYTES} bytes of output")
    value: Any = parse_json(text, f"the verdict of {script}", error=HookError, catalogue="HOOK")
    if unknown := sorted(set(value) - {"verdict", "reason", "until"}):
        raise bad(f"unknown key {printable(unknown[0], 60)!r}")
    reason = value.get("reason", "")
    if not isinstance(reason, str):
        raise bad("a reason that is not text")
    shown = f"{script}: {printable(reason)}"
    match value.get("verdict"):
        case "proceed":
            return Proceed(warning=shown if reason else None)
        case "deny":
            return Deny(shown if reason else f"{script}: denied")
        case "hold":
            until = _parse_until(value.get("until"), now)
            if until is None:
                raise bad(f"until {printable(repr(value['until']), 60)}")
            return Hold(until, shown if reason else f"{script}: not now")
        case other:
            raise bad(f"verdict {printable(repr(other), 60)}")


def _parse_until(value: object, now: datetime) -> datetime | None:
    """The end of a hold, bounded; the default if ``value`` is None; None: not a time."""
    if value is None:
        return now + _HOLD_DEFAULT
    if not isinstance(value, str):
        return None
    try:
        until = datetime.fromisoformat(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        return None
    if until <= now:  # over already, and it still says "hold"
        return now + _HOLD_DEFAULT
    return min(until, now + timedelta(seconds=limits.HOLD_MAX_S))


def broken(script: Script, done: process.Completed) -> HookError:
    """The error for a script that did not end as scripts should."""
    if done.timed_out:
        return HookError(
            f"{script} did not end in time",
            reference="hook-timeout",
            expected=f"an end within {limits.HOOK_TIMEOUT_S:g} s",
            found=done.last_lines() or None,
            hint="start long work as a unit of its own (systemd-run) and end the script",
        )
    return HookError(
        f"{script} failed: {done.ending()}",
        found=done.last_lines() or None,
        hint=IMAGE_HOOKS_OFF
        if script.point == IMAGE
        else f"mask it with a link to /dev/null under its name in {_etc(script)}",
    )


def _etc(script: Script) -> str:
    return f"/etc/bootc/hooks.d/{script.point}" + ("" if script.name == script.point else "/")


def strictest(verdicts: Sequence[Verdict]) -> Verdict:
    """The strictest of all; of holds the longest; warnings are joined."""
    if not verdicts:
        return Proceed()
    top = max(strictness(verdict) for verdict in verdicts)
    holds = [verdict for verdict in verdicts if isinstance(verdict, Hold)]
    if top == 1:
        return max(holds, key=lambda hold: hold.until)
    if top == 0:
        warnings = [v.warning for v in verdicts if isinstance(v, Proceed) and v.warning]
        return Proceed("; ".join(warnings) or None)
    return next(verdict for verdict in verdicts if isinstance(verdict, Deny))


def gate_points(context: Context, phase: Phase) -> tuple[str, ...]:
    """The points that are asked whether ``phase`` may begin."""
    upgrade = context.operation in {Operation.SWITCH, Operation.UPGRADE}
    return (PRE_UPGRADE, "gate") if upgrade and phase is Phase.FETCH else ("gate",)


# --- trust
# -----------------------------------------------------------------------------------------


def _refuse(script: Script, what: str, *, expected: str, found: str) -> HookError:
    return HookError(
        f"{script} is not run: {what}",
        reference="hook-not-trusted",
        expected=expected,
        found=found,
        hint="correct owner and mode (chown root:root, chmod go-w), or mask the script",
    )


def _check(script: Script, info: os.stat_result, path: Path) -> None:
    """Owner and mode: root's own when root runs it; for a user root's or the user's."""
    user = os.geteuid()
    name = printable(str(path))
    if info.st_uid not in {0, user}:
        who = "root" if user == 0 else "root or the user who runs bootc"
        raise _refuse(
            script, f"{name} belongs to another user", expected=who, found=f"uid {info.st_uid}"
        )
    writable = 0o022 if user == 0 else 0o002  # a user's umask often leaves the group's bit
    if info.st_mode & writable:
        others = "not writable by group or others" if user == 0 else "not writable by others"
        found = f"mode {stat.S_IMODE(info.st_mode):04o}"
        raise _refuse(script, f"{name} can be changed by others", expected=others, found=found)


def _check_above(script: Script, path: Path, root: Path) -> None:
    """All directories above ``path``, up to the configuration root."""
    if not path.is_relative_to(root):
        raise _refuse(
            script,
            "its link leads out of the configuration root",
            expected=f"a file beneath {printable(str(root))}",
            found=printable(str(path)),
        )
    for directory in path.parents:
        if directory == root:
            break
        _check(script, directory.stat(), directory)


@contextlib.contextmanager
def opened(script: Script, config_root: Path) -> Iterator[int]:
    """A descriptor of the script, checked: a regular, executable file that nobody else can change.

    Raises:
        HookError: it is not.
    """
    root = config_root.resolve()
    try:
        descriptor = os.open(script.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as problem:
        raise HookError(
            f"{script} cannot be opened", found=os.strerror(problem.errno or 0)
        ) from problem
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise HookError(f"{script} is not a regular file", reference="hook-not-executable")
        real = script.path.resolve()
        if _BY_HANDLE:
            real = Path(f"/proc/self/fd/{descriptor}").readlink()
        _check_above(script, script.path.parent.resolve() / script.name, root)
        _check_above(script, real, root)
        _check(script, info, real)
        if not info.st_mode & 0o111:
            raise HookError(
                f"{script} is not executable",
                reference="hook-not-executable",
                found=f"mode {stat.S_IMODE(info.st_mode):04o}",
                hint=f"chmod +x {script}, or move it out of the directory",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _cannot_start(script: Script, descriptor: int, problem: OSError) -> HookError:
    first = os.pread(descriptor, 256, 0).split(b"\n", 1)[0]
    found: str | None = os.strerror(problem.errno or 0)
    hint = None
    if problem.errno == errno.ENOENT and first.startswith(b"#!"):
        found = f"its interpreter is missing: {printable(first[2:].strip())}"
    elif problem.errno == errno.ENOEXEC:
        found = "neither a program for this machine nor a script"
        hint = "begin scripts with a line such as #!/bin/sh"
    elif problem.errno == errno.EACCES:
        hint = "is its file system mounted noexec, or a security module in the way?"
    return HookError(
        f"{script} cannot be started", reference="hook-not-executable", found=found, hint=hint
    )


# --- acting
# ----------------------------------------------------------------------------------------


async def run_script(script: Script, context: Context, phase: str) -> process.Completed:
    """Check, start and await one script; cancelled, its process group is gone first.

    Raises:
        HookError: not trusted, or it cannot be started.
    """
    environment = process.clean_environment(
        BOOTC_API=str(API),
        BOOTC_HOOK=script.point,
        BOOTC_PHASE=phase,
        BOOTC_SCRIPT=str(script.path),
        BOOTC_SYSROOT=context.sysroot,
    )
    with opened(script, Path(context.config_root)) as descriptor:
        before = os.fstat(descriptor)
        try:
            done = await process.run(
                [str(script.path)],
                executable=f"/proc/self/fd/{descriptor}" if _BY_HANDLE else None,
                stdin=context.model_dump_json().encode() + b"\n",
                timeout_s=limits.HOOK_TIMEOUT_S,
                env=environment,
                output_limit=limits.HOOK_OUTPUT_BYTES,
                check=False,
                pass_fds=(descriptor,),
            )
        except UnsupportedEnvironmentError as problem:
            cause = problem.__cause__
            if isinstance(cause, OSError):
                raise _cannot_start(script, descriptor, cause) from cause
            raise
        after = script.path.stat() if not _BY_HANDLE else before
    if (before.st_dev, before.st_ino, before.st_ctime_ns) != (
        after.st_dev,
        after.st_ino,
        after.st_ctime_ns,
    ):
        raise HookError(f"{script} was replaced while it ran", reference="hook-not-trusted")
    log.info("%s: %s %s", script, done.ending(), done.last_lines())
    return done


def _levels(config_root: Path) -> tuple[Level, ...]:
    try:
        return read_levels(config_root)
    except OSError as problem:
        raise HookError(
            f"the hook directory {printable(str(problem.filename or config_root))} cannot be read",
            reference="hook-directory",
            found=os.strerror(problem.errno or 0),
            hint="it may hold a gate, so it is not passed over; correct it, or move it away",
        ) from problem


def _scripts(levels: Sequence[Level], point: str) -> tuple[Script, ...]:
    found = order(levels, point)
    for note in found.notes:
        log.info("%s", note)
    return found.scripts


async def ask(context: Context, phase: Phase) -> Verdict | None:
    """Ask every script of the phase's gates, in order, until one denies; None if there is none.

    Raises:
        HookError: one broke, or cannot be trusted.
    """
    levels = _levels(Path(context.config_root))
    verdicts: list[Verdict] = []
    if phase in {Phase.FETCH, Phase.ROLLBACK}:  # once a run
        verdicts += [Proceed(warning) for warning in strangers(levels)]
    for point in gate_points(context, phase):
        for script in _scripts(levels, point):
            done = await run_script(script, context, phase)
            verdicts.append(decide(script, done, datetime.now(UTC)))
            if isinstance(verdicts[-1], Deny):
                return verdicts[-1]
    if phase is Phase.FINALIZE and context.image_hooks:
        verdicts += await ask_image(Path(context.image_hooks), context)
    return strictest(verdicts) if verdicts else None


async def ask_image(place: Path, context: Context) -> list[Verdict]:
    """Ask the hooks that the staged image brought, in order, until one denies.

    Raises:
        HookError: one broke, or cannot be contained here.
    """
    verdicts: list[Verdict] = []
    for script in image_scripts(place):
        done = await run_contained(script, context)
        verdicts.append(decide(script, done, datetime.now(UTC)))
        if isinstance(verdicts[-1], Deny):
            break
    return verdicts


async def run_contained(script: Script, context: Context) -> process.Completed:
    """Run a hook of an image in the sandbox.

    Raises:
        HookError: it is no executable file.
    """
    environment = process.clean_environment(
        BOOTC_API=str(API), BOOTC_HOOK="gate", BOOTC_PHASE=context.phase, BOOTC_SCRIPT=script.name
    )
    environment["HOME"] = "/"
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    try:
        descriptor = os.open(script.path, flags)
    except OSError as problem:
        raise HookError(
            f"{script} cannot be opened", found=os.strerror(problem.errno or 0)
        ) from problem
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o001:
            raise HookError(
                f"{script} is not run: it is no file that everybody may execute",
                reference="hook-not-executable",
                found=stat.filemode(info.st_mode),
                hint="that is for the image's builder to correct; " + IMAGE_HOOKS_OFF,
            )
        done = await process.run(
            [sys.executable, "-I", "-m", SANDBOX, str(descriptor), script.name],
            stdin=context.model_dump_json().encode() + b"\n",
            timeout_s=limits.HOOK_TIMEOUT_S,
            env=environment,
            output_limit=limits.HOOK_OUTPUT_BYTES,
            check=False,
            pass_fds=(descriptor,),
            label=str(script),
        )
    finally:
        os.close(descriptor)
    log.info("%s: %s %s", script, done.ending(), done.last_lines())
    return done


async def rehearse(context: Context, point: str) -> list[tuple[str, str, bool]]:
    """Run every script of ``point`` with this context; its path, how it ended, and whether a run would go on.

    Raises:
        HookError: the directory cannot be read.
    """
    results = []
    asks = point in {PRE_UPGRADE, "gate"}
    for script in _scripts(_levels(Path(context.config_root)), point):
        try:
            done = await run_script(script, context, context.phase)
            if asks:
                said = decide(script, done, datetime.now(UTC))
                match said:
                    case Proceed():
                        ended = said.warning or "proceed"
                    case Hold():
                        ended = f"hold until {said.until:%Y-%m-%dT%H:%M:%SZ}: {said.reason}"
                    case _:
                        ended = f"deny: {said.reason}"
                results.append((str(script), ended, isinstance(said, Proceed)))
            else:
                good = done.returncode == 0 and not done.timed_out
                last = done.last_lines()
                results.append((str(script), done.ending() + (f": {last}" if last else ""), good))
        except HookError as problem:
            found = f" ({problem.found})" if problem.found else ""
            results.append((str(script), f"{problem.message}{found}", False))
    return results


async def take_part(context: Context, *points: str) -> None:
    """Run every script of the points, in order.

    Before the point of no return the first failure ends it; after it all are run, since each may
    be the one that tells somebody, and the failures are reported together.

    Raises:
        HookError: one failed.
    """
    levels = _levels(Path(context.config_root))
    failures: list[BootcError] = []
    for point in points:
        for script in _scripts(levels, point):
            try:
                done = await run_script(script, context, context.phase)
                if done.returncode != 0 or done.timed_out:
                    raise broken(script, done)
            except HookError as problem:
                if point not in _UNDOABLE:
                    raise
                failures.append(problem)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise HookError(
            f"{len(failures)} scripts failed",
            found="; ".join(
                f"{problem.message}{f' ({problem.found})' if problem.found else ''}"
                for problem in failures
            ),
        )
