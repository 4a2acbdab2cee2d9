"""Transports, policies, bootloaders, gates and scripts that are broken in one place each: what the suites have to find."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import trio

from bootc_core.boot import bls
from bootc_core.errors import TransportError
from bootc_core.fs import atomic
from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import PolicyOffer
from bootc_core.models.boot import BootEntry, BootPlan
from bootc_core.models.context import Context, Phase
from bootc_core.models.image import BlobSource, FetchedImage, PipeSource, PolicyAnswer
from bootc_core.models.oci import Descriptor, parse_config, parse_manifest
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.verdict import Deny, Hold, Proceed, Verdict
from bootc_core.testing.fakes import FakeBootloader, FakeTransport
from bootc_core.testing.images import make_image


async def _deaf(seconds: float = 30.0) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)


def _mark(path: Path) -> None:
    if path.exists():
        raise RuntimeError("there is a marker already")
    atomic.write_file(path, b"")


def _count(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("asked\n")


# --- gates


class GateThatRaises:
    """Says no by an exception."""

    @hookimpl
    async def bootc_gate(self, phase: Phase) -> Verdict | None:
        """Breaks instead of denying."""
        raise RuntimeError(f"not {phase}")


class GateThatAnswersTrue:
    """Answers with something else."""

    @hookimpl
    async def bootc_gate(self) -> Any:
        """True is no verdict."""
        return True


class GateWithoutZone:
    """A hold until a time without time zone."""

    @hookimpl
    async def bootc_gate(self, phase: Phase) -> Verdict | None:
        """Local time of whom?"""
        return Hold(datetime(2026, 1, 1), "later") if phase is Phase.FETCH else None


class GateThatWrites:
    """Counts how often it is asked."""

    @hookimpl
    async def bootc_gate(self, context: Context) -> Verdict | None:
        """A side effect."""
        _count(Path(context.config_root, "asked"))
        return None


class GateThatAlternates:
    """Answers by turns."""

    turn = 0

    @hookimpl
    async def bootc_gate(self) -> Verdict | None:
        """Yes, no, yes."""
        self.turn += 1
        return Proceed() if self.turn % 2 else Deny("this time")


class GateThatIgnoresCancel:
    """Shields itself."""

    @hookimpl
    async def bootc_gate(self) -> Verdict | None:
        """Goes on whatever happens."""
        await _deaf()
        return None


class GateThatBlocks:
    """Blocks the event loop."""

    @hookimpl
    async def bootc_gate(self) -> Verdict | None:
        """Sleeps without awaiting."""
        time.sleep(30)  # noqa: ASYNC251 - the defect
        return None


class ParticipantThatForgetsRepetition:
    """Fails when it is run a second time."""

    @hookimpl
    async def bootc_before_stage(self, context: Context) -> None:
        """A marker that must not exist yet."""
        _mark(Path(context.sysroot, "bootc", "marker"))

    @hookimpl
    async def bootc_after_finalize(self, context: Context) -> None:
        """Removed at the end, if the end is reached."""
        atomic.unlink(Path(context.sysroot, "bootc", "marker"))


GATES: Final = (
    (GateThatRaises, "test_its_gates_answer_with_verdicts"),
    (GateThatAnswersTrue, "test_its_gates_answer_with_verdicts"),
    (GateWithoutZone, "test_its_gates_answer_with_verdicts"),
    (GateThatWrites, "test_asking_changes_nothing"),
    (GateThatAlternates, "test_asking_changes_nothing"),
    (GateThatIgnoresCancel, "test_it_can_be_cancelled"),
    (GateThatBlocks, "test_it_can_be_cancelled"),
    (ParticipantThatForgetsRepetition, "test_a_killed_run_is_repeated"),
)


# --- transports


class UnhashedConfiguration(FakeTransport):
    """Takes whatever configuration comes."""

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """Without looking at the digest in the manifest."""
        image = self.image(reference)
        right = make_image("1")
        if image.config.digest != parse_manifest(image.manifest, "manifest").config.digest:
            manifest = parse_manifest(image.manifest, "manifest")
            return FetchedImage(
                reference,
                reference,
                None,
                image.manifest,
                manifest,
                image.config,
                parse_config(image.config, parse_manifest(right.manifest, "manifest"), "it"),
                self._none,
            )
        return await super().bootc_fetch(context, reference)

    @staticmethod
    async def _none(descriptor: Descriptor) -> BlobSource:
        raise TransportError(f"no {descriptor.digest}")


class CheckedTransport(FakeTransport):
    """The fake with the check that the broken one lacks."""

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """As the fake, with the configuration's digest compared."""
        image = self.image(reference)
        wanted = parse_manifest(image.manifest, "manifest").config.digest
        if image.config.digest != wanted:
            raise TransportError(
                "the configuration is not the manifest's",
                reference="digest-mismatch",
                expected=wanted,
                found=image.config.digest,
            )
        return await super().bootc_fetch(context, reference)


