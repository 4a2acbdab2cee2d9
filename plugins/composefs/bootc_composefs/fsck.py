"""Checking a composefs repository: every problem, one line each, nothing changed.

Objects are what their names say; links resolve; references lead to entries; splitstreams parse, and what they refer to exists;
images parse, and their objects exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bootc_composefs.erofs_read import read_image
from bootc_composefs.repository import Repository, all_refs, file_digest
from bootc_composefs.splitstream import Splitstream
from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.models.tree import walk

_T = TypeVar("_T")


def check(repository: Repository) -> list[str]:
    """Every problem of the repository; empty if all is well."""
    problems: list[str] = []
    objects = set(_check_objects(repository, problems))
    for kind, examine in (("images", _check_image), ("streams", _check_stream)):
        with os.scandir(repository.path / kind) as listing:
            names = sorted((entry.name, entry.is_symlink()) for entry in listing)
        for name, is_link in names:
            if name == "refs":
                continue
            what = f"{kind}/{printable(name)}"
            digest = repository.resolve(f"{kind}/{name}") if is_link else None
            if digest is None or digest not in objects:
                problems.append(f"{what}: leads to no object")
                continue
            wanted = _attempt(problems, what, lambda: examine(repository, name, digest)) or set()  # noqa: B023
            problems += [
                f"{what}: object {lost.hex()[:16]}… is missing" for lost in sorted(wanted - objects)
            ]
        for path, target in all_refs(repository.path / kind / "refs"):
            resolved = Path(os.path.normpath(path.parent / target))
            if resolved.parent != repository.path / kind or not resolved.is_symlink():
                problems.append(f"{path.relative_to(repository.path)}: leads to no entry of {kind}")
    return problems


def _attempt(problems: list[str], what: str, action: Callable[[], _T]) -> _T | None:
    try:
        return action()
    except BootcError as problem:
        detail = f" ({problem.found})" if problem.found else ""
        problems.append(f"{what}: {problem.message}{detail}")
        return None


def _check_image(repository: Repository, name: str, digest: bytes) -> set[bytes]:
    """Objects that the image needs."""
    if digest.hex() != name:
        raise StorageError("leads to another object")
    root = read_image(repository.read(digest))
    return {node.object for _, node in walk(root) if node.object}


def _check_stream(repository: Repository, name: str, digest: bytes) -> set[bytes]:
    """Objects that the stream needs."""
    del digest
    stream = repository.stream(name)
    if stream is None:
        return set()
    stream.named_refs()
    wanted = {*stream.object_refs, *stream.stream_refs}
    if all(repository.size(reference) is not None for reference in stream.object_refs):
        _check_size(repository, stream)
    return wanted


def _check_size(repository: Repository, stream: Splitstream) -> None:
    sizes = [repository.size(digest) or 0 for digest in stream.object_refs]
    total = sum(sizes[chunk] if isinstance(chunk, int) else len(chunk) for chunk in stream.chunks())
    if total != stream.size:
        raise StorageError(
            "a splitstream has a wrong size", found=f"{total} bytes instead of {stream.size}"
        )


def _check_objects(repository: Repository, problems: list[str]) -> Iterator[bytes]:
    """Digests of the objects that are what they are called."""
    for folder in sorted(os.listdir(repository.path / "objects")):
        if not re.fullmatch("[0-9a-f]{2}", folder):
            problems.append(f"objects/{printable(folder)}: not a part of the repository")
            continue
        for name in sorted(os.listdir(repository.path / "objects" / folder)):
            what = f"objects/{folder}/{printable(name)}"
            digest = repository.digest(folder + name)
            if digest is None:
                problems.append(f"{what}: not the name of an object")
                continue
            found = _attempt(problems, what, lambda: file_digest(repository, digest))  # noqa: B023
            if found == digest:
                yield digest
            elif found is not None:
                problems.append(f"{what}: its content is another")
