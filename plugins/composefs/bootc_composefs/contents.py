"""Contents of an image's files, for those who read them: settings, policies, what is copied into ``/etc`` and ``/var``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import BinaryIO, Final

from bootc_composefs.erofs_read import read_subtree
from bootc_composefs.repository import Repository, file_digest
from bootc_core import limits
from bootc_core.errors import StorageError
from bootc_core.models.tree import Node

_WHOLE_BYTES: Final = 16 * limits.MIB  # files up to here are read at once


class Contents:
    """Regular files of images in a repository; every byte is checked before it is handed out."""

    def __init__(self, repository: Repository) -> None:
        """Read from ``repository``, and from what is staged for it."""
        self._repository = repository

    def read(self, node: Node) -> bytes:
        """All of it, for files that are read in memory.

        Raises:
            StorageError: missing or damaged.
        """
        if node.object is None:
            return node.inline or b""
        return self._repository.read(node.object, limits.GIB)

    def open(self, node: Node) -> BinaryIO:
        """A stream; large files are hashed first, not held.

        Raises:
            StorageError: missing or damaged.
        """
        if node.object is None or node.size <= _WHOLE_BYTES:
            return io.BytesIO(self.read(node))
        if (
            not self._repository.secure
            and file_digest(self._repository, node.object) != node.object
        ):
            self._repository.read(node.object)  # raises with the details
        return os.fdopen(self._repository.open_object(node.object), "rb", buffering=0)


def image_subtrees(
    repository: Repository, deployment_id: str, paths: Iterable[str]
) -> list[Node | None]:
    """Directories of a deployment's image, in the order of ``paths``; None for one that it has not. The image is read once.

    Raises:
        StorageError: the image is missing or damaged.
        ContentError: it is damaged.
    """
    digest = repository.digest(deployment_id)
    if digest is None:
        raise StorageError(
            f"deployment {deployment_id[:12]} is not of this repository",
            reference="bad-deployment",
            expected=f"a digest of {repository.algorithm}",
            catalogue="STATE",
        )
    image = repository.read(digest)
    return [read_subtree(image, path.encode()) for path in paths]
