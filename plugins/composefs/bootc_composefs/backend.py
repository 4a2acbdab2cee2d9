"""The composefs storage backend: what the hooks of ``plugin.py`` do.

    stage      layers ─▶ objects ─▶ merged tree ─▶ bootable image ─▶ streams, tag ─▶ state/deploy/ID
               kernel, kernel arguments and /etc are judged before anything gets a name
    finalize   /etc merged beside and renamed; plan: new entry, then the one that boots now
    rollback   plan: the second entry, then the first
    discard    the staged state goes; plan: what boots now
    prune      states without an entry, tags without a state, objects without a root

Order of a stage, which makes every interruption harmless: layers staged; sync and read back (meanwhile the image is computed);
objects named; images, splitstreams and state at temporary names; sync and read back; links; the state's rename; directories
synced. Layers keep: a repetition finds them. Nothing here touches the boot partition.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import trio

from bootc_composefs import gc, sink, state
from bootc_composefs.cache import Cache
from bootc_composefs.compose import KERNEL, Composed, compose
from bootc_composefs.contents import Contents, image_subtrees
from bootc_composefs.deployment import (
    ETC,
    built_state,
    check_etc,
    drop_temporary,
    load_owners,
    merge_etc,
)
from bootc_composefs.layers import drop_unfinished, import_missing, spool
from bootc_composefs.repository import Repository
from bootc_composefs.splitstream import CONFIG, MANIFEST, encode_document
from bootc_core import limits, paths
from bootc_core.boot import bls
from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.fs import atomic, trees
from bootc_core.host.environment import running_deployment
from bootc_core.models import events
from bootc_core.models.boot import BootEntry, BootFile, BootPlan
from bootc_core.models.context import SignatureMode
from bootc_core.models.image import StagedDeployment
from bootc_core.models.reference import SignedReference
from bootc_core.models.tree import lookup
from bootc_core.oci import origin as origins
from bootc_core.oci.origin import Origin

if TYPE_CHECKING:
    from bootc_composefs.layers import Layer
    from bootc_composefs.state import Slot
    from bootc_core.hooks.specs import Emit
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage, VerifiedImage
    from bootc_core.models.sysroot import Sysroot

# An image that has this calls its boot good or bad; the boots of others are not counted, or they would be taken back.
BOOT_CHECK: Final = (
    b"usr/lib/systemd/system/boot-complete.target.requires/bootc-boot-complete.service"
)
_KERNEL_DIRECTORY: Final = "EFI/Linux/bootc_composefs-"


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
    with Repository.create(sysroot.path / state.REPOSITORY) as repository:
        repository.require_writable()
        present = state.present_slots(sysroot)
        current = state.booted(sysroot, present)
        old_etc = settings = None
        if current is not None:
            old_etc, settings = image_subtrees(
                repository, current.deployment_id, (ETC, paths.KARGS_D)
            )
        cache = Cache(sysroot)
        imported = await import_missing(context, image, sysroot, repository, cache, emit)

        def compute() -> Composed:
            layers = [(name, imported.layers[name]) for name in image.config.rootfs.diff_ids]
            return compose(repository, layers, current, settings, cache, context.install)

        emit(events.StepProgressed(context.transaction, "merging", "Merging layers"))
        composed = await _meanwhile(compute, imported.settle)
        roots = set() if repository.is_empty() else cache.roots()
        cache.forget_roots()  # from here on there is something that nothing keeps
        await imported.publish()
        _refuse_existing(sysroot, composed.deployment_id, present, current)
        etc = lookup(composed.root, ETC.encode())
        if current is not None:
            check_etc(sysroot, Contents(repository), current, old_etc, etc)
        await trio.lowlevel.checkpoint()
        emit(events.StepProgressed(context.transaction, "deploying", "Creating the deployment"))
        binaries = _boot_files(repository, sysroot, composed, present)
        bootable = {
            version: repository.put(data, digest)
            for version, (digest, data) in composed.bootable.items()
        }
        documents = _documents(repository, image, imported.layers, bootable)
        origin = _origin(context, verified, composed.boot_digest)
        with built_state(
            sysroot,
            composed.deployment_id,
            composed.root,
            Contents(repository),
            origin,
            first=current is None,
        ) as (owners, renames, written):
            emit(events.StepProgressed(context.transaction, "syncing", "Syncing the deployment"))
            await trio.lowlevel.checkpoint()
            atomic.syncfs(repository.path)
            images = tuple(bootable.values())
            streams = (layer.digest for layer in imported.layers.values() if layer.staged)
            for digest in (*images, *documents.values(), *streams):
                _read_again(repository, digest)
            for place, files in written:
                trees.check_tree(place, files)
            unchanged = _link(repository, image, imported.layers, documents, images)
            owners.save()
            for source, target in renames:
                atomic.rmtree(target)
                atomic.rename(source, target)
        for directory in (
            repository.path / "streams",
            repository.path / "streams/refs/oci",
            repository.path / "images",
            sysroot.path / state.DEPLOY,
            sysroot.path / state.DEPLOY / composed.deployment_id,
            (sysroot.path / state.VAR).parent,
        ):
            atomic.fsync(directory)
        for layer in imported.layers.values():
            if layer.staged is not None:
                cache.take_layer(layer.digest, layer.staged / sink.MEMBERS)
        if roots is not None and unchanged:
            cache.keep_roots([*roots, *gc.roots(repository, [composed.deployment_id])])
        atomic.rmtree(spool(sysroot))
    return StagedDeployment(
        backend=state.NAME,
        deployment_id=composed.deployment_id,
        entry=BootEntry(
            deployment_id=composed.deployment_id,
            os_id=composed.identity.id,
            title=composed.identity.pretty_name,
            version=composed.identity.version or "",
            options=composed.options,
            linux=binaries[0],
            initrd=binaries[1:],
        ),
        details={
            "manifest_digest": image.digest,
            "boot_digest": composed.boot_digest,
            "kernel": composed.kernel,
            "tries": limits.BOOT_TRIES if lookup(composed.root, BOOT_CHECK) is not None else 0,
        },
        bytes_new=imported.bytes_new + sum(len(data) for _, data in composed.bootable.values()),
    )


async def _meanwhile(
    compute: Callable[[], Composed], settle: Callable[[], Awaitable[None]]
) -> Composed:
    """The image, computed in a thread while this one brings the layers to the medium. The medium's error comes first."""
    results: list[Composed] = []
    problems: list[BaseException] = []  # raised as themselves, not as members of a group

    async def computed() -> None:
        try:
            results.append(await trio.to_thread.run_sync(compute))
        except Exception as problem:
            problems.append(problem)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(computed)
        try:
            await settle()
        except trio.Cancelled:
            raise
        except BaseException as problem:
            problems.insert(0, problem)
    if problems:
        raise problems[0]
    return results[0]


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
            hint="run `bootc rollback` to boot it again"
            if kind == "rollback"
            else "nothing is left to do; how it was accepted stays as status shows it, until the next image",
            catalogue="STATE",
        )


