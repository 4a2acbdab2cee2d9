"""One run on one locked sysroot: its phases, each with gates, participants, events, deadline and journal record.

The point of no return is inside ``bootc_switch_boot``. Before it any failure discards what was staged and leaves the old state;
after it nothing fails the run any more, it only warns. Durable steps run on this thread without a checkpoint in between, so a
cancellation cannot fall into them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import trio

from bootc_core import limits
from bootc_core.containment.image import unpack_image_hooks
from bootc_core.engine import holds, recovery
from bootc_core.engine import journal as journals
from bootc_core.engine.bus import Bus
from bootc_core.engine.notice import drop_notice
from bootc_core.engine.plan import Target
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import BootcError, Denied, Held, Refused, TransactionError, Unverifiable
from bootc_core.hooks.calls import Hooks
from bootc_core.models import events
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Context, Operation, Phase, PriorVerdict, SignatureMode
from bootc_core.models.holds import stamp
from bootc_core.models.image import FetchedImage, PolicyAnswer, StagedDeployment, VerifiedImage
from bootc_core.models.verdict import Deny, Hold, Proceed, strictness, told


def new_transaction_id() -> str:
    """Unique, and sortable by time."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ-") + secrets.token_hex(4)


def boots_next(storage: Storage) -> str | None:
    """Identifier of the deployment that boots next, or None."""
    slot = storage.read_host(lambda message: None).booted
    return slot.deployment_id if slot else None


