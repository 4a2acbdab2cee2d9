"""Certificates: a private Fulcio, certificate log and Rekor; bundles through the sigstore package, and cosign's classic layout."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json

import pytest
from bootc_signing import certificates, cosign, keyless, rekor
from bootc_signing.bundle import Subject
from bootc_signing.claims import CannotCheck, Rejected
from bootc_signing.keys import parse_public_key
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from support.signing import (
    DAY,
    IDENTITY,
    ISSUER,
    PEM,
    Authority,
    b64,
    classic,
    make_ca,
    merkle,
    payload,
    pem,
    sign,
    statement,
)

RAW = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(RAW).hexdigest()
SUBJECT = Subject(DIGEST, RAW)
NOW = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)
REFERENCE = "quay.io/acme/os"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def key():
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def root(authority):
    return keyless.load_trusted_root(authority.trusted_root(), "the test's root")


def by_identity(data, root, identity=IDENTITY, issuer=ISSUER, subject=SUBJECT):
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return keyless.by_identity(raw, subject, root, identity, issuer, NOW)


def classically(attachment, authority, identity=IDENTITY, issuer=ISSUER):
    made, logs = keyless.authority(authority.trusted_root(), "root", identity, issuer)
    return cosign.by_certificate(attachment, made, logs, NOW)


# --- bundles --------------------------------------------------------------------------------------


def test_a_keyless_bundle_is_verified_by_the_sigstore_package(authority, key, root):
    data = authority.bundle(statement(DIGEST), authority.certificate(key), key)
    claim = by_identity(data, root)
    assert claim.digest == DIGEST
    assert claim.principal == f"identity {IDENTITY} ({ISSUER})"
    assert claim.time == int(datetime.datetime(2026, 6, 1, 12, 1, tzinfo=datetime.UTC).timestamp())
    assert dict(claim.facts)["log entry"].startswith("5 of log ")
    assert dict(claim.facts)["logged"] == "2026-06-01T12:01:00Z"


@pytest.mark.parametrize(
    ("identity", "issuer", "reason"),
    [
        (IDENTITY + "x", ISSUER, "not https"),
        (IDENTITY[:-1], ISSUER, "not https"),
        (IDENTITY.upper(), ISSUER, "not HTTPS"),
        ("https://github.com/acme/*", ISSUER, "not https"),
        (IDENTITY, ISSUER + "/", "OIDC"),
        (IDENTITY, "https://accounts.example.org", "OIDC"),
    ],
)
def test_s03_identities_off_by_one(authority, key, root, identity, issuer, reason):
    data = authority.bundle(statement(DIGEST), authority.certificate(key), key)
    with pytest.raises(Rejected, match=reason):
        by_identity(data, root, identity, issuer)


def test_a_star_stands_for_one_part_of_an_identity(authority, key, root):
    data = authority.bundle(statement(DIGEST), authority.certificate(key), key)
    pattern = "https://github.com/acme/os/.github/workflows/*@refs/heads/*"
    assert by_identity(data, root, pattern).principal == f"identity {IDENTITY} ({ISSUER})"


def test_another_authority_log_or_certificate_log_does_not_count(authority, key):
    other = Authority()
    for changed in ("ca", "log", "ct"):
        wrong = Authority(
            root_key=authority.root_key,
            ca_key=other.ca_key if changed == "ca" else authority.ca_key,
            ct_key=other.ct_key if changed == "ct" else authority.ct_key,
            log_key=other.log_key if changed == "log" else authority.log_key,
        )
        if changed == "ca":
            wrong.root, wrong.ca = other.root, other.ca
        else:
            wrong.root, wrong.ca = authority.root, authority.ca
        data = authority.bundle(statement(DIGEST), authority.certificate(key), key)
        with pytest.raises(Rejected) as caught:
            by_identity(data, keyless.load_trusted_root(wrong.trusted_root(), "root"))
        assert str(caught.value)


@pytest.mark.parametrize("minutes", [-1, 11, 60 * 24 * 365])
def test_s10_s11_logged_outside_the_certificates_life(authority, key, root, minutes):
    certificate = authority.certificate(key)
    at = int(certificate.not_valid_before_utc.timestamp()) + 60 * minutes
    with pytest.raises(Rejected):
        by_identity(authority.bundle(statement(DIGEST), certificate, key, at), root)
    with pytest.raises(Rejected) as caught:
        classically(authority.classic(payload(DIGEST, REFERENCE), certificate, key, at), authority)
    assert caught.value.code in {"certificate-dates", "future-time"}


def test_missing_pieces(authority, key, root):
    whole = authority.bundle(statement(DIGEST), authority.certificate(key), key)
    entry = whole["verificationMaterial"]["tlogEntries"][0]

    def without(change):
        copy = json.loads(json.dumps(whole))
        change(copy, copy["verificationMaterial"]["tlogEntries"][0])
        return copy

    cases = {
        "no entry": lambda b, e: b["verificationMaterial"].update(tlogEntries=[]),
        "two entries": lambda b, e: b["verificationMaterial"].update(tlogEntries=[entry, entry]),
        "no promise": lambda b, e: e.pop("inclusionPromise"),
        "no proof": lambda b, e: e.pop("inclusionProof"),
        "no checkpoint": lambda b, e: e["inclusionProof"].pop("checkpoint"),
        "no signature": lambda b, e: b["dsseEnvelope"].update(signatures=[]),
        "two signatures": lambda b, e: b["dsseEnvelope"]["signatures"].append({"sig": "AA=="}),
        "no certificate": lambda b, e: b["verificationMaterial"].pop("certificate"),
        "key and certificate": lambda b, e: b["verificationMaterial"].update(
            publicKey={"hint": ""}
        ),
        "message too": lambda b, e: b.update(messageSignature={"signature": "AA=="}),
        "another version": lambda b, e: b.update(
            mediaType="application/vnd.dev.sigstore.bundle.v0.9+json"
        ),
        "unknown member": lambda b, e: b.update(more=1),
    }
    for name, change in cases.items():
        changed = without(change)
        with pytest.raises(Rejected):
            by_identity(changed, root)
        assert changed != whole, name
    assert by_identity(without(lambda b, e: None), root)


def test_a_certificate_without_sct_or_for_something_else(authority, key, root):
    for certificate in (
        authority.certificate(key, sct=False),
        authority.certificate(key, code=False),
    ):
        with pytest.raises(Rejected):
            by_identity(authority.bundle(statement(DIGEST), certificate, key), root)


def test_a_statement_about_another_image_or_repository(authority, key, root):
    other = "sha256:" + "0" * 64
    certificate = authority.certificate(key)
    with pytest.raises(Rejected) as caught:
        by_identity(authority.bundle(statement(other), certificate, key), root)
    assert caught.value.code == "wrong-digest"
    assert other in str(caught.value)
    assert DIGEST in str(caught.value)


def test_the_entry_is_about_another_signature(authority, key, root):
    certificate = authority.certificate(key)
    first = authority.bundle(statement(DIGEST), certificate, key)
    second = authority.bundle(statement(DIGEST), certificate, key)
    first["verificationMaterial"]["tlogEntries"] = second["verificationMaterial"]["tlogEntries"]
    with pytest.raises(Rejected, match="signatures do not match"):
        by_identity(first, root)


def test_a_damaged_trusted_root_cannot_be_used():
    for data in (b"", b"{}", b'{"mediaType": "x"}', b"\xff"):
        with pytest.raises(CannotCheck):
            keyless.load_trusted_root(data, "root")
    for data in (b"", b'{"tlogs": [{}]}', b'{"certificateAuthorities": 5}'):
        with pytest.raises(CannotCheck):
            keyless.authority(data, "root", "a@b", "x")


# --- cosign's classic layout ----------------------------------------------------------------------


def test_a_keyless_classic_signature(authority, key):
    data = payload(DIGEST, REFERENCE)
    claim = classically(authority.classic(data, authority.certificate(key), key), authority)
    assert (claim.digest, claim.reference) == (DIGEST, REFERENCE)
    assert claim.principal == f"identity {IDENTITY} ({ISSUER})"


def test_policy_json_fulcio_names_an_address(authority, key):
    made = cosign.Authority((authority.root,), issuer=ISSUER, email="a@example.org")
    logs = [parse_public_key(pem(authority.log_key), "log")]
    data = payload(DIGEST, REFERENCE)

    def check(identity, **more):
        certificate = authority.certificate(key, identity, **more)
        return cosign.by_certificate(authority.classic(data, certificate, key), made, logs, NOW)

    assert check("a@example.org").digest == DIGEST
    for identity in ("b@example.org", "a@example.org.evil.net", "xa@example.org", IDENTITY):
        with pytest.raises(Rejected) as caught:
            check(identity)
        assert caught.value.code == "wrong-identity"
    with pytest.raises(Rejected) as caught:
        check("a@example.org", issuer="https://elsewhere")
    assert caught.value.code == "wrong-issuer"
    with pytest.raises(Rejected) as caught:
        check("a@example.org", old_issuer="https://elsewhere")
    assert caught.value.code == "no-issuer"


def test_pki_certificates_are_checked_at_the_present(authority, key):
    data = payload(DIGEST, REFERENCE)
    made = cosign.Authority((authority.root,), (authority.ca,), host="builder.example.org")

    def check(**more):
        certificate = authority.certificate(key, "builder.example.org", **more)
        attachment = classic(
            key,
            data,
            annotations={"dev.sigstore.cosign/certificate": certificate.public_bytes(PEM).decode()},
        )
        return cosign.by_certificate(attachment, made, [], NOW)

    year = 366 * 24 * 60
    assert check(minutes=year).digest == DIGEST
    with pytest.raises(Rejected) as caught:
        check()
    assert caught.value.code == "certificate-dates"
    with pytest.raises(Rejected) as caught:
        check(minutes=year, code=False)
    assert "signing code" in str(caught.value)


def test_chains(authority, key):
    """Every way in which a chain can be wrong."""
    at = datetime.datetime(2026, 6, 1, 12, 1, tzinfo=datetime.UTC)
    leaf = authority.certificate(key)
    certificates.verify_chain(leaf, [authority.ca], [authority.root], at)
    certificates.verify_chain(leaf, [], [authority.ca], at)  # a root need not be self-signed

    other = Authority()
    impostor = make_ca("test intermediate", other.ca_key, (other.root, other.root_key))
    no_ca = make_ca(
        "test intermediate", authority.ca_key, (authority.root, authority.root_key), ca=False
    )
    expired = make_ca(
        "test intermediate",
        authority.ca_key,
        (authority.root, authority.root_key),
        start=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
        days=30,
    )
    cases = [
        (leaf, [], [authority.root], "no authority issued it"),
        (leaf, [authority.ca], [other.root], "no trusted root"),
        (leaf, [impostor], [other.root], "did not sign it"),
        (leaf, [no_ca], [authority.root], "no authority"),
        (leaf, [expired], [authority.root], "valid from"),
        (authority.ca, [], [authority.root], "an authority's"),
        (authority.certificate(key, code=False), [authority.ca], [authority.root], "signing code"),
        (
            authority.certificate(
                key,
                extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"x"), True)],
            ),
            [authority.ca],
            [authority.root],
            "critical extension 1.2.3",
        ),
    ]
    for certificate, helpers, roots, reason in cases:
        with pytest.raises(Rejected, match=reason):
            certificates.verify_chain(certificate, helpers, roots, at)
    # path length 0: the intermediate may not make authorities
    deep_key = ec.generate_private_key(ec.SECP256R1())
    deep = make_ca("deep", deep_key, (authority.ca, authority.ca_key))
    leaf = authority.certificate(key, signer=(deep, deep_key))
    with pytest.raises(Rejected, match="longer than"):
        certificates.verify_chain(leaf, [deep, authority.ca], [authority.root], at)
    for moment in (at - DAY, at + DAY):
        with pytest.raises(Rejected, match="valid from"):
            certificates.verify_chain(
                authority.certificate(key), [authority.ca], [authority.root], moment
            )


# --- the log --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 64, 100])
def test_inclusion_proofs_of_every_entry(size):
    leaves = [hashlib.sha256(b"%d" % number).digest() for number in range(size)]
    for index in range(size):
        root, proof = merkle(leaves, index)
        assert rekor.root_from_proof(leaves[index], index, size, proof) == root
        for wrong in (index - 1, index + 1):
            found = b""
            with contextlib.suppress(Rejected):
                found = rekor.root_from_proof(leaves[index], wrong, size, proof)
            assert found != root
        if proof:
            with pytest.raises(Rejected):
                rekor.root_from_proof(leaves[index], index, size, proof[:-1])


def test_a_retired_log_key_does_not_count_later(authority, key):
    document = json.loads(authority.trusted_root())
    document["tlogs"][0]["publicKey"]["validFor"]["end"] = "2026-03-01T00:00:00Z"
    made, logs = keyless.authority(json.dumps(document).encode(), "root", IDENTITY, ISSUER)
    attachment = authority.classic(payload(DIGEST, REFERENCE), authority.certificate(key), key)
    with pytest.raises(Rejected) as caught:
        cosign.by_certificate(attachment, made, logs, NOW)
    assert caught.value.code == "bad-promise"


def test_a_promise_from_the_future(authority, key):
    certificate = authority.certificate(key, at=NOW + DAY)
    with pytest.raises(Rejected) as caught:
        classically(authority.classic(payload(DIGEST, REFERENCE), certificate, key), authority)
    assert caught.value.code == "future-time"


def test_checkpoints(authority):
    keys = [parse_public_key(pem(authority.log_key), "log")]
    note = f"rekor.test\n11\n{b64(bytes(32))}\n"
    good = b64(authority.log_id[:4] + sign(authority.log_key, note.encode()))
    assert rekor.verify_checkpoint(f"{note}\n\u2014 rekor.test {good}\n", keys) == (11, bytes(32))
    for text in (
        "",
        note,
        f"{note}\n",
        f"{note}\n- rekor.test {good}\n",
        f"{note}\n\u2014 rekor.test AAAA{good[4:]}\n",
        f"{note.replace('11', '12')}\n\u2014 rekor.test {good}\n",
        f"{note.replace('11', '011')}\n\u2014 rekor.test {good}\n",
        f"{note.replace('11', '-1')}\n\u2014 rekor.test {good}\n",
        f"\n11\n\n\u2014 rekor.test {good}\n",
    ):
        with pytest.raises(Rejected):
            rekor.verify_checkpoint(text, keys)


def test_without_the_package_the_extra_is_named(monkeypatch, authority):
    import sys

    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(CannotCheck) as caught:
        keyless.load_trusted_root(authority.trusted_root(), "root")
    assert "bootc[keyless]" in str(caught.value.hint)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(CannotCheck) as caught:
        parse_public_key(b"-----BEGIN PUBLIC KEY-----\n", "key")
    assert "bootc[signing]" in str(caught.value.hint)
