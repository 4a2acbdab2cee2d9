"""The notice of a staged deployment: its existence proves that the deployment is complete.

{"depl_id": ID, "finalization_locked": bool,             the original's two keys
 "bootc": {"digest": ..., "staged": {StagedDeployment}}}  ours
"""

from __future__ import annotations

import json
from dataclasses import dataclass

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

    @classmethod
    def parse(cls, data: bytes) -> StagedNotice | None:
        """The inverse; None if it is none."""
        try:
            value = json.loads(data)
            extra = value["bootc"]
            return cls(
                StagedDeployment.from_json(extra["staged"]),
                value["finalization_locked"] is True,
                extra["digest"],
            )
        except (ValueError, KeyError, TypeError):
            return None
