"""What a plugin offers, told once after loading: names to choose by, and read-only functions that are cheap and synchronous.

Actions are hooks; offers only answer "is this yours?" and "what is there?". They run in ``status``, which imports no trio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.models.boot import BootPlan, PresentEntry
    from bootc_core.models.host import HostStatus
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot

Section: TypeAlias = tuple[str, Sequence[tuple[str, str, str]]]


@dataclass(frozen=True, slots=True)
class TransportOffer:
    """The transports whose references the plugin's ``bootc_resolve`` and ``bootc_fetch`` take.

    Attributes:
        name: for messages.
        transports: values of ``models.reference.Transport``, e.g. ``("registry",)``.
        describe: what the plugin's own settings say beneath a configuration root, for ``bootc config show``: sections with
            rows of key, value and file (empty: the default). Never a secret.
    """

    name: str
    transports: tuple[str, ...]
    describe: Callable[[Path], Sequence[Section]] | None = None


@dataclass(frozen=True, slots=True)
class BackendOffer:
    """A storage backend.

    Attributes:
        name: for ``--backend`` and messages.
        claims: does this sysroot hold the backend's deployments? Never raises for foreign content.
        read_host: status of the sysroot from its own records and the boot entries that the bootloader reads
            (first boots next). Offline, the entry that boots next fills ``booted``.
        tracked: digest that the tracked reference had when the deployment that boots next was fetched (the index's
            where there is one), or None: what ``--check`` compares.
        bootloader: the bootloader recorded with the deployments, or None.
        manifest: the raw manifest of a deployed image by its digest, or None: for the difference of layers.
        only_bootloader: the one bootloader that a backend works with which makes its boot entries effective itself.
        note_update: remembers the newest image that a reference was seen to name, for ``cachedUpdate`` in status. Called by
            ``upgrade --check``; a failure only warns.
    """

    name: str
    claims: Callable[[Sysroot], bool]
    read_host: Callable[[Sysroot, Sequence[PresentEntry]], HostStatus]
    tracked: Callable[[Sysroot, ImageReference], str | None]
    bootloader: Callable[[Sysroot], str | None]
    manifest: Callable[[Sysroot, str], bytes | None]
    only_bootloader: str | None = None
    note_update: Callable[[Sysroot, ImageReference, FetchedImage], None] | None = None


@dataclass(frozen=True, slots=True)
class BootloaderOffer:
    """A bootloader.

    Attributes:
        name: for configuration, ``--bootloader`` and status.
        read_entries: the entries on the boot partition, in menu order, first boots next. Damaged ones are left out
            and reported through ``warn``.
        preflight: raises ``BootError`` or ``StorageError`` if the plan cannot be made effective (space, names, a pinned
            foreign default); called at the end of staging, before anything is written.
    """

    name: str
    read_entries: Callable[[Sysroot, Callable[[str], None]], Sequence[PresentEntry]]
    preflight: Callable[[Sysroot, BootPlan], None]


@dataclass(frozen=True, slots=True)
class PolicyOffer:
    """A signature policy whose ``bootc_verify`` is asked about every image."""

    name: str
