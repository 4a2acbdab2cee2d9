"""Garbage collection: delete what no deployment needs, in an order that a power cut cannot turn against us.

    roots      links below images/refs and streams/refs, and the deployments' image ids
    image      marks itself and every object that its metacopy and redirect attributes name
    stream     marks itself, its objects, its named references; those that are streams themselves, recursively
    sweep      links to unmarked objects, then unmarked objects, then references that lead nowhere

Links go first: a stream that has a name must have all its objects. The caller holds the repository alone. What is recognised as
nobody's (a name that is no digest) is left alone, except for our own temporary names (composefs formats, section 8).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootc_composefs import repository as repo
from bootc_composefs.repository import Repository
from bootc_core.errors import BootcError, StorageError
from bootc_core.fs import atomic, verity

TAG_PREFIX: Final = "localhost/bootc-"
_TEMPORARY: Final = (repo.TEMPORARY, repo.LINK, ".bootc-tmp-")


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed."""

    objects: int = 0
    bytes: int = 0
    images: int = 0
    streams: int = 0


def deployment_tag(manifest_digest: str) -> str:
    """The tag that keeps a deployment's image alive."""
    return TAG_PREFIX + manifest_digest


def image_objects(data: bytes, algorithm: str) -> set[bytes]:
    """Every object that an image could refer to: all digests in its metacopy attributes, all paths in its redirects.

    Found by the attributes' encoding, without walking the tree. It may name more than the tree does, never less, and that is
    the safe side here.
    """
    entry = verity.ALGORITHMS[algorithm]
    width = re.escape(bytes((0, 4 + entry.length, 0, entry.id)))
    found = {
        match[1]
        for match in re.finditer(
            rb"overlay\.metacopy" + width + rb"(.{%d})" % entry.length, data, re.DOTALL
        )
    }
    paths = re.finditer(
        rb"overlay\.redirect/([0-9a-f]{2})/([0-9a-f]{%d})" % (2 * entry.length - 2), data
    )
    return found | {bytes.fromhex((match[1] + match[2]).decode()) for match in paths}


class _Marker:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.marked: set[bytes] = set()
        self._done: set[tuple[str, bytes]] = set()
        self._names: dict[bytes, list[str]] = {}
        for name, text in repo.links(repository.path / "streams"):
            digest = repository.target(text)
            if digest is not None:
                self._names.setdefault(digest, []).append(name)

    def image(self, digest: bytes) -> None:
        if ("image", digest) in self._done or self._repository.size(digest) is None:
            return
        self._done.add(("image", digest))
        self.marked.add(digest)
        self.marked |= image_objects(self._repository.read(digest), self._repository.algorithm)

    def stream(self, digest: bytes) -> None:
        """A damaged stream stops the collection: what it refers to is not known."""
        from bootc_composefs import splitstream

        todo = [digest]
        while todo:
            current = todo.pop()
            if ("stream", current) in self._done:
                continue
            self._done.add(("stream", current))
            if self._repository.size(current) is None:
                continue
            self.marked.add(current)
            stream = splitstream.parse(self._repository.read(current), self._repository.algorithm)
            self.marked.update(stream.object_refs)
            for reference in stream.named_refs().values():
                self.marked.add(reference)
                if reference in self._names:
                    todo.append(reference)

    def named(self, kind: str, name: str) -> None:
        digest = self._repository.resolve(f"{kind}/{name}")
        if digest is not None:
            (self.image if kind == "images" else self.stream)(digest)


def roots(repository: Repository, names: Iterable[str]) -> list[str]:
    """All from where ``collect`` starts, as text: references with what they lead to, and ``names``."""
    found = list(names)
    for kind in ("images", "streams"):
        refs = repository.path / kind / "refs"
        found += [
            f"{path.relative_to(repository.path)} {text}" for path, text in repo.all_refs(refs)
        ]
    return found


def streams(repository: Repository) -> list[bytes]:
    """Digests of all splitstreams that have a name."""
    found = (repository.target(text) for _, text in repo.links(repository.path / "streams"))
    return [digest for digest in found if digest is not None]


def mark(repository: Repository, names: Iterable[str]) -> set[bytes]:
    """Digests of all objects that are needed: by references, and by ``names`` (looked up among images and streams).

    Raises:
        StorageError, ContentError: something that is needed is damaged, so what it needs is unknown.
    """
    marker = _Marker(repository)
    for kind in ("images", "streams"):
        for path, text in repo.all_refs(repository.path / kind / "refs"):
            target = Path(os.path.normpath(path.parent / text))
            if target.parent == repository.path / kind:
                marker.named(kind, target.name)
        for name in names:
            marker.named(kind, name)
    return marker.marked


def collect(repository: Repository, names: Iterable[str]) -> Collected:
    """Delete everything that is not needed; see ``mark``. Interrupted, it leaves a valid repository with some garbage.

    Raises:
        StorageError: busy (``repository-busy``), damaged, or the file system fails.
    """
    with repository.exclusive():
        marked = mark(repository, tuple(names))
        images = _drop_links(repository, "images", marked)
        streams = _drop_links(repository, "streams", marked)
        objects, size = _sweep(repository, marked)
        for kind in ("images", "streams"):
            for path, _ in list(repo.all_refs(repository.path / kind / "refs")):
                if not path.exists():
                    atomic.unlink(path)
        for path in temporary(repository):
            atomic.unlink(path)
    return Collected(objects, size, images, streams)


def _drop_links(repository: Repository, kind: str, marked: set[bytes]) -> int:
    removed = 0
    for name, text in repo.links(repository.path / kind):
        if repository.target(text) not in marked:
            atomic.unlink(repository.path / kind / name)
            removed += 1
    return removed


def _sweep(repository: Repository, marked: set[bytes]) -> tuple[int, int]:
    removed = size = 0
    objects = f"{repository.path}/objects"
    for folder in sorted(os.listdir(objects)):
        if not re.fullmatch("[0-9a-f]{2}", folder):
            continue
        for name in os.listdir(f"{objects}/{folder}"):
            digest = repository.digest(folder + name)
            if digest is None or digest in marked:
                continue
            path = f"{objects}/{folder}/{name}"
            with atomic.mapped("look at", path):
                size += os.lstat(path).st_size
            atomic.unlink(path)
            removed += 1
    return removed, size


def temporary(repository: Repository) -> list[Path]:
    """What killed runs left under temporary names."""
    return [
        directory / name
        for directory in (repository.path, repository.path / "objects")
        for name in os.listdir(directory)
        if name.startswith(_TEMPORARY)
    ]


def retag(repository: Repository, manifests: Iterable[str]) -> None:
    """Give each deployed image its tag, and remove those of images that no deployment has; other tags stay.

    Raises:
        StorageError: a link cannot be changed.
    """
    wanted = {deployment_tag(digest): f"oci-manifest-{digest}" for digest in manifests}
    present = repository.tags()
    for tag, stream in wanted.items():
        if present.get(tag) != stream and repository.resolve(f"streams/{stream}") is not None:
            repository.tag(tag, stream)
    for tag in present:
        if tag.startswith(TAG_PREFIX) and tag not in wanted:
            repository.untag(tag)


def describe(problem: BootcError) -> StorageError:
    """The error of a collection that was given up: nothing was deleted that could be needed."""
    return StorageError(
        "old deployments cannot be cleaned up",
        reference="prune-failed",
        found=problem.message + (f" ({problem.found})" if problem.found else ""),
        hint=problem.hint,
        catalogue=problem.catalogue,
    )
