"""A plugin that implements every hook, writes each call down in order, and answers what a test asks for.

    recorder = Recorder()
    recorder.on["bootc_gate", "stage"] = Deny("not today")        # an answer
    recorder.on["bootc_before_stage", "stage"] = HookError("...")  # or an error
    recorder.calls      [("bootc_gate", "fetch"), ("bootc_before_fetch", "fetch"), ...]

Made from the specifications, so it never lags behind them. It offers nothing, so that its provider
hooks must never be called: if one appears in ``calls``, somebody called a provider that was not
chosen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from bootc_core.hooks import specs
from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import (
    BackendOffer,
    BootloaderOffer,
    PolicyOffer,
    SiteHooksOffer,
    TransportOffer,
)
from bootc_core.hooks.specs import Emit
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Context, Phase
from bootc_core.models.events import Event
from bootc_core.models.finding import Finding
from bootc_core.models.image import FetchedImage, PolicyAnswer, StagedDeployment, VerifiedImage
from bootc_core.models.install import BootTarget, CommandOffer
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.verdict import Verdict

Calls = list[tuple[str, str]]


def hook_names() -> tuple[str, ...]:
    """All hooks, in the order of the specifications."""
    return tuple(name for name in vars(specs) if name.startswith("bootc_"))


class Recorder:
    """One instance is one plugin.

    Attributes:
        calls: (hook, phase) in call order; leaving ``bootc_around_phase`` is
            ``("bootc_around_phase:exit", phase)``. May be shared with fakes, so that the whole
            order is in one list.
        contexts: the context of each call that had one, beside ``calls``' entry.
        events: what ``bootc_on_event`` saw, in order. Delivered on a thread of its own, hence not
        in ``calls``.
        on: (hook, phase) to what happens there: an exception is raised, a callable is called with
            the hook's arguments, everything else is the answer.
    """

    def __init__(self, calls: Calls | None = None) -> None:
        self.calls: Calls = [] if calls is None else calls
        self.contexts: list[tuple[str, Any]] = []
        self.events: list[Event] = []
        self.on: dict[tuple[str, str], Any] = {}

    def names(self) -> Iterator[str]:
        """The calls as ``hook phase`` lines, the phase left out where the name has it."""
        for name, phase in self.calls:
            short = name.removeprefix("bootc_")
            yield short if not phase or phase in short else f"{short} {phase}"

    def _play(self, name: str, **arguments: Any) -> Any:
        context = arguments.get("context")
        phase = str(arguments.get("phase") or getattr(context, "phase", ""))
        self.calls.append((name, phase))
        self.contexts.append((name, context))
        answer = self.on.get((name, phase))
        if isinstance(answer, BaseException):
            raise answer
        return answer(**arguments) if callable(answer) else answer

    def _around(self, phase: str) -> AbstractAsyncContextManager[None]:
        @asynccontextmanager
        async def around() -> AsyncIterator[None]:
            try:
                yield
            finally:
                self.calls.append(("bootc_around_phase:exit", phase))

        return around()

    @hookimpl
    def bootc_register_transports(self) -> Sequence[TransportOffer]:
        """Write it down; answer as prepared."""
        return self._play("bootc_register_transports") or ()

    @hookimpl
    def bootc_register_backends(self) -> Sequence[BackendOffer]:
        """Write it down; answer as prepared."""
        return self._play("bootc_register_backends") or ()

    @hookimpl
    def bootc_register_bootloaders(self) -> Sequence[BootloaderOffer]:
        """Write it down; answer as prepared."""
        return self._play("bootc_register_bootloaders") or ()

    @hookimpl
    def bootc_register_policies(self) -> Sequence[PolicyOffer]:
        """Write it down; answer as prepared."""
        return self._play("bootc_register_policies") or ()

    @hookimpl
    def bootc_register_site_hooks(self) -> Sequence[SiteHooksOffer]:
        """Write it down; answer as prepared."""
        return self._play("bootc_register_site_hooks") or ()

    @hookimpl
    def bootc_register_commands(self) -> Sequence[CommandOffer]:
        """Write it down; answer as prepared."""
        return self._play("bootc_register_commands") or ()

    @hookimpl
    async def bootc_resolve(self, context: Context, reference: ImageReference) -> str | None:
        """Write it down; answer as prepared."""
        answer: str | None = self._play("bootc_resolve", context=context, reference=reference)
        return answer

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """Write it down; answer as prepared."""
        answer: FetchedImage | None = self._play(
            "bootc_fetch", context=context, reference=reference
        )
        return answer

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """Write it down; answer as prepared."""
        answer: PolicyAnswer | None = self._play("bootc_verify", context=context, image=image)
        return answer

    @hookimpl
    async def bootc_stage(
        self, context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
    ) -> StagedDeployment | None:
        """Write it down; answer as prepared."""
        answer: StagedDeployment | None = self._play(
            "bootc_stage", context=context, image=image, sysroot=sysroot, emit=emit
        )
        return answer

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
    ) -> BootPlan | None:
        """Write it down; answer as prepared."""
        answer: BootPlan | None = self._play(
            "bootc_finalize", context=context, sysroot=sysroot, staged=staged, emit=emit
        )
        return answer

    @hookimpl
    async def bootc_install_bootloader(
        self, context: Context, sysroot: Sysroot, target: BootTarget
    ) -> bool | None:
        """Write it down; answer as prepared."""
        answer: bool | None = self._play(
            "bootc_install_bootloader", context=context, sysroot=sysroot, target=target
        )
        return answer

    @hookimpl
    async def bootc_repair(
        self,
        context: Context,
        image: VerifiedImage,
        sysroot: Sysroot,
        findings: Sequence[Finding],
        emit: Emit,
    ) -> BootPlan | None:
        """Write it down; answer as prepared."""
        answer: BootPlan | None = self._play(
            "bootc_repair",
            context=context,
            image=image,
            sysroot=sysroot,
            findings=findings,
            emit=emit,
        )
        return answer

    @hookimpl
    async def bootc_switch_boot(
        self, context: Context, sysroot: Sysroot, plan: BootPlan
    ) -> bool | None:
        """Write it down; answer as prepared."""
        answer: bool | None = self._play(
            "bootc_switch_boot", context=context, sysroot=sysroot, plan=plan
        )
        return answer

    @hookimpl
    async def bootc_rollback(self, context: Context, sysroot: Sysroot) -> BootPlan | None:
        """Write it down; answer as prepared."""
        answer: BootPlan | None = self._play("bootc_rollback", context=context, sysroot=sysroot)
        return answer

    @hookimpl
    async def bootc_discard(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment | None
    ) -> BootPlan | None:
        """Write it down; answer as prepared."""
        answer: BootPlan | None = self._play(
            "bootc_discard", context=context, sysroot=sysroot, staged=staged
        )
        return answer

    @hookimpl
    async def bootc_prune(self, context: Context, sysroot: Sysroot) -> bool | None:
        """Write it down; answer as prepared."""
        answer: bool | None = self._play("bootc_prune", context=context, sysroot=sysroot)
        return answer

    @hookimpl
    async def bootc_gate(self, context: Context, phase: Phase) -> Verdict | None:
        """Write it down; answer as prepared."""
        answer: Verdict | None = self._play("bootc_gate", context=context, phase=phase)
        return answer

    @hookimpl
    async def bootc_before_fetch(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_before_fetch", context=context)

    @hookimpl
    async def bootc_after_fetch(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_after_fetch", context=context)

    @hookimpl
    async def bootc_before_verify(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_before_verify", context=context)

    @hookimpl
    async def bootc_after_verify(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_after_verify", context=context)

    @hookimpl
    async def bootc_before_stage(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_before_stage", context=context)

    @hookimpl
    async def bootc_after_stage(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_after_stage", context=context)

    @hookimpl
    async def bootc_before_finalize(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_before_finalize", context=context)

    @hookimpl
    async def bootc_after_finalize(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_after_finalize", context=context)

    @hookimpl
    async def bootc_before_rollback(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_before_rollback", context=context)

    @hookimpl
    async def bootc_after_rollback(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_after_rollback", context=context)

    @hookimpl
    async def bootc_after_boot(self, context: Context) -> None:
        """Write it down; answer as prepared."""
        self._play("bootc_after_boot", context=context)

    @hookimpl
    def bootc_around_phase(
        self, context: Context, phase: Phase
    ) -> AbstractAsyncContextManager[None] | None:
        """Write it down; answer as prepared."""
        answer: AbstractAsyncContextManager[None] | None = self._play(
            "bootc_around_phase", context=context, phase=phase
        )
        return answer or self._around(phase)

    @hookimpl
    def bootc_on_event(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)
