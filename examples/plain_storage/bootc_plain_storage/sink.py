"""Keeps a layer's archive as it is; runs in bootc's import processes, which hash and check every byte of it."""

from __future__ import annotations

import os
from typing import Any

from bootc_core.oci.tar import TarEntry

NAME = "layer.tar"


class ArchiveSink:
    """Writes all bytes of the archive into one file of the staging directory."""

    wants_raw = True

    def __init__(self, staging_fd: int, options: dict[str, Any]) -> None:
        del options
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(NAME, flags, 0o600, dir_fd=staging_fd), "wb", 1 << 20)

    def raw(self, data: bytes | memoryview) -> None:
        """Headers and padding."""
        self._file.write(data)

    def entry(self, entry: TarEntry) -> None:
        """Its header came already."""

    def file(self, entry: TarEntry, body: memoryview) -> None:
        """Content."""
        self._file.write(body)

    def begin_file(self, entry: TarEntry) -> None:
        """Its header came already."""

    def write(self, piece: memoryview) -> None:
        """Content."""
        self._file.write(piece)

    def end_file(self) -> None:
        """Nothing to do."""

    def finish(self) -> dict[str, Any]:
        """Close the file; the parent syncs it."""
        size = self._file.tell()
        self._file.close()
        return {"bytes": size, "objects_new": 1, "objects_known": 0}

    def abort(self) -> None:
        """Close the file."""
        self._file.close()

    @classmethod
    def recheck(cls, staging_fd: int, options: dict[str, Any], finished: dict[str, Any]) -> bool:
        """Is the file whole after a power cut? Its length does not tell; so it is fetched again."""
        del staging_fd, options, finished
        return False
