"""The ostree storage backend: images to commits, deployments by the real libostree.

    stage      layers through the import pipeline into ``bare`` objects, a commit a layer, one merged commit, refs
    finalize   libostree checks the commit out beside the others, merges ``/etc`` and switches the boot entries atomically
    rollback   libostree writes the two deployments in the other order
    prune      refs that no deployment needs, then libostree's own cleanup

On an offline sysroot the deployment that boots next gives its ``/etc`` and kernel arguments, on the running host the booted one.
There ``stage`` ends with libostree's staged deployment, and finalizing is the work of ostree-finalize-staged.service at
shutdown. libostree writes the boot entries below ``boot/loader`` itself, so the bootloader that goes with it, ``none``, only
reads them. Owners and devices need root.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import trio

from bootc_core import limits, paths
from bootc_core.boot import kargs_d
from bootc_core.boot.kernel import find_kernel
from bootc_core.errors import StorageError, UnsupportedEnvironmentError
from bootc_core.fs import atomic, etc_merge
from bootc_core.models import events, kargs
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Context, Installation, SignatureMode
from bootc_core.models.image import FetchedImage, StagedDeployment, VerifiedImage
from bootc_core.models.kargs import CommandLine, Parameter, merge_image_change
from bootc_core.models.reference import SignedReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.tree import Node
from bootc_core.oci import origin as origins
from bootc_core.oci.importer import LayerJob
from bootc_core.oci.layers import LayerTree
from bootc_core.process import run_blocking
from bootc_ostree import compose, layers, objects, state
from bootc_ostree.libostree import VAR_FROM_COMMIT, Deployed, at_least
from bootc_ostree.libostree import Sysroot as OstreeSysroot
from bootc_ostree.repo import BLOBS, IMAGES, Repo
from bootc_ostree.state import STATEROOT, Present, booted, deployments, staged_commit

Emit = Callable[[events.Event], None]
_log: Final = logging.getLogger(__name__)
IMPORTER: Final = "1"
_REBOOT_REQUIRED: Final = Path("/run/reboot-required")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise UnsupportedEnvironmentError(
            "the ostree backend needs root, since its objects carry owners",
            reference="needs-root",
            hint="run as root, or use the composefs backend",
        )


def initialise(sysroot: Sysroot, stateroot: str = STATEROOT) -> Repo:
    """The sysroot's repository, made by the real ostree if there is none.

    Raises:
        StorageError: what ostree says.
        UnsupportedEnvironmentError: no ostree, or no root.
    """
    _need_root()
    repo = Repo(sysroot.path)
    if not sysroot.live and sysroot.boot_dir != sysroot.path / paths.BOOT:
        raise UnsupportedEnvironmentError(
            "the ostree backend writes its boot entries into the sysroot",
            reference="boot-dir",
            expected=str(sysroot.path / paths.BOOT),
            found=str(sysroot.boot_dir),
            hint="mount the boot partition there, and leave --boot-dir out",
        )
    if not (repo.path / "config").exists():
        for arguments in (
            ["admin", "init-fs", "--modern", str(sysroot.path)],
            ["config", f"--repo={repo.path}", "set", "sysroot.bootloader", "none"],
            ["config", f"--repo={repo.path}", "set", "sysroot.bootprefix", "true"],
            ["config", f"--repo={repo.path}", "set", "sysroot.readonly", "true"],
        ):
            run_blocking(["ostree", *arguments], timeout_s=limits.FINALIZE_TIMEOUT_S)
    if not any(sysroot.path.glob("ostree/deploy/*")):
        run_blocking(
            ["ostree", "admin", f"--sysroot={sysroot.path}", "os-init", stateroot],
            timeout_s=limits.FINALIZE_TIMEOUT_S,
        )
    return repo


async def stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment:
    """See ``bootc_stage``."""
    fetched = image.image
    if sysroot.live and booted(sysroot, deployments(sysroot)) is None:
        raise StorageError(
            "no boot entry is that of the running system",
            reference="not-booted",
            hint="ostree admin status shows the deployments; is /boot mounted?",
            catalogue="STATE",
        )
    fresh = context.install.stateroot if context.install is not None else STATEROOT
    repo = initialise(sysroot, fresh)

    def step(name: str, description: str) -> None:
        emit(events.StepProgressed(context.transaction, name, description))

    state.note_update(sysroot, fetched.requested, fetched)
    with repo.shared():
        imported = await layers.import_missing(context, fetched, sysroot, repo, emit)
        if imported.staged:
            step("syncing", "Syncing layers")
            await imported.settle()
        step("merging", "Merging layers")
        tree = LayerTree()
        trees: dict[str, tuple[LayerJob, Node]] = {}
        refs: list[tuple[str, str]] = []
        base_commit = None
        if imported.native:
            base_commit, carried, refs = await imported.base()
            compose.apply(tree, carried, f"the commit in {fetched.requested.display()}")
        for number, job in enumerate(imported.jobs[imported.native :], imported.native + 1):
            members = await imported.members(job)
            compose.apply(tree, members, f"layer {number} of {fetched.requested.display()}")
            if repo.read_ref(layers.blob_ref(job.descriptor)) is None:
                trees[job.descriptor.digest] = (job, compose.layer_tree(members, tree.root))
        root = tree.root
        compose.check(root)
        find_kernel(root)
        if imported.native < len(imported.jobs):  # else all has the labels of the commit
            compose.label(root, repo)
        keeps_var = at_least(*VAR_FROM_COMMIT)
        var = compose.transform(root, keeps_var=keeps_var)
        compose.finish(root)
        options = _options(
            repo, sysroot, root, context.install
        )  # before a ref names an image that is refused
        await trio.lowlevel.checkpoint()
        step("committing", "Writing commits")
        for job, layer in trees.values():
            compose.transform(layer, keeps_var=keeps_var)
            commit = repo.commit(layer, {"ostree.importer.version": IMPORTER}, 0)
            refs.append((layers.blob_ref(job.descriptor), commit))
        metadata = {
            "ostree.manifest-digest": fetched.digest,
            "ostree.manifest": fetched.manifest_document.raw.decode("utf-8"),
            "ostree.container.image-config": fetched.config_document.raw.decode("utf-8"),
            "ostree.importer.version": IMPORTER,
        }
        commit = repo.commit(root, metadata, _created(fetched), base_commit)
        imported.remember()
        await trio.lowlevel.checkpoint()
        atomic.syncfs(repo.path)
        for name, layer_commit in refs:
            repo.write_ref(name, layer_commit, sync=False)
        repo.write_ref(
            f"{IMAGES}/{objects.escape_ref(str(origins.followed(context, fetched)))}", commit
        )
        atomic.syncfs(repo.path)
    for left in (sysroot.state / "spool").glob("ostree-*"):
        atomic.rmtree(left)  # this run's, and those of runs that were never repeated
    present = deployments(sysroot)
    base = booted(sysroot, present)
    if not present:
        _populate_var(repo, sysroot, var, fresh)
    stateroot = base.stateroot if base else fresh
    details = {
        "commit": commit,
        "stateroot": stateroot,
        "options": [str(parameter) for parameter in options],
        "origin": _origin(context, image).to_bytes().decode(),
    }
    name = f"{commit}.{_next_serial(present, stateroot, commit)}"
    if sysroot.live:
        step("deploying", "Checking out")
        name = _stage_live(sysroot, details)
        _forget_refspec(context, sysroot, base)
        _announce(sysroot, fetched.digest)
    return StagedDeployment(
        backend="ostree", deployment_id=name, details=details, bytes_new=imported.bytes_new
    )


def _next_serial(present: list[Present], stateroot: str, commit: str) -> int:
    """What libostree numbers the next deployment of a commit with."""
    mine = [one.serial for one in present if one.checksum == commit and one.stateroot == stateroot]
    return max(mine, default=-1) + 1


def _forget_refspec(context: Context, sysroot: Sysroot, replaced: Present | None) -> None:
    """A host that followed a branch of an ostree repository follows an image now: its branch goes, unless ``--retain``."""
    if replaced is not None and not context.retain:
        branch = state.refspec(sysroot, replaced)
        if branch:
            Repo(sysroot.path).remove_refspec(branch)


def _open(sysroot: Sysroot) -> OstreeSysroot:
    return OstreeSysroot(Path("/") if sysroot.live else sysroot.path)


def _stage_live(sysroot: Sysroot, details: dict[str, Any]) -> str:
    """Have libostree stage a commit on the running host; the deployment's name. What was staged goes."""
    with _open(sysroot) as handle:
        merge = next((one for one in handle.deployments() if one.booted), None)
        return handle.deploy(
            details["stateroot"],
            details["commit"],
            details["origin"],
            details["options"],
            merge,
            staged=True,
        ).name


