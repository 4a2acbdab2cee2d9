"""What an acceptance was built on, kept beside the deployments so that it can be checked again without a network.

    SYSROOT/bootc/trust/evidence/HEX.json     HEX: digest of the deployed image's manifest
        manifest, index     the documents, base64
        attachments         every signature that was read, raw
        answer              verdict, rule and evidence of that day

Nothing in the file is believed: documents are compared with the digest that is deployed, signatures are verified anew with the
keys and the policy of now.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.models.base import Digest, Model, parse_json, validate
from bootc_core.models.context import SignatureMode
from bootc_core.models.image import Attachment, FetchedImage, PolicyAnswer
from bootc_core.models.reference import ImageReference
from bootc_signing import memory
from bootc_signing.decide import Gatherer, Settings

_BYTES: Final = 64 * 1024 * 1024


class _Attachment(Model):
    kind: str
    subject: Digest
    media_type: str
    payload: str
    annotations: dict[str, str]
    origin: str


class Record(Model):
    """One file."""

    format: int
    reference: str
    digest: Digest
    index_type: str | None
    index: str | None
    manifest_type: str
    manifest: str
    created: str | None
    version: str | None
    mode: str
    at: str
    attachments: tuple[_Attachment, ...]
    answer: dict[str, Any]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Verdict and evidence of that day, for people."""
        rows = [
            ("accepted", str(self.answer.get("reason"))),
            ("rule", str(self.answer.get("rule"))),
        ]
        found = self.answer.get("evidence")
        if isinstance(found, dict):
            rows += [(str(name), str(value)) for name, value in found.items()]
        return rows


def _path(state: Path, digest: str) -> Path:
    return state / "trust/evidence" / (digest.replace(":", "-") + ".json")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def keep(
    state: Path,
    found: Settings,
    image: FetchedImage,
    gatherer: Gatherer,
    answer: PolicyAnswer,
    mode: SignatureMode,
) -> None:
    """Keep what the answer was built on; durable.

    Raises:
        StorageError: no space, I/O.
    """
    record = Record(
        format=1,
        reference=str(found.reference),
        digest=image.digest,
        index_type=image.index.media_type if image.index else None,
        index=_b64(image.index.raw) if image.index else None,
        manifest_type=image.manifest_document.media_type,
        manifest=_b64(image.manifest_document.raw),
        created=image.config.created,
        version=image.config.version,
        mode=mode.value,
        at=memory.stamp(),
        attachments=tuple(
            _Attachment(
                kind=kind,
                subject=digest,
                media_type=item.media_type,
                payload=_b64(item.payload),
                annotations=item.annotations,
                origin=item.origin,
            )
            for (kind, digest), items in gatherer.read.items()
            for item in items
        ),
        answer=answer.to_json("signing"),
    )
    place = _path(state, image.digest)
    for directory in (place.parent.parent, place.parent):
        if not directory.is_dir():
            atomic.mkdir(directory)
            atomic.fsync(directory.parent)
    atomic.write_file(place, (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode())


def load(state: Path, digest: str) -> Record | None:
    """What is kept about a deployed image; None: nothing (it was deployed unchecked, or by another program).

    Raises:
        StorageError: STATE: the file is damaged.
    """
    path = _path(state, digest)
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise _damaged(path, printable(str(problem.strerror))) from None
    try:
        value = parse_json(data, "it")
        if isinstance(value, dict) and isinstance(value.get("attachments"), list):
            value["attachments"] = tuple(value["attachments"])
        record = validate(Record, value, "it")
    except BootcError as problem:
        raise _damaged(path, f"{problem.message}: {problem.found}") from None
    if record.digest != digest or record.format != 1:
        raise _damaged(path, f"it is about {record.digest}")
    return record


def _damaged(path: Path, found: str) -> StorageError:
    return StorageError(
        f"what an acceptance was built on is damaged: {printable(str(path))}",
        reference="trust-evidence",
        found=found,
        hint="bootc upgrade or switch to the same image keeps it anew",
        catalogue="STATE",
    )


def prune(state: Path, keep_digests: Iterable[str]) -> None:
    """Delete what is kept about images that no deployment has any more."""
    wanted = {_path(state, digest).name for digest in keep_digests}
    directory = state / "trust/evidence"
    if directory.is_dir():
        for path in directory.iterdir():
            if path.name not in wanted:
                atomic.unlink(path)


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of a ``FetchedImage`` that a check needs, from a record."""

    record: Record

    def image(self) -> FetchedImage:
        """The image as it was, without layers.

        Raises:
            StorageError: the documents are not those of the digest.
        """
        from bootc_core.models.image import BlobSource
        from bootc_core.models.oci import (
            Descriptor,
            ImageConfig,
            RawDocument,
            RootFS,
            parse_manifest,
        )

        record = self.record
        document = RawDocument(record.manifest_type, base64.b64decode(record.manifest))
        index = None
        if record.index is not None:
            index = RawDocument(record.index_type or "", base64.b64decode(record.index))
        if document.digest != record.digest:
            raise StorageError(
                "the kept manifest is not that of the deployed image",
                reference="trust-evidence",
                expected=record.digest,
                found=document.digest,
                catalogue="INT",
            )
        if index is not None and document.digest.encode() not in index.raw:
            raise StorageError(
                "the kept index does not list the deployed image",
                reference="trust-evidence",
                expected=record.digest,
                catalogue="INT",
            )
        reference = ImageReference.parse(record.reference)

        async def blobs(descriptor: Descriptor) -> BlobSource:
            raise StorageError(f"layer {descriptor.digest} is not needed for a check")

        async def read(kind: str) -> tuple[Attachment, ...]:
            name, _, digest = kind.partition("@")
            return tuple(
                Attachment(
                    item.media_type,
                    base64.b64decode(item.payload),
                    item.annotations,
                    item.origin,
                )
                for item in record.attachments
                if item.kind == name and item.subject == digest
            )

        return FetchedImage(
            requested=reference,
            resolved=reference,
            index=index,
            manifest_document=document,
            manifest=parse_manifest(document, "the kept manifest"),
            config_document=RawDocument("", b""),
            config=ImageConfig(
                architecture="",
                os="",
                created=record.created,
                rootfs=RootFS(type="layers", diff_ids=()),
            ),
            blob_source=blobs,
            read_attachments=read,
        )
