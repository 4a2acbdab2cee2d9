"""The three-way merge of ``/etc``: a pure plan over three trees, then a fresh directory.

    pristine   the booted image's /etc            pristine -> current: what was changed locally
    current    /etc as it is now                  result = new + local changes
    new        the new image's /etc

Rules (per path; only directories, regular files and symbolic links count):

    added       only in current: kept; an added directory and each of its descendants count
    modified    type, content, link target, owner, mode or an attribute differs: local always wins
    removed     only in pristine (the top of a removed subtree): stays removed
    readded     a directory that the new image lacks, with local changes inside: kept for them
    conflict    a directory locally where the new image newly has something else, or the reverse:
                refused, all named (where the image has not changed its mind, local wins)
    skipped     a device, FIFO, socket or mount point in current: noted, never copied

Anything else follows the new image. There is no merge of contents. ``security.selinux`` does not
count (labels belong to the new image's policy), nor do times. ``.updated`` is left out, so that
units with ``ConditionNeedsUpdate=`` run. Contents are compared only where everything else is equal,
streamed, in bounded memory.

The result is written beside and takes effect by the caller's rename: an interrupted merge leaves
nothing behind but a directory to remove. Trees are scanned and written by ``fs.trees``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bootc_core import limits
from bootc_core.errors import StorageError, printable
from bootc_core.fs.owners import OwnerView
from bootc_core.fs.trees import (
    LABEL,
    UPDATED,
    DiskTree,
    Entry,
    ImageTree,
    OpenFile,
    Tree,
    Written,
    check_tree,
    compared,
    populate,
    scan_directory,
    scan_tree,
    write_tree,
)

__all__ = [
    "UPDATED",
    "Conflict",
    "DiskTree",
    "Entry",
    "ImageTree",
    "MergePlan",
    "OpenFile",
    "Tree",
    "build_merged",
    "changes_text",
    "check_tree",
    "conflicts",
    "merged",
    "plan",
    "populate",
    "scan_directory",
    "scan_tree",
]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that cannot be merged, and why: one sentence for the administrator."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What differs locally, each list in byte order; paths are relative to ``/etc``, ``b""`` is itself."""

    added: tuple[bytes, ...] = ()
    modified: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    readded: tuple[bytes, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    skipped: tuple[bytes, ...] = ()

    def check(self) -> None:
        """Refuse a merge with conflicts.

        Raises:
            StorageError: naming the first ones.
        """
        if self.conflicts:
            reasons = [conflict.reason for conflict in self.conflicts[:8]]
            if len(self.conflicts) > 8:
                reasons.append(f"and {len(self.conflicts) - 8} more")
            raise StorageError(
                "Merge conflicts found in etc",
                reference="etc-conflict",
                found="; ".join(reasons),
                hint="move the local files in /etc away, or restore what the image has there",
                catalogue="STATE",
            )


def plan(pristine: Tree, current: Tree, new: Tree) -> MergePlan:
    """What was changed locally between ``pristine`` and ``current``, and how that fits ``new``.

    Contents of ``pristine`` and ``current`` are read where only they can tell a difference; nothing
    is written.

    Raises:
        StorageError, ContentError: as their ``open``.
    """
    old, now, then = pristine.entries, current.entries, new.entries
    added: list[bytes] = []
    modified: list[bytes] = []
    skipped: list[bytes] = []
    for path, entry in now.items():
        before = old.get(path)
        if not entry.counts:
            if before is None or before.kind != entry.kind:
                skipped.append(path)
        elif before is None or not before.counts:
            added.append(path)
        elif _is_modified(pristine, current, path):
            modified.append(path)
    removed = [
        path
        for path, entry in old.items()
        if path
        and entry.counts
        and not (path in now and (now[path].counts or now[path].kind == "m"))
        and _parent_is_directory(now, path)
    ]
    changed = set(added) | set(modified)
    clashes = ((path, _clash(old, now, then, path)) for path in sorted(changed))
    refused = [Conflict(path, reason) for path, reason in clashes if reason]
    readded: set[bytes] = set()
    for path in changed:
        parent = path
        while parent:
            parent = parent.rpartition(b"/")[0]
            if parent in changed or parent in readded:
                continue
            if parent not in then or then[parent].kind != "d":
                readded.add(parent)
    return MergePlan(
        tuple(sorted(added)),
        tuple(sorted(modified)),
        tuple(sorted(removed)),
        tuple(sorted(readded)),
        tuple(refused),
        tuple(sorted(skipped)),
    )


def conflicts(pristine: Tree, current: Tree, new: Tree) -> MergePlan:
    """The part of ``plan`` that could refuse the merge; few contents are read, most often none.

    Raises:
        StorageError, ContentError: as ``open`` of the trees.
    """
    old, now, then = pristine.entries, current.entries, new.entries
    found = []
    for path, entry in now.items():
        reason = _clash(old, now, then, path) if entry.counts else None
        if reason is None:
            continue
        before = old.get(path)
        if before is None or not before.counts or _is_modified(pristine, current, path):
            found.append(Conflict(path, reason))
    return MergePlan(conflicts=tuple(sorted(found, key=lambda conflict: conflict.path)))


def _clash(
    old: Mapping[bytes, Entry], now: Mapping[bytes, Entry], then: Mapping[bytes, Entry], path: bytes
) -> str | None:
    """Why a local change of ``path`` cannot be kept; None if it can."""
    after, before = then.get(path), old.get(path)
    if after is None or (after.kind == "d") == (now[path].kind == "d"):
        return None
    if before is not None and (before.kind == "d") == (after.kind == "d"):
        return None  # the image is as it was: the administrator replaced it, and local wins
    if now[path].kind == "d":
        return f"Directory '{printable(path)}' now defaults to a file in new etc"
    return f"File '{printable(path)}' now defaults to a directory in new etc"


def _is_modified(pristine: Tree, current: Tree, path: bytes) -> bool:
    """Is what both have at ``path`` different? Contents are read if all else is equal."""
    before, entry = pristine.entries[path], current.entries[path]
    if not entry.same_metadata(before):
        return True
    return entry.kind == "f" and not _same_content(pristine, current, path)


def _parent_is_directory(entries: Mapping[bytes, Entry], path: bytes) -> bool:
    parent = entries.get(path.rpartition(b"/")[0])
    return parent is not None and parent.kind == "d"


def _same_content(one: Tree, other: Tree, path: bytes) -> bool:
    with one.open(path) as first, other.open(path) as second:
        while True:
            left, right = _block(first), _block(second)
            if left != right:
                return False
            if not left:
                return True


def _block(stream: BinaryIO) -> bytes:
    """Exactly ``limits.CHUNK_BYTES``, or what is left: so that two streams are cut alike."""
    data = stream.read(limits.CHUNK_BYTES) or b""
    while len(data) < limits.CHUNK_BYTES:
        more = stream.read(limits.CHUNK_BYTES - len(data))
        if not more:
            break
        data += more
    return data


def merged(current: Tree, new: Tree, changes: MergePlan) -> dict[bytes, tuple[Tree, bytes, Entry]]:
    """The result as a table: path to the tree it comes from, the path there, and what to write. Pure.

    Raises:
        StorageError: ``changes`` has conflicts.
    """
    changes.check()
    local = {*changes.readded, *changes.added, *changes.modified}
    cut = {*changes.removed, *(path for path in local if current.entries[path].kind != "d")}
    result: dict[bytes, tuple[Tree, bytes, Entry]] = {}
    gone: set[bytes] = set()
    for path, entry in new.entries.items():  # parents first
        if path in cut or (path and path.rpartition(b"/")[0] in gone):
            gone.add(path)
        else:
            result[path] = (new, path, entry)
    for path in local:
        entry = _relabelled(current.entries[path], new.entries.get(path))
        result[path] = (current, path, entry)
    return dict(sorted(result.items(), key=lambda item: item[0].split(b"/")))


def _relabelled(entry: Entry, after: Entry | None) -> Entry:
    label = [pair for pair in after.xattrs if pair[0] == LABEL] if after is not None else []
    if not label:
        return entry
    return Entry(
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        mtime_ns=entry.mtime_ns,
        size=entry.size,
        target=entry.target,
        rdev=entry.rdev,
        xattrs=tuple(sorted([*compared(entry.xattrs), *label])),
        identity=entry.identity,
    )


def build_merged(
    target_dir: Path,
    current: Tree,
    new: Tree,
    changes: MergePlan,
    owners: OwnerView | None = None,
) -> Written:
    """Write the merged tree into the new directory ``target_dir``, which must not exist; what ``check_tree`` takes.

    The caller brings it to the medium (one ``syncfs``), saves the owners' store and renames the
    directory.

    Args:
        target_dir: a temporary name beside the final one.
        current: as given to ``plan``.
        new: as given to ``plan``.
        changes: the plan.
        owners: an ordinary user's records, of the directory's *final* path; they are written anew.

    Raises:
        StorageError: conflicts, no space, no permission; ``target_dir`` is to be removed by the
            caller.
    """
    return write_tree(target_dir, merged(current, new, changes), owners)


def changes_text(changes: MergePlan) -> Iterator[str]:
    """One line for each local change, as ``config-diff`` prints them, without colour."""
    for word, paths in (
        ("Added", changes.added),
        ("Modified", changes.modified),
        ("Removed", changes.removed),
    ):
        for path in paths:
            yield f'{word} "{printable(path)}"'
    for conflict in changes.conflicts:
        yield f"Unmergable {conflict.reason}"
