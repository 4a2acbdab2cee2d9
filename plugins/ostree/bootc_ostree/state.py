"""What is deployed, read from the sysroot's files: for ``status``, which loads no libostree.

boot/loader -> loader.{0,1}
boot/loader/entries/ostree-N[-STATEROOT].conf    the highest ``version`` boots first;
    options … ostree=/ostree/boot.V/STATEROOT/BOOTCSUM/SERIAL
ostree/boot.V/STATEROOT/BOOTCSUM/SERIAL -> ../../../deploy/STATEROOT/deploy/COMMIT.DEPLOYSERIAL
ostree/deploy/STATEROOT/deploy/COMMIT.DEPLOYSERIAL[.origin]

On the running host the entries are below /boot, and in /run is what only counts until the next boot:

/run/ostree-booted                               a{sv}: backing-root-device-inode (tt), of the booted deployment
/run/ostree/staged-deployment                    a{sv}: target and merge-deployment (a{sv}: name, osname, bootcsum), kargs, locked
/run/ostree/staged-deployment-locked             it is not finalized at shutdown
/run/ostree/deployment-state/COMMIT.SERIAL/      unlocked-development, unlocked-transient: overlays on /usr
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.models.host import Deployment, HostStatus, OstreeInfo
from bootc_core.oci import origin as origins
from bootc_ostree.variant import decode, encode

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.models.boot import PresentEntry
    from bootc_core.models.host import ImageStatus
    from bootc_core.models.image import FetchedImage, StagedDeployment
    from bootc_core.models.reference import ImageReference
    from bootc_core.models.sysroot import Sysroot

STATEROOT: Final = "default"
BOOTED: Final = Path("/run/ostree-booted")
STAGED: Final = Path("/run/ostree/staged-deployment")
STAGED_LOCKED: Final = Path("/run/ostree/staged-deployment-locked")
_OVERLAYS: Final = Path("/run/ostree/deployment-state")
_SOFT_REBOOT: Final = Path("/usr/lib/systemd/system/soft-reboot.target")
_SELINUX: Final = Path("/sys/fs/selinux/enforce")
_IMAGE_KEYS: Final = (
    "ostree.manifest-digest",
    "ostree.manifest",
    "ostree.container.image-config",
)
CACHED_KEYS: Final = (
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
    boot_checksum: str = ""  # over kernel and initramfs

    @property
    def name(self) -> str:
        """``CHECKSUM.SERIAL``."""
        return f"{self.checksum}.{self.serial}"

    @property
    def directory(self) -> str:
        """Relative to the sysroot."""
        return f"ostree/deploy/{self.stateroot}/deploy/{self.name}"


def read_entries(sysroot: Sysroot, warn: Callable[[str], None]) -> list[PresentEntry]:
    """Libostree's boot entries, first boots next: the highest ``version`` of those it wrote."""
    directory = sysroot.boot_dir / "loader/entries"
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
    return Present(parts[3], checksum, int(serial), options, parts[4])


def deployments(sysroot: Sysroot, entries: Sequence[PresentEntry] | None = None) -> list[Present]:
    """The deployments that boot, in boot order; entries that lead nowhere are left out."""
    found = read_entries(sysroot, lambda message: None) if entries is None else entries
    return [present for entry in found if (present := _resolve(sysroot, entry)) is not None]


def booted(sysroot: Sysroot, found: Sequence[Present]) -> Present | None:
    """The deployment that the running system is; offline the one that boots next."""
    if not sysroot.live:
        return found[0] if found else None
    root = Path("/").stat()
    wanted = (root.st_dev, root.st_ino)
    with contextlib.suppress(OSError, ValueError):
        for key, (kind, value) in decode("a{sv}", BOOTED.read_bytes()):
            if (key, kind) == ("backing-root-device-inode", "(tt)"):
                wanted = value
    for present in found:
        with contextlib.suppress(OSError):
            info = (sysroot.path / present.directory).stat()
            if (info.st_dev, info.st_ino) == wanted:
                return present
    return None


@dataclass(frozen=True, slots=True)
class Staged:
    """What libostree finalizes at the shutdown of the running host; ``locked``: or not."""

    present: Present
    locked: bool
    values: dict[str, tuple[str, Any]]  # of its file, all


