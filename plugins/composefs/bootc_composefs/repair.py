"""Putting back what of a deployed image is damaged or missing: objects, images, streams, references, boot files, the boot entry.

    set aside    damaged objects and links get temporary names, so that the import takes them for missing
    import       as a stage does: missing layers fetched, all read back, then named
    compute      image and documents anew; the image must be the one that was deployed
    link, sync   as a stage does
    boot         kernel and initrd that are not the image's are written again; an entry that is gone is planned

Whatever could not be replaced gets its name back: some of a damaged object may be better than nothing. Killed in between, it is
missing instead of damaged, and the next repair fetches it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from bootc_composefs import backend, state
from bootc_composefs.cache import Cache
from bootc_composefs.compose import Composed, compose
from bootc_composefs.contents import Contents, image_subtrees
from bootc_composefs.fsck import boot_files, holds
from bootc_composefs.layers import import_missing, spool
from bootc_composefs.repository import TEMPORARY, Repository
from bootc_core import paths
from bootc_core.errors import BootcError, StorageError
from bootc_core.fs import atomic
from bootc_core.models import events
from bootc_core.models.boot import BootEntry, BootPlan
from bootc_core.models.finding import Cure

if TYPE_CHECKING:
    from bootc_composefs.state import Slot
    from bootc_core.hooks.specs import Emit
    from bootc_core.models.context import Context
    from bootc_core.models.finding import Finding
    from bootc_core.models.image import VerifiedImage
    from bootc_core.models.sysroot import Sysroot
    from bootc_core.models.tree import Node


async def repair(
    context: Context,
    verified: VerifiedImage,
    sysroot: Sysroot,
    findings: Sequence[Finding],
    emit: Emit,
) -> BootPlan | None:
    """See ``bootc_repair``.

    Raises:
        StorageError: ``another-image``: what comes of the image's layers is none of its deployments.
    """
    image = verified.image
    with Repository.create(sysroot.path / state.REPOSITORY) as repository:
        repository.require_writable()
        present = state.present_slots(sysroot)
        cache = Cache(sysroot)
        cache.forget_roots()
        layers = {f"streams/oci-layer-{diff_id}" for diff_id in image.config.rootfs.diff_ids}
        with _aside(repository, [one for one in findings if one.cure is Cure.FETCH], layers):
            imported = await import_missing(context, image, sysroot, repository, cache, emit)
            current, settings = _readable(repository, present)

            def compute() -> Composed:
                found = [(name, imported.layers[name]) for name in image.config.rootfs.diff_ids]
                return compose(repository, found, current, settings, cache)

            composed = await backend._meanwhile(compute, imported.settle)
            _expect_deployed(sysroot, composed, image.digest)
            await imported.publish()
            emit(events.StepProgressed(context.transaction, "repairing", "Putting it in place"))
            await trio.lowlevel.checkpoint()
            bootable = {
                version: repository.put(data, digest)
                for version, (digest, data) in composed.bootable.items()
            }
            documents = backend._documents(repository, image, imported.layers, bootable)
            atomic.syncfs(repository.path)
            images = tuple(bootable.values())
            for digest in (*images, *documents.values()):
                backend._read_again(repository, digest)
            backend._link(repository, image, imported.layers, documents, images)
            for name in ("streams", "streams/refs/oci", "images", "objects"):
                atomic.fsync(repository.path / name)
        atomic.rmtree(spool(sysroot))
        for slot in present:
            if slot.deployment_id == composed.deployment_id:
                _restore_boot_files(repository, sysroot, slot)
        return _menu(repository, sysroot, composed, present)


def _readable(repository: Repository, present: Sequence[Slot]) -> tuple[Slot | None, Node | None]:
    """The deployment whose kernel arguments an entry that is made again follows, and its image's settings.

    It is the first whose image can be read.
    """
    for slot in present:
        try:
            (settings,) = image_subtrees(repository, slot.deployment_id, (paths.KARGS_D,))
        except BootcError:
            continue
        return slot, settings
    return None, None


def _expect_deployed(sysroot: Sysroot, composed: Composed, digest: str) -> None:
    """Before anything gets a name: this is an image that is deployed here."""
    if (sysroot.path / state.DEPLOY / composed.deployment_id).is_dir():
        return
    raise StorageError(
        f"the image {digest[:19]}… cannot be put back: its layers now come to another deployment",
        reference="another-image",
        found=composed.deployment_id[:12],
        hint="another version of this program made it; bootc upgrade or switch replaces it",
        catalogue="STATE",
    )


@contextmanager
def _aside(repository: Repository, findings: Sequence[Finding], layers: set[str]) -> Iterator[None]:
    """Damaged objects under other names, and links of damaged ``layers`` gone, so that they count as missing.

    Objects that got no successor are back when the block ends.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for finding in findings:
            path = repository.path / finding.name
            if finding.kind == "object" and os.path.lexists(path):
                hidden = repository.path / f"objects/{TEMPORARY}{os.urandom(8).hex()}"
                atomic.rename(path, hidden)
                moved.append((hidden, path))
            elif finding.name in layers:
                atomic.unlink(path)
        yield
    finally:
        for hidden, path in moved:
            if atomic.rename_new(hidden, path) is False:
                atomic.unlink(hidden)


def _restore_boot_files(repository: Repository, sysroot: Sysroot, slot: Slot) -> None:
    """Write what the entry names and is not the image's. Nothing good is touched: what is there does not boot as it should.

    Raises:
        StorageError: no space, or the medium fails.
    """
    for _, path, node in boot_files(repository, sysroot, slot):
        if holds(repository, path, node):
            continue
        if os.path.lexists(path):
            atomic.unlink(path)
        for directory in reversed(path.parents):
            if directory.is_relative_to(sysroot.boot_dir):
                atomic.mkdir(directory, None)
        with Contents(repository).open(node) as content:
            atomic.create_file(path, content)
        atomic.fsync(path.parent)
        atomic.syncfs(sysroot.boot_dir)
        atomic.fsync(path)


def _menu(
    repository: Repository, sysroot: Sysroot, composed: Composed, present: Sequence[Slot]
) -> BootPlan | None:
    """The menu with an entry for the deployment, last, if it has none and does not wait for one."""
    staged = state.read_staged(sysroot)
    if any(slot.deployment_id == composed.deployment_id for slot in present) or (
        staged and staged.deployment_id == composed.deployment_id
    ):
        return None
    try:
        digest = state.load_origin(sysroot, composed.deployment_id).boot_digest
    except BootcError:
        digest = None
    if digest not in {None, composed.boot_digest}:
        raise StorageError(
            "the kernel is not the one that was deployed",
            reference="another-image",
            found=composed.boot_digest[:16],
            catalogue="STATE",
        )
    binaries = backend._boot_files(repository, sysroot, composed, present)
    entry = BootEntry(
        deployment_id=composed.deployment_id,
        os_id=composed.identity.id,
        title=composed.identity.pretty_name,
        version=composed.identity.version or "",
        options=composed.options,
        linux=binaries[0],
        initrd=binaries[1:],
    )
    return BootPlan(entries=(*(slot.deployment_id for slot in present if slot.at_rest), entry))
