"""``dir:``: the plain directory form of skopeo, for looking at and for moving images by hand.

    version                 Directory Transport Version: 1.1
    manifest.json           manifest or index
    HEX, ALG-HEX            configuration and layers; sha256 without the algorithm's name
    HEX.manifest.json       the manifests of an index
    signature-N             signatures of manifest.json, HEX.signature-N of one of an index's manifests (N from 1)

There is one image in it, so the reference is only a path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from bootc_archives.image import Opened, sniffed
from bootc_archives.store import DirectoryStore, Store, read_source
from bootc_core import limits
from bootc_core.errors import ContentError, TransportError, printable
from bootc_core.models.image import Attachment
from bootc_core.models.oci import Descriptor
from bootc_core.models.reference import ImageReference
from bootc_core.oci.signatures import parse_blob

_VERSION: Final = re.compile(rb"Directory Transport Version: 1\.[0-9]+\n?")
_VERSION_BYTES: Final = 4096


def open_directory(reference: ImageReference) -> Opened:
    """The image that ``reference`` names.

    Raises:
        TransportError: missing, unreadable, no image directory.
        ContentError: damaged or hostile content.
    """
    what = str(reference)
    store = DirectoryStore(Path(reference.path_and_selector()[0]), what, reference.transport)
    if not store.has("manifest.json"):
        layout = store.has("index.json")
        raise TransportError(
            f"{what} holds no image",
            reference="not-a-layout",
            expected="a file manifest.json",
            hint="this is an OCI layout; name it oci:" if layout else None,
            catalogue="CON",
        )
    if store.has("version"):  # early writers had none
        raw = read_source(store.source("version"), f"version of {what}", _VERSION_BYTES)
        if not _VERSION.fullmatch(raw):
            raise ContentError(
                f"{what} is of an unknown version",
                reference="unknown-layout",
                expected="Directory Transport Version: 1.1 or 1.2",
                found=printable(raw, 60),
            )
    title = f"manifest of {what}"
    raw = read_source(store.source("manifest.json"), title, limits.MANIFEST_BYTES)
    document = sniffed(raw, "", title)

    def attachments(kind: str, digest: str) -> tuple[Attachment, ...]:
        if kind != "lookaside":
            return ()
        prefix = "" if digest == document.digest else digest.removeprefix("sha256:") + "."
        return read_signatures(store, prefix, what)

    return Opened(document, store, manifest_name, blob_name, attachments)


def read_signatures(store: Store, prefix: str, what: str) -> tuple[Attachment, ...]:
    """The signatures ``PREFIXsignature-1`` and on, unverified.

    Raises:
        ContentError: one is malformed or they are beyond a bound.
        TransportError: unreadable.
    """
    found: list[Attachment] = []
    left = limits.SIGNATURE_BYTES
    while store.has(name := f"{prefix}signature-{len(found) + 1}"):
        if len(found) == limits.SIGNATURES:
            raise ContentError(
                f"the signatures of {what} are too many",
                reference="too-many",
                expected=f"at most {limits.SIGNATURES}",
                catalogue="LIM",
            )
        data = read_source(store.source(name), f"{name} of {what}", left)
        left -= len(data)
        found.append(parse_blob(data, f"{what}/{name}"))
    return tuple(found)


def blob_name(descriptor: Descriptor) -> str:
    """The file of a blob."""
    return descriptor.digest.removeprefix("sha256:").replace(":", "-")


def manifest_name(descriptor: Descriptor) -> str:
    """The file of an index's manifest."""
    return f"{blob_name(descriptor)}.manifest.json"