def live_staged(sysroot: Sysroot) -> Staged | None:
    """What is staged on the running host, or None."""
    try:
        values = dict(decode("a{sv}", STAGED.read_bytes()[: limits.SETTINGS_FILE_BYTES]))
        target = dict(values["target"][1])
        checksum, _, serial = str(target["name"][1]).rpartition(".")
        kargs = " ".join(map(str, values["kargs"][1])) if "kargs" in values else ""
        stateroot, boot_checksum = str(target["osname"][1]), str(target["bootcsum"][1])
        present = Present(stateroot, checksum, int(serial), kargs, boot_checksum)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    if len(checksum) != 64 or not (sysroot.path / present.directory).is_dir():
        return None
    locked = bool(values.get("locked", ("b", 0))[1]) or STAGED_LOCKED.exists()
    return Staged(present, locked, values)


def lock_staged(sysroot: Sysroot, locked: bool) -> None:
    """Let what is staged on the running host be finalized at shutdown, or not: the key of newer versions, the file of all.

    Raises:
        StorageError: /run cannot be written.
    """
    from bootc_core.fs import atomic

    staged = live_staged(sysroot)
    if staged is None or staged.locked == locked:
        return
    if locked:
        atomic.write_file(STAGED_LOCKED, b"", sync=False)
    if "locked" in staged.values:
        values = {**staged.values, "locked": ("b", int(locked))}
        atomic.write_file(STAGED, encode("a{sv}", list(values.items())), sync=False)
    if not locked:
        atomic.unlink(STAGED_LOCKED)


def read_staged(sysroot: Sysroot) -> tuple[StagedDeployment, bool, str] | None:
    """See ``LiveStaging``."""
    from bootc_core.models.image import StagedDeployment
    from bootc_ostree.repo import Repo

    staged = live_staged(sysroot)
    if staged is None:
        return None
    present = staged.present
    try:
        metadata = Repo(sysroot.path).read_commit(present.checksum)["metadata"]
    except BootcError:
        return None
    digest = metadata.get(_IMAGE_KEYS[0])
    if not isinstance(digest, str):
        return None
    details = {"commit": present.checksum, "stateroot": present.stateroot}
    return StagedDeployment("ostree", present.name, details=details), staged.locked, digest


def directory(sysroot: Sysroot, name: str) -> Path:
    """The checkout of the deployment ``COMMIT.SERIAL``.

    Raises:
        StorageError: there is none.
    """
    for present in deployments(sysroot):
        if f"{present.checksum}.{present.serial}" == name:
            return sysroot.path / present.directory
    raise StorageError(
        f"deployment {printable(name, 16)} is not in the boot menu",
        reference="bad-deployment",
        catalogue="STATE",
    )


def staged_commit(sysroot: Sysroot) -> str | None:
    """The commit that is staged, or None."""
    import json

    if sysroot.live:
        staged = live_staged(sysroot)
        return staged.present.checksum if staged else None
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
        cached_update=_image(origin, detached, CACHED_KEYS),
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
    present = booted(sysroot, deployments(sysroot))
    if present is None:
        return
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
        noted = {key: ("s", value) for key, value in zip(CACHED_KEYS, values, strict=True)}
        repo.write_detached(present.checksum, {**kept, **noted})