def _announce(sysroot: Sysroot, digest: object) -> None:
    """Tell other programs of the running host that something changed: kured by a file, bootc-status-updated.path by a time."""
    if not sysroot.live:
        return
    text = f"bootc: Reboot required for image: {digest}"
    atomic.write_file(_REBOOT_REQUIRED, text.encode(), sync=False)
    watched = sysroot.path / "ostree/bootc"
    atomic.mkdir(watched)
    with atomic.mapped("touch", watched):
        os.utime(watched)


def _created(image: FetchedImage) -> int:
    """When the image was made, in seconds since 1970; 0 if it does not say: equal images give equal commits."""
    annotations = image.manifest.annotations or {}
    for text in (annotations.get("org.opencontainers.image.created"), image.config.created):
        if (moment := origins.timestamp(text)) is not None:
            return max(int(datetime.fromisoformat(moment).timestamp()), 0)
    return 0


def _populate_var(repo: Repo, sysroot: Sysroot, var: Node | None, name: str) -> None:
    """``/var`` of the stateroot, from the image that is deployed first; never touched again."""
    stateroot = sysroot.path / "ostree/deploy" / name
    fresh, old = stateroot / ".bootc-tmp-var", stateroot / ".bootc-tmp-old-var"
    atomic.rmtree(fresh)
    atomic.rmtree(old)

    def open_file(node: Node) -> BinaryIO:
        return repo.object_path((node.object or b"").hex(), "file").open("rb")

    etc_merge.populate(fresh, var, open_file, exclude=(b".updated",))
    atomic.syncfs(fresh)
    if (stateroot / "var").exists():
        atomic.rename(stateroot / "var", old)
    atomic.rename(fresh, stateroot / "var")
    atomic.fsync(stateroot)
    atomic.rmtree(old)


