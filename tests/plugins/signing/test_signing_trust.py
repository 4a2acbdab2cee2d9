"""Trust policies: form, scopes, k of n, age, version memory, kept evidence, and the files of `bootc trust add`."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from bootc_signing import admin, evidence, memory, plugin, setup, trust
from bootc_signing.bundle import Subject
from bootc_signing.decide import decide, remembered, settings
from bootc_signing.requirements import Found
from bootc_signing.signers import State
from bootc_signing.trust import Group, matches, parse
from bootc_signing.world import FLOOR, World
from cryptography.hazmat.primitives.asymmetric import ec
from support import images
from support.signing import (
    IDENTITY,
    ISSUER,
    Authority,
    Gpg,
    classic,
    key_bundle,
    payload,
    pem,
    statement,
)

from bootc_core.errors import ConfigError, StorageError, UsageError
from bootc_core.models.context import Context, ImageSummary, Operation, Phase, SignatureMode
from bootc_core.models.image import Attachment
from bootc_core.models.reference import ImageReference

KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("a", "b", "c", "d")}
RAW = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(RAW).hexdigest()
SUBJECT = Subject(DIGEST, RAW)
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
NAME = "quay.io/acme/os:stable"
SIGNER = '[[signer]]\nname = "a"\nkey = "/a.pub"\n'


def document(more="", signers=SIGNER, repository="quay.io/acme/os"):
    return f'repository = "{repository}"\n{more}\n{signers}'.encode()


def policy(more="", names="abc", signers=None, **kwargs):
    text = "".join(f'[[signer]]\nname = "{name}"\nkey = "/{name}.pub"\n' for name in names)
    return parse(document(more, signers or text, **kwargs), "x.toml")


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(0o644)
    return path


# --- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff", "utf-8"),
        (b"repository = ", "TOML"),
        (b"", "required"),
        (document(signers=""), "required"),
        (document('requre = "any"'), "not permitted"),
        (document('require = "some"'), "require"),
        (document("require = 0"), "wants 0 of 1"),
        (document("require = 2"), "wants 2 of 1"),
        (document("require = true"), "require"),
        (document('require = {any = ["b"]}'), "no signer named b"),
        (document('require = {any = ["a", "a"]}'), "twice"),
        (document("require = {any = []}"), "a list"),
        (document('require = {at_least = 2, of = ["a"]}'), "wants 2 of 1"),
        (document('require = {at_least = true, of = ["a"]}'), "wants True"),
        (document("require = {any = [5]}"), "names of signers"),
        (document('require = {most = ["a"]}'), "require is"),
        (document('max_age = "30"'), "max_age"),
        (document('max_age = "0d"'), "max_age"),
        (document('max_age = "5d "'), "max_age"),
        (document('signed = "all"'), "signed"),
        (document('downgrade = "maybe"'), "downgrade"),
        (document('policy_json = "no"'), "policy_json"),
        (document(repository="quay.io/acme/os:1"), "repository"),
        (document(repository="../x"), "repository"),
        (document(signers=SIGNER * 2), "one name"),
        (document(signers='[[signer]]\nname = "a"\n'), "has none"),
        (document(signers=SIGNER + 'gpg = "/x"\n'), "has key, gpg"),
        (document(signers='[[signer]]\nname = "a"\nidentity = "x"\n'), "belong together"),
        (document(signers='[[signer]]\nname = "a"\nissuer = "x"\nkey = "/x"\n'), "belong together"),
        (document(signers='[[signer]]\nname = "a"\nidentity = "*"\nissuer = "x"\n'), "everybody"),
        (document(signers='[[signer]]\nname = "a"\ngpg = "/x"\nrekor = "/y"\n'), "rekor"),
        (document(signers=SIGNER + 'trusted_root = "/x"\n'), "trusted_root"),
        (document(signers='[[signer]]\nname = "a b"\nkey = "/x"\n'), "name"),
        (
            document(signers=SIGNER + '[[attestation]]\npredicate = "x"\nsigners = ["z"]\n'),
            "no signer named z",
        ),
    ],
)
def test_invalid_files_name_file_and_reason(data, why):
    with pytest.raises(ConfigError) as caught:
        parse(data, "/etc/bootc/trust.d/x.toml")
    assert "/etc/bootc/trust.d/x.toml" in caught.value.message
    assert why in f"{caught.value.message} {caught.value.found}"


def test_nesting_is_bounded():
    deep = '"a"'
    for _ in range(12):
        deep = "{any = [" + deep + "]}"
    with pytest.raises(ConfigError, match="x"):
        parse(document(f"require = {deep}"), "x.toml")


def test_the_documented_example_is_valid():
    text = trust.__doc__.split("\n\n")[1:]
    example = "\n".join(line.removeprefix("    ") for block in text for line in block.split("\n"))
    example = example[: example.index("The most specific")]
    found = parse(example.encode(), "the documentation")
    assert [signer.name for signer in found.signer] == ["release", "ci", "old"]
    assert found.age_s() == 30 * 86400


# --- which file -----------------------------------------------------------------------------------


def test_the_page_for_administrators_shows_a_valid_file():
    page = (Path(__file__).parents[3] / "docs/trust-and-signatures.md").read_text()
    found = parse(page.partition("```toml\n")[2].partition("```")[0].encode(), "the page")
    assert found.expression().describe() == "2 of (release, ci, security)"


def test_the_most_specific_file_counts_and_etc_masks(tmp_path):
    low, high = tmp_path / "usr/lib/bootc/trust.d", tmp_path / "etc/bootc/trust.d"
    write(low / "a.toml", document(repository="quay.io"))
    write(low / "b.toml", document(repository="quay.io/acme/os"))
    write(high / "c.toml", document(repository="*.example.com"))
    write(high / "d.toml", document(repository="oci:/srv/images"))

    def chosen(reference):
        found = trust.policy_for(trust.load(tmp_path), ImageReference.parse(reference))
        return found and Path(found[0]).name

    assert chosen(NAME) == "b.toml"
    assert chosen("quay.io/acme/other:1") == "a.toml"
    assert chosen("quay.io/acme/osother:1") == "a.toml"
    assert chosen("a.example.com/x") == "c.toml"
    assert chosen("example.com/x") is None
    assert chosen("oci:/srv/images/x:1") == "d.toml"
    assert chosen("oci:/srv/imagesx:1") is None
    write(high / "b.toml", document(repository="docker.io/x"))
    assert chosen(NAME) == "a.toml"
    (high / "a.toml").symlink_to("/dev/null")
    assert chosen(NAME) is None
    write(high / "z.toml", document(repository="docker.io/x"))
    with pytest.raises(ConfigError, match="two trust policies are about"):
        trust.load(tmp_path)


@pytest.mark.root
def test_a_file_that_others_can_change_blocks(tmp_path):
    path = write(tmp_path / "etc/bootc/trust.d/a.toml", document())
    path.chmod(0o666)
    with pytest.raises(ConfigError) as caught:
        trust.load(tmp_path)
    assert caught.value.reference == "unsafe-permissions"


@pytest.mark.parametrize(
    ("pattern", "identity", "expected"),
    [
        ("a@b.org", "a@b.org", True),
        ("a@b.org", "a@b.orgx", False),
        ("a@b.org", "aa@b.org", False),
        ("*@b.org", "a@b.org", True),
        ("*@b.org", "a@evil.org/@b.org", False),
        ("*@b.org", "x@y@b.org", False),
        ("a@b.*", "a@b.org", True),
        ("a.b", "axb", False),
        (IDENTITY, IDENTITY, True),
        ("https://github.com/acme/os/*", IDENTITY, False),
        ("https://github.com/*/os/.github/workflows/*@refs/heads/main", IDENTITY, True),
        ("https://github.com/acme/os/.github/workflows/build.yml@refs/tags/*", IDENTITY, False),
        ("a@b.org", "a@b.org\n", False),
    ],
)
def test_patterns_are_anchored(pattern, identity, expected):
    assert matches(pattern, identity) is expected


# --- k of n ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("require", "signed", "expected"),
    [
        ('"any"', "a", True),
        ('"any"', "", False),
        ('"all"', "ab", False),
        ('"all"', "abc", True),
        ("2", "a", False),
        ("2", "ac", True),
        ('{at_least = 2, of = ["a", "b", {any = ["c", "d"]}]}', "ad", True),
        ('{at_least = 2, of = ["a", "b", {any = ["c", "d"]}]}', "cd", False),
        ('{all = ["a", {at_least = 2, of = ["b", "c", "d"]}]}', "acd", True),
        ('{all = ["a", {at_least = 2, of = ["b", "c", "d"]}]}', "bcd", False),
        ('{any = [{all = ["a", "b"]}, {all = ["c", "d"]}]}', "cd", True),
        ('{any = [{all = ["a", "b"]}, {all = ["c", "d"]}]}', "ac", False),
    ],
)
def test_groups(tmp_path, require, signed, expected):
    found = policy(f"require = {require}", "abcd" if "d" in require else "abc")
    world = keys(tmp_path)
    items = [classic(KEYS[name], payload(DIGEST, "quay.io/acme/os")) for name in signed]
    assert answer(found, world, items).accept is expected


def keys(root):
    for name, key in KEYS.items():
        write(root / f"{name}.pub", pem(key))
    return World(root)


def answer(found, world, items, created=None, kind="cosign"):
    state = State(found, world)
    state.look(Found(SUBJECT, "image", {kind: items}))
    return state.answer("x.toml", [("image", SUBJECT)], created)


def test_s05_one_key_under_two_names_counts_once(tmp_path):
    world = keys(tmp_path)
    write(tmp_path / "b.pub", pem(KEYS["a"]))
    items = [classic(KEYS["a"], payload(DIGEST, "quay.io/acme/os")) for _ in range(2)]
    said = answer(policy("require = 2"), world, items)
    assert said.accept is False
    assert "which are one key or identity" in said.reason or "c: " in said.reason
    said = answer(policy('require = "all"', "ab"), world, items)
    assert said.accept is False
    assert "one key or identity" in said.reason


def test_s07_one_good_among_many_bad(tmp_path):
    world = keys(tmp_path)
    good = classic(KEYS["a"], payload(DIGEST, "quay.io/acme/os"))
    bad = [classic(KEYS["d"], payload(DIGEST, "quay.io/acme/os")) for _ in range(60)]
    rubbish = [
        dataclasses.replace(good, payload=b"\xff"),
        dataclasses.replace(good, annotations={}),
        Attachment(BUNDLE, b"{}"),
        Attachment(BUNDLE, b"\x00" * 100),
    ]
    assert answer(policy(), world, [*bad, *rubbish, good]).accept is True
    assert answer(policy(), world, [*bad, *rubbish]).accept is False


def test_s06_too_many_are_not_looked_at(tmp_path):
    world = keys(tmp_path)
    good = classic(KEYS["a"], payload(DIGEST, "quay.io/acme/os"))
    said = answer(policy(), world, [good] * 129)
    assert said.accept is False
    assert "at most 128" in said.reason
    huge = dataclasses.replace(good, payload=bytes(5 * 1024 * 1024))
    assert "5242880 bytes" in answer(policy(), world, [huge]).reason


def test_could_not_check_and_refused_are_told_apart(tmp_path):
    world = World(tmp_path)
    good = classic(KEYS["a"], payload(DIGEST, "quay.io/acme/os"))
    said = answer(policy(), world, [good])
    assert (said.accept, said.could_check) == (False, False)
    assert "there is no file" in said.reason
    world = keys(tmp_path)
    said = answer(policy(), World(tmp_path), [classic(KEYS["d"], good.payload)])
    assert (said.accept, said.could_check) == (False, True)
    # one signer's key is missing, another signed: accepted, since any is enough
    (tmp_path / "b.pub").unlink()
    assert answer(policy(), World(tmp_path), [good]).accept is True
    del world


def test_attestations_do_not_approve(tmp_path):
    world = keys(tmp_path)
    slsa = "https://slsa.dev/provenance/v1"
    attested = Attachment(BUNDLE, key_bundle(KEYS["a"], statement(DIGEST, slsa)))
    signed = Attachment(BUNDLE, key_bundle(KEYS["b"], statement(DIGEST)))
    said = answer(policy(), world, [attested], kind="referrers")
    assert said.accept is False
    assert "it is an attestation" in said.reason
    demanding = policy(
        signers="".join(f'[[signer]]\nname = "{n}"\nkey = "/{n}.pub"\n' for n in "ab")
        + f'[[attestation]]\npredicate = "{slsa}"\nsigners = ["a"]\n'
    )
    said = answer(demanding, world, [signed], kind="referrers")
    assert f"{slsa} is missing" in said.reason
    said = answer(demanding, world, [signed, attested], kind="referrers")
    assert said.accept is True
    other = Attachment(BUNDLE, key_bundle(KEYS["b"], statement(DIGEST, slsa)))
    assert answer(demanding, world, [signed, other], kind="referrers").accept is False


def test_a_signer_by_identity_takes_both_layouts(tmp_path):
    authority = Authority()
    key = KEYS["a"]
    write(tmp_path / "root.json", authority.trusted_root())
    signer = (
        f'[[signer]]\nname = "ci"\nidentity = "{IDENTITY}"\nissuer = "{ISSUER}"\n'
        'trusted_root = "/root.json"\n'
    )
    found = policy(signers=signer)
    certificate = authority.certificate(key)
    one = authority.classic(payload(DIGEST, "quay.io/acme/os"), certificate, key)
    two = Attachment(
        BUNDLE, json.dumps(authority.bundle(statement(DIGEST), certificate, key)).encode()
    )
    for item in (one, two):
        said = answer(found, World(tmp_path), [item])
        assert said.accept, said
        facts = dict(said.evidence)
        assert facts["identity"].startswith(IDENTITY)
        assert facts["logged"] == "2026-06-01T12:01:00Z"
    wrong = policy(signers=signer.replace("main", "other"))
    assert answer(wrong, World(tmp_path), [one, two]).accept is False
    (tmp_path / "root.json").unlink()
    said = answer(found, World(tmp_path), [one, two])
    assert (said.accept, said.could_check) == (False, False)


@pytest.mark.real
def test_a_signer_by_gnupg(tmp_path):
    gpg = Gpg.make(tmp_path / "home", kind="ed25519")
    try:
        write(tmp_path / "key.gpg", gpg.export(armour=True))
        found = policy(signers='[[signer]]\nname = "old"\ngpg = "/key.gpg"\n')
        message = gpg.sign(payload(DIGEST, "quay.io/acme/os:1", kind="gpg"))
        item = Attachment("application/vnd.bootc.openpgp-signature", message)
        said = answer(found, World(tmp_path), [item], kind="lookaside")
        assert said.accept, said
        assert dict(said.evidence)["key"] == f"OpenPGP {gpg.fingerprint()}"
    finally:
        gpg.end()


# --- age, clock -----------------------------------------------------------------------------------

DAY = 86400
BASE = FLOOR + 100 * DAY


def stamp(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_s13_a_good_signature_of_an_old_image_is_not_deployed(tmp_path):
    keys(tmp_path)
    world = World(tmp_path, clock=lambda: BASE)
    item = classic(KEYS["a"], payload(DIGEST, "quay.io/acme/os"))
    found = policy('max_age = "30d"')
    assert answer(found, world, [item], stamp(BASE - 29 * DAY)).accept is True
    said = answer(found, world, [item], stamp(BASE - 31 * DAY))
    assert (said.accept, said.could_check) == (False, True)
    assert "31.0 days ago" in said.reason
    said = answer(found, world, [item], None)
    assert (said.accept, said.could_check) == (False, False)
    assert "cannot be told how old" in said.reason
    assert answer(found, world, [item], "1970-01-01T00:00:00Z").accept is False


def test_s12_a_dead_clock_brings_nothing_back_to_life(tmp_path):
    keys(tmp_path)
    item = classic(KEYS["a"], payload(DIGEST, "quay.io/acme/os"))
    said = answer(
        policy('max_age = "1d"'), World(tmp_path, clock=lambda: 0.0), [item], "2026-01-01T00:00:00Z"
    )
    assert said.accept is False
    assert "clock, which is wrong" in said.reason


# --- version memory -------------------------------------------------------------------------------

OTHER = "sha256:" + "1" * 64
THIRD = "sha256:" + "2" * 64


def seen(digest, created):
    return memory.Seen(digest=digest, created=created, version=None, at="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("before", "digest", "created", "kind"),
    [
        (None, OTHER, "2026-01-01T00:00:00Z", "first"),
        (("2026-01-01T00:00:00Z", OTHER), OTHER, "2020-01-01T00:00:00Z", "same"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, "2026-01-01T00:00:00Z", "newer"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, "2026-01-01T00:00:00.000001Z", "newer"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, "2025-12-31T23:59:59.999999999Z", "older"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, "2026-01-01T00:30:00+01:00", "older"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, None, "unknown"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, "1970-01-01T00:00:00Z", "unknown"),
        (("2026-01-01T00:00:00Z", OTHER), THIRD, "yesterday", "unknown"),
        (("1970-01-01T00:00:00Z", OTHER), THIRD, "2026-01-01T00:00:00Z", "undated"),
    ],
)
def test_comparison(before, digest, created, kind):
    known = memory.Memory({"x": seen(before[1], before[0])} if before else {})
    assert memory.compare(known, "x", digest, created).kind == kind


def test_memory_round_trip_permit_and_log(tmp_path):
    known = memory.Memory()
    for digest, created in ((OTHER, "2026-01-01T00:00:00Z"), (THIRD, "2026-02-01T00:00:00Z")):
        known = memory.remember(known, "x", seen(digest, created))
    known = memory.permit(known, "x", "bad release")
    memory.save(tmp_path, known)
    known = memory.load(tmp_path)
    known = memory.remember(known, "x", seen(OTHER, "2026-01-01T00:00:00Z"))
    assert known.permits == {}
    assert [(entry.name, entry.reason) for entry in known.downgrades] == [("x", "bad release")]
    memory.save(tmp_path, known)
    assert memory.load(tmp_path) == known


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"images"', b'"image"')),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2')),
        lambda path: path.write_bytes(b"{" * 5_000_000),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_s15_lost_memory_is_not_a_first_use(tmp_path, damage):
    memory.save(tmp_path, memory.Memory({"x": seen(OTHER, "2026-01-01T00:00:00Z")}))
    damage(tmp_path / "trust/memory.json")
    with pytest.raises(StorageError) as caught:
        memory.load(tmp_path)
    assert caught.value.catalogue == "STATE"
    assert "bootc trust pin" in str(caught.value.hint)
    said = admin.change(tmp_path, "pin", None, "")
    assert "begins anew" in said
    assert memory.load(tmp_path).images == {}
    assert "nothing was lost" in admin.change(tmp_path, "pin", None, "")


def test_permits_are_for_names_not_for_bytes(tmp_path):
    with pytest.raises(UsageError):
        admin.change(tmp_path, "permit-downgrade", ImageReference.parse(f"quay.io/x@{OTHER}"), "")
    said = admin.change(tmp_path, "permit-downgrade", ImageReference.parse("quay.io/x"), "why")
    assert "quay.io/x:latest" in said
    assert memory.load(tmp_path).permits["quay.io/x:latest"].reason == "why"


# --- the plugin as a whole ------------------------------------------------------------------------


@dataclasses.dataclass
class Host:
    """A configuration root, a sysroot and an image that key a signed."""

    root: Path
    sysroot: Path
    image: object

    def context(self, mode=SignatureMode.POLICY, **more):
        values = {
            "transaction": "t",
            "operation": Operation.SWITCH,
            "phase": Phase.VERIFY,
            "sysroot": str(self.sysroot),
            "live": False,
            "config_root": str(self.root),
            "signature": mode,
            "started_at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            "to_image": ImageSummary(reference=f"docker://{NAME}", digest=self.image.digest),
        }
        return Context(**(values | more))

    def ask(self, mode=SignatureMode.POLICY, **more):
        return trio.run(plugin.bootc_verify, self.context(mode, **more), self.image)

    def staged(self, mode=SignatureMode.POLICY):
        trio.run(plugin.bootc_after_stage, self.context(mode))


def make_host(tmp_path, more='policy_json = "instead"', created="2026-03-01T00:00:00Z"):
    root, sysroot = tmp_path / "root", tmp_path / "sysroot"
    (sysroot / "bootc").mkdir(parents=True, exist_ok=True)
    keys(root)
    write(root / "etc/bootc/trust.d/x.toml", document(more))
    return Host(root, sysroot, signed_image(tmp_path / f"layout{created[:10]}", created))


def signed_image(path, created, name="a"):
    built = images.build(path, [{"etc/x": created}], created=created).fetched(NAME)

    async def read(kind):
        what, _, digest = kind.partition("@")
        if what != "cosign":
            return ()
        return (classic(KEYS[name], payload(digest, "quay.io/acme/os")),)

    return dataclasses.replace(built, read_attachments=read)


def test_acceptance_is_kept_and_checked_again_offline(tmp_path):
    host = make_host(tmp_path)
    said = host.ask(SignatureMode.ENFORCE)
    assert (said.accept, said.cryptographic) == (True, True)
    host.staged()
    state = host.sysroot / "bootc"
    rows = dict(plugin._evidence(state, host.image.digest))
    assert rows["accepted"] == "signed by a"
    assert rows["memory"] == "the first image of this name on this host"
    again = trio.run(plugin._recheck, host.root, state, host.image.digest)
    assert again.accept, again
    assert trio.run(plugin._recheck, host.root, state, OTHER) is None
    assert plugin._evidence(state, OTHER) == []
    # another key now
    write(host.root / "a.pub", pem(KEYS["d"]))
    again = trio.run(plugin._recheck, host.root, state, host.image.digest)
    assert (again.accept, again.could_check) == (False, True)


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        (lambda value: value.update(manifest="e30="), "trust-evidence"),
        (lambda value: value.update(index="e30="), "trust-evidence"),
        (lambda value: value.update(digest=OTHER), "trust-evidence"),
        (lambda value: value.update(more=1), "trust-evidence"),
        (lambda value: value.update(format=9), "trust-evidence"),
    ],
)
def test_damaged_evidence_is_state_not_trust(tmp_path, change, reference):
    host = make_host(tmp_path)
    host.ask()
    (path,) = (host.sysroot / "bootc/trust/evidence").iterdir()
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(StorageError) as caught:
        trio.run(plugin._recheck, host.root, host.sysroot / "bootc", host.image.digest)
    assert caught.value.reference == reference


def test_forged_evidence_does_not_hold(tmp_path):
    host = make_host(tmp_path)
    host.ask()
    (path,) = (host.sysroot / "bootc/trust/evidence").iterdir()
    value = json.loads(path.read_bytes())
    for item in value["attachments"]:
        item["annotations"] = classic(KEYS["d"], b"x").annotations
    path.write_text(json.dumps(value))
    again = trio.run(plugin._recheck, host.root, host.sysroot / "bootc", host.image.digest)
    assert again.accept is False


def test_dry_runs_and_unverified_images_leave_nothing(tmp_path):
    host = make_host(tmp_path)
    host.ask(dry_run=True)
    host.ask(SignatureMode.INSECURE)
    host.staged(SignatureMode.INSECURE)
    host.staged()
    assert list((host.sysroot / "bootc").iterdir()) == []


def test_s14_an_older_image_is_refused_until_permitted_once(tmp_path):
    host = make_host(tmp_path)
    assert host.ask().accept
    host.staged()
    old = dataclasses.replace(host, image=signed_image(tmp_path / "old", "2026-02-01T00:00:00Z"))
    said = old.ask()
    assert (said.accept, said.could_check) == (False, True)
    assert "older than the one before" in said.reason
    assert "bootc trust permit-downgrade quay.io/acme/os:stable" in str(said.hint)
    state = host.sysroot / "bootc"
    admin.change(state, "permit-downgrade", ImageReference.parse(NAME), "told so")
    said = old.ask()
    assert said.accept
    assert dict(said.evidence)["memory"].startswith("permitted downgrade")
    old.staged()
    assert [entry.reason for entry in memory.load(state).downgrades] == ["told so"]
    assert host.ask().accept  # forward again needs no permit
    host.staged()
    assert old.ask().accept is False  # and once was once
    # a policy that allows it
    write(
        host.root / "etc/bootc/trust.d/x.toml", document('policy_json="instead"\ndowngrade="allow"')
    )
    assert old.ask().accept


def test_s16_an_image_from_the_future_does_not_lock_out_the_others(tmp_path):
    host = make_host(tmp_path, created="2126-03-01T00:00:00Z")
    said = host.ask()
    assert said.accept is False
    assert "in the future" in said.reason
    assert "permit-downgrade" in str(said.hint)


def test_another_tag_or_a_digest_is_another_name(tmp_path):
    host = make_host(tmp_path)
    host.ask()
    host.staged()
    old = signed_image(tmp_path / "old", "2026-02-01T00:00:00Z")
    for name in ("quay.io/acme/os:testing", f"quay.io/acme/os@{old.digest}"):
        named = dataclasses.replace(old, requested=ImageReference.parse(name))
        assert dataclasses.replace(host, image=named).ask().accept


def test_remembered_leaves_refusals_alone(tmp_path):
    host = make_host(tmp_path)
    found = settings(host.root, ImageReference.parse(NAME))

    async def work():
        return await decide(
            found, signed_image(tmp_path / "d", "2026-01-01T00:00:00Z", "d"), SignatureMode.POLICY
        )

    said, _ = trio.run(work)
    assert remembered(said, found, host.image, host.sysroot / "bootc") is said


def test_records_are_bounded(tmp_path):
    host = make_host(tmp_path)
    host.ask()
    place = host.sysroot / "bootc/trust/evidence"
    for number in range(60):
        write(place / f"sha256-{number:064d}.json", "{}")
    host.ask()  # the newest
    host.staged()
    assert len(list(place.iterdir())) == 32
    assert evidence.load(host.sysroot / "bootc", host.image.digest) is not None


def test_what_nobody_signed_leaves_no_record(tmp_path):
    host = make_host(tmp_path)
    (host.root / "etc/bootc/trust.d/x.toml").unlink()
    write(
        host.root / "etc/containers/policy.json",
        json.dumps({"default": [{"type": "insecureAcceptAnything"}]}),
    )
    assert host.ask().accept
    host.staged()
    assert list((host.sysroot / "bootc").iterdir()) == []


def test_a_host_without_signatures_imports_no_crypto():
    code = "import sys, bootc_signing.decide, bootc_signing.admin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"cryptography", "sigstore"} & {
        name.partition(".")[0] for name in done.stdout.split()
    }


def test_rules_are_explained_without_looking_at_the_image(tmp_path):
    host = make_host(tmp_path)
    write(
        host.root / "etc/containers/policy.json",
        json.dumps({"default": [{"type": "reject"}]}),
    )
    rows = plugin._rules(host.root, ImageReference.parse(NAME))
    text = "\n".join(f"{label}: {value}" for label, value in rows)
    for part in (
        "looked up: quay.io/acme/os:stable, quay.io/acme/os, quay.io/acme, quay.io, *.io",
        "rule: default",
        "requires: reject",
        "covers: quay.io/acme/os",
        "signer: a: /a.pub",
        "is not asked, unless it rejects by name",
    ):
        assert part in text
    rows = plugin._rules(host.root, ImageReference.parse("docker.io/x"))
    assert dict(rows)["trust policy"].startswith("none for this repository")


# --- bootc trust add ------------------------------------------------------------------------------


def added(root, **options):
    for path, data in setup.plan(root, "quay.io/acme/os", {k: str(v) for k, v in options.items()}):
        write(path, data)
    return settings(root, ImageReference.parse(NAME))


def test_add_a_key(tmp_path):
    root = tmp_path / "root"
    key = write(tmp_path / "key.pub", pem(KEYS["a"]))
    found = added(root, key=key, max_age="9999d")
    assert found.trust[1].signer[0].key == "/etc/pki/containers/quay.io-acme-os.pub"
    assert found.trust[1].max_age == "9999d"
    assert found.rule.place == 'transports.docker["quay.io/acme/os"]'
    policy_json = json.loads((root / "etc/containers/policy.json").read_text())
    assert policy_json["default"] == [{"type": "reject"}]
    assert (
        "use-sigstore-attachments: true"
        in (root / "etc/containers/registries.d/quay.io-acme-os.yaml").read_text()
    )
    image = signed_image(tmp_path / "l", "2026-01-01T00:00:00Z")
    said, _ = trio.run(decide, found, image, SignatureMode.ENFORCE)
    assert said.accept, said
    assert added(root, key=key).trust  # again: the same files


def test_add_keeps_what_policy_json_says(tmp_path):
    root = tmp_path / "root"
    before = {
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {
            "docker": {"x.org": [{"type": "reject"}]},
            "oci": {"": [{"type": "reject"}]},
        },
    }
    write(root / "usr/share/containers/policy.json", json.dumps(before))
    added(root, key=write(tmp_path / "key.pub", pem(KEYS["a"])))
    after = json.loads((root / "etc/containers/policy.json").read_text())
    assert after["default"] == before["default"]
    assert after["transports"]["oci"] == before["transports"]["oci"]
    assert set(after["transports"]["docker"]) == {"x.org", "quay.io/acme/os"}


def test_add_an_identity_leaves_policy_json_alone(tmp_path):
    root = tmp_path / "root"
    trusted = write(tmp_path / "root.json", Authority().trusted_root())
    found = added(root, identity=IDENTITY, issuer=ISSUER, trusted_root=trusted)
    assert found.trust[1].signer[0].identity == IDENTITY
    assert not (root / "etc/containers").exists()
    assert found.asks_policy_json is False


@pytest.mark.real
def test_add_gnupg(tmp_path):
    gpg = Gpg.make(tmp_path / "home", kind="ed25519")
    try:
        key = write(tmp_path / "key.asc", gpg.export(armour=True))
    finally:
        gpg.end()
    root = tmp_path / "root"
    found = added(root, gpg=key, lookaside="https://sigs.example.org")
    assert found.trust[1].signer[0].gpg.endswith(".gpg")
    assert found.rule.requirements[0].type == "signedBy"
    text = (root / "etc/containers/registries.d/quay.io-acme-os.yaml").read_text()
    assert 'lookaside: "https://sigs.example.org"' in text


@pytest.mark.parametrize(
    ("repository", "options", "problem"),
    [
        ("quay.io/x:1", {"key": "k"}, UsageError),
        ("quay.io/UPPER", {"key": "k"}, UsageError),
        ("quay.io/x", {}, UsageError),
        ("quay.io/x", {"key": "k", "gpg": "g"}, UsageError),
        ("quay.io/x", {"identity": "a@b"}, UsageError),
        ("quay.io/x", {"key": "k", "issuer": "x"}, UsageError),
        ("quay.io/x", {"key": "missing"}, UsageError),
        ("quay.io/x", {"key": "rubbish"}, ConfigError),
        ("quay.io/x", {"gpg": "rubbish"}, ConfigError),
    ],
)
def test_add_refuses(tmp_path, repository, options, problem):
    write(tmp_path / "k", pem(KEYS["a"]))
    write(tmp_path / "g", b"x")
    write(tmp_path / "rubbish", b"x")
    given = {
        name: str(tmp_path / value) if name in {"key", "gpg"} else value
        for name, value in options.items()
    }
    with pytest.raises(problem):
        setup.plan(tmp_path / "root", repository, given)


def test_add_does_not_overrule_another_file(tmp_path):
    root = tmp_path / "root"
    write(root / "etc/bootc/trust.d/mine.toml", document())
    key = write(tmp_path / "key.pub", pem(KEYS["a"]))
    with pytest.raises(ConfigError, match="already"):
        setup.plan(root, "quay.io/acme/os", {"key": str(key)})


def test_groups_describe_themselves():
    assert Group(2, ("a", Group(1, ("b", "c")))).describe() == "2 of (a, 1 of (b, c))"
