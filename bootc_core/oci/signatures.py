"""The file form of one signature, as lookaside stores and ``dir:`` keep it (containers reference, section 1.5).

first byte of an OpenPGP message     simple signing
00 NAME NEWLINE data                 NAME: simple-signing, or sigstore-json:
{"mimeType": ..., "payload": base64, "annotations": {...}}
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

from pydantic import Field

from bootc_core.errors import ContentError, printable
from bootc_core.models.base import TrustModel, parse_json, validate
from bootc_core.models.image import Attachment

OPENPGP: Final = "application/vnd.bootc.openpgp-signature"
_OPENPGP_FIRST: Final = frozenset(
    {*range(0xA0, 0xA4), 0xC8, *range(0x90, 0x93), 0x3D, 0xC4, *range(0x88, 0x8C), 0xC2}
)


class _Sigstore(TrustModel):
    mime_type: Annotated[str, Field(min_length=1)] = Field(alias="mimeType")
    payload: str
    annotations: dict[str, str] = Field(default_factory=dict)


def is_openpgp(data: bytes) -> bool:
    """Whether the first byte is that of an OpenPGP message in binary form."""
    return bool(data) and data[0] in _OPENPGP_FIRST


def parse_blob(data: bytes, origin: str) -> Attachment:
    """The signature in a file, unverified. OpenPGP messages get the media type ``OPENPGP``.

    Raises:
        ContentError: of no known form.
    """
    if is_openpgp(data):
        return Attachment(OPENPGP, data, origin=origin)
    name, newline, content = data[1:].partition(b"\n")
    what = f"the signature {printable(origin, 200)}"
    if data[:1] == b"\x00" and newline and name == b"simple-signing":
        return Attachment(OPENPGP, content, origin=origin)
    if data[:1] == b"\x00" and newline and name == b"sigstore-json":
        found = validate(_Sigstore, parse_json(content, what), what)
        try:
            payload = base64.b64decode(found.payload, validate=True)
        except (binascii.Error, ValueError):
            raise ContentError(f"{what} is not base64", reference="bad-signature-file") from None
        return Attachment(found.mime_type, payload, found.annotations, origin)
    raise ContentError(
        f"{what} is of no known form",
        reference="bad-signature-file",
        expected="an OpenPGP message, or a signature file of the containers tools",
        found=printable(data[:20]),
    )
