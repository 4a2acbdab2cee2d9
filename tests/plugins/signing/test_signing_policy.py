"""policy.json: what is valid, which rule counts, what it answers; the file; and skopeo as a second opinion."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from bootc_signing import plugin
from bootc_signing.decide import Settings, decide
from bootc_signing.load import candidates, read_policy
from bootc_signing.policy import parse_policy, rule_for
from bootc_signing.world import World

from bootc_core.errors import ConfigError
from bootc_core.models.context import Context, Operation, Phase, SignatureMode
from bootc_core.models.image import FetchedImage, FileSource
from bootc_core.models.oci import RawDocument, parse_config, parse_manifest
from bootc_core.models.reference import ImageReference

ANY = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
GPG = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/pki/acme.gpg"}
SIGSTORE = {"type": "sigstoreSigned", "keyPath": "/etc/pki/acme.pub"}
FULCIO = {"caPath": "/ca", "oidcIssuer": "https://idp", "subjectEmail": "a@b"}
PKI = {"caRootsPath": "/ca", "subjectEmail": "a@b"}
HEX = "0123456789abcdef" * 4


def parse(value):
    return parse_policy(json.dumps(value).encode(), "/etc/containers/policy.json")


def answer(value, reference, mode=SignatureMode.POLICY):
    named = ImageReference.parse(reference)
    place = "/etc/containers/policy.json"
    rule = rule_for(parse(value), named, lambda path: path)
    found = Settings(World(Path("/")), named, place, rule, (place,), None)
    return trio.run(decide, found, image(reference), mode)[0]


# --- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "requirement",
    [
        {"type": "insecureAcceptAnything"},
        {"type": "reject"},
        GPG,
        {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/a", "/b"]},
        {"type": "signedBy", "keyType": "GPGKeys", "keyData": "bm9uc2Vuc2U="},
        {**GPG, "keyType": "X509Certificates"},
        SIGSTORE,
        {"type": "sigstoreSigned", "keyData": "bm9uc2Vuc2U="},
        {"type": "sigstoreSigned", "keyDatas": ["bm9uc2Vuc2U=", "bm9u"]},
        {"type": "sigstoreSigned", "keyPaths": ["/a"], "rekorPublicKeyPath": "/r"},
        {"type": "sigstoreSigned", "fulcio": FULCIO, "rekorPublicKeyData": "bm9u"},
        {"type": "sigstoreSigned", "fulcio": FULCIO, "rekorPublicKeyPaths": ["/r", "/s"]},
        {"type": "sigstoreSigned", "pki": PKI},
        {"type": "sigstoreSigned", "pki": {**PKI, "caIntermediatesPath": "/i"}},
        {"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchRepository"}},
        *(
            {**GPG, "signedIdentity": identity}
            for identity in (
                {"type": "matchExact"},
                {"type": "matchRepoDigestOrExact"},
                {"type": "matchRepository"},
                {"type": "exactReference", "dockerReference": "quay.io/x:1"},
                {"type": "exactReference", "dockerReference": f"quay.io/x@sha256:{HEX}"},
                {"type": "exactRepository", "dockerRepository": "quay.io/x"},
                {"type": "remapIdentity", "prefix": "quay.io:443/x", "signedPrefix": "b.org"},
            )
        ),
    ],
)
def test_valid_requirements(requirement):
    assert len(parse({"default": [requirement]}).default) == 1


@pytest.mark.parametrize(
    ("requirement", "where", "why"),
    [
        ({}, "default.0", "discriminator"),
        ({"type": "acceptAnything"}, "default.0", "does not match any of the expected tags"),
        ({"type": "reject", "x": 1}, "default.0.reject.x", "not permitted"),
        ({"type": "insecureAcceptAnything", "keyPath": "/a"}, "keyPath", "not permitted"),
        ({"type": "signedBy", "keyPath": "/a"}, "keyType", "required"),
        ({**GPG, "keyType": "PGPKeys"}, "keyType", "GPGKeys"),
        ({"type": "signedBy", "keyType": "GPGKeys"}, "signedBy", "has none"),
        ({**GPG, "keyData": "bm9u"}, "signedBy", "has keyPath, keyData"),
        ({**GPG, "keyPath": ""}, "keyPath", "at least 1 character"),
        ({**GPG, "keyPath": 5}, "keyPath", "valid string"),
        ({"type": "signedBy", "keyType": "GPGKeys", "keyPaths": []}, "keyPaths", "at least 1"),
        ({"type": "signedBy", "keyType": "GPGKeys", "keyData": "!"}, "keyData", "not base64"),
        ({"type": "sigstoreSigned"}, "sigstoreSigned", "has none"),
        ({**SIGSTORE, "keyDatas": ["bm9u"]}, "sigstoreSigned", "exactly one"),
        ({**SIGSTORE, "keyType": "GPGKeys"}, "keyType", "not permitted"),
        (
            {**SIGSTORE, "rekorPublicKeyPath": "/a", "rekorPublicKeyPaths": ["/b"]},
            "sigstoreSigned",
            "at most one",
        ),
        ({"type": "sigstoreSigned", "fulcio": FULCIO}, "sigstoreSigned", "needs a Rekor key"),
        (
            {"type": "sigstoreSigned", "pki": PKI, "rekorPublicKeyPath": "/r"},
            "sigstoreSigned",
            "takes no Rekor key",
        ),
        (
            {"type": "sigstoreSigned", "fulcio": {**FULCIO, "caData": "bm9u"}},
            "fulcio",
            "exactly one of caPath, caData",
        ),
        (
            {"type": "sigstoreSigned", "fulcio": {"caPath": "/a", "oidcIssuer": "x"}},
            "subjectEmail",
            "required",
        ),
        (
            {"type": "sigstoreSigned", "pki": {"caRootsPath": "/a"}},
            "pki",
            "some of subjectEmail, subjectHostname",
        ),
        ({**GPG, "signedIdentity": {"type": "x"}}, "signedIdentity", "expected tags"),
        (
            {**GPG, "signedIdentity": {"type": "exactReference", "dockerReference": "quay.io/x"}},
            "dockerReference",
            "needs a tag or a digest",
        ),
        (
            {**GPG, "signedIdentity": {"type": "exactRepository", "dockerRepository": "A b"}},
            "dockerRepository",
            "not an image name",
        ),
        (
            {
                **GPG,
                "signedIdentity": {
                    "type": "remapIdentity",
                    "prefix": "quay.io/X",
                    "signedPrefix": "b",
                },
            },
            "prefix",
            "not a registry",
        ),
        ({"type": "signedBaseLayer"}, "baseLayerIdentity", "required"),
    ],
)
def test_s19_invalid_requirements_name_the_place(requirement, where, why):
    with pytest.raises(ConfigError) as caught:
        parse({"default": [requirement]})
    assert caught.value.catalogue == "CFG"
    assert "/etc/containers/policy.json" in caught.value.message
    assert where in caught.value.message
    assert why in str(caught.value.found)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"default": []}',
        b'{"default": null}',
        b'{"default": [{"type": "reject"}], "Default": []}',
        b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
        b'{"default": [{"type": "reject"}]} {}',
        b'{"default": [{"type": "reject"}], "transports": []}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": []}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"": []}}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"a": [], "a": []}}}',
        b'\xef\xbb\xbf{"default": [{"type": "reject"}]}',
        b'{"default": [{"type": "rej\xff"}]}',
        b'{"default": ' + b"[" * 100_000,
        b"# comment",
    ],
)
def test_s19_c01_invalid_documents(data):
    with pytest.raises(ConfigError) as caught:
        parse_policy(data, "/etc/containers/policy.json")
    assert "/etc/containers/policy.json" in caught.value.message


@pytest.mark.parametrize(
    ("transport", "scope"),
    [
        ("oci", "relative"),
        ("oci", "/"),
        ("dir", "/a/"),
        ("dir", "/a/../b"),
        ("oci-archive", "//a"),
        ("docker-archive", "/a.tar"),
        ("containers-storage", "localhost/x"),
    ],
)
def test_scopes_that_never_match_are_refused(transport, scope):
    with pytest.raises(ConfigError) as caught:
        parse({"default": REJECT, "transports": {transport: {scope: ANY}}})
    assert f'transports.{transport}["{scope}"]' in str(caught.value.found)


# --- lookup ---------------------------------------------------------------------------------------

SCOPED = {
    "default": REJECT,
    "transports": {
        "docker": {
            "quay.io/acme/os:1": ANY,
            "quay.io/acme/os": ANY,
            f"quay.io/acme/os@sha256:{HEX}": ANY,
            "quay.io/acme": ANY,
            "quay.io": ANY,
            "*.example.com": ANY,
            "registry.example.com": ANY,
            "docker.io/library": ANY,
            "host:5000": ANY,
            "": ANY,
        },
        "oci": {"/srv/images": ANY, "/srv": ANY},
        "dir": {"": ANY},
        "docker-archive": {"": ANY},
        "containers-storage": {"[/var/lib/containers/storage]": ANY},
        "docker-daemon": {"": ANY},
        "atomic": {"whatever": ANY},
    },
}


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("quay.io/acme/os:1", 'transports.docker["quay.io/acme/os:1"]'),
        ("quay.io/acme/os:2", 'transports.docker["quay.io/acme/os"]'),
        (f"quay.io/acme/os@sha256:{HEX}", f'transports.docker["quay.io/acme/os@sha256:{HEX}"]'),
        # by digest, although a tag is named too
        (f"quay.io/acme/os:1@sha256:{HEX}", f'transports.docker["quay.io/acme/os@sha256:{HEX}"]'),
        ("quay.io/acme/other", 'transports.docker["quay.io/acme"]'),
        ("quay.io/acmeother/x", 'transports.docker["quay.io"]'),
        ("a.b.example.com:5000/x", 'transports.docker["*.example.com"]'),
        ("registry.example.com/x", 'transports.docker["registry.example.com"]'),
        ("registry.example.com:5000/x", 'transports.docker["*.example.com"]'),
        ("example.com/x", 'transports.docker[""]'),
        ("debian", 'transports.docker["docker.io/library"]'),
        ("acme/debian", 'transports.docker[""]'),
        ("host:5000/x", 'transports.docker["host:5000"]'),
        ("oci:/srv/images/os:1", 'transports.oci["/srv/images"]'),
        ("oci:/srv/images", 'transports.oci["/srv/images"]'),
        ("oci:/srv/imagesother", 'transports.oci["/srv"]'),
        ("oci:/elsewhere", "default"),
        ("dir:/elsewhere", 'transports.dir[""]'),
        ("oci-archive:/srv/a.tar", "default"),
        ("docker-archive:/srv/a.tar", 'transports.docker-archive[""]'),
        (
            "containers-storage:localhost/x",
            'transports.containers-storage["[/var/lib/containers/storage]"]',
        ),
        ("docker-daemon:x:1", 'transports.docker-daemon[""]'),
    ],
)
def test_s20_the_most_specific_scope_counts(reference, place):
    rule = rule_for(parse(SCOPED), ImageReference.parse(reference), lambda path: path)
    assert rule.place == place


def test_lists_are_not_merged():
    policy = {"default": ANY, "transports": {"docker": {"quay.io": REJECT, "quay.io/x": ANY}}}
    assert answer(policy, "quay.io/x").accept is True
    assert answer(policy, "quay.io/y").accept is False
    assert answer(policy, "other.org/y").accept is True


# --- answers --------------------------------------------------------------------------------------


def test_accept_anything():
    said = answer({"default": ANY}, "quay.io/x")
    assert (said.accept, said.cryptographic, said.could_check) == (True, False, True)
    assert said.rule == "/etc/containers/policy.json: default"


def test_reject():
    said = answer({"default": ANY, "transports": {"docker": {"quay.io": REJECT}}}, "quay.io/x")
    assert (said.accept, said.could_check) == (False, True)
    assert said.rule == '/etc/containers/policy.json: transports.docker["quay.io"]'
    assert "/etc/containers/policy.json" in str(said.hint)


@pytest.mark.parametrize(
    ("requirement", "named", "why"),
    [
        (GPG, "signedBy with /etc/pki/acme.gpg", "no file /etc/pki/acme.gpg"),
        (SIGSTORE, "sigstoreSigned with /etc/pki/acme.pub", "no file /etc/pki/acme.pub"),
        (
            {"type": "sigstoreSigned", "fulcio": FULCIO, "rekorPublicKeyPath": "/r"},
            "sigstoreSigned with a@b (https://idp)",
            "no file /r",
        ),
        ({"type": "sigstoreSigned", "pki": PKI}, "sigstoreSigned with a@b", "no file /ca"),
        ({"type": "sigstoreSigned", "keyData": "bm9u"}, "sigstoreSigned", "not one public key"),
        (
            {**GPG, "keyType": "signedByX509CAs"},
            "signedBy with /etc/pki/acme.gpg",
            "not implemented",
        ),
    ],
)
def test_s01_without_its_key_a_requirement_cannot_be_checked_and_refuses(requirement, named, why):
    for mode in (SignatureMode.POLICY, SignatureMode.ENFORCE):
        for requirements in ([requirement], [*ANY, requirement], [requirement, *ANY]):
            said = answer({"default": requirements}, "quay.io/x", mode)
            assert (said.accept, said.could_check) == (False, False)
            assert said.reason.startswith(named + ": ")
            assert why in said.reason


def test_signed_base_layer_never_passes():
    requirement = {"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}
    said = answer({"default": [requirement]}, "quay.io/x")
    assert (said.accept, said.could_check) == (False, True)


def test_reject_beside_others_rejects():
    assert answer({"default": [*ANY, *REJECT]}, "quay.io/x").accept is False
    said = answer({"default": [GPG, *REJECT]}, "quay.io/x")
    assert (said.accept, said.could_check) == (False, True)


def test_enforce_demands_a_checked_signature():
    policy = {"default": REJECT, "transports": {"docker": {"quay.io": [*ANY, *ANY]}}}
    assert answer(policy, "quay.io/x", SignatureMode.POLICY).accept is True
    said = answer(policy, "quay.io/x", SignatureMode.ENFORCE)
    assert said.accept is False
    assert "--enforce-container-sigpolicy" in str(said.hint)
    assert (
        answer(policy, "b.org/x", SignatureMode.ENFORCE).reason == answer(policy, "b.org/x").reason
    )


# --- the file -------------------------------------------------------------------------------------


def write(root, value, name="etc/containers/policy.json"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    path.chmod(0o644)
    return path


def decided(root, reference="quay.io/x", mode=SignatureMode.POLICY):
    return trio.run(plugin.bootc_verify, context(root, mode), image(reference))


def test_first_file_counts(tmp_path):
    write(tmp_path, {"default": ANY}, "usr/share/containers/policy.json")
    assert decided(tmp_path).accept is True
    path = write(tmp_path, {"default": REJECT})
    said = decided(tmp_path)
    assert (said.accept, said.rule) == (False, f"{path}: default")


def test_a_broken_first_file_is_not_skipped(tmp_path):
    write(tmp_path, {"default": ANY}, "usr/share/containers/policy.json")
    write(tmp_path, b"{}")
    with pytest.raises(ConfigError):
        decided(tmp_path)


def test_s19_no_policy_refuses_and_says_what_settles_it(tmp_path):
    for mode in (SignatureMode.POLICY, SignatureMode.ENFORCE):
        said = decided(tmp_path, mode=mode)
        assert (said.accept, said.could_check) == (False, False)
        for needed in (
            f"{tmp_path}/etc/containers/policy.json",
            f"{tmp_path}/usr/share/containers/policy.json",
            "--no-signature-verification",
        ):
            assert needed in str(said.hint)


def test_insecure_asks_no_policy(tmp_path):
    write(tmp_path, b"rubbish")
    said = decided(tmp_path, mode=SignatureMode.INSECURE)
    assert (said.accept, said.cryptographic) == (True, False)
    assert said.reason == "signature verification was switched off (--no-signature-verification)"
    assert said.rule == "--no-signature-verification"


def test_environment_names_the_only_file(tmp_path, monkeypatch):
    path = write(tmp_path, {"default": ANY}, "mine.json")
    monkeypatch.setenv("CONTAINERS_POLICY_JSON", str(path))
    assert candidates(Path("/")) == (path,)
    assert decided(Path("/")).rule == f"{path}: default"
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        decided(Path("/"))
    assert "CONTAINERS_POLICY_JSON" in str(caught.value.hint)
    # another configuration root is not ours to redirect
    assert decided(tmp_path).reason.startswith("there is no policy.json")


def test_system_files_of_root(monkeypatch):
    monkeypatch.delenv("CONTAINERS_POLICY_JSON", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert candidates(Path("/")) == (
        Path("/etc/containers/policy.json"),
        Path("/usr/share/containers/policy.json"),
    )


def test_user_file_comes_first_for_users(tmp_path, monkeypatch):
    monkeypatch.delenv("CONTAINERS_POLICY_JSON", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert candidates(Path("/"))[0] == tmp_path / "containers/policy.json"
    assert len(candidates(Path("/"))) == 3
    assert len(candidates(tmp_path)) == 2


def test_c02_fifo_does_not_block(tmp_path):
    path = tmp_path / "etc/containers/policy.json"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        decided(tmp_path)
    assert "not a regular file" in caught.value.message


def test_c02_directory_and_huge_file(tmp_path):
    path = tmp_path / "etc/containers/policy.json"
    path.mkdir(parents=True)
    with pytest.raises(ConfigError):
        decided(tmp_path)
    path.rmdir()
    path.touch(0o644)
    os.truncate(path, 1 << 30)  # sparse
    with pytest.raises(ConfigError) as caught:
        decided(tmp_path)
    assert caught.value.reference == "too-large"


def test_c02_invalid_utf8(tmp_path):
    write(tmp_path, b'{"default": [{"type": "\xff"}]}')
    with pytest.raises(ConfigError) as caught:
        decided(tmp_path)
    assert caught.value.reference == "bad-json"


@pytest.mark.root
@pytest.mark.parametrize(
    ("place", "mode", "owner"),
    [
        ("etc/containers/policy.json", 0o666, 0),
        ("etc/containers/policy.json", 0o664, 0),
        ("etc/containers/policy.json", 0o644, 1000),
        ("etc/containers", 0o777, 0),
        ("etc", 0o755, 1000),
    ],
)
def test_s19_c03_others_could_change_it(tmp_path, place, mode, owner):
    write(tmp_path, {"default": ANY})
    assert decided(tmp_path).accept is True
    (tmp_path / place).chmod(mode)
    os.chown(tmp_path / place, owner, 0)
    with pytest.raises(ConfigError) as caught:
        decided(tmp_path)
    assert caught.value.reference == "unsafe-permissions"
    assert str(tmp_path / place) in caught.value.message


@pytest.mark.root
def test_s19_link_into_a_directory_of_others(tmp_path):
    target = write(tmp_path, {"default": ANY}, "home/user/policy.json")
    os.chown(target.parent, 1000, 1000)
    link = tmp_path / "etc/containers/policy.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(ConfigError) as caught:
        decided(tmp_path)
    assert caught.value.reference == "unsafe-permissions"


def test_s19_c16_links(tmp_path):
    root = tmp_path / "root"
    shared = write(root, {"default": ANY}, "usr/share/containers/policy.json")
    link = root / "etc/containers/policy.json"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../usr/share/containers/policy.json")
    assert decided(root).rule == f"{link}: default"

    outside = write(tmp_path, {"default": ANY}, "outside.json")
    for target, reference in (
        (outside, "unsafe-link"),
        (Path("/dev/null"), "unsafe-link"),
        (root / "gone", "unreadable"),
    ):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(ConfigError) as caught:
            decided(root)
        assert caught.value.reference == reference
    assert read_policy(shared, root) is not None


def test_masking_with_dev_null_is_not_a_way_to_a_laxer_file(monkeypatch, tmp_path):
    link = tmp_path / "policy.json"
    link.symlink_to("/dev/null")
    monkeypatch.setenv("CONTAINERS_POLICY_JSON", str(link))
    with pytest.raises(ConfigError) as caught:
        decided(Path("/"))
    assert "no policy" in caught.value.message


# --- the hooks ------------------------------------------------------------------------------------


def image(reference):
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    ).encode()
    config_document = RawDocument("application/vnd.oci.image.config.v1+json", config)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": {
                "mediaType": config_document.media_type,
                "digest": config_document.digest,
                "size": len(config),
            },
            "layers": [],
        }
    ).encode()
    document = RawDocument("application/vnd.oci.image.manifest.v1+json", manifest)
    parsed = parse_manifest(document, "x")

    async def no_source(descriptor):
        return FileSource(Path("/dev/null"))

    named = ImageReference.parse(reference)
    return FetchedImage(
        requested=named,
        resolved=named,
        index=None,
        manifest_document=document,
        manifest=parsed,
        config_document=config_document,
        config=parse_config(config_document, parsed, "x"),
        blob_source=no_source,
    )


def context(root, mode):
    return Context(
        transaction="t",
        operation=Operation.SWITCH,
        phase=Phase.VERIFY,
        sysroot="/nowhere",
        live=False,
        config_root=str(root),
        signature=mode,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_hooks(tmp_path):
    assert [offer.name for offer in plugin.bootc_register_policies()] == ["signing"]
    write(tmp_path, {"default": REJECT, "transports": {"docker": {"quay.io/x": ANY}}})

    def ask(reference, mode=SignatureMode.POLICY):
        return trio.run(plugin.bootc_verify, context(tmp_path, mode), image(reference))

    assert ask("quay.io/x:1").accept is True
    assert ask("quay.io/y:1").accept is False
    assert ask("quay.io/y:1", SignatureMode.INSECURE).accept is True
    assert ask("quay.io/x:1", SignatureMode.ENFORCE).accept is False


def test_paths_are_resolved_before_scopes_are_compared(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    where = str(tmp_path)
    write(tmp_path, {"default": REJECT, "transports": {"oci": {f"{where}/real": ANY}}})
    assert decided(tmp_path, f"oci:{where}/link:1").accept is True
    write(tmp_path, {"default": REJECT, "transports": {"oci": {f"{where}/link": ANY}}})
    assert decided(tmp_path, f"oci:{where}/link:1").accept is False


# --- a second opinion -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A layout with one empty image, written by skopeo from a directory image."""
    root = tmp_path_factory.mktemp("layout")
    sample = image("quay.io/x")
    (root / "dir").mkdir()
    (root / "dir/version").write_text("Directory Transport Version: 1.1\n")
    (root / "dir/manifest.json").write_bytes(sample.manifest_document.raw)
    config = sample.config_document
    (root / "dir" / config.digest.removeprefix("sha256:")).write_bytes(config.raw)
    (root / "policy.json").write_text(json.dumps({"default": ANY}))
    subprocess.run(
        [
            *("skopeo", "--policy", root / "policy.json"),
            *("copy", "-q", f"dir:{root}/dir", f"oci:{root}/oci:1"),
        ],
        check=True,
    )
    return root