def _origin(context: Context, image: VerifiedImage) -> origins.Origin:
    enforced = context.recorded_signature is SignatureMode.ENFORCE
    follows = origins.followed(context, image.image)
    return origins.Origin(
        reference=SignedReference(follows, "containerPolicy" if enforced else None),
        tag_digest=image.image.tag_digest if follows == image.image.requested else None,
        signature=context.recorded_signature.value,
        accepted=tuple(answer.to_json(policy) for policy, answer in image.answers),
    )


def _options(repo: Repo, sysroot: Sysroot, root: Node, install: Installation | None) -> CommandLine:
    """Kernel arguments of the new deployment: the present ones with the images' difference (parity reference, 5.2)."""

    def read_file(node: Node) -> bytes:
        with repo.object_path((node.object or b"").hex(), "file").open("rb") as file:
            return file.read(limits.SETTINGS_FILE_BYTES)

    new = [CommandLine.parse(text).parameters for text in kargs_d.read_tree(root, read_file)]
    wanted = [parameter for group in new for parameter in group]
    if install is not None:
        return kargs.installed(install.arguments, wanted, install.removed, install.added)
    present = booted(sysroot, deployments(sysroot))
    if present is None:
        return CommandLine().add(wanted).checked()
    old: list[Parameter] = []
    commit = present.checksum
    for name in repo.list_files(commit, "usr/lib/bootc/kargs.d"):
        data = repo.lookup(commit, f"usr/lib/bootc/kargs.d/{name}")
        if name.endswith(".toml") and data is not None:
            for text in kargs_d.parse(name, data, kargs_d.architecture()):
                old += CommandLine.parse(text).parameters
    return merge_image_change(CommandLine.parse(present.options).remove_key("ostree"), old, wanted)


