"""A plugin of others, as the engine sees it: the same hooks, in a child process or here, with a declared meaning of failure.

A failure of a gate or participant whose plugin declares ``BOOTC_ON_FAILURE = "open"`` (or that root's configuration calls so) is a
warning; otherwise it is an error, which stops a run before the switch. A policy's failure is always an error: a missing verifier
means refuse. Either way it costs its deadline at most.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bootc_core import limits, process, undertaker
from bootc_core.containment.declared import PARTICIPANTS, Declared
from bootc_core.errors import BootcError, HookError, PluginError, printable
from bootc_core.hooks.discovery import PluginSource
from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import PolicyOffer
from bootc_core.models.context import Context, Phase
from bootc_core.models.events import Event
from bootc_core.models.image import FetchedImage
from bootc_core.models.verdict import Proceed

log = logging.getLogger("bootc.plugins")
_KEPT = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "TZ")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Deadlines in seconds, and bytes of memory, of a plugin's calls."""

    gate_s: float = limits.CHILD_GATE_TIMEOUT_S
    verify_s: float = limits.CHILD_VERIFY_TIMEOUT_S
    participant_s: float = limits.CHILD_PARTICIPANT_TIMEOUT_S
    events_s: float = limits.CHILD_EVENTS_TIMEOUT_S
    memory_bytes: int = limits.CHILD_MEMORY_BYTES

    def of(self, hook: str) -> float:
        """Seconds for one call of ``hook``."""
        return {"bootc_gate": self.gate_s, "bootc_verify": self.verify_s}.get(
            hook, self.participant_s
        )


