"""A deployment's directory ``state/deploy/ID``: made complete under another name, and its ``/etc`` merged.

    etc     populated from the image; at finalize, the merge of the present one's changes
    var     link to the shared one, which the first deployment populates
    ID.origin

As an ordinary user, what cannot be set is recorded in ``bootc/owners.json``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_composefs import state
from bootc_composefs.contents import Contents, image_subtrees
from bootc_composefs.repository import Repository
from bootc_core.errors import StorageError
from bootc_core.fs import atomic, etc_merge, trees
from bootc_core.fs.owners import OwnerStore, OwnerView
from bootc_core.models.tree import Node, lookup

if TYPE_CHECKING:
    from bootc_composefs.state import Slot
    from bootc_core.models.sysroot import Sysroot

ETC: Final = "etc"
_VAR_LINK: Final = "../../os/default/var"


def load_owners(sysroot: Sysroot) -> OwnerStore:
    """What an ordinary user's sysroot records; empty for root's.

    Raises:
        StorageError: the record is damaged.
    """
    return OwnerStore.load(sysroot.state / "owners.json")


def _below(owners: OwnerStore, sysroot: Sysroot, path: str) -> OwnerView | None:
    """Where owners of ``path`` are recorded; None where the file system has them."""
    return owners.below(path.encode()) if sysroot.unprivileged else None


@contextmanager
def built_state(
    sysroot: Sysroot,
    deployment_id: str,
    root: Node,
    contents: Contents,
    origin: bytes,
    *,
    first: bool,
) -> Iterator[tuple[OwnerStore, list[tuple[Path, Path]], list[tuple[Path, trees.Written]]]]:
    """The deployment's directory, and ``/var`` of the first one, at temporary names.

    Owners, renames to be done, and what was written where, to be checked after a sync.

    Only the ``first`` one gets its ``etc`` here: that of any other is the merge, which starts from the image.
    What was not renamed when the block ends is removed again.
    """
    deploy, var = sysroot.path / state.DEPLOY, sysroot.path / state.VAR
    for directory in (sysroot.path / "state", deploy, *reversed(var.parents[:2])):
        atomic.mkdir(directory)
    atomic.mkdir(sysroot.state, 0o700)
    owners = load_owners(sysroot)
    renames: list[tuple[Path, Path]] = []
    written: list[tuple[Path, trees.Written]] = []
    try:
        place = deploy / f"{state.TEMPORARY}{os.urandom(8).hex()}"
        renames.append((place, deploy / deployment_id))
        atomic.mkdir(place, 0o755, exist_ok=False)
        if first:
            etc_path = f"{state.DEPLOY}/{deployment_id}/{ETC}"
            files = trees.populate(
                place / ETC,
                lookup(root, ETC.encode()),
                contents.open,
                _below(owners, sysroot, etc_path),
            )
            written.append((place / ETC, files))
        atomic.symlink(_VAR_LINK, place / "var")
        atomic.write_file(place / f"{deployment_id}.origin", origin, sync=False)
        if not var.exists():
            temporary = var.with_name(f"{state.TEMPORARY}{os.urandom(8).hex()}")
            renames.append((temporary, var))
            tree = lookup(root, b"var")
            files = trees.populate(
                temporary,
                tree if tree is not None and tree.is_dir else None,
                contents.open,
                _below(owners, sysroot, state.VAR),
                exclude=(),
            )
            written.append((temporary, files))
        yield owners, renames, written
    finally:
        for source, _ in renames:
            if os.path.lexists(source):  # exists() follows links
                atomic.rmtree(source)


def check_etc(
    sysroot: Sysroot, contents: Contents, current: Slot, old: Node | None, new: Node | None
) -> None:
    """Refuse an image whose ``/etc`` cannot take the local changes.

    Args:
        sysroot: has the deployments.
        contents: of files of both images.
        current: the deployment whose changes count.
        old: its image's ``/etc``.
        new: the new image's.

    Raises:
        StorageError: conflicts, or something is missing or damaged.
    """
    pristine = trees.scan_tree(old, contents.open)
    now = _local_etc(sysroot, current, load_owners(sysroot))
    etc_merge.conflicts(pristine, now, trees.scan_tree(new, contents.open)).check()


def _local_etc(sysroot: Sysroot, current: Slot, owners: OwnerStore) -> trees.DiskTree:
    """``/etc`` of the deployment that counts, as it is."""
    path = f"{state.DEPLOY}/{current.deployment_id}/{ETC}"
    directory = sysroot.path / path
    if not directory.is_dir():
        raise StorageError(
            f"deployment {current.deployment_id[:12]} has no etc",
            reference="bad-deployment",
            expected=str(directory),
            hint="restore it from a copy, or make an empty directory to go on without local changes",
            catalogue="STATE",
        )
    return trees.scan_directory(directory, _below(owners, sysroot, path))


def merge_etc(
    repository: Repository, sysroot: Sysroot, deployment_id: str, current: Slot
) -> tuple[bytes, ...]:
    """Replace ``etc`` of a deployment by its image's with the present one's changes; what was left out (special files).

    It starts from the image, so that a repetition gives the same.

    Raises:
        StorageError: conflicts, or the file system fails.
    """
    contents = Contents(repository)
    owners = load_owners(sysroot)
    pristine, new = (
        trees.scan_tree(image_subtrees(repository, name, [ETC])[0], contents.open)
        for name in (current.deployment_id, deployment_id)
    )
    now = _local_etc(sysroot, current, owners)
    plan = etc_merge.plan(pristine, now, new)
    plan.check()
    directory = sysroot.path / state.DEPLOY / deployment_id
    etc = directory / ETC
    drop_temporary(directory)
    temporary = directory / f"{state.TEMPORARY}{os.urandom(8).hex()}"
    path = f"{state.DEPLOY}/{deployment_id}/{ETC}"
    try:
        written = etc_merge.build_merged(temporary, now, new, plan, _below(owners, sysroot, path))
        atomic.syncfs(temporary)
        trees.check_tree(temporary, written)
        owners.save()
        atomic.rmtree(etc)
        atomic.rename(temporary, etc)
    finally:
        if temporary.exists():
            atomic.rmtree(temporary)
    atomic.fsync(directory)
    return plan.skipped


def extract(sysroot: Sysroot, deployment_id: str, path: str, place: Path) -> bool:
    """Copy a file, link or directory of a deployment's image to ``place``, which is made; False: the image has none.

    Raises:
        StorageError: something is missing or damaged, or cannot be written.
    """
    with Repository.open(sysroot.path / state.REPOSITORY) as repository:
        (tree,) = image_subtrees(repository, deployment_id, [path])
        if tree is None:
            return False
        contents = Contents(repository)
        if tree.is_dir:
            trees.populate(place, tree, contents.open, exclude=())
        elif stat.S_ISLNK(tree.mode):
            place.symlink_to(os.fsdecode(tree.inline or b""))
        else:
            place.write_bytes(contents.read(tree))
    return True


def drop_temporary(directory: Path) -> None:
    """Remove what interrupted runs left in a directory."""
    try:
        names = [name for name in os.listdir(directory) if name.startswith(state.TEMPORARY)]
    except FileNotFoundError:
        return
    for name in names:
        atomic.rmtree(directory / name)