async def finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
) -> BootPlan:
    """See ``bootc_finalize``: the switch happens in here, by libostree; for the running host by its service at shutdown."""
    if sysroot.live:
        return BootPlan(effective=True)
    commit = str(staged.details["commit"])
    emit(events.StepProgressed(context.transaction, "deploying", "Checking out and merging /etc"))
    with _open(sysroot) as handle:
        present = handle.deployments()
        if present and present[0].name == staged.deployment_id:
            return BootPlan(effective=True)  # an interrupted run had got that far
        merge = present[0] if present else None
        stateroot = merge.stateroot if merge else str(staged.details["stateroot"])
        options = [str(option) for option in staged.details["options"]]
        new = handle.deploy(stateroot, commit, str(staged.details["origin"]), options, merge)
        order: list[Deployed] = [new]
        order += [
            one for one in present if one is merge or one.pinned or one.stateroot != stateroot
        ]
        replaced = deployments(sysroot)[:1]
        _switch(handle, sysroot, order)
        for one in replaced:
            _forget_refspec(context, sysroot, one)
    return BootPlan(effective=True)


def _switch(handle: OstreeSysroot, sysroot: Sysroot, order: list[Deployed]) -> None:
    """Let libostree write the boot entries. It cleans up after its atomic step; an error of that does not undo the switch.

    Raises:
        StorageError: what booted before still boots.
    """
    try:
        handle.write_order(order)
    except StorageError as problem:
        now = [f"{one.checksum}.{one.serial}" for one in deployments(sysroot)]
        if now != [one.name for one in order]:
            raise
        _log.warning("after the switch: %s: %s", problem.message, problem.found)


async def rollback(context: Context, sysroot: Sysroot) -> BootPlan:
    """See ``bootc_rollback``: the first two change places. On the running host again: what runs comes first again."""
    del context
    _need_root()
    with _open(sysroot) as handle:
        present = [one for one in handle.deployments() if not one.staged]
        running = next((one for one in present if one.booted), present[0] if present else None)
        mine = [one for one in present if running and one.stateroot == running.stateroot]
        if running is None or len(mine) < 2:
            raise StorageError(
                "No rollback available",
                reference="no-rollback",
                hint="there is one deployment only; switch or upgrade makes another",
                catalogue="STATE",
            )
        # what runs comes first again if another one was queued before it
        first, second = mine[1] if running is mine[0] else running, mine[0]
        order = [first, second, *(one for one in present if one not in (first, second))]
        _switch(handle, sysroot, order)
    if sysroot.live:
        metadata = Repo(sysroot.path).read_commit(first.checksum)["metadata"]
        _announce(sysroot, metadata.get("ostree.manifest-digest", first.checksum))
    return BootPlan(entries=(first.name, second.name), effective=True)


async def discard(
    context: Context, sysroot: Sysroot, staged: StagedDeployment | None
) -> BootPlan | None:
    """See ``bootc_discard``: checkouts that are not listed go; refs and objects go with ``prune``."""
    del context
    if not (sysroot.path / "ostree/repo/config").exists():
        return None
    if any(sysroot.path.glob("ostree/deploy/*/deploy/*")):
        with _open(sysroot) as handle:
            present = handle.deployments()
            if staged is not None and any(
                one.staged and one.name == staged.deployment_id for one in present
            ):
                handle.write_order([one for one in present if not one.staged])
            handle.cleanup(prune=False)
    for path in (sysroot.state / "spool").glob("ostree-*"):
        if not any(path.glob("*/done.json")):
            atomic.rmtree(path)
    return None


async def prune(context: Context, sysroot: Sysroot) -> bool:
    """See ``bootc_prune``: an image's ref stays as long as a deployment has its commit, a layer's as long as an image needs it."""
    del context
    repo = Repo(sysroot.path)
    _remove_temporary(repo)
    kept = {one.checksum for one in deployments(sysroot)}
    staged = staged_commit(sysroot)
    if staged is not None:
        kept.add(staged)
    layer_refs, diff_ids = layers.needed(repo, kept)
    for ref, commit in repo.refs(IMAGES).items():
        if commit not in kept:
            repo.remove_ref(ref)
    for ref in repo.refs(BLOBS):
        if ref not in layer_refs:
            repo.remove_ref(ref)
    if repo.cache.is_dir():
        for path in repo.cache.iterdir():
            if path.stem not in diff_ids:
                atomic.unlink(path)
    with _open(sysroot) as handle:
        handle.cleanup()
    return True


def _remove_temporary(repo: Repo) -> None:
    """Remove what killed runs left under temporary names."""
    places = [
        repo.cache,
        *repo.objects.iterdir(),
        *(path for path in repo.heads.rglob("*") if path.is_dir()),
    ]
    for place in places:
        for path in place.glob(".bootc-tmp-*"):
            atomic.unlink(path)
