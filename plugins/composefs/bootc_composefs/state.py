"""Deployments of a composefs sysroot: what is recorded of them, and their slots in ``status``.

    state/deploy/ID/               ID = hex digest of the deployment's bootable image
        etc/                       writable /etc
        var                        -> ../../os/default/var, shared by all
        ID.origin                  where the image came from, below
    state/os/default/var
    bootc/owners.json              what an ordinary user could not set, see ``checkout``

The origin file is described in ``bootc_core.oci.origin``.

A directory ``state/deploy/ID`` exists only when it is complete: it is built under another name. Which deployments boot, and in
which order, is what the boot entries say, never what is here (bootc's composefs backend, sections 8.1 and 8.7).

``bootc status`` runs through this module: nothing heavy is imported.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_composefs import repository as repositories
from bootc_composefs.repository import Repository
from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootcError, ContentError, StorageError, printable
from bootc_core.fs import mounts
from bootc_core.host import overlay
from bootc_core.host.environment import running_deployment
from bootc_core.models.host import ComposefsInfo, Deployment, HostStatus, ImageStatus
from bootc_core.models.reference import ImageReference, SignedReference
from bootc_core.oci import origin as origins

if TYPE_CHECKING:
    from bootc_core.models.boot import PresentEntry
    from bootc_core.models.sysroot import Sysroot

NAME: Final = "composefs"
REPOSITORY: Final = "composefs"
DEPLOY: Final = "state/deploy"
VAR: Final = "state/os/default/var"
TEMPORARY: Final = ".bootc-tmp-"
_ID: Final = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{128})")
_DIGEST: Final = re.compile(r"sha(?:256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})")
_AT_REST: Final = (
    2  # places in the menu that a deployment keeps; a third one is half-made or about to go
)


def load_origin(sysroot: Sysroot, deployment_id: str) -> origins.Origin:
    """The origin of a deployment.

    Raises:
        StorageError: missing or damaged.
    """
    path = deployment_path(sysroot, deployment_id) / f"{deployment_id}.origin"
    try:
        with path.open("rb") as file:
            return origins.parse(file.read(limits.SETTINGS_FILE_BYTES))
    except OSError as problem:
        raise StorageError(
            f"deployment {deployment_id[:12]} has no readable origin",
            reference="bad-origin",
            found=problem.strerror,
            catalogue="STATE",
        ) from None


def deployment_path(sysroot: Sysroot, deployment_id: str) -> Path:
    """The state directory of a deployment."""
    if not _ID.fullmatch(deployment_id):
        raise StorageError(
            "not the name of a deployment",
            reference="bad-deployment",
            found=printable(deployment_id, 80),
            catalogue="STATE",
        )
    return sysroot.path / DEPLOY / deployment_id


def existing(sysroot: Sysroot) -> list[str]:
    """Ids of all state directories, booting or not, sorted."""
    try:
        return sorted(name for name in os.listdir(sysroot.path / DEPLOY) if _ID.fullmatch(name))
    except OSError:
        return []


# --- the boot menu --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slot:
    """A boot entry of this backend: the deployment it boots, whether fs-verity is optional, its place if it tells one."""

    deployment_id: str
    optional: bool
    order: int | None
    entry: PresentEntry

    @property
    def at_rest(self) -> bool:
        """Is it one that a finished run leaves? Not what an interrupted switch wrote or was about to delete."""
        return self.order is None or self.order < _AT_REST


def slots(entries: Sequence[PresentEntry]) -> list[Slot]:
    """The entries that boot a composefs deployment, in menu order."""
    found = []
    for entry in entries:
        deployment_id = bls.deployment_of(entry)
        if deployment_id is None or not _ID.fullmatch(deployment_id):
            continue
        order = bls.order_of(entry)
        optional = f"composefs=?{deployment_id}" in " ".join(entry.all("options")).split()
        found.append(Slot(deployment_id, optional, order[1] if order else None, entry))
    return found


def present_slots(sysroot: Sysroot) -> list[Slot]:
    """As ``slots``, read from the boot partition.

    Raises:
        BootError: it cannot be read.
    """
    return slots(bls.read_entries(sysroot.boot_dir))


def booted(sysroot: Sysroot, present: Sequence[Slot]) -> Slot | None:
    """The deployment whose ``/etc`` counts: the running one, offline the one that boots next."""
    if sysroot.live:
        running = running_deployment()
        return next((slot for slot in present if slot.deployment_id == running), None)
    return present[0] if present else None


@dataclass(frozen=True, slots=True)
class Staged:
    """The notice of a staged deployment: which, and whether it waits for ``--from-downloaded``."""

    deployment_id: str
    locked: bool


def read_staged(sysroot: Sysroot) -> Staged | None:
    """The notice, or None if there is none, or it is garbage."""
    try:
        with sysroot.staged_file.open("rb") as file:
            value = json.loads(file.read(limits.SETTINGS_FILE_BYTES))
        deployment_id, locked = value["depl_id"], value.get("finalization_locked") is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(deployment_id, str) or not _ID.fullmatch(deployment_id):
        return None
    return Staged(deployment_id, locked)


# --- status -----------------------------------------------------------------------------------------------------------------


def claims(sysroot: Sysroot) -> bool:
    """Is there a composefs repository, or the beginning of one that a killed run left? Never raises."""
    path = sysroot.path / REPOSITORY
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            return False
        return repositories.exists(path) or repositories.is_unfinished(path)
    except OSError:
        return False


def read_host(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> HostStatus:
    """Status from the boot entries, the origins, and the images' documents in the repository.

    What cannot be read is left out with a note. Of a repository that this version does not understand the origins are shown,
    which name image and digest; going back to what is there works, too.
    """
    present = slots(entries)
    staged = read_staged(sysroot)
    notes: list[str] = []
    current = booted(sysroot, present)
    if not repositories.exists(sysroot.path / REPOSITORY):
        return HostStatus()
    with ExitStack() as stack:
        repository: Repository | None = None
        try:
            opened = Repository.open(sysroot.path / REPOSITORY, lock=False)
            repository = stack.enter_context(opened)
        except StorageError as problem:
            notes.append(f"{problem.message}: {problem.found or 'unreadable'}")

        def describe(deployment_id: str, optional: bool, locked: bool = False) -> Deployment | None:
            try:
                return _deployment(repository, sysroot, deployment_id, optional, locked, notes)
            except (BootcError, OSError) as problem:
                message = getattr(problem, "message", None) or str(problem)
                notes.append(f"deployment {deployment_id[:12]} is left out: {message}")
                return None

        now = describe(current.deployment_id, current.optional) if current else None
        candidates = []
        seen = {current.deployment_id} if current else set()
        for slot in present:
            if slot.deployment_id in seen or (
                staged and slot.deployment_id == staged.deployment_id
            ):
                continue
            seen.add(slot.deployment_id)
            if not slot.at_rest:
                notes.append(
                    f"the boot entry of {slot.deployment_id[:12]} is left from an interrupted run"
                )
            elif entry := describe(slot.deployment_id, slot.optional):
                candidates.append(entry)
        waiting = None
        if staged and not (current and staged.deployment_id == current.deployment_id):
            optional = repository is None or not repository.secure
            waiting = describe(staged.deployment_id, optional, staged.locked)
    return HostStatus(
        staged=waiting,
        booted=now,
        rollback=candidates[0] if candidates else None,
        other=tuple(candidates[1:]),
        rollback_queued=bool(
            current and present and present[0].deployment_id != current.deployment_id
        ),
        usr_overlay=overlay.present(mounts.table()) if sysroot.live else None,
        read_only=_read_only(sysroot),
        notes=tuple(notes),
    )


def _read_only(sysroot: Sysroot) -> bool:
    # A live sysroot is mounted read-only for everybody on purpose; its medium is what counts.
    if sysroot.live:
        return sysroot.read_only
    return bool(os.statvfs(sysroot.path).f_flag & os.ST_RDONLY)


def _deployment(
    repository: Repository | None,
    sysroot: Sysroot,
    deployment_id: str,
    optional: bool,
    locked: bool,
    notes: list[str],
) -> Deployment:
    origin = load_origin(sysroot, deployment_id)
    image = None
    if origin.reference and origin.manifest_digest:
        try:
            image = _image_status(repository, origin.reference, origin.manifest_digest)
        except BootcError as problem:
            # what it follows is known all the same, and an upgrade or a repair needs just that
            notes.append(f"documents of deployment {deployment_id[:12]}: {problem.message}")
            image = _image_status(None, origin.reference, origin.manifest_digest)
    return Deployment(
        image=image,
        download_only=locked,
        composefs=ComposefsInfo(
            verity=deployment_id,
            boot_type="Uki" if origin.boot_type == "uki" else "Bls",
            bootloader="grub" if bootloader(sysroot) == "grub" else "systemd",
            boot_digest=origin.boot_digest,
            missing_verity_allowed=optional,
        ),
        accepted=origin.acceptance,
        evidence=origin.evidence,
        signature_mode=origin.signature,
    )


def describe(repository: Repository, sysroot: Sysroot, deployment_id: str) -> Deployment | None:
    """What is recorded of a deployment, whether or not an entry boots it; None: its origin is damaged."""
    try:
        return _deployment(repository, sysroot, deployment_id, not repository.secure, False, [])
    except BootcError:
        return None


def document(repository: Repository, stream: str, limit: int) -> bytes:
    """The JSON document that a stream stands for, checked.

    Raises:
        StorageError: there is no such stream, or something is missing or damaged.
    """
    found = repository.resolve(f"streams/{stream}")
    if found is None:
        raise StorageError(
            f"{stream} is not in the composefs repository",
            reference="missing-object",
            catalogue="STATE",
        )
    return repository.read(_only_object(repository.read(found), repository), limit)


def _only_object(data: bytes, repository: Repository) -> bytes:
    """The one object of a document's splitstream, found without decompressing anything (``status`` imports no zstd)."""
    width = repository.digest_bytes
    info = (
        int.from_bytes(data[16:24], "little")
        if data[:11] == b"SplitStream"
        else int.from_bytes(data[:8], "little")
    )
    start = int.from_bytes(data[info + 16 : info + 24], "little")
    end = int.from_bytes(data[info + 24 : info + 32], "little")
    if end - start != width or end > len(data):
        raise ContentError(
            "a splitstream of the repository is damaged",
            reference="bad-splitstream",
            found=f"{max(0, end - start) // width} objects instead of one document",
            catalogue="INT",
        )
    return data[start:end]


