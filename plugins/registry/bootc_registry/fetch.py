"""Resolving and fetching: one reference, its endpoints in order, its documents for this machine.

    reference ─▶ endpoints (mirrors, primary) ─▶ tag or digest ─▶ [index ─▶ platform ─▶] manifest ─▶ config

The endpoint that delivers all documents also serves the blobs; a blob that it does not deliver comes from the next one. A tag
is resolved once; everything after goes by digest.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import trio

from bootc_core import limits
from bootc_core.errors import ContentError, TransportError, printable
from bootc_core.models.image import Attachment, BlobSource, FetchedImage, HttpSource
from bootc_core.models.oci import (
    INDEX_TYPES,
    Descriptor,
    RawDocument,
    parse_config,
    parse_index,
    parse_manifest,
)
from bootc_core.models.reference import ImageReference, RegistryName, Transport
from bootc_core.net.http import Pool
from bootc_core.oci.platform import check_config, check_depth, host_platform, select
from bootc_core.retry import REGISTRY_READ, again
from bootc_registry import registries_d
from bootc_registry.attachments import (
    ATTESTATIONS,
    COSIGN,
    LOOKASIDE,
    REFERRERS,
    read_lookaside,
    read_referrers,
    read_tag,
)
from bootc_registry.client import RegistryClient
from bootc_registry.config import load_registries

_LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")
Connect: TypeAlias = Callable[[], RegistryClient]


async def resolve(
    root: Path, reference: ImageReference, *, timeout_s: float = limits.READ_TIMEOUT_S
) -> str:
    """Digest of what ``reference`` names now; a digest names itself, a tag costs one HEAD request.

    Raises:
        TransportError, ContentError, ConfigError: as ``fetch``.
    """
    name = reference.registry_name()
    if name.digest:
        return name.digest

    async def ask(client: RegistryClient, others: list[Connect]) -> str:
        del others
        what = reference.display()
        digest = await _read(client.head_manifest, client.name.target, what)
        if digest is None:
            digest = (await _read(client.get_manifest, client.name.target, what)).digest
        return digest

    return await _first(root, reference, ask, timeout_s)


async def fetch(
    root: Path, reference: ImageReference, *, timeout_s: float = limits.READ_TIMEOUT_S
) -> FetchedImage:
    """The image's documents, each checked against its digest, and the way to its blobs.

    Args:
        root: configuration root.
        reference: of transport ``registry``.
        timeout_s: silence on a connection.

    Raises:
        TransportError: no endpoint delivers; the primary's error, with notes about the mirrors.
        ContentError: what is delivered is not an image for this machine.
        ConfigError: registries.conf, certs.d or an auth file is wrong.
    """
    name = reference.registry_name()
    return await _first(root, reference, partial(_fetch_from, root, reference, name), timeout_s)


async def _first(
    root: Path,
    reference: ImageReference,
    ask: Callable[[RegistryClient, list[Connect]], Awaitable[T]],
    timeout_s: float,
) -> T:
    """What the first endpoint that works answers."""
    registries = await trio.to_thread.run_sync(load_registries, root)
    registries.refuse_alias(reference.name)
    name = reference.registry_name()
    notes: list[str] = []
    helpers = registries.credential_helpers
    with Pool() as pool:
        endpoints = registries.endpoints(name)
        connects: list[Connect] = [
            partial(RegistryClient, root, endpoint, pool, helpers, timeout_s)
            for endpoint in endpoints
        ]
        for number, endpoint in enumerate(endpoints):
            client = await trio.to_thread.run_sync(connects[number])
            try:
                return await ask(client, connects[number + 1 :])
            except (TransportError, ContentError) as problem:
                if not endpoint.mirror:
                    for note in notes:
                        problem.add_note(note)
                    raise
                notes.append(f"mirror {endpoint.name.repository}: {problem.message}")
                _LOG.warning("%s", notes[-1])
    raise AssertionError("the primary endpoint is the last")


class _Blobs:
    """Where the blobs of one image are: the endpoint that had its documents, and for a blob that it does not deliver the next."""

    def __init__(self, client: RegistryClient, others: list[Connect]) -> None:
        self._clients = [client]
        self._others = others
        self._lock = trio.Lock()
        # endpoint, and the credentials it was left with; None: it had its second chance
        self._asked: dict[str, tuple[int, tuple[tuple[str, str], ...] | None]] = {}

    async def source(self, descriptor: Descriptor) -> BlobSource:
        """The blob's place. Asked again: the same one if its credentials had to be renewed, else the next.

        Raises:
            TransportError: the last endpoint denies it, or its credentials cannot be renewed.
        """
        first = descriptor.digest not in self._asked
        number, known = self._asked.get(descriptor.digest, (0, None))
        while True:
            client, last = await self._client(number)
            try:
                source: HttpSource = await _read(client.blob_source, descriptor)
            except TransportError as problem:
                if last:
                    raise
                _LOG.warning("mirror %s: %s", client.name.repository, problem.message)
            else:
                if first or last:
                    self._asked[descriptor.digest] = (number, source.headers)
                    break
                if known is not None and source.headers != known:
                    self._asked[descriptor.digest] = (number, None)
                    break
            number, first = number + 1, True
        return source if last else replace(source, elsewhere=client.name.repository)

    async def _client(self, number: int) -> tuple[RegistryClient, bool]:
        """The client of an endpoint, and whether there is none after it."""
        async with self._lock:
            while number >= len(self._clients):
                self._clients.append(await trio.to_thread.run_sync(self._others.pop(0)))
            return self._clients[number], number == len(self._clients) - 1 and not self._others


async def _read(call: Callable[..., T], *arguments: object) -> T:
    return await again(
        REGISTRY_READ, lambda: trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)
    )


async def _fetch_from(
    root: Path,
    reference: ImageReference,
    name: RegistryName,
    client: RegistryClient,
    others: list[Connect],
) -> FetchedImage:
    what = reference.display()
    platform = host_platform()
    document: RawDocument = await _read(client.get_manifest, client.name.target, what)
    index = document if document.media_type in INDEX_TYPES else None
    depth = 0
    while document.media_type in INDEX_TYPES:
        depth += 1
        check_depth(depth, f"the index of {what}")
        entry = select(parse_index(document, f"the index of {what}"), platform, what)
        document = await _read_instance(client, entry, f"the manifest of {what}")
    manifest = parse_manifest(document, f"the manifest of {what}")
    about_config = f"the configuration of {what}"
    raw = await _read(client.get_blob, manifest.config, limits.CONFIG_BYTES, about_config)
    config_document = RawDocument(manifest.config.media_type, raw)
    config = parse_config(config_document, manifest, about_config)
    check_config(config, platform, what)

    blobs = _Blobs(client, others)

    async def read_attachments(kind: str) -> tuple[Attachment, ...]:
        kind, _, digest = kind.partition("@")
        return await _read(_attachments, root, reference, client, kind, digest or document.digest)

    pinned = name.with_digest((index or document).digest)
    return FetchedImage(
        requested=reference,
        resolved=ImageReference(Transport.REGISTRY, str(pinned)),
        index=index,
        manifest_document=document,
        manifest=manifest,
        config_document=config_document,
        config=config,
        blob_source=blobs.source,
        read_attachments=read_attachments,
    )


def _attachments(
    root: Path, reference: ImageReference, client: RegistryClient, kind: str, digest: str
) -> tuple[Attachment, ...]:
    """What is attached to a manifest; mirrors are asked by their own name, lookaside stores by the logical one."""
    if kind == REFERRERS:
        return read_referrers(client, digest)
    if kind == ATTESTATIONS:
        return read_tag(client, digest, kind)
    if kind not in {COSIGN, LOOKASIDE}:
        return ()
    section = registries_d.load(root, reference)
    if kind == LOOKASIDE:
        with Pool() as pool:
            return read_lookaside(root, section, reference.registry_name(), digest, pool)
    if section.attachments is False:
        return ()
    return read_tag(client, digest, kind)


async def _read_instance(client: RegistryClient, entry: Descriptor, what: str) -> RawDocument:
    """The manifest (or nested index) that an index entry describes."""
    if entry.size > limits.MANIFEST_BYTES:
        raise ContentError(
            f"{what} is too large",
            reference="too-large",
            expected=f"at most {limits.MANIFEST_BYTES} bytes",
            found=f"{entry.size} bytes",
            catalogue="LIM",
        )
    document: RawDocument = await _read(client.get_manifest, entry.digest, what)
    if len(document.raw) != entry.size:
        raise ContentError(
            f"{what} has another size than the index says",
            reference="size-mismatch",
            expected=f"{entry.size} bytes",
            found=f"{len(document.raw)} bytes",
            catalogue="INT",
        )
    if entry.media_type and entry.media_type != document.media_type:
        raise ContentError(
            f"{what} has another type than the index says",
            reference="ambiguous-document",
            expected=printable(entry.media_type),
            found=printable(document.media_type),
            catalogue="INT",
        )
    return document
