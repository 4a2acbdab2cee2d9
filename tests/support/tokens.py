"""A token server for a real registry: it signs what the registry believes, and demands what a test says.

authority = TokenServer(directory, demand="Basic cmVhZGVyOnNlc2FtZQ==")
with authority.server, running_registry(storage, token=authority.settings()) as registry: …
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509 import load_pem_x509_certificate
from support.faulty_http import Asked, FaultyServer, Peer


class TokenServer:
    """Signs tokens for the registry; demands Basic, a refresh token, or nothing."""

    def __init__(
        self, directory: Path, *, demand: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.ca = trustme.CA()
        self.leaf = self.ca.issue_cert("tokens.example")
        self.bundle = directory / "tokens.crt"
        self.ca.cert_pem.write_to_path(self.bundle)
        self.demand = demand
        self.server = FaultyServer(self.handle, tls)

    def settings(self) -> dict[str, str]:
        """What the registry must know (``running_registry(token=…)``)."""
        return {
            "realm": self.server.url("/token"),
            "service": "registry",
            "issuer": "tests",
            "rootcertbundle": str(self.bundle),
        }

    def handle(self, peer: Peer, asked: Asked) -> None:
        given = (
            asked.body.decode() if asked.method == "POST" else asked.header("authorization") or ""
        )
        if self.demand and self.demand not in given:
            return peer.reply(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        peer.reply(200, json.dumps({"token": self.sign(), "expires_in": 60}).encode())

    def sign(self) -> str:
        def encoded(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        key = serialization.load_pem_private_key(self.leaf.private_key_pem.bytes(), None)
        certificate = load_pem_x509_certificate(self.leaf.cert_chain_pems[0].bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        access = [{"type": "repository", "name": "acme/os", "actions": ["pull", "push"]}]
        claims = {
            "iss": "tests",
            "sub": "",
            "aud": "registry",
            "exp": now + 300,
            "nbf": now - 60,
            "iat": now,
        }
        text = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims | {'jti': 'x', 'access': access}).encode())}"
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = utils.decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
