# ruff: noqa: S101 - test suites, though they ship in the package: assert is their language
"""What transports, signature policies, bootloaders, gates and site hooks must do, as suites that a plugin's tests inherit.

    class TestMine(GateContract):
        def plugin(self):
            return my_plugin

``StorageContract`` for storage backends is in ``bootc_core.testing.contract``. As there, the classes use pytest's conventions and
import none of it, and a suite counts only since it fails on broken implementations (``bootc_core.testing.broken_plugins``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bootc_core.boot import bls
from bootc_core.errors import BootcError, ContentError, TransportError
from bootc_core.fs import atomic
from bootc_core.hooks.calls import Hooks
from bootc_core.models.context import Context, ImageSummary, Operation, Phase, SignatureMode
from bootc_core.models.image import FetchedImage, PolicyAnswer
from bootc_core.models.reference import ImageReference
from bootc_core.models.verdict import Hold
from bootc_core.testing.contract import boots
from bootc_core.testing.crashes import everywhere
from bootc_core.testing.fakes import FakeBackend, FakeTransport, read_source
from bootc_core.testing.harness import System, load_plugins
from bootc_core.testing.images import FakeImage, make_image

OS = "quay.io/acme/os:stable"
PATIENCE_S = 5.0


def make_context(path: Path, phase: Phase = Phase.FETCH, **changes: Any) -> Context:
    """A context as the engine would make it, of an upgrade of a host in ``path``."""
    operation = Operation.ROLLBACK if phase is Phase.ROLLBACK else Operation.UPGRADE
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "transaction": "contract",
        "operation": operation,
        "phase": phase,
        "sysroot": str(path / "sysroot"),
        "live": False,
        "config_root": str(path / "config"),
        "from_image": ImageSummary(reference=f"docker://{OS}", version="1"),
        "to_image": ImageSummary(
            reference=f"docker://{OS}", version="2", digest=make_image("2").digest
        ),
        "signature": SignatureMode.POLICY,
        "started_at": now,
        "deadline": now + timedelta(minutes=10),
        **changes,
    }
    (path / "config").mkdir(parents=True, exist_ok=True)
    return Context(**values)


def cancels(work: Callable[[], Awaitable[object]]) -> None:
    """``work`` ends when it is cancelled, whatever it is doing: at its first checkpoint, and before it began."""

    async def run() -> float:
        begin = time.monotonic()
        with trio.move_on_after(0.05):
            await work()
        return time.monotonic() - begin

    taken: list[float] = []

    def body() -> None:
        taken.append(trio.run(run))

    import threading

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert taken, f"it goes on {PATIENCE_S} s after it was cancelled"


def _files(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


class GateContract:
    """Gates and participants. Override ``plugin``, and ``prepare`` if it needs settings."""

    def plugin(self) -> object:
        """The plugin: a module or an object."""
        raise AssertionError("override plugin()")

    def prepare(self, config_root: Path) -> None:
        """Write the settings under which it lets an upgrade pass, if it needs any."""

    def _ready(self, path: Path) -> tuple[Hooks, Path]:
        (path / "config").mkdir(parents=True, exist_ok=True)
        self.prepare(path / "config")
        return Hooks(load_plugins({"mine": self.plugin()})), path

    def test_its_gates_answer_with_verdicts(self, tmp_path: Path) -> None:
        """For every phase and operation; nothing else, and no exception."""
        hooks, path = self._ready(tmp_path)
        for phase in Phase:
            for answer in trio.run(hooks.gate_answers, make_context(path, phase), phase):
                assert answer.error is None, f"{phase}: {answer.error}"
                if isinstance(answer.value, Hold):
                    assert answer.value.reason, f"{phase}: a hold without reason"

    def test_asking_changes_nothing(self, tmp_path: Path) -> None:
        """Gates are free of side effects: files stay, and a second answer is like the first."""
        hooks, path = self._ready(tmp_path)
        before = _files(path)
        for phase in Phase:
            context = make_context(path, phase, dry_run=True)
            first = trio.run(hooks.gates, context, phase)
            second = trio.run(hooks.gates, context, phase)
            kinds = [[type(said) for _, said in answers] for answers in (first, second)]
            assert kinds[0] == kinds[1], f"{phase}: {first}, then {second}"
        assert _files(path) == before, "asking a gate wrote files"

    def test_it_lets_a_host_be_brought_up_to_date(self, tmp_path: Path) -> None:
        """Under its settings a switch, an upgrade and a rollback go through; every hook of it is called on the way."""
        system = self._system(tmp_path)
        system.switch(OS)
        system.transport.images[OS] = make_image("2")
        system.upgrade()
        boots(system, "2", "1")
        system.rollback()
        boots(system, "1", "2")

    def test_a_killed_run_is_repeated(self, tmp_path: Path) -> None:
        """Killed at every durable step of an upgrade, its own among them: old or new, and the next run converges."""
        system = self._system(tmp_path)
        system.switch(OS)
        system.transport.images[OS] = make_image("2")
        everywhere(system, lambda system: system.upgrade(), ("1", None), ("2", "1"), every=5)

    def test_it_can_be_cancelled(self, tmp_path: Path) -> None:
        """A run that is stopped does not wait for it."""
        hooks, path = self._ready(tmp_path)
        for phase in Phase:
            context = make_context(path, phase)
            cancels(partial(hooks.gate_answers, context, phase))
            for moment in ("before", "after"):
                cancels(partial(hooks.participants, moment, context, phase))

    def _system(self, path: Path) -> System:
        system = System(path, plugins={"mine": self.plugin()}, virtual_time=False)
        self.prepare(path / "config")
        system.transport.images[OS] = make_image("1")
        return system


class TransportContract:
    """Transports. Override ``plugin``, ``publish`` and ``missing``."""

    def plugin(self, path: Path) -> object:
        """The plugin; ``path`` is where it may keep what tests publish."""
        raise AssertionError("override plugin()")

    def publish(self, path: Path, plugin: Any, image: FakeImage) -> ImageReference:
        """Make one and the same reference name ``image``; return it."""
        raise AssertionError("override publish()")

    def missing(self, path: Path) -> ImageReference:
        """A reference that names nothing."""
        raise AssertionError("override missing()")

    def _fetch(self, plugin: object, path: Path, reference: ImageReference) -> FetchedImage:
        hooks = Hooks(load_plugins({"mine": plugin}))
        return trio.run(hooks.fetch, "mine", make_context(path), reference)

    def test_what_is_published_is_fetched(self, tmp_path: Path) -> None:
        """Documents with their digests, and layers with theirs."""
        plugin = self.plugin(tmp_path)
        image = make_image("1")
        reference = self.publish(tmp_path, plugin, image)
        fetched = self._fetch(plugin, tmp_path, reference)
        assert fetched.digest == image.digest, "another image"
        assert fetched.requested == reference, "the reference that was asked for is not kept"
        assert fetched.manifest_document.raw == image.manifest.raw
        assert fetched.config_document.digest == fetched.manifest.config.digest, (
            "the configuration is not the one that the manifest names"
        )
        assert fetched.summary().version == "1"

        async def read() -> list[bytes]:
            sources = [await fetched.blob_source(one) for one in fetched.manifest.layers]
            return [await read_source(one) for one in sources]

        for layer, blob in zip(image.layers, trio.run(read), strict=True):
            assert "sha256:" + hashlib.sha256(blob).hexdigest() == layer.digest, (
                "the bytes of a layer are not the layer's"
            )

    def test_resolving_agrees_with_fetching(self, tmp_path: Path) -> None:
        """Also after the reference moved."""
        plugin = self.plugin(tmp_path)
        hooks = Hooks(load_plugins({"mine": plugin}))
        for version in ("1", "2"):
            reference = self.publish(tmp_path, plugin, make_image(version))
            digest = trio.run(hooks.resolve, "mine", make_context(tmp_path), reference)
            fetched = self._fetch(plugin, tmp_path, reference)
            assert digest in {None, fetched.tag_digest}, "resolve tells another digest than fetch"
            assert fetched.summary().version == version, "an old image is delivered"

    def test_a_configuration_that_is_not_the_manifests_is_refused(self, tmp_path: Path) -> None:
        """The digest in the manifest decides."""
        plugin = self.plugin(tmp_path)
        image = make_image("1")

        class Lying(FakeImage):
            """Serves the configuration of another image."""

            @property
            def config(self) -> Any:
                """The wrong one."""
                return make_image("2").config

            @property
            def manifest(self) -> Any:
                """The right one."""
                return image.manifest

        reference = self.publish(tmp_path, plugin, Lying(image.layers, image.labels))
        problem: BaseException | None = None
        try:
            self._fetch(plugin, tmp_path, reference)
        except BootcError as caught:
            problem = caught
        assert isinstance(problem, ContentError | TransportError), (
            f"a foreign configuration is taken: {problem!r}"
        )

    def test_what_does_not_exist_is_a_transport_error(self, tmp_path: Path) -> None:
        """With words for the administrator."""
        plugin = self.plugin(tmp_path)
        try:
            self._fetch(plugin, tmp_path, self.missing(tmp_path))
        except TransportError:
            return
        raise AssertionError("a missing image is no error")

    def test_it_can_be_cancelled(self, tmp_path: Path) -> None:
        """A run that is stopped does not wait for it."""
        plugin = self.plugin(tmp_path)
        hooks = Hooks(load_plugins({"mine": plugin}))
        reference = self.publish(tmp_path, plugin, make_image("1"))
        cancels(lambda: hooks.fetch("mine", make_context(tmp_path), reference))


class PolicyContract:
    """Signature policies. Override ``plugin`` and ``cases``."""

    def plugin(self) -> object:
        """The plugin."""
        raise AssertionError("override plugin()")

    def cases(self, path: Path) -> dict[str, tuple[FetchedImage, Context]]:
        """Images with contexts (settings beneath ``config_root``): ``accepted``, ``refused`` and ``unreadable``.

        ``unreadable``: what the policy needs for its answer cannot be read.
        """
        raise AssertionError("override cases()")

    def _ask(self, path: Path, case: str) -> PolicyAnswer | None:
        image, context = self.cases(path)[case]
        hooks = Hooks(load_plugins({"mine": self.plugin()}))
        (answer,) = trio.run(hooks.verify, context, image)
        if answer.error is not None:
            raise answer.error
        said: PolicyAnswer | None = answer.value
        return said

    def test_it_accepts_what_it_should_with_a_reason(self, tmp_path: Path) -> None:
        """One sentence for the administrator."""
        said = self._ask(tmp_path, "accepted")
        assert said is not None, "no answer about an image that is signed"
        assert said.accept is True, f"not accepted: {said.reason}"
        assert said.reason, "accepted without a reason"

    def test_it_refuses_what_it_should_with_a_reason(self, tmp_path: Path) -> None:
        """Refused is not accepted and not silence."""
        said = self._ask(tmp_path, "refused")
        assert said is not None, "no answer about an image that is not signed"
        assert said.accept is False, "accepted, though it should be refused"
        assert said.reason, "refused without a reason"

    def test_what_it_cannot_check_is_not_accepted(self, tmp_path: Path) -> None:
        """It fails closed: an error, or a refusal that says so."""
        try:
            said = self._ask(tmp_path, "unreadable")
        except BootcError:
            return
        assert said is not None, "what cannot be checked is passed over"
        assert said.accept is not True, "what cannot be checked is accepted"
        assert not said.could_check, "it says that it could check"

    def test_it_can_be_cancelled(self, tmp_path: Path) -> None:
        """A run that is stopped does not wait for it."""
        image, context = self.cases(tmp_path)["accepted"]
        hooks = Hooks(load_plugins({"mine": self.plugin()}))
        cancels(lambda: hooks.verify(context, image))


class BootloaderContract:
    """Bootloaders. Override ``plugin``."""

    kill_every = 1
    deletes_any_file = True
    """False: only files in directories that it knows, which those of the suite's backend are not."""

    def plugin(self) -> Any:
        """The plugin."""
        raise AssertionError("override plugin()")

    def _fresh(self, path: Path) -> System:
        plugin = self.plugin()
        (offer,) = plugin.bootc_register_bootloaders()
        backend = FakeBackend(bootloader=offer.name)
        return System(path, backend=backend, bootloader=plugin, virtual_time=False)

    def system(self, path: Path) -> System:
        """A host with it, and two versions deployed."""
        system = self._fresh(path)
        for version in ("1", "2"):
            system.transport.images[OS] = make_image(version)
            system.switch(OS) if version == "1" else system.upgrade()
        return system

    def check(self, system: System) -> None:
        """Every entry of ours boots files that exist."""
        for entry in system.entries():
            if system.deployment_of(entry) is None:
                continue
            for key in ("linux", "initrd"):
                assert entry.all(key), f"{entry.file} has no {key}"
                for value in entry.all(key):
                    path = system.sysroot.boot_dir / value.lstrip("/")
                    assert path.is_file(), f"{entry.file} names {value}, which does not exist"
                    assert path.stat().st_size > 0, f"{value} is empty"

    def test_the_plan_is_the_menu(self, tmp_path: Path) -> None:
        """In its order, after each change."""
        system = self.system(tmp_path)
        boots(system, "2", "1")
        assert len(system.booting()) == 2
        self.check(system)
        system.rollback()
        boots(system, "1", "2")
        self.check(system)

    def test_what_the_plan_leaves_out_is_gone(self, tmp_path: Path) -> None:
        """Entries, and the files of theirs that nobody needs."""
        system = self.system(tmp_path)
        sizes = []
        for version in ("3", "4", "5"):
            system.transport.images[OS] = make_image(version)
            system.upgrade()
            assert len(system.booting()) == 2, f"entries: {system.booting()}"
            sizes.append(len(_files(system.sysroot.boot_dir)))
        assert sizes[-1] <= sizes[0] or not self.deletes_any_file, "files of old entries stay"
        self.check(system)

    def test_entries_of_others_stay(self, tmp_path: Path) -> None:
        """Another system's entry is neither changed nor removed."""
        system = self.system(tmp_path)
        other = b"title Other\nlinux /other/vmlinuz\n"
        place = system.sysroot.boot_dir / bls.ENTRIES
        (place / "other.conf").write_bytes(other)
        system.transport.images[OS] = make_image("3")
        system.upgrade()
        assert (place / "other.conf").is_file(), "the entry of another system is gone"
        assert (place / "other.conf").read_bytes() == other
        assert system.versions()[0] == "3"

    def test_repeating_changes_nothing(self, tmp_path: Path) -> None:
        """An effective plan costs no durable step."""
        system = self.system(tmp_path)
        hooks = Hooks(system.plugins)
        storage = system.storage()
        context = make_context(tmp_path, Phase.FINALIZE)

        async def again() -> None:
            plan = await hooks.discard(storage.backend.plugin, context, system.sysroot, None)
            if plan is not None:
                await hooks.switch_boot(storage.bootloader.plugin, context, system.sysroot, plan)

        before = _files(system.sysroot.boot_dir)
        system.run(again)
        system.run(again)
        assert _files(system.sysroot.boot_dir) == before

    def test_killed_at_every_step(self, tmp_path: Path) -> None:
        """Old or new boots, whole, and the next run converges."""
        system = self.system(tmp_path)
        system.transport.images[OS] = make_image("3")
        everywhere(
            system,
            lambda system: system.upgrade(),
            ("2", "1"),
            ("3", "2"),
            every=self.kill_every,
            check=self.check_first,
        )

    def check_first(self, system: System) -> None:
        """What boots next is whole."""
        entries = [one for one in system.entries() if system.deployment_of(one)]
        assert entries, "an empty menu"
        for key in ("linux", "initrd"):
            for value in entries[0].all(key):
                path = system.sysroot.boot_dir / value.lstrip("/")
                assert path.is_file(), f"{value} is missing"
                assert path.stat().st_size > 0, f"{value} is empty"

    def test_contents_are_durable_before_they_are_named(self, tmp_path: Path) -> None:
        """Between the first write and the last rename on the boot partition lies a sync."""
        system = self._fresh(tmp_path)
        system.transport.images[OS] = make_image("1")
        system.switch(OS)
        system.transport.images[OS] = make_image("2")
        boot = system.sysroot.boot_dir
        seen: list[tuple[str, str]] = []
        with atomic.observe(lambda step, path: seen.append((step, path))):
            system.upgrade()
        steps = [step for step, path in seen if Path(path).is_relative_to(boot)]
        switches = [n for n, step in enumerate(steps) if step in {"rename", "symlink", "patch"}]
        assert switches, "nothing was switched by an atomic step"
        assert any(step in {"fsync", "syncfs"} for step in steps[: switches[-1]]), (
            "the switch comes before any sync"
        )


