"""The ostree storage backend: images to commits, deployments by the real libostree.

    stage      layers through the import pipeline into ``bare`` objects, a commit a layer, one merged commit, refs
    finalize   libostree checks the commit out beside the others, merges ``/etc`` and switches the boot entries atomically
    rollback   libostree writes the two deployments in the other order
    prune      refs that no deployment needs, then libostree's own cleanup

On an offline sysroot the deployment that boots next gives its ``/etc`` and kernel arguments. libostree writes the boot
entries below ``boot/loader`` itself, so the bootloader that goes with it, ``none``, only reads them. Owners and devices need root.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

from bootc_core import limits
from bootc_core.boot import kargs_d
from bootc_core.boot.kernel import find_kernel
from bootc_core.errors import StorageError, UnsupportedEnvironmentError, printable
from bootc_core.fs import atomic, etc_merge
from bootc_core.models import events
from bootc_core.models.boot import BootPlan
from bootc_core.models.context import Context, SignatureMode
from bootc_core.models.image import StagedDeployment, VerifiedImage
from bootc_core.models.kargs import CommandLine, Parameter, merge_image_change
from bootc_core.models.oci import LAYER_TYPES
from bootc_core.models.reference import SignedReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.tree import Node
from bootc_core.oci import origin as origins
from bootc_core.oci.importer import LayerJob, LayerResult, import_layers
from bootc_core.oci.layers import LayerTree
from bootc_core.process import run_blocking
from bootc_ostree import objects
from bootc_ostree.libostree import Deployed
from bootc_ostree.libostree import Sysroot as OstreeSysroot
from bootc_ostree.repo import BLOBS, IMAGES, Repo, read_entries
from bootc_ostree.state import STATEROOT, booted_commit, deployments

Emit = Callable[[events.Event], None]
IMPORTER: Final = "1"
_DROPPED: Final = (
    b"run",
    b"tmp",
    b"proc",
    b"sys",
    b"dev",
)  # children of these are never part of a commit
_INJECTED: Final = (b"hostname", b"resolv.conf")  # empty ones in /etc come from container engines


def _need_root() -> None:
    if os.geteuid() != 0:
        raise UnsupportedEnvironmentError(
            "the ostree backend needs root, since its objects carry owners",
            reference="needs-root",
            hint="run as root, or use the composefs backend",
        )


def initialise(sysroot: Sysroot) -> Repo:
    """The sysroot's repository, made by the real ostree if there is none.

    Raises:
        StorageError: what ostree says.
        UnsupportedEnvironmentError: no ostree, or no root.
    """
    _need_root()
    repo = Repo(sysroot.path)
    if not (repo.path / "config").exists():
        for arguments in (
            ["admin", "init-fs", "--modern", str(sysroot.path)],
            ["config", f"--repo={repo.path}", "set", "sysroot.bootloader", "none"],
            ["config", f"--repo={repo.path}", "set", "sysroot.bootprefix", "true"],
            ["config", f"--repo={repo.path}", "set", "sysroot.readonly", "true"],
        ):
            run_blocking(["ostree", *arguments], timeout_s=limits.FINALIZE_TIMEOUT_S)
    if not (sysroot.path / "ostree/deploy" / STATEROOT).is_dir():
        run_blocking(
            ["ostree", "admin", f"--sysroot={sysroot.path}", "os-init", STATEROOT],
            timeout_s=limits.FINALIZE_TIMEOUT_S,
        )
    return repo


async def stage(
    context: Context, image: VerifiedImage, sysroot: Sysroot, emit: Emit
) -> StagedDeployment:
    """See ``bootc_stage``."""
    fetched = image.image
    repo = initialise(sysroot)
    spool = sysroot.state / "spool" / f"ostree-{fetched.digest.rpartition(':')[2]}"
    jobs = [
        LayerJob(layer, diff_id, LAYER_TYPES[layer.media_type])
        for layer, diff_id in zip(
            fetched.manifest.layers, fetched.config.rootfs.diff_ids, strict=True
        )
    ]
    missing = [job for job in jobs if not _is_known(repo, job)]
    needed = sum(job.descriptor.size for job in missing)
    _check_space(repo, needed, str(fetched.requested))
    present = sum(job.descriptor.size for job in jobs) - needed
    emit(
        events.LayersPlanned(
            context.transaction, len(jobs) - len(missing), len(missing), present, needed
        )
    )
    results: dict[str, LayerResult] = {}
    if missing:
        for parent in (sysroot.state, spool.parent, spool):
            atomic.mkdir(parent, 0o700)
        results = await import_layers(
            fetched,
            missing,
            sink="bootc_ostree.sink:OstreeSink",
            sink_options={},
            staging=spool,
            pass_directories={"objects": repo.objects},
            emit=emit,
            transaction=context.transaction,
        )
    with repo.shared():
        emit(events.StepProgressed(context.transaction, "publishing", "Publishing objects"))
        _publish(repo, spool, missing)
        emit(events.StepProgressed(context.transaction, "merging", "Merging layers"))
        root = _merge(repo, jobs)
        find_kernel(root)
        var = _transform(root)
        options = _options(repo, sysroot, root)  # before a ref names an image that is refused
        metadata = {
            "ostree.manifest-digest": fetched.digest,
            "ostree.manifest": fetched.manifest_document.raw.decode("utf-8"),
            "ostree.container.image-config": fetched.config_document.raw.decode("utf-8"),
            "ostree.importer.version": IMPORTER,
        }
        commit = repo.commit(root, metadata, _epoch(fetched.config.created))
        atomic.syncfs(repo.path)
        repo.write_ref(f"{IMAGES}/{objects.escape_ref(str(fetched.requested))}", commit)
    for left in spool.parent.glob(
        "ostree-*"
    ):  # this run's, and those of runs that were never repeated
        atomic.rmtree(left)
    present_deployments = deployments(sysroot)
    if not present_deployments:
        _populate_var(repo, sysroot, var)
    serial = sum(1 for one in present_deployments if one.checksum == commit)
    return StagedDeployment(
        backend="ostree",
        deployment_id=f"{commit}.{serial}",
        details={
            "commit": commit,
            "options": [str(parameter) for parameter in options],
            "origin": _origin(context, image).to_bytes().decode(),
        },
        bytes_new=sum(int(result.sink.get("bytes_new", 0)) for result in results.values()),
    )


def _is_known(repo: Repo, job: LayerJob) -> bool:
    ref = f"{BLOBS}/{objects.escape_ref(job.descriptor.digest)}"
    return repo.read_ref(ref) is not None and repo.entries_path(job.diff_id).is_file()


def _check_space(repo: Repo, needed: int, name: str) -> None:
    found = os.statvfs(repo.path)
    available = found.f_bavail * found.f_frsize
    if needed > available:
        raise StorageError(
            f"Insufficient free space for {printable(name)} (available: {available} required: {needed})",
            reference="no-space",
            hint="free some space, or remove old deployments",
            catalogue="SPC",
        )


def _publish(repo: Repo, spool: Path, jobs: Sequence[LayerJob]) -> None:
    """Finished layers: objects to their names, then one sync, then what refers to them."""
    if not jobs:
        return
    atomic.syncfs(repo.path)
    commits = []
    for job in jobs:
        staged = spool / job.diff_id.rpartition(":")[2]
        tree = Node(stat.S_IFDIR | 0o755)
        for member in read_entries(staged / "entries"):
            repo.publish(staged / "objects", member)
            if member.checksum is not None:  # the layer's commit only has to keep its objects
                tree.children[member.checksum.encode()] = Node(  # type: ignore[index] # a directory
                    stat.S_IFREG | member.entry.mode, object=bytes.fromhex(member.checksum)
                )
        commits.append((job, repo.commit(tree, {"ostree.importer.version": IMPORTER}, 0)))
    atomic.syncfs(repo.path)
    for parent in (repo.cache.parent, repo.cache):
        atomic.mkdir(parent, 0o755)
    for job, commit in commits:
        staged = spool / job.diff_id.rpartition(":")[2]
        atomic.rename(staged / "entries", repo.entries_path(job.diff_id))
        repo.write_ref(f"{BLOBS}/{objects.escape_ref(job.descriptor.digest)}", commit)
    atomic.fsync(repo.cache)


def _merge(repo: Repo, jobs: Sequence[LayerJob]) -> Node:
    tree = LayerTree()
    for number, job in enumerate(jobs, 1):
        members = (
            (member.entry, None, bytes.fromhex(member.checksum) if member.checksum else None)
            for member in read_entries(repo.entries_path(job.diff_id))
        )
        tree.apply(members, f"layer {number}")
    return tree.root


def _transform(root: Node) -> Node | None:
    """Make the merged tree what a commit holds, in place; the image's ``/var``, which is not part of it."""
    children = root.children if root.children is not None else {}
    for name in _DROPPED:
        node = children.get(name)
        if node is not None and node.children is not None:
            node.children.clear()
    usr, etc = children.get(b"usr"), children.pop(b"etc", None)
    if usr is None or usr.children is None:
        raise StorageError("the image has no /usr", reference="not-bootable", catalogue="CON")
    if b"etc" in usr.children:
        raise StorageError(
            "the image has a /usr/etc",
            reference="usr-etc",
            hint="put defaults into /etc",
            catalogue="CON",
        )
    if etc is not None and etc.children is not None:
        for name in _INJECTED:
            node = etc.children.get(name)
            if node is not None and stat.S_ISREG(node.mode) and node.size == 0:
                del etc.children[name]
        usr.children[b"etc"] = etc
    for place in _walk_special(root):
        raise StorageError(
            "the ostree backend keeps only files, directories and symbolic links",
            reference="unsupported-file",
            found=printable(place),
            hint="remove it from the image, or use the composefs backend",
            catalogue="CON",
        )
    boot = children.get(b"boot")
    if boot is not None and boot.children:
        boot.children.clear()
    var = children.pop(b"var", None)
    children[b"var"] = Node(stat.S_IFDIR | 0o755)
    return var