@dataclass(slots=True)
class Transaction:
    """One run on one locked sysroot. ``quiet``: at shutdown, where nobody but backend and bootloader is called."""

    hooks: Hooks
    storage: Storage
    bus: Bus
    context: Context
    journal: journals.Journal | None = None
    switched: bool = False
    quiet: bool = False
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Something worth a line that does not fail the run."""
        self.warnings.append(message)
        self.bus.emit(events.Warned(self.context.transaction, message))

    def update(self, **changes: Any) -> None:
        """Replace fields of the context."""
        self.context = self.context.model_copy(update=changes)

    async def ask_gates(self, phase: Phase) -> None:
        """Go on only if every gate lets ``phase`` begin.

        Raises:
            Denied, Held: one does not.
        """
        verdicts = holds.settle(
            self.storage.sysroot,
            self.context,
            await self.hooks.gates(self.context, phase),
            self.hooks.plugins.hold_bounds,
        )
        for plugin, verdict in verdicts:
            if isinstance(verdict, Proceed) and verdict.warning:
                self.warn(f"{plugin}: {verdict.warning}")
        said = [PriorVerdict(plugin=plugin, phase=phase, **told(v)) for plugin, v in verdicts]
        self.update(verdicts=(*self.context.verdicts, *said))
        plugin, worst = max(verdicts, key=lambda item: strictness(item[1]), default=("", Proceed()))
        if isinstance(worst, Deny):
            raise Denied(
                f"{plugin} does not allow {phase.value}: {worst.reason}",
                hint="nothing was changed; bootc plugins list shows where this plugin comes from",
            )
        if isinstance(worst, Hold) and self.context.override:
            for source, held in verdicts:
                if isinstance(held, Hold):
                    self.bus.emit(
                        events.HoldOverridden(
                            self.context.transaction,
                            phase.value,
                            source,
                            held.reason,
                            stamp(held.until),
                            self.context.override,
                        )
                    )
                    self.warn(f"the hold of {source} is overridden: {held.reason}")
        elif isinstance(worst, Hold):
            until = stamp(worst.until)
            raise Held(
                f"{plugin} asks to wait with {phase.value} until {until}: {worst.reason}",
                until=until,
                hint="nothing was changed; run the command again then, or see: bootc why-not",
            )

    @asynccontextmanager
    async def phase(self, phase: Phase, timeout_s: float) -> AsyncIterator[None]:
        """A phase with its gates, participants, events, deadline and journal record."""
        self.update(phase=phase, deadline=datetime.now(UTC) + timedelta(seconds=timeout_s))
        if not self.quiet:
            await self.ask_gates(phase)
            await self._participants("before", phase)
        self._note("phase", phase=phase.value)
        self.bus.emit(events.PhaseStarted(self.context.transaction, phase.value))
        begin = time.monotonic()
        try:
            async with AsyncExitStack() as stack:
                for manager in self.hooks.around(self.context, phase):
                    await stack.enter_async_context(manager)
                with trio.fail_after(timeout_s):
                    yield
        except BaseException as problem:
            error = problem if isinstance(problem, BootcError) else None
            if isinstance(problem, trio.TooSlowError):
                error = TransactionError(
                    f"{phase.value} took longer than {timeout_s:g} s",
                    reference="deadline",
                    catalogue="LIM",
                )
            self.bus.emit(
                events.PhaseFailed(
                    self.context.transaction,
                    phase.value,
                    error.reference if error else type(problem).__name__,
                    str(error or problem),
                )
            )
            if error is not None and error is not problem:
                raise error from problem
            raise
        self.bus.emit(
            events.PhaseCompleted(self.context.transaction, phase.value, time.monotonic() - begin)
        )
        if not self.quiet:
            await self._participants("after", phase)

    async def _participants(self, moment: str, phase: Phase) -> None:
        if self.hooks.has(f"bootc_{moment}_{phase.value}"):
            self._note("hook", hook=f"bootc_{moment}_{phase.value}")
        failed, warnings = await self.hooks.participants(moment, self.context, phase)
        for warning in warnings:
            self.warn(warning)
        if failed is None or failed.error is None:
            return
        if not self.switched:
            raise failed.error
        self.warn(f"{failed.plugin}: {failed.error.message}")

    # phases

    async def fetch(self, target: Target) -> FetchedImage:
        """Resolve the reference and read its metadata."""
        provider = self.hooks.plugins.transport(target.reference.transport.value)
        async with self.phase(Phase.FETCH, limits.PHASE_TIMEOUT_S):
            image = await self.hooks.fetch(provider.plugin, self.context, target.reference)
            self.update(to_image=image.summary())
            self.bus.emit(
                events.ImageResolved(
                    self.context.transaction,
                    str(target.reference),
                    image.digest,
                    image.config.version,
                    len(image.manifest.layers),
                    sum(layer.size for layer in image.manifest.layers),
                )
            )
        return image

    async def verify(self, image: FetchedImage) -> VerifiedImage:
        """Ask all policies; the image, accepted.

        Raises:
            Refused: a policy says no.
            Unverifiable: a policy could not tell, or nobody accepted.
        """
        async with self.phase(Phase.VERIFY, limits.VERIFY_TIMEOUT_S * 1.25):
            answers: list[tuple[str, PolicyAnswer]] = []
            for answer in await self.hooks.verify(self.context, image):
                if answer.error is not None:
                    raise Unverifiable(
                        f"signature policy {answer.plugin} broke: {answer.error.message}",
                        found=answer.error.found,
                        hint=answer.error.hint,
                    ) from answer.error
                if answer.value is not None:
                    answers.append((answer.plugin, answer.value))
            judge(self.context, answers)
            accepted = next((plugin, said) for plugin, said in answers if said.accept)
            self.bus.emit(
                events.ImageVerified(
                    self.context.transaction, image.digest, accepted[0], accepted[1].reason
                )
            )
        return VerifiedImage._accept(image, tuple(answers))

    async def stage(self, image: VerifiedImage) -> StagedDeployment:
        """A complete deployment on disk, and the boot partition found able to take it."""
        async with self.phase(Phase.STAGE, limits.PHASE_TIMEOUT_S):
            storage = self.storage
            staged = await self.hooks.stage(
                storage.backend.plugin, self.context, image, storage.sysroot, self.bus.emit
            )
            self._note("staged", staged=staged.to_json())
            if staged.entry is not None:
                boot = BootPlan(entries=(staged.entry,))
                storage.bootloader.offer.preflight(storage.sysroot, boot)
            self.bus.emit(
                events.DeploymentStaged(
                    self.context.transaction, staged.deployment_id, staged.bytes_new
                )
            )
        return staged

    def introduce(self, staged: StagedDeployment) -> None:
        """Let the gates of finalize ask what was staged, if root lets images have a say."""
        if self.hooks.plugins.image_hooks and not self.quiet:
            place = unpack_image_hooks(self.storage.sysroot, self.storage.backend, staged)
            self.update(image_hooks=place)

    async def finalize(self, staged: StagedDeployment) -> None:
        """Merge ``/etc`` and switch."""
        self.introduce(staged)
        storage = self.storage
        async with self.phase(Phase.FINALIZE, limits.FINALIZE_TIMEOUT_S):
            plan = await self.hooks.finalize(
                storage.backend.plugin, self.context, storage.sysroot, staged, self.bus.emit
            )
            await self._switch(plan, staged.deployment_id)

    async def _switch(self, plan: BootPlan, deployment_id: str) -> None:
        self.switched = plan.effective  # then the backend has done it
        self._note("switching")
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + limits.FINALIZE_TIMEOUT_S
        ):
            await self.hooks.switch_boot(
                self.storage.bootloader.plugin, self.context, self.storage.sysroot, plan
            )
        self.switched = True
        self._note("switched")
        self.bus.emit(events.BootSwitched(self.context.transaction, deployment_id))

    def _note(self, record: str, **fields: Any) -> None:
        """Journal it; after the switch, an error of that only warns."""
        if self.journal is None:
            return
        try:
            self.journal.append(record, **fields)
        except BootcError as problem:
            if not self.switched:
                raise
            self.warn(f"the switch is made, but the journal does not say so: {problem.message}")

    async def rollback(self) -> str:
        """Return to the deployment before; the identifier of what boots next."""
        async with self.phase(Phase.ROLLBACK, limits.FINALIZE_TIMEOUT_S):
            plan = await self.hooks.rollback(
                self.storage.backend.plugin, self.context, self.storage.sysroot
            )
            first = plan.entries[0] if plan.entries else ""
            name = first if isinstance(first, str) else first.deployment_id
            await self._switch(plan, name)
        return name

    async def discard(self, staged: StagedDeployment | None) -> None:
        """Drop what was staged, and what of it reached the boot partition."""
        plan = await self.hooks.discard(
            self.storage.backend.plugin, self.context, self.storage.sysroot, staged
        )
        if plan is not None and not plan.effective:
            await self.hooks.switch_boot(
                self.storage.bootloader.plugin, self.context, self.storage.sysroot, plan
            )

    async def prune(self) -> None:
        """Delete what nobody needs any more; problems only warn."""
        try:
            await self.hooks.prune(self.storage.backend.plugin, self.context, self.storage.sysroot)
        except BootcError as problem:
            self.warn(f"cleaning up was not possible: {problem.message}")

    async def recover(self) -> None:
        """Clear up what an interrupted earlier run left."""
        try:
            found = journals.unfinished(self.storage.sysroot.state / "journal")
        except TransactionError as problem:
            if self.context.operation is not Operation.ROLLBACK:
                raise
            self.warn(f"{problem.message}; going back does not need it")
            return
        if found is None:
            return
        name, records = found
        decision = recovery.decide(records, boots_next(self.storage))
        earlier = journals.Journal(self.storage.sysroot, name)
        staged = StagedDeployment.from_json(decision.staged) if decision.staged else None
        self.update(resumed=True)
        if decision.action == "discard":
            await self.discard(staged)
        elif decision.action == "finish":
            await self.discard(None)
            await self.prune()
        if staged is not None:
            drop_notice(self.storage, staged)
        earlier.end("recovered")
        self.bus.emit(events.TransactionRecovered(self.context.transaction, name, decision.action))


def judge(context: Context, answers: list[tuple[str, PolicyAnswer]]) -> None:
    """Nothing if the answers accept the image; any refusal refuses, and so does nobody's acceptance.

    Raises:
        Refused: a policy checked and says no.
        Unverifiable: a policy could not check, or none accepted.
    """
    target = context.to_image.reference if context.to_image else "the image"
    for plugin, answer in answers:
        if answer.accept is False:
            kind = Refused if answer.could_check else Unverifiable
            raise kind(
                f"{target} is not accepted by signature policy {plugin}",
                found=answer.reason + (f" ({answer.rule})" if answer.rule else ""),
                hint=answer.hint,
            )
    accepting = [answer for _, answer in answers if answer.accept]
    if not accepting:
        raise Unverifiable(
            f"no signature policy accepts {target}",
            found=f"{len(answers)} policies asked, none accepted",
            hint="configure policy.json, or give --no-signature-verification",
        )
    if context.signature is SignatureMode.ENFORCE and not any(
        answer.cryptographic for answer in accepting
    ):
        raise Refused(
            f"{target} was accepted without a signature",
            expected="at least one verified signature (--enforce-container-sigpolicy)",
            found="; ".join(answer.reason for answer in accepting),
            hint="policy.json must demand signatures for this repository",
        )
