"""Signatures beside an image: cosign's classic layout, one manifest under the tag ``sha256-HEX.sig`` whose layers are payloads."""

from __future__ import annotations

from typing import Final

from bootc_core import limits
from bootc_core.errors import ContentError, TransportError
from bootc_core.models.base import validate
from bootc_core.models.image import Attachment
from bootc_core.models.oci import MANIFEST_TYPES, Manifest, sniff
from bootc_registry.client import RegistryClient

COSIGN: Final = "cosign"
_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"


def read_cosign(client: RegistryClient, digest: str) -> tuple[Attachment, ...]:
    """What is signed about the manifest ``digest``; unverified. No such tag: nothing.

    Payloads of other media types are left out, as other tools leave them out.

    Raises:
        TransportError: the registry does not deliver.
        ContentError: the signature manifest is malformed or beyond a bound.
    """
    tag = digest.replace(":", "-") + ".sig"
    what = f"the signatures of {digest}"
    try:
        document = client.get_manifest(tag, what)
    except TransportError as problem:
        if problem.catalogue == "NOTFOUND":
            return ()
        raise
    media_type, value = sniff(document.raw, document.media_type, what)
    if media_type not in MANIFEST_TYPES:
        raise ContentError(
            f"{what} are not in a manifest", reference="not-an-image", found=media_type
        )
    manifest = validate(Manifest, value, what)
    layers = [layer for layer in manifest.layers if layer.media_type == _PAYLOAD]
    if len(layers) > limits.SIGNATURES:
        raise ContentError(
            f"{what} are too many",
            reference="too-many",
            expected=f"at most {limits.SIGNATURES}",
            found=str(len(layers)),
            catalogue="LIM",
        )
    return tuple(
        Attachment(
            media_type=layer.media_type,
            payload=client.get_blob(layer, limits.SIGNATURE_BYTES, f"a signature of {digest}"),
            annotations=layer.annotations or {},
            origin=f"{client.name.repository}:{tag}",
        )
        for layer in layers
    )
