"""Hook implementations of the GRUB plugin; everything else is imported when it is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import BootloaderOffer
from bootc_core.models.install import CommandOffer

if TYPE_CHECKING:
    from bootc_core.models.boot import BootPlan, PresentEntry
    from bootc_core.models.context import Context
    from bootc_core.models.install import BootTarget, Services
    from bootc_core.models.sysroot import Sysroot

BOOTC_API = 1
NAME: Final = "grub"


def _read_entries(sysroot: Sysroot, warn: Callable[[str], None]) -> Sequence[PresentEntry]:
    from bootc_core.boot import bls

    return bls.read_entries(sysroot.boot_dir, warn)


def _preflight(sysroot: Sysroot, plan: BootPlan) -> None:
    from bootc_grub import switch

    switch.preflight(sysroot, plan)


@hookimpl
def bootc_register_bootloaders() -> Sequence[BootloaderOffer]:
    """The bootloader that this plugin is."""
    return [BootloaderOffer(NAME, _read_entries, _preflight)]


@hookimpl
async def bootc_switch_boot(context: Context, sysroot: Sysroot, plan: BootPlan) -> bool:
    """Make the plan effective on the boot file system; see ``switch``."""
    import trio

    from bootc_grub import switch

    del context
    await trio.lowlevel.checkpoint()
    # In this thread and not interruptible: durable steps keep one order.
    switch.switch(sysroot, plan)
    return True


@hookimpl
async def bootc_install_bootloader(context: Context, sysroot: Sysroot, target: BootTarget) -> bool:
    """GRUB itself; see ``install``."""
    import trio

    from bootc_grub import install

    del context
    await trio.lowlevel.checkpoint()
    install.install(sysroot, target)
    return True


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sysroot", metavar="DIR", help="physical root instead of the booted host's"
    )


def _refresh(arguments: argparse.Namespace, services: Services) -> int:
    from bootc_grub import switch

    del services
    switch.refresh_host(arguments.sysroot)
    return 0


@hookimpl
def bootc_register_commands() -> Sequence[CommandOffer]:
    """``bootc refresh-boot-menu``, for the shutdown of a host whose entries libostree writes."""
    text = "Make GRUB's menu follow the boot entries, where it is derived from them."
    return [CommandOffer("refresh-boot-menu", text, _fill, _refresh)]
