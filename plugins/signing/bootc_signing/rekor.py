"""Entries of a transparency log, checked offline: promise, proof, checkpoint, and that the entry is about this signature.

    promise (SET)   the log's signature over  {"body","integratedTime","logID","logIndex"}  as canonical JSON
    proof           hashes from the entry's leaf to a root that a signed checkpoint names (RFC 6962)
    checkpoint      signed note:  origin / size / base64 root / blank line / "- NAME BASE64(4 byte key id + signature)"

That an entry fits the signature is checked in full: hash, signature bytes, key or certificate. Leaving one of them out has
been a vulnerability of other tools (CVE-2022-36056).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from bootc_core.errors import printable
from bootc_core.models.base import TrustModel
from bootc_signing.claims import Rejected, checked, decode_base64, strict_json
from bootc_signing.keys import PublicKey

_FUTURE_S: Final = 600  # clocks differ; a log time further ahead of ours is not believed
_HASHES: Final = 64  # of a proof: more than the height of any tree
_NOTE_BYTES: Final = 64 * 1024
Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A log entry that the log vouches for.

    Attributes:
        body: the entry, canonical JSON.
        index: its number.
        time: seconds since 1970; None where nobody signed it.
        log: hex id of the log.
    """

    body: bytes
    index: int
    time: int | None
    log: str


class _SetPayload(TrustModel):
    body: str
    integrated_time: Natural = Field(alias="integratedTime")
    log_index: Natural = Field(alias="logIndex")
    log_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(alias="logID")


class _Set(TrustModel):
    promise: str = Field(alias="SignedEntryTimestamp")
    payload: _SetPayload = Field(alias="Payload")


def verify_promise(
    body: str, time: int, index: int, log: str, promise: bytes, keys: Sequence[PublicKey], now: int
) -> Entry:
    """The entry, if one of the log's keys promised its inclusion.

    Args:
        body: base64 of the entry.
        time: seconds since 1970 when the log took it.
        index: its number.
        log: hex id of the log.
        promise: the log's signature.
        keys: of logs that count.
        now: this host's time, seconds since 1970.

    Raises:
        Rejected: ``bad-promise``, ``future-time``.
    """
    signed = {"body": body, "integratedTime": time, "logID": log, "logIndex": index}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    _by_any(keys, promise, text, "bad-promise", "the log's promise")
    if time > now + _FUTURE_S:
        raise Rejected(
            "future-time",
            f"the log took it at {time}, and this host's clock says {now} (seconds since 1970)",
        )
    return Entry(decode_base64(body, "the log entry"), index, time, log)


def _by_any(
    keys: Sequence[PublicKey], signature: bytes, data: bytes, code: str, what: str
) -> PublicKey:
    for key in keys:
        try:
            key.verify(signature, data)
        except Rejected:
            continue
        return key
    raise Rejected(code, f"{what} is not signed by any of the {len(keys)} log keys")


def parse_set(data: bytes, keys: Sequence[PublicKey], now: int) -> Entry:
    """The verified entry of a cosign ``bundle`` annotation.

    Raises:
        Rejected: malformed, or as ``verify_promise``.
    """
    what = "the log's promise"
    found: _Set = checked(_Set, strict_json(data, what), what)
    payload = found.payload
    return verify_promise(
        payload.body,
        payload.integrated_time,
        payload.log_index,
        payload.log_id,
        decode_base64(found.promise, what),
        keys,
        now,
    )


def told_time(text: str) -> int:
    """The time that a promise claims, before it is verified: to choose the keys that counted then."""
    what = "the log's promise"
    try:
        return int(strict_json(text.encode(), what)["Payload"]["integratedTime"])
    except (Rejected, KeyError, TypeError, ValueError):
        return 0


# --- inclusion ------------------------------------------------------------------------------------


