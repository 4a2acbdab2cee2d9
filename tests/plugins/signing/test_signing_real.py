"""Signatures made by the real tools: skopeo with GnuPG, and cosign in both layouts, from a real registry to the booted host."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from bootc_archives.fetch import fetch as fetch_local
from bootc_registry.fetch import fetch
from bootc_signing import plugin
from support import images
from support.registry import (
    Registry,
    have_registry,
    make_image,
    running_registry,
    write_layout,
)
from support.signing import Cosign, Gpg, skopeo_program

from bootc_core.models.context import Context, Operation, Phase, SignatureMode
from bootc_core.models.reference import ImageReference

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not have_registry, reason="docker-registry and skopeo are not installed"),
]
ANY = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
REPOSITORY = {"type": "matchRepository"}


@dataclasses.dataclass
class World:
    registry: Registry
    cosign: Cosign
    other: Cosign
    gpg: Gpg
    lookaside: Path
    directory: Path

    def name(self, tag="1", repository="acme/os"):
        return f"{self.registry.authority}/{repository}:{tag}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    cosign = Cosign.make(directory / "publisher")
    other = Cosign.make(directory / "other")
    gpg = Gpg.make(directory / "gpg", "Publisher <publisher@example.org>", "Other <other@x.org>")
    (directory / "storage").mkdir()
    with running_registry(directory) as registry:
        found = World(registry, cosign, other, gpg, directory / "lookaside", directory)
        layout = directory / "layout"
        foreign = make_image(architecture="s390x")
        for number, tag in enumerate(
            ("classic", "bundle", "both", "unsigned", "other", "attested")
        ):
            write_layout(layout, tag, make_image(labels={"n": str(number)}), foreign)
            registry.push(layout, f"acme/os:{tag}")
        for tag, signer, layouts in (
            ("classic", cosign, (True,)),
            ("bundle", cosign, (False,)),
            ("both", cosign, (True, False)),
            ("other", other, (True, False)),
        ):
            for classic in layouts:
                signer.sign(digest_name(found, tag), classic=classic)
        for classic in (True, False):
            cosign.attest(digest_name(found, "attested"), "slsaprovenance1", classic=classic)
        write_layout(layout, "gpg", make_image(labels={"n": "gpg"}))
        sign_with_skopeo(found, layout, "gpg")
        yield found
    gpg.end()


def digest_name(found, tag):
    done = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{found.name(tag)}"],
        capture_output=True,
        check=True,
    )
    import hashlib

    return f"{found.name(tag).rpartition(':')[0]}@sha256:{hashlib.sha256(done.stdout).hexdigest()}"


def sign_with_skopeo(found, layout, tag, name="publisher"):
    conf = found.directory / "registries.d"
    conf.mkdir(exist_ok=True)
    (conf / "x.yaml").write_text(
        f"default-docker:\n  lookaside-staging: file://{found.lookaside}\n"
        f"  lookaside: file://{found.lookaside}\n  sigstore-staging: file://{found.lookaside}\n"
    )
    subprocess.run(
        [
            *("skopeo", "--registries.d", conf, "copy", "-q", "--insecure-policy"),
            *("--preserve-digests", "--dest-tls-verify=false"),
            *("--sign-by", found.gpg.fingerprint(name)),
            *(f"oci:{layout}:{tag}", f"docker://{found.name(tag)}"),
        ],
        check=True,
        env={
            "PATH": "/usr/bin:/bin",
            "GNUPGHOME": str(found.gpg.home),
            "HOME": str(found.directory),
        },
    )


def configure(root, requirement=None, trust=None, lookaside=None, attachments=None):
    """Files of a configuration root."""
    etc = root / "etc/containers"
    etc.mkdir(parents=True, exist_ok=True)
    policy = {"default": [requirement] if requirement else REJECT}
    (etc / "policy.json").write_text(json.dumps(policy))
    section = {} if attachments is None else {"use-sigstore-attachments": attachments}
    if lookaside:
        section["lookaside"] = f"file://{lookaside}"
    (etc / "registries.d").mkdir(exist_ok=True)
    (etc / "registries.d/x.yaml").write_text(json.dumps({"default-docker": section}))
    if trust:
        place = root / "etc/bootc/trust.d"
        place.mkdir(parents=True, exist_ok=True)
        (place / "x.toml").write_text(trust)
    return root


def ask(root, reference, mode=SignatureMode.POLICY):
    context = Context(
        transaction="t",
        operation=Operation.SWITCH,
        phase=Phase.VERIFY,
        sysroot="/nowhere",
        live=False,
        config_root=str(root),
        signature=mode,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        dry_run=True,
    )

    async def work():
        named = ImageReference.parse(reference)
        image = fetch_local(named) if ":" in reference[:4] else await fetch(root, named)
        return await plugin.bootc_verify(context, image)

    return trio.run(work)


def inline(path):
    return base64.b64encode(path.read_bytes()).decode()


def sigstore(cosign, **more):
    found = {
        "type": "sigstoreSigned",
        "keyData": inline(cosign.public),
        "signedIdentity": REPOSITORY,
    }
    return found | more


# --- cosign, classic layout, by policy.json -------------------------------------------------------


@pytest.mark.parametrize("mode", [SignatureMode.POLICY, SignatureMode.ENFORCE])
@pytest.mark.parametrize("tag", ["classic", "both"])
def test_cosign_classic(world, tmp_path, tag, mode):
    said = ask(configure(tmp_path, sigstore(world.cosign)), world.name(tag), mode)
    assert (said.accept, said.cryptographic) == (True, True), said
    facts = dict(said.evidence)
    assert facts["signed"].startswith("index sha256:")
    assert facts["key"].startswith("SHA256:")
    assert facts["signed for"] == f"{world.registry.authority}/acme/os"
    assert facts["found at"].endswith(".sig")


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("unsigned", "carries no sigstore signature"),
        ("other", "is not valid by SHA256:"),
        ("bundle", "carries no sigstore signature"),
    ],
)
def test_s01_s04_what_is_not_signed_so_is_refused(world, tmp_path, tag, reason):
    said = ask(configure(tmp_path, sigstore(world.cosign)), world.name(tag))
    assert (said.accept, said.could_check) == (False, True)
    assert reason in said.reason
    assert ("trust add" in str(said.hint)) is (tag in {"bundle", "other"})


def test_the_default_identity_rule_never_matches_cosigns_name(world, tmp_path):
    """As in the containers tools: cosign names the repository without a tag."""
    requirement = sigstore(world.cosign)
    del requirement["signedIdentity"]
    said = ask(configure(tmp_path, requirement), world.name("classic"))
    assert said.accept is False
    assert "it is for" in said.reason


def test_attachments_can_be_switched_off(world, tmp_path):
    root = configure(tmp_path, sigstore(world.cosign), attachments=False)
    assert ask(root, world.name("classic")).accept is False
    assert ask(
        configure(tmp_path, sigstore(world.cosign), attachments=True), world.name("classic")
    ).accept


def test_a_log_that_is_demanded_has_to_be_there(world, tmp_path):
    requirement = sigstore(world.cosign, rekorPublicKeyData=inline(world.other.public))
    said = ask(configure(tmp_path, requirement), world.name("classic"))
    assert said.accept is False
    assert "log entry" in said.reason


def test_s03_a_signature_for_another_repository(world, tmp_path):
    """The same image under another name: its signature is copied there and still names the first."""
    layout = world.directory / "layout"
    world.registry.push(layout, "evil/os:classic", tag="classic")
    digest = digest_name(world, "classic").partition("@")[2].replace(":", "-")
    subprocess.run(
        [
            *("skopeo", "copy", "-q", "--insecure-policy"),
            *("--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"),
            f"docker://{world.registry.authority}/acme/os:{digest}.sig",
            f"docker://{world.registry.authority}/evil/os:{digest}.sig",
        ],
        check=True,
    )
    root = configure(tmp_path, sigstore(world.cosign))
    said = ask(root, world.name("classic", "evil/os"))
    assert said.accept is False
    assert "acme/os" in said.reason
    assert "evil/os" in said.reason


def test_skopeo_signs_with_a_sigstore_key(world, tmp_path):
    """As ``podman push --sign-by-sigstore-private-key`` does. It names the tag, so the default rule of policy.json holds."""
    settings = tmp_path / "registries.d"
    settings.mkdir()
    (settings / "x.yaml").write_text("default-docker:\n  use-sigstore-attachments: true\n")
    (tmp_path / "passphrase").write_text("\n")
    layout = tmp_path / "layout"
    write_layout(layout, "1", make_image(labels={"n": "by skopeo"}))
    subprocess.run(
        [
            *(skopeo_program(), "--registries.d", settings, "copy", "-q", "--insecure-policy"),
            *("--dest-tls-verify=false", "--preserve-digests"),
            *("--sign-by-sigstore-private-key", world.cosign.home / "cosign.key"),
            *("--sign-passphrase-file", tmp_path / "passphrase"),
            *(f"oci:{layout}:1", f"docker://{world.name('by-skopeo')}"),
        ],
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    requirement = sigstore(world.cosign)
    del requirement["signedIdentity"]
    said = ask(configure(tmp_path, requirement), world.name("by-skopeo"), SignatureMode.ENFORCE)
    assert (said.accept, said.cryptographic) == (True, True), said
    assert dict(said.evidence)["signed for"] == world.name("by-skopeo")
    said = ask(trusting(world, tmp_path), world.name("by-skopeo"), SignatureMode.ENFORCE)
    assert said.reason == "signed by publisher"
    said = ask(configure(tmp_path / "other", sigstore(world.other)), world.name("by-skopeo"))
    assert "is not valid by SHA256:" in said.reason


# --- bundles, by a trust policy -------------------------------------------------------------------

TRUST = """
repository = "{authority}/acme"
policy_json = "instead"
{more}
[[signer]]
name = "publisher"
key = "{key}"
{after}
"""


def trusting(world, root, more="", after="", key=None):
    # the name is that of the configured system, whose root is elsewhere
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/acme.pub").write_bytes((key or world.cosign.public).read_bytes())
    text = TRUST.format(
        authority=world.registry.authority,
        key="/etc/acme.pub",
        more=more,
        after=after,
    )
    return configure(root, trust=text)


@pytest.mark.parametrize("tag", ["classic", "bundle", "both"])
def test_cosign_both_layouts(world, tmp_path, tag):
    said = ask(trusting(world, tmp_path), world.name(tag), SignatureMode.ENFORCE)
    assert (said.accept, said.cryptographic) == (True, True), said
    assert said.reason == "signed by publisher"
    assert ("layout" in dict(said.evidence)) is (tag == "bundle")


@pytest.mark.parametrize("tag", ["unsigned", "other", "attested"])
def test_what_the_signer_did_not_sign(world, tmp_path, tag):
    said = ask(trusting(world, tmp_path), world.name(tag))
    assert (said.accept, said.could_check) == (False, True)
    assert said.reason.startswith("needs publisher; no signature counts; ")
    expected = {
        "unsigned": "carries no sigstore signature",
        "other": "not valid by",
        "attested": "it is an attestation (https://slsa.dev/provenance/v1)",
    }
    assert expected[tag] in said.reason


def test_index_or_image(world, tmp_path):
    """cosign signed the index only."""
    for wanted, accepted in (("either", True), ("index", True), ("image", False), ("both", False)):
        said = ask(trusting(world, tmp_path, f'signed = "{wanted}"'), world.name("classic"))
        assert said.accept is accepted, wanted


def test_recursively_signed(world, tmp_path):
    layout = world.directory / "layout"
    write_layout(layout, "deep", make_image(labels={"n": "deep"}), make_image(architecture="s390x"))
    world.registry.push(layout, "acme/os:deep")
    world.cosign.sign(digest_name(world, "deep"), classic=True, recursive=True)
    for wanted in ("either", "index", "image", "both"):
        assert ask(trusting(world, tmp_path, f'signed = "{wanted}"'), world.name("deep")).accept


def test_attestations_are_demanded_by_type(world, tmp_path):
    after = '[[attestation]]\npredicate = "https://slsa.dev/provenance/v1"'
    said = ask(trusting(world, tmp_path, after=after), world.name("both"))
    assert said.accept is False
    assert "https://slsa.dev/provenance/v1 is missing" in said.reason
    world.cosign.sign(digest_name(world, "attested"), classic=False)
    said = ask(trusting(world, tmp_path, after=after), world.name("attested"))
    assert said.accept, said
    assert dict(said.evidence)["attested https://slsa.dev/provenance/v1"].startswith("key SHA256:")
    other = '[[attestation]]\npredicate = "https://spdx.dev/Document"'
    assert ask(trusting(world, tmp_path, after=other), world.name("attested")).accept is False


def test_policy_json_may_be_asked_too_and_rejects_by_name(world, tmp_path):
    root = trusting(world, tmp_path)
    text = (root / "etc/bootc/trust.d/x.toml").read_text()
    (root / "etc/bootc/trust.d/x.toml").write_text(text.replace('"instead"', '"also"'))
    assert ask(root, world.name("both")).accept is False  # policy.json rejects by default
    policy = root / "etc/containers/policy.json"
    policy.write_text(json.dumps({"default": ANY}))
    said = ask(root, world.name("both"), SignatureMode.ENFORCE)
    assert said.accept
    assert "policy.json: default" in said.rule
    (root / "etc/bootc/trust.d/x.toml").write_text(text)
    policy.write_text(
        json.dumps({"default": ANY, "transports": {"docker": {world.registry.authority: REJECT}}})
    )
    assert ask(root, world.name("both")).reason == "the policy rejects this image"


# --- GnuPG ----------------------------------------------------------------------------------------


def signed_by(world, tmp_path, name="publisher", **more):
    key = tmp_path / f"{name}.gpg"
    key.write_bytes(world.gpg.export(name, armour=name == "publisher"))
    return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)} | more


def test_skopeo_signs_with_gnupg(world, tmp_path):
    root = configure(tmp_path, signed_by(world, tmp_path), lookaside=world.lookaside)
    said = ask(root, world.name("gpg"), SignatureMode.ENFORCE)
    assert (said.accept, said.cryptographic) == (True, True), said
    facts = dict(said.evidence)
    assert facts["key"] == f"OpenPGP {world.gpg.fingerprint()}"
    assert facts["signed for"] == world.name("gpg")


def test_another_gnupg_key_and_an_unsigned_image(world, tmp_path):
    root = configure(tmp_path, signed_by(world, tmp_path, "other"), lookaside=world.lookaside)
    said = ask(root, world.name("gpg"))
    assert (said.accept, said.could_check) == (False, True)
    assert world.gpg.fingerprint()[-16:] in said.reason
    said = ask(root, world.name("unsigned"))
    assert "carries no OpenPGP signature" in said.reason


def test_s23_a_lookaside_that_does_not_answer_is_an_error_not_an_unsigned_image(world, tmp_path):
    from bootc_core.errors import TransportError

    root = configure(tmp_path, signed_by(world, tmp_path))
    (root / "etc/containers/registries.d/x.yaml").write_text(
        "default-docker:\n  lookaside: http://127.0.0.1:1/\n"
    )
    with pytest.raises(TransportError):
        ask(root, world.name("gpg"))


def test_signatures_in_a_directory_image(world, tmp_path):
    """skopeo writes signature-1 into dir:, signed for an explicit name."""
    target = tmp_path / "image"
    subprocess.run(
        [
            *("skopeo", "copy", "-q", "--insecure-policy", "--sign-by", world.gpg.fingerprint()),
            *("--sign-identity", "quay.io/acme/os:1"),
            *(f"oci:{world.directory}/layout:gpg", f"dir:{target}"),
        ],
        check=True,
        env={"PATH": "/usr/bin:/bin", "GNUPGHOME": str(world.gpg.home), "HOME": str(tmp_path)},
    )
    assert (target / "signature-1").exists()
    exact = {"type": "exactReference", "dockerReference": "quay.io/acme/os:1"}
    root = configure(tmp_path, signed_by(world, tmp_path, signedIdentity=exact))
    assert ask(root, f"dir:{target}", SignatureMode.ENFORCE).accept
    root = configure(tmp_path, signed_by(world, tmp_path))
    said = ask(root, f"dir:{target}")
    assert said.accept is False
    assert "have no name to compare" in said.reason


def test_skopeo_agrees_about_identities(world, tmp_path):
    """The same policies, decided by skopeo and by us."""
    good, other = world.name("gpg"), world.name("2")
    repository = good.rpartition(":")[0]
    cases = [
        None,
        {"type": "matchExact"},
        {"type": "matchRepoDigestOrExact"},
        {"type": "matchRepository"},
        {"type": "exactReference", "dockerReference": good},
        {"type": "exactReference", "dockerReference": other},
        {"type": "exactRepository", "dockerRepository": repository},
        {"type": "exactRepository", "dockerRepository": repository + "x"},
        {"type": "remapIdentity", "prefix": repository, "signedPrefix": repository},
        {"type": "remapIdentity", "prefix": repository, "signedPrefix": "quay.io/x"},
        {"type": "remapIdentity", "prefix": "quay.io/x", "signedPrefix": "quay.io/y"},
    ]
    verdicts = []
    for number, identity in enumerate(cases):
        more = {"signedIdentity": identity} if identity else {}
        root = configure(tmp_path, signed_by(world, tmp_path, **more), lookaside=world.lookaside)
        theirs = subprocess.run(
            [
                *("skopeo", "--policy", root / "etc/containers/policy.json"),
                *("--registries.d", world.directory / "registries.d"),
                *("copy", "-q", "--src-tls-verify=false"),
                *(f"docker://{good}", f"dir:{tmp_path}/out{number}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        ours = ask(root, good)
        assert ours.accept is (theirs.returncode == 0), (identity, ours, theirs.stderr)
        verdicts.append(ours.accept)
    assert verdicts.count(True) == 8
    assert verdicts.count(False) == 3


# --- the whole way --------------------------------------------------------------------------------


def bootc(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bootc_core.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_layer_byte_before_acceptance_and_evidence_after(tmp_path):
    """switch, refused; switch, accepted; status, show, recheck; a downgrade, refused, then permitted once."""
    cosign = Cosign.make(tmp_path / "keys")
    layout = tmp_path / "layout"
    blobs = {}
    for tag, created in (
        ("1", "2026-02-01"),
        ("2", "2026-03-01"),
        ("3", "2026-04-01"),
        ("0", "2026-01-01"),
    ):
        built = images.build(
            layout, [images.bootable({"etc/n": tag})], tag=tag, created=f"{created}T00:00:00Z"
        )
        blobs[tag] = {item["digest"] for item in json.loads(built.manifest_document.raw)["layers"]}
    (tmp_path / "registry").mkdir()
    root, sysroot = tmp_path / "config", tmp_path / "sysroot"
    (root / "etc/containers").mkdir(parents=True)
    (root / "etc/containers/policy.json").write_text(json.dumps({"default": ANY}))
    where = ("--sysroot", sysroot, "--config-root", root)

    def move(tag):
        registry.push(layout, "acme/os:stable", tag=tag)

    def layers(tag):
        found = [path for _, path, _ in registry.requests("bootc") if "/blobs/" in path]
        return [path for path in found if path.rpartition("/")[2] in blobs[tag]]

    with running_registry(tmp_path / "registry") as registry:
        name = f"{registry.authority}/acme/os"
        move("1")
        done = bootc("trust", "add", name, "--key", cosign.public, "--config-root", root, "--yes")
        assert done.returncode == 0, done.stderr
        for part in ("policy.json", "trust.d", ".pub", "registries.d"):
            assert part in done.stdout

        refused = bootc("switch", *where, f"{name}:stable")
        assert refused.returncode == 1
        assert "carries no sigstore signature" in refused.stderr

        cosign.sign(f"{name}@{digest_of(layout, '1')}", classic=False)
        done = bootc("switch", *where, "--enforce-container-sigpolicy", f"{name}:stable")
        assert done.returncode == 0, done.stderr
        shown = bootc("trust", "show", *where)
        assert "signed by publisher" in shown.stdout
        assert "SHA256:" in shown.stdout
        assert "bundle" in shown.stdout
        status = bootc("status", "-v", "--format", "humanreadable", *where[:2]).stdout
        assert "signed by publisher" in status
        assert "Signed (key): SHA256:" in status
        assert bootc("trust", "explain", *where, f"{name}:stable").returncode == 0

        move("2")
        told = bootc("upgrade", "--check", *where)
        assert "It would be refused: needs publisher; no signature counts" in told.stdout
        refused = bootc("upgrade", *where)
        assert refused.returncode == 1
        assert "needs publisher; no signature counts" in refused.stderr
        cosign.sign(f"{name}@{digest_of(layout, '2')}", classic=True)
        assert "Accepted: signed by publisher" in bootc("upgrade", "--check", *where).stdout
        done = bootc("upgrade", *where)
        assert done.returncode == 0, done.stderr

        # an older image, well signed, at the same tag
        move("0")
        cosign.sign(f"{name}@{digest_of(layout, '0')}", classic=True)
        refused = bootc("upgrade", *where)
        assert refused.returncode == 1
        assert "older than the one before" in refused.stderr
        assert "permit-downgrade" in refused.stderr
        assert bootc("trust", "explain", *where, f"{name}:stable").returncode == 1
        done = bootc(
            "trust", "permit-downgrade", *where, "--reason", "bad release", f"{name}:stable"
        )
        assert done.returncode == 0, done.stderr
        done = bootc("upgrade", *where)
        assert done.returncode == 0, done.stderr
        memory = json.loads((sysroot / "bootc/trust/memory.json").read_text())
        assert [item["reason"] for item in memory["downgrades"]] == ["bad release"]
        assert memory["permits"] == {}
        move("3")
        cosign.sign(f"{name}@{digest_of(layout, '3')}", classic=False)
        assert bootc("upgrade", *where).returncode == 0
        move("0")
        assert bootc("upgrade", *where).returncode == 1  # once was once

    # the registry has ended: its log is complete, and nothing below can ask it
    assert len(layers("1")) >= 1
    everything = registry.requests("bootc")
    first = next(
        number
        for number, (_, path, _) in enumerate(everything)
        if path.rpartition("/")[2] in blobs["1"]
    )
    before = [path for _, path, _ in everything[:first]]
    # the refused switch, then the accepted one: both had looked for bundles before any layer
    assert sum("/referrers/" in path for path in before) >= 2, before

    again = bootc("trust", "recheck", *where)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "holds: signed by publisher" in again.stdout
    key = next((root / "etc/pki/containers").glob("*.pub"))
    key.write_bytes(Cosign.make(tmp_path / "rotated").public.read_bytes())
    again = bootc("trust", "recheck", *where)
    assert again.returncode == 1
    assert "is refused now" in again.stdout
    key.unlink()
    assert "cannot be checked now" in bootc("trust", "recheck", *where).stdout
    # a damaged memory is not a first use
    (sysroot / "bootc/trust/memory.json").unlink()
    lost = bootc("trust", "permit-downgrade", *where, f"{name}:stable")
    assert lost.returncode == 1
    assert "memory of versions" in lost.stderr
    assert "trust pin" in lost.stderr
    assert bootc("trust", "pin", *where).returncode == 0
    assert bootc("trust", "permit-downgrade", *where, f"{name}:stable").returncode == 0


def test_without_the_verifying_plugin_nothing_is_fetched(tmp_path):
    """A missing verifier refuses, also where verification is not wanted; nobody answers at this address, and nobody is asked."""
    root = configure(tmp_path / "config", {"type": "insecureAcceptAnything"})
    for more in ((), ("--no-signature-verification",)):
        done = bootc(
            *("switch", "--no-plugin", "signing", "--sysroot", tmp_path / "host"),
            *("--config-root", root, *more, "127.0.0.1:1/acme/os:1"),
        )
        assert done.returncode == 1
        assert "no signature policy is loaded" in done.stderr
        assert "unblock the plugin signing" in done.stderr
    assert not (tmp_path / "host").exists()


def digest_of(layout, tag):
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    key = "org.opencontainers.image.ref.name"
    return next(item["digest"] for item in entries if item["annotations"][key] == tag)
