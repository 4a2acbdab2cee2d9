"""Checking a composefs sysroot: every problem as it is found, nothing changed.

    objects       are what their names say
    links         lead to objects; an image's to the one of its name, a document's to the bytes of its digest
    streams       parse, and what they refer to exists; a configuration's layers are the layers that have these names
    images        parse, and their objects exist
    references    lead to entries
    deployments   have an origin, an image, a manifest, ``etc`` and ``var``
    entries       boot a deployment that is here; kernel and initrd are those of its image, byte for byte

Memory goes with the number of objects and of one image's files, never with their size.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from bootc_composefs import gc, meta, state
from bootc_composefs.deployment import ETC, load_owners
from bootc_composefs.erofs_read import read_image
from bootc_composefs.repository import TEMPORARY, Repository, all_refs, file_digest
from bootc_composefs.splitstream import Splitstream
from bootc_core import limits
from bootc_core.boot.kernel import find_kernel
from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.fs import verity
from bootc_core.models.finding import Counted, Cure, Finding
from bootc_core.models.tree import Node, walk

if TYPE_CHECKING:
    from bootc_composefs.state import Slot
    from bootc_core.models.boot import PresentEntry
    from bootc_core.models.sysroot import Sysroot

_DOCUMENT: Final = re.compile(r"oci-(?:config|manifest)-(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_NAMED: Final = re.compile(r"(config:)?(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_FOLDER: Final = re.compile("[0-9a-f]{2}")


def check(repository: Repository) -> list[str]:
    """Every problem of the repository alone, as text; empty if all is well."""
    return [
        f"{found.name}: {found.problem}"
        for found in check_repository(repository)
        if isinstance(found, Finding)
    ]


def check_sysroot(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> Iterator[Finding | Counted]:
    """See ``BackendOffer.check``."""
    try:
        path = sysroot.path / state.REPOSITORY
        # without meta.json opening for work would write one
        repository = Repository.open(path, lock=(path / meta.NAME).is_file())
    except BootcError as problem:
        yield Finding("repository", state.REPOSITORY, _text(problem), Cure.HAND)
        return
    with repository:
        yield from check_repository(repository)
        yield from _check_deployments(repository, sysroot, state.slots(entries))


def check_repository(repository: Repository) -> Iterator[Finding | Counted]:
    """What is in the repository, whoever needs it."""
    objects: set[bytes] = set()
    yield from _check_objects(repository, objects)
    for kind, word, examine in (
        ("images", "image", _check_image),
        ("streams", "stream", _check_stream),
    ):
        with os.scandir(repository.path / kind) as listing:
            names = sorted((entry.name, entry.is_symlink()) for entry in listing)
        expected: dict[str, bytes] = {}
        for name, is_link in names:
            if name == "refs":
                continue
            what = f"{kind}/{printable(name)}"
            digest = repository.resolve(f"{kind}/{name}") if is_link else None
            if digest is None or digest not in objects:
                yield Finding(word, what, "leads to no object")
                continue
            try:
                wanted, named = examine(repository, name, digest)
            except BootcError as problem:
                yield Finding(word, what, _text(problem))
                continue
            expected |= named
            for lost in sorted(wanted - objects):
                yield Finding(word, what, f"object {lost.hex()[:16]}… is missing")
        for name, digest in sorted(expected.items()):
            present = repository.resolve(f"{kind}/{name}")
            if present is None:
                yield Finding(word, f"{kind}/{name}", "missing, and another one names it")
            elif present != digest:
                yield Finding(word, f"{kind}/{name}", "stands for another one")
        yield Counted(word, sum(name != "refs" for name, _ in names))
        references = 0
        for path, target in all_refs(repository.path / kind / "refs"):
            references += 1
            resolved = Path(os.path.normpath(path.parent / target))
            if resolved.parent != repository.path / kind or not resolved.is_symlink():
                name = str(path.relative_to(repository.path))
                yield Finding("reference", printable(name), f"leads to no entry of {kind}")
        yield Counted("reference", references)


def _text(problem: BootcError) -> str:
    return problem.message + (f" ({problem.found})" if problem.found else "")


# --- objects --------------------------------------------------------------------------------------------------------------


def _check_objects(repository: Repository, good: set[bytes]) -> Iterator[Finding | Counted]:
    """Objects that are what they are called go into ``good``."""
    root = repository.path / "objects"
    number = 0
    for folder in sorted(os.listdir(root)):
        if folder.startswith(TEMPORARY):
            continue  # an interrupted run's; pruning removes it
        if not _FOLDER.fullmatch(folder):
            yield Finding(
                "object", f"objects/{printable(folder)}", "not a part of the repository", Cure.HAND
            )
            continue
        for name in sorted(os.listdir(root / folder)):
            number += 1
            what = f"objects/{folder}/{printable(name)}"
            digest = repository.digest(folder + name)
            if digest is None:
                yield Finding("object", what, "not the name of an object", Cure.HAND)
                continue
            try:
                found = file_digest(repository, digest)
            except BootcError as problem:
                yield Finding("object", what, _text(problem))
                continue
            if found == digest:
                good.add(digest)
            else:
                yield Finding("object", what, "its content is another")
    yield Counted("object", number)


# --- images and streams ---------------------------------------------------------------------------------------------------


_Needs: TypeAlias = "tuple[set[bytes], dict[str, bytes]]"  # objects; names with their objects


def _check_image(repository: Repository, name: str, digest: bytes) -> _Needs:
    """What the image needs."""
    if digest.hex() != name:
        raise StorageError("leads to another object")
    root = read_image(repository.read(digest))
    return {node.object for _, node in walk(root) if node.object}, {}


def _check_stream(repository: Repository, name: str, digest: bytes) -> _Needs:
    """What the stream needs."""
    del digest
    stream = repository.stream(name)
    if stream is None:
        return set(), {}
    named = stream.named_refs()
    wanted = {*stream.object_refs, *stream.stream_refs}
    if all(repository.size(reference) is not None for reference in stream.object_refs):
        _check_size(repository, stream)
        if match := _DOCUMENT.fullmatch(name):
            _check_document(repository, stream, match[1])
    names = {}
    for other, reference in named.items():
        if match := _NAMED.fullmatch(other):
            names[f"oci-config-{match[2]}" if match[1] else f"oci-layer-{match[2]}"] = reference
    return wanted, names


def _check_size(repository: Repository, stream: Splitstream) -> None:
    sizes = [repository.size(digest) or 0 for digest in stream.object_refs]
    total = sum(sizes[chunk] if isinstance(chunk, int) else len(chunk) for chunk in stream.chunks())
    if total != stream.size:
        raise StorageError(
            "a splitstream has a wrong size", found=f"{total} bytes instead of {stream.size}"
        )


def _check_document(repository: Repository, stream: Splitstream, wanted: str) -> None:
    hasher = hashlib.new(wanted.partition(":")[0])
    for chunk in stream.chunks():
        if isinstance(chunk, int):
            hasher.update(repository.read(stream.object_refs[chunk], limits.CONFIG_BYTES))
        else:
            hasher.update(chunk)
    if hasher.hexdigest() != wanted.partition(":")[2]:
        raise StorageError("stands for another document", found=hasher.hexdigest()[:16] + "…")


# --- deployments and boot entries ------------------------------------------------------------------------------------------


def _check_deployments(
    repository: Repository, sysroot: Sysroot, slots: Sequence[Slot]
) -> Iterator[Finding | Counted]:
    try:
        load_owners(sysroot)
    except BootcError as problem:
        yield Finding("repository", "bootc/owners.json", _text(problem), Cure.HAND)
    staged = state.read_staged(sysroot)
    waiting = {staged.deployment_id} if staged else set()
    booting = {slot.deployment_id for slot in slots}
    present = state.existing(sysroot)
    for deployment_id in present:
        what = f"{state.DEPLOY}/{deployment_id}"
        for wrong, cure in _check_state(repository, sysroot, deployment_id):
            yield Finding("deployment", what, wrong, cure)
        if deployment_id not in booting | waiting:
            lost = state.describe(repository, sysroot, deployment_id)
            yield Finding("deployment", what, "no boot entry boots it", deployment=lost)
    yield Counted("deployment", len(present))
    if staged and staged.deployment_id not in present:
        yield Finding(
            "notice", sysroot.staged_file.name, "the staged deployment is gone", Cure.RECORD
        )
    for slot in slots:
        if slot.deployment_id not in present:
            yield Finding(
                "entry", slot.entry.file, "boots a deployment that is not here", Cure.HAND
            )
        yield from check_boot_files(repository, sysroot, slot)
    yield Counted("entry", len(slots))


def _check_state(
    repository: Repository, sysroot: Sysroot, deployment_id: str
) -> Iterator[tuple[str, Cure]]:
    directory = state.deployment_path(sysroot, deployment_id)
    if not (directory / ETC).is_dir():
        yield "it has no etc", Cure.HAND
    if not (directory / "var").is_dir():
        yield "its var leads nowhere", Cure.HAND
    if repository.resolve(f"images/{deployment_id}") is None:
        yield "its image is not in the repository", Cure.FETCH
    try:
        origin = state.load_origin(sysroot, deployment_id)
    except BootcError as problem:
        yield _text(problem), Cure.HAND
        return
    digest = origin.manifest_digest
    if not digest:
        return
    if repository.resolve(f"streams/oci-manifest-{digest}") is None:
        yield f"the manifest {digest[:19]}… is not in the repository", Cure.FETCH
    if repository.tags().get(gc.deployment_tag(digest)) != f"oci-manifest-{digest}":
        yield "no reference keeps its image", Cure.FETCH


def boot_files(
    repository: Repository, sysroot: Sysroot, slot: Slot
) -> Iterator[tuple[str, Path, Node]]:
    """Kernel and initrd of an entry: as it names them, where they are, and what the image has.

    Raises:
        BootcError: the image cannot be read.
    """
    digest = repository.digest(slot.deployment_id)
    if digest is None or slot.entry.get("linux") is None:
        return  # a unified kernel image, or one of another repository
    kernel = find_kernel(read_image(repository.read(digest)))
    names = [slot.entry.get("linux") or "", *slot.entry.all("initrd")[:1]]
    for name, node in zip(names, (kernel.vmlinuz, kernel.initrd), strict=False):
        if node is not None:
            yield name, sysroot.boot_dir / name.strip("/"), node


def check_boot_files(repository: Repository, sysroot: Sysroot, slot: Slot) -> Iterator[Finding]:
    """Are kernel and initrd of an entry what its image has?"""
    try:
        for name, path, node in boot_files(repository, sysroot, slot):
            if not path.is_file():
                yield Finding("boot-file", name, "missing")
            elif not holds(repository, path, node):
                yield Finding("boot-file", name, "its content is another")
    except BootcError:
        return  # found among the images


def holds(repository: Repository, path: Path, node: Node) -> bool:
    """Has the file at ``path`` the content of ``node``? One that cannot be read has not."""
    hasher = verity.Hasher(repository.algorithm)
    try:
        with path.open("rb") as file:
            while piece := file.read(limits.MIB):
                hasher.update(piece)
    except OSError:
        return False
    wanted = node.object or verity.digest(node.inline or b"", repository.algorithm)
    return hasher.digest() == wanted
