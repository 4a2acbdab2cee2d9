"""What was asked for: flags over settings over defaults (parity reference, 6.1 to 6.3)."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.errors import ConfigError, UnsupportedEnvironmentError, UsageError, printable
from bootc_core.models.context import Installation, SignatureMode
from bootc_core.models.kargs import CommandLine
from bootc_core.models.reference import ImageReference, Transport
from bootc_install import config as configs
from bootc_install.config import InstallConfig

_KEY: Final = re.compile(
    rb"(?:^|[ \t])(?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+[ \t]+[A-Za-z0-9+/]+=*(?:[ \t]|$)"
)
LOADERS: Final = {"systemd": "systemd-boot", "grub": "grub", "none": "none"}
"""Bootloaders as the command line calls them, and as plugins do."""


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that does not depend on the disk.

    Attributes:
        source: what is installed.
        verify: how it has to be accepted.
        target: what is followed.
        signature: how updates have to be accepted.
        config: the settings.
        backend: storage backend.
        bootloader: name of the plugin's bootloader.
        chosen: the bootloader was asked for, not found out.
        stateroot: see ``Installation``.
        removed, added: kernel arguments.
        authorized_keys: content of the file, or None.
        generic: for any machine.
        missing_verity: may be booted without fs-verity.
        bound_images: ``stored``, ``pull`` or ``skip``.
        selinux: the image's labels count when it runs.
        fetch_check: see whether the target can be fetched.
        config_root: where policies and settings come from.
    """

    source: ImageReference
    verify: SignatureMode
    target: ImageReference
    signature: SignatureMode
    config: InstallConfig
    backend: str
    bootloader: str
    chosen: bool
    stateroot: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    authorized_keys: bytes | None
    generic: bool
    missing_verity: bool
    bound_images: str
    selinux: bool
    fetch_check: bool
    config_root: Path

    def installation(self, root_arguments: tuple[str, ...]) -> Installation:
        """For the engine; ``root_arguments`` say where the root is."""
        return Installation(
            target=str(self.target),
            signature=self.signature,
            stateroot=self.stateroot,
            arguments=(*root_arguments, *(self.config.kargs or ())),
            removed=self.removed,
            added=self.added,
        )


def gather(arguments: argparse.Namespace) -> Options:
    """Put flags and settings together.

    Raises:
        UsageError: flags that contradict each other or make no sense.
        ConfigError: the settings are malformed.
        UnsupportedEnvironmentError: the source is not given and cannot be found out.
    """
    from bootc_install import container

    if os.geteuid() != 0:
        raise UnsupportedEnvironmentError(
            "this command must be run as root",
            reference="needs-root",
            hint="in a container: podman run --privileged",
        )
    root = arguments.config_root or Path("/")
    config = configs.load(root)
    if config.block == ():
        raise ConfigError(
            "Empty block storage configuration in install configuration",
            reference="bad-install-config",
        )
    _check_flags(arguments)
    if arguments.source_imgref is None:
        source = container.running_image()
        verify = SignatureMode.INSECURE  # it runs: these very bytes do the installation
    else:
        source = ImageReference.parse(arguments.source_imgref)
        verify = SignatureMode.POLICY
    signature = SignatureMode.POLICY
    if arguments.target_no_signature_verification:
        verify = signature = SignatureMode.INSECURE
    elif arguments.enforce_container_sigpolicy or config.enforce:
        signature = SignatureMode.ENFORCE
    backend = arguments.backend or ("composefs" if arguments.composefs_backend else None)
    backend = backend or container.configured_backend(root)
    loader, chosen = _bootloader(arguments, config, backend)
    keys = _authorized_keys(arguments.root_ssh_authorized_keys)
    removed = (*(config.karg_deletes or ()), *arguments.karg_delete)
    added = (*arguments.karg, *(("selinux=0",) if arguments.disable_selinux else ()))
    for text in (*removed, *added):
        CommandLine.parse(text, "--karg")
    return Options(
        source=source,
        verify=verify,
        target=_target(arguments, source),
        signature=signature,
        config=config,
        backend=backend,
        bootloader=loader,
        chosen=chosen,
        stateroot=_stateroot(arguments.stateroot or config.stateroot or "default"),
        removed=removed,
        added=added,
        authorized_keys=keys,
        generic=arguments.generic_image or bool(getattr(arguments, "via_loopback", False)),
        missing_verity=arguments.allow_missing_verity,
        bound_images=arguments.bound_images,
        selinux=not arguments.disable_selinux,
        fetch_check=arguments.run_fetch_check,
        config_root=root,
    )


