"""X.509: a signing certificate beneath trusted roots at a time, and who it names (Fulcio's and others').

Small and strict on purpose: a chain of at most ``DEPTH`` authorities, every signature, name, date, path length and key usage
checked, unknown critical extensions refused. Nothing is fetched, nothing revoked: Fulcio's certificates live for minutes, and
time comes from a log or timestamp, never from the certificate.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bootc_core.errors import printable
from bootc_signing.claims import CannotCheck, Rejected, decode_base64
from bootc_signing.keys import RSA_BITS, missing

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

T = TypeVar("T")
DEPTH: Final = 4
_ISSUER: Final = "1.3.6.1.4.1.57264.1.1"  # raw text
_ISSUER_V2: Final = "1.3.6.1.4.1.57264.1.8"  # DER UTF8String


@contextmanager
def parsing() -> Iterator[None]:
    """Turn what ``cryptography`` raises for hostile certificates, some of it only when a field is read, into ``Rejected``."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except (
        ValueError,
        TypeError,
        OverflowError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as problem:
        text = printable(str(problem), 120)
        raise Rejected("bad-certificate", f"its certificate is malformed: {text}") from None


def load(pem: bytes, what: str) -> list[Certificate]:
    """All certificates of a PEM text.

    Raises:
        CannotCheck: none, or damaged.
    """
    try:
        from cryptography import x509
    except ImportError as problem:
        raise missing("signing", problem) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a number that is refused below
            found = x509.load_pem_x509_certificates(pem)
            positive = all(certificate.serial_number > 0 for certificate in found)
    except (ValueError, x509.InvalidVersion):
        raise CannotCheck(f"{what} holds no certificate in PEM form") from None
    if not positive:
        raise CannotCheck(f"{what} has a certificate without a positive number")
    return found


def load_claimed(pem: str, what: str) -> list[Certificate]:
    """All certificates that a signature brings along.

    Raises:
        Rejected: none, damaged, or too many.
        CannotCheck: ``cryptography`` is missing.
    """
    blocks = re.findall(
        r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?", pem
    )
    if "".join(blocks) != pem.lstrip("\n") or not blocks or len(blocks) > DEPTH + 1:
        raise Rejected("bad-certificate", f"{what} is not a certificate in PEM form")
    for block in blocks:  # one text for one certificate
        decode_base64("".join(block.strip().split("\n")[1:-1]), what)
    try:
        return load(pem.encode(), what)
    except CannotCheck as problem:
        if problem.hint:
            raise
        raise Rejected("bad-certificate", str(problem)) from None


def verify_chain(
    leaf: Certificate,
    intermediates: Sequence[Certificate],
    roots: Sequence[Certificate],
    at: datetime,
    *,
    need_usage: bool = True,
) -> None:
    """Nothing if ``leaf`` signs code, and leads to one of ``roots``, all of them valid at the time ``at``.

    Args:
        leaf: the certificate that signed.
        intermediates: authorities in between.
        roots: authorities that are trusted.
        at: when it has to hold.
        need_usage: a certificate that says nothing about its use does not count (private authorities leave it out).

    Raises:
        Rejected: says what is wrong.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    _check_dates(leaf, at, "the certificate")
    _check_critical(leaf)
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise Rejected("bad-certificate", "the certificate is an authority's")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise Rejected("bad-certificate", "the certificate is not for signatures")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    unlimited = extended is None and not need_usage
    if not unlimited and (extended is None or ExtendedKeyUsageOID.CODE_SIGNING not in extended):
        raise Rejected("bad-certificate", "the certificate is not for signing code")
    problems: list[str] = []
    if not _reaches(leaf, intermediates, roots, at, 0, problems):
        why = problems[0] if problems else "no authority issued it"
        raise Rejected("untrusted-certificate", f"the certificate leads to no trusted root: {why}")


def _reaches(
    certificate: Certificate,
    intermediates: Sequence[Certificate],
    roots: Sequence[Certificate],
    at: datetime,
    depth: int,
    problems: list[str],
) -> bool:
    if depth > DEPTH:
        problems.append("the chain is too long")
        return False
    for issuer in roots:
        if _issued(certificate, issuer, at, depth, problems):
            return True
    for issuer in intermediates:
        if _issued(certificate, issuer, at, depth, problems) and _reaches(
            issuer, intermediates, roots, at, depth + 1, problems
        ):
            return True
    return False


def _issued(
    certificate: Certificate, issuer: Certificate, at: datetime, below: int, problems: list[str]
) -> bool:
    """Whether the authority ``issuer`` made ``certificate``, with ``below`` authorities in between."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        _check_issued(certificate, issuer, at, below)
    except Rejected as problem:
        problems.append(str(problem))
        return False
    return True


