"""Checking an ostree sysroot: every problem as it is found, nothing changed.

    objects       libostree's own check of each one (``ostree_repo_fsck_object``)
    references    are checksums of commits; an image's has the image's metadata
    commits       everything that they need is there
    deployments   origin; each file of the checkout is the commit's (the same inode, or the same content)
    entries       boot a deployment that is here; kernel and initrd have the checksum that is in their directory's name

Memory goes with the number of directories and of one directory's files.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bootc_core import limits
from bootc_core.errors import BootcError, printable
from bootc_core.models.finding import Counted, Cure, Finding
from bootc_core.oci import origin as origins
from bootc_ostree import objects, state
from bootc_ostree.libostree import ObjectChecker
from bootc_ostree.repo import BLOBS, IMAGES, Repo

if TYPE_CHECKING:
    from bootc_core.models.boot import PresentEntry
    from bootc_core.models.sysroot import Sysroot
    from bootc_ostree.state import Present

_OBJECT: Final = re.compile(r"([0-9a-f]{62})\.(file|dirtree|dirmeta|commit)")
_BESIDE: Final = re.compile(r"[0-9a-f]{62}\.commitmeta|\.bootc-tmp-.*")
_MANIFEST_DIGEST: Final = "ostree.manifest-digest"
_BOOT_CHECKSUM: Final = re.compile(r"-([0-9a-f]{64})/")


def check_sysroot(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> Iterator[Finding | Counted]:
    """See ``BackendOffer.check``."""
    repo = Repo(sysroot.path)
    try:
        with repo.shared():
            yield from _check_objects(repo)
            yield from _check_references(repo)
            yield from _check_deployments(repo, sysroot, entries)
    except BootcError as problem:
        yield Finding("repository", "ostree/repo", _text(problem), Cure.HAND)


def _text(problem: BootcError) -> str:
    return problem.message + (f" ({problem.found})" if problem.found else "")


def _check_objects(repo: Repo) -> Iterator[Finding | Counted]:
    number = 0
    with ObjectChecker(repo.path) as checker:
        for folder in sorted(os.listdir(repo.objects)):
            for name in sorted(os.listdir(repo.objects / folder)):
                what = f"ostree/repo/objects/{folder}/{printable(name)}"
                match = _OBJECT.fullmatch(name)
                if match is None:
                    if not _BESIDE.fullmatch(name):
                        yield Finding("object", what, "not the name of an object", Cure.HAND)
                    continue
                number += 1
                if said := checker.problem(folder + match[1], match[2]):
                    yield Finding("object", what, printable(said, 300))
    yield Counted("object", number)


# --- references and commits -------------------------------------------------------------------------------------------------


def _check_references(repo: Repo) -> Iterator[Finding | Counted]:
    seen: set[str] = set()
    number = 0
    for path in sorted(repo.heads.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        number += 1
        name = str(path.relative_to(repo.heads))
        what = f"ostree/repo/refs/heads/{printable(name)}"
        commit = repo.read_ref(name)
        if commit is None:
            yield Finding("reference", what, "not the checksum of a commit")
            continue
        if not repo.object_path(commit, "commit").is_file():
            yield Finding("reference", what, f"the commit {commit[:16]}… is missing")
            continue
        for lost in missing_objects(repo, commit, seen):
            yield Finding("commit", commit, f"object {lost} is missing")
        if name.startswith(f"{IMAGES}/") and not _metadata(repo, commit).get(_MANIFEST_DIGEST):
            yield Finding("reference", what, "its commit is no image's")
    yield Counted("reference", number)


def _metadata(repo: Repo, commit: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = repo.read_commit(commit)["metadata"]
    except BootcError:
        return {}
    return found


def _missing_references(repo: Repo, sysroot: Sysroot, present: Sequence[Present]) -> set[str]:
    """References that the deployments need and that are not there."""
    wanted = set()
    followed: set[str] = set()
    for one in present:
        metadata = _metadata(repo, one.checksum)
        try:
            manifest = origins.document(str(metadata.get("ostree.manifest", "{}")).encode())
            origin = state.load_origin(sysroot, one)
        except BootcError:
            continue
        for layer in manifest.get("layers") or ():
            wanted.add(f"{BLOBS}/{objects.escape_ref(str(layer.get('digest')))}")
        name = str(origin.reference.image) if origin.reference else ""
        if name and name not in followed:  # an older one's went on to the newer
            followed.add(name)
            wanted.add(f"{IMAGES}/{objects.escape_ref(name)}")
    return {name for name in wanted if not (repo.heads / name).is_file()}


def missing_objects(repo: Repo, commit: str, seen: set[str] | None = None) -> Iterator[str]:
    """Objects that a commit needs and the repository lacks, as ``CHECKSUM.KIND``. Damaged lists end the search below them.

    Args:
        repo: the repository.
        commit: whose.
        seen: lists of directories that were looked through already, and are now.
    """
    seen = set() if seen is None else seen
    try:
        data = repo.read_commit(commit)
    except BootcError:
        return
    todo = [(data["tree"].hex(), data["meta"].hex())]
    while todo:
        tree, meta = todo.pop()
        if not repo.object_path(meta, "dirmeta").is_file():
            yield f"{meta}.dirmeta"
        if tree in seen:
            continue
        seen.add(tree)
        if not repo.object_path(tree, "dirtree").is_file():
            yield f"{tree}.dirtree"
            continue
        try:
            files, directories = objects.parse_dirtree(repo.read_object(tree, "dirtree"))
        except (BootcError, ValueError):
            continue  # found among the objects
        for _, checksum in files:
            if not os.path.lexists(repo.object_path(checksum.hex(), "file")):
                yield f"{checksum.hex()}.file"
        todo += [(inner.hex(), about.hex()) for _, inner, about in directories]


# --- deployments and boot entries -------------------------------------------------------------------------------------------


def _check_deployments(
    repo: Repo, sysroot: Sysroot, entries: Sequence[PresentEntry]
) -> Iterator[Finding | Counted]:
    present = state.deployments(sysroot, entries)
    for entry in entries:
        if not state.deployments(sysroot, [entry]):
            yield Finding("entry", entry.file, "boots a deployment that is not here", Cure.HAND)
        for problem in _check_boot_files(sysroot, entry):
            yield problem
    yield Counted("entry", len(entries))
    for name in sorted(_missing_references(repo, sysroot, present)):
        yield Finding("reference", f"ostree/repo/refs/heads/{name}", "missing")
    for one in present:
        try:
            state.load_origin(sysroot, one)
        except BootcError as problem:
            yield Finding("deployment", one.directory, _text(problem), Cure.HAND)
        for path, wrong in differences(repo, sysroot, one):
            yield Finding("deployment", f"{one.directory}/{printable(path)}", wrong)
    yield Counted("deployment", len(present))


def boot_files(sysroot: Sysroot, entry: PresentEntry) -> tuple[str, list[Path]] | None:
    """The checksum that kernel and initrd of an entry have by their directory's name, and where they are."""
    names = [name for key in ("linux", "initrd") for name in entry.all(key)]
    match = _BOOT_CHECKSUM.search(names[0]) if names else None
    if match is None:
        return None
    return match[1], [
        sysroot.path / "boot" / name.strip("/").removeprefix("boot/") for name in names
    ]


