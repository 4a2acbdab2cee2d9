"""Storage backends that are broken in one place each: what the contract suite has to find.

Each defect is one that real backends had or could have, in a few lines. ``DEFECTS`` says which test
of the suite finds it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bootc_core.errors import StorageError
from bootc_core.fs import atomic
from bootc_core.hooks.markers import hookimpl
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Context
from bootc_core.models.events import Event
from bootc_core.models.image import StagedDeployment, VerifiedImage
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.testing.fakes import FakeBackend


class OmittedSync(FakeBackend):
    """A deployment gets its name while its files are in memory only."""

    def sync(self, sysroot: Sysroot) -> None:
        """Nothing."""

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """Without the sync at its end."""
        del context
        booting = self.booting(sysroot)
        return BootPlan((staged.entry or staged.deployment_id, *booting[:1]))


class OmittedDirectorySync(FakeBackend):
    """The content is synced, the name is not."""

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """One more rename than syncs."""
        plan = await super().bootc_finalize(context, sysroot, staged)
        note = self.deployment(sysroot, staged.deployment_id) / "finalized"
        atomic.write_file(note, b"yes\n", sync=False)
        return plan


class UnhashedBlob(FakeBackend):
    """The content is hashed, the blob that it comes in is not."""

    def check(self, data: bytes, digest: str, what: str) -> None:
        """Only the second of the two."""
        if what.startswith("content"):
            super().check(data, digest, what)


class UnhashedContent(FakeBackend):
    """The blob is hashed, its content is not."""

    def check(self, data: bytes, digest: str, what: str) -> None:
        """Only the first of the two."""
        if not what.startswith("content"):
            super().check(data, digest, what)


class StaleEntry(FakeBackend):
    """The menu keeps a third entry whose deployment is pruned."""

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """One entry too many."""
        plan = await super().bootc_finalize(context, sysroot, staged)
        older = self.booting(sysroot)[1:2]
        return BootPlan((*plan.entries, *older)) if plan else None

    def _drop_others(self, sysroot: Sysroot, keep: Sequence[str]) -> None:
        super()._drop_others(sysroot, keep[:2])


class Hoarder(FakeBackend):
    """Nothing is ever deleted."""

    def _drop_others(self, sysroot: Sysroot, keep: Sequence[str]) -> None:
        pass


class EagerPrune(FakeBackend):
    """Room is made before staging, at the expense of what rollback needs."""

    @hookimpl
    async def bootc_stage(
        self,
        context: Context,
        image: VerifiedImage,
        sysroot: Sysroot,
        emit: Callable[[Event], None],
    ) -> StagedDeployment | None:
        """Deletes first."""
        for name in self.booting(sysroot)[1:]:
            atomic.rmtree(self.deployment(sysroot, name))
        return await super().bootc_stage(context, image, sysroot, emit)


class LateClaim(FakeBackend):
    """A sysroot that was begun and interrupted is nobody's."""

    def claims(self, sysroot: Sysroot) -> bool:
        """Only when there is a deployment."""
        place = self.top(sysroot) / "deploy"
        return place.is_dir() and any(place.iterdir())


class GreedyClaim(FakeBackend):
    """Every directory is its own."""

    def claims(self, sysroot: Sysroot) -> bool:
        """Always."""
        return sysroot.path.is_dir()


class DiscardsWhatBoots(FakeBackend):
    """Discarding does not look at the menu."""

    @hookimpl
    async def bootc_discard(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment | None
    ) -> BootPlan | None:
        """Deletes what it is given."""
        if staged is not None:
            atomic.rmtree(self.deployment(sysroot, staged.deployment_id))
        return await super().bootc_discard(context, sysroot, staged)


class LeavesHalfMade(FakeBackend):
    """What a killed run began stays forever."""

    def _sweep(self, sysroot: Sysroot) -> None:
        pass

    def _drop_others(self, sysroot: Sysroot, keep: Sequence[str]) -> None:
        place = self.top(sysroot) / "deploy"
        hidden = [path.name for path in place.glob(".*")] if place.is_dir() else []
        super()._drop_others(sysroot, [*keep, *hidden])


