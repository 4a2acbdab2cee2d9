"""Signatures changed a little: every byte flipped, every length cut, every part swapped. None may count, each says why.

The changed signatures are counted, so that the suite cannot become empty unseen; `CHANGED` is also what
docs/trust-and-signatures.md says.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections import Counter

import pytest
from bootc_signing import bundle, cosign, keyless, openpgp
from bootc_signing.bundle import Subject
from bootc_signing.claims import CannotCheck, Rejected, check_digest, check_identity
from bootc_signing.keys import parse_public_key
from bootc_signing.policy import MatchRepository
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from support.signing import (
    ISSUER,
    Authority,
    Gpg,
    classic,
    key_bundle,
    payload,
    pem,
    statement,
)

from bootc_core.models.reference import ImageReference

RAW = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(RAW).hexdigest()
OTHER = "sha256:" + "0" * 64
SUBJECT = Subject(DIGEST, RAW)
NOW = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)
IMAGE = ImageReference.parse("quay.io/acme/os:1")
REPOSITORY = MatchRepository(type="matchRepository")
KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
# How many changed signatures of each kind are refused, at least: their length varies a little from key to key
CHANGED = {
    "payload and signature, cosign's tag": 10_000,
    "promise of a log": 4_800,
    "certificate, cosign's tag": 4_600,
    "bundle of a key": 18_000,
    "bundle of an identity": 6_000,
    "envelope of an attestation": 2_300,
    "OpenPGP message": 400,
}
counted: Counter[str] = Counter()
codes: set[str] = set()
STRANGER = ec.generate_private_key(ec.SECP256R1())


def public(key):
    return parse_public_key(pem(key), "key")


def flips(data):
    """Every byte changed in its lowest and its highest bit; NUL; and every shorter beginning."""
    for place in range(len(data)):
        for change in (data[place] ^ 0x01, data[place] ^ 0x20, data[place] ^ 0x80, 0):
            if change != data[place]:
                yield data[:place] + bytes([change]) + data[place + 1 :]
    for size in range(len(data)):
        yield data[:size]
    yield data + b"\n"
    yield data + data


def count_refusals(check, changed, what):
    """How often each reason was given; an acceptance fails."""
    reasons = Counter()
    for item in changed:
        try:
            claim = check(item)
        except Rejected as problem:
            reasons[problem.code if str(problem) else ""] += 1
        except CannotCheck as problem:
            pytest.fail(f"a changed signature is not a missing key: {problem}")
        else:
            pytest.fail(f"accepted: {item!r}: {claim}")
    assert "" not in reasons
    counted[what] += reasons.total()
    codes.update(reasons)
    return reasons


def whole(claim):
    check_digest(claim, DIGEST)
    if claim.predicate is None:
        check_identity(claim.reference, REPOSITORY, IMAGE)
    return claim


# --- cosign, classic ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYS)
def test_classic_payload_and_signature(kind):
    key = KEYS[kind]
    good = classic(key, payload(DIGEST, "quay.io/acme/os"))
    keys = [public(key)]

    def check(item):
        return whole(cosign.by_key(item, keys, [], NOW))

    assert check(good).digest == DIGEST
    name = "dev.cosignproject.cosign/signature"
    changed = [dataclasses.replace(good, payload=data) for data in flips(good.payload)]
    signature = good.annotations[name].encode()
    changed += [
        dataclasses.replace(good, annotations={name: data.decode("latin-1")})
        for data in flips(signature)
    ]
    reasons = count_refusals(check, changed, "payload and signature, cosign's tag")
    assert reasons["bad-signature"] > 800
    assert reasons["bad-base64"] > 50
    assert reasons.total() > 1300


def test_classic_promise():
    """Every byte of the log's promise."""
    authority = Authority()
    key = KEYS["P-256"]
    data = payload(DIGEST, "quay.io/acme/os")
    signed = classic(key, data)
    name = "dev.sigstore.cosign/bundle"
    signature = __import__("base64").b64decode(
        signed.annotations["dev.cosignproject.cosign/signature"]
    )
    promise = authority.promise(authority.record(data, signature, pem(key)), 1_780_000_000)
    keys, logs = [public(key)], [public(authority.log_key)]

    def check(text):
        item = dataclasses.replace(signed, annotations=signed.annotations | {name: text})
        return whole(cosign.by_key(item, keys, logs, NOW))

    assert check(promise).time == 1_780_000_000
    text = promise.encode()
    changed = [item.decode("latin-1") for item in flips(text) if item.strip() != text]
    reasons = count_refusals(check, changed, "promise of a log")
    assert reasons["bad-promise"] > 1000
    assert reasons["bad-json"] > 1000
    assert reasons.total() > 4000


