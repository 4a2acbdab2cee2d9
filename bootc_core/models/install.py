"""What installing a host needs beyond an upgrade: where it goes, what is asked for, and what the engine does for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from bootc_core.models.context import Installation, SignatureMode
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot


@dataclass(frozen=True, slots=True)
class BootTarget:
    """Where a bootloader's own programs and settings go.

    Attributes:
        esp: the EFI system partition, mounted, or a directory that is copied there afterwards; None: there is none.
        boot: directory with kernels and entries; the ESP itself for loaders that live there.
        boot_uuid: of the file system that holds ``boot``.
        prefix: of ``boot`` in that file system: ``/boot``, or empty where it is its top.
        disk: whole disk, for what is written in front of all partitions; None: there is none, or it is not to be touched.
        generic: for machines that are not known: nothing goes to this machine's firmware.
        extract: copies a file, link or directory of the image (path, new place); False: it has none.
    """

    esp: Path | None
    boot: Path
    boot_uuid: str
    prefix: str
    disk: str | None
    generic: bool
    extract: Callable[[str, Path], bool]


@dataclass(frozen=True, slots=True)
class InstallRequest:
    """A fresh sysroot, mounted, and what shall be deployed there.

    Attributes:
        sysroot: empty but for ``boot``.
        source: the image.
        verify: how the source has to be accepted.
        installation: see there.
        backend: name of the storage backend; None: as configured.
        bootloader: name of the bootloader.
        foreign: the sysroot may hold other things.
        target: makes the bootloader's target once the image's directories can be read; None: no bootloader is installed.
        quiet: no progress bars.
    """

    sysroot: Sysroot
    source: ImageReference
    verify: SignatureMode
    installation: Installation
    backend: str | None
    bootloader: str
    target: Callable[[Callable[[str, Path], bool]], BootTarget] | None
    foreign: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """What was deployed.

    Attributes:
        deployment_id: the backend's name for it.
        digest: of the image.
        version: of the image, if it says.
        labels: of the image.
        etc: the deployment's writable ``/etc``.
        extract: copies a file, link or directory of the image (path, new place); False: it has none.
    """

    deployment_id: str
    digest: str
    version: str | None
    labels: dict[str, str]
    etc: Path
    extract: Callable[[str, Path], bool]


class Services(Protocol):
    """What a plugin's command may ask of the program."""

    def check(self, source: ImageReference, verify: SignatureMode, sysroot: Sysroot) -> None:
        """Fetch an image's documents and ask all signature policies; nothing is written.

        Raises:
            BootcError: the source does not deliver, or the image is not accepted.
        """

    def install(self, request: InstallRequest) -> Installed:
        """Fetch, verify and deploy an image in a fresh sysroot, and install its bootloader.

        Raises:
            BootcError: as for ``switch``; the sysroot may hold parts then.
        """


@dataclass(frozen=True, slots=True)
class CommandOffer:
    """A command of the command line.

    Attributes:
        name: the word after ``bootc``.
        help: one line.
        fill: adds options and actions to the command's parser.
        run: carries it out with what was parsed and ``Services``; the exit status.
    """

    name: str
    help: str
    fill: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Services], int]
