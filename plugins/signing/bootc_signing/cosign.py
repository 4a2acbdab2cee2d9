"""One signature of cosign's classic layout: payload, annotations, and how a policy wants them checked.

    dev.cosignproject.cosign/signature      base64 over the payload's bytes
    dev.sigstore.cosign/certificate, chain  PEM, keyless
    dev.sigstore.cosign/bundle              the log's promise (SET)

The order is that of the containers tools (containers reference, section 5.3): key or certificate, promise, payload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from bootc_core import limits
from bootc_core.errors import printable
from bootc_core.models.image import Attachment
from bootc_signing import certificates, rekor
from bootc_signing.claims import (
    CannotCheck,
    Claim,
    Rejected,
    decode_base64,
    parse_payload,
    unwrap_base64,
)
from bootc_signing.keys import PublicKey, wrap
from bootc_signing.trust import matches

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MEDIA_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
_CHAIN: Final = "dev.sigstore.cosign/chain"
_SET: Final = "dev.sigstore.cosign/bundle"


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificates that count, and whom they have to name.

    Attributes:
        roots, intermediates: of the authority.
        issuer: the OpenID Connect issuer; None: not Fulcio, and the certificate has to be valid now.
        email, host: to be named, where set.
        identity: a pattern for the e-mail address or URI, where set.
        windows: when a certificate or log key (DER) counts, in seconds since 1970; others always do.
    """

    roots: tuple[Certificate, ...]
    intermediates: tuple[Certificate, ...] = ()
    issuer: str | None = None
    email: str | None = None
    host: str | None = None
    identity: str | None = None
    windows: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)

    def counts(self, der: bytes, seconds: int) -> bool:
        """Whether a certificate or key counts at a time."""
        first, last = self.windows.get(der, (0, seconds))
        return first <= seconds <= last


def _signature(attachment: Attachment) -> bytes:
    text = attachment.annotations.get(_SIGNATURE)
    if not text:
        raise Rejected("no-signature", "it carries no signature")
    if len(attachment.payload) > limits.SIGNATURE_BYTES:
        raise Rejected("too-large", f"it has {len(attachment.payload)} bytes")
    return decode_base64(unwrap_base64(text), "the signature")


def _entry(attachment: Attachment, logs: Sequence[PublicKey], now: datetime) -> rekor.Entry:
    if (text := attachment.annotations.get(_SET)) is None:
        raise Rejected("no-promise", "the policy wants a log entry, and it carries none")
    return rekor.parse_set(text.encode(), logs, int(now.timestamp()))


def _log_facts(entry: rekor.Entry) -> tuple[tuple[str, str], ...]:
    when = certificates.instant(entry.time).strftime("%Y-%m-%dT%H:%M:%SZ") if entry.time else "?"
    return (("log entry", f"{entry.index} of log {entry.log[:16]}"), ("logged", when))


def by_key(
    attachment: Attachment, keys: Sequence[PublicKey], logs: Sequence[PublicKey], now: datetime
) -> Claim:
    """What the signature says, valid by one of ``keys`` and, if there are ``logs``, promised by one of them.

    Raises:
        Rejected: not acceptable.
    """
    signature = _signature(attachment)
    key = _signer(signature, attachment.payload, keys)
    facts: tuple[tuple[str, str], ...] = (("key", key.fingerprint),)
    time = None
    if logs:
        entry = _entry(attachment, logs, now)
        rekor.check_entry(entry.body, signature, [key.spki], data=attachment.payload, dsse=False)
        facts, time = (*facts, *_log_facts(entry)), entry.time
    digest, reference = parse_payload(attachment.payload, "cosign")
    return Claim(digest, f"key {key.fingerprint}", reference, time=time, facts=facts)


def _signer(signature: bytes, payload: bytes, keys: Sequence[PublicKey]) -> PublicKey:
    for key in keys:
        try:
            key.verify(signature, payload)
        except Rejected:
            continue
        return key
    names = ", ".join(key.fingerprint for key in keys)
    raise Rejected("bad-signature", f"the signature is not valid by {names}")