def read_host(sysroot: Sysroot, entries: Sequence[PresentEntry]) -> HostStatus:
    """Slots (parity reference, 2.2): offline the first is booted, and the next of the same stateroot is the rollback.

    On the running host what runs is booted, and the first other one is the rollback; if that comes before what runs, it boots
    next.
    """
    notes: list[str] = []
    listed = deployments(sysroot, entries)
    running = booted(sysroot, listed)
    if running is None:
        return HostStatus(notes=("nothing that boots is what runs",) if listed else ())
    found: dict[Present, Deployment] = {}
    for present in listed:
        try:
            found[present] = _describe(sysroot, present)
            if sysroot.live:
                able = _soft_reboot(sysroot, running, present)
                found[present] = replace(found[present], soft_reboot_capable=able)
        except BootcError as problem:
            notes.append(f"deployment {present.checksum[:12]}.{present.serial}: {problem.message}")
    if running not in found and not sysroot.live:
        running = next(iter(found), None)
    if running is None or running not in found:
        return HostStatus(notes=tuple(notes))
    order = list(found)
    same = [one for one in order if one.stateroot == running.stateroot and one != running]
    others = [one for one in order if one.stateroot != running.stateroot]
    staged = _live_staged(sysroot, running) if sysroot.live else _staged(sysroot)
    if staged is not None and staged.deployment_id == running.name:
        staged = None  # it boots already; the run that switched was killed before it took the notice away
    return HostStatus(
        staged=staged,
        booted=found[running],
        rollback=found[same[0]] if same else None,
        other=tuple(found[one] for one in (*same[1:], *others)),
        rollback_queued=bool(same) and order.index(same[0]) < order.index(running),
        usr_overlay=_overlay(sysroot, running) if sysroot.live else None,
        read_only=not sysroot.live and bool(os.statvfs(sysroot.path).f_flag & os.ST_RDONLY),
        notes=tuple(notes),
    )


def _overlay(sysroot: Sysroot, running: Present) -> tuple[str, str] | None:
    """Access mode and persistence of a writable overlay on ``/usr``."""
    for name, meaning in (
        ("unlocked-development", ("readWrite", "transient")),
        ("unlocked-transient", ("readOnly", "transient")),
    ):
        if (_OVERLAYS / running.name / name).exists():
            return meaning
    if key_file_value(_origin_bytes(sysroot, running), "origin", "unlocked") == "hotfix":
        return ("readWrite", "persistent")
    return None


def _soft_reboot(sysroot: Sysroot, running: Present, target: Present) -> bool:
    """Would a restart of user space alone do (parity reference, 2.3)? Same kernel, arguments and SELinux policy."""

    def arguments(present: Present) -> list[str]:
        return [word for word in present.options.split() if not word.startswith("ostree=")]

    if (
        not _SOFT_REBOOT.exists()
        or running.boot_checksum != target.boot_checksum
        or (target.options and arguments(running) != arguments(target))
        or (_SELINUX.exists() and _policy(sysroot, running) != _policy(sysroot, target))
    ):
        return False
    from bootc_ostree.libostree import SOFT_REBOOT, SOFT_REBOOT_STAGED, at_least

    try:  # between these two versions it crashes on what has no "ostree=" yet
        return at_least(*SOFT_REBOOT_STAGED) or (
            at_least(*SOFT_REBOOT) and "ostree=" in target.options
        )
    except BootcError:
        return False


def _policy(sysroot: Sysroot, present: Present) -> bytes | None:
    """Digest of the SELinux policy that a deployment loads, or None."""
    import hashlib

    place = sysroot.path / present.directory
    for etc in (place / "etc", place / "usr/etc"):
        try:
            text = (etc / "selinux/config").read_bytes()[: limits.SETTINGS_FILE_BYTES]
        except OSError:
            continue
        for line in text.decode("utf-8", "replace").splitlines():
            name, _, kind = line.partition("=")
            if name.strip() == "SELINUXTYPE" and "/" not in kind:
                found = (etc / "selinux" / kind.strip() / "policy").glob("policy.*")
                versions = {
                    int(path.suffix[1:]): path for path in found if path.suffix[1:].isdigit()
                }
                if versions:
                    with versions[max(versions)].open("rb") as file:
                        return hashlib.file_digest(file, "sha256").digest()
        return None
    return None


def _live_staged(sysroot: Sysroot, running: Present) -> Deployment | None:
    staged = live_staged(sysroot)
    if staged is None:
        return None
    try:
        found = _describe(sysroot, staged.present)
    except BootcError:
        return None
    return replace(
        found,
        cached_update=None,
        pinned=False,
        download_only=staged.locked,
        soft_reboot_capable=_soft_reboot(sysroot, running, staged.present),
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
    staged = live_staged(sysroot) if sysroot.live else None
    try:
        present = staged.present if staged else booted(sysroot, deployments(sysroot))
        origin = load_origin(sysroot, present) if present else None
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