class StaleResolve(CheckedTransport):
    """Remembers what it resolved first."""

    _first: str | None = None

    @hookimpl
    async def bootc_resolve(self, context: Context, reference: ImageReference) -> str | None:
        """For ever the same."""
        self._first = self._first or await super().bootc_resolve(context, reference)
        return self._first


class MissingIsAnything(CheckedTransport):
    """Delivers another image for one that does not exist."""

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """Never an error."""
        if not self.images:
            self.images[str(reference)] = make_image("1")
        return await super().bootc_fetch(context, reference)


class UnhashedBlob(CheckedTransport):
    """Delivers one layer for all."""

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """The first one."""
        fetched = await super().bootc_fetch(context, reference)
        if fetched is None:
            return None
        blob = self.image(reference).layers[0].blob

        async def source(descriptor: Descriptor) -> BlobSource:
            del descriptor

            async def chunks() -> AsyncIterator[bytes]:
                yield blob

            return PipeSource(chunks)

        return FetchedImage(
            fetched.requested,
            fetched.resolved,
            None,
            fetched.manifest_document,
            fetched.manifest,
            fetched.config_document,
            fetched.config,
            source,
        )


class TransportThatIgnoresCancel(CheckedTransport):
    """Shields itself."""

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """Goes on whatever happens."""
        await _deaf()
        return await super().bootc_fetch(context, reference)


TRANSPORTS: Final = (
    (UnhashedConfiguration, "test_a_configuration_that_is_not_the_manifests_is_refused"),
    (StaleResolve, "test_resolving_agrees_with_fetching"),
    (MissingIsAnything, "test_what_does_not_exist_is_a_transport_error"),
    (UnhashedBlob, "test_what_is_published_is_fetched"),
    (TransportThatIgnoresCancel, "test_it_can_be_cancelled"),
)


# --- policies


class LabelPolicy:
    """A policy for tests: the label ``signed`` decides, if attachments can be read."""

    @hookimpl
    def bootc_register_policies(self) -> list[PolicyOffer]:
        """One policy."""
        return [PolicyOffer("label")]

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """Yes or no with a reason; what cannot be read is refused."""
        del context
        try:
            await image.read_attachments("cosign")
        except TransportError as problem:
            return PolicyAnswer(False, problem.message, could_check=False)
        if image.config.labels.get("signed") == "yes":
            return PolicyAnswer(True, "the label says so", cryptographic=True)
        return PolicyAnswer(False, "the label does not say so")


class AcceptsEverything(LabelPolicy):
    """Does not look."""

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """Yes."""
        del context, image
        return PolicyAnswer(True, "why not")


class FailsOpen(LabelPolicy):
    """Takes what it cannot check."""

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """A missing signature server must not stop us."""
        said = await super().bootc_verify(context, image)
        return said if said is None or said.could_check else PolicyAnswer(True, "not reachable")


class PassesOver(LabelPolicy):
    """Says nothing about what it cannot check."""

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """Silence."""
        said = await super().bootc_verify(context, image)
        return said if said is None or said.could_check else None


class WithoutReason(LabelPolicy):
    """Refuses without a word."""

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """No."""
        said = await super().bootc_verify(context, image)
        return PolicyAnswer(said.accept, "") if said else None


class PolicyThatIgnoresCancel(LabelPolicy):
    """Shields itself."""

    @hookimpl
    async def bootc_verify(self, context: Context, image: FetchedImage) -> PolicyAnswer | None:
        """Goes on whatever happens."""
        await _deaf()
        return await super().bootc_verify(context, image)