def _walk_special(root: Node) -> Iterator[bytes]:
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        for name, child in (node.children or {}).items():
            place = path + b"/" + name
            if child.children is not None:
                stack.append((place, child))
            elif not stat.S_ISREG(child.mode) and not stat.S_ISLNK(child.mode):
                yield place


def _populate_var(repo: Repo, sysroot: Sysroot, var: Node | None) -> None:
    """``/var`` of the stateroot, from the image that is deployed first; never touched again."""
    stateroot = sysroot.path / "ostree/deploy" / STATEROOT
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


def _epoch(created: str | None) -> int:
    text = origins.timestamp(created)
    return int(datetime.fromisoformat(text).timestamp()) if text else 0


def _origin(context: Context, image: VerifiedImage) -> origins.Origin:
    enforced = context.signature is SignatureMode.ENFORCE
    return origins.Origin(
        reference=SignedReference(image.image.requested, "containerPolicy" if enforced else None),
        tag_digest=image.image.tag_digest,
        signature=context.signature.value,
        accepted=tuple(answer.to_json(policy) for policy, answer in image.answers),
    )


def _options(repo: Repo, sysroot: Sysroot, root: Node) -> CommandLine:
    """Kernel arguments of the new deployment: the present ones with the images' difference (parity reference, 5.2)."""

    def read_file(node: Node) -> bytes:
        with repo.object_path((node.object or b"").hex(), "file").open("rb") as file:
            return file.read(limits.SETTINGS_FILE_BYTES)

    new = [CommandLine.parse(text).parameters for text in kargs_d.read_tree(root, read_file)]
    wanted = [parameter for group in new for parameter in group]
    present = deployments(sysroot)
    if not present:
        return CommandLine().add(wanted).checked()
    old: list[Parameter] = []
    commit = booted_commit(sysroot) or ""
    for name in repo.list_files(commit, "usr/lib/bootc/kargs.d"):
        data = repo.lookup(commit, f"usr/lib/bootc/kargs.d/{name}")
        if name.endswith(".toml") and data is not None:
            for text in kargs_d.parse(name, data, kargs_d.architecture()):
                old += CommandLine.parse(text).parameters
    return merge_image_change(
        CommandLine.parse(present[0].options).remove_key("ostree"), old, wanted
    )


