"""What a plugin offers, told once after loading: names to choose by, and read-only functions that are cheap and synchronous.

Actions are hooks; offers only answer "is this yours?" and "what is there?". They run in ``status``, which imports no trio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.models.boot import BootPlan, PresentEntry
    from bootc_core.models.context import Context
    from bootc_core.models.finding import Counted, Finding
    from bootc_core.models.host import HostStatus
    from bootc_core.models.image import FetchedImage, PolicyAnswer, StagedDeployment
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
class LiveStaging:
    """How a backend keeps what is staged on the running host, if its own library does that and finalizes it at shutdown.

    Attributes:
        read: what is staged, whether finalizing is locked, and the digest of its image's manifest; None: nothing, or nothing
            from an image.
        lock: locks finalizing (``--download-only``), or unlocks it.
    """

    read: Callable[[Sysroot], tuple[StagedDeployment, bool, str] | None]
    lock: Callable[[Sysroot, bool], None]


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
        only_bootloaders: those that a backend works with which makes its boot entries effective itself, the default first.
        extract: copies a file, link or directory of a deployment's image (sysroot, deployment, path) to a new place;
            False: it has none.
        etc: the writable ``/etc`` of a deployment.
        note_update: remembers the newest image that a reference was seen to name, for ``cachedUpdate`` in status. Called by
            ``upgrade --check``; a failure only warns.
        live_staging: where the backend's library keeps what is staged on the running host; None: in our own notice.
        check: everything that is not as it should be in the sysroot, as it is found, and what was looked at; changes nothing. Given
            the readable boot entries. Memory is bounded by the number of things, never by their size.
        finalize_unit: the systemd unit that finalizes at shutdown what is staged on the running host; None: the backend's own
            library sees to it.
        export: a deployed image (reference, manifest digest) as an image again, for ``bootc image copy``; raises BootcError.
    """

    name: str
    claims: Callable[[Sysroot], bool]
    read_host: Callable[[Sysroot, Sequence[PresentEntry]], HostStatus]
    tracked: Callable[[Sysroot, ImageReference], str | None]
    bootloader: Callable[[Sysroot], str | None]
    manifest: Callable[[Sysroot, str], bytes | None]
    only_bootloaders: tuple[str, ...] = ()
    note_update: Callable[[Sysroot, ImageReference, FetchedImage], None] | None = None
    live_staging: LiveStaging | None = None
    check: Callable[[Sysroot, Sequence[PresentEntry]], Iterator[Finding | Counted]] | None = None
    extract: Callable[[Sysroot, str, str, Path], bool] | None = None
    etc: Callable[[Sysroot, str], Path] | None = None
    finalize_unit: str | None = None
    export: Callable[[Sysroot, ImageReference, str], FetchedImage] | None = None


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
class TrustOffer:
    """What ``bootc trust`` asks of a signature policy. Rows are label and text, for people.

    Attributes:
        rules: which rules count for an image beneath a configuration root, without looking at the image.
        evidence: why a deployed image (state directory of the sysroot, digest) was accepted; empty: not known.
        recheck: today's answer about a deployed image, offline (configuration root, state directory, digest); None: it
            cannot be told any more.
        change: carries out ``permit-downgrade`` or ``pin`` (state directory, action, image, reason); says what was done.
        add: path and content of the files that make signatures of a repository count (configuration root, repository, options).
    """

    rules: Callable[[Path, ImageReference], Sequence[tuple[str, str]]]
    evidence: Callable[[Path, str], Sequence[tuple[str, str]]]
    recheck: Callable[[Path, Path, str], Awaitable[PolicyAnswer | None]]
    change: Callable[[Path, str, ImageReference | None, str], str]
    add: Callable[[Path, str, dict[str, str]], Sequence[tuple[Path, bytes]]]


@dataclass(frozen=True, slots=True)
class SiteHooksOffer:
    """Hooks that a site adds without a package, as ``bootc hooks`` and ``bootc plugins list --order`` show and rehearse them.

    Attributes:
        name: for messages.
        points: where they can be, in the order of a run.
        describe: lines of what runs at which point beneath a configuration root, what is masked, what is ignored.
        rehearse: runs the hooks of a point with this context (a dry run); per hook its name, how it ended, and whether that lets
            the run go on.
    """

    name: str
    points: tuple[str, ...]
    describe: Callable[[Path], Sequence[str]]
    rehearse: Callable[[Context, str], Awaitable[Sequence[tuple[str, str, bool]]]]


@dataclass(frozen=True, slots=True)
class PolicyOffer:
    """A signature policy whose ``bootc_verify`` is asked about every image; ``trust``: it answers ``bootc trust`` too."""

    name: str
    trust: TrustOffer | None = None
