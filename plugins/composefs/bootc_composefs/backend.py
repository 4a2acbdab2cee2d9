"""The composefs storage backend: what the hooks of ``plugin.py`` do.

    stage      layers ─▶ objects ─▶ merged tree ─▶ plain image, bootable image ─▶ streams, tag ─▶ state/deploy/ID
               kernel, kernel arguments and /etc are judged before anything gets a name
    finalize   /etc merged beside and renamed; plan: new entry, then the one that boots now
    rollback   plan: the second entry, then the first
    discard    the staged state goes; plan: what boots now
    prune      states without an entry, tags without a state, objects without a root

Order of a stage, which makes every interruption harmless: objects of layers; sync and read back; their names; images, splitstreams
and state at temporary names; sync and read back; links; the state's rename; directories synced. Layers keep: a repetition finds
them. Nothing here touches the boot partition.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import trio

from bootc_composefs import gc, state
from bootc_composefs.erofs import write_image
from bootc_composefs.erofs_read import read_subtree
from bootc_composefs.layers import import_missing, spool
from bootc_composefs.repository import Repository, file_digest, layer_entries
from bootc_composefs.splitstream import CONFIG, MANIFEST, encode_document
from bootc_composefs.transform import boot_transform, oci_transform
from bootc_core import limits, paths
from bootc_core.boot import bls, kargs_d, os_release
from bootc_core.boot.kernel import Kernel, find_kernel
from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.fs import atomic, etc_merge
from bootc_core.fs.owners import OwnerStore, OwnerView
from bootc_core.models import events
from bootc_core.models.boot import BootEntry, BootFile, BootPlan
from bootc_core.models.context import SignatureMode
from bootc_core.models.image import StagedDeployment
from bootc_core.models.kargs import CommandLine, merge_image_change
from bootc_core.models.reference import SignedReference
from bootc_core.oci.layers import LayerTree
from bootc_core.oci.origin import Origin
from bootc_core.oci.tree import Node, lookup, resolve

if TYPE_CHECKING:
    from bootc_composefs.layers import Layer
    from bootc_composefs.state import Slot
    from bootc_core.hooks.specs import Emit
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage, VerifiedImage
    from bootc_core.models.sysroot import Sysroot

_WHOLE_BYTES: Final = 16 * limits.MIB  # files up to here are read at once
_KERNEL_DIRECTORY: Final = "EFI/Linux/bootc_composefs-"
_ETC: Final = "etc"


class _Files:
    """Contents of an image's regular files, checked."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def read(self, node: Node) -> bytes:
        """All of it, for files that are read in memory."""
        if node.object is None:
            return node.inline or b""
        return self._repository.read(node.object, limits.GIB)

    def open(self, node: Node) -> BinaryIO:
        """A stream; large files are hashed first, not held."""
        if node.object is None or node.size <= _WHOLE_BYTES:
            return io.BytesIO(self.read(node))
        if (
            not self._repository.secure
            and file_digest(self._repository, node.object) != node.object
        ):
            self._repository.read(node.object)  # raises with the details
        return os.fdopen(self._repository.open_object(node.object), "rb", buffering=0)


# --- stage -------------------------------------------------------------------------------------------------------------


