"""What is deployed, read from the sysroot's files: for ``status``, which loads no libostree.

boot/loader -> loader.{0,1}
boot/loader/entries/ostree-N[-STATEROOT].conf    the highest ``version`` boots first;
    options … ostree=/ostree/boot.V/STATEROOT/BOOTCSUM/SERIAL
ostree/boot.V/STATEROOT/BOOTCSUM/SERIAL -> ../../../deploy/STATEROOT/deploy/COMMIT.DEPLOYSERIAL
ostree/deploy/STATEROOT/deploy/COMMIT.DEPLOYSERIAL[.origin]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootcError, printable
from bootc_core.models.host import Deployment, HostStatus, OstreeInfo
from bootc_core.oci import origin as origins

if TYPE_CHECKING:
    from bootc_core.models.boot import PresentEntry
    from bootc_core.models.host import ImageStatus
    from bootc_core.models.image import FetchedImage
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot

STATEROOT: Final = "default"
_IMAGE_KEYS: Final = (
    "ostree.manifest-digest",
    "ostree.manifest",
    "ostree.container.image-config",
)
_CACHED_KEYS: Final = (
    "ostree-ext.cached.manifest-digest",
    "ostree-ext.cached.manifest",
    "ostree-ext.cached.config",
)


@dataclass(frozen=True, slots=True)
class Present:
    """A deployment that a boot entry names."""

    stateroot: str
    checksum: str
    serial: int
    options: str

    @property
    def directory(self) -> str:
        """Relative to the sysroot."""
        return f"ostree/deploy/{self.stateroot}/deploy/{self.checksum}.{self.serial}"


def claims(sysroot: Sysroot) -> bool:
    """Is there an ostree repository?"""
    return (sysroot.path / "ostree/repo/config").is_file()


def read_entries(sysroot: Sysroot, warn: Callable[[str], None]) -> list[PresentEntry]:
    """Libostree's boot entries, first boots next: the highest ``version`` of those it wrote."""
    directory = sysroot.path / "boot/loader/entries"
    found: list[tuple[int, PresentEntry]] = []
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    for name in names[: limits.BOOT_ENTRIES]:
        if not (name.startswith("ostree-") and name.endswith(".conf")):
            continue
        try:
            entry = bls.parse(f"loader/entries/{name}", bls.read_file(directory / name))
            found.append((int(entry.get("version") or ""), entry))
        except BootcError as problem:
            warn(problem.message)
        except ValueError:
            warn(f"boot entry {printable(name)} has no version number")
    return [entry for _, entry in sorted(found, key=lambda item: -item[0])]


def _resolve(sysroot: Sysroot, entry: PresentEntry) -> Present | None:
    options = entry.get("options") or ""
    link = next((word[7:] for word in options.split() if word.startswith("ostree=")), "")
    parts = link.split("/")
    if len(parts) != 6 or parts[1] != "ostree" or ".." in parts:
        return None
    try:
        target = (sysroot.path / link.lstrip("/")).readlink()
    except OSError:
        return None
    checksum, _, serial = target.name.rpartition(".")
    if len(checksum) != 64 or not serial.isdigit():
        return None
    return Present(parts[3], checksum, int(serial), options)


def deployments(sysroot: Sysroot, entries: Sequence[PresentEntry] | None = None) -> list[Present]:
    """The deployments that boot, in boot order; entries that lead nowhere are left out."""
    found = read_entries(sysroot, lambda message: None) if entries is None else entries
    return [present for entry in found if (present := _resolve(sysroot, entry)) is not None]


def staged_commit(sysroot: Sysroot) -> str | None:
    """The commit that is staged, or None."""
    import json

    try:
        notice = json.loads(sysroot.staged_file.read_bytes()[: limits.SETTINGS_FILE_BYTES])
        checksum = str(notice["depl_id"]).partition(".")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return checksum if len(checksum) == 64 else None


def _origin_bytes(sysroot: Sysroot, present: Present) -> bytes:
    path = sysroot.path / f"{present.directory}.origin"
    try:
        with path.open("rb") as file:
            return file.read(limits.SETTINGS_FILE_BYTES)
    except OSError as problem:
        from bootc_core.fs.atomic import storage_error

        raise storage_error(problem, "read the origin", path) from None


def load_origin(sysroot: Sysroot, present: Present) -> origins.Origin:
    """The origin of a deployment.

    Raises:
        StorageError: missing or damaged.
    """
    return origins.parse(_origin_bytes(sysroot, present))


def key_file_value(data: bytes, group: str, key: str) -> str | None:
    """A value in a key file, or None."""
    inside = False
    for line in data.decode("utf-8", "replace").splitlines():
        text = line.strip()
        if text.startswith("["):
            inside = text == f"[{group}]"
        elif inside and text.partition("=")[0].strip() == key:
            return text.partition("=")[2].strip()
    return None


def refspec(sysroot: Sysroot, present: Present) -> str | None:
    """The ref, ``[REMOTE:]BRANCH``, that a deployment follows which is not from an image; None for one that is."""
    data = _origin_bytes(sysroot, present)
    if key_file_value(data, "origin", "container-image-reference"):
        return None
    return key_file_value(data, "origin", "refspec")


