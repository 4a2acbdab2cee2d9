"""Signatures and attestations beside an image, unverified, by kind; every one bounded in number and bytes.

    cosign@DIGEST         tag  sha256-HEX.sig: one manifest whose layers are payloads
    attestations@DIGEST   tag  sha256-HEX.att: the same with DSSE envelopes
    referrers@DIGEST      GET /v2/NAME/referrers/DIGEST, or the index under the tag sha256-HEX: bundles
    lookaside@DIGEST      BASE/PATH@sha256=HEX/signature-N of registries.d: simple signing

``DIGEST`` is that of the signed manifest; without it, of the manifest for this machine. Anyone who may push can add some, so
nothing here is trusted, and a missing one is not an error: nothing found is nothing accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from bootc_core import limits
from bootc_core.errors import ContentError, TransportError, printable
from bootc_core.models.base import parse_json, validate
from bootc_core.models.image import Attachment
from bootc_core.models.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    RawDocument,
    sniff,
)
from bootc_core.models.reference import RegistryName
from bootc_core.net.http import Pool, request
from bootc_core.oci.signatures import parse_blob
from bootc_registry.client import RegistryClient
from bootc_registry.registries_d import Section

COSIGN: Final = "cosign"
ATTESTATIONS: Final = "attestations"
REFERRERS: Final = "referrers"
LOOKASIDE: Final = "lookaside"

_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"
_BUNDLE: Final = re.compile(r"application/vnd\.dev\.sigstore\.bundle[.+].*")
_PAGES: Final = 8  # of a list of referrers


class _Budget:
    """Bytes that the signatures of one kind may have together."""

    def __init__(self, what: str) -> None:
        self._left = limits.SIGNATURE_BYTES
        self._what = what

    def take(self, size: int) -> int:
        self._left -= size
        if self._left < 0:
            raise ContentError(
                f"{self._what} are too large",
                reference="too-large",
                expected=f"at most {limits.SIGNATURE_BYTES} bytes together",
                catalogue="LIM",
            )
        return self._left + size


def _check_count(count: int, what: str) -> None:
    if count > limits.SIGNATURES:
        raise ContentError(
            f"{what} are too many",
            reference="too-many",
            expected=f"at most {limits.SIGNATURES}",
            found=str(count),
            catalogue="LIM",
        )


def _tag(digest: str, suffix: str = "") -> str:
    """The tag that stands for what is attached to a manifest."""
    return digest.replace(":", "-") + suffix


def _document(client: RegistryClient, target: str, what: str) -> RawDocument | None:
    try:
        return client.get_manifest(target, what)
    except TransportError as problem:
        if problem.catalogue == "NOTFOUND":
            return None
        raise


def read_tag(client: RegistryClient, digest: str, kind: str) -> tuple[Attachment, ...]:
    """What cosign's classic layout says about the manifest ``digest``; no such tag: nothing.

    Layers of other media types are left out, as other tools leave them out.

    Raises:
        TransportError: the registry does not deliver.
        ContentError: the signature manifest is malformed or beyond a bound.
    """
    suffix, wanted = (".sig", _PAYLOAD) if kind == COSIGN else (".att", _ENVELOPE)
    what = f"the {'signatures' if kind == COSIGN else 'attestations'} of {digest}"
    tag = _tag(digest, suffix)
    document = _document(client, tag, what)
    if document is None:
        return ()
    manifest = _manifest(document, what)
    layers = [layer for layer in manifest.layers if layer.media_type == wanted]
    _check_count(len(layers), what)
    return tuple(_layers(client, layers, _Budget(what), f"{client.name.repository}:{tag}", what))


def _manifest(document: RawDocument, what: str) -> Manifest:
    media_type, value = sniff(document.raw, document.media_type, what)
    if media_type not in MANIFEST_TYPES:
        raise ContentError(
            f"{what} are not in a manifest", reference="not-an-image", found=media_type
        )
    return validate(Manifest, value, what)


def _layers(
    client: RegistryClient, layers: list[Descriptor], budget: _Budget, origin: str, what: str
) -> Iterator[Attachment]:
    for layer in layers:
        left = budget.take(layer.size)
        yield Attachment(
            media_type=layer.media_type,
            payload=client.get_blob(layer, left, f"one of {what}"),
            annotations=layer.annotations or {},
            origin=origin,
        )


def read_referrers(client: RegistryClient, digest: str) -> tuple[Attachment, ...]:
    """The bundles that refer to the manifest ``digest``.

    Artifact types in the list are not believed: they are what somebody said about manifests (and cosign's fallback index says
    something else). The manifest's own type and its subject count.

    Raises:
        TransportError: the registry does not deliver.
        ContentError: malformed, or beyond a bound.
    """
    what = f"the referrers of {digest}"
    budget = _Budget(what)
    found: list[Attachment] = []
    entries = [entry for entry in _referrers(client, digest, what) if not _foreign(entry)]
    _check_count(len(entries), what)
    for entry in entries:
        budget.take(entry.size)
        document = _document(client, entry.digest, what)
        if document is None:
            continue  # deleted meanwhile, or a stale list
        manifest = _manifest(document, what)
        if manifest.subject is None or manifest.subject.digest != digest:
            continue
        layers = [layer for layer in manifest.layers if _BUNDLE.fullmatch(layer.media_type)]
        origin = f"{client.name.repository}@{entry.digest}"
        found += _layers(client, layers[:1], budget, origin, what)
    return tuple(found)


def _foreign(entry: Descriptor) -> bool:
    """Whether an entry says itself that it is something else (SBOMs and the like can be large)."""
    return bool(entry.media_type) and entry.media_type not in MANIFEST_TYPES


def _referrers(client: RegistryClient, digest: str, what: str) -> tuple[Descriptor, ...]:
    entries: list[Descriptor] = []
    target: str | None = f"referrers/{digest}"
    for _ in range(_PAGES):
        if target is None:
            break
        page = client.get_referrers(target, what)
        if page is None:
            return _fallback(client, digest, what) if not entries else tuple(entries)
        raw, target = page
        entries += validate(Index, parse_json(raw, what), what).manifests
        _check_count(len(entries), what)
    return tuple(entries)


def _fallback(client: RegistryClient, digest: str, what: str) -> tuple[Descriptor, ...]:
    """The list under the fallback tag, where the registry keeps none."""
    document = _document(client, _tag(digest), what)
    if document is None:
        return ()
    media_type, value = sniff(document.raw, document.media_type, what)
    if media_type not in INDEX_TYPES:
        return ()  # the tag is an ordinary one
    return validate(Index, value, what).manifests


# --- lookaside ------------------------------------------------------------------------------------


def read_lookaside(
    root: Path, section: Section, name: RegistryName, digest: str, pool: Pool
) -> tuple[Attachment, ...]:
    """The signatures of a lookaside store, in order, up to the first number that is missing.

    Args:
        root: configuration root.
        section: where the store is.
        name: the logical name of the image.
        digest: of the signed manifest.
        pool: keeps connections.

    Raises:
        TransportError: the store does not deliver.
        ContentError: a signature is malformed or beyond a bound.
    """
    if section.lookaside is None:
        return ()
    what = f"the lookaside signatures of {digest}"
    budget = _Budget(what)
    base = f"{section.lookaside.rstrip('/')}/{name.path}@{digest.replace(':', '=')}"
    found = []
    for number in range(1, limits.SIGNATURES + 2):
        url = f"{base}/signature-{number}"
        data = _read_url(url, budget, what, pool)
        if data is None:
            break
        _check_count(number, what)
        found.append(parse_blob(data, url))
    return tuple(found)


def _read_url(url: str, budget: _Budget, what: str, pool: Pool) -> bytes | None:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _read_file(Path(unquote(parts.path)), budget, what)
    with request("GET", url, connection_pool=pool) as reply:
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise TransportError(
                f"{printable(parts.netloc)} does not deliver {what}",
                reference="http-status",
                found=f"HTTP status {reply.status}",
                retryable=reply.status >= 500,
            )
        data = reply.read(budget.take(0), what)
    budget.take(len(data))
    return data


def _read_file(path: Path, budget: _Budget, what: str) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limits.SIGNATURE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as problem:
        raise TransportError(
            f"cannot read {what}",
            reference="unreadable",
            found=f"{printable(str(path))}: {problem.strerror}",
        ) from None
    budget.take(len(data))
    return data