def _check_boot_files(sysroot: Sysroot, entry: PresentEntry) -> Iterator[Finding]:
    found = boot_files(sysroot, entry)
    if found is None:
        return
    lost = [path for path in found[1] if not path.is_file()]
    for path in lost:
        yield Finding("boot-file", str(path.relative_to(sysroot.path)), "missing")
    if not lost and digest_of(found[1]) != found[0]:
        names = " and ".join(path.name for path in found[1])
        where = found[1][0].parent.relative_to(sysroot.path)
        yield Finding("boot-file", str(where), f"the content of {names} is another")


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 over the files' contents in a row, in hex; what cannot be read adds nothing."""
    hasher = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while piece := file.read(limits.MIB):
                    hasher.update(piece)
        except OSError:
            continue
    return hasher.hexdigest()


def differences(repo: Repo, sysroot: Sysroot, present: Present) -> Iterator[tuple[str, str]]:
    """Where a checkout is not its commit: path and what is wrong, ``/etc`` apart, which is the administrator's."""
    root = sysroot.path / present.directory
    try:
        data = repo.read_commit(present.checksum)
    except BootcError:
        return
    todo = [("", data["tree"].hex())]
    while todo:
        path, tree = todo.pop()
        try:
            files, directories = objects.parse_dirtree(repo.read_object(tree, "dirtree"))
        except (BootcError, ValueError):
            continue
        for name, checksum in files:
            inner = f"{path}/{name}".lstrip("/")
            if wrong := _differs(root / inner, repo.object_path(checksum.hex(), "file")):
                yield inner, wrong
        for name, below, _ in directories:
            inner = f"{path}/{name}".lstrip("/")
            if not path and name == "var":
                continue  # all deployments share one
            if not (root / inner).is_dir() or (root / inner).is_symlink():
                yield inner, "no directory"
            else:
                todo.append((inner, below.hex()))


def _differs(path: Path, original: Path) -> str | None:
    try:
        found, wanted = path.lstat(), original.lstat()
    except FileNotFoundError:
        return None if not os.path.lexists(original) else "missing"
    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
        return None
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(wanted.st_mode):
        return "another type"
    if stat.S_ISLNK(found.st_mode):
        return None if path.readlink() == original.readlink() else "another target"
    if found.st_size != wanted.st_size or not filecmp.cmp(path, original, shallow=False):
        return "its content is another"
    if (found.st_mode, found.st_uid, found.st_gid) != (
        wanted.st_mode,
        wanted.st_uid,
        wanted.st_gid,
    ):
        return "another owner or mode"
    return None
