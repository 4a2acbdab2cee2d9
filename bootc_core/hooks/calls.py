"""The typed front door to the hooks: one method a hook; nothing else touches ``pm.hook``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, TypeVar, cast

import pluggy

from bootc_core import limits
from bootc_core.errors import BootcError, HookError, PluginError, printable
from bootc_core.hooks import dispatch, specs
from bootc_core.hooks.manager import Plugins
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Context, Phase
from bootc_core.models.events import Event
from bootc_core.models.finding import Finding
from bootc_core.models.image import FetchedImage, PolicyAnswer, StagedDeployment, VerifiedImage
from bootc_core.models.install import BootTarget
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.verdict import Deny, Hold, Proceed, Verdict

T = TypeVar("T")
Emit = Callable[[Event], None]
Around = AbstractAsyncContextManager[None]


class Hooks:
    """All hooks of the loaded plugins, with types, deadlines and checked answers."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def _caller(self, name: str) -> pluggy.HookCaller:
        return cast(pluggy.HookCaller, getattr(self.plugins.manager.hook, name))

    async def _provider(
        self, hook: str, plugin: str, kind: type[T], timeout_s: float, **arguments: object
    ) -> T | None:
        value = await dispatch.call_one(self._caller(hook), plugin, arguments, timeout_s)
        if value is not None and not isinstance(value, kind):
            raise PluginError(
                f"plugin {plugin} answered {hook} with something else",
                reference="plugin-broken",
                expected=kind.__name__,
                found=type(value).__name__,
            )
        return value

    async def _must(
        self, hook: str, plugin: str, kind: type[T], timeout_s: float, **arguments: object
    ) -> T:
        value = await self._provider(hook, plugin, kind, timeout_s, **arguments)
        if value is None:
            raise PluginError(
                f"plugin {plugin} was chosen and does not answer {hook}", reference="no-provider"
            )
        return value

    # providers

    async def resolve(self, plugin: str, context: Context, reference: ImageReference) -> str | None:
        """Digest the reference has now, or None if only fetching tells."""
        told: dict[str, object] = {"context": context, "reference": reference}
        return await self._provider("bootc_resolve", plugin, str, limits.PHASE_TIMEOUT_S, **told)

    async def fetch(self, plugin: str, context: Context, reference: ImageReference) -> FetchedImage:
        """Metadata of the image."""
        told: dict[str, object] = {"context": context, "reference": reference}
        return await self._must("bootc_fetch", plugin, FetchedImage, limits.PHASE_TIMEOUT_S, **told)

    async def verify(self, context: Context, image: FetchedImage) -> list[dispatch.Answer]:
        """The answers of all signature policies, errors among them."""
        answers = await dispatch.call_all(
            self._caller("bootc_verify"),
            {"context": context, "image": image},
            limits.VERIFY_TIMEOUT_S,
        )
        for answer in answers:
            if answer.value is not None and not isinstance(answer.value, PolicyAnswer):
                raise PluginError(
                    f"plugin {answer.plugin} answered bootc_verify with something else",
                    reference="plugin-broken",
                    expected="PolicyAnswer",
                    found=type(answer.value).__name__,
                )
        return answers

    async def stage(
        self, plugin: str, context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
    ) -> StagedDeployment:
        """A complete deployment on disk."""
        told: dict[str, object] = {
            "context": context,
            "image": image,
            "sysroot": sysroot,
            "emit": emit,
        }
        return await self._must(
            "bootc_stage", plugin, StagedDeployment, limits.PHASE_TIMEOUT_S, **told
        )

    async def finalize(
        self, plugin: str, context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
    ) -> BootPlan:
        """``/etc`` merged; what shall boot."""
        told: dict[str, object] = {
            "context": context,
            "sysroot": sysroot,
            "staged": staged,
            "emit": emit,
        }
        return await self._must(
            "bootc_finalize", plugin, BootPlan, limits.FINALIZE_TIMEOUT_S, **told
        )

    async def switch_boot(
        self, plugin: str, context: Context, sysroot: Sysroot, plan: BootPlan
    ) -> None:
        """The plan is effective."""
        told: dict[str, object] = {"context": context, "sysroot": sysroot, "plan": plan}
        await self._must("bootc_switch_boot", plugin, bool, limits.FINALIZE_TIMEOUT_S, **told)

    async def install_bootloader(
        self, plugin: str, context: Context, sysroot: Sysroot, target: BootTarget
    ) -> None:
        """The bootloader itself is on the disk."""
        told: dict[str, object] = {"context": context, "sysroot": sysroot, "target": target}
        hook, timeout_s = "bootc_install_bootloader", limits.FINALIZE_TIMEOUT_S
        await self._must(hook, plugin, bool, timeout_s, **told)

    async def rollback(self, plugin: str, context: Context, sysroot: Sysroot) -> BootPlan:
        """The plan that returns to the deployment before."""
        told: dict[str, object] = {"context": context, "sysroot": sysroot}
        return await self._must(
            "bootc_rollback", plugin, BootPlan, limits.FINALIZE_TIMEOUT_S, **told
        )

    async def discard(
        self, plugin: str, context: Context, sysroot: Sysroot, staged: StagedDeployment | None
    ) -> BootPlan | None:
        """What was staged is gone; the plan of what remains."""
        told: dict[str, object] = {"context": context, "sysroot": sysroot, "staged": staged}
        return await self._provider(
            "bootc_discard", plugin, BootPlan, limits.FINALIZE_TIMEOUT_S, **told
        )

    async def prune(self, plugin: str, context: Context, sysroot: Sysroot) -> None:
        """What no deployment needs is gone."""
        await self._provider(
            "bootc_prune", plugin, bool, limits.FINALIZE_TIMEOUT_S, context=context, sysroot=sysroot
        )

    async def repair(
        self,
        plugin: str,
        context: Context,
        image: VerifiedImage,
        sysroot: Sysroot,
        findings: Sequence[Finding],
        emit: Emit,
    ) -> BootPlan | None:
        """The image is whole again; the menu if an entry has to be made again."""
        told: dict[str, object] = {
            "context": context,
            "image": image,
            "sysroot": sysroot,
            "findings": findings,
            "emit": emit,
        }
        return await self._provider(
            "bootc_repair", plugin, BootPlan, limits.PHASE_TIMEOUT_S, **told
        )

    # gates

    async def gate_answers(self, context: Context, phase: Phase) -> list[dispatch.Answer]:
        """Every gate's answer, errors among them; what is no verdict is an error."""
        answers = await dispatch.call_all(
            self._caller("bootc_gate"), {"context": context, "phase": phase}, limits.GATE_TIMEOUT_S
        )
        return [
            dispatch.Answer(
                answer.plugin,
                error=HookError(
                    f"the gate of plugin {answer.plugin} answered with something else",
                    expected="Proceed, Hold (until with time zone) or Deny",
                    found=printable(repr(answer.value), 80),
                ),
            )
            if answer.error is None and not _is_verdict(answer.value)
            else answer
            for answer in answers
        ]

    async def gates(self, context: Context, phase: Phase) -> list[tuple[str, Verdict]]:
        """Every gate's verdict with its plugin.

        Raises:
            HookError: a gate broke, which counts as no.
        """
        verdicts: list[tuple[str, Verdict]] = []
        for answer in await self.gate_answers(context, phase):
            if answer.error is not None:
                raise answer.error
            if answer.value is not None:
                verdicts.append((answer.plugin, answer.value))
        return verdicts

    # participants and observers

    async def participants(
        self, moment: str, context: Context, phase: Phase | None = None
    ) -> tuple[dispatch.Answer | None, list[str]]:
        """Call ``bootc_<moment>[_<phase>]`` of each plugin in order; the first failure, or None, and warnings before it."""
        name = f"bootc_{moment}_{phase.value}" if phase else f"bootc_{moment}"
        answers = await dispatch.call_each(
            self._caller(name), {"context": context}, limits.PARTICIPANT_TIMEOUT_S
        )
        warnings = [
            f"{answer.plugin}: {answer.value.warning}"
            for answer in answers
            if isinstance(answer.value, Proceed) and answer.value.warning
        ]
        return (answers[-1] if answers and answers[-1].error is not None else None), warnings

    def around(self, context: Context, phase: Phase) -> list[Around]:
        """The context managers to enter around a phase, in order; what breaks in one names its plugin."""
        found: list[Around] = []
        for implementation in dispatch.implementations(self._caller("bootc_around_phase")):
            arguments: dict[str, Any] = {"context": context, "phase": phase}
            plugin = implementation.plugin_name
            with _blamed(plugin):
                made = implementation.function(
                    *[arguments[name] for name in implementation.argnames]
                )
            if made is not None:
                found.append(_contained(plugin, cast("Around", made)))
        return found

    def order(self) -> list[tuple[str, list[str]]]:
        """Every hook that somebody has, in lifecycle order, with the plugins in call order."""
        found = []
        for hook in (name for name in vars(specs) if name.startswith("bootc_")):
            names = [one.plugin_name for one in dispatch.implementations(self._caller(hook))]
            if names:
                found.append((hook, names))
        return found

    def has(self, hook: str) -> bool:
        """Does any plugin implement ``hook``?"""
        return bool(self._caller(hook).get_hookimpls())

    def observers(self) -> list[tuple[str, Callable[[Event], None]]]:
        """The plugins that watch events, in call order."""
        return [
            (implementation.plugin_name, cast("Emit", implementation.function))
            for implementation in dispatch.implementations(self._caller("bootc_on_event"))
        ]


def _is_verdict(value: object) -> bool:
    if isinstance(value, Hold):
        return isinstance(value.until, datetime) and value.until.tzinfo is not None
    return value is None or isinstance(value, Proceed | Deny)


@contextmanager
def _blamed(plugin: str) -> Iterator[None]:
    try:
        yield
    except BootcError:
        raise
    except Exception as problem:
        raise PluginError(
            f"plugin {plugin} broke in bootc_around_phase",
            reference="plugin-broken",
            found=printable(f"{type(problem).__name__}: {problem}", 600),
        ) from problem


@asynccontextmanager
async def _contained(plugin: str, manager: Around) -> AsyncIterator[None]:
    """``manager``, whose own errors on entering and leaving name its plugin; what the phase raises passes through it."""
    with _blamed(plugin):
        await manager.__aenter__()
    try:
        yield
    except BaseException as problem:
        with _blamed(plugin):
            try:
                await manager.__aexit__(type(problem), problem, problem.__traceback__)
            except BaseException as other:
                if other is not problem:
                    raise
        raise
    with _blamed(plugin):
        await manager.__aexit__(None, None, None)
