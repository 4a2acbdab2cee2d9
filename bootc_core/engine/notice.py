"""The notice of a staged deployment (``models.notice``) in ``Sysroot.staged_file``.

On the running host a backend's library may keep that itself (``BackendOffer.live_staging``), and its discard removes it.
"""

from __future__ import annotations

from bootc_core import limits
from bootc_core.engine.sysroots import Storage
from bootc_core.fs import atomic
from bootc_core.hooks.offers import LiveStaging
from bootc_core.models.image import StagedDeployment
from bootc_core.models.notice import StagedNotice


def _library(storage: Storage) -> LiveStaging | None:
    return storage.backend.offer.live_staging if storage.sysroot.live else None


def read_notice(storage: Storage) -> StagedNotice | None:
    """The notice of a staged deployment, or None if there is none or it is unreadable (then there is nothing staged)."""
    if (library := _library(storage)) is not None:
        found = library.read(storage.sysroot)
        return StagedNotice(*found) if found else None
    try:
        data = storage.sysroot.staged_file.read_bytes()
    except OSError:
        return None
    return StagedNotice.parse(data[: limits.SETTINGS_FILE_BYTES])


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
