# ruff: noqa: S101 - a test suite, though it ships in the package: assert is its language
"""What every storage backend must do, as a suite that a plugin's tests inherit.

    class TestMine(StorageContract):
        def system(self, path):
            return System(path, backend=my_plugin, virtual_time=False)

        def etc(self, system):                      # of what boots next
            return system.sysroot.path / "mine" / system.booting()[0] / "etc"

        def var(self, system):
            return system.sysroot.path / "mine/var"

Everything is asked through hooks, offers and the boot menu; only where ``/etc`` and ``/var`` are
has to be told. Images come from memory through pipes. A suite counts only if it fails on broken
backends: ``tests/contract/test_broken.py`` shows which test finds which defect.

The classes here use pytest's conventions (``test_*`` methods, fixtures by name) and import none of
it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bootc_core.boot import bls
from bootc_core.engine.notice import read_notice
from bootc_core.errors import BootcError, ContentError, StorageError, UsageError
from bootc_core.fs import atomic
from bootc_core.hooks.calls import Hooks
from bootc_core.models.boot import PresentEntry
from bootc_core.models.context import Context, Operation, Phase
from bootc_core.models.finding import Finding
from bootc_core.models.host import Deployment
from bootc_core.models.image import StagedDeployment
from bootc_core.models.reference import ImageReference
from bootc_core.testing.durability import Ledger
from bootc_core.testing.harness import Action, System
from bootc_core.testing.images import INITRD_BYTES, KERNEL_BYTES, FakeImage, make_image

OS = "quay.io/acme/os:stable"
_FILES = {"linux": KERNEL_BYTES, "initrd": INITRD_BYTES}


class StorageContract:
    """The suite. Override ``system``, ``etc`` and ``var``."""

    kill_every = 1
    """Every n-th durable step is a crash point; the first and last few always are."""

    def system(self, path: Path) -> System:
        """A fresh system with the backend under test."""
        raise AssertionError("override system()")

    def etc(self, system: System) -> Path:
        """``/etc`` of the deployment that boots next."""
        raise AssertionError("override etc()")

    def var(self, system: System) -> Path:
        """``/var`` of the host."""
        raise AssertionError("override var()")

    # shorthands

    def publish(self, system: System, image: FakeImage) -> FakeImage:
        """Make the tag name ``image``."""
        system.transport.images[OS] = image
        return image

    def deployed(self, path: Path, *versions: str) -> System:
        """A system that went through ``versions``, oldest first."""
        system = self.system(path)
        for number, version in enumerate(versions):
            self.publish(system, make_image(version))
            if number == 0:
                system.switch(OS)
            else:
                system.upgrade()
        return system

    # who claims what

    def test_claims_its_own_and_nothing_else(self, tmp_path: Path) -> None:
        """Empty, foreign and damaged directories are nobody's, without an exception."""
        system = self.system(tmp_path)
        offer = _offer(system)
        place = system.sysroot.path
        assert not offer.claims(system.sysroot), "claims a missing sysroot"
        (place / "boot").mkdir(parents=True)
        assert not offer.claims(system.sysroot), "claims an empty sysroot"
        (place / "usr/bin").mkdir(parents=True)
        (place / "etc").symlink_to("/nonexistent")
        assert not offer.claims(system.sysroot), "claims somebody else's files"
        same(offer.bootloader(system.sysroot), None, "the bootloader of nothing")
        own = self.deployed(tmp_path / "own", "1")
        assert _offer(own).claims(own.sysroot), "does not claim what it deployed"

    # deployments

    def test_first_deployment(self, tmp_path: Path) -> None:
        """What was fetched is what status shows, and it boots next."""
        system = self.system(tmp_path)
        image = self.publish(system, make_image("1"))
        outcome = system.switch(OS)
        same(outcome and outcome.kind, "queued", "the outcome of switch")
        host = system.status()
        assert host.booted is not None, "nothing boots after switch"
        assert host.booted.image is not None, "status shows no image for what boots"
        shown = host.booted.image
        same(shown.image.image, OS, "the image that status shows")
        same(shown.image.transport, "registry", "its transport")
        same(shown.image_digest, image.digest, "its digest")
        same(shown.version, "1", "its version")
        assert shown.architecture, "status shows no architecture"
        assert host.booted.accepted, "how the image was accepted is not shown"
        same(host.booted.signature_mode or "policy", "policy", "the signature mode")
        same((host.staged, host.rollback, host.other), (None, None, ()), "other deployments")
        offer = _offer(system)
        reference = ImageReference.parse(OS)
        same(offer.tracked(system.sysroot, reference), image.digest, "the tracked digest")
        other = ImageReference.parse("quay.io/else:1")
        same(offer.tracked(system.sysroot, other), None, "the tracked digest of another tag")
        same(offer.manifest(system.sysroot, image.digest), image.manifest.raw, "the manifest")
        unknown = "sha256:" + "0" * 64
        same(offer.manifest(system.sysroot, unknown), None, "the manifest of an unknown image")
        same(offer.bootloader(system.sysroot), system.config.bootloader, "the bootloader")
        self.check_menu(system)

    def test_how_it_was_accepted_is_kept(self, tmp_path: Path) -> None:
        """A switched-off verification is on record with the deployment, and ends with the next switch."""
        system = self.system(tmp_path)
        self.publish(system, make_image("1"))
        system.switch(OS, insecure=True)
        host = system.status()
        same(host.booted and host.booted.signature_mode, "insecure", "the signature mode")
        self.publish(system, make_image("2"))
        system.upgrade()
        host = system.status()
        same(host.booted and host.booted.signature_mode, "insecure", "the mode after an upgrade")
        system.transport.images["ghcr.io/else/os:9"] = make_image("9")
        system.switch("ghcr.io/else/os:9")
        host = system.status()
        assert host.booted is not None, "nothing boots after switch"
        same(host.booted.signature_mode or "policy", "policy", "the mode after another switch")

    def test_upgrade_keeps_what_booted(self, tmp_path: Path) -> None:
        """New first, old second."""
        system = self.deployed(tmp_path, "1", "2")
        boots(system, "2", "1")
        self.check_menu(system)

    def test_rollback_and_back(self, tmp_path: Path) -> None:
        """The two on the menu change places, as often as asked."""
        system = self.deployed(tmp_path, "1", "2")
        for expected in (("1", "2"), ("2", "1"), ("1", "2")):
            same(system.rollback().kind, "rolled-back", "the outcome of rollback")
            boots(system, *expected)
            self.check_menu(system)

    def test_upgrade_after_rollback(self, tmp_path: Path) -> None:
        """What was rolled back from gives way to the next one."""
        system = self.deployed(tmp_path, "1", "2")
        system.rollback()
        self.publish(system, make_image("3"))
        system.upgrade()
        boots(system, "3", "1")
        self.check_menu(system)

    def test_no_rollback_with_one_deployment(self, tmp_path: Path) -> None:
        """An error, and nothing changed."""
        system = self.deployed(tmp_path, "1")
        before = _bytes(system)
        problem = _fails(system.rollback)
        assert isinstance(problem, StorageError), f"a StorageError, not {problem!r}"
        boots(system, "1", None)
        same(_bytes(system), before, "the files of the sysroot")

    def test_old_deployments_go(self, tmp_path: Path) -> None:
        """Two are kept; what is gone is on no menu, and its space is free."""
        system = self.deployed(tmp_path, "1", "2")
        two = _size(system)
        for version in ("3", "4", "5", "6"):
            self.publish(system, make_image(version))
            system.upgrade()
            self.check_menu(system)
        boots(system, "6", "5")
        host = system.status()
        same(host.other, (), "further deployments")
        same(len(system.booting()), 2, "the number of boot entries")
        assert _size(system) < two * 1.2 + 65536, "old deployments take up space"

    def test_another_repository_replaces(self, tmp_path: Path) -> None:
        """``switch`` elsewhere follows that from now on."""
        system = self.deployed(tmp_path, "1")
        system.transport.images["ghcr.io/else/os:9"] = make_image("9")
        system.switch("ghcr.io/else/os:9")
        boots(system, "9", "1")
        host = system.status()
        image = host.spec_image
        same(image and image.image, "ghcr.io/else/os:9", "what the host follows")
        self.check_menu(system)

    def test_known_layers_are_not_fetched_again(self, tmp_path: Path) -> None:
        """An upgrade asks for the layers that changed, only."""
        system = self.deployed(tmp_path, "1")
        system.transport.opened.clear()
        image = self.publish(system, make_image("2"))
        system.upgrade()
        same(set(system.transport.opened), {image.layers[1].digest}, "the layers that were fetched")

    def test_whiteouts_and_replacements(self, tmp_path: Path) -> None:
        """A layer above removes and replaces what is below, in ``/etc`` as well."""
        system = self.system(tmp_path)
        files: dict[str, Any] = {"etc/removed.conf": None, "etc/test.conf": b"from above\n"}
        self.publish(system, make_image("1", files=files))
        system.switch(OS)
        holds(self.etc(system) / "removed.conf", None)
        holds((self.etc(system) / "test.conf"), b"from above\n")

    # staging is not switching

    def test_staging_changes_nothing_that_boots(self, tmp_path: Path) -> None:
        """Downloaded only, the menu stays; applied later, without the network."""
        system = self.deployed(tmp_path, "1", "2")
        menu = _menu(system)
        self.publish(system, make_image("3"))
        same(system.upgrade(download_only=True).kind, "staged", "the outcome")
        same(_menu(system), menu, "the boot menu")
        host = system.status()
        boots(system, "2", "1")
        assert host.staged is not None, "status shows nothing staged"
        staged = host.staged.image
        same(staged and staged.version, "3", "the staged version")
        assert host.staged.download_only, "status does not say that it is downloaded only"
        system.transport.images.clear()
        same(system.apply_downloaded().kind, "queued", "the outcome")
        boots(system, "3", "2")
        same(system.status().staged, None, "what is staged")
        self.check_menu(system)

    def test_a_staged_deployment_is_superseded(self, tmp_path: Path) -> None:
        """The newer one takes its place."""
        system = self.deployed(tmp_path, "1")
        for version in ("2", "3"):
            self.publish(system, make_image(version))
            system.upgrade(download_only=True)
        system.apply_downloaded()
        boots(system, "3", "1")
        self.check_menu(system)

    def test_hooks_are_idempotent(self, tmp_path: Path) -> None:
        """Finalize, discard and prune again change nothing; finalize runs in another process."""
        system = self.deployed(tmp_path, "1")
        self.publish(system, make_image("2"))
        system.upgrade(download_only=True)
        storage = system.storage()
        notice = read_notice(storage)
        assert notice is not None, "no notice of a staged deployment"
        value = notice.staged.to_json()
        staged = StagedDeployment.from_json(json.loads(json.dumps(value)))
        assert staged == notice.staged, "a staged deployment must survive JSON"
        hooks = Hooks(system.plugins)
        context = _context(system, Phase.FINALIZE)
        backend, loader = storage.backend.plugin, storage.bootloader.plugin

        async def finalize() -> Any:
            return await hooks.finalize(
                backend, context, system.sysroot, staged, system.events.append
            )

        first, second = system.run(finalize), system.run(finalize)
        assert first == second, "a second finalize wishes another menu"

        async def switch() -> None:
            await hooks.switch_boot(loader, context, system.sysroot, second)

        system.run(switch)
        menu = _menu(system)
        system.run(switch)
        assert _menu(system) == menu, "a second switch changes the menu"
        atomic.unlink(system.sysroot.staged_file)

        async def tidy() -> None:
            for _ in range(2):
                await hooks.prune(backend, context, system.sysroot)
                await hooks.discard(backend, context, system.sysroot, None)
                await hooks.discard(backend, context, system.sysroot, staged)

        system.run(tidy)
        assert _menu(system) == menu, "discarding took away what boots"
        boots(system, "2", "1")
        self.check_menu(system)

    # bad images

    def test_damaged_layers_are_refused(self, tmp_path: Path) -> None:
        """Wrong bytes, too few, too many, another blob: an error of the content, and nothing changed."""
        for number, change in enumerate((_flipped, _cut, _longer, _repacked, _other)):
            system = self.deployed(tmp_path / str(number), "1")
            image = make_image("2")
            for layer in range(len(image.layers)):
                damaged = image.serving(layer, change(image.layers[layer].blob))
                self.refused(system, damaged, layer)

    def test_the_first_layer_is_checked_as_well(self, tmp_path: Path) -> None:
        """On an empty host, every layer is new."""
        for layer in range(2):
            system = self.system(tmp_path / str(layer))
            self.publish(system, make_image("1").damaged(layer))
            problem = _fails(lambda system=system: system.switch(OS))
            assert isinstance(problem, ContentError), f"a ContentError, not {problem!r}"
            same(problem.catalogue, "INT", "the class of the error")
            same(system.status().booted, None, "what boots")
            same(system.booting(), [], "the boot menu")
            self.publish(system, make_image("1"))
            system.switch(OS)
            boots(system, "1", None)

    # checks

    def test_what_is_whole_is_found_whole(self, tmp_path: Path) -> None:
        """A check that is offered finds nothing wrong after updates and a rollback, and changes nothing."""
        system = self.deployed(tmp_path, "1", "2")
        system.rollback()
        same(_problems(system), [], "what the check says of a whole host")

    def test_a_flipped_bit_is_told(self, tmp_path: Path) -> None:
        """Wherever content of the image is stored as it is, one bit of it is missed by no check."""
        system = self.deployed(tmp_path, "1")
        if _offer(system).check is None:
            return
        content = bytes(range(256)) * 512  # usr/lib/big of every test image
        stored = [
            path
            for path in system.sysroot.path.rglob("*")
            if path.is_file() and not path.is_symlink() and path.stat().st_size == len(content)
        ]
        for path in stored:
            mode = path.stat().st_mode
            path.chmod(0o600)
            data = bytearray(path.read_bytes())
            data[1000] ^= 1
            with path.open("r+b") as file:
                file.write(data)
            assert _problems(system), f"the check does not see a flipped bit in {path}"
            data[1000] ^= 1
            with path.open("r+b") as file:
                file.write(data)
            path.chmod(mode)

    def test_wrong_diff_id_is_refused(self, tmp_path: Path) -> None:
        """The blob is right and its content is not what the configuration says."""
        system = self.deployed(tmp_path, "1")
        self.refused(system, make_image("2").mislabelled(1), 1)

    def test_an_image_without_kernel_is_refused(self, tmp_path: Path) -> None:
        """It could not boot, so it is not deployed."""
        system = self.deployed(tmp_path, "1")
        self.refused(system, make_image("2", kernel=False), None)

    def refused(self, system: System, image: FakeImage, layer: int | None) -> None:
        """Upgrading to ``image`` is an error that changes nothing, and the next good upgrade works."""
        known = layer == 0  # it is on the host, so its bytes are never asked for
        menu, before = _menu(system), system.booting()
        self.publish(system, image)
        if known:
            return
        problem = _fails(system.upgrade)
        assert isinstance(problem, ContentError), f"a ContentError, not {problem!r}"
        same(_menu(system), menu, "the boot menu")
        same(system.booting(), before, "the boot menu")
        host = system.status()
        boots(system, "1", None)
        same(host.staged, None, "what is staged")
        snapshot = system.snapshot()
        self.publish(system, make_image("2"))
        system.upgrade()
        boots(system, "2", "1")
        self.check_menu(system)
        system.restore(snapshot)

    # state of the machine

    def test_etc_is_merged_three_ways(self, tmp_path: Path) -> None:
        """Local edits, additions and deletions survive; the image's own changes arrive."""
        system = self.deployed(tmp_path, "1")
        etc = self.etc(system)
        holds((etc / "hostname"), b"localhost\n")
        holds(etc / "from-1", b"new\n")
        (etc / "hostname").write_bytes(b"host.example\n")
        (etc / "local.conf").write_bytes(b"mine\n")
        (etc / "removed.conf").unlink()
        files: dict[str, Any] = {"etc/test.conf": b"setting = new\n"}
        self.publish(system, make_image("2", files=files))
        system.upgrade()
        etc = self.etc(system)
        holds((etc / "hostname"), b"host.example\n")
        holds((etc / "local.conf"), b"mine\n")
        holds(etc / "removed.conf", None)
        holds((etc / "test.conf"), b"setting = new\n")
        holds(etc / "from-2", b"new\n")
        holds(etc / "from-1", None)
        system.rollback()
        holds((self.etc(system) / "test.conf"), b"setting = default\n")

    def test_edits_after_staging_count(self, tmp_path: Path) -> None:
        """``/etc`` is merged when it is finalized, not when it is staged."""
        system = self.deployed(tmp_path, "1")
        self.publish(system, make_image("2"))
        system.upgrade(download_only=True)
        (self.etc(system) / "late.conf").write_bytes(b"late\n")
        system.apply_downloaded()
        holds((self.etc(system) / "late.conf"), b"late\n")

    def test_var_is_filled_once_and_kept(self, tmp_path: Path) -> None:
        """The first image seeds it; later ones and rollbacks do not touch it."""
        system = self.deployed(tmp_path, "1")
        seed = self.var(system) / "lib/seed"
        holds(seed, b"once\n")
        seed.write_bytes(b"changed\n")
        (self.var(system) / "log.txt").write_bytes(b"kept\n")
        files: dict[str, Any] = {"var/lib/seed": b"again\n", "var/lib/new": b"new\n"}
        self.publish(system, make_image("2", files=files))
        system.upgrade()
        system.rollback()
        system.rollback()
        holds(seed, b"changed\n")
        holds((self.var(system) / "log.txt"), b"kept\n")

    # durability

    def test_names_are_durable_before_the_switch(self, tmp_path: Path) -> None:
        """Every name given before the menu changes is synced by then (or its file system is)."""
        system = self.system(tmp_path)
        self.publish(system, make_image("1"))
        self.durable(system, lambda: system.switch(OS))
        self.publish(system, make_image("2"))
        self.durable(system, system.upgrade)
        self.publish(system, make_image("3"))
        system.upgrade(download_only=True)
        self.durable(system, system.apply_downloaded)
        self.durable(system, system.rollback)

    def test_killed_at_every_step_of_the_first_switch(self, tmp_path: Path) -> None:
        """Nothing or everything, and the next run converges."""
        system = self.system(tmp_path)
        system.storage()
        self.publish(system, make_image("1"))
        self.kill(system, lambda system: system.switch(OS), (None, None), ("1", None))

    def test_killed_at_every_step_of_an_upgrade(self, tmp_path: Path) -> None:
        """Old or new, and the next run converges."""
        system = self.deployed(tmp_path, "1", "2")
        self.publish(system, make_image("3"))
        self.kill(system, lambda system: system.upgrade(), ("2", "1"), ("3", "2"))

    def test_killed_at_every_step_of_a_rollback(self, tmp_path: Path) -> None:
        """One or the other is first."""
        system = self.deployed(tmp_path, "1", "2")

        def until_first(system: System) -> object:
            return system.rollback() if system.versions()[0] == "2" else None

        self.kill(system, until_first, ("2", "1"), ("1", "2"))

    def test_killed_while_applying(self, tmp_path: Path) -> None:
        """What was downloaded stays or boots."""
        system = self.deployed(tmp_path, "1")
        self.publish(system, make_image("2"))
        system.upgrade(download_only=True)

        def apply(system: System) -> object:
            if system.versions()[0] == "2":
                return None
            try:
                return system.apply_downloaded()
            except UsageError:  # recovery may drop what an interrupted run left
                return system.upgrade()

        self.kill(system, apply, ("1", None), ("2", "1"))

    def kill(
        self,
        system: System,
        action: Action,
        old: tuple[str | None, str | None],
        new: tuple[str | None, str | None],
    ) -> None:
        """Kill ``action`` before each durable step; afterwards and after a repetition all is well."""
        before, ids = system.snapshot(), system.booting()
        total = len(system.steps(action))
        boots(system, *new)
        assert total > 0, "no durable step at all"
        clean = _names(system)
        for step in _points(total, self.kill_every):
            system.restore(before)
            system.kill_at(action, step)
            where = f"killed before durable step {step} of {total}"
            # the second place may be any of the three while the menu is being rewritten
            first = system.versions()[0]
            assert first in {old[0], new[0]}, f"{where}: {first}"
            self.check_first(system, where)
            if first == old[0]:
                gone = set(ids) - set(system.booting())
                assert not gone, f"{where}: {gone} left the menu before the switch"
            action(system)
            where = f"{where}, repeated"
            boots(system, *new, where)
            host = system.status()
            assert host.staged is None, f"{where}: still staged"
            assert host.other == (), f"{where}: {host.other}"
            self.check_menu(system, where)
            self.tidy(system)
            left = len(_names(system))
            same(left, len(clean), f"{where} and tidied up: number of files and directories")

    def tidy(self, system: System) -> None:
        """What the engine does after an interrupted run and at the end of each."""
        storage = system.storage()
        hooks = Hooks(system.plugins)
        context = _context(system, Phase.FINALIZE)
        backend, loader = storage.backend.plugin, storage.bootloader.plugin

        async def work() -> None:
            plan = await hooks.discard(backend, context, system.sysroot, None)
            if plan is not None and not plan.effective:
                await hooks.switch_boot(loader, context, system.sysroot, plan)
            await hooks.prune(backend, context, system.sysroot)

        system.run(work)

    # checks

    def check_menu(self, system: System, where: str = "") -> None:
        """Every entry boots a deployment that status shows, with the files that it names, and none is left over."""
        host = system.status()
        shown = _slots(system)
        names = system.booting()
        assert len(names) == len(set(names)), f"{where}: two entries for one deployment: {names}"
        assert len(names) == len(shown), f"{where}: entries {names}, deployments {len(shown)}"
        assert not host.notes, f"{where}: {host.notes}"
        for entry in system.entries():
            self.check_entry(system, entry, where)

    def check_first(self, system: System, where: str) -> None:
        """What boots next is whole, whatever else is on the menu."""
        entries = system.entries()
        if entries:
            self.check_entry(system, entries[0], where)
            assert system.status().booted is not None, f"{where}: nothing behind the first entry"

    def check_entry(self, system: System, entry: PresentEntry, where: str) -> None:
        """The entry is ours, and its kernel and initrd are there and are the image's."""
        assert system.deployment_of(entry), f"{where}: an entry without deployment: {entry.file}"
        for key, content in _FILES.items():
            assert entry.get(key), f"{where}: {entry.file} has no {key}"
            for value in entry.all(key):
                path = system.sysroot.boot_dir / value.lstrip("/")
                assert path.is_file(), f"{where}: {entry.file} names {value}, which is missing"
                right = path.read_bytes() == content
                assert right, f"{where}: {value} is not the image's"

    def durable(self, system: System, action: Callable[[], object]) -> None:
        """Run ``action``; all that it wrote is durable when the boot partition is first touched."""
        ledger = Ledger(system.sysroot)
        with atomic.observe(ledger):
            action()
        assert ledger.left is not None, "the boot partition was never touched"
        assert ledger.left == [], f"not durable when the menu changed: {ledger.left[:10]}"


