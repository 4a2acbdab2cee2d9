"""Staging, finalizing and tidying up. Every durable step goes through ``fs.atomic``, so that tests can kill before each of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from bootc_core.boot import os_release
from bootc_core.errors import ContentError, StorageError
from bootc_core.fs import atomic, etc_merge, trees
from bootc_core.models.boot import BootEntry, BootFile, BootPlan
from bootc_core.models.image import StagedDeployment, VerifiedImage
from bootc_core.models.oci import LAYER_TYPES
from bootc_core.oci.importer import LayerJob, import_layers
from bootc_plain_storage import layout
from bootc_plain_storage.sink import NAME
from bootc_plain_storage.state import (
    booting,
    deployment,
    names,
    read_state,
    staged,
    top,
)

if TYPE_CHECKING:
    from bootc_core.hooks.specs import Emit
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.sysroot import Sysroot


def _layer(sysroot: Sysroot, diff_id: str) -> Path:
    return top(sysroot) / "layers" / f"{diff_id.partition(':')[2]}.tar"


async def stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment:
    """A complete deployment on disk."""
    fetched = image.image
    for place in (top(sysroot), top(sysroot) / "deploy", top(sysroot) / "layers"):
        atomic.mkdir(place)
    _sweep(sysroot)
    await _import(context, fetched, sysroot, emit)
    numbers = [int(name.rpartition(".")[2]) for name in names(sysroot)]
    name = f"{fetched.digest.partition(':')[2][:24]}.{max(numbers, default=-1) + 1}"
    half, final = deployment(sysroot, f".half-{name}"), deployment(sysroot, name)
    layers = [_layer(sysroot, one) for one in fetched.config.rootfs.diff_ids]
    await trio.to_thread.run_sync(layout.lay_out, layers, half / "root")
    entry = _entry(half / "root", final / "root", name)
    accepted = next((f"{who}: {said.reason}" for who, said in image.answers if said.accept), "")
    state = {
        "reference": str(fetched.requested),
        "transport": fetched.requested.transport.value,
        "image": fetched.requested.name,
        "digest": fetched.digest,
        "tag_digest": fetched.tag_digest,
        "architecture": fetched.config.architecture,
        "version": fetched.config.version,
        "timestamp": fetched.config.timestamp,
        "manifest": fetched.manifest_document.raw.decode(),
        "layers": list(fetched.config.rootfs.diff_ids),
        "accepted": accepted,
        "mode": context.signature.value,
        "bootloader": "systemd-boot",
    }
    with atomic.mapped("write", half / "state.json"):
        (half / "state.json").write_bytes(json.dumps(state).encode())
    atomic.syncfs(sysroot.path)
    atomic.rename(half, final)
    atomic.fsync(final.parent)
    return StagedDeployment("plain", name, entry)


async def _import(context: Context, fetched: FetchedImage, sysroot: Sysroot, emit: Emit) -> None:
    from bootc_core.models.events import LayersPlanned

    pairs = list(zip(fetched.manifest.layers, fetched.config.rootfs.diff_ids, strict=True))
    missing = [pair for pair in pairs if not _layer(sysroot, pair[1]).exists()]
    total, needed = (sum(one.size for one, _ in group) for group in (pairs, missing))
    emit(
        LayersPlanned(
            context.transaction, len(pairs) - len(missing), len(missing), total - needed, needed
        )
    )
    if not missing:
        return
    spool = sysroot.state / "spool/plain"
    for place in (sysroot.state, spool.parent, spool):
        atomic.mkdir(place)
    await import_layers(
        fetched,
        [LayerJob(one, diff_id, LAYER_TYPES[one.media_type]) for one, diff_id in missing],
        sink="bootc_plain_storage.sink:ArchiveSink",
        sink_options={},
        staging=spool,
        pass_directories={},
        emit=emit,
        transaction=context.transaction,
    )
    atomic.syncfs(sysroot.path)
    for _, diff_id in missing:
        ready = spool / diff_id.partition(":")[2] / NAME
        if ready.exists():  # a layer may occur twice
            atomic.rename(ready, _layer(sysroot, diff_id))
    atomic.fsync(top(sysroot) / "layers")
    atomic.rmtree(spool)


def _entry(root: Path, final: Path, name: str) -> BootEntry:
    kernels = sorted(root.glob("usr/lib/modules/*/vmlinuz"))
    if len(kernels) != 1:
        raise ContentError(
            "the image has no kernel" if not kernels else "the image has several kernels",
            reference="no-kernel",
        )
    found = root / "usr/lib/os-release"
    release = os_release.parse(found.read_bytes() if found.is_file() else b"")

    def file(path: Path) -> BootFile:
        data = path.read_bytes()
        return BootFile(
            f"EFI/Linux/bootc_composefs-{_verity(name)}/{'vmlinuz' if path.name == 'vmlinuz' else 'initrd'}",
            final / path.relative_to(root),
            len(data),
            hashlib.sha256(data).hexdigest(),
        )

    initrd = kernels[0].with_name("initramfs.img")
    return BootEntry(
        deployment_id=name,
        os_id=release.id,
        title=release.pretty_name,
        version=release.version or "",
        options="rw",
        linux=file(kernels[0]),
        initrd=(file(initrd),) if initrd.is_file() else (),
    )


def _verity(name: str) -> str:
    """A directory name of the form that the boot partition's cleanup knows."""
    return hashlib.sha512(name.encode()).hexdigest()


