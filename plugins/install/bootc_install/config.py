"""Installation settings: drop-ins ``bootc/install/*.toml``, their merge, and their JSON form.

    [install]
    root-fs-type = "ext4"                     # older spelling of filesystem.root.type
    filesystem.root.type = "ext4"             # xfs, ext4, btrfs
    block = ["direct", "tpm2-luks"]           # what is allowed; the first is the default
    kargs = ["console=ttyS0"]                 # added up over files, as karg-deletes
    karg-deletes = ["quiet"]
    match-architectures = ["x86_64"]          # else the file is skipped
    ostree.bls-append-except-default = "..."
    stateroot = "default"
    root-mount-spec = "LABEL=root"            # empty: no root=
    boot-mount-spec = "UUID=..."
    bootupd.skip-boot-uuid = true
    bootloader = "systemd"                    # grub, grub-cc, systemd, none
    discoverable-partitions = true
    enforce-container-sigpolicy = false

Directories, a name in a later one masking the same in an earlier one: /usr/lib, /usr/local/lib, /etc, /run (parity reference, 6.1).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.boot import kargs_d
from bootc_core.errors import ConfigError, printable
from bootc_install.parser import BLOCK_SETUPS, BOOTLOADERS, FILESYSTEMS

DIRECTORIES: Final = tuple(
    f"{place}/bootc/install" for place in ("usr/lib", "usr/local/lib", "etc", "run")
)


@dataclass(frozen=True, slots=True)
class InstallConfig:
    """The merged settings; None: not set. See the module."""

    root_fs_type: str | None = None
    block: tuple[str, ...] | None = None
    kargs: tuple[str, ...] | None = None
    karg_deletes: tuple[str, ...] | None = None
    bls_append: str | None = None
    stateroot: str | None = None
    root_mount_spec: str | None = None
    boot_mount_spec: str | None = None
    skip_boot_uuid: bool | None = None
    bootloader: str | None = None
    discoverable: bool | None = None
    enforce: bool | None = None
    match_architectures: tuple[str, ...] | None = field(default=None, compare=False)


# Key of the table [install], or table and key: field, type
_WORDS: Final[dict[str, tuple[str, tuple[str, ...] | None]]] = {
    "root-fs-type": ("root_fs_type", FILESYSTEMS),
    "filesystem.root.type": ("root_fs_type", FILESYSTEMS),
    "stateroot": ("stateroot", None),
    "root-mount-spec": ("root_mount_spec", None),
    "boot-mount-spec": ("boot_mount_spec", None),
    "ostree.bls-append-except-default": ("bls_append", None),
    "bootloader": ("bootloader", BOOTLOADERS),
}
_LISTS: Final[dict[str, tuple[str, tuple[str, ...] | None]]] = {
    "block": ("block", BLOCK_SETUPS),
    "kargs": ("kargs", None),
    "karg-deletes": ("karg_deletes", None),
    "match-architectures": ("match_architectures", None),
}
_FLAGS: Final = {
    "bootupd.skip-boot-uuid": "skip_boot_uuid",
    "discoverable-partitions": "discoverable",
    "enforce-container-sigpolicy": "enforce",
}
_TABLES: Final = frozenset({"filesystem", "filesystem.root", "ostree", "bootupd"})
_APPENDED: Final = frozenset({"kargs", "karg_deletes"})


def parse(name: str, data: bytes) -> InstallConfig:
    """The settings in one file.

    Args:
        name: of the file, for errors.
        data: its bytes.

    Raises:
        ConfigError: no TOML, an unknown key, a wrong value.
    """

    def bad(found: str, expected: str | None = None) -> ConfigError:
        return ConfigError(
            f"{printable(name)} is not a valid file of installation settings",
            reference="bad-install-config",
            expected=expected,
            found=printable(found),
            hint="correct or mask the file; docs/install.md lists all keys",
        )

    if len(data) > limits.SETTINGS_FILE_BYTES:
        raise bad(f"more than {limits.SETTINGS_FILE_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise bad(str(problem)) from None
    values: dict[str, Any] = {}

    def read(table: dict[str, Any], prefix: str) -> None:
        for key, value in table.items():
            path = prefix + key
            if path in _TABLES and isinstance(value, dict):
                read(value, f"{path}.")
            elif path in _WORDS:
                target, allowed = _WORDS[path]
                if not isinstance(value, str) or (allowed and value not in allowed):
                    raise bad(f"{path} = {value}", " or ".join(allowed or ("a string",)))
                if path != "root-fs-type" or "filesystem" not in table:
                    values[target] = value
            elif path in _LISTS:
                target, allowed = _LISTS[path]
                if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                    raise bad(f"{path} = {value}", "a list of strings")
                if allowed and (other := [one for one in value if one not in allowed]):
                    raise bad(f"{path} has {other[0]}", " or ".join(allowed))
                values[target] = tuple(value)
            elif path in _FLAGS:
                if not isinstance(value, bool):
                    raise bad(f"{path} = {value}", "true or false")
                values[_FLAGS[path]] = value
            else:
                known = (*_WORDS, *_LISTS, *_FLAGS)
                raise bad(f"unknown key {path}", ", ".join(sorted(known)))

    for key, value in document.items():
        if key != "install" or not isinstance(value, dict):
            raise bad(f"unknown key {key}", "the table [install]")
        read(value, "")
    return InstallConfig(**values)


def merge(base: InstallConfig, over: InstallConfig) -> InstallConfig:
    """``over`` on top of ``base``: kernel arguments add up, everything else is replaced where it is set."""
    changes: dict[str, Any] = {}
    for one in fields(InstallConfig):
        value = getattr(over, one.name)
        if value is None:
            continue
        before = getattr(base, one.name)
        changes[one.name] = (before or ()) + value if one.name in _APPENDED else value
    return replace(base, **changes)


def load(root: Path, architecture: str | None = None) -> InstallConfig:
    """The merged settings beneath ``root``, for an architecture (as Rust spells it; default: this machine's).

    Raises:
        ConfigError: a file cannot be read or is not valid.
    """
    machine = architecture or kargs_d.architecture()
    found: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for path in (root / directory).glob("*.toml"):
            found[path.name] = path
    result = InstallConfig()
    for name in sorted(found):
        path = found[name]
        try:
            with path.open("rb") as file:
                data = file.read(limits.SETTINGS_FILE_BYTES + 1)
        except OSError as problem:
            raise ConfigError(
                f"{path} cannot be read",
                reference="bad-install-config",
                found=problem.strerror,
            ) from None
        one = parse(str(path), data)
        if one.match_architectures is None or machine in one.match_architectures:
            result = merge(result, replace(one, match_architectures=None))
    return result


def to_json(config: InstallConfig, *, everything: bool) -> str:
    """The original's canonical JSON: sorted keys, no blanks, nulls for what is not set.

    ``everything``: with kernel arguments, which external installers should not handle.
    """
    root = {"type": config.root_fs_type} if config.root_fs_type else None
    value: dict[str, Any] = {
        "block": list(config.block) if config.block is not None else None,
        "boot-mount-spec": config.boot_mount_spec,
        "bootloader": config.bootloader,
        "bootupd": None
        if config.skip_boot_uuid is None
        else {"skip-boot-uuid": config.skip_boot_uuid},
        "discoverable-partitions": config.discoverable,
        "enforce-container-sigpolicy": config.enforce,
        "filesystem": {"root": root} if root else None,
        "match-architectures": None,
        "ostree": None
        if config.bls_append is None
        else {"bls-append-except-default": config.bls_append},
        "root-fs-type": config.root_fs_type,
        "root-mount-spec": config.root_mount_spec,
        "stateroot": config.stateroot,
    }
    if everything:
        for key, words in (("kargs", config.kargs), ("karg-deletes", config.karg_deletes)):
            if words is not None:
                value[key] = list(words)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
