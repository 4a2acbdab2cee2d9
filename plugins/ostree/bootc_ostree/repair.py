"""Putting back what of a deployed image is damaged or missing: objects, references, checkouts, kernel and initrd.

    set aside    damaged objects get temporary names, so that the import takes them for missing
    stage        the whole of it again: missing layers fetched, commits and references written; what is there is left alone
    checkouts    a file that is not its commit's becomes a link to the object again
    boot         kernel and initrd that are not the deployment's are copied again

A checkout is made of hard links, so a damaged object is damaged in every deployment that has the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bootc_core.errors import StorageError
from bootc_core.fs import atomic
from bootc_core.models import events
from bootc_ostree import backend, fsck, layers, objects, state
from bootc_ostree.repo import Repo

if TYPE_CHECKING:
    from bootc_core.models.context import Context
    from bootc_core.models.finding import Finding
    from bootc_core.models.image import VerifiedImage
    from bootc_core.models.sysroot import Sysroot
    from bootc_ostree.state import Present

Emit = Callable[[events.Event], None]
_MODULES = "usr/lib/modules"


async def repair(
    context: Context,
    image: VerifiedImage,
    sysroot: Sysroot,
    findings: Sequence[Finding],
    emit: Emit,
) -> None:
    """See ``bootc_repair``.

    Raises:
        StorageError: ``another-image``: what comes of the image's layers is none of its deployments.
    """
    backend._need_root()
    repo = Repo(sysroot.path)
    with _aside(sysroot, findings):
        _forget_layers(repo, image)
        staged = await backend.stage(context, image, sysroot, emit)
        commit = str(staged.details["commit"])
        present = state.deployments(sysroot)
        if commit not in {one.checksum for one in present} | {state.staged_commit(sysroot)}:
            raise StorageError(
                "the image cannot be put back: its layers now come to another commit",
                reference="another-image",
                found=commit[:16],
                hint="another version of this program made it; bootc upgrade or switch replaces it",
                catalogue="STATE",
            )
    for one in present:
        if one.checksum == commit:
            _restore_checkout(repo, sysroot, one)
            _restore_boot_files(sysroot, one)
    atomic.syncfs(sysroot.path)


@contextmanager
def _aside(sysroot: Sysroot, findings: Sequence[Finding]) -> Iterator[None]:
    """Damaged objects under temporary names; those that got no successor are back when the block ends."""
    moved: list[tuple[Path, Path]] = []
    try:
        for finding in findings:
            path = sysroot.path / finding.name
            if finding.kind == "object" and os.path.lexists(path):
                hidden = path.with_name(atomic.temporary_name(path.name))
                atomic.rename(path, hidden)
                moved.append((hidden, path))
        yield
    finally:
        for hidden, path in moved:
            if not atomic.rename_new(hidden, path):
                atomic.unlink(hidden)


def _forget_layers(repo: Repo, image: VerifiedImage) -> None:
    """References of layers that lack something go: a stage writes the commit of a layer without one again."""
    for layer in image.image.manifest.layers:
        ref = layers.blob_ref(layer)
        commit = repo.read_ref(ref)
        place = repo.object_path(commit, "commit") if commit else None
        if (
            commit is None
            or place is None
            or not place.is_file()
            or any(True for _ in fsck.missing_objects(repo, commit))
        ):
            repo.remove_ref(ref)


def _restore_checkout(repo: Repo, sysroot: Sysroot, present: Present) -> None:
    """Files of the checkout that are not the commit's become links to the objects."""
    root = sysroot.path / present.directory
    data = repo.read_commit(present.checksum)
    for path, _ in list(fsck.differences(repo, sysroot, present)):
        checksum = _object_at(repo, data["tree"].hex(), path)
        if checksum is None:
            continue
        original, target = repo.object_path(checksum, "file"), root / path
        temporary = target.with_name(atomic.temporary_name(target.name))
        with atomic.mapped("link", target):
            os.link(original, temporary, follow_symlinks=False)
        atomic.rename(temporary, target)
        if os.path.lexists(temporary):  # it was the same file after all
            atomic.unlink(temporary)


def _object_at(repo: Repo, tree: str, path: str) -> str | None:
    """The checksum of the file at ``path`` below a list of a directory; None for a directory."""
    *parents, name = path.split("/")
    for parent in parents:
        _, directories = objects.parse_dirtree(repo.read_object(tree, "dirtree"))
        tree = next(inner.hex() for found, inner, _ in directories if found == parent)
    files, _ = objects.parse_dirtree(repo.read_object(tree, "dirtree"))
    return next((checksum.hex() for found, checksum in files if found == name), None)


def _restore_boot_files(sysroot: Sysroot, present: Present) -> None:
    """Copy kernel and initrd from the deployment where those on the boot partition are others.

    Raises:
        StorageError: no space, or the deployment has others, too.
    """
    for entry in state.read_entries(sysroot, lambda message: None):
        if state.deployments(sysroot, [entry]) != [present]:
            continue
        found = fsck.boot_files(sysroot, entry)
        if found is None or fsck.digest_of(found[1]) == found[0]:
            continue
        sources = _kernel_files(sysroot.path / present.directory, len(found[1]))
        if fsck.digest_of(sources) != found[0]:
            raise StorageError(
                "kernel and initrd of the deployment are not those that it was deployed with",
                reference="another-image",
                found=present.directory,
                catalogue="STATE",
            )
        for source, target in zip(sources, found[1], strict=True):
            temporary = target.with_name(atomic.temporary_name(target.name))
            with source.open("rb") as content:
                atomic.create_file(temporary, content)
            atomic.rename(temporary, target)
            atomic.fsync(target.parent)


def _kernel_files(root: Path, count: int) -> list[Path]:
    for directory in sorted((root / _MODULES).iterdir()):
        files = [directory / name for name in ("vmlinuz", "initramfs.img")]
        if files[0].is_file():
            return files[:count]
    return []