def _check_issued(certificate: Certificate, issuer: Certificate, at: datetime, below: int) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    code = "untrusted-certificate"
    if isinstance(certificate.signature_hash_algorithm, hashes.MD5 | hashes.SHA1):
        raise Rejected(code, "a certificate is signed with a weak hash")
    try:
        certificate.verify_directly_issued_by(issuer)
        key = issuer.public_key()
    except InvalidSignature:
        raise Rejected(code, "an authority of that name did not sign it") from None
    except (ValueError, TypeError) as problem:
        raise Rejected(code, printable(str(problem), 80)) from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS:
        raise Rejected(code, f"an authority's key has {key.key_size} bits")
    _check_dates(issuer, at, "an authority's certificate")
    _check_critical(issuer)
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise Rejected(code, "what issued it is no authority")
    if constraints.path_length is not None and constraints.path_length < below:
        raise Rejected(code, "the chain is longer than an authority allows")
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise Rejected(code, "what issued it may not sign certificates")


def _check_dates(certificate: Certificate, at: datetime, what: str) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= at <= last:
        raise Rejected(
            "certificate-dates",
            f"{what} is valid from {first:%F %TZ} to {last:%F %TZ}, not at {at:%F %TZ}",
        )


def _check_critical(certificate: Certificate) -> None:
    from cryptography import x509

    known = (
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
    )
    try:
        extensions = list(certificate.extensions)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Rejected("bad-certificate", "a certificate's extensions are malformed") from None
    for extension in extensions:
        if extension.critical and not isinstance(extension.value, known):
            oid = extension.oid.dotted_string
            raise Rejected("bad-certificate", f"a certificate has the critical extension {oid}")


def _extension(certificate: Certificate, kind: type[T]) -> T | None:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(kind).value  # type: ignore[type-var]
    except x509.ExtensionNotFound:
        return None


def _names(certificate: Certificate, kind: type[Any]) -> list[str]:
    from cryptography import x509

    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else list(names.get_values_for_type(kind))


def emails(certificate: Certificate) -> tuple[str, ...]:
    """The e-mail addresses it names."""
    from cryptography import x509

    return tuple(_names(certificate, x509.RFC822Name))


def hosts(certificate: Certificate) -> tuple[str, ...]:
    """The host names it names."""
    from cryptography import x509

    return tuple(_names(certificate, x509.DNSName))


def identities(certificate: Certificate) -> tuple[str, ...]:
    """E-mail addresses and URIs it names."""
    from cryptography import x509

    uris = _names(certificate, x509.UniformResourceIdentifier)
    return (*emails(certificate), *uris)


def issuer(certificate: Certificate) -> str:
    """Who told the authority of the identity (OpenID Connect issuer), by Fulcio's extensions.

    Raises:
        Rejected: it has none, or two that differ.
    """
    from cryptography import x509

    found = set()
    for extension in certificate.extensions:
        value = extension.value
        if not isinstance(value, x509.UnrecognizedExtension):
            continue
        if extension.oid.dotted_string == _ISSUER:
            found.add(value.value.decode("utf-8", "replace"))
        elif extension.oid.dotted_string == _ISSUER_V2:
            found.add(_utf8_string(value.value))
    if len(found) != 1:
        raise Rejected("no-issuer", f"the certificate names {len(found)} issuers, not one")
    return found.pop()


def _utf8_string(der: bytes) -> str:
    if len(der) < 2 or der[0] != 0x0C:
        raise Rejected("bad-certificate", "the certificate's issuer is malformed")
    size, start = der[1], 2
    if size & 0x80:
        start = 2 + (size & 0x7F)
        size = int.from_bytes(der[2:start], "big")
    if start + size != len(der):
        raise Rejected("bad-certificate", "the certificate's issuer is malformed")
    return der[start:].decode("utf-8", "replace")


def instant(seconds: int) -> datetime:
    """Seconds since 1970 as a time; beyond what calendars know: refused.

    Raises:
        Rejected: ``bad-time``.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise Rejected("bad-time", f"{seconds} is no time") from None