def same(found: object, expected: object, what: str) -> None:
    """Equal, or an AssertionError that says what differs."""
    assert found == expected, f"{what}: expected {expected!r:.500}, found {found!r:.500}"


def boots(system: System, first: str | None, second: str | None, where: str = "") -> None:
    """These versions boot next and are kept for rollback."""
    same(system.versions(), (first, second), f"{where} versions that boot next and before".strip())


def holds(path: Path, content: bytes | None) -> None:
    """The file has this content; None: it does not exist."""
    same(path.read_bytes() if path.is_file() else None, content, f"the content of {path}")


def _problems(system: System) -> list[str]:
    """What the backend's check finds, as text; nothing if it offers none."""
    check = _offer(system).check
    if check is None:
        return []
    return [str(one) for one in check(system.sysroot, system.entries()) if isinstance(one, Finding)]


def _offer(system: System) -> Any:
    return system.plugins.backend(system.config.backend).offer


def _context(system: System, phase: Phase) -> Context:
    return Context(
        transaction="contract",
        operation=Operation.UPGRADE,
        phase=phase,
        sysroot=str(system.sysroot.path),
        live=False,
        config_root=str(system.sysroot.config_root),
        started_at=datetime.now(UTC),
    )


def _menu(system: System) -> dict[str, bytes]:
    """Every file of the menu with its content."""
    place = system.sysroot.boot_dir / bls.ENTRIES
    return {path.name: path.read_bytes() for path in sorted(place.glob("*.conf"))}


