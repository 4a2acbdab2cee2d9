"""Public keys and the signatures they check: ECDSA, RSA (PKCS #1 v1.5) and Ed25519, by ``cryptography``.

    -----BEGIN PUBLIC KEY-----        SubjectPublicKeyInfo, one a file
    -----BEGIN RSA PUBLIC KEY-----    PKCS #1

ECDSA signs SHA-256 whatever the curve (so do cosign's classic layout and the containers tools); bundles may use the
curve's own hash. Keys below 2048 bits (RSA) and other curves than P-256, P-384, P-521 are not used.

``cryptography`` is an extra: without it every check answers "could not check", naming the extra.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from bootc_core.errors import printable
from bootc_signing.claims import CannotCheck, Rejected

RSA_BITS: Final = 2048
_CURVES: Final = {"secp256r1": "sha256", "secp384r1": "sha384", "secp521r1": "sha512"}


def missing(extra: str, problem: ImportError) -> CannotCheck:
    """The answer where a package is not installed."""
    return CannotCheck(
        f"the Python package {printable(problem.name or '', 40)} is not installed",
        f"install bootc with its extra: pip install 'bootc[{extra}]'",
    )


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that may sign.

    Attributes:
        fingerprint: ``SHA256:`` and the hex digest of the SubjectPublicKeyInfo.
        spki: that structure, DER.
        kind: ``ecdsa``, ``rsa`` or ``ed25519``.
    """

    fingerprint: str
    spki: bytes
    kind: str
    _key: Any = field(repr=False, compare=False)

    def verify(self, signature: bytes, data: bytes, *, own_hash: bool = False) -> None:
        """Nothing if ``signature`` is this key's over ``data``.

        Args:
            signature: DER for ECDSA.
            data: what was signed.
            own_hash: accept the curve's own hash beside SHA-256.

        Raises:
            Rejected: ``bad-signature``.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding

        sha256 = hashes.SHA256()
        attempts: list[hashes.HashAlgorithm] = [sha256]
        if own_hash and self.kind == "ecdsa":
            own = _CURVES[self._key.curve.name]
            if own != "sha256":
                attempts.insert(0, hashes.SHA384() if own == "sha384" else hashes.SHA512())
        for algorithm in attempts:
            try:
                if self.kind == "ecdsa":
                    self._key.verify(signature, data, ec.ECDSA(algorithm))
                elif self.kind == "rsa":
                    self._key.verify(signature, data, padding.PKCS1v15(), sha256)
                else:
                    self._key.verify(signature, data)
            except (InvalidSignature, ValueError):
                continue
            return
        raise Rejected("bad-signature", f"the signature is not valid by key {self.fingerprint}")


def wrap(key: Any, what: str) -> PublicKey:
    """A key object of ``cryptography`` as ``PublicKey``.

    Raises:
        CannotCheck: of a kind or size that is not used.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if isinstance(key, ec.EllipticCurvePublicKey):
        kind = "ecdsa"
        if key.curve.name not in _CURVES:
            raise CannotCheck(f"{what} is on the curve {key.curve.name}, which is not used")
    elif isinstance(key, rsa.RSAPublicKey):
        kind = "rsa"
        if key.key_size < RSA_BITS:
            raise CannotCheck(
                f"{what} has {key.key_size} bits; below {RSA_BITS} a key proves nothing"
            )
    elif isinstance(key, ed25519.Ed25519PublicKey):
        kind = "ed25519"
    else:
        raise CannotCheck(f"{what} is a key of a kind that is not used here")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey("SHA256:" + hashlib.sha256(spki).hexdigest(), spki, kind, key)


def parse_public_key(pem: bytes, what: str) -> PublicKey:
    """The one public key in a PEM text.

    Raises:
        CannotCheck: no key, several, a private one, a weak one; or ``cryptography`` is missing.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as problem:
        raise missing("signing", problem) from None
    if b"PRIVATE KEY" in pem:
        raise CannotCheck(f"{what} is a private key", "keep it off this host; name the public one")
    if pem.count(b"-----BEGIN ") != 1:
        raise CannotCheck(f"{what} is not one public key in PEM form")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise CannotCheck(f"{what} is not a public key in PEM form") from None
    return wrap(key, what)
