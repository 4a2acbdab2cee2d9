"""Signatures for tests: Debian's real cosign, real GnuPG, and a private authority with its trusted root.

program = cosign_program()          path of the real cosign, or a skip
authority = Authority()             certificates, logs, a trusted root file
authority.bundle(statement, ...)    what a keyless `cosign sign` would have put into a bundle
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bootc_core.models.image import Attachment

SCRIPT = Path(__file__).parents[1] / "tools" / "cosign.sh"
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
SHA256 = hashes.SHA256()
PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGN = "https://sigstore.dev/cosign/sign/v1"
IDENTITY = "https://github.com/acme/os/.github/workflows/build.yml@refs/heads/main"
ISSUER = "https://token.actions.githubusercontent.com"
UTC = datetime.UTC
DAY = datetime.timedelta(days=1)


@functools.cache
def cosign_program() -> str:
    """Path of the real cosign; skips the test where it cannot be fetched."""
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(f"no cosign: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def skopeo_program() -> str:
    """Path of a skopeo that signs with sigstore keys: Debian 12 has that switched off in its own."""
    return str(Path(cosign_program()).with_name("skopeo"))


@dataclass(frozen=True)
class Cosign:
    """The real program with one key pair in ``home``."""

    home: Path

    def run(self, *arguments: str) -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "COSIGN_PASSWORD": "",
            "TUF_ROOT": str(self.home / "tuf"),
        }
        done = subprocess.run(
            [cosign_program(), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=self.home,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @classmethod
    def make(cls, home: Path) -> Cosign:
        home.mkdir(parents=True, exist_ok=True)
        made = cls(home)
        made.run("generate-key-pair")
        return made

    @property
    def public(self) -> Path:
        return self.home / "cosign.pub"

    def sign(self, reference: str, *, classic: bool, recursive: bool = False) -> None:
        """Sign an image by digest in a registry on loopback, recorded in no log."""
        self._attach("sign", reference, classic, *(["--recursive"] if recursive else []))

    def attest(self, reference: str, kind: str, *, classic: bool) -> None:
        """Attach a statement of ``kind``, e.g. ``slsaprovenance1``."""
        predicate = self.home / "predicate.json"
        predicate.write_text('{"buildDefinition": {}}')
        self._attach("attest", reference, classic, "--type", kind, "--predicate", str(predicate))

    def _attach(self, verb: str, reference: str, classic: bool, *more: str) -> None:
        layout = ["--new-bundle-format=false"] if classic else []
        self.run(
            *(verb, "--yes", "--key", str(self.home / "cosign.key"), *layout),
            *("--use-signing-config=false", "--tlog-upload=false"),
            *("--allow-http-registry", "--allow-insecure-registry", *more, reference),
        )


# --- GnuPG ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpg:
    """A GnuPG home with keys."""

    home: Path

    def run(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run(
            ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes", *arguments],
            input=stdin,
            capture_output=True,
            check=True,
        ).stdout

    @classmethod
    def make(cls, home: Path, *names: str, kind: str = "rsa2048", expire: str = "never") -> Gpg:
        home.mkdir(parents=True, mode=0o700)
        made = cls(home)
        for name in names or ("Publisher <publisher@example.org>",):
            made.run("--passphrase", "", "--quick-generate-key", name, kind, "sign", expire)
        return made

    def fingerprint(self, name: str = "publisher") -> str:
        lines = self.run("--list-keys", "--with-colons", name).decode().splitlines()
        return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))

    def export(self, name: str = "publisher", *, armour: bool = False) -> bytes:
        return self.run(*(["--armor"] if armour else []), "--export", name)

    def sign(self, payload: bytes, name: str = "publisher", *more: str) -> bytes:
        """A signed message, binary, as the containers tools make them."""
        key = self.fingerprint(name)
        return self.run(
            "--passphrase", "", "-u", key, *more, "--output", "-", "--sign", stdin=payload
        )

    def end(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"],
            check=False,
            capture_output=True,
        )


def payload(digest: str, reference: str, *, kind: str = "cosign", **optional: Any) -> bytes:
    """A simple signing payload."""
    kinds = {"cosign": "cosign container image signature", "gpg": "atomic container signature"}
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": kinds.get(kind, kind),
            },
            "optional": optional or None,
        }
    ).encode()


# --- keys -----------------------------------------------------------------------------------------

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(PEM, SPKI)


def spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(DER, SPKI)


def sign(key: PrivateKey, data: bytes, digest: hashes.HashAlgorithm = SHA256) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(digest))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, PKCS1v15(), digest)
    return key.sign(data)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def classic(
    key: PrivateKey, data: bytes, *, annotations: dict[str, str] | None = None
) -> Attachment:
    """A signature in cosign's classic layout."""
    found = {"dev.cosignproject.cosign/signature": b64(sign(key, data)), **(annotations or {})}
    return Attachment(PAYLOAD_TYPE, data, found, "tests")