def test_classic_certificate_and_chain():
    authority = Authority()
    key = KEYS["P-256"]
    certificate = authority.certificate(key, "a@example.org")
    good = authority.classic(payload(DIGEST, "quay.io/acme/os"), certificate, key)
    made = cosign.Authority((authority.root,), issuer=ISSUER, email="a@example.org")
    logs = [public(authority.log_key)]

    def check(item):
        return whole(cosign.by_certificate(item, made, logs, NOW))

    assert check(good).digest == DIGEST
    name = "dev.sigstore.cosign/certificate"
    text = good.annotations[name].encode()
    changed = [
        dataclasses.replace(good, annotations=good.annotations | {name: item.decode("latin-1")})
        for item in flips(text)
        if item.strip() != text.strip() and item != text[:-1]
    ]
    reasons = count_refusals(check, changed, "certificate, cosign's tag")
    assert reasons.total() > 3000


# --- bundles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYS)
def test_bundle_of_a_key(kind):
    key = KEYS[kind]
    data = key_bundle(key, statement(DIGEST))
    keys = [public(key)]

    def check(item):
        return whole(bundle.by_key(item, SUBJECT, keys, [], NOW))

    assert check(data).digest == DIGEST
    changed = [item for item in flips(data) if item.rstrip() != data]
    reasons = count_refusals(check, changed, "bundle of a key")
    assert reasons["bad-json"] > 1000
    assert reasons["bad-signature"] > 300
    assert reasons.total() > 3000


def test_bundle_of_an_identity():
    """Through the sigstore package, where each check takes a millisecond: one bit of every byte, and every third length."""
    authority = Authority()
    key = KEYS["P-256"]
    good = authority.bundle(statement(DIGEST), authority.certificate(key, "a@example.org"), key)
    root = keyless.load_trusted_root(authority.trusted_root(), "root")
    text = json.dumps(good).encode()

    def check(item):
        return whole(keyless.by_identity(item, SUBJECT, root, "a@example.org", ISSUER, NOW))

    assert check(text).digest == DIGEST
    changed = [
        text[:place] + bytes([text[place] ^ 0x01]) + text[place + 1 :] for place in range(len(text))
    ]
    changed += [text[:size] for size in range(0, len(text), 3)]
    reasons = count_refusals(check, changed, "bundle of an identity")
    assert reasons.total() > 5000
    assert len(reasons) > 5


def test_envelope():
    key = KEYS["P-256"]
    data = json.dumps(json.loads(key_bundle(key, statement(DIGEST)))["dsseEnvelope"]).encode()
    keys = [public(key)]

    def check(item):
        return whole(bundle.envelope_by_key(item, SUBJECT, keys))

    assert check(data).digest == DIGEST
    reasons = count_refusals(
        check, [item for item in flips(data) if item.rstrip() != data], "envelope of an attestation"
    )
    assert reasons.total() > 2000


# --- GnuPG ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpg(tmp_path_factory):
    made = Gpg.make(
        tmp_path_factory.mktemp("gpg") / "home",
        "Publisher <publisher@example.org>",
        "Stranger <stranger@example.org>",
        kind="ed25519",
    )
    yield made
    made.end()