def _check_flags(arguments: argparse.Namespace) -> None:
    composefs = arguments.composefs_backend or arguments.backend in {None, "composefs"}
    for flag in ("allow_missing_verity", "uki_addon"):
        if getattr(arguments, flag) and not composefs:
            raise UsageError(f"--{flag.replace('_', '-')} requires --composefs-backend")
    if arguments.composefs_backend and arguments.backend not in {None, "composefs"}:
        raise UsageError("--composefs-backend and --backend contradict each other")
    if arguments.target_no_signature_verification and arguments.enforce_container_sigpolicy:
        raise UsageError(
            "--target-no-signature-verification and --enforce-container-sigpolicy contradict each other"
        )
    if arguments.uki_addon:
        raise UsageError(
            "--uki-addon needs an image with a unified kernel image",
            reference="no-uki",
            hint="images with vmlinuz and initramfs.img take --karg",
        )


def _target(arguments: argparse.Namespace, source: ImageReference) -> ImageReference:
    if arguments.target_imgref is not None:
        name = arguments.target_transport
        transport = Transport.REGISTRY if name == "docker" else Transport(name)
        return ImageReference.make(transport, arguments.target_imgref)
    if source.transport is Transport.CONTAINERS_STORAGE:
        return ImageReference.make(Transport.REGISTRY, source.name.partition("@")[0])
    return source


def _bootloader(
    arguments: argparse.Namespace, config: InstallConfig, backend: str
) -> tuple[str, bool]:
    """The plugin's name of the bootloader, and whether it was asked for."""
    asked = arguments.bootloader or config.bootloader
    name = asked or ("grub" if backend == "ostree" else "systemd")
    if name == "none" and backend == "composefs":
        raise UsageError("Bootloader set to none is not supported with the composefs backend")
    if name == "systemd" and backend == "ostree":
        raise UsageError(
            "the ostree backend cannot be booted by systemd-boot",
            expected="--bootloader grub or none",
            hint="ostree switches by a symbolic link, which the FAT file systems of systemd-boot lack",
        )
    if name not in LOADERS:
        raise UsageError(
            f"the bootloader {printable(name)} is not supported by this version",
            expected=", ".join(LOADERS),
        )
    return LOADERS[name], asked is not None


def _stateroot(name: str) -> str:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith(
        "."
    ):
        raise UsageError(
            "--stateroot takes a plain name",
            expected="letters, digits and . _ -",
            found=printable(name, 80),
        )
    return name


def _authorized_keys(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(limits.SETTINGS_FILE_BYTES + 1)
    except OSError as problem:
        raise UsageError(
            f"cannot read {printable(str(path))}", found=problem.strerror, reference="bad-keys-file"
        ) from None
    if len(data) > limits.SETTINGS_FILE_BYTES:
        raise UsageError(
            f"{printable(str(path))} is too large for a file of keys", reference="bad-keys-file"
        )
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith(b"#") and not _KEY.search(line):
            raise ConfigError(
                f"{printable(str(path))} is not a file of authorized keys",
                reference="bad-keys-file",
                expected="lines as in ~/.ssh/authorized_keys: a key type, then the key",
                found=f"line {number}: {printable(line, 60)}",
            )
    return data
