"""Awaiting hooks: pluggy calls, it does not await. This does, with a deadline and the plugin's name on errors."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import pluggy
import trio

from bootc_core.errors import BootcError, HookError, PluginError, printable
from bootc_core.fs.atomic import storage_error
from bootc_core.watchdog import watching

# What the machine is short of, or how its disk fails: not a defect of the plugin that met it
_MACHINE: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one plugin answered to a hook: a value, or the error it ended with."""

    plugin: str
    value: Any = None
    error: BootcError | None = None


def implementations(caller: pluggy.HookCaller) -> list[pluggy.HookImpl]:
    """The implementations in call order (pluggy keeps the first-called at the end)."""
    return list(reversed(caller.get_hookimpls()))


async def _invoke(
    implementation: pluggy.HookImpl, arguments: Mapping[str, object], hook: str, timeout_s: float
) -> Any:
    function = cast("Callable[..., Awaitable[Any]]", implementation.function)
    try:
        with (
            watching(f"plugin {implementation.plugin_name} in {hook}", timeout_s),
            trio.fail_after(timeout_s),
        ):
            return await function(*[arguments[name] for name in implementation.argnames])
    except trio.TooSlowError:
        raise HookError(
            f"plugin {implementation.plugin_name} did not answer {hook} in time",
            reference="hook-timeout",
            expected=f"an answer within {timeout_s:g} s",
            hint=f'block it if it is not needed: [plugins] blocked = ["{implementation.plugin_name}"]',
        ) from None
    except BootcError as problem:
        problem.add_note(f"in {hook} of plugin {implementation.plugin_name}")
        raise
    except Exception as problem:
        only = _single(problem)
        if isinstance(only, BootcError):
            only.add_note(f"in {hook} of plugin {implementation.plugin_name}")
            raise only from problem
        if isinstance(only, OSError) and only.errno in _MACHINE:
            raise storage_error(
                only, f"carry on with {hook}", only.filename or implementation.plugin_name
            ) from problem
        raise PluginError(
            f"plugin {implementation.plugin_name} broke in {hook}",
            reference="plugin-broken",
            found=printable(f"{type(only).__name__}: {only}", 600),
            hint="this is a defect of the plugin; run with BOOTC_DEBUG=1 to see where",
        ) from problem


def _single(problem: BaseException) -> BaseException:
    """The first error of ours in (nested) groups of a nursery, else the first error at all."""
    if not isinstance(problem, BaseExceptionGroup):
        return problem
    leaves = [_single(inner) for inner in problem.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, BootcError)), leaves[0])


async def call_one(
    caller: pluggy.HookCaller, plugin: str, arguments: Mapping[str, object], timeout_s: float
) -> Any:
    """The answer of one plugin: the chosen provider.

    Raises:
        PluginError: it does not implement the hook, or broke.
        BootcError: what it raised.
    """
    for implementation in implementations(caller):
        if implementation.plugin_name == plugin:
            return await _invoke(implementation, arguments, caller.name, timeout_s)
    raise PluginError(
        f"plugin {plugin} offers a service without implementing {caller.name}",
        reference="plugin-broken",
        hint="this is a defect of the plugin; its contract suite would have told",
    )


async def call_each(
    caller: pluggy.HookCaller, arguments: Mapping[str, object], timeout_s: float
) -> list[Answer]:
    """All plugins, one after the other in call order; stops at the first error, which is the last answer."""
    answers = []
    for implementation in implementations(caller):
        try:
            value = await _invoke(implementation, arguments, caller.name, timeout_s)
        except BootcError as problem:
            answers.append(Answer(implementation.plugin_name, error=problem))
            break
        answers.append(Answer(implementation.plugin_name, value))
    return answers


async def call_all(
    caller: pluggy.HookCaller, arguments: Mapping[str, object], timeout_s: float
) -> list[Answer]:
    """All plugins, concurrently; the answers in call order, errors among them: one failure does not silence the others."""
    order = implementations(caller)
    answers: list[Answer | None] = [None] * len(order)

    async def ask(slot: int, implementation: pluggy.HookImpl) -> None:
        try:
            value = await _invoke(implementation, arguments, caller.name, timeout_s)
        except BootcError as problem:
            answers[slot] = Answer(implementation.plugin_name, error=problem)
        else:
            answers[slot] = Answer(implementation.plugin_name, value)

    async with trio.open_nursery() as nursery:
        for slot, implementation in enumerate(order):
            nursery.start_soon(ask, slot, implementation)
    return [answer for answer in answers if answer is not None]