class Contained:
    """The stand-in for one plugin; its hooks are attributes, as pluggy looks for them."""

    BOOTC_API = 1

    def __init__(
        self,
        source: PluginSource,
        declared: Declared,
        *,
        module: ModuleType | None = None,
        fail_open: bool | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """Stand in for the plugin.

        Args:
            source: where it comes from.
            declared: what its source says.
            module: run it here, this; None: in a child process.
            fail_open: what root says a failure means; None: as the plugin declares.
            bounds: of its calls.
        """
        self._source, self._declared, self._module = source, declared, module
        self._open = declared.on_failure == "open" if fail_open is None else fail_open
        self._bounds = bounds or Bounds()
        self.__name__ = source.module
        where = "in process" if module else "in a child"
        self.place = f"{where}, fails {'open' if self._open else 'closed'}"
        for name in declared.hooks:
            setattr(self, name, hookimpl(self._make(name)))

    def _make(self, hook: str) -> Callable[..., Any]:
        if hook == "bootc_gate":

            async def bootc_gate(context: Context, phase: Phase) -> Any:
                return await self._guarded(hook, context=context, phase=phase)

            return bootc_gate
        if hook == "bootc_verify":

            async def bootc_verify(context: Context, image: FetchedImage) -> Any:
                return await self._call(hook, context=context, image=image)

            return bootc_verify
        if hook in PARTICIPANTS:

            async def participant(context: Context) -> Any:
                return await self._guarded(hook, context=context)

            return participant
        if hook == "bootc_on_event":
            if self._module is not None:
                return _plain(self._module.bootc_on_event)
            return _Observer(self._source, self._bounds).function()
        if hook == "bootc_register_policies":

            def register() -> list[PolicyOffer]:
                return [PolicyOffer(self._source.name)]

            return register
        raise PluginError(
            f"plugin {self._source.name} has the hook {hook}, which only works in this process",
            reference="plugin-in-process",
        )

    async def _guarded(self, hook: str, **arguments: object) -> Any:
        try:
            answer = await self._call(hook, **arguments)
        except BootcError as problem:
            if not self._open:
                raise
            found = f" ({problem.found})" if problem.found else ""
            return Proceed(f"{hook} failed, and may: {problem.message}{found}")
        return answer if hook == "bootc_gate" else None

    async def _call(self, hook: str, **arguments: object) -> Any:
        if self._module is None:
            return await call(self._source, hook, arguments, self._bounds)
        return await self._here(self._module, hook, arguments)

    async def _here(self, module: ModuleType, hook: str, arguments: dict[str, object]) -> Any:
        import inspect

        import trio

        function: Callable[..., Awaitable[Any]] = getattr(module, hook)
        names = inspect.signature(function).parameters
        seconds = self._bounds.of(hook)
        try:
            with trio.fail_after(seconds):
                return await function(*[arguments[name] for name in names])
        except trio.TooSlowError:
            raise _late(self._source.name, hook, seconds) from None
        except BootcError:
            raise
        except Exception as problem:
            raise PluginError(
                f"plugin {self._source.name} broke in {hook}",
                reference="plugin-broken",
                found=printable(f"{type(problem).__name__}: {problem}", 600),
            ) from problem


def _plain(function: Callable[[Event], None]) -> Callable[[Event], None]:
    def bootc_on_event(event: Event) -> None:
        function(event)

    return bootc_on_event


def _late(plugin: str, hook: str, seconds: float) -> HookError:
    return HookError(
        f"plugin {plugin} did not answer {hook} in time",
        reference="hook-timeout",
        expected=f"an answer within {seconds:g} s",
        hint=f'block it if it is not needed: [plugins] blocked = ["{plugin}"]',
    )


def _command(bounds: Bounds) -> list[str]:
    return [sys.executable, "-I", "-m", "bootc_core.containment.child", str(bounds.memory_bytes)]


def _kept() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {name: value for name, value in os.environ.items() if name.startswith("BOOTC_")}


def _request(
    source: PluginSource, hook: str, packed: dict[str, Any], environment: dict[str, str]
) -> bytes:
    from bootc_core.containment import messages

    path = [source.location] if source.location else []
    value = {
        "protocol": messages.PROTOCOL,
        "plugin": source.name,
        "module": source.module,
        "path": path,
        "hook": hook,
        "arguments": packed,
        "environment": environment,
    }
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def call(
    source: PluginSource, hook: str, arguments: dict[str, object], bounds: Bounds
) -> Any:
    """One hook of a plugin, called in a child process.

    Raises:
        HookError: no answer in time, none at all, or one that is no answer.
        BootcError: what the plugin raised.
    """
    from bootc_core.containment import messages, unit
    from bootc_core.containment.child import SERVICE

    seconds = bounds.of(hook)
    command, environment, told = _command(bounds), process.clean_environment(**_kept()), {}
    if unit.available():
        # everybody may read the environment of a service, and a proxy's address may hold a password
        environment, told = process.clean_environment(), _kept()
        command = unit.command(
            source.name,
            [*command, SERVICE],
            environment,
            seconds=seconds,
            memory_bytes=bounds.memory_bytes,
        )
    done = await process.run(
        command,
        stdin=_request(source, hook, await messages.pack(arguments), told),
        timeout_s=seconds,
        env=environment,
        output_limit=limits.CHILD_ANSWER_BYTES,
        check=False,
        label=f"plugin {source.name}",
    )
    if done.stderr:
        log.info("plugin %s: %s", source.name, printable(done.stderr, 2000))
    if done.timed_out:
        raise _late(source.name, hook, seconds)
    if done.returncode != 0:
        raise HookError(
            f"plugin {source.name} ended while it answered {hook}: {done.ending()}",
            reference="plugin-died",
            found=printable(done.last_lines()) or None,
            hint=f'run it in this process to debug it: [plugins] in-process = ["{source.name}"]',
        )
    return messages.parse_answer(source.name, hook, done.stdout)


class _Observer:
    """The child of ``bootc_on_event``: started with the first event, ended with the run; called on its own thread."""

    def __init__(self, source: PluginSource, bounds: Bounds) -> None:
        self._source, self._bounds = source, bounds
        self._child: subprocess.Popen[bytes] | None = None
        self._over = False

    def function(self) -> Callable[[Event], None]:
        """The hook, with ``close`` as attribute for the bus."""

        def bootc_on_event(event: Event) -> None:
            self.deliver(event)

        bootc_on_event.close = self.close  # type: ignore[attr-defined]
        bootc_on_event.abandon = self.abandon  # type: ignore[attr-defined]
        return bootc_on_event

    def deliver(self, event: Event) -> None:
        """Write the event; a child that has ended or does not read is given up.

        Raises:
            HookError: it is given up with this event.
        """
        if self._over:
            return
        if self._child is None:
            undertaker.prepare()
            self._child = subprocess.Popen(
                _command(self._bounds),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=process.clean_environment(**_kept()),
                cwd="/",
                start_new_session=True,
            )
            undertaker.add(self._child.pid)
            assert self._child.stdin is not None  # noqa: S101 - asked for above
            os.set_blocking(self._child.stdin.fileno(), False)
            self._write(_request(self._source, "bootc_on_event", {}, {}))
        self._write(json.dumps({"event": event.to_json()}, separators=(",", ":")).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        assert self._child is not None  # noqa: S101 - started by deliver
        assert self._child.stdin is not None  # noqa: S101 - asked for there
        descriptor = self._child.stdin.fileno()
        deadline = time.monotonic() + self._bounds.events_s
        while data:
            _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
            try:
                if not ready:
                    raise TimeoutError  # noqa: TRY301 - one way out for both
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                continue
            except (TimeoutError, BrokenPipeError) as problem:
                self._end()
                why = "does not read" if isinstance(problem, TimeoutError) else "has ended"
                raise HookError(
                    f"the event observer of plugin {self._source.name} {why}; it sees no more"
                ) from None

    def close(self) -> None:
        """Let it read what is left, for a bounded time, and end it."""
        child = self._child
        if child is None or self._over:
            return
        with suppress(OSError):
            if child.stdin is not None:
                child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(self._bounds.events_s)
        self._end()

    def abandon(self) -> None:
        """End it now, from another thread; the write that waits for it fails."""
        self._over = True
        if self._child is not None and self._child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, 9)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(self._bounds.events_s)

    def _end(self) -> None:
        self._over = True
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, 9)
            with suppress(OSError):
                if self._child.stdin is not None:
                    self._child.stdin.close()
            undertaker.remove(self._child.pid)
            self._child.wait()
