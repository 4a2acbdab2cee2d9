"""The one door to other programs: clean environment, deadline, bounded output, nothing left over.

Each program leads its own process group (and session, so that no terminal reaches it). When it
ends, when its time is up and when the caller is cancelled, the whole group goes: TERM, a grace,
KILL. What daemonised itself out of the group may keep the pipes open: nobody waits for pipes, only
for the program. Output beyond a bound is dropped in the middle (first and last half are kept) and
never makes the program block. If this process is killed, `undertaker` ends the group.

``run`` is for trio, ``run_blocking`` for the few places without it; both follow the same rules.
Trio is imported on first use.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootc_core import limits, undertaker
from bootc_core.errors import BootcError, UnsupportedEnvironmentError, printable

log = logging.getLogger("bootc.process")

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READ_BYTES: Final = 64 * limits.KIB
_LAST_READS: Final = (
    32  # after the program's end; more than any pipe holds, less than a daemon can babble
)
_LINES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended.

    Attributes:
        returncode: exit status; ``-N`` if signal N ended it.
        stdout, stderr: what it wrote, at most ``output_limit`` bytes each plus a line that says
            what was left out.
        truncated: something was left out.
        timed_out: it was ended at its deadline.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False

    def ending(self) -> str:
        """How it ended, in words: ``exit status 3``, ``killed by SIGSEGV``."""
        return describe_ending(self.returncode)

    def last_lines(self, count: int = _LINES_SHOWN) -> str:
        """The last lines of stderr (or else of stdout), escaped, joined by `` | ``; may be ""."""
        for text in (self.stderr, self.stdout):
            if lines := [line.strip() for line in text.splitlines() if line.strip()]:
                return " | ".join(printable(line) for line in lines[-count:])
        return ""


def describe_ending(returncode: int) -> str:
    """A return code in words; 126 and 127 are explained as shells use them."""
    if returncode < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-returncode).name}"
        return f"killed by signal {-returncode}"
    meaning = {
        126: " (a command in it cannot be executed)",
        127: " (a command in it was not found)",
    }
    return f"exit status {returncode}{meaning.get(returncode, '')}"


def clean_environment(**extra: str) -> dict[str, str]:
    """What programs get instead of our environment: search path, locale, home, and ``extra``."""
    return {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/"), **extra}


class _Capture:
    """The first and the last half of ``limit`` bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._room = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped = 0

    def add(self, data: bytes) -> None:
        take = self._room - len(self._head)
        if take > 0:
            self._head += data[:take]
            data = data[take:]
        if data:
            self._tail += data
            if (excess := len(self._tail) - self._room) > 0:
                del self._tail[:excess]
                self.dropped += excess

    def value(self) -> bytes:
        if not self.dropped:
            return bytes(self._head + self._tail)
        return b"%b\n[%d bytes left out]\n%b" % (
            bytes(self._head),
            self.dropped,
            bytes(self._tail),
        )


