"""``meta.json`` of a composefs repository: which hash, which image formats, which features (composefs formats, section 5.1).

    {"version": 1, "algorithm": "fsverity-sha512-12",
     "features": {"compatible": [], "read-only-compatible": ["v1_erofs"], "incompatible": []},
     "erofs_formats": {"default": 1}}

Written once, never changed. A repository is secure if this very file has fs-verity. Older repositories have none; their
objects' names tell the hash.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.errors import StorageError, printable
from bootc_core.fs import atomic, verity

NAME: Final = "meta.json"
_FEATURES: Final = frozenset({"v1_erofs"})
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Meta:
    """What a repository is.

    Attributes:
        algorithm: ``sha256`` or ``sha512``.
        formats: versions of EROFS images to be made, the default one first.
        writable: False if only newer programs may write.
        secure: every object has fs-verity.
    """

    algorithm: str
    formats: tuple[int, ...] = (1,)
    writable: bool = True
    secure: bool = False


def state_error(message: str, found: str, hint: str | None = None) -> StorageError:
    """The error for a repository that this program cannot use."""
    return StorageError(
        message, reference="bad-repository", found=found, hint=hint, catalogue="STATE"
    )


def to_bytes(algorithm: str = "sha512", default: int = 1, extra: tuple[int, ...] = ()) -> bytes:
    """The file of a new repository, byte for byte as the reference tools write it."""
    formats: dict[str, Any] = {"default": default}
    if extra:
        formats["extra"] = sorted(extra)
    value = {
        "version": 1,
        "algorithm": f"fsverity-{algorithm}-12",
        "features": {
            "compatible": [],
            "read-only-compatible": ["v1_erofs"] if default == 1 else [],
            "incompatible": [],
        },
        "erofs_formats": formats,
    }
    return (json.dumps(value, indent=2) + "\n").encode()


def parse(data: bytes) -> Meta:
    """What the file says; ``secure`` is not in it.

    Raises:
        StorageError: damaged, or of a newer version than this program understands.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise _damaged(str(problem)) from None
    if not isinstance(value, dict):
        raise _damaged("no object")
    if value.get("version") != 1:
        raise state_error(
            "the composefs repository is of a newer version",
            f"version {printable(str(value.get('version')), 40)}",
            "use the program that wrote it, or a newer release of this one",
        )
    match = re.fullmatch(r"fsverity-(sha256|sha512)-12", str(value.get("algorithm")))
    if match is None:
        raise state_error(
            "the composefs repository uses an unknown digest",
            printable(str(value.get("algorithm")), 80),
        )
    features = value.get("features")
    incompatible = _names(features, "incompatible")
    if incompatible:
        raise state_error(
            "the composefs repository needs features that this program lacks",
            printable(", ".join(incompatible)),
        )
    read_only = _names(features, "read-only-compatible")
    return Meta(
        match[1],
        _formats(value.get("erofs_formats"), "v1_erofs" in read_only),
        set(read_only) <= _FEATURES,
    )


def _damaged(found: str) -> StorageError:
    return state_error("the composefs repository's meta.json is damaged", printable(found))


def _names(features: object, key: str) -> list[str]:
    if features is None:
        return []
    names = features.get(key) or [] if isinstance(features, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(f"features: {key}")
    return names


def _formats(value: object, v1: bool) -> tuple[int, ...]:
    if value is None or value == {"default": 2}:
        return (1,) if v1 else (2,)
    extra = value.get("extra", []) if isinstance(value, dict) else None
    order = (
        [value.get("default"), *extra]
        if isinstance(value, dict) and isinstance(extra, list)
        else [None]
    )
    known = [number for number in order if type(number) is int and 0 <= number <= 2]
    if len(known) != len(order):
        raise state_error(
            "the composefs repository uses an unknown image format", printable(str(value))
        )
    return tuple(dict.fromkeys(known))


def load(path: Path) -> Meta | None:
    """What the repository at ``path`` says of itself; None if it has no ``meta.json``.

    Raises:
        StorageError: unreadable, damaged or newer.
    """
    try:
        descriptor = os.open(path / NAME, _OPEN)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise atomic.storage_error(problem, "read", path / NAME) from problem
    with os.fdopen(descriptor, "rb") as file:
        found = parse(file.read(limits.SETTINGS_FILE_BYTES))
        secure = verity.measure(descriptor) is not None
    return Meta(found.algorithm, found.formats, found.writable, secure)


def infer(path: Path) -> Meta:
    """What a repository without ``meta.json`` must be, from the name of any object (section 5.2).

    Raises:
        StorageError: there are no objects, so this is no repository.
    """
    try:
        for folder in sorted(os.listdir(path / "objects")):
            if not re.fullmatch("[0-9a-f]{2}", folder):
                continue
            for name in sorted(os.listdir(path / "objects" / folder)):
                algorithm = verity.ALGORITHM_OF_LENGTH.get(len(name) // 2 + 1)
                if algorithm and len(name) % 2 == 0 and re.fullmatch("[0-9a-f]+", name):
                    descriptor = os.open(path / "objects" / folder / name, _OPEN)
                    try:
                        return Meta(algorithm, secure=verity.measure(descriptor) is not None)
                    finally:
                        os.close(descriptor)
    except OSError as problem:
        raise state_error(
            "there is no composefs repository", f"{path}: {problem.strerror}"
        ) from None
    raise state_error(
        "there is no composefs repository",
        f"{path} has neither meta.json nor objects",
        "start from an empty sysroot",
    )


def write(path: Path, algorithm: str, *, secure: bool) -> None:
    """Make the repository at ``path`` one of ``algorithm``; the last step of its creation.

    Raises:
        StorageError: it could not be written.
    """
    atomic.write_file(path / NAME, to_bytes(algorithm), mode=_MODE)
    if secure:
        descriptor = os.open(path / NAME, _OPEN)
        try:
            verity.enable(descriptor, algorithm)
        finally:
            os.close(descriptor)