@pytest.mark.real
def test_openpgp_message(gpg):
    """A small signed message, not compressed; one bit of every byte, and every sixth length."""
    ring = openpgp.make_ring([("key", gpg.export())])
    message = gpg.sign(
        payload(DIGEST, "quay.io/acme/os", kind="gpg"), "publisher", "--compress-algo", "none"
    )

    def check(item):
        return whole(openpgp.verify(item, ring, NOW))

    assert check(message).digest == DIGEST
    changed = [
        message[:place] + bytes([message[place] ^ 0x01]) + message[place + 1 :]
        for place in range(len(message))
    ]
    changed += [message[:size] for size in range(0, len(message), 6)]
    changed += [message + message, message + b"\x00", b"\x00" + message]
    # What OpenPGP leaves unsigned changes nothing that counts: the one-pass packet in front, name and date of the literal
    # packet, unhashed subpackets. With these the claim has to be the very same.
    same, rest = [], []
    for item in changed:
        try:
            same.append((item, check(item)))
        except Rejected:
            rest.append(item)
    assert {claim for _, claim in same} == {check(message)}
    content = message.index(b'{"critical"')
    end = content + message[content:].index(b"}") + 1
    for item, _ in same:
        assert item[content:end] == message[content:end]
    assert len(same) < 60
    reasons = count_refusals(check, rest, "OpenPGP message")
    assert reasons["bad-signature"] > 100
    assert reasons.total() > 390


@pytest.mark.real
def test_openpgp_other_forms(gpg, tmp_path):
    ring = openpgp.make_ring([("key", gpg.export())])
    data = payload(DIGEST, "quay.io/acme/os", kind="gpg")
    key = gpg.fingerprint()
    unsigned = gpg.run("--output", "-", "--store", stdin=data)
    forms = {
        "cleartext": gpg.run("--passphrase", "", "-u", key, "--clearsign", stdin=data),
        "armoured": gpg.run("--passphrase", "", "-u", key, "--armor", "--sign", stdin=data),
        "detached": gpg.run("--passphrase", "", "-u", key, "--detach-sign", stdin=data),
        "two signers": gpg.run(
            *("--passphrase", "", "-u", key, "-u", gpg.fingerprint("stranger"), "--sign"),
            stdin=data,
        ),
        "one signer twice": gpg.run("--passphrase", "", "-u", key, "-u", key, "--sign", stdin=data),
        "unsigned": unsigned,
        "stranger": gpg.sign(data, "stranger"),
        "text": gpg.sign(data, "publisher", "--textmode"),
        "future": gpg.sign(data, "publisher", "--faked-system-time", "20300101T000000"),
        "cosign's payload": gpg.sign(payload(DIGEST, "quay.io/acme/os")),
        "more members": gpg.sign(data.replace(b'"type"', b'"more": 1, "type"')),
        "another digest": gpg.sign(payload(OTHER, "quay.io/acme/os", kind="gpg")),
        "another repository": gpg.sign(payload(DIGEST, "quay.io/acme/oss", kind="gpg")),
        "nothing": gpg.sign(b""),
        "two keys of one name": gpg.sign(
            data.replace(b'{"critical"', b'{"critical": {}, "critical"')
        ),
    }
    found = {}
    for name, message in forms.items():
        try:
            claim = whole(openpgp.verify(message, ring, NOW))
        except Rejected as problem:
            found[name] = problem.code
        else:
            assert name == "one signer twice", (name, claim)  # gpg makes one signature of it
    assert {
        name: found.get(name) for name in ("cleartext", "armoured", "detached", "stranger")
    } == {
        "cleartext": "bad-format",
        "armoured": "bad-format",
        "detached": "several-signatures",
        "stranger": "wrong-key",
    }
    assert found["future"] == "future-time"
    assert found["another digest"] == "wrong-digest"
    assert found["another repository"] == "wrong-identity"
    assert found["text"] == "wrong-class"
    assert found["cosign's payload"] == "wrong-type"
    assert found["more members"] == "bad-document"
    assert len(found) >= 14


