"""Foreign corpora: all bundle cases of sigstore's conformance suite, and the signatures of the containers tools' own tests."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path

import pytest
from bootc_signing import bundle, keyless, openpgp
from bootc_signing.claims import CannotCheck, Rejected
from bootc_signing.keys import parse_public_key
from bootc_signing.policy import parse_policy
from bootc_signing.requirements import Found, fulfils
from bootc_signing.world import World

from bootc_core.errors import ContentError
from bootc_core.models.reference import ImageReference
from bootc_core.oci.signatures import parse_blob

VECTORS = Path(__file__).parents[2] / "vectors/sigstore"
CASES = sorted(path for path in (VECTORS / "conformance").iterdir() if path.is_dir())
IDENTITY = (
    "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/"
    ".github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
)
ISSUER = "https://token.actions.githubusercontent.com"
NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)

# Good by the suite, and not accepted here: the sigstore package is stricter, or knows less.
STRICTER = {
    "intoto-with-custom-trust-root": "Integrated time only supported for dsse/hashedrekord",
    "trust-root-tsa-validity-end-inclusive": "not enough sources of verified time",
}


def test_the_corpus_is_whole():
    assert len(CASES) == 70
    assert sum(path.name.endswith("_fail") for path in CASES) == 49


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_s18_conformance(case):
    def read(name, default=None):
        path = case / name
        return path.read_bytes() if path.exists() else default

    artifact = read("artifact", (VECTORS / "conformance/a.txt").read_bytes())
    subject = bundle.Subject("sha256:" + hashlib.sha256(artifact).hexdigest(), artifact)
    root = read("trusted_root.json", (VECTORS / "public_good_trusted_root.json").read_bytes())
    identity = read("identity", IDENTITY.encode()).decode().strip()
    issuer = read("issuer", ISSUER.encode()).decode().strip()

    def check():
        trusted = keyless.load_trusted_root(root, "root")
        data = read("bundle.sigstore.json")
        if (key := read("key.pub")) is not None:
            keys = [parse_public_key(key, "key")]
            return bundle.by_key(data, subject, keys, trusted.logs, NOW)
        return keyless.by_identity(data, subject, trusted, identity, issuer, NOW)

    if case.name.endswith("_fail"):
        with pytest.raises((Rejected, CannotCheck)) as caught:
            check()
        assert str(caught.value)
    elif case.name in STRICTER:
        with pytest.raises(Rejected, match=STRICTER[case.name]):
            check()
    else:
        assert check().digest == subject.digest


# --- the containers tools -------------------------------------------------------------------------

FIXTURES = VECTORS / "c-image/fixtures"
SINGLE = "192.168.64.2:5000/cosign-signed-single-sample"
REPOSITORY = {"type": "matchRepository"}


def gpg(key="public-key.gpg", **more):
    return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": f"/{key}", **more}


def cosign(key="cosign.pub", identity=REPOSITORY, **more):
    return {"type": "sigstoreSigned", "keyPath": f"/{key}", "signedIdentity": identity, **more}


FULCIO = {
    "type": "sigstoreSigned",
    "fulcio": {
        "caPath": "/fulcio_v1.crt.pem",
        "oidcIssuer": "https://github.com/login/oauth",
        "subjectEmail": "mitr@redhat.com",
    },
    "rekorPublicKeyPath": "/rekor.pub",
    "signedIdentity": REPOSITORY,
}
PKI = {
    "type": "sigstoreSigned",
    "pki": {
        "caRootsPath": "/pki_root_crts.pem",
        "caIntermediatesPath": "/pki_intermediate_crts.pem",
        "subjectEmail": "qiwan@redhat.com",
        "subjectHostname": "myhost.example.com",
    },
    "signedIdentity": REPOSITORY,
}
EXACT = {"type": "matchExact"}


def changed(requirement, part, **values):
    return {**requirement, part: {**requirement[part], **values}}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Configuration root with the keys, as only root can change them."""
    root = tmp_path_factory.mktemp("keys")
    for path in FIXTURES.iterdir():
        if path.suffix in {".pub", ".gpg", ".pem"}:
            (root / path.name).write_bytes(path.read_bytes())
    return root