def leaf_hash(body: bytes) -> bytes:
    """Of an entry (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x00" + body).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_from_proof(leaf: bytes, index: int, size: int, hashes: Sequence[bytes]) -> bytes:
    """The root that the proof leads to.

    Raises:
        Rejected: ``bad-proof``: of another length than index and size demand.
    """
    if not 0 <= index < size or len(hashes) > _HASHES or any(len(item) != 32 for item in hashes):
        raise Rejected("bad-proof", f"entry {index} cannot be in a tree of {size}")
    inner = (index ^ (size - 1)).bit_length()
    border = (index >> inner).bit_count()
    if len(hashes) != inner + border:
        raise Rejected("bad-proof", f"the proof has {len(hashes)} hashes, not {inner + border}")
    result = leaf
    for level, sibling in enumerate(hashes[:inner]):
        result = _node(sibling, result) if index >> level & 1 else _node(result, sibling)
    for sibling in hashes[inner:]:
        result = _node(sibling, result)
    return result


def verify_checkpoint(text: str, keys: Sequence[PublicKey]) -> tuple[int, bytes]:
    """Size and root hash of a tree, as one of the log's keys signed them.

    Raises:
        Rejected: ``bad-checkpoint``.
    """
    wrong = Rejected("bad-checkpoint", "the log's checkpoint is malformed")
    note, blank, signatures = text.partition("\n\n")
    lines = note.split("\n")
    if not blank or len(text) > _NOTE_BYTES or len(lines) < 3 or not lines[0]:
        raise wrong
    if not (lines[1].isascii() and lines[1].isdigit()) or str(int(lines[1][:20])) != lines[1]:
        raise wrong
    root = decode_base64(lines[2], "the checkpoint's root")
    signed = (note + "\n").encode()
    for line in signatures.splitlines()[:32]:
        mark, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        if mark != "\u2014" or not name or not value:
            raise wrong
        if lines[0] != name and not lines[0].startswith(name + " "):
            continue  # a witness's
        blob = decode_base64(value, "a checkpoint's signature")
        for key in keys:
            if blob[:4] not in _key_ids(key, name):
                continue
            try:
                key.verify(blob[4:], signed)
            except Rejected:
                continue
            if len(root) != 32:
                raise wrong
            return int(lines[1]), root
    raise Rejected("bad-checkpoint", "the checkpoint is not signed by any key of a log")


def _key_ids(key: PublicKey, name: str) -> tuple[bytes, ...]:
    ecdsa = hashlib.sha256(key.spki).digest()[:4]
    raw = key.spki[-32:]
    ed25519 = hashlib.sha256(name.encode() + b"\n\x01" + raw).digest()[:4]
    return (ed25519,) if key.kind == "ed25519" else (ecdsa,)


def verify_inclusion(
    body: bytes,
    index: int,
    size: int,
    hashes: Sequence[bytes],
    root: bytes,
    checkpoint: str,
    keys: Sequence[PublicKey],
) -> None:
    """Nothing if the entry is in the tree that the log signed.

    Raises:
        Rejected: ``bad-proof``, ``bad-checkpoint``.
    """
    if root_from_proof(leaf_hash(body), index, size, hashes) != root:
        raise Rejected("bad-proof", "the proof does not lead to its root")
    if verify_checkpoint(checkpoint, keys) != (size, root):
        raise Rejected("bad-proof", "the checkpoint is of another tree than the proof")


# --- the entry and the signature ------------------------------------------------------------------


class _Hash(TrustModel):
    algorithm: Literal["sha256"]
    value: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Data(TrustModel):
    hash: _Hash


class _Key(TrustModel):
    content: str


class _Signature(TrustModel):
    content: str
    public_key: _Key = Field(alias="publicKey")


class _RekordSpec(TrustModel):
    data: _Data
    signature: _Signature


class _DsseSignature(TrustModel):
    signature: str
    verifier: str


class _DsseSpec(TrustModel):
    envelope_hash: _Hash = Field(alias="envelopeHash")
    payload_hash: _Hash = Field(alias="payloadHash")
    signatures: tuple[_DsseSignature, ...] = Field(strict=False, min_length=1, max_length=1)


class _Body(TrustModel):
    api_version: Literal["0.0.1"] = Field(alias="apiVersion")
    kind: str
    spec: dict[str, Any]


def check_entry(
    body: bytes, signature: bytes, verifiers: Sequence[bytes], *, data: bytes, dsse: bool
) -> None:
    """Nothing if the entry is about exactly this signature.

    Args:
        body: of a verified entry.
        signature: the raw signature.
        verifiers: DER of the key or the certificate that made it; one has to be in the entry.
        data: what was signed (``hashedrekord``), or the envelope's payload (``dsse``).
        dsse: the signature is in an envelope.

    Raises:
        Rejected: ``wrong-entry``: the log vouches for something else.
    """
    what = "the log entry"
    entry: _Body = checked(_Body, strict_json(body, what), what)
    digest = hashlib.sha256(data).hexdigest()
    if entry.kind != ("dsse" if dsse else "hashedrekord"):
        raise Rejected("wrong-entry", f"the log entry is a {printable(entry.kind, 40)!r}")
    if dsse:
        envelope: _DsseSpec = checked(_DsseSpec, entry.spec, what)
        found_hash, found = envelope.payload_hash.value, envelope.signatures[0].signature
        found_key = envelope.signatures[0].verifier
    else:
        record: _RekordSpec = checked(_RekordSpec, entry.spec, what)
        found_hash, found = record.data.hash.value, record.signature.content
        found_key = record.signature.public_key.content
    if found_hash != digest:
        raise Rejected("wrong-entry", "the log entry is about other content")
    if decode_base64(found, "the log entry's signature") != signature:
        raise Rejected("wrong-entry", "the log entry is about another signature")
    if _pem_der(decode_base64(found_key, "the log entry's key")) not in verifiers:
        raise Rejected("wrong-entry", "the log entry is about another key or certificate")


def _pem_der(pem: bytes) -> bytes:
    """The DER of the one PEM block."""
    lines = pem.decode("utf-8", "replace").strip().split("\n")
    if len(lines) < 3 or not (
        lines[0].startswith("-----BEGIN ") and lines[-1].startswith("-----END ")
    ):
        raise Rejected("wrong-entry", "the log entry holds no key in PEM form")
    try:
        return base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError:
        raise Rejected("wrong-entry", "the log entry holds no key in PEM form") from None