def by_certificate(
    attachment: Attachment, authority: Authority, logs: Sequence[PublicKey], now: datetime
) -> Claim:
    """What the signature says, valid by the certificate that it brings along.

    Args:
        attachment: the signature.
        authority: who may have issued the certificate, to whom.
        logs: keys of logs; with an ``issuer``, one of them has to vouch for the time.
        now: this host's time.

    Raises:
        Rejected: not acceptable.
        CannotCheck: a package is missing.
    """
    with certificates.parsing():
        return _by_certificate(attachment, authority, logs, now)


def _by_certificate(
    attachment: Attachment, authority: Authority, logs: Sequence[PublicKey], now: datetime
) -> Claim:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    signature = _signature(attachment)
    if (pem := attachment.annotations.get(_CERTIFICATE)) is None:
        raise Rejected("no-certificate", "it carries no certificate")
    leaf, *more = certificates.load_claimed(pem, "its certificate")
    if more:
        raise Rejected("bad-certificate", "it carries several certificates where one belongs")
    chain = attachment.annotations.get(_CHAIN)
    intermediates = certificates.load_claimed(chain, "its chain") if chain else []
    at, time = now, None
    facts: tuple[tuple[str, str], ...] = ()
    roots, helpers = authority.roots, authority.intermediates
    if authority.issuer is not None:
        told = rekor.told_time(attachment.annotations.get(_SET, ""))
        logs = [key for key in logs if authority.counts(key.spki, told)]
        entry = _entry(attachment, logs, now)
        spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        verifiers = [leaf.public_bytes(Encoding.DER), spki]
        rekor.check_entry(entry.body, signature, verifiers, data=attachment.payload, dsse=False)
        time = entry.time or 0
        at, facts = certificates.instant(time), _log_facts(entry)
        roots, helpers = (
            tuple(item for item in some if authority.counts(item.public_bytes(Encoding.DER), time))
            for some in (roots, helpers)
        )
    fulcio = authority.issuer is not None
    certificates.verify_chain(leaf, [*intermediates, *helpers], roots, at, need_usage=fulcio)
    named = check_names(leaf, authority)
    try:
        key = wrap(leaf.public_key(), "the certificate's key")
    except CannotCheck as problem:
        raise Rejected("weak-key", str(problem)) from None
    key.verify(signature, attachment.payload)
    digest, reference = parse_payload(attachment.payload, "cosign")
    return Claim(
        digest,
        f"identity {named}",
        reference,
        time=time,
        facts=(("identity", named), ("certificate", f"{leaf.serial_number:x}"), *facts),
    )


def check_names(leaf: Certificate, authority: Authority) -> str:
    """The identity, for people; equal to what the policy wants, never only like it.

    Raises:
        Rejected: ``wrong-identity``, with both.
    """
    emails, hosts = certificates.emails(leaf), certificates.hosts(leaf)
    parts = []
    if authority.identity is not None:
        parts.append(pick_identity(leaf, authority.identity))
    for wanted, found in ((authority.email, emails), (authority.host, hosts)):
        if wanted is None:
            continue
        if wanted not in found:
            has = ", ".join(printable(name, 100) for name in (*emails, *hosts)) or "nobody"
            raise Rejected("wrong-identity", f"the certificate is {has}'s, not {wanted}'s")
        parts.append(wanted)
    if authority.issuer is not None:
        issuer = certificates.issuer(leaf)
        if issuer != authority.issuer:
            raise Rejected(
                "wrong-issuer",
                f"the identity is vouched for by {printable(issuer, 100)}, not {authority.issuer}",
            )
        parts.append(f"({issuer})")
    return " ".join(parts)


def pick_identity(leaf: Certificate, pattern: str) -> str:
    """The identity in the certificate that the pattern of a trust policy stands for.

    Raises:
        Rejected: ``wrong-identity``, with both.
    """
    found = certificates.identities(leaf)
    for name in found:
        if matches(pattern, name):
            return name
    has = ", ".join(printable(name, 160) for name in found) or "nobody"
    raise Rejected("wrong-identity", f"the certificate is {has}'s, not {pattern}'s")