@pytest.mark.real
@pytest.mark.parametrize(
    ("directory", "reference", "requirement", "reason"),
    [
        ("dir-img-valid", "testing/manifest:latest", gpg(), None),
        ("dir-img-valid", "testing/manifest:notlatest", gpg(), "it is for testing/manifest:latest"),
        ("dir-img-valid", "testing/manifest:latest", gpg("public-key-2.gpg"), "signed by key"),
        ("dir-img-valid-2", "testing/manifest:latest", gpg(), None),
        ("dir-img-valid-2", "testing/manifest:notlatest", gpg(), "it is for"),
        ("dir-img-mixed", "testing/manifest:latest", gpg(), None),
        ("dir-img-unsigned", "testing/manifest:latest", gpg(), "no OpenPGP signature"),
        ("dir-img-modified-manifest", "testing/manifest:latest", gpg(), "the image is sha256:"),
        (
            "dir-img-valid-subkey",
            "testing/manifest:latest",
            gpg("public-key-with-subkey.gpg"),
            None,
        ),
        (
            "dir-img-valid-subkey",
            "testing/manifest:latest",
            gpg("public-key-with-revoked-subkey.gpg"),
            "which the policy does not name",
        ),
        ("dir-img-cosign-valid", SINGLE, cosign(), None),
        ("dir-img-cosign-valid", SINGLE, cosign("cosign2.pub"), "not valid by"),
        ("dir-img-cosign-valid", "testing/manifest:notlatest", cosign(), "it is for"),
        ("dir-img-cosign-valid", SINGLE, cosign(identity=EXACT), "it is for"),
        ("dir-img-cosign-valid", SINGLE, cosign(rekorPublicKeyPath="/rekor.pub"), "log entry"),
        ("dir-img-cosign-valid-2", SINGLE, cosign(), None),
        ("dir-img-cosign-valid-2", "this/does-not:match", cosign(), "it is for"),
        ("dir-img-cosign-mixed", SINGLE, cosign(), None),
        ("dir-img-cosign-modified-manifest", SINGLE, cosign(), "the image is sha256:"),
        ("dir-img-cosign-other-attachment", SINGLE, cosign(), "no sigstore signature"),
        ("dir-img-unsigned", SINGLE, cosign(), "no sigstore signature"),
        ("dir-img-valid", "testing/manifest:latest", cosign(), "no sigstore signature"),
        ("dir-img-cosign-valid", SINGLE, gpg(), "no OpenPGP signature"),
        (
            "dir-img-cosign-valid-with-tag",
            "192.168.64.2:5000/skopeo-signed:tag",
            cosign(identity=EXACT),
            None,
        ),
        (
            "dir-img-cosign-valid-with-tag",
            "192.168.64.2:5000/skopeo-signed:othertag",
            cosign(identity=EXACT),
            "it is for",
        ),
        (
            "dir-img-cosign-key-rekor-valid",
            "192.168.64.2:5000/cosign-signed/key-1",
            cosign("cosign2.pub", rekorPublicKeyPath="/rekor.pub"),
            None,
        ),
        (
            "dir-img-cosign-key-rekor-valid",
            "192.168.64.2:5000/cosign-signed/key-1",
            cosign("cosign2.pub", rekorPublicKeyPath="/cosign.pub"),
            "promise",
        ),
        (
            "dir-img-cosign-fulcio-rekor-valid",
            "192.168.64.2:5000/cosign-signed/fulcio-rekor-1",
            FULCIO,
            None,
        ),
        (
            "dir-img-cosign-fulcio-rekor-valid",
            "192.168.64.2:5000/cosign-signed/fulcio-rekor-1",
            changed(FULCIO, "fulcio", subjectEmail="this-does-not-match@example.com"),
            "mitr@redhat.com's",
        ),
        (
            "dir-img-cosign-fulcio-rekor-valid",
            "192.168.64.2:5000/cosign-signed/fulcio-rekor-1",
            changed(FULCIO, "fulcio", oidcIssuer="https://this-does-not-match.example.com"),
            "vouched for by",
        ),
        (
            "dir-img-cosign-fulcio-rekor-valid",
            "192.168.64.2:5000/cosign-signed/fulcio-rekor-1",
            changed(FULCIO, "fulcio", caPath="/pki_root_crts.pem"),
            "no trusted root",
        ),
        (
            "dir-img-cosign-key-rekor-valid",
            "192.168.64.2:5000/cosign-signed/key-1",
            FULCIO,
            "no cert",
        ),
        ("dir-img-cosign-pki-valid", "localhost:5000/test", PKI, None),
        (
            "dir-img-cosign-pki-valid",
            "localhost:5000/test",
            changed(PKI, "pki", subjectHostname="other.example.com"),
            "not other.example.com's",
        ),
        (
            "dir-img-cosign-pki-valid",
            "localhost:5000/test",
            changed(PKI, "pki", caRootsPath="/fulcio_v1.crt.pem"),
            "no trusted root",
        ),
    ],
)
def test_signatures_of_the_containers_tools(keys, directory, reference, requirement, reason):
    place = FIXTURES / directory
    manifest = (place / "manifest.json").read_bytes()
    subject = bundle.Subject("sha256:" + hashlib.sha256(manifest).hexdigest(), manifest)
    found = []
    for path in sorted(place.glob("signature-*")):
        try:
            found.append(parse_blob(path.read_bytes(), str(path)))
        except ContentError:
            assert directory in {"dir-img-mixed"}
    policy = parse_policy(json.dumps({"default": [requirement]}).encode(), "policy.json")
    result = fulfils(
        policy.default[0],
        Found(subject, "image", {"lookaside": found}),
        ImageReference.parse(reference),
        World(keys),
    )
    assert result.could_check, result
    if reason is None:
        assert result.accepted, result
    else:
        assert not result.accepted
        assert reason in result.reason()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "ring", "code"),
    [
        ("image.signature", "public-key.gpg", None),
        ("no-optional-fields.signature", "public-key.gpg", None),
        ("subkey.signature", "public-key-with-subkey.gpg", None),
        ("subkey-revoked.signature", "public-key-with-revoked-subkey.gpg", "revoked-key"),
        ("corrupt.signature", "public-key.gpg", "bad-signature"),
        ("expired.signature", "public-key.gpg", "expired-signature"),
        ("invalid-blob.signature", "public-key.gpg", "bad-json"),
        ("unknown-key.signature", "public-key.gpg", "wrong-key"),
        ("unsigned-literal.signature", "public-key.gpg", None),
        ("unsigned-encrypted.signature", "public-key.gpg", None),
    ],
)
def test_messages_of_the_containers_tools(name, ring, code):
    keyring = openpgp.make_ring([(ring, (FIXTURES / ring).read_bytes())])
    data = (FIXTURES / name).read_bytes()
    if code is None and not name.startswith("unsigned"):
        assert openpgp.verify(data, keyring, NOW).reference.startswith("testing/manifest")
        return
    with pytest.raises(Rejected) as caught:
        openpgp.verify(data, keyring, NOW)
    assert code is None or caught.value.code == code


def test_their_policy_is_ours():
    policy = parse_policy((FIXTURES / "policy.json").read_bytes(), "policy.json")
    assert {"docker", "dir", "oci"} <= set(policy.transports) | {"oci"}
    assert sum(len(scopes) for scopes in policy.transports.values()) >= 15
