"""An image on its way: fetched, verified, staged.

    reference ──bootc_fetch──▶ FetchedImage ──bootc_verify──▶ VerifiedImage ──bootc_stage──▶ StagedDeployment

``FetchedImage`` holds metadata only; layer bytes are opened through ``blob_source``. Only the engine makes a
``VerifiedImage``, and staging takes nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from bootc_core.models.boot import BootEntry
from bootc_core.models.context import ImageSummary
from bootc_core.models.oci import Descriptor, ImageConfig, Manifest, RawDocument
from bootc_core.models.reference import ImageReference


@dataclass(frozen=True, slots=True)
class HttpSource:
    """A blob behind an HTTP GET; a worker process makes the request, follows redirects and resumes by Range.

    ``headers`` (credentials among them) go to the origin of ``url`` only, never to a redirect's other origin.
    ``elsewhere``: the name of this place, if the transport knows another one: asked again, it gives that one.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a token
    ca_file: str | None = None  # PEM, in addition to the system's
    client_cert: str | None = None
    client_key: str | None = None
    tls_verify: bool = True
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A blob that is a range of a local regular file (``length`` None: to its end)."""

    path: Path
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class PipeSource:
    """A blob that the parent feeds through a pipe: ``open()`` yields its bytes in order. Any transport can offer this."""

    open: Callable[[], AsyncIterator[bytes]]


BlobSource: TypeAlias = HttpSource | FileSource | PipeSource


@dataclass(frozen=True, slots=True)
class Attachment:
    """A signature or attestation found beside an image, unverified: raw bytes and where they came from."""

    media_type: str
    payload: bytes
    annotations: dict[str, str] = field(default_factory=dict)
    origin: str = ""


async def no_attachments(kind: str) -> tuple[Attachment, ...]:
    """What a transport without signature support answers."""
    del kind
    return ()


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An image's documents, each checked against its digest, and the ways to its blobs.

    Attributes:
        requested: the reference as it was asked for.
        resolved: the same pinned to what was found (digest form where the transport has one).
        index: the index that the reference named, if it named one.
        manifest_document, manifest: the instance for this machine.
        config_document, config: its configuration.
        blob_source: an up-to-date source for a layer (credentials may expire, so ask again before a retry).
        read_attachments: kind (``cosign``, ``referrers``, ``lookaside``) to what is there.
    """

    requested: ImageReference
    resolved: ImageReference
    index: RawDocument | None
    manifest_document: RawDocument
    manifest: Manifest
    config_document: RawDocument
    config: ImageConfig
    blob_source: Callable[[Descriptor], Awaitable[BlobSource]]
    read_attachments: Callable[[str], Awaitable[tuple[Attachment, ...]]] = no_attachments

    @property
    def digest(self) -> str:
        """Digest of the instance's manifest: the image's identity."""
        return self.manifest_document.digest

    @property
    def tag_digest(self) -> str:
        """Digest of what the reference names (the index where there is one): what a HEAD request tells."""
        return (self.index or self.manifest_document).digest

    def summary(self) -> ImageSummary:
        """The image in the form of hooks."""
        return ImageSummary(
            reference=str(self.requested),
            digest=self.digest,
            version=self.config.version,
            labels=dict(self.config.labels),
        )


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """What one signature policy says: ``accept`` True, False, or None for "not mine to decide".

    Attributes:
        accept: the answer.
        reason: one sentence, shown to the administrator.
        rule: the rule that decided, e.g. ``policy.json: transports.docker["quay.io/acme"]``.
        cryptographic: a signature was checked.
        could_check: False if a needed key, file or verifier was missing (then ``accept`` is False).
        evidence: who, which key, when; stored with the deployment.
        hint: what settles a refusal.
    """

    accept: bool | None
    reason: str
    rule: str = ""
    cryptographic: bool = False
    could_check: bool = True
    evidence: tuple[tuple[str, str], ...] = ()
    hint: str | None = None

    def to_json(self, policy: str) -> dict[str, Any]:
        """The record that is kept beside the deployment."""
        return {
            "policy": policy,
            "accept": self.accept,
            "reason": self.reason,
            "rule": self.rule,
            "cryptographic": self.cryptographic,
            "evidence": dict(self.evidence),
        }


_ENGINE = object()


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """A fetched image that the policies accepted; made by the engine only (``VerifiedImage.accept``)."""

    image: FetchedImage
    answers: tuple[tuple[str, PolicyAnswer], ...]  # policy name, answer
    proof: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.proof is not _ENGINE:
            raise TypeError("only the engine makes a VerifiedImage")

    @classmethod
    def _accept(
        cls, image: FetchedImage, answers: tuple[tuple[str, PolicyAnswer], ...]
    ) -> VerifiedImage:
        return cls(image, answers, _ENGINE)


@dataclass(frozen=True, slots=True)
class StagedDeployment:
    """A complete deployment on disk that does not boot yet.

    Serialisable (``to_json``), since finalize may run in another process.

    Attributes:
        backend: name of the storage backend that wrote it.
        deployment_id: the backend's name for it.
        entry: the boot entry it will have; None where the backend writes entries itself.
        details: the backend's own notes, JSON values only.
        bytes_new: bytes written for it.
    """

    backend: str
    deployment_id: str
    entry: BootEntry | None = None
    details: dict[str, Any] = field(default_factory=dict)
    bytes_new: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON form; ``from_json`` reads it."""
        return {
            "backend": self.backend,
            "deployment_id": self.deployment_id,
            "entry": self.entry.to_json() if self.entry else None,
            "details": self.details,
            "bytes_new": self.bytes_new,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StagedDeployment:
        """The deployment in ``value``, as ``to_json`` wrote it."""
        entry = value.get("entry")
        return cls(
            backend=value["backend"],
            deployment_id=value["deployment_id"],
            entry=BootEntry.from_json(entry) if entry else None,
            details=value.get("details") or {},
            bytes_new=value.get("bytes_new", 0),
        )
