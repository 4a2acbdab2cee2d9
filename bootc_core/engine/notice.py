"""The notice of a staged deployment, ``Sysroot.staged_file``: its existence proves that the deployment is complete.

{"depl_id": ID, "finalization_locked": bool,             the original's two keys
 "bootc": {"digest": ..., "staged": {StagedDeployment}}}  ours

On the running host a backend's library may keep that itself (``BackendOffer.live_staging``), and its discard removes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bootc_core import limits
from bootc_core.engine.sysroots import Storage
from bootc_core.fs import atomic
from bootc_core.hooks.offers import LiveStaging
from bootc_core.models.image import StagedDeployment


@dataclass(frozen=True, slots=True)
class StagedNotice:
    """What is staged, whether it waits for ``--from-downloaded``, and the digest of its image's manifest."""

    staged: StagedDeployment
    locked: bool
    digest: str

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        value = {
            "depl_id": self.staged.deployment_id,
            "finalization_locked": self.locked,
            "bootc": {"digest": self.digest, "staged": self.staged.to_json()},
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _library(storage: Storage) -> LiveStaging | None:
    return storage.backend.offer.live_staging if storage.sysroot.live else None


def read_notice(storage: Storage) -> StagedNotice | None:
    """The notice of a staged deployment, or None if there is none or it is unreadable (then there is nothing staged)."""
    if (library := _library(storage)) is not None:
        found = library.read(storage.sysroot)
        return StagedNotice(*found) if found else None
    try:
        value = json.loads(storage.sysroot.staged_file.read_bytes()[: limits.SETTINGS_FILE_BYTES])
        extra = value["bootc"]
        return StagedNotice(
            StagedDeployment.from_json(extra["staged"]),
            value["finalization_locked"] is True,
            extra["digest"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_notice(storage: Storage, notice: StagedNotice) -> None:
    """Record ``notice``, durably."""
    if (library := _library(storage)) is not None:
        library.lock(storage.sysroot, notice.locked)
    else:
        atomic.write_file(storage.sysroot.staged_file, notice.to_bytes())


def drop_notice(storage: Storage, staged: StagedDeployment) -> None:
    """Remove the notice of ``staged``; another deployment's notice stays."""
    notice = read_notice(storage)
    if notice is None or notice.staged.deployment_id == staged.deployment_id:
        atomic.unlink(storage.sysroot.staged_file)