class NoEtcMerge(FakeBackend):
    """The new image's ``/etc`` comes as it is."""

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """Throws local changes away first."""
        for name in self.booting(sysroot)[:1]:
            if name != staged.deployment_id:
                self._reset(self.deployment(sysroot, name))
        return await super().bootc_finalize(context, sysroot, staged)

    def _reset(self, place: Path) -> None:
        import json

        pristine = json.loads((place / "etc.json").read_bytes())
        atomic.rmtree(place / "etc")
        self._lay_out(place, {path: bytes.fromhex(data) for path, data in pristine.items()})


class MergesWhileStaging(FakeBackend):
    """``/etc`` is merged too early, and edits after that are lost."""

    @hookimpl
    async def bootc_stage(
        self,
        context: Context,
        image: VerifiedImage,
        sysroot: Sysroot,
        emit: Callable[[Event], None],
    ) -> StagedDeployment | None:
        """Merges at once."""
        staged = await super().bootc_stage(context, image, sysroot, emit)
        if staged is not None:
            await super().bootc_finalize(context, sysroot, staged)
        return staged

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """Only says what boots."""
        booting = [name for name in self.booting(sysroot) if name != staged.deployment_id]
        return BootPlan((staged.entry or staged.deployment_id, *booting[:1]))


class ReseedsVar(FakeBackend):
    """``/var`` comes from each image."""

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """Deletes it first."""
        atomic.rmtree(self.top(sysroot) / "var")
        return await super().bootc_finalize(context, sysroot, staged)


class ForgetsTheTag(FakeBackend):
    """It answers for any reference."""

    def tracked(self, sysroot: Sysroot, reference: ImageReference) -> str | None:
        """Without looking at the reference."""
        state = None
        for name in self.booting(sysroot)[:1]:
            with contextlib.suppress(OSError):
                import json

                state = json.loads((self.deployment(sysroot, name) / "state.json").read_bytes())
        del reference
        return state["tag_digest"] if state else None


class StagesIntoTheMenu(FakeBackend):
    """Staging already makes it boot."""

    @hookimpl
    async def bootc_stage(
        self,
        context: Context,
        image: VerifiedImage,
        sysroot: Sysroot,
        emit: Callable[[Event], None],
    ) -> StagedDeployment | None:
        """And an entry beside it."""
        from bootc_core.boot import bls

        staged = await super().bootc_stage(context, image, sysroot, emit)
        if staged is not None and staged.entry is not None:
            menu = sysroot.boot_dir / bls.ENTRIES
            if menu.is_dir():
                atomic.write_file(menu / "new.conf", bls.entry_text(staged.entry, 0))
        return staged


class RollsBackToNothing(FakeBackend):
    """With one deployment it goes 'back' to that."""

    @hookimpl
    async def bootc_rollback(self, context: Context, sysroot: Sysroot) -> BootPlan | None:
        """Never an error."""
        with contextlib.suppress(StorageError):
            return await super().bootc_rollback(context, sysroot)
        return BootPlan(tuple(self.booting(sysroot)))


DEFECTS: Final[tuple[tuple[type[FakeBackend], str], ...]] = (
    (OmittedSync, "test_names_are_durable_before_the_switch"),
    (OmittedDirectorySync, "test_names_are_durable_before_the_switch"),
    (UnhashedBlob, "test_damaged_layers_are_refused"),
    (UnhashedContent, "test_wrong_diff_id_is_refused"),
    (StaleEntry, "test_old_deployments_go"),
    (Hoarder, "test_old_deployments_go"),
    (EagerPrune, "test_staging_changes_nothing_that_boots"),
    (LateClaim, "test_killed_at_every_step_of_the_first_switch"),
    (GreedyClaim, "test_claims_its_own_and_nothing_else"),
    (DiscardsWhatBoots, "test_hooks_are_idempotent"),
    (LeavesHalfMade, "test_killed_at_every_step_of_an_upgrade"),
    (NoEtcMerge, "test_etc_is_merged_three_ways"),
    (MergesWhileStaging, "test_edits_after_staging_count"),
    (ReseedsVar, "test_var_is_filled_once_and_kept"),
    (ForgetsTheTag, "test_first_deployment"),
    (StagesIntoTheMenu, "test_staging_changes_nothing_that_boots"),
    (RollsBackToNothing, "test_no_rollback_with_one_deployment"),
)
"""A broken backend, and a test of ``StorageContract`` that has to fail on it."""
