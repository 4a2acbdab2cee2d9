"""The host as ``bootc status`` shows it: the BootcHost v1 document.

Plain dataclasses rather than pydantic models: ``status`` has 100 ms in all. The document's form is checked against the published
JSON schema by tests. Field names in JSON are camelCase; ``otherDeployments`` is left out when empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

BootOrder = Literal["default", "rollback"]


@dataclass(frozen=True, slots=True)
class HostImage:
    """An image reference in the document's form: name, transport (``registry``, ``oci``, ...), how signed.

    ``signature``: None (not verified), ``"containerPolicy"``, or the name of an ostree remote as ``("ostreeRemote", name)``.
    """

    image: str
    transport: str = "registry"
    signature: str | tuple[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The ``ImageReference`` object."""
        value: dict[str, Any] = {"image": self.image, "transport": self.transport}
        if isinstance(self.signature, tuple):
            value["signature"] = {self.signature[0]: self.signature[1]}
        elif self.signature is not None:
            value["signature"] = self.signature
        return value


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """What is known of a deployed image."""

    image: HostImage
    image_digest: str
    architecture: str
    version: str | None = None
    timestamp: str | None = None  # RFC 3339, UTC

    def to_json(self) -> dict[str, Any]:
        """The ``ImageStatus`` object."""
        return {
            "architecture": self.architecture,
            "image": self.image.to_json(),
            "imageDigest": self.image_digest,
            "timestamp": self.timestamp,
            "version": self.version,
        }


@dataclass(frozen=True, slots=True)
class OstreeInfo:
    """Where an ostree deployment is."""

    stateroot: str
    checksum: str
    deploy_serial: int


@dataclass(frozen=True, slots=True)
class ComposefsInfo:
    """What a composefs deployment is."""

    verity: str
    boot_type: Literal["Bls", "Uki"] = "Bls"
    bootloader: str = "systemd"
    boot_digest: str | None = None
    missing_verity_allowed: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """One ``BootEntry`` of the document, with how its image was accepted (our addition, not in the JSON)."""

    image: ImageStatus | None
    cached_update: ImageStatus | None = None
    incompatible: bool = False
    pinned: bool = False
    soft_reboot_capable: bool = False
    download_only: bool = False
    ostree: OstreeInfo | None = None
    composefs: ComposefsInfo | None = None
    accepted: str | None = None  # one line: which policy accepted it, by which rule
    evidence: tuple[tuple[str, str], ...] = ()  # what that was built on: who, which key, when
    signature_mode: str | None = None  # value of context.SignatureMode it was deployed with

    @property
    def deployment_id(self) -> str | None:
        """The storage backend's name for the deployment, as in ``StagedDeployment``."""
        if self.composefs is not None:
            return self.composefs.verity
        if self.ostree is not None:
            return f"{self.ostree.checksum}.{self.ostree.deploy_serial}"
        return None

    def to_json(self) -> dict[str, Any]:
        """The ``BootEntry`` object."""
        value: dict[str, Any] = {
            "cachedUpdate": self.cached_update.to_json() if self.cached_update else None,
            "composefs": None,
            "downloadOnly": self.download_only,
            "image": self.image.to_json() if self.image else None,
            "incompatible": self.incompatible,
            "ostree": None,
            "pinned": self.pinned,
            "softRebootCapable": self.soft_reboot_capable,
            "store": "ostreeContainer" if self.ostree else None,
        }
        if self.ostree:
            value["ostree"] = {
                "checksum": self.ostree.checksum,
                "deploySerial": self.ostree.deploy_serial,
                "stateroot": self.ostree.stateroot,
            }
        if self.composefs:
            value["composefs"] = {
                "bootDigest": self.composefs.boot_digest,
                "bootType": self.composefs.boot_type,
                "bootloader": self.composefs.bootloader,
                "missingVerityAllowed": self.composefs.missing_verity_allowed,
                "verity": self.composefs.verity,
            }
        return value


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The whole host. ``host_type`` is ``bootcHost`` when the booted deployment has an image."""

    staged: Deployment | None = None
    booted: Deployment | None = None
    rollback: Deployment | None = None
    other: tuple[Deployment, ...] = ()
    rollback_queued: bool = False
    usr_overlay: tuple[str, str] | None = None  # access mode, persistence
    read_only: bool = False
    failed_update: str | None = None  # the last update that did not work out, and why
    notes: tuple[str, ...] = field(default=())  # lines for people: what was left out and why

    @property
    def spec_image(self) -> HostImage | None:
        """The image that the host follows: the staged one's, else the booted one's."""
        for slot in (self.staged, self.booted):
            if slot and slot.image:
                return slot.image.image
        return None

    def booted_only(self) -> HostStatus:
        """As ``--booted`` shows it."""
        return replace(self, staged=None, rollback=None)

    def _annotations(self) -> dict[str, Any]:
        """What the document has no field for."""
        if self.failed_update is None:
            return {}
        return {"annotations": {"bootc.python/failed-update": self.failed_update}}

    def to_json(self) -> dict[str, Any]:
        """The ``BootcHost`` document."""
        image = self.spec_image
        status: dict[str, Any] = {
            "booted": self.booted.to_json() if self.booted else None,
            "readOnly": self.read_only,
            "rollback": self.rollback.to_json() if self.rollback else None,
            "rollbackQueued": self.rollback_queued,
            "staged": self.staged.to_json() if self.staged else None,
            "type": "bootcHost" if self.booted and self.booted.image else None,
            "usrOverlay": None,
        }
        if self.other:
            status["otherDeployments"] = [entry.to_json() for entry in self.other]
        if self.usr_overlay:
            status["usrOverlay"] = {
                "accessMode": self.usr_overlay[0],
                "persistence": self.usr_overlay[1],
            }
        return {
            "apiVersion": "org.containers.bootc/v1",
            "kind": "BootcHost",
            "metadata": {"name": "host", **self._annotations()},
            "spec": {
                "bootOrder": "rollback" if self.rollback_queued else "default",
                "image": image.to_json() if image else None,
            },
            "status": status,
        }