class SiteHookContract:
    """Scripts in ``hooks.d``. Override ``script``."""

    point = "gate"

    def script(self) -> Path:
        """The script."""
        raise AssertionError("override script()")

    def _run(self, path: Path, phase: Phase) -> Any:
        from bootc_core import limits, process

        context = make_context(path, phase)
        return process.run_blocking(
            [str(self.script())],
            stdin=context.model_dump_json().encode() + b"\n",
            timeout_s=PATIENCE_S,
            env=process.clean_environment(
                BOOTC_API="1",
                BOOTC_HOOK=self.point,
                BOOTC_PHASE=phase.value,
                BOOTC_SCRIPT=str(self.script()),
                BOOTC_SYSROOT=context.sysroot,
            ),
            output_limit=limits.HOOK_OUTPUT_BYTES,
            check=False,
        )

    def test_it_can_be_run(self, tmp_path: Path) -> None:
        """Executable, for nobody else to change, with an interpreter."""
        mode = self.script().stat().st_mode
        assert mode & 0o100, "not executable"
        assert not mode & 0o022, "others can change it"
        self._run(tmp_path, Phase.FETCH)

    def test_it_ends_as_scripts_do(self, tmp_path: Path) -> None:
        """For every phase: in time, by itself, with little output, and with a verdict that can be understood."""
        import json

        for phase in Phase:
            done = self._run(tmp_path, phase)
            assert not done.timed_out, f"{phase}: it does not end"
            assert done.returncode >= 0, f"{phase}: {done.ending()}"
            assert done.returncode not in {126, 127}, f"{phase}: {done.ending()}"
            assert not done.truncated, f"{phase}: more output than is kept"
            text = done.stdout.strip()
            if self.point in {"gate", "pre-upgrade"} and text.startswith(b"{"):
                said = json.loads(text)
                assert said.get("verdict") in {"proceed", "hold", "deny"}, f"{phase}: {said}"
                assert not set(said) - {"verdict", "reason", "until"}, f"{phase}: {said}"
            if done.returncode not in {0}:
                assert done.last_lines() or text, f"{phase}: it says no and not why"

    def test_it_does_not_need_its_input(self, tmp_path: Path) -> None:
        """Twice the same answer: nothing is left over from the first time."""
        first, second = (self._run(tmp_path, Phase.FETCH).returncode for _ in range(2))
        assert first == second


async def fetched(image: FakeImage, path: Path) -> FetchedImage:
    """``image`` as a transport delivers it, for policies."""
    transport = FakeTransport({OS: image})
    found = await transport.bootc_fetch(make_context(path), ImageReference.parse(OS))
    assert found is not None
    return found