class _Program:
    """A started program and its pipes; reaped by ``finish`` only, so that its ids stay its own."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        output_limit: int,
        process_group: bool,
        pass_fds: Sequence[int],
        executable: str | None,
        label: str,
    ) -> None:
        if not argv:
            raise ValueError("an empty argument list")
        log.debug("running %s", printable(shlex.join(argv), 2000))
        self.label = label
        self.group = process_group
        self.stdin = memoryview(stdin or b"")
        self.out, self.err = _Capture(output_limit), _Capture(output_limit)
        if process_group:
            undertaker.prepare()
        try:
            self.popen = subprocess.Popen(
                list(argv),
                executable=executable,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(clean_environment() if env is None else env),
                cwd=cwd or "/",
                bufsize=0,
                umask=0o022,
                start_new_session=process_group,
                pass_fds=tuple(pass_fds),
            )
        except (OSError, ValueError) as problem:  # ValueError: a NUL in an argument
            raise _cannot_start(problem, label, cwd) from problem
        if process_group:
            undertaker.add(self.popen.pid)
        self.pidfd = os.pidfd_open(self.popen.pid)
        self.pipes: dict[int, _Capture] = {}
        for pipe, capture in ((self.popen.stdout, self.out), (self.popen.stderr, self.err)):
            assert pipe is not None  # noqa: S101 - asked for above
            os.set_blocking(pipe.fileno(), False)
            self.pipes[pipe.fileno()] = capture
        if self.popen.stdin:
            os.set_blocking(self.popen.stdin.fileno(), False)

    def read(self, descriptor: int) -> bool:
        """Take what the pipe holds; False at its end. ``BlockingIOError``: nothing there now."""
        data = os.read(descriptor, _READ_BYTES)
        self.pipes[descriptor].add(data)
        return bool(data)

    def feed(self) -> bool:
        """Write some of stdin; False when done or nobody reads. ``BlockingIOError``: pipe full."""
        assert self.popen.stdin is not None  # noqa: S101 - the caller looked
        try:
            if self.stdin:
                self.stdin = self.stdin[
                    os.write(self.popen.stdin.fileno(), self.stdin[:_READ_BYTES]) :
                ]
        except BrokenPipeError:  # a program need not read what it is offered
            self.stdin = memoryview(b"")
        if not self.stdin:
            self.popen.stdin.close()
        return bool(self.stdin)

    def signal(self, number: int) -> None:
        """Send a signal to the group, or to the program if it has none of its own."""
        with contextlib.suppress(ProcessLookupError):
            if self.group:
                os.killpg(self.popen.pid, number)
            else:
                os.kill(self.popen.pid, number)

    def finish(self, *, ended: bool, timed_out: bool) -> Completed:
        """Take the group's remains down, reap, read what is in the pipes now, close them."""
        if self.group or not ended:
            self.signal(signal.SIGKILL)
        returncode = self.popen.wait() if ended else self.popen.poll()
        if (
            returncode is None
        ):  # not even KILL ends it: it hangs in the kernel, and we do not hang with it
            returncode = self.popen.returncode = -signal.SIGKILL
        for descriptor in self.pipes:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_LAST_READS):
                    if not self.read(descriptor):
                        break
        if self.group:
            undertaker.remove(self.popen.pid)
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self.pidfd)
        log.debug("%s: %s", printable(self.label), describe_ending(returncode))
        return Completed(
            returncode,
            self.out.value(),
            self.err.value(),
            truncated=bool(self.out.dropped or self.err.dropped),
            timed_out=timed_out,
        )


def _cannot_start(
    problem: OSError | ValueError, label: str, cwd: str | os.PathLike[str] | None
) -> UnsupportedEnvironmentError:
    number = problem.errno if isinstance(problem, OSError) else None
    name = printable(label)
    if number == errno.ENOENT and cwd is not None and not Path(cwd).is_dir():
        return UnsupportedEnvironmentError(
            f"cannot run {name}: its directory {printable(os.fspath(cwd))} is missing",
            reference="program-directory",
        )
    if number == errno.ENOENT:
        return UnsupportedEnvironmentError(
            f"the program {name} is not installed",
            reference="program-missing",
            hint=f"install the package that has {name}, or put it into {SEARCH_PATH}",
        )
    reference = {errno.EACCES: "program-not-permitted", errno.EPERM: "program-not-permitted"}
    found = os.strerror(number) if number else printable(str(problem))
    return UnsupportedEnvironmentError(
        f"cannot run {name}",
        reference=reference.get(number or 0, "program-not-executable"),
        found=found,
    )


