"""What a storage backend does with a layer inside a worker process: the seam between the import pipeline and its backends.

The worker hashes, decompresses and splits the layer; the sink names content and writes it into the staging directory, and
recognises content that the host holds already before it is written. Calls come in the order of the tar:

    for every member:   raw(header bytes, extended headers included)
                        regular file, in memory:   file(entry, body)
                        regular file, large:       begin_file(entry); write(piece)*; end_file()
                        raw(padding)
    at the end:         raw(end blocks and padding); finish() -> JSON value

Nothing here may touch anything but the descriptors it was given. A sink runs without trio, pydantic and pluggy.
"""

from __future__ import annotations

from typing import Any, Protocol

from bootc_core.oci.tar import TarEntry


class Sink(Protocol):
    """One layer's destination. Constructed as ``Sink(staging_fd, options)``, options being the JSON value of the job.

    A class with ``sets_owners = True`` gives staged files their owners: its workers keep the capabilities for that.
    """

    wants_raw: bool  # False: raw() is never called

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes of the tar that are not file content."""

    def entry(self, entry: TarEntry) -> None:
        """A member without content: directory, link, device, FIFO, whiteout. Called after its ``raw``."""

    def file(self, entry: TarEntry, body: memoryview) -> None:
        """A regular file whose content is in memory; the view is valid during the call only."""

    def begin_file(self, entry: TarEntry) -> None:
        """A large regular file begins."""

    def write(self, piece: memoryview) -> None:
        """Its next bytes."""

    def end_file(self) -> None:
        """All its bytes were written."""

    # reuse(entry, name): optional. The content is that of the file with this name (slashes left out) in the directory
    # ``objects`` that the sink was given; called instead of ``file``, or right after ``begin_file``. The caller has read it.

    def finish(self) -> dict[str, Any]:
        """The layer is complete and its diffID matched; the answer goes to the parent (JSON values)."""

    def abort(self) -> None:
        """The layer failed; close descriptors. Staged files may stay, the parent removes them."""
