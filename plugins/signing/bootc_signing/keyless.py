"""Signatures by an identity: trusted roots, and bundles with a certificate.

A trusted root file names certificate authorities, certificate logs, transparency logs and clocks, each with the time in
which it counts. Bundles are verified by the ``sigstore`` package (an extra) against it; nothing is fetched. What that package
leaves open is checked here first: the strict form, and the log entry by our own code.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bootc_core.errors import printable
from bootc_signing import bundle as bundles
from bootc_signing import certificates
from bootc_signing.bundle import Subject
from bootc_signing.claims import (
    SIGN_PREDICATE,
    CannotCheck,
    Claim,
    Rejected,
    decode_base64,
    parse_statement,
    strict_json,
)
from bootc_signing.cosign import Authority, pick_identity
from bootc_signing.keys import PublicKey, missing, wrap

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import TrustedRoot


@dataclass(frozen=True, slots=True)
class Trusted:
    """A trusted root, for the ``sigstore`` package and for us."""

    root: TrustedRoot
    logs: tuple[PublicKey, ...]


def load_trusted_root(data: bytes, what: str) -> Trusted:
    """A trusted root file for ``by_identity``.

    Raises:
        CannotCheck: damaged, or the ``sigstore`` package is missing.
    """
    try:
        from sigstore.models import TrustedRoot
    except ImportError as problem:
        raise missing("keyless", problem) from None
    with tempfile.NamedTemporaryFile(suffix=".json") as file:  # it reads paths only
        file.write(data)
        file.flush()
        try:
            root = TrustedRoot.from_file(file.name)
        except Exception as problem:  # of a foreign parser: many kinds
            raise CannotCheck(
                f"{what} is no trusted root: {printable(str(problem), 120)}"
            ) from None
    return Trusted(root, tuple(authority(data, what, "", "")[1]))


def authority(
    data: bytes, what: str, identity: str, issuer: str
) -> tuple[Authority, list[PublicKey]]:
    """The same file for cosign's classic layout: authorities and log keys, each with the time in which it counts.

    Raises:
        CannotCheck: damaged, or a package is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
    except ImportError as problem:
        raise missing("signing", problem) from None
    windows: dict[bytes, tuple[int, int]] = {}
    roots: list[Certificate] = []
    helpers: list[Certificate] = []
    logs: list[PublicKey] = []
    try:
        document = strict_json(data, what)
        for item in document.get("certificateAuthorities", ()):
            for entry in item["certChain"]["certificates"]:
                found = x509.load_der_x509_certificate(decode_base64(entry["rawBytes"], what))
                windows[found.public_bytes(Encoding.DER)] = _window(item.get("validFor", {}))
                (roots if found.issuer == found.subject else helpers).append(found)
        for item in document.get("tlogs", ()):
            public = item["publicKey"]
            loaded = load_der_public_key(decode_base64(public["rawBytes"], what))
            try:
                key = wrap(loaded, f"a log key of {what}")
            except CannotCheck:
                continue  # of a kind to come; what it signs does not count
            windows[key.spki] = _window(public.get("validFor", {}))
            logs.append(key)
    except (KeyError, TypeError, ValueError, AttributeError, Rejected) as problem:
        raise CannotCheck(f"{what} is no trusted root: {printable(str(problem), 120)}") from None
    made = Authority(
        tuple(roots), tuple(helpers), issuer=issuer, identity=identity, windows=windows
    )
    return made, logs


def _window(value: dict[str, str]) -> tuple[int, int]:
    first, last = value.get("start"), value.get("end")
    return (
        int(datetime.fromisoformat(first).timestamp()) if first else 0,
        int(datetime.fromisoformat(last).timestamp()) if last else 2**62,
    )


def by_identity(
    data: bytes, subject: Subject, trusted: Trusted, pattern: str, issuer: str, now: datetime
) -> Claim:
    """What a bundle says, signed by an identity that ``issuer`` vouched for, under the trusted root.

    Args:
        data: the bundle.
        subject: what has to be signed.
        trusted: authorities, logs and clocks that count.
        pattern: the identity, as trust policies write it.
        issuer: exactly.
        now: this host's time.

    Raises:
        Rejected: not acceptable.
    """
    bundle = bundles.parse(data)
    if bundle.material.public_key is not None:
        raise Rejected("wrong-key", "it is signed by a bare key, and the policy names an identity")
    with certificates.parsing():
        identity = pick_identity(_leaf(bundle.material), pattern)
    bundles.logged(bundle, trusted.logs, now)
    payload, kind, entry = _by_sigstore(data, subject, trusted.root, identity, issuer)
    predicate = SIGN_PREDICATE
    if bundle.envelope is not None:
        predicate = parse_statement(payload, kind, subject.digest)
    time = int(entry.integrated_time) if entry.integrated_time else None
    index = printable(str(entry.log_index), 20)
    log = bytes(entry.log_id.key_id).hex()[:16]
    facts = [("identity", f"{identity} ({issuer})"), ("layout", "bundle")]
    facts.append(("log entry", f"{index} of log {log}"))
    if time is not None:
        facts.append(("logged", f"{certificates.instant(time):%Y-%m-%dT%H:%M:%SZ}"))
    return Claim(
        subject.digest,
        f"identity {identity} ({issuer})",
        predicate=predicate,
        time=time,
        facts=tuple(facts),
    )


def _leaf(material: Any) -> Certificate:
    chosen = material.certificate or (material.chain.certificates[0] if material.chain else None)
    assert chosen is not None  # noqa: S101 - the parser counted
    pem = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
    decode_base64(chosen.raw, "the certificate")
    return certificates.load_claimed(pem.format(chosen.raw), "its certificate")[0]


def _by_sigstore(
    data: bytes, subject: Subject, root: TrustedRoot, identity: str, issuer: str
) -> tuple[bytes, str, Any]:
    """Payload, its type, and the log entry, all verified."""
    from sigstore.errors import Error
    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    try:
        foreign = Bundle.from_json(data)
        verifier = Verifier(trusted_root=root)
        policy = Identity(identity=identity, issuer=issuer)
        if foreign._dsse_envelope is not None:
            kind, payload = verifier.verify_dsse(foreign, policy)
        else:
            kind, payload = "", b""
            verifier.verify_artifact(subject.raw, foreign, policy)
    except Error as problem:
        raise Rejected("not-verified", printable(str(problem), 200)) from None
    except Exception as problem:  # hostile input reaches parsers that raise what they like
        raise Rejected(
            "bad-document", f"{type(problem).__name__}: {printable(str(problem), 160)}"
        ) from None
    return payload, kind, foreign.log_entry._inner
