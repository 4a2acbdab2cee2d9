"""A whole system in a directory, with chosen plugins, run by the real engine.

    system = System(tmp_path)                        # fakes for everything
    system.transport.images["quay.io/x/os:1"] = make_image("1")
    system.switch("quay.io/x/os:1")
    system.status().booted

    system = System(tmp_path, plugins={"mine": MyPlugin()})         # with yours beside them
    system = System(tmp_path, backend=mine.plugin, virtual_time=False)    # yours instead of one

Under virtual time (trio's autojump clock) deadlines and waits take no time; plugins that start
programs or threads need real time.

Crash points are the durable steps of ``fs.atomic``. ``kill_at`` runs an action in a forked process
that kills itself (SIGKILL) right before its n-th durable step, as a crash of the program would.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing

from bootc_core import process
from bootc_core.boot import bls
from bootc_core.config import Config
from bootc_core.engine import orchestrator, plan, sysroots
from bootc_core.engine.notice import read_notice
from bootc_core.engine.orchestrator import Outcome
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import BootcError, UsageError
from bootc_core.fs import atomic
from bootc_core.hooks import manager
from bootc_core.hooks.discovery import PluginSource
from bootc_core.models.boot import PresentEntry
from bootc_core.models.context import Operation, SignatureMode
from bootc_core.models.events import Event
from bootc_core.models.host import HostStatus
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.testing.fakes import FakeBackend, FakeBootloader, FakePolicy, FakeTransport

T = TypeVar("T")
Action = Callable[["System"], object]


def load_plugins(plugins: Mapping[str, object]) -> manager.Plugins:
    """Register plugin objects or modules under their names, with all checks of the real loader.

    Raises:
        PluginError: one does not fit the contract, or two conflict.
    """
    loaded = manager.Plugins(manager.new_manager())
    for name in sorted(plugins, reverse=True):
        module = getattr(plugins[name], "__name__", type(plugins[name]).__module__)
        source = PluginSource(name, module, "testing", "0", "")
        hooks = manager.register(loaded.manager, plugins[name], source)
        loaded.infos.insert(0, manager.PluginInfo(source, "loaded", hooks))
    return manager.collect_offers(loaded)


class System:
    """A host in ``path``: sysroot, boot partition, configuration root, and its plugins.

    Attributes:
        transport, policy, backend, bootloader: the plugins in those roles.
        calls: what the fakes were asked to do, in order: (hook, phase).
        events: what the engine reported, in order, of all runs.
        sysroot: the sysroot, in ``path/sysroot``.

    ``deployment_of`` is for backends whose boot entries name deployments in a way of their own.
    """

    def __init__(
        self,
        path: Path,
        *,
        transport: FakeTransport | None = None,
        policy: object | None = None,
        backend: object | None = None,
        bootloader: object | None = None,
        plugins: Mapping[str, object] | None = None,
        virtual_time: bool = True,
        deployment_of: Callable[[Sysroot, PresentEntry], str | None] | None = None,
    ) -> None:
        self.path = path
        self._deployment_of = deployment_of
        self.virtual_time = virtual_time
        self.calls: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self.transport = transport or FakeTransport()
        self.policy = policy or FakePolicy()
        self.backend = backend or FakeBackend()
        self.bootloader = bootloader or FakeBootloader()
        roles: dict[str, Any] = {
            "fake_transport": self.transport,
            "policy": self.policy,
            "backend": self.backend,
            "bootloader": self.bootloader,
        }
        if self.bootloader is self.backend:  # one plugin in both roles
            del roles["bootloader"]
        for plugin in roles.values():
            if hasattr(plugin, "calls"):
                plugin.calls = self.calls
        self.plugins = load_plugins({**roles, **(plugins or {})})
        self.config = Config(
            backend=self._offered(self.plugins.backends, "backend"),
            bootloader=self._offered(
                self.plugins.bootloaders, "bootloader" if "bootloader" in roles else "backend"
            ),
        )
        config_root = path / "config"
        config_root.mkdir(parents=True, exist_ok=True)
        place = path / "sysroot"
        self.sysroot = Sysroot(
            place.absolute(),
            place.absolute() / "boot",
            config_root.absolute(),
            unprivileged=os.geteuid() != 0,
        )

    @staticmethod
    def _offered(offers: Mapping[str, manager.Offered[Any]], plugin: str) -> str:
        return next(name for name, offered in offers.items() if offered.plugin == plugin)

    # requests, as the command line makes them

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run an async function, under virtual time unless that was switched off."""
        clock = trio.testing.MockClock(autojump_threshold=0) if self.virtual_time else None
        return trio.run(work, clock=clock)

    def storage(self) -> Storage:
        """The sysroot with its providers; made if it is new.

        Raises:
            BootcError: it is foreign, or a provider is missing.
        """
        sysroot = self.sysroot
        sysroot.boot_dir.mkdir(parents=True, exist_ok=True)
        return sysroots.create_storage(sysroot, self.plugins, self.config)

    def switch(
        self, image: str, *, insecure: bool = False, enforce: bool = False, reason: str = ""
    ) -> Outcome | None:
        """``bootc switch IMAGE``; None if the host follows exactly this already.

        Raises:
            BootcError: as the command fails.
        """
        reference = ImageReference.parse(image)
        mode = (
            SignatureMode.INSECURE
            if insecure
            else SignatureMode.ENFORCE
            if enforce
            else SignatureMode.POLICY
        )
        storage = self.storage()

        async def work() -> Outcome | None:
            async with orchestrator.transaction(
                self.plugins,
                storage,
                [("harness", self.events.append)],
                Operation.SWITCH,
                str(reference),
                mode,
                reason=reason,
            ) as (run, host):
                target = plan.plan_switch(
                    reference, host, _mode(host), insecure=insecure, enforce=enforce
                )
                return await orchestrator.deploy(run, host, target) if target else None

        return self.run(work)

    def upgrade(
        self,
        *,
        download_only: bool = False,
        tag: str | None = None,
        reason: str = "",
        override: str = "",
    ) -> Outcome:
        """``bootc upgrade``.

        Raises:
            BootcError: as the command fails.
        """
        storage = self.storage()
        seen = self.status()
        target = plan.plan_upgrade(seen, _mode(seen), tag)

        async def work() -> Outcome:
            async with orchestrator.transaction(
                self.plugins,
                storage,
                [("harness", self.events.append)],
                Operation.UPGRADE,
                str(target.reference),
                target.signature,
                reason=reason,
                override=override,
            ) as (run, host):
                return await orchestrator.deploy(run, host, target, download_only=download_only)

        return self.run(work)

    def apply_downloaded(self) -> Outcome:
        """``bootc upgrade --from-downloaded``.

        Raises:
            BootcError: as the command fails.
        """
        storage = self.storage()

        async def work() -> Outcome:
            async with orchestrator.transaction(
                self.plugins, storage, [("harness", self.events.append)], Operation.UPGRADE, ""
            ) as (run, host):
                notice = read_notice(storage)
                if notice is None:
                    raise UsageError("No staged deployment found", reference="nothing-staged")
                return await orchestrator.finalize_staged(run, host, notice)

        return self.run(work)

    def rollback(self) -> Outcome:
        """``bootc rollback``.

        Raises:
            BootcError: as the command fails.
        """
        storage = self.storage()

        async def work() -> Outcome:
            async with orchestrator.transaction(
                self.plugins, storage, [("harness", self.events.append)], Operation.ROLLBACK, ""
            ) as (run, host):
                return await orchestrator.roll_back(run, host)

        return self.run(work)

    # what is there

    def status(self, warn: Callable[[str], None] = lambda message: None) -> HostStatus:
        """``bootc status``."""
        return self.storage().read_host(warn)

    def entries(self) -> Sequence[PresentEntry]:
        """The boot menu, first boots next."""
        return self.storage().bootloader.offer.read_entries(self.sysroot, lambda message: None)

    def booting(self) -> list[str]:
        """The deployments on the boot menu, first boots next."""
        return [name for entry in self.entries() if (name := self.deployment_of(entry))]

    def deployment_of(self, entry: PresentEntry) -> str | None:
        """The deployment that the entry boots, or None: it is somebody else's."""
        if self._deployment_of is not None:
            return self._deployment_of(self.sysroot, entry)
        return bls.deployment_of(entry)

    def versions(self) -> tuple[str | None, str | None]:
        """Versions of what boots next and of what rollback returns to."""
        host = self.status()
        slots = (host.booted, host.rollback)
        return (_version(slots[0]), _version(slots[1]))

    # crashes

    def steps(self, action: Action) -> list[tuple[str, str]]:
        """The durable steps that ``action`` takes: (step, path)."""
        seen: list[tuple[str, str]] = []
        with atomic.observe(lambda step, path: seen.append((step, path))):
            action(self)
        return seen

    def kill_at(self, action: Action, step: int) -> bool:
        """Run ``action`` in a forked process that dies before its durable step number ``step``.

        Returns:
            Whether it died there; False: it took fewer steps.

        Raises:
            RuntimeError: it ended with an error that is none of ours (printed on stderr).
        """
        with warnings.catch_warnings():
            # the child only runs this action and leaves by _exit or SIGKILL
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            self._die_at(action, step)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) == signal.SIGKILL:
                return True
            raise RuntimeError(f"the child was killed by signal {os.WTERMSIG(status)}")
        if os.WEXITSTATUS(status) != 0:
            raise RuntimeError("the action broke before its crash point")
        return False

    def _die_at(self, action: Action, step: int) -> None:
        count = 0

        def observer(name: str, path: str) -> None:
            nonlocal count
            del name, path
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        status = 1
        try:
            with atomic.observe(observer):
                action(self)
            status = 0
        except BootcError:
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def snapshot(self) -> Path:
        """A copy of the sysroot as it is now, for ``restore``."""
        place = self.path / f"snapshot-{len(list(self.path.glob('snapshot-*')))}"
        process.run_blocking(["cp", "-a", str(self.sysroot.path), str(place)], timeout_s=300)
        return place

    def restore(self, snapshot: Path) -> None:
        """Put the sysroot back as it was (same path, since records hold absolute ones)."""
        remove_tree(self.sysroot.path)
        process.run_blocking(["cp", "-a", str(snapshot), str(self.sysroot.path)], timeout_s=300)


def remove_tree(path: Path) -> None:
    """Remove a sysroot, immutable directories (libostree sets that attribute) included."""
    run = process.run_blocking
    if shutil.which("chattr"):  # fails where the file system has no attributes, and then needs none
        run(["chattr", "-R", "-f", "-i", str(path)], timeout_s=60, check=False)
    run(["rm", "-rf", str(path)], timeout_s=60)


def _mode(host: HostStatus) -> SignatureMode | None:
    for slot in (host.staged, host.booted):
        if slot is not None and slot.image is not None:
            mode = slot.signature_mode
            return SignatureMode(mode) if mode else SignatureMode.POLICY
    return None


def _version(slot: Any) -> str | None:
    return slot.image.version if slot is not None and slot.image is not None else None
