"""Commands that plugins add, and what the program does for them (``Services``)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bootc_core.cli import common
from bootc_core.config import Config
from bootc_core.errors import BootcError, PluginError
from bootc_core.hooks.manager import Plugins

if TYPE_CHECKING:
    from bootc_core.models.context import SignatureMode
    from bootc_core.models.install import CommandOffer, Installed, InstallRequest
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot


def wanted(argv: Sequence[str]) -> list[CommandOffer]:
    """The plugins' commands, for an ``argv`` that is not about a built-in one; loading them costs time.

    Raises:
        BootcError: the plugins cannot be loaded, and ``argv`` names a command that could be theirs.
    """
    word = next((word for word in argv if not word.startswith("-")), None)
    if word is None and not {"-h", "--help"} & set(argv):
        return []
    try:
        return offered()
    except BootcError:
        if word is None:  # help is given in any case
            return []
        raise


def offered() -> list[CommandOffer]:
    """All commands of plugins, by name.

    Raises:
        BootcError: the plugins cannot be loaded.
    """
    found = _load(argparse.Namespace())[1].commands
    return [found[name].offer for name in sorted(found)]


def _load(arguments: argparse.Namespace) -> tuple[Config, Plugins]:
    arguments.config_root = getattr(arguments, "config_root", None)
    return common.load(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Run the command of a plugin; its exit status."""
    offer: CommandOffer = arguments.offer
    return offer.run(arguments, _Services(arguments))


class _Services:
    """See ``models.install.Services``."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._settings, self._plugins = _load(arguments)
        self._arguments = arguments

    def check(self, source: ImageReference, verify: SignatureMode, sysroot: Sysroot) -> None:
        """See ``Services.check``."""
        from bootc_core.cli import checking, deploy, trust
        from bootc_core.engine import transaction
        from bootc_core.hooks.calls import Hooks
        from bootc_core.models.context import Context, ImageSummary, Operation, Phase

        checking.check_providers(self._plugins)
        provider = self._plugins.transport(source.transport.value).plugin
        hooks = Hooks(self._plugins)
        context = Context(
            transaction=transaction.new_transaction_id(),
            operation=Operation.INSTALL,
            phase=Phase.FETCH,
            sysroot=str(sysroot.path),
            live=False,
            config_root=str(sysroot.config_root),
            to_image=ImageSummary(reference=str(source)),
            signature=verify,
            started_at=datetime.now(UTC),
            dry_run=True,
        )

        async def work() -> None:
            image = await hooks.fetch(provider, context, source)
            found = context.model_copy(update={"phase": Phase.VERIFY, "to_image": image.summary()})
            transaction.judge(found, await trust.ask(hooks, found, image))

        deploy.run(work)

    def install(self, request: InstallRequest) -> Installed:
        """See ``Services.install``."""
        from bootc_core.cli import checking, deploy
        from bootc_core.engine import orchestrator, plan, sysroots
        from bootc_core.models.context import Operation, Phase
        from bootc_core.models.install import Installed

        plugins = self._plugins
        checking.check_providers(plugins)
        plugins.transport(request.source.transport.value)
        storage = sysroots.create_storage(
            request.sysroot,
            plugins,
            self._settings,
            backend=request.backend,
            bootloader=request.bootloader,
            foreign=request.foreign,
        )
        offer = storage.backend.offer
        extract, etc = offer.extract, offer.etc
        if extract is None or etc is None:
            raise PluginError(
                f"the storage backend {offer.name} cannot be installed",
                reference="no-provider",
                expected="a backend that gives access to a deployment's files",
                hint="use --sysroot with switch, which needs none",
            )

        async def work() -> Installed:
            async with orchestrator.transaction(
                plugins,
                storage,
                deploy.observers(self._arguments),
                Operation.INSTALL,
                str(request.source),
                request.verify,
                install=request.installation,
            ) as (transaction, host):
                target = plan.Target(Operation.INSTALL, request.source, request.verify)
                outcome = await orchestrator.deploy(transaction, host, target)
                name, image = outcome.deployment_id or "", outcome.image
                assert image is not None  # noqa: S101 - a deployment was made of one

                def read(path: str, place: Path) -> bool:
                    return extract(request.sysroot, name, path, place)

                if request.target is not None:
                    transaction.update(phase=Phase.FINALIZE)
                    await transaction.hooks.install_bootloader(
                        storage.bootloader.plugin,
                        transaction.context,
                        request.sysroot,
                        request.target(read),
                    )
                summary = image.summary()
                return Installed(
                    name,
                    image.digest,
                    summary.version,
                    summary.labels,
                    etc(request.sysroot, name),
                    read,
                )

        return deploy.run(work)
