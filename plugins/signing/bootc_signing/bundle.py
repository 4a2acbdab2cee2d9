"""Sigstore bundles (cosign's layout since version 3) and DSSE envelopes (its older attestations).

    verificationMaterial    publicKey {hint} | certificate {rawBytes} | x509CertificateChain
        tlogEntries         at most a few log entries, with promise and proof
        timestampVerificationData
    dsseEnvelope            payload (in-toto statement), payloadType, one signature
    messageSignature        one signature over the manifest's bytes

Signed by a key: checked here. By a certificate: ``keyless`` does that. The statement names digests, no repository, so
the policy itself has to say whose signatures count for which repository.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, Field

from bootc_core import limits
from bootc_core.errors import printable
from bootc_core.models.base import TrustModel
from bootc_signing import certificates, rekor
from bootc_signing.claims import (
    SIGN_PREDICATE,
    Claim,
    Rejected,
    checked,
    decode_base64,
    parse_statement,
    strict_json,
)
from bootc_signing.keys import PublicKey

if TYPE_CHECKING:
    pass

V3: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
OLD: Final = tuple(
    f"application/vnd.dev.sigstore.bundle+json;version=0.{minor}" for minor in (1, 2, 3)
)
ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"
Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,18})$")]
Text = Annotated[str, Field(min_length=1)]


def _canonical(text: str) -> str:
    decode_base64(text, "part of the bundle")
    return text


Base64 = Annotated[Text, AfterValidator(_canonical)]
"""The sigstore package reads other spellings of the same bytes too; one text for one signature is easier to reason about."""


class _LogId(TrustModel):
    key_id: Base64 = Field(alias="keyId")


class _Kind(TrustModel):
    kind: Text
    version: Text


class _Promise(TrustModel):
    signed: Base64 = Field(alias="signedEntryTimestamp")


class _Checkpoint(TrustModel):
    envelope: Text


class _Proof(TrustModel):
    log_index: Number = Field(alias="logIndex", default="0")
    root_hash: Base64 = Field(alias="rootHash")
    tree_size: Number = Field(alias="treeSize")
    hashes: tuple[Base64, ...] = Field(strict=False, default=(), max_length=64)
    checkpoint: _Checkpoint | None = None


class _Entry(TrustModel):
    log_index: Number = Field(alias="logIndex", default="0")
    log_id: _LogId = Field(alias="logId")
    kind_version: _Kind = Field(alias="kindVersion")
    integrated_time: Number | None = Field(alias="integratedTime", default=None)
    promise: _Promise | None = Field(alias="inclusionPromise", default=None)
    proof: _Proof | None = Field(alias="inclusionProof", default=None)
    body: Base64 = Field(alias="canonicalizedBody")


class _PublicKey(TrustModel):
    hint: str = ""


class _Certificate(TrustModel):
    raw: Base64 = Field(alias="rawBytes")


class _Chain(TrustModel):
    certificates: tuple[_Certificate, ...] = Field(strict=False, min_length=1, max_length=5)


class _Timestamp(TrustModel):
    signed: Base64 = Field(alias="signedTimestamp")


class _Timestamps(TrustModel):
    stamps: tuple[_Timestamp, ...] = Field(
        alias="rfc3161Timestamps", strict=False, default=(), max_length=32
    )


class _Material(TrustModel):
    public_key: _PublicKey | None = Field(alias="publicKey", default=None)
    certificate: _Certificate | None = None
    chain: _Chain | None = Field(alias="x509CertificateChain", default=None)
    entries: tuple[_Entry, ...] = Field(alias="tlogEntries", strict=False, default=(), max_length=8)
    timestamps: _Timestamps | None = Field(alias="timestampVerificationData", default=None)


class _Signature(TrustModel):
    sig: Base64
    keyid: str = ""


class Envelope(TrustModel):
    """A DSSE envelope with exactly one signature."""

    payload: Base64
    payload_type: Text = Field(alias="payloadType")
    signatures: tuple[_Signature, ...] = Field(strict=False, min_length=1, max_length=1)


class _MessageDigest(TrustModel):
    algorithm: Text
    digest: Base64


class _Message(TrustModel):
    message_digest: _MessageDigest | None = Field(alias="messageDigest", default=None)
    signature: Base64


class _Bundle(TrustModel):
    media_type: Text = Field(alias="mediaType")
    material: _Material = Field(alias="verificationMaterial")
    message: _Message | None = Field(alias="messageSignature", default=None)
    envelope: Envelope | None = Field(alias="dsseEnvelope", default=None)


@dataclass(frozen=True, slots=True)
class Subject:
    """What has to be signed: the manifest's digest and bytes."""

    digest: str
    raw: bytes


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a DSSE signature is over (pre-authentication encoding)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse(data: bytes) -> _Bundle:
    """A bundle's parts.

    Raises:
        Rejected: malformed, of an unknown version, or ambiguous.
    """
    if len(data) > limits.SIGNATURE_BYTES:
        raise Rejected("too-large", f"it has {len(data)} bytes")
    bundle: _Bundle = checked(_Bundle, strict_json(data, "the bundle"), "the bundle")
    if bundle.media_type != V3 and bundle.media_type not in OLD:
        raise Rejected("wrong-type", f"it is a {printable(bundle.media_type, 100)!r}")
    material = bundle.material
    who = [material.public_key, material.certificate, material.chain]
    if sum(item is not None for item in who) != 1:
        raise Rejected("bad-document", "it names not exactly one key or certificate")
    if (bundle.message is None) == (bundle.envelope is None):
        raise Rejected("bad-document", "it holds not exactly one signature")
    return bundle