def _judge(
    completed: Completed, argv: Sequence[str], label: str, timeout_s: float, error: type[BootcError]
) -> None:
    """Raise if the program did not end with status 0 in time."""
    if completed.timed_out:
        raise error(
            f"{printable(label)} did not end in time",
            reference="program-timeout",
            expected=f"an end within {timeout_s:g} s",
            found=completed.last_lines() or None,
            hint=f"try it by hand: {printable(shlex.join(argv), 1000)}",
        )
    if completed.returncode != 0:
        said = completed.last_lines()
        raise error(
            f"{printable(label)} failed: {completed.ending()}",
            reference="program-failed",
            found=said or None,
            hint=f"try it by hand: {printable(shlex.join(argv), 1000)}",
        )


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    output_limit: int = limits.HOOK_OUTPUT_BYTES,
    process_group: bool = True,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    executable: str | None = None,
    error: type[BootcError] = BootcError,
    label: str | None = None,
) -> Completed:
    """Run a program to its end, under trio.

    Cancelled, it ends the program (TERM, ``limits.HOOK_TERM_GRACE_S``, KILL) before the
    cancellation goes on.

    Args:
        argv: the program and its arguments; searched in PATH of ``env``'s child, never a shell.
        stdin: what it may read; None: ``/dev/null``.
        timeout_s: seconds until it is ended.
        env: its whole environment; None: ``clean_environment()``.
        cwd: its directory; None: ``/``.
        output_limit: bytes kept of each of stdout and stderr.
        process_group: it leads a session and group, which ends with it.
        check: raise unless it ends with status 0 in time.
        pass_fds: descriptors it inherits under the same numbers.
        executable: what is executed instead of ``argv[0]``, e.g. ``/proc/self/fd/7`` of a checked
        file.
        error: what ``check`` raises.
        label: its name in messages; None: ``argv[0]``.

    Raises:
        UnsupportedEnvironmentError: it cannot be started (the ``OSError`` is the cause).
        BootcError: of class ``error``: ``program-failed``, ``program-timeout``.
    """
    import trio

    label = label or argv[0]
    program = _Program(
        argv,
        stdin=stdin,
        env=env,
        cwd=cwd,
        output_limit=output_limit,
        process_group=process_group,
        pass_fds=pass_fds,
        executable=executable,
        label=label,
    )
    ended = timed_out = False

    async def drain(descriptor: int) -> None:
        more = True
        while more:
            await trio.lowlevel.wait_readable(descriptor)
            with contextlib.suppress(BlockingIOError):
                more = program.read(descriptor)

    async def feed() -> None:
        more = True
        while more:
            assert program.popen.stdin is not None  # noqa: S101 - started with one
            await trio.lowlevel.wait_writable(program.popen.stdin.fileno())
            with contextlib.suppress(BlockingIOError):
                more = program.feed()

    async def wait_end(seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(program.pidfd)
            return True
        return False

    async def end() -> bool:
        program.signal(signal.SIGTERM)
        if await wait_end(limits.HOOK_TERM_GRACE_S):
            return True
        program.signal(signal.SIGKILL)
        return await wait_end(limits.HOOK_TERM_GRACE_S)

    try:
        async with trio.open_nursery() as nursery:
            for descriptor in program.pipes:
                nursery.start_soon(drain, descriptor)
            if program.popen.stdin:
                nursery.start_soon(feed)
            ended = await wait_end(timeout_s)
            if not ended:
                timed_out = True
                ended = await end()
            nursery.cancel_scope.cancel()
    finally:
        if not ended:
            with trio.CancelScope(shield=True):
                ended = await end()
        completed = program.finish(ended=ended, timed_out=timed_out)
    if check:
        _judge(completed, argv, label, timeout_s, error)
    return completed


def run_blocking(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    output_limit: int = limits.HOOK_OUTPUT_BYTES,
    process_group: bool = True,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    executable: str | None = None,
    error: type[BootcError] = BootcError,
    label: str | None = None,
) -> Completed:
    """As ``run``, for places without trio; blocks the thread.

    An exception that arrives meanwhile (Ctrl-C) ends the program first.

    Raises:
        UnsupportedEnvironmentError: it cannot be started.
        BootcError: of class ``error``: ``program-failed``, ``program-timeout``.
    """
    label = label or argv[0]
    program = _Program(
        argv,
        stdin=stdin,
        env=env,
        cwd=cwd,
        output_limit=output_limit,
        process_group=process_group,
        pass_fds=pass_fds,
        executable=executable,
        label=label,
    )
    ended = timed_out = False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(program.pidfd, selectors.EVENT_READ)
            for descriptor in program.pipes:
                selector.register(descriptor, selectors.EVENT_READ)
            if program.popen.stdin:
                selector.register(program.popen.stdin, selectors.EVENT_WRITE)
            ended = _serve(program, selector, timeout_s)
            if not ended:
                timed_out = True
                ended = _end(program, selector)
    finally:
        if not ended:
            with selectors.DefaultSelector() as selector:
                selector.register(program.pidfd, selectors.EVENT_READ)
                ended = _end(program, selector)
        completed = program.finish(ended=ended, timed_out=timed_out)
    if check:
        _judge(completed, argv, label, timeout_s, error)
    return completed


def _end(program: _Program, selector: selectors.BaseSelector) -> bool:
    program.signal(signal.SIGTERM)
    if _serve(program, selector, limits.HOOK_TERM_GRACE_S):
        return True
    program.signal(signal.SIGKILL)
    return _serve(program, selector, limits.HOOK_TERM_GRACE_S)


def _serve(program: _Program, selector: selectors.BaseSelector, seconds: float) -> bool:
    """Move bytes until the program ends (True) or the time is up (False)."""
    for ready in _until(selector, time.monotonic() + seconds):
        if ready == program.pidfd:
            return True
        with contextlib.suppress(BlockingIOError):
            if ready in program.pipes:
                more = program.read(ready)
                if not more:
                    selector.unregister(ready)
            elif program.popen.stdin is not None:
                stdin = program.popen.stdin
                if (
                    len(program.stdin) <= _READ_BYTES
                ):  # the last piece closes the pipe: forget it first
                    selector.unregister(stdin)
                    if program.feed():
                        selector.register(stdin, selectors.EVENT_WRITE)
                else:
                    program.feed()
    return False


def _until(selector: selectors.BaseSelector, deadline: float) -> Iterator[int]:
    while (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            yield key.fd