def _image_status(
    repository: Repository | None, reference: SignedReference, manifest_digest: str
) -> ImageStatus:
    if repository is None:
        return origins.image_status(reference, manifest_digest, {}, {"architecture": "unknown"})
    manifest = origins.document(
        document(repository, f"oci-manifest-{manifest_digest}", limits.MANIFEST_BYTES)
    )
    config_digest = str((manifest.get("config") or {}).get("digest"))
    if not _DIGEST.fullmatch(config_digest):
        raise StorageError(
            "a manifest names no configuration", reference="bad-document", catalogue="INT"
        )
    config = origins.document(
        document(repository, f"oci-config-{config_digest}", limits.CONFIG_BYTES)
    )
    return origins.image_status(reference, manifest_digest, manifest, config)


def tracked(sysroot: Sysroot, reference: ImageReference) -> str | None:
    """What ``reference`` named when the deployment that boots next (or is staged) was fetched; None if it follows another."""
    try:
        present = present_slots(sysroot)
        staged = read_staged(sysroot)
        current = booted(sysroot, present)
        for found in (staged, current):
            if found is None:
                continue
            origin = load_origin(sysroot, found.deployment_id)
            if origin.reference and origin.reference.image == reference:
                return origin.tag_digest
    except BootcError:
        return None
    return None


def bootloader(sysroot: Sysroot) -> str | None:
    """Which bootloader the deployments were made for, as their entries tell; None if there are none."""
    try:
        present = present_slots(sysroot)
    except BootcError:
        return None
    for slot in present:
        path = slot.entry.get("linux") or slot.entry.get("efi") or slot.entry.get("uki") or ""
        if path.startswith("/EFI/"):
            return "systemd-boot"
        if path.startswith(("/boot/", "/bootc_")):
            return "grub"
    return None


def manifest(sysroot: Sysroot, digest: str) -> bytes | None:
    """The raw manifest of a deployed image, or None."""
    if not _DIGEST.fullmatch(digest):
        return None
    try:
        with Repository.open(sysroot.path / REPOSITORY, lock=False) as repository:
            return document(repository, f"oci-manifest-{digest}", limits.MANIFEST_BYTES)
    except BootcError:
        return None