def _bytes(system: System) -> dict[str, bytes]:
    """The sysroot's files, our own state aside."""
    state = system.sysroot.state
    return {
        str(path.relative_to(system.sysroot.path)): path.read_bytes()
        for path in sorted(system.sysroot.path.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.is_relative_to(state)
    }


def _size(system: System) -> int:
    seen: dict[tuple[int, int], int] = {}
    for path in system.sysroot.path.rglob("*"):
        info = path.lstat()
        seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


def _slots(system: System) -> list[Deployment]:
    host = system.status()
    return [slot for slot in (host.booted, host.rollback, *host.other) if slot]


def _names(system: System) -> list[str]:
    """Everything in the sysroot, our own state aside."""
    return sorted(
        str(path.relative_to(system.sysroot.path))
        for path in system.sysroot.path.rglob("*")
        if not path.is_relative_to(system.sysroot.state)
    )


def _fails(action: Any) -> BaseException | None:
    try:
        action()
    except BootcError as problem:
        return problem
    return None


def _points(total: int, every: int) -> list[int]:
    ends = {*range(3), *range(total - 3, total)}
    return sorted(step for step in {*range(0, total, every), *ends} if 0 <= step < total)


def _flipped(blob: bytes) -> bytes:
    middle = len(blob) // 2
    return blob[:middle] + bytes((blob[middle] ^ 0x10,)) + blob[middle + 1 :]


def _cut(blob: bytes) -> bytes:
    return blob[: len(blob) * 2 // 3]


def _longer(blob: bytes) -> bytes:
    return blob + b"trailing"


def _repacked(blob: bytes) -> bytes:
    """Other bytes with the same content: only the blob's own digest tells."""
    return gzip.compress(gzip.decompress(blob), 1, mtime=0)


def _other(blob: bytes) -> bytes:
    del blob
    return make_image("666").layers[1].blob
