"""What can be computed again, kept below ``SYSROOT/bootc/cache`` so that it need not be: nothing here is ever needed.

    kernels.json         SHA-256 of kernels and initial RAM disks, by the names of their objects
    roots.json           the references from which everything in the repository is reachable (see ``gc``)
    layers/DIGEST        the members of a layer, by the digest of its splitstream (see ``members``)

A record that is missing, damaged or of another version counts as absent. Written without a sync: after a power cut the checksum of
a layer's members tells, and JSON that was cut off is none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bootc_core import limits
from bootc_core.errors import BootcError
from bootc_core.fs import atomic

if TYPE_CHECKING:
    from bootc_core.models.sysroot import Sysroot

DIRECTORY: Final = "cache"
LAYERS: Final = "layers"
_KERNELS: Final = "kernels.json"
_ROOTS: Final = "roots.json"
_VERSION: Final = 1
_SHA256: Final = re.compile("[0-9a-f]{64}")
_KERNELS_KEPT: Final = 8
_RECORD_BYTES: Final = 4 * limits.MIB


class Cache:
    """The records of one sysroot."""

    def __init__(self, sysroot: Sysroot) -> None:
        """Nothing is read or made yet."""
        self.path: Path = sysroot.state / DIRECTORY

    def _read(self, name: str) -> dict[str, Any]:
        try:
            with (self.path / name).open("rb") as file:
                value = json.loads(file.read(_RECORD_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) and value.get("version") == _VERSION else {}

    def _write(self, name: str, value: dict[str, Any]) -> None:
        try:
            atomic.mkdir(self.path.parent, 0o700)
            atomic.mkdir(self.path, 0o700)
            text = json.dumps({"version": _VERSION, **value}, sort_keys=True)
            atomic.write_file(self.path / name, text.encode(), sync=False)
        except BootcError:  # a full disk, say: the next run computes it again
            atomic.unlink(self.path / name)

    # --- kernels --------------------------------------------------------------------------------------------------

    def kernel(self, objects: Sequence[bytes]) -> tuple[list[str], str] | None:
        """SHA-256 in hex of each of ``objects`` and of all of them in a row, if they were hashed before."""
        found = self._read(_KERNELS).get(_key(objects))
        if not isinstance(found, list) or len(found) != len(objects) + 1:
            return None
        if not all(isinstance(text, str) and _SHA256.fullmatch(text) for text in found):
            return None
        return found[:-1], found[-1]

    def keep_kernel(self, objects: Sequence[bytes], own: Sequence[str], overall: str) -> None:
        """Remember the digests for ``kernel``."""
        known = self._read(_KERNELS)
        known.pop("version", None)
        key = _key(objects)
        value = [*own, overall]
        if known.get(key) == value:
            return
        for old in list(known)[: max(0, len(known) - _KERNELS_KEPT + 1)]:
            del known[old]
        self._write(_KERNELS, {**known, key: value})

    # --- roots ----------------------------------------------------------------------------------------------------

    def roots(self) -> set[str] | None:
        """The references that keep all there is in the repository; None if there may be more."""
        found = self._read(_ROOTS).get("roots")
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            return None
        return set(found)

    def forget_roots(self) -> None:
        """Before something is added to the repository that no reference keeps yet."""
        atomic.unlink(self.path / _ROOTS)

    def keep_roots(self, roots: Iterable[str]) -> None:
        """Say that the repository has nothing but what ``roots`` keep."""
        self._write(_ROOTS, {"roots": sorted(set(roots))})

    # --- layers ---------------------------------------------------------------------------------------------------

    def layer(self, digest: bytes) -> Path:
        """Where the members of a layer are, or would be."""
        return self.path / LAYERS / digest.hex()

    def members(self, digest: bytes) -> bytes:
        """The members of a layer; nothing if there are none."""
        try:
            return self.layer(digest).read_bytes()
        except OSError:
            return b""

    def keep_layer(self, digest: bytes, pieces: Iterable[bytes | bytearray]) -> None:
        """Remember the members of a layer."""
        try:
            self._make_layers()
            atomic.write_file(self.layer(digest), b"".join(pieces), sync=False)
        except BootcError:
            return

    def take_layer(self, digest: bytes, file: Path) -> None:
        """Remember the members of a layer that ``file`` has, if it is there; it is moved."""
        if not file.is_file():
            return
        try:
            self._make_layers()
            atomic.rename(file, self.layer(digest))
        except BootcError:
            return

    def _make_layers(self) -> None:
        for directory in (self.path.parent, self.path, self.path / LAYERS):
            atomic.mkdir(directory, 0o700)

    def prune(self, wanted: Sequence[bytes]) -> None:
        """Drop the members of layers that are not among ``wanted`` (digests of their splitstreams).

        Raises:
            StorageError: a file cannot be removed.
        """
        names = {digest.hex() for digest in wanted}
        try:
            present = os.listdir(self.path / LAYERS)
        except OSError:
            return
        for name in present:
            if name not in names:
                atomic.rmtree(self.path / LAYERS / name)


def _key(objects: Sequence[bytes]) -> str:
    return " ".join(name.hex() for name in objects)
