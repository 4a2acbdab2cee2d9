"""Owners, special modes, attributes and devices that an ordinary user cannot set: kept in a file beside the tree.

    SYSROOT/bootc/owners.json
    {"version": 1, "entries": {"state/deploy/<id>/etc/shadow": {"gid": 42, "mode": 416, "disk_mode":
    384}}}

A path (relative to the sysroot, ``%XX`` for bytes that are not printable ASCII) without a record
belongs to root, with the mode and attributes that it has on disk: so the file is small, and what
the administrator adds by hand is root's. ``mode`` holds only while the mode on disk is still
``disk_mode``: a later ``chmod`` counts. Devices exist in the record only. One writer: whoever holds
the sysroot's lock.
"""

from __future__ import annotations

import base64
import binascii
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from bootc_core import limits
from bootc_core.errors import StorageError, printable
from bootc_core.fs import atomic

_SAFE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%") + " "
_VERSION: Final = 1
_ID_MAX: Final = 2**32 - 2


@dataclass(frozen=True, slots=True)
class Owner:
    """What a path would have if it could.

    Attributes:
        uid, gid: owner and group.
        mode: with file type for a device (which then has no file), else permission bits; None: as
            on disk.
        disk_mode: permission bits that were set on disk instead of ``mode``.
        rdev: device number of a device.
        xattrs: extended attributes in addition to those on disk, sorted by name.
    """

    uid: int = 0
    gid: int = 0
    mode: int | None = None
    disk_mode: int | None = None
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def is_device(self) -> bool:
        """Does it stand for a device node that is not on disk?"""
        return self.mode is not None and (stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode))

    def to_json(self) -> dict[str, Any]:
        """Only what differs from root's plain file."""
        value: dict[str, Any] = {}
        if self.uid:
            value["uid"] = self.uid
        if self.gid:
            value["gid"] = self.gid
        if self.mode is not None:
            value["mode"] = self.mode
        if self.disk_mode is not None:
            value["disk_mode"] = self.disk_mode
        if self.rdev:
            value["rdev"] = self.rdev
        if self.xattrs:
            value["xattrs"] = {
                quote_from_bytes(name, _SAFE): base64.b64encode(data).decode()
                for name, data in self.xattrs
            }
        return value

    @classmethod
    def from_json(cls, value: object) -> Owner:
        """The record in ``value``.

        Raises:
            ValueError, TypeError: it is none.
        """
        if not isinstance(value, dict):
            raise TypeError("a record that is no object")
        bounds = {
            "uid": _ID_MAX,
            "gid": _ID_MAX,
            "mode": 0o177777,
            "disk_mode": 0o7777,
            "rdev": 2**64,
        }
        numbers: dict[str, Any] = {}
        for key, item in value.items():
            if key == "xattrs":
                continue
            if key not in bounds:
                raise ValueError(f"unknown key {printable(key, 40)}")
            if type(item) is not int or not 0 <= item <= bounds[key]:
                raise ValueError(f"{key} is {printable(str(item), 40)}")
            numbers[key] = item
        attributes = value.get("xattrs", {})
        if not isinstance(attributes, dict):
            raise TypeError("xattrs is no object")
        pairs = []
        for name, text in attributes.items():
            if not isinstance(text, str):
                raise TypeError("the value of an attribute is no string")
            try:
                pairs.append((unquote_to_bytes(name), base64.b64decode(text, validate=True)))
            except binascii.Error:
                raise ValueError("the value of an attribute is no base64") from None
        return cls(**numbers, xattrs=tuple(sorted(pairs)))