async def finalize(
    context: Context, sysroot: Sysroot, staged: StagedDeployment, emit: Emit
) -> BootPlan:
    """See ``bootc_finalize``: the switch happens in here, by libostree."""
    commit = str(staged.details["commit"])
    emit(events.StepProgressed(context.transaction, "deploying", "Checking out and merging /etc"))
    with OstreeSysroot(sysroot.path) as handle:
        present = handle.deployments()
        mine = [one for one in present if one.stateroot == STATEROOT]
        if mine and mine[0].name == staged.deployment_id:
            return BootPlan(effective=True)  # an interrupted run had got that far
        merge = mine[0] if mine else None
        options = [str(option) for option in staged.details["options"]]
        new = handle.deploy(STATEROOT, commit, str(staged.details["origin"]), options, merge)
        order: list[Deployed] = [new]
        order += [
            one for one in present if one is merge or one.pinned or one.stateroot != STATEROOT
        ]
        handle.write_order(order)
    return BootPlan(effective=True)


async def rollback(context: Context, sysroot: Sysroot) -> BootPlan:
    """See ``bootc_rollback``."""
    del context
    _need_root()
    with OstreeSysroot(sysroot.path) as handle:
        present = handle.deployments()
        mine = [one for one in present if one.stateroot == STATEROOT]
        if len(mine) < 2:
            raise StorageError(
                "No rollback available",
                reference="no-rollback",
                hint="there is one deployment only; switch or upgrade makes another",
                catalogue="STATE",
            )
        order = [mine[1], mine[0], *(one for one in present if one not in mine[:2])]
        handle.write_order(order)
        return BootPlan(entries=(mine[1].name, mine[0].name), effective=True)


