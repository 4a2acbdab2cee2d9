"""What observers see, in order: one union, named ``<subject>.<past participle>``.

Progress may be merged for slow readers; all other events never are. Events report, they do not steer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base: ``name`` is the event's name, ``transaction`` the transaction it belongs to."""

    name: ClassVar[str] = ""
    mergeable: ClassVar[bool] = False
    transaction: str

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object, its name under ``event``."""
        return {"event": self.name, **asdict(self)}


@dataclass(frozen=True, slots=True)
class TransactionStarted(Event):
    """A command that changes the host has the lock."""

    name: ClassVar[str] = "transaction.started"
    operation: str
    target: str


@dataclass(frozen=True, slots=True)
class TransactionCompleted(Event):
    """It ended well. ``changed``: something will boot that did not before."""

    name: ClassVar[str] = "transaction.completed"
    changed: bool


@dataclass(frozen=True, slots=True)
class TransactionFailed(Event):
    """It ended with an error; the old state is untouched unless ``after_switch``."""

    name: ClassVar[str] = "transaction.failed"
    reference: str
    message: str
    after_switch: bool


@dataclass(frozen=True, slots=True)
class TransactionRecovered(Event):
    """What an interrupted earlier run left was cleared up."""

    name: ClassVar[str] = "transaction.recovered"
    interrupted: str
    action: str


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """A phase began."""

    name: ClassVar[str] = "phase.started"
    phase: str


@dataclass(frozen=True, slots=True)
class PhaseCompleted(Event):
    """A phase ended well."""

    name: ClassVar[str] = "phase.completed"
    phase: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PhaseFailed(Event):
    """A phase ended with an error."""

    name: ClassVar[str] = "phase.failed"
    phase: str
    reference: str
    message: str


@dataclass(frozen=True, slots=True)
class ImageResolved(Event):
    """The reference was resolved to a digest."""

    name: ClassVar[str] = "image.resolved"
    reference: str
    digest: str
    version: str | None
    layers: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class ImageVerified(Event):
    """The policies accepted the image."""

    name: ClassVar[str] = "image.verified"
    digest: str
    accepted_by: str
    reason: str


@dataclass(frozen=True, slots=True)
class LayersPlanned(Event):
    """What has to be fetched: layers and compressed bytes, present and missing."""

    name: ClassVar[str] = "layers.planned"
    layers_present: int
    layers_needed: int
    bytes_present: int
    bytes_needed: int


@dataclass(frozen=True, slots=True)
class BlobProgressed(Event):
    """Bytes of a layer arrived (compressed bytes so far)."""

    name: ClassVar[str] = "blob.progressed"
    mergeable: ClassVar[bool] = True
    digest: str
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class BlobCompleted(Event):
    """A layer was fetched, checked and split into objects."""

    name: ClassVar[str] = "blob.completed"
    digest: str
    bytes_total: int
    objects_new: int
    objects_known: int


@dataclass(frozen=True, slots=True)
class StepProgressed(Event):
    """A step of staging or finalizing began: ``step`` is its name (merging, writing, syncing, ...)."""

    name: ClassVar[str] = "step.progressed"
    step: str
    description: str


@dataclass(frozen=True, slots=True)
class DeploymentStaged(Event):
    """A complete deployment is on disk."""

    name: ClassVar[str] = "deployment.staged"
    deployment_id: str
    bytes_new: int


@dataclass(frozen=True, slots=True)
class BootSwitched(Event):
    """The point of no return: another deployment boots next."""

    name: ClassVar[str] = "boot.switched"
    deployment_id: str


@dataclass(frozen=True, slots=True)
class HoldOverridden(Event):
    """An administrator overrode a gate's hold; ``reason`` is his, ``hold`` the gate's."""

    name: ClassVar[str] = "hold.overridden"
    phase: str
    source: str
    hold: str
    until: str
    reason: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something is worth a line and did not fail the run."""

    name: ClassVar[str] = "run.warned"
    message: str
