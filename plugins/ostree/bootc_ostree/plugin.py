"""The ostree storage backend, and the bootloader ``none`` for entries that something else makes effective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from bootc_core import hookimpl
from bootc_core.hooks.offers import BackendOffer, BootloaderOffer, LiveStaging

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.models.boot import BootPlan, PresentEntry
    from bootc_core.models.context import Context
    from bootc_core.models.events import Event
    from bootc_core.models.finding import Counted, Finding
    from bootc_core.models.host import HostStatus
    from bootc_core.models.image import FetchedImage, StagedDeployment, VerifiedImage
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot

    Emit = Callable[[Event], None]

BOOTC_API = 1


def _claims(sysroot: Sysroot) -> bool:
    return (sysroot.path / "ostree/repo/config").is_file()


def _read_host(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> HostStatus:
    from bootc_ostree import state

    return state.read_host(sysroot, entries)


def _tracked(sysroot: Sysroot, reference: ImageReference) -> str | None:
    from bootc_ostree import state

    return state.tracked(sysroot, reference)


def _read_staged(sysroot: Sysroot) -> tuple[StagedDeployment, bool, str] | None:
    from bootc_ostree import state

    return state.read_staged(sysroot)


def _lock_staged(sysroot: Sysroot, locked: bool) -> None:
    from bootc_ostree import state

    state.lock_staged(sysroot, locked)


def _manifest(sysroot: Sysroot, digest: str) -> bytes | None:
    from bootc_ostree import state

    return state.manifest(sysroot, digest)


def _note_update(sysroot: Sysroot, reference: ImageReference, image: FetchedImage) -> None:
    from bootc_ostree import state

    state.note_update(sysroot, reference, image)


def _check(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> Iterator[Finding | Counted]:
    from bootc_ostree import fsck

    return fsck.check_sysroot(sysroot, entries)


def _export(sysroot: Sysroot, reference: ImageReference, digest: str) -> FetchedImage:
    from bootc_ostree import export

    return export.export(sysroot, reference, digest)


def _directory(sysroot: Sysroot, name: str) -> Path:
    from bootc_ostree import state

    return state.directory(sysroot, name)


def _extract(sysroot: Sysroot, deployment_id: str, path: str, place: Path) -> bool:
    import shutil

    from bootc_core.errors import StorageError
    from bootc_ostree.repo import Repo

    try:
        source = _directory(sysroot, deployment_id) / path
    except (
        StorageError
    ):  # staged, and not in the boot menu yet: the commit is there, a checkout may not be
        return Repo(sysroot.path).copy_out(deployment_id.partition(".")[0], path, place)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, place, symlinks=True)
    elif source.is_symlink() or source.exists():
        shutil.copy2(source, place, follow_symlinks=False)
    else:
        return False
    return True


def _bootloader(sysroot: Sysroot) -> str | None:
    """Libostree writes the entries; a menu for GRUB may be derived from them, nothing else may change them."""
    if not _claims(sysroot):
        return None
    menus = (sysroot.path / "boot" / name / "bootc.cfg" for name in ("grub", "grub2"))
    return "grub" if any(menu.is_file() for menu in menus) else "none"


def _read_entries(sysroot: Sysroot, warn: Callable[[str], None]) -> Sequence[PresentEntry]:
    from bootc_ostree import state

    return state.read_entries(sysroot, warn)


def _preflight(sysroot: Sysroot, plan: BootPlan) -> None:
    """Libostree checks the boot partition itself."""


@hookimpl
def bootc_register_backends() -> Sequence[BackendOffer]:
    """The backend ``ostree``."""
    return [
        BackendOffer(
            "ostree",
            _claims,
            _read_host,
            _tracked,
            _bootloader,
            _manifest,
            only_bootloaders=("none", "grub"),
            note_update=_note_update,
            live_staging=LiveStaging(_read_staged, _lock_staged),
            check=_check,
            extract=_extract,
            etc=lambda sysroot, name: _directory(sysroot, name) / "etc",
            export=_export,
        )
    ]


@hookimpl
def bootc_register_bootloaders() -> Sequence[BootloaderOffer]:
    """The bootloader ``none``."""
    return [BootloaderOffer("none", _read_entries, _preflight)]


@hookimpl
async def bootc_stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment | None:
    """Import the layers and commit the merged image."""
    from bootc_ostree import backend

    return await backend.stage(context, image, sysroot, emit)


@hookimpl
async def bootc_finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
) -> BootPlan | None:
    """Deploy by libostree, ``/etc`` merge and switch included."""
    from bootc_ostree import backend

    return await backend.finalize(context, sysroot, staged, emit)


@hookimpl
async def bootc_switch_boot(context: Context, sysroot: Sysroot, plan: BootPlan) -> bool | None:
    """Nothing is left to do."""
    del context, sysroot, plan
    return True


@hookimpl
async def bootc_rollback(context: Context, sysroot: Sysroot) -> BootPlan | None:
    """Swap the first two deployments by libostree."""
    from bootc_ostree import backend

    return await backend.rollback(context, sysroot)


@hookimpl
async def bootc_discard(
    context: Context, sysroot: Sysroot, staged: StagedDeployment | None
) -> BootPlan | None:
    """Remove what is not listed."""
    from bootc_ostree import backend

    return await backend.discard(context, sysroot, staged)


@hookimpl
async def bootc_prune(context: Context, sysroot: Sysroot) -> bool | None:
    """Remove refs and objects that no deployment needs."""
    from bootc_ostree import backend

    return await backend.prune(context, sysroot)


@hookimpl
async def bootc_repair(
    context: Context,
    image: VerifiedImage,
    sysroot: Sysroot,
    findings: Sequence[Finding],
    emit: Emit,
) -> BootPlan | None:
    """The image whole again, its checkouts, too."""
    from bootc_ostree import repair

    await repair.repair(context, image, sysroot, findings, emit)
    return None