async def discard(
    context: Context, sysroot: Sysroot, staged: StagedDeployment | None
) -> BootPlan | None:
    """See ``bootc_discard``: what is not listed, libostree's cleanup removes; refs of images go with ``prune``."""
    del context, staged
    spool = sysroot.state / "spool"
    if (sysroot.path / "ostree/repo/config").exists() and deployments(sysroot):
        with OstreeSysroot(sysroot.path) as handle:
            handle.cleanup()
    if spool.is_dir():
        for path in spool.iterdir():
            if path.name.startswith("ostree-") and not any(path.glob("*/done.json")):
                atomic.rmtree(path)
    return None


async def prune(context: Context, sysroot: Sysroot) -> bool:
    """See ``bootc_prune``."""
    del context
    repo = Repo(sysroot.path)
    layers: set[str] = set()
    diff_ids: set[str] = set()
    kept = set()
    for one in deployments(sysroot):
        metadata = repo.read_commit(one.checksum)["metadata"]
        kept.add(one.checksum)
        if "ostree.manifest" not in metadata:
            continue
        manifest = json.loads(metadata["ostree.manifest"])
        config = json.loads(metadata["ostree.container.image-config"])
        layers |= {f"{BLOBS}/{objects.escape_ref(layer['digest'])}" for layer in manifest["layers"]}
        diff_ids |= {diff_id.rpartition(":")[2] for diff_id in config["rootfs"]["diff_ids"]}
    for ref, commit in repo.refs(IMAGES).items():
        if commit not in kept:
            atomic.unlink(repo.heads / ref)
    for ref in repo.refs(BLOBS):
        if ref not in layers:
            atomic.unlink(repo.heads / ref)
    if repo.cache.is_dir():
        for path in repo.cache.glob("*.entries"):
            if path.stem not in diff_ids:
                atomic.unlink(path)
    with OstreeSysroot(sysroot.path) as handle:
        handle.cleanup()
    return True