def by_key(
    data: bytes,
    subject: Subject,
    keys: Sequence[PublicKey],
    logs: Sequence[PublicKey],
    now: datetime,
) -> Claim:
    """What a bundle says, valid by one of ``keys`` and, if there are ``logs``, recorded in one of them.

    Raises:
        Rejected: not acceptable.
    """
    bundle = parse(data)
    hint = bundle.material.public_key
    if hint is None:
        raise Rejected("wrong-key", "it is signed by a certificate, and the policy names a key")
    wanted = [key for key in keys if hint.hint in {"", _hint(key)}]
    if not wanted:
        raise Rejected("wrong-key", f"it is signed by key {printable(hint.hint, 60)!r}, not ours")
    if bundle.envelope is not None:
        key, signature, payload, predicate = _open(bundle.envelope, subject.digest, wanted)
        content = payload
    else:
        key, signature = _message(bundle, subject, wanted)
        predicate, content = SIGN_PREDICATE, subject.raw
    facts: tuple[tuple[str, str], ...] = (("key", key.fingerprint), ("layout", "bundle"))
    time = None
    if logs:
        entry = logged(bundle, logs, now)
        dsse = bundle.envelope is not None
        rekor.check_entry(entry.body, signature, [key.spki], data=content, dsse=dsse)
        time = entry.time
        facts = (*facts, ("log entry", f"{entry.index} of log {entry.log[:16]}"))
        if time is not None:
            facts = (*facts, ("logged", f"{certificates.instant(time):%Y-%m-%dT%H:%M:%SZ}"))
    return Claim(
        subject.digest, f"key {key.fingerprint}", predicate=predicate, time=time, facts=facts
    )


def envelope_by_key(data: bytes, subject: Subject, keys: Sequence[PublicKey]) -> Claim:
    """What a bare envelope (cosign's older attestations) says, valid by one of ``keys``.

    Raises:
        Rejected: not acceptable.
    """
    envelope: Envelope = checked(Envelope, strict_json(data, "the envelope"), "the envelope")
    key, _, _, predicate = _open(envelope, subject.digest, keys)
    return Claim(
        subject.digest,
        f"key {key.fingerprint}",
        predicate=predicate,
        facts=(("key", key.fingerprint), ("layout", "envelope")),
    )


def _hint(key: PublicKey) -> str:
    return base64.b64encode(hashlib.sha256(key.spki).digest()).decode()


def _open(
    envelope: Envelope, digest: str, keys: Sequence[PublicKey]
) -> tuple[PublicKey, bytes, bytes, str]:
    """Key, signature, payload and predicate type."""
    payload = decode_base64(envelope.payload, "the envelope's payload")
    signature = decode_base64(envelope.signatures[0].sig, "the signature")
    key = _by_any(keys, signature, pae(envelope.payload_type, payload))
    return key, signature, payload, parse_statement(payload, envelope.payload_type, digest)


def _message(
    bundle: _Bundle, subject: Subject, keys: Sequence[PublicKey]
) -> tuple[PublicKey, bytes]:
    assert bundle.message is not None  # noqa: S101 - the parser counted
    _check_digest(bundle.message, subject)
    signature = decode_base64(bundle.message.signature, "the signature")
    return _by_any(keys, signature, subject.raw), signature


def _check_digest(message: _Message, subject: Subject) -> None:
    told = message.message_digest
    if told is None:
        return
    found = decode_base64(told.digest, "the message digest")
    if told.algorithm != "SHA2_256" or found != hashlib.sha256(subject.raw).digest():
        raise Rejected(
            "wrong-digest",
            f"it is about {printable(told.algorithm, 20)} {found.hex()[:128]}, the image is {subject.digest}",
        )


def _by_any(keys: Sequence[PublicKey], signature: bytes, data: bytes) -> PublicKey:
    for key in keys:
        try:
            key.verify(signature, data, own_hash=True)
        except Rejected:
            continue
        return key
    names = ", ".join(key.fingerprint for key in keys)
    raise Rejected("bad-signature", f"the signature is not valid by {names}")


def logged(bundle: _Bundle, logs: Sequence[PublicKey], now: datetime) -> rekor.Entry:
    """The verified log entry; promise and proof both count where they are there, one of them has to be.

    Raises:
        Rejected: none, or one that none of ``logs`` vouches for.
    """
    if len(bundle.material.entries) != 1:
        raise Rejected(
            "no-promise",
            f"the policy wants one log entry, it carries {len(bundle.material.entries)}",
        )
    entry = bundle.material.entries[0]
    log = decode_base64(entry.log_id.key_id, "the log's id").hex()
    body = decode_base64(entry.body, "the log entry")
    index, time = int(entry.log_index), None
    if entry.promise is not None:
        promise = decode_base64(entry.promise.signed, "the log's promise")
        seconds = int(entry.integrated_time or "0")
        rekor.verify_promise(entry.body, seconds, index, log, promise, logs, int(now.timestamp()))
        time = seconds
    if entry.proof is not None and entry.proof.checkpoint is not None:
        proof = entry.proof
        assert proof.checkpoint is not None  # noqa: S101 - just seen
        rekor.verify_inclusion(
            body,
            int(proof.log_index),
            int(proof.tree_size),
            [decode_base64(item, "the proof") for item in proof.hashes],
            decode_base64(proof.root_hash, "the proof's root"),
            proof.checkpoint.envelope,
            logs,
        )
    elif entry.promise is None or bundle.media_type != OLD[0]:
        raise Rejected("no-proof", "its log entry has no proof of inclusion")
    return rekor.Entry(body, index, time, log)