def finalize(sysroot: Sysroot, ready: StagedDeployment) -> BootPlan:
    """``/etc`` merged, ``/var`` seeded; idempotent."""
    place = deployment(sysroot, ready.deployment_id)
    before = [name for name in booting(sysroot) if name != ready.deployment_id][:1]
    new = trees.scan_directory(place / "root/etc")
    old = deployment(sysroot, before[0]) if before else None
    pristine = trees.scan_directory(old / "root/etc") if old else new
    current = trees.scan_directory(old / "etc") if old else new
    half = place / ".etc"
    atomic.rmtree(half)
    plan = etc_merge.plan(pristine, current, new)
    written = etc_merge.build_merged(half, current, new, plan)
    var = top(sysroot) / "var"
    seed = top(sysroot) / ".var"
    atomic.rmtree(seed)
    if not var.exists():
        source = place / "root/var"
        with atomic.mapped("fill", seed):
            if source.is_dir():
                shutil.copytree(source, seed, symlinks=True)
            else:
                seed.mkdir()
    atomic.syncfs(sysroot.path)
    trees.check_tree(half, written)
    atomic.rmtree(place / "etc")
    atomic.rename(half, place / "etc")
    atomic.fsync(place)
    if seed.exists():
        atomic.rename(seed, var)
        atomic.fsync(top(sysroot))
    return BootPlan((ready.entry or ready.deployment_id, *before))


def roll_back(sysroot: Sysroot) -> BootPlan:
    """The two on the menu, the other way round.

    Raises:
        StorageError: there is one only.
    """
    found = booting(sysroot)
    if len(found) < 2:
        raise StorageError(
            "there is no deployment to go back to", reference="no-rollback", catalogue="STATE"
        )
    return BootPlan((found[1], found[0]))


def discard(sysroot: Sysroot, ready: StagedDeployment | None) -> BootPlan | None:
    """Drop the staged one unless it boots; without one, whatever is half-made."""
    _sweep(sysroot)
    found = booting(sysroot)
    if ready is not None and found[:1] != [ready.deployment_id]:
        if ready.deployment_id in found:  # its entry goes first, then prune takes the rest
            found.remove(ready.deployment_id)
        else:
            atomic.rmtree(deployment(sysroot, ready.deployment_id))
    found = found[:2]  # a killed switch leaves the entry that it was about to remove
    if ready is None:
        _keep_only(sysroot, booting(sysroot))
    return BootPlan(tuple(found)) if found else None


def prune(sysroot: Sysroot) -> None:
    """Deployments that are not on the menu, then layers that no deployment has."""
    _keep_only(sysroot, booting(sysroot))
    needed = {
        _layer(sysroot, diff_id).name
        for name in names(sysroot)
        for diff_id in (read_state(deployment(sysroot, name)) or {}).get("layers", ())
    }
    for path in sorted((top(sysroot) / "layers").glob("*")):
        if path.name not in needed:
            atomic.unlink(path)


def _sweep(sysroot: Sysroot) -> None:
    for name in names(sysroot):
        if name.startswith("."):
            atomic.rmtree(deployment(sysroot, name))
    for name in names(sysroot):
        atomic.rmtree(deployment(sysroot, name) / ".etc")
    atomic.rmtree(top(sysroot) / ".var")


def _keep_only(sysroot: Sysroot, keep: list[str]) -> None:
    for name in names(sysroot):
        if name not in {*keep, staged(sysroot)[0]}:
            atomic.rmtree(deployment(sysroot, name))
