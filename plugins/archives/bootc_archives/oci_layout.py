"""``oci:`` and ``oci-archive:``: the OCI image layout, as a directory or as a tar file of one.

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            entries, named by the annotation org.opencontainers.image.ref.name
    blobs/sha256/HEX      manifests, indexes, configurations, layers

``index.json`` is a list of contents, not an image: the reference picks one entry, by name or by
``:@number``, or means the only one (OCI image specification, "Image Layout").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bootc_archives.image import Opened, read_blob, sniffed
from bootc_archives.store import ArchiveStore, DirectoryStore, Store, read_source
from bootc_core import limits
from bootc_core.errors import ContentError, TransportError, printable
from bootc_core.models.base import parse_json
from bootc_core.models.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    RawDocument,
    parse_index,
)
from bootc_core.models.reference import ImageReference, Transport

REF_NAME: Final = "org.opencontainers.image.ref.name"
_LISTED: Final = 20  # names in an error
_HEADER_BYTES: Final = 64 * limits.KIB


def open_layout(reference: ImageReference) -> Opened:
    """The image that ``reference`` (``oci:`` or ``oci-archive:``) names, its top document checked.

    Raises:
        TransportError: missing, unreadable, no layout, no image of that name.
        ContentError: damaged or hostile content.
    """
    what = str(reference)
    path, selector = reference.path_and_selector()
    make = DirectoryStore if reference.transport is Transport.OCI else ArchiveStore
    store: Store = make(Path(path), what, reference.transport)
    _check_header(store, what)
    title = f"index.json of {what}"
    raw = read_source(store.source("index.json"), title, limits.MANIFEST_BYTES)
    entries = parse_index(RawDocument(OCI_INDEX, raw), title).manifests
    entry = choose(entries, selector, what)
    title = f"manifest {entry.digest} of {what}"
    raw = read_blob(store, blob_name(entry), entry, title, limits.MANIFEST_BYTES)
    return Opened(sniffed(raw, entry.media_type, title), store, blob_name, blob_name)


def blob_name(descriptor: Descriptor) -> str:
    """``blobs/sha256/HEX``; a digest has passed its grammar, so it cannot lead elsewhere."""
    algorithm, _, digits = descriptor.digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


def _check_header(store: Store, what: str) -> None:
    if not store.has("index.json") or not store.has("oci-layout"):
        docker = isinstance(store, ArchiveStore) and store.has("manifest.json")
        raise TransportError(
            f"{what} is not an OCI layout",
            reference="not-a-layout",
            expected="the files oci-layout and index.json",
            hint="this is an archive of docker save; name it docker-archive:" if docker else None,
            catalogue="CON",
        )
    raw = read_source(store.source("oci-layout"), f"oci-layout of {what}", _HEADER_BYTES)
    header = parse_json(raw, f"oci-layout of {what}")
    version = header.get("imageLayoutVersion") if isinstance(header, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise ContentError(
            f"{what} has a layout of an unknown version",
            reference="unknown-layout",
            expected="imageLayoutVersion 1.0.0",
            found=printable(str(version), 40),
        )


def choose(entries: Sequence[Descriptor], selector: str | None, what: str) -> Descriptor:
    """The entry of index.json that the reference means.

    Args:
        entries: in the order of the file; what is no image (an artifact) counts for ``@`` only.
        selector: a name, ``@`` and a number from 0 on, or None.
        what: names the image in errors.

    Raises:
        TransportError: none, or several.
    """
    known = INDEX_TYPES | MANIFEST_TYPES
    images = [entry for entry in entries if entry.media_type in known or not entry.media_type]
    if selector is not None and selector.startswith("@"):
        number = int(selector[1:])
        if number < len(entries):
            return entries[number]
        problem = f"no entry {selector}"
    elif selector is not None:
        named = [entry for entry in images if _ref_name(entry) == selector]
        if len({entry.digest for entry in named}) == 1:
            return named[0]
        problem = f"{len(named) or 'no'} images called {printable(selector)!r}"
    else:
        if len(images) == 1:
            return images[0]
        problem = f"{len(images) or 'no'} images, and none was named"
    names = [_ref_name(entry) or f"@{number}" for number, entry in enumerate(entries)]
    listed = ", ".join(printable(name, 100) for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise TransportError(
        f"{what}: the layout has {problem}",
        reference="no-such-image",
        expected="one image",
        found=(listed or "an empty index.json") + more,
        hint="name one of them behind the path, as in oci:/path:NAME" if names else None,
        catalogue="NOTFOUND",
    )


def _ref_name(entry: Descriptor) -> str | None:
    return (entry.annotations or {}).get(REF_NAME)