def statement(digest: str, predicate: str = SIGN) -> bytes:
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.partition(":")[2]}}],
            "predicateType": predicate,
            "predicate": {},
        }
    ).encode()


IN_TOTO = "application/vnd.in-toto+json"


def pae(data: bytes, kind: str = IN_TOTO) -> bytes:
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(data), data)


def key_bundle(key: PrivateKey, data: bytes, **material: Any) -> bytes:
    """A bundle signed by a bare key, as cosign writes it."""
    signature = sign(key, pae(data))
    return json.dumps(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": b64(hashlib.sha256(spki(key)).digest())},
                **material,
            },
            "dsseEnvelope": {
                "payload": b64(data),
                "payloadType": IN_TOTO,
                "signatures": [{"sig": b64(signature)}],
            },
        }
    ).encode()


# --- a private authority --------------------------------------------------------------------------


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def make_ca(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    *,
    start: datetime.datetime | None = None,
    days: int = 3650,
    ca: bool = True,
    path_length: int | None = None,
) -> x509.Certificate:
    """A certificate of an authority."""
    begin = start or datetime.datetime(2026, 1, 1, tzinfo=UTC)
    signer = issuer[1] if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer[0].subject if issuer else _name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + days * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return builder.sign(signer, SHA256)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Authority:
    """Fulcio, a certificate log and Rekor in one, all keys made here."""

    root_key: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    ca_key: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    ct_key: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    log_key: ec.EllipticCurvePrivateKey = field(default_factory=_new_key)
    start: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.root = make_ca("test root", self.root_key, start=self.start)
        issuer = (self.root, self.root_key)
        self.ca = make_ca("test intermediate", self.ca_key, issuer, start=self.start, path_length=0)

    def trusted_root(self) -> bytes:
        """The trusted root file (JSON)."""
        window = {"start": self.start.strftime("%Y-%m-%dT%H:%M:%SZ")}

        def log(key: ec.EllipticCurvePrivateKey, url: str) -> dict[str, Any]:
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(spki(key)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": window,
                },
                "logId": {"keyId": b64(hashlib.sha256(spki(key)).digest())},
            }

        chain = [{"rawBytes": b64(item.public_bytes(DER))} for item in (self.ca, self.root)]
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.log_key, "https://rekor.test")],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "test", "commonName": "test"},
                        "uri": "https://fulcio.test",
                        "certChain": {"certificates": chain},
                        "validFor": window,
                    }
                ],
                "ctlogs": [log(self.ct_key, "https://ct.test")],
                "timestampAuthorities": [],
            }
        ).encode()

    # --- certificates

    def certificate(
        self,
        key: PrivateKey,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        *,
        at: datetime.datetime | None = None,
        minutes: int = 10,
        sct: bool = True,
        code: bool = True,
        old_issuer: str | None = None,
        signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.Certificate:
        """What Fulcio would have issued at ``at`` for ``minutes``."""
        begin = at or datetime.datetime(2026, 6, 1, 12, tzinfo=UTC)
        ca, ca_key = signer or (self.ca, self.ca_key)
        name: x509.GeneralName = (
            x509.UniformResourceIdentifier(identity)
            if "://" in identity
            else x509.RFC822Name(identity)
            if "@" in identity
            else x509.DNSName(identity)
        )
        text = issuer.encode()
        usage = ExtendedKeyUsageOID.CODE_SIGNING if code else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(minutes=minutes))
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(
                _unknown("1.3.6.1.4.1.57264.1.1", (old_issuer or issuer).encode()), critical=False
            )
            .add_extension(
                _unknown("1.3.6.1.4.1.57264.1.8", b"\x0c" + _der_length(len(text)) + text),
                critical=False,
            )
        )
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical=critical)
        if not sct:
            return builder.sign(ca_key, SHA256)
        tbs = builder.sign(ca_key, SHA256).tbs_certificate_bytes
        stamp = int(begin.timestamp() * 1000).to_bytes(8, "big")
        key_hash = hashlib.sha256(ca_key.public_key().public_bytes(DER, SPKI)).digest()
        signed = b"\0\0" + stamp + b"\0\1" + key_hash + len(tbs).to_bytes(3, "big") + tbs + b"\0\0"
        signature = sign(self.ct_key, signed)
        log = hashlib.sha256(spki(self.ct_key)).digest()
        one = b"\0" + log + stamp + b"\0\0\4\3" + len(signature).to_bytes(2, "big") + signature
        some = len(one).to_bytes(2, "big") + one
        some = len(some).to_bytes(2, "big") + some
        value = b"\x04" + _der_length(len(some)) + some
        builder = builder.add_extension(_unknown("1.3.6.1.4.1.11129.2.4.2", value), critical=False)
        return builder.sign(ca_key, SHA256)

    # --- the log

    @property
    def log_id(self) -> bytes:
        return hashlib.sha256(spki(self.log_key)).digest()

    def record(self, data: bytes, signature: bytes, verifier: bytes) -> bytes:
        """Body of a ``hashedrekord`` entry; ``verifier``: PEM of key or certificate."""
        return _canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "hashedrekord",
                "spec": {
                    "data": {
                        "hash": {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}
                    },
                    "signature": {
                        "content": b64(signature),
                        "publicKey": {"content": b64(verifier)},
                    },
                },
            }
        )

    def envelope_record(self, data: bytes, signature: bytes, verifier: bytes) -> bytes:
        """Body of a ``dsse`` entry."""
        return _canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": "0" * 64},
                    "payloadHash": {
                        "algorithm": "sha256",
                        "value": hashlib.sha256(data).hexdigest(),
                    },
                    "signatures": [{"signature": b64(signature), "verifier": b64(verifier)}],
                },
            }
        )

    def promise(self, body: bytes, at: int, index: int = 7) -> str:
        """The ``bundle`` annotation of cosign's classic layout."""
        inner = {
            "body": b64(body),
            "integratedTime": at,
            "logIndex": index,
            "logID": self.log_id.hex(),
        }
        signed = sign(self.log_key, _canonical(inner))
        return json.dumps({"SignedEntryTimestamp": b64(signed), "Payload": inner})

    def entry(self, body: bytes, at: int, kind: str, index: int = 5) -> dict[str, Any]:
        """A ``tlogEntries`` item: promise, and a proof in a small tree."""
        leaves = [hashlib.sha256(b"\0other %d" % number).digest() for number in range(11)]
        leaves[index] = hashlib.sha256(b"\0" + body).digest()
        root, proof = merkle(leaves, index)
        note = f"rekor.test\n{len(leaves)}\n{b64(root)}\n"
        signed = sign(self.log_key, note.encode())
        line = f"\u2014 rekor.test {b64(self.log_id[:4] + signed)}\n"
        inner = {
            "body": b64(body),
            "integratedTime": at,
            "logID": self.log_id.hex(),
            "logIndex": index,
        }
        return {
            "logIndex": str(index),
            "logId": {"keyId": b64(self.log_id)},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": str(at),
            "inclusionPromise": {
                "signedEntryTimestamp": b64(sign(self.log_key, _canonical(inner)))
            },
            "inclusionProof": {
                "logIndex": str(index),
                "rootHash": b64(root),
                "treeSize": str(len(leaves)),
                "hashes": [b64(item) for item in proof],
                "checkpoint": {"envelope": f"{note}\n{line}"},
            },
            "canonicalizedBody": b64(body),
        }

    # --- whole signatures

    def classic(
        self,
        data: bytes,
        certificate: x509.Certificate,
        key: PrivateKey,
        at: int | None = None,
        **more: str,
    ) -> Attachment:
        """A keyless signature in cosign's classic layout."""
        signature = sign(key, data)
        text = certificate.public_bytes(PEM)
        time = int(certificate.not_valid_before_utc.timestamp()) + 60 if at is None else at
        annotations = {
            "dev.cosignproject.cosign/signature": b64(signature),
            "dev.sigstore.cosign/certificate": text.decode(),
            "dev.sigstore.cosign/chain": (
                self.ca.public_bytes(PEM) + self.root.public_bytes(PEM)
            ).decode(),
            "dev.sigstore.cosign/bundle": self.promise(self.record(data, signature, text), time),
        }
        return Attachment(PAYLOAD_TYPE, data, annotations | more, "tests")

    def bundle(
        self,
        data: bytes,
        certificate: x509.Certificate,
        key: PrivateKey,
        at: int | None = None,
    ) -> dict[str, Any]:
        """A keyless bundle over an in-toto statement."""
        signature = sign(key, pae(data))
        time = int(certificate.not_valid_before_utc.timestamp()) + 60 if at is None else at
        body = self.envelope_record(data, signature, certificate.public_bytes(PEM))
        return {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(DER))},
                "tlogEntries": [self.entry(body, time, "dsse")],
            },
            "dsseEnvelope": {
                "payload": b64(data),
                "payloadType": IN_TOTO,
                "signatures": [{"sig": b64(signature)}],
            },
        }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _unknown(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def _der_length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    data = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(data)]) + data


def merkle(leaves: list[bytes], index: int) -> tuple[bytes, list[bytes]]:
    """Root and inclusion proof, by the recursive definition of RFC 6962 (not by the code under test)."""
    if len(leaves) == 1:
        return leaves[0], []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = leaves[:split], leaves[split:]
    if index < split:
        mine, proof = merkle(left, index)
        other = merkle(right, 0)[0]
        return hashlib.sha256(b"\1" + mine + other).digest(), [*proof, other]
    mine, proof = merkle(right, index - split)
    other = merkle(left, 0)[0]
    return hashlib.sha256(b"\1" + other + mine).digest(), [*proof, other]