@pytest.mark.real
@pytest.mark.parametrize(
    ("policy", "accepted"),
    [
        ({"default": ANY}, True),
        ({"default": REJECT}, False),
        ({"default": ANY + REJECT}, False),
        ({"default": REJECT, "transports": {"oci": {"": ANY}}}, True),
        ({"default": ANY, "transports": {"oci": {"": REJECT}}}, False),
        ({"default": REJECT, "transports": {"oci": {"ROOT/oci": ANY}}}, True),
        ({"default": REJECT, "transports": {"oci": {"ROOT": ANY}}}, True),
        ({"default": REJECT, "transports": {"oci": {"ROOT/oci:1": ANY}}}, False),
        ({"default": REJECT, "transports": {"oci": {"ROOT": ANY, "ROOT/oci": REJECT}}}, False),
        ({"default": REJECT, "transports": {"oci": {"ROOT/oc": ANY}}}, False),
        ({"default": REJECT, "transports": {"dir": {"": ANY}}}, False),
        ({"default": [GPG]}, False),
        # files that are invalid as a whole
        ({"default": ANY, "x": 1}, None),
        ({"default": []}, None),
        ({"transports": {}}, None),
        ({"default": [{"type": "insecureAcceptAnything", "x": 1}]}, None),
        ({"default": [{"type": "nothing"}]}, None),
        ({"default": ANY, "transports": {"oci": {"/": ANY}}}, None),
        ({"default": ANY, "transports": {"oci": {"/a/": ANY}}}, None),
        ({"default": ANY, "transports": {"oci": {"a": ANY}}}, None),
        ({"default": ANY, "transports": {"docker-archive": {"/a": ANY}}}, None),
        ({"default": ANY, "transports": {"docker": {"quay.io": []}}}, None),
        (
            {"default": ANY, "transports": {"docker": {"quay.io": [{**GPG, "keyData": "bm9u"}]}}},
            None,
        ),
        (
            {
                "default": ANY,
                "transports": {
                    "docker": {
                        "q": [
                            {
                                **GPG,
                                "signedIdentity": {
                                    "type": "exactReference",
                                    "dockerReference": "quay.io/x",
                                },
                            }
                        ]
                    }
                },
            },
            None,
        ),
    ],
)
def test_skopeo_agrees(layout, tmp_path, policy, accepted):
    text = json.dumps(policy).replace("ROOT", str(layout))
    path = tmp_path / "policy.json"
    path.write_text(text)
    path.chmod(0o644)
    theirs = subprocess.run(
        [
            *("skopeo", "--policy", path),
            *("copy", "-q", f"oci:{layout}/oci:1", f"dir:{tmp_path}/out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (theirs.returncode == 0) is bool(accepted), theirs.stderr
    if accepted is None:
        assert "policy" in theirs.stderr
        with pytest.raises(ConfigError):
            parse_policy(text.encode(), str(path))
    else:
        reference = f"oci:{layout}/oci:1"
        rule = rule_for(parse_policy(text.encode(), str(path)), ImageReference.parse(reference))
        found = Settings(
            World(Path("/")), ImageReference.parse(reference), str(path), rule, (), None
        )
        ours, _ = trio.run(decide, found, image(reference), SignatureMode.POLICY)
        assert ours.accept is accepted