def _boot_files(
    repository: Repository, sysroot: Sysroot, composed: Composed, present: Sequence[Slot]
) -> tuple[BootFile, ...]:
    """Kernel and initrd for the boot partition. A deployment with the same two lends its directory, so that they are there once."""
    directory = (
        _shared_directory(sysroot, composed.boot_digest, present)
        or f"{_KERNEL_DIRECTORY}{composed.deployment_id}"
    )
    found = []
    for binary in composed.binaries:
        node = binary.node
        digest = node.object if node.object is not None else repository.put(node.inline or b"")
        path = repository.object_path(digest)
        found.append(BootFile(f"{directory}/{binary.name}", path, node.size, binary.sha256))
    return tuple(found)


def _shared_directory(sysroot: Sysroot, boot_digest: str, present: Sequence[Slot]) -> str | None:
    for slot in present:
        path = slot.entry.get("linux") or ""
        if (
            not slot.at_rest
            or not path.startswith(f"/{_KERNEL_DIRECTORY}")
            or not path.endswith(f"/{KERNEL}")
        ):
            continue
        try:
            origin = state.load_origin(sysroot, slot.deployment_id)
        except BootcError:
            continue
        if origin.boot_type == "bls" and origin.boot_digest == boot_digest:
            return path.strip("/").removesuffix(f"/{KERNEL}")
    return None