def refused_at_last(message, gpg):
    """Why a message whose second is over does not count."""
    ring = openpgp.make_ring([("key", gpg.export())])
    for _ in range(500):  # each asks the real gpgv, which takes a moment
        try:
            openpgp.verify(message, ring, NOW)
        except Rejected as problem:
            return problem.code
    return None


@pytest.mark.real
def test_openpgp_keys_that_expired_were_revoked_or_are_weak(tmp_path):
    data = payload(DIGEST, "quay.io/acme/os", kind="gpg")
    weak = Gpg.make(tmp_path / "weak", kind="rsa1024")
    short = Gpg.make(tmp_path / "short", kind="ed25519", expire="seconds=1")
    revoked = Gpg.make(tmp_path / "revoked", kind="ed25519")
    try:
        with pytest.raises(Rejected) as caught:
            openpgp.verify(weak.sign(data), openpgp.make_ring([("key", weak.export())]), NOW)
        assert caught.value.code == "weak-key"
        with pytest.raises(Rejected) as caught:
            openpgp.verify(
                weak.sign(data, "publisher", "--digest-algo", "SHA1"),
                openpgp.make_ring([("key", weak.export())]),
                NOW,
            )
        assert caught.value.code in {"weak-hash", "bad-signature"}

        made = short.run("--list-keys", "--with-colons").decode()
        created = next(
            int(line.split(":")[5]) for line in made.splitlines() if line.startswith("pub:")
        )
        signed = short.sign(data, "publisher", "--faked-system-time", f"{created}!")
        brief = revoked.sign(data, "publisher", "--default-sig-expire", "seconds=1")
        assert refused_at_last(signed, short) == "expired-key"
        assert refused_at_last(brief, revoked) == "expired-signature"

        signed = revoked.sign(data)
        ring = openpgp.make_ring([("key", revoked.export())])
        assert openpgp.verify(signed, ring, NOW).digest == DIGEST
        print_ = revoked.fingerprint()
        text = (
            (revoked.home / f"openpgp-revocs.d/{print_}.rev").read_text().replace(":-----", "-----")
        )
        revoked.run("--import", stdin=text.encode())
        with pytest.raises(Rejected) as caught:
            openpgp.verify(signed, openpgp.make_ring([("key", revoked.export())]), NOW)
        assert caught.value.code == "revoked-key"
    finally:
        for made_gpg in (weak, short, revoked):
            made_gpg.end()


def test_openpgp_keyrings_that_are_none():
    for data in (
        b"",
        b"rubbish",
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!\n-----END PGP PUBLIC KEY BLOCK-----\n",
    ):
        with pytest.raises(CannotCheck):
            openpgp.make_ring([("key", data)])


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ("", "several-signatures"),
        ("NEWSIG\nNEWSIG\nGOODSIG A\nVALIDSIG {v}", "several-signatures"),
        ("NEWSIG\nGOODSIG A\nVALIDSIG {v}\nVALIDSIG {v}", "bad-signature"),
        ("NEWSIG\nVALIDSIG {v}", "bad-signature"),
        ("NEWSIG\nGOODSIG A", "bad-signature"),
        ("NEWSIG\nEXPKEYSIG A\nVALIDSIG {v}", "expired-key"),
        ("NEWSIG\nGOODSIG A\nEXPSIG A\nVALIDSIG {v}", "expired-signature"),
        ("NEWSIG\nREVKEYSIG A\nVALIDSIG {v}", "revoked-key"),
        ("NEWSIG\nBADSIG A", "bad-signature"),
        ("NEWSIG\nERRSIG ABCD 1 8 00 1 9", "wrong-key"),
        ("NODATA 4", "bad-format"),
        ("NEWSIG\nGOODSIG A\nVALIDSIG {f} 2026-01-01 1 0 4 0 1 8 01 {f}", "wrong-class"),
        ("NEWSIG\nGOODSIG A\nVALIDSIG {f} 2026-01-01 1 0 4 0 1 2 00 {f}", "weak-hash"),
        ("NEWSIG\nGOODSIG A\nVALIDSIG {f} 2026-01-01 1 0 4 0 1 8 00", "bad-format"),
        ("NEWSIG\nGOODSIG A\nVALIDSIG xyz 2026-01-01 1 0 4 0 1 8 00 {f}", "bad-format"),
    ],
)
def test_openpgp_status_lines(lines, code):
    print_ = "A" * 40
    text = lines.format(f=print_, v=f"{print_} 2026-01-01 1 0 4 0 1 8 00 {print_}")
    output = "".join(f"[GNUPG:] {line}\n" for line in text.splitlines()).encode()
    with pytest.raises(Rejected) as caught:
        openpgp.parse_status(output, 0, {})
    assert caught.value.code == code