def _image(
    origin: origins.Origin, metadata: dict[str, Any], keys: tuple[str, str, str] = _IMAGE_KEYS
) -> ImageStatus | None:
    """What a commit's metadata say of the image; None if they say nothing of any."""
    digest, manifest, config = (metadata.get(key) for key in keys)
    if origin.reference is None or origin.incompatible or not isinstance(digest, str):
        return None
    return origins.image_status(
        origin.reference,
        digest,
        origins.document(str(manifest or "{}").encode()),
        # earlier versions of the original left "null" here
        {} if config in {None, "null"} else origins.document(str(config).encode()),
    )


def _describe(sysroot: Sysroot, present: Present) -> Deployment:
    from bootc_ostree.repo import Repo

    data = _origin_bytes(sysroot, present)
    origin = origins.parse(data)
    repo = Repo(sysroot.path)
    detached = {
        key: value for key, (_, value) in (repo.read_detached(present.checksum) or {}).items()
    }
    return Deployment(
        image=_image(origin, repo.read_commit(present.checksum)["metadata"]),
        cached_update=_image(origin, detached, _CACHED_KEYS),
        incompatible=origin.incompatible,
        pinned=key_file_value(data, "libostree-transient", "pinned") == "true",
        ostree=OstreeInfo(present.stateroot, present.checksum, present.serial),
        accepted=origin.acceptance,
        evidence=origin.evidence,
        signature_mode=origin.signature,
    )


def note_update(sysroot: Sysroot, reference: ImageReference, image: FetchedImage) -> None:
    """Remember the newest image seen beside the deployment that follows ``reference``, for ``status`` (parity reference, 7.6).

    Raises:
        StorageError: it cannot be written.
    """
    from bootc_ostree.repo import Repo

    repo = Repo(sysroot.path)
    for present in deployments(sysroot)[:1]:
        origin = load_origin(sysroot, present)
        metadata = repo.read_commit(present.checksum)["metadata"]
        if (
            origin.reference is None
            or origin.reference.image != reference
            or metadata.get(_IMAGE_KEYS[0]) == image.digest
        ):
            return
        values = (
            image.digest,
            image.manifest_document.raw.decode("utf-8"),
            image.config_document.raw.decode("utf-8"),
        )
        kept = repo.read_detached(present.checksum)
        if kept is not None:  # signatures of others may be in there
            noted = {key: ("s", value) for key, value in zip(_CACHED_KEYS, values, strict=True)}
            repo.write_detached(present.checksum, {**kept, **noted})


def read_host(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> HostStatus:
    """Slots by boot order: the first is booted, the next of the same stateroot is the rollback."""
    notes: list[str] = []
    found: list[tuple[Present, Deployment]] = []
    for present in deployments(sysroot, entries):
        try:
            found.append((present, _describe(sysroot, present)))
        except BootcError as problem:
            notes.append(f"deployment {present.checksum[:12]}.{present.serial}: {problem.message}")
    if not found:
        return HostStatus(notes=tuple(notes))
    first = found[0][0].stateroot
    same = [entry for present, entry in found if present.stateroot == first]
    others = [entry for present, entry in found if present.stateroot != first]
    staged = _staged(sysroot)
    if staged is not None and staged.deployment_id == same[0].deployment_id:
        staged = None  # it boots already; the run that switched was killed before it took the notice away
    return HostStatus(
        staged=staged,
        booted=same[0],
        rollback=same[1] if len(same) > 1 else None,
        other=(*same[2:], *others),
        read_only=not sysroot.live and bool(os.statvfs(sysroot.path).f_flag & os.ST_RDONLY),
        notes=tuple(notes),
    )


def _staged(sysroot: Sysroot) -> Deployment | None:
    import json

    from bootc_ostree.repo import Repo

    try:
        notice = json.loads(sysroot.staged_file.read_bytes()[: limits.SETTINGS_FILE_BYTES])
        checksum, _, serial = str(notice["depl_id"]).rpartition(".")
        details = notice["bootc"]["staged"]["details"]
        origin = origins.parse(str(details["origin"]).encode())
        return Deployment(
            image=_image(origin, Repo(sysroot.path).read_commit(checksum)["metadata"]),
            download_only=notice["finalization_locked"] is True,
            ostree=OstreeInfo(str(details["stateroot"]), checksum, int(serial)),
            accepted=origin.acceptance,
            evidence=origin.evidence,
            signature_mode=origin.signature,
        )
    except (OSError, ValueError, KeyError, TypeError, BootcError):
        return None


def tracked(sysroot: Sysroot, reference: ImageReference) -> str | None:
    """What ``reference`` named when the deployment that boots next was fetched; None if it follows another."""
    try:
        present = deployments(sysroot)
        origin = load_origin(sysroot, present[0]) if present else None
    except BootcError:
        return None
    if origin is None or origin.reference is None or origin.reference.image != reference:
        return None
    return origin.tag_digest


def manifest(sysroot: Sysroot, digest: str) -> bytes | None:
    """The raw manifest of a deployed image, or None."""
    from bootc_ostree.repo import Repo

    repo = Repo(sysroot.path)
    for present in deployments(sysroot):
        try:
            metadata = repo.read_commit(present.checksum)["metadata"]
        except BootcError:
            continue
        if metadata.get("ostree.manifest-digest") == digest:
            return str(metadata.get("ostree.manifest", "")).encode() or None
    return None