def _documents(
    repository: Repository,
    image: FetchedImage,
    layers: Mapping[str, Layer],
    bootable: dict[int, bytes],
) -> dict[str, bytes]:
    """Splitstreams of configuration and manifest, put into the repository: stream name to digest.

    References that a present configuration has besides (images of other formats) are kept.
    """
    config_name = f"oci-config-{image.config_document.digest}"
    by_diff_id = {diff_id: layer.digest for diff_id, layer in layers.items()}
    references = dict(by_diff_id)
    for version, digest in bootable.items():
        references[f"composefs.image.boot{'' if version == 2 else '.v1'}"] = digest
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
) -> bool:
    """Name what was synced, whoever refers to something after it; the tag, which keeps all of it, last.

    Returns:
        no name meant something else before.
    """
    tag = gc.deployment_tag(image.digest)
    manifest = f"oci-manifest-{image.digest}"
    unchanged = repository.tags().get(tag, manifest) == manifest
    for digest in images:
        repository.link_image(digest)
    streams = [
        (f"oci-layer-{diff_id}", layer.digest)
        for diff_id, layer in layers.items()
        if layer.staged is not None
    ]
    for name, digest in (*streams, *documents.items()):
        unchanged = unchanged and repository.resolve(f"streams/{name}") in {None, digest}
        repository.link_stream(name, digest)
    repository.tag(tag, manifest)
    return unchanged


def _origin(context: Context, verified: VerifiedImage, boot_digest: str) -> bytes:
    image = verified.image
    signed = "containerPolicy" if context.recorded_signature is SignatureMode.ENFORCE else None
    follows = origins.followed(context, image)
    return Origin(
        SignedReference(follows, signed),
        manifest_digest=image.digest,
        boot_digest=boot_digest,
        boot_type="bls",
        tag_digest=image.tag_digest if follows == image.requested else None,
        signature=context.recorded_signature.value,
        accepted=tuple(answer.to_json(policy) for policy, answer in verified.answers),
    ).to_bytes(long_form=True)


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
    tries = int(staged.details.get("tries", 0))
    if present and present[0].deployment_id == deployment_id:
        # The switch has happened: /etc belongs to the administrator from now on.
        rest = [slot.deployment_id for slot in present[1:] if slot.deployment_id != deployment_id]
        return BootPlan(entries=(entry, *rest[:1]), tries=tries)
    if current is not None:
        emit(events.StepProgressed(context.transaction, "merging-etc", "Merging /etc"))
        await trio.lowlevel.checkpoint()
        with Repository.open(sysroot.path / state.REPOSITORY) as repository:
            skipped = merge_etc(repository, sysroot, deployment_id, current)
        if skipped:
            names = ", ".join(printable(path) for path in skipped[:5])
            emit(
                events.Warned(
                    context.transaction,
                    f"{len(skipped)} special files in /etc are not carried over: {names}",
                )
            )
    rest = [current.deployment_id] if current and current.deployment_id != deployment_id else []
    return BootPlan(entries=(entry, *rest), tries=tries if rest else 0)


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
    """Drop the staged deployment's state, or, without one named, states that nothing refers to. Finished layers stay.

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
    drop_unfinished(sysroot)
    remaining = [name for name in _bootable(sysroot, present) if name not in doomed]
    return BootPlan(entries=tuple(remaining[:2])) if remaining else None


def _drop_states(sysroot: Sysroot, doomed: Sequence[str]) -> None:
    deploy = sysroot.path / state.DEPLOY
    for directory in (deploy, (sysroot.path / state.VAR).parent):
        drop_temporary(directory)
    if not doomed:
        return
    for name in doomed:
        atomic.rmtree(state.deployment_path(sysroot, name))
    if sysroot.unprivileged:
        owners = load_owners(sysroot)
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
    running = running_deployment() if sysroot.live else None
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
        drop_temporary(sysroot.path / state.DEPLOY / name)
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
        cache = Cache(sysroot)
        roots = gc.roots(repository, names)
        kept = cache.roots()
        if kept is not None and kept.issubset(roots) and not gc.temporary(repository):
            return True  # nothing was taken away since all was kept by something
        cache.forget_roots()
        try:
            gc.collect(repository, names)
        except BootcError as problem:
            raise gc.describe(problem) from problem
        cache.prune(gc.streams(repository))
        cache.keep_roots(roots)
    return True