POLICIES: Final = (
    (AcceptsEverything, "test_it_refuses_what_it_should_with_a_reason"),
    (FailsOpen, "test_what_it_cannot_check_is_not_accepted"),
    (PassesOver, "test_what_it_cannot_check_is_not_accepted"),
    (WithoutReason, "test_it_accepts_what_it_should_with_a_reason"),
    (PolicyThatIgnoresCancel, "test_it_can_be_cancelled"),
)


# --- bootloaders


class KeepsOldEntries(FakeBootloader):
    """Stale entries stay."""

    @classmethod
    def _turn(cls, boot: Path, texts: Mapping[str, bytes]) -> None:
        old = {
            one.file.rsplit("/", 1)[1]: (boot / one.file).read_bytes()
            for one in bls.read_entries(boot)
        }
        FakeBootloader._turn(boot, {**old, **texts})


class ForgetsTheInitrd(FakeBootloader):
    """Copies the first file only."""

    @staticmethod
    def _write_files(boot: Path, entry: BootEntry) -> None:
        FakeBootloader._write_files(boot, entry)
        for file in entry.files[1:]:
            atomic.unlink(boot / file.path)


class DropsForeignEntries(FakeBootloader):
    """Cleans up other systems."""

    @staticmethod
    def _turn(boot: Path, texts: Mapping[str, bytes]) -> None:
        ours = {name: text for name, text in texts.items() if b"Other" not in text}
        FakeBootloader._turn(boot, ours)


class RemovesBeforeItWrites(FakeBootloader):
    """The old menu goes first."""

    @staticmethod
    def _turn(boot: Path, texts: Mapping[str, bytes]) -> None:
        if (boot / "loader").is_symlink():
            atomic.unlink(boot / "loader")
        FakeBootloader._turn(boot, texts)


class OmittedSync(FakeBootloader):
    """Turns the link before anything is on the medium."""

    @staticmethod
    def _write_files(boot: Path, entry: BootEntry) -> None:
        for file in entry.files:
            target = boot / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.source.read_bytes())

    @staticmethod
    def _turn(boot: Path, texts: Mapping[str, bytes]) -> None:
        import secrets

        menu = boot / f"loader.{secrets.token_hex(4)}"
        (menu / "entries").mkdir(parents=True)
        for name, text in texts.items():
            (menu / "entries" / name).write_bytes(text)
        atomic.symlink(menu.name, boot / "loader", sync=False)


class IgnoresTheOrder(FakeBootloader):
    """The newest is always first."""

    @hookimpl
    async def bootc_switch_boot(
        self, context: Context, sysroot: Sysroot, plan: BootPlan
    ) -> bool | None:
        """Does nothing for a plan without new entries."""
        if any(isinstance(entry, BootEntry) for entry in plan.entries):
            return await super().bootc_switch_boot(context, sysroot, plan)
        return True


BOOTLOADERS: Final = (
    (KeepsOldEntries, "test_what_the_plan_leaves_out_is_gone"),
    (ForgetsTheInitrd, "test_the_plan_is_the_menu"),
    (DropsForeignEntries, "test_entries_of_others_stay"),
    (RemovesBeforeItWrites, "test_killed_at_every_step"),
    (OmittedSync, "test_contents_are_durable_before_they_are_named"),
    (IgnoresTheOrder, "test_the_plan_is_the_menu"),
)


# --- scripts: text, and the test that finds it

_SAYS: Callable[[str], str] = lambda text: f"#!/bin/sh\n{text}\n"  # noqa: E731 - a word for a table

SCRIPTS: Final = (
    ("hangs", _SAYS("sleep 60"), 0o755, "test_it_ends_as_scripts_do"),
    ("is killed", _SAYS("kill -9 $$"), 0o755, "test_it_ends_as_scripts_do"),
    ("misses a command", _SAYS("no-such-command"), 0o755, "test_it_ends_as_scripts_do"),
    ("refuses without words", _SAYS("exit 1"), 0o755, "test_it_ends_as_scripts_do"),
    ("babbles", _SAYS("head -c 300000 /dev/zero"), 0o755, "test_it_ends_as_scripts_do"),
    (
        "answers nonsense",
        _SAYS("""echo '{"verdict": "perhaps"}'"""),
        0o755,
        "test_it_ends_as_scripts_do",
    ),
    ("cannot be executed", _SAYS("exit 0"), 0o644, "test_it_can_be_run"),
    ("can be changed by others", _SAYS("exit 0"), 0o777, "test_it_can_be_run"),
)