def test_openpgp_exit_status_counts():
    print_ = "A" * 40
    text = f"NEWSIG\nGOODSIG A\nVALIDSIG {print_} 2026-01-01 1 0 4 0 1 8 00 {print_}"
    output = "".join(f"[GNUPG:] {line}\n" for line in text.splitlines()).encode()
    assert openpgp.parse_status(output, 0, {}) == (print_, print_, 1)
    with pytest.raises(Rejected):
        openpgp.parse_status(output, 2, {})


# --- swapped parts --------------------------------------------------------------------------------


def test_keys_swapped_digests_and_repositories_replayed():
    keys = [public(STRANGER)]
    for key in KEYS.values():
        with pytest.raises(Rejected) as caught:
            cosign.by_key(classic(key, payload(DIGEST, "quay.io/acme/os")), keys, [], NOW)
        assert caught.value.code == "bad-signature"
        with pytest.raises(Rejected) as caught:
            bundle.by_key(key_bundle(key, statement(DIGEST)), SUBJECT, keys, [], NOW)
        assert caught.value.code == "wrong-key"
        mine = [public(key)]
        with pytest.raises(Rejected) as caught:
            whole(cosign.by_key(classic(key, payload(OTHER, "quay.io/acme/os")), mine, [], NOW))
        assert caught.value.code == "wrong-digest"
        assert OTHER in str(caught.value)
        assert DIGEST in str(caught.value)
        with pytest.raises(Rejected) as caught:
            bundle.by_key(key_bundle(key, statement(OTHER)), SUBJECT, mine, [], NOW)
        assert caught.value.code == "wrong-digest"
    key = KEYS["P-256"]
    for name in (
        "quay.io/acme/oss",
        "quay.io/acme/o",
        "quay.io/acme",
        "quay.io/acme/os/os",
        "quay.io:443/acme/os",
        "docker.io/acme/os",
        "QUAY.IO/acme/os",
        "quay.io/acme/os ",
        "",
    ):
        with pytest.raises(Rejected) as caught:
            whole(cosign.by_key(classic(key, payload(DIGEST, name)), [public(key)], [], NOW))
        assert caught.value.code in {"wrong-identity", "bad-identity", "bad-document"}


def test_weak_and_strange_keys_cannot_be_used():
    weak = rsa.generate_private_key(65537, 1024)
    odd = ec.generate_private_key(ec.SECP192R1())
    for data, reason in (
        (pem(weak), "1024 bits"),
        (pem(odd), "curve"),
        (pem(STRANGER) + pem(STRANGER), "not one public key"),
        (pem(STRANGER)[:60], "not a public key"),
        (b"-----BEGIN EC PRIVATE KEY-----\n", "private key"),
        (b"", "not one public key"),
    ):
        with pytest.raises(CannotCheck, match=reason):
            parse_public_key(data, "key")


def test_all_of_them_were_counted(capsys):
    """Runs after all others of this module; says nothing when only some of them were chosen."""
    if set(counted) != set(CHANGED):
        return
    with capsys.disabled():
        print(
            f"\n{counted.total()} changed signatures refused for {len(codes)} reasons: {dict(counted)}"
        )
    for what, least in CHANGED.items():
        assert counted[what] >= least, what