async def stage(
    context: Context, verified: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment:
    """A complete deployment of the image on disk; see ``bootc_stage``.

    Raises:
        ContentError: hostile, damaged or unbootable images.
        TransportError: the source does not deliver.
        StorageError: space, I/O, conflicts in ``/etc``, or the image is deployed already (``same-deployment``).
    """
    image = verified.image

    def step(name: str, description: str) -> None:
        emit(events.StepProgressed(context.transaction, name, description))

    with Repository.create(sysroot.path / state.REPOSITORY) as repository:
        repository.require_writable()
        layers, written = await import_missing(context, image, sysroot, repository, emit)
        await trio.lowlevel.checkpoint()
        files = _Files(repository)
        step("merging", "Merging layers")
        root = _merged(repository, [(name, layers[name]) for name in image.config.rootfs.diff_ids])
        kernel = find_kernel(root)
        present = state.present_slots(sysroot)
        current = state.booted(sysroot, present)
        kargs = _kernel_arguments(repository, root, files, current)
        identity = os_release.parse(_os_release(root, files))
        await trio.lowlevel.checkpoint()
        step("writing", "Writing the image")
        plain, bootable = _images(repository, root, files)
        deployment_id = bootable[repository.formats[0]].hex()
        _refuse_existing(sysroot, deployment_id, present, current)
        line = kargs.with_composefs(deployment_id, optional=not repository.secure).checked()
        await trio.lowlevel.checkpoint()
        etc = lookup(root, _ETC.encode())
        _merge_plan(repository, sysroot, files, current, etc).check()
        kernel_files, boot_digest = _kernel_files(
            repository, sysroot, kernel, deployment_id, present
        )
        await trio.lowlevel.checkpoint()
        step("deploying", "Creating the deployment")
        documents = _documents(repository, image, layers, plain, bootable)
        origin = _origin(context, verified, boot_digest)
        with _built_state(sysroot, deployment_id, root, files, origin) as (owners, renames):
            step("syncing", "Syncing the deployment")
            await trio.lowlevel.checkpoint()
            atomic.syncfs(repository.path)
            images = (*plain.values(), *bootable.values())
            for digest in (
                *images,
                *documents.values(),
                *(layer.digest for layer in layers.values()),
            ):
                _read_again(repository, digest)
            _link(repository, image, layers, documents, images)
            owners.save()
            for source, target in renames:
                atomic.rmtree(target)
                atomic.rename(source, target)
        for directory in (
            repository.path / "streams",
            repository.path / "streams/refs/oci",
            repository.path / "images",
            sysroot.path / state.DEPLOY,
            sysroot.path / state.DEPLOY / deployment_id,
            (sysroot.path / state.VAR).parent,
        ):
            atomic.fsync(directory)
        atomic.rmtree(spool(sysroot))
        sizes = sum(repository.size(digest) or 0 for digest in images)
    return StagedDeployment(
        backend=state.NAME,
        deployment_id=deployment_id,
        entry=BootEntry(
            deployment_id=deployment_id,
            os_id=identity.id,
            title=identity.pretty_name,
            version=identity.version or "",
            options=str(line),
            linux=kernel_files[0],
            initrd=kernel_files[1:],
        ),
        details={
            "manifest_digest": image.digest,
            "boot_digest": boot_digest,
            "kernel": kernel.version,
        },
        bytes_new=written + sizes,
    )


def _merged(repository: Repository, layers: Sequence[tuple[str, Layer]]) -> Node:
    tree = LayerTree()
    for number, (diff_id, layer) in enumerate(layers, 1):
        what = f"layer {number} ({diff_id[:19]}…)"
        tree.apply(layer_entries(repository, layer.stream, what), what)
    return tree.root


def _os_release(root: Node, files: _Files) -> bytes:
    for path in (paths.OS_RELEASE, "etc/os-release"):
        node = resolve(root, path.encode())
        if node is not None and stat.S_ISREG(node.mode) and node.size <= limits.SETTINGS_FILE_BYTES:
            return files.read(node)
    return b""


def _images(
    repository: Repository, root: Node, files: _Files
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Digests of the plain and of the bootable images, by format. ``root`` becomes the bootable tree."""
    digests: list[dict[int, bytes]] = []
    for bootable in (False, True):
        if bootable:
            boot_transform(root, files.read)
        else:
            oci_transform(root)
        digests.append(
            {
                version: repository.put(
                    write_image(root, version=version, algorithm=repository.algorithm)
                )
                for version in repository.formats
            }
        )
    return digests[0], digests[1]


def _refuse_existing(
    sysroot: Sysroot, deployment_id: str, present: Sequence[Slot], current: Slot | None
) -> None:
    """The same image cannot be deployed twice. What an interrupted run left does not count: it is made anew."""
    staged = state.read_staged(sysroot)
    kind = None
    if current and current.deployment_id == deployment_id:
        kind = "booted"
    elif staged and staged.deployment_id == deployment_id:
        kind = "staged"
    elif any(slot.deployment_id == deployment_id and slot.at_rest for slot in present):
        kind = "rollback"
    if kind and (sysroot.path / state.DEPLOY / deployment_id).is_dir():
        raise StorageError(
            f"Target image has the same fs-verity digest as the existing {kind} deployment.",
            reference="same-deployment",
            found=f"deployment {deployment_id[:12]}",
            hint="run `bootc rollback` to boot it again" if kind == "rollback" else None,
            catalogue="STATE",
        )


# --- kernel and its arguments --------------------------------------------------------------------------------------------


def _kernel_arguments(
    repository: Repository, root: Node, files: _Files, current: Slot | None
) -> CommandLine:
    """The new command line, ``composefs=`` still missing: present arguments with the change between both images' kargs.d."""
    new = CommandLine.parse(" ".join(kargs_d.read_tree(root, files.read)))
    if current is None:
        return new
    options = CommandLine.parse(
        " ".join(current.entry.all("options")), f"the boot entry {current.entry.file}"
    )
    old = CommandLine()
    subtree = _image_subtree(repository, current.deployment_id, paths.KARGS_D)
    if subtree is not None:
        old = CommandLine.parse(
            " ".join(kargs_d.read_tree(_rooted(subtree, paths.KARGS_D), files.read))
        )
    return merge_image_change(options, old, new)


def _rooted(node: Node, path: str) -> Node:
    """A tree with nothing but ``node`` at ``path``."""
    for name in reversed(path.encode().split(b"/")):
        parent = Node(stat.S_IFDIR | 0o755)
        if parent.children is not None:
            parent.children[name] = node
        node = parent
    return node


def _image_subtree(repository: Repository, deployment_id: str, path: str) -> Node | None:
    """A directory of a deployment's image."""
    digest = repository.digest(deployment_id)
    if digest is None:
        raise StorageError(
            f"deployment {deployment_id[:12]} is not of this repository",
            reference="bad-deployment",
            expected=f"a digest of {repository.algorithm}",
            catalogue="STATE",
        )
    return read_subtree(repository.read(digest), path.encode())


def _kernel_files(
    repository: Repository,
    sysroot: Sysroot,
    kernel: Kernel,
    deployment_id: str,
    present: Sequence[Slot],
) -> tuple[tuple[BootFile, ...], str]:
    """Kernel and initrd for the boot partition, and the digest over both.

    A deployment with the same two files lends its directory, so that they are there once.
    """
    overall = hashlib.sha256()
    nodes = [("vmlinuz", kernel.vmlinuz)]
    if kernel.initrd is not None:
        nodes.append(("initrd", kernel.initrd))
    hashed = []
    for name, node in nodes:
        digest = node.object if node.object is not None else repository.put(node.inline or b"")
        if not repository.secure and file_digest(repository, digest) != digest:
            repository.read(digest)  # raises with the details
        own = hashlib.sha256()
        descriptor = repository.open_object(digest)
        try:
            with atomic.mapped("read", repository.object_path(digest)):
                while piece := os.read(descriptor, limits.MIB):
                    own.update(piece)
                    overall.update(piece)
        finally:
            os.close(descriptor)
        hashed.append((name, repository.object_path(digest), node.size, own.hexdigest()))
    boot_digest = overall.hexdigest()
    directory = (
        _shared_directory(sysroot, boot_digest, present) or f"{_KERNEL_DIRECTORY}{deployment_id}"
    )
    return (
        tuple(BootFile(f"{directory}/{name}", path, size, own) for name, path, size, own in hashed),
        boot_digest,
    )


def _shared_directory(sysroot: Sysroot, boot_digest: str, present: Sequence[Slot]) -> str | None:
    for slot in present:
        path = slot.entry.get("linux") or ""
        if (
            not slot.at_rest
            or not path.startswith(f"/{_KERNEL_DIRECTORY}")
            or not path.endswith("/vmlinuz")
        ):
            continue
        try:
            origin = state.load_origin(sysroot, slot.deployment_id)
        except BootcError:
            continue
        if origin.boot_type == "bls" and origin.boot_digest == boot_digest:
            return path.strip("/").removesuffix("/vmlinuz")
    return None


# --- streams -------------------------------------------------------------------------------------------------------------


def _documents(
    repository: Repository,
    image: FetchedImage,
    layers: Mapping[str, Layer],
    plain: dict[int, bytes],
    bootable: dict[int, bytes],
) -> dict[str, bytes]:
    """Splitstreams of configuration and manifest, put into the repository: stream name to digest.

    References that a present configuration has besides (images of other formats) are kept.
    """
    config_name = f"oci-config-{image.config_document.digest}"
    by_diff_id = {diff_id: layer.digest for diff_id, layer in layers.items()}
    references = dict(by_diff_id)
    for images, middle in ((plain, ""), (bootable, ".boot")):
        for version, digest in images.items():
            references[f"composefs.image{middle}{'' if version == 2 else '.v1'}"] = digest
    try:
        earlier = repository.stream(config_name)
        kept = earlier.named_refs() if earlier else {}
    except BootcError:
        kept = {}
    for name, digest in kept.items():
        if name.startswith("composefs."):
            references.setdefault(name, digest)

    def put(kind: bytes, raw: bytes, names: Iterable[tuple[str, bytes]]) -> bytes:
        document = repository.put(raw)
        return repository.put(
            encode_document(repository.algorithm, kind, document, len(raw), list(names))
        )

    config = put(CONFIG, image.config_document.raw, references.items())
    manifest = put(
        MANIFEST,
        image.manifest_document.raw,
        ((f"config:{image.config_document.digest}", config), *by_diff_id.items()),
    )
    return {config_name: config, f"oci-manifest-{image.digest}": manifest}


def _read_again(repository: Repository, digest: bytes) -> None:
    """Compare a synced object with its name, as the medium gives it back."""
    descriptor = repository.open_object(digest)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    repository.read(digest)


def _link(
    repository: Repository,
    image: FetchedImage,
    layers: Mapping[str, Layer],
    documents: Mapping[str, bytes],
    images: Iterable[bytes],
) -> None:
    """Name what was synced, whoever refers to something after it; the tag, which keeps all of it, last."""
    for digest in images:
        repository.link_image(digest)
    for diff_id, layer in layers.items():
        if layer.fresh:
            repository.link_stream(f"oci-layer-{diff_id}", layer.digest)
    for name, digest in documents.items():
        repository.link_stream(name, digest)
    repository.tag(gc.deployment_tag(image.digest), f"oci-manifest-{image.digest}")


def _origin(context: Context, verified: VerifiedImage, boot_digest: str) -> bytes:
    image = verified.image
    signed = "containerPolicy" if context.signature is SignatureMode.ENFORCE else None
    return Origin(
        SignedReference(image.requested, signed),
        manifest_digest=image.digest,
        boot_digest=boot_digest,
        boot_type="bls",
        tag_digest=image.tag_digest,
        signature=context.signature.value,
        accepted=tuple(answer.to_json(policy) for policy, answer in verified.answers),
    ).to_bytes(long_form=True)


# --- the deployment's directory --------------------------------------------------------------------------------------------


def _load_owners(sysroot: Sysroot) -> OwnerStore:
    return OwnerStore.load(sysroot.state / "owners.json")


def _below(owners: OwnerStore, sysroot: Sysroot, path: str) -> OwnerView | None:
    """Where owners of ``path`` are recorded; None where the file system has them."""
    return owners.below(path.encode()) if sysroot.unprivileged else None


@contextmanager
def _built_state(
    sysroot: Sysroot, deployment_id: str, root: Node, files: _Files, origin: bytes
) -> Iterator[tuple[OwnerStore, list[tuple[Path, Path]]]]:
    """The deployment's directory, and ``/var`` of the first one, at temporary names: owners, and renames to be done.

    What was not renamed when the block ends is removed again.
    """
    deploy, var = sysroot.path / state.DEPLOY, sysroot.path / state.VAR
    for directory in (sysroot.path / "state", deploy, *reversed(var.parents[:2])):
        atomic.mkdir(directory)
    atomic.mkdir(sysroot.state, 0o700)
    owners = _load_owners(sysroot)
    renames: list[tuple[Path, Path]] = []
    try:
        place = deploy / f"{state.TEMPORARY}{os.urandom(8).hex()}"
        renames.append((place, deploy / deployment_id))
        atomic.mkdir(place, 0o755, exist_ok=False)
        etc_path = f"{state.DEPLOY}/{deployment_id}/{_ETC}"
        etc_merge.populate(
            place / _ETC, lookup(root, _ETC.encode()), files.open, _below(owners, sysroot, etc_path)
        )
        atomic.symlink("../../os/default/var", place / "var")
        atomic.write_file(place / f"{deployment_id}.origin", origin, sync=False)
        if not var.exists():
            temporary = var.with_name(f"{state.TEMPORARY}{os.urandom(8).hex()}")
            renames.append((temporary, var))
            tree = lookup(root, b"var")
            etc_merge.populate(
                temporary,
                tree if tree is not None and tree.is_dir else None,
                files.open,
                _below(owners, sysroot, state.VAR),
                exclude=(),
            )
        yield owners, renames
    finally:
        for source, _ in renames:
            if os.path.lexists(source):  # exists() follows links
                atomic.rmtree(source)


def _merge_plan(
    repository: Repository, sysroot: Sysroot, files: _Files, current: Slot | None, etc: Node | None
) -> etc_merge.MergePlan:
    if current is None:
        return etc_merge.MergePlan()
    pristine, now = _local_etc(repository, sysroot, files, current, _load_owners(sysroot))
    return etc_merge.plan(pristine, now, etc_merge.scan_tree(etc, files.open))


def _local_etc(
    repository: Repository, sysroot: Sysroot, files: _Files, current: Slot, owners: OwnerStore
) -> tuple[etc_merge.ImageTree, etc_merge.DiskTree]:
    """``/etc`` of the deployment that counts: as its image has it, and as it is."""
    path = f"{state.DEPLOY}/{current.deployment_id}/{_ETC}"
    directory = sysroot.path / path
    if not directory.is_dir():
        raise StorageError(
            f"deployment {current.deployment_id[:12]} has no etc",
            reference="bad-deployment",
            expected=str(directory),
            hint="restore it from a copy, or make an empty directory to go on without local changes",
            catalogue="STATE",
        )
    pristine = etc_merge.scan_tree(
        _image_subtree(repository, current.deployment_id, _ETC), files.open
    )
    return pristine, etc_merge.scan_directory(directory, _below(owners, sysroot, path))


# --- finalize, rollback ------------------------------------------------------------------------------------------------------


async def finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
) -> BootPlan:
    """Merge ``/etc`` into the staged deployment; the plan is its entry, then that of the one that boots now.

    The merge starts from the image each time, so that a repetition gives the same; the result replaces ``etc`` by
    renames, before anything could boot it.

    Raises:
        StorageError: conflicts (named), missing or damaged parts, I/O.
    """
    deployment_id = staged.deployment_id
    directory = state.deployment_path(sysroot, deployment_id)
    if not directory.is_dir():
        raise StorageError(
            f"the staged deployment {deployment_id[:12]} is gone",
            reference="not-staged",
            expected=str(directory),
            hint="run the switch or upgrade again",
            catalogue="STATE",
        )
    present = state.present_slots(sysroot)
    current = state.booted(sysroot, present)
    entry = staged.entry or deployment_id
    if present and present[0].deployment_id == deployment_id:
        # The switch has happened: /etc belongs to the administrator from now on.
        rest = [slot.deployment_id for slot in present[1:] if slot.deployment_id != deployment_id]
        return BootPlan(entries=(entry, *rest[:1]))
    if current is not None:
        emit(events.StepProgressed(context.transaction, "merging-etc", "Merging /etc"))
        await trio.lowlevel.checkpoint()
        with Repository.open(sysroot.path / state.REPOSITORY) as repository:
            skipped = _merge_etc(repository, sysroot, deployment_id, current)
        if skipped:
            names = ", ".join(printable(path) for path in skipped[:5])
            emit(
                events.Warned(
                    context.transaction,
                    f"{len(skipped)} special files in /etc are not carried over: {names}",
                )
            )
    rest = [current.deployment_id] if current and current.deployment_id != deployment_id else []
    return BootPlan(entries=(entry, *rest))


def _merge_etc(
    repository: Repository, sysroot: Sysroot, deployment_id: str, current: Slot
) -> tuple[bytes, ...]:
    files = _Files(repository)
    owners = _load_owners(sysroot)
    pristine, now = _local_etc(repository, sysroot, files, current, owners)
    new = etc_merge.scan_tree(_image_subtree(repository, deployment_id, _ETC), files.open)
    plan = etc_merge.plan(pristine, now, new)
    plan.check()
    directory = sysroot.path / state.DEPLOY / deployment_id
    etc = directory / _ETC
    _drop_temporary(directory)
    temporary = directory / f"{state.TEMPORARY}{os.urandom(8).hex()}"
    path = f"{state.DEPLOY}/{deployment_id}/{_ETC}"
    try:
        etc_merge.build_merged(temporary, now, new, plan, _below(owners, sysroot, path))
        atomic.syncfs(temporary)
        owners.save()
        atomic.rmtree(etc)
        atomic.rename(temporary, etc)
    finally:
        if temporary.exists():
            atomic.rmtree(temporary)
    atomic.fsync(directory)
    return plan.skipped


def _drop_temporary(directory: Path) -> None:
    """Remove what interrupted runs left in a directory."""
    try:
        names = [name for name in os.listdir(directory) if name.startswith(state.TEMPORARY)]
    except FileNotFoundError:
        return
    for name in names:
        atomic.rmtree(directory / name)


def _bootable(sysroot: Sysroot, present: Sequence[Slot]) -> list[str]:
    """Deployments with an entry and a state, in menu order."""
    found = dict.fromkeys(slot.deployment_id for slot in present)
    return [name for name in found if (sysroot.path / state.DEPLOY / name).is_dir()]


async def rollback(context: Context, sysroot: Sysroot) -> BootPlan:
    """The plan that boots the second entry: the deployment before, or, where that is queued already, the present one.

    Raises:
        StorageError: ``no-rollback``.
    """
    del context
    found = _bootable(sysroot, [slot for slot in state.present_slots(sysroot) if slot.at_rest])
    if len(found) < 2:
        raise StorageError(
            "No rollback available",
            reference="no-rollback",
            expected="two deployments in the boot menu",
            found=f"{len(found)}",
            catalogue="STATE",
        )
    return BootPlan(entries=(found[1], found[0]))


# --- cleaning up -------------------------------------------------------------------------------------------------------------


async def discard(
    context: Context, sysroot: Sysroot, staged: StagedDeployment | None
) -> BootPlan | None:
    """Drop the staged deployment's state, or, without one named, states that nothing refers to. Layers stay.

    Returns:
        what boots now, without the dropped one; None if nothing does.

    Raises:
        StorageError: something cannot be removed.
    """
    del context
    present = state.present_slots(sysroot)
    current = state.booted(sysroot, present)
    notice = state.read_staged(sysroot)
    if staged is not None:
        doomed = [staged.deployment_id]
    else:
        kept = {slot.deployment_id for slot in present} | (
            {notice.deployment_id} if notice else set()
        )
        # Without any entry the boot partition may just not be there: then nothing is nobody's.
        doomed = [name for name in state.existing(sysroot) if name not in kept] if present else []
    first = present[0].deployment_id if present else None
    doomed = [
        name for name in doomed if name != first and not (current and name == current.deployment_id)
    ]
    _drop_states(sysroot, doomed)
    remaining = [name for name in _bootable(sysroot, present) if name not in doomed]
    return BootPlan(entries=tuple(remaining[:2])) if remaining else None


def _drop_states(sysroot: Sysroot, doomed: Sequence[str]) -> None:
    deploy = sysroot.path / state.DEPLOY
    for directory in (deploy, (sysroot.path / state.VAR).parent):
        _drop_temporary(directory)
    if not doomed:
        return
    for name in doomed:
        atomic.rmtree(state.deployment_path(sysroot, name))
    if sysroot.unprivileged:
        owners = _load_owners(sysroot)
        for name in doomed:
            owners.clear(f"{state.DEPLOY}/{name}".encode())
        owners.save()


async def prune(context: Context, sysroot: Sysroot) -> bool:
    """Delete states without an entry, tags without a state, and what of the repository nothing needs.

    Nothing is deleted while the boot menu cannot be read completely, or does not have the running deployment.

    Raises:
        StorageError: not now (a busy repository, damaged records), or I/O.
    """
    del context
    damaged: list[str] = []
    present = state.slots(bls.read_entries(sysroot.boot_dir, damaged.append))
    if not present:
        return True
    running = state.running_id() if sysroot.live else None
    names = list(dict.fromkeys(slot.deployment_id for slot in present))
    if damaged or (sysroot.live and running not in names):
        raise StorageError(
            "Inconsistent state: old deployments are kept",
            reference="prune-failed",
            found=damaged[0]
            if damaged
            else f"Booted entry {str(running)[:12]} is not in the boot menu",
            catalogue="STATE",
        )
    if notice := state.read_staged(sysroot):
        names.append(notice.deployment_id)
    _drop_states(sysroot, [name for name in state.existing(sysroot) if name not in names])
    for name in names:
        _drop_temporary(sysroot.path / state.DEPLOY / name)
    atomic.rmtree(spool(sysroot))
    manifests: list[str] = []
    complete = True
    for name in names:
        try:
            origin = state.load_origin(sysroot, name)
        except BootcError:
            complete = False
            continue
        if origin.manifest_digest:
            manifests.append(origin.manifest_digest)
    with Repository.open(sysroot.path / state.REPOSITORY) as repository:
        repository.require_writable()
        if complete:  # else a tag that seems unused could be the unreadable one's
            gc.retag(repository, manifests)
        await trio.lowlevel.checkpoint()
        try:
            gc.collect(repository, names)
        except BootcError as problem:
            raise gc.describe(problem) from problem
    return True