class OwnerStore:
    """All records of a sysroot, in memory; ``save`` writes them."""

    def __init__(self, file: Path, entries: dict[bytes, Owner] | None = None) -> None:
        """Records that will be written to ``file``."""
        self.file = file
        self._entries = entries or {}
        self._changed = False

    @classmethod
    def load(cls, file: Path) -> OwnerStore:
        """The records in ``file``; none if it is missing.

        Raises:
            StorageError: it is not what ``save`` wrote, or cannot be read.
        """
        try:
            with atomic.mapped("read", file), file.open("rb") as stream:
                data = stream.read(limits.OWNERS_BYTES + 1)
        except StorageError as problem:
            if isinstance(problem.__cause__, FileNotFoundError):
                return cls(file)
            raise
        try:
            if len(data) > limits.OWNERS_BYTES:
                raise ValueError(f"more than {limits.OWNERS_BYTES} bytes")  # noqa: TRY301
            entries = _parse(data)
        except (ValueError, TypeError, RecursionError) as problem:
            raise StorageError(
                f"{file} is damaged",
                reference="bad-owners",
                found=printable(str(problem)),
                hint="restore it from a copy; without it the owners of /etc and /var are lost",
                catalogue="STATE",
            ) from None
        return cls(file, entries)

    def save(self) -> None:
        """Write the records, atomically and durably; nothing if none changed.

        Raises:
            StorageError: the old file is untouched.
        """
        if not self._changed:
            return
        document = {
            "version": _VERSION,
            "entries": {
                quote_from_bytes(path, _SAFE): owner.to_json()
                for path, owner in sorted(self._entries.items())
            },
        }
        atomic.write_file(self.file, json.dumps(document, separators=(",", ":")).encode() + b"\n")
        self._changed = False

    def get(self, path: bytes) -> Owner | None:
        """The record of ``path``, or None."""
        return self._entries.get(path)

    def set(self, path: bytes, owner: Owner) -> None:
        """Keep ``owner`` for ``path``; a plain file of root needs no record and gets none."""
        if owner == Owner():
            if self._entries.pop(path, None) is not None:
                self._changed = True
        elif self._entries.get(path) != owner:
            self._entries[path] = owner
            self._changed = True

    def clear(self, prefix: bytes) -> None:
        """Forget ``prefix`` and all below it."""
        below = prefix + b"/"
        gone = [path for path in self._entries if path == prefix or path.startswith(below)]
        for path in gone:
            del self._entries[path]
        self._changed = self._changed or bool(gone)

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, Owner]]:
        """Records of ``prefix`` (as ``b""``) and below it, paths relative to it."""
        below = prefix + b"/"
        for path, owner in self._entries.items():
            if path == prefix:
                yield b"", owner
            elif path.startswith(below):
                yield path[len(below) :], owner

    def below(self, prefix: bytes) -> OwnerView:
        """The records of one directory, with paths relative to it."""
        return OwnerView(self, prefix)


@dataclass(frozen=True, slots=True)
class OwnerView:
    """The records below one directory of the sysroot; changes go to the store."""

    store: OwnerStore
    prefix: bytes

    def _full(self, path: bytes) -> bytes:
        return self.prefix + b"/" + path if path else self.prefix

    def get(self, path: bytes) -> Owner | None:
        """The record of ``path`` (``b""`` is the directory itself), or None."""
        return self.store.get(self._full(path))

    def set(self, path: bytes, owner: Owner) -> None:
        """Keep ``owner`` for ``path``."""
        self.store.set(self._full(path), owner)

    def clear(self) -> None:
        """Forget the directory and all below it: before it is written anew."""
        self.store.clear(self.prefix)

    def devices(self) -> list[tuple[bytes, Owner]]:
        """Devices that exist in the records only."""
        return [(path, owner) for path, owner in self.store.items(self.prefix) if owner.is_device]


def _parse(data: bytes) -> dict[bytes, Owner]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            raise ValueError("a key appears twice")
        return value

    document = json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    if not isinstance(document, dict) or set(document) != {"version", "entries"}:
        raise TypeError("not a table of owners")
    if type(document["version"]) is not int or document["version"] != _VERSION:
        raise ValueError(f"version {printable(str(document['version']), 20)}")
    if not isinstance(document["entries"], dict):
        raise TypeError("entries is no object")
    return {
        unquote_to_bytes(path): Owner.from_json(value)
        for path, value in document["entries"].items()
    }
