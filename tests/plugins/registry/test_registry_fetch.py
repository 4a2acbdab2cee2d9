"""The good paths against Debian's docker-registry: plain, TLS, Basic, bearer tokens, indexes, mirrors."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trustme
from bootc_registry import plugin
from bootc_registry.fetch import fetch, resolve
from support.registry import (
    ARCHITECTURE,
    PASSWORD,
    USER,
    Registry,
    have_registry,
    make_image,
    make_index,
    running_registry,
    small_layer,
    write_layout,
)
from support.tokens import TokenServer

from bootc_core import __version__
from bootc_core.errors import TransportError
from bootc_core.models.context import Context, Operation, Phase
from bootc_core.models.image import HttpSource
from bootc_core.models.oci import OCI_INDEX, OCI_MANIFEST
from bootc_core.models.reference import ImageReference
from bootc_core.net.http import TlsOptions, request

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not have_registry, reason="docker-registry and skopeo are not installed"),
]
OTHER = "arm64" if ARCHITECTURE != "arm64" else "amd64"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("REGISTRY_AUTH_FILE", "CONTAINERS_REGISTRIES_CONF", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("registry")
    layout = directory / "layout"
    ours = make_image(labels={"org.opencontainers.image.version": "1"})
    other = make_image(architecture=OTHER)
    write_layout(layout, "1", ours)
    write_layout(layout, "multi", ours, other)
    write_layout(layout, "foreign", other)
    with running_registry(directory) as registry:
        for tag in ("1", "multi", "foreign"):
            registry.push(layout, f"acme/os:{tag}")
        registry.ours = ours
        yield registry


def reference(registry: Registry, name: str) -> ImageReference:
    return ImageReference.parse(f"docker://{registry.authority}/{name}")


def read(source: HttpSource) -> bytes:
    tls = TlsOptions(verify=source.tls_verify, ca_files=(source.ca_file,) if source.ca_file else ())
    with request("GET", source.url, headers=source.headers, tls=tls) as reply:
        assert reply.status == 200
        return reply.read(1 << 20)


def read_layers(image) -> list[bytes]:
    async def run():
        return [read(await image.blob_source(layer)) for layer in image.manifest.layers]

    return trio.run(run)


def test_hooks(plain):
    (offer,) = plugin.bootc_register_transports()
    assert offer.transports == ("registry",)
    context = Context(
        transaction="t",
        operation=Operation.UPGRADE,
        phase=Phase.FETCH,
        sysroot="/",
        live=False,
        started_at=datetime.now(UTC),
    )
    wanted = reference(plain, "acme/os:1")
    assert trio.run(plugin.bootc_resolve, context, wanted) == plain.ours.digest
    assert trio.run(plugin.bootc_fetch, context, wanted).digest == plain.ours.digest
    elsewhere = ImageReference.parse("oci:/srv/os")
    assert trio.run(plugin.bootc_resolve, context, elsewhere) is None
    assert trio.run(plugin.bootc_fetch, context, elsewhere) is None


def test_check_is_one_head_request(tmp_path):
    write_layout(tmp_path / "layout", "1", make_image(), make_image(architecture=OTHER))
    with running_registry(tmp_path) as registry:
        registry.push(tmp_path / "layout", "acme/os:1")
        digest = trio.run(resolve, tmp_path, reference(registry, "acme/os:1"))
        assert trio.run(resolve, tmp_path, reference(registry, f"acme/os@{digest}")) == digest
    assert registry.requests("bootc/") == [("HEAD", "/v2/acme/os/manifests/1", 200)]


def test_single_manifest(plain, tmp_path):
    image = trio.run(fetch, tmp_path, reference(plain, "acme/os:1"))
    assert image.manifest_document.raw == plain.ours.manifest
    assert image.manifest_document.media_type == OCI_MANIFEST
    assert image.config_document.raw == plain.ours.config
    assert image.config.version == "1"
    assert image.index is None
    assert image.digest == image.tag_digest == plain.ours.digest
    assert str(image.requested) == f"docker://{plain.authority}/acme/os:1"
    assert str(image.resolved) == f"docker://{plain.authority}/acme/os@{plain.ours.digest}"
    assert read_layers(image) == [small_layer()]


def test_fetch_asks_for_each_document_once(tmp_path):
    ours = make_image()
    top = write_layout(tmp_path / "layout", "1", ours, make_image(architecture=OTHER))
    with running_registry(tmp_path) as registry:
        registry.push(tmp_path / "layout", "acme/os:1")
        image = trio.run(fetch, tmp_path, reference(registry, "acme/os:1"))
    assert image.tag_digest == top
    assert registry.requests("bootc/") == [
        ("GET", "/v2/acme/os/manifests/1", 200),
        ("GET", f"/v2/acme/os/manifests/{ours.digest}", 200),
        ("GET", f"/v2/acme/os/blobs/{image.manifest.config.digest}", 200),
    ]


def test_index_is_narrowed_to_this_machine(plain, tmp_path):
    image = trio.run(fetch, tmp_path, reference(plain, "acme/os:multi"))
    assert image.index is not None
    assert image.index.media_type == OCI_INDEX
    assert image.digest == plain.ours.digest
    assert image.tag_digest == image.index.digest != image.digest
    assert str(image.resolved).endswith(f"@{image.index.digest}")
    assert trio.run(resolve, tmp_path, reference(plain, "acme/os:multi")) == image.tag_digest


def test_by_digest_with_and_without_tag(plain, tmp_path):
    digest = plain.ours.digest
    for name in (f"acme/os@{digest}", f"acme/os:gone@{digest}"):
        image = trio.run(fetch, tmp_path, reference(plain, name))
        assert image.digest == digest
        assert trio.run(resolve, tmp_path, reference(plain, name)) == digest


def test_other_platform_is_refused(plain, tmp_path):
    with pytest.raises(Exception, match="is for another machine") as caught:
        trio.run(fetch, tmp_path, reference(plain, "acme/os:foreign"))
    assert (caught.value.reference, caught.value.catalogue) == ("wrong-platform", "CON")
    assert caught.value.found == f"linux/{OTHER}"


def test_unknown_names(plain, tmp_path):
    for name in ("acme/os:none", "acme/none:1"):
        for call in (fetch, resolve):
            with pytest.raises(TransportError) as caught:
                trio.run(call, tmp_path, reference(plain, name))
            error = caught.value
            assert (error.reference, error.catalogue) == ("not-found", "NOTFOUND")
            assert error.message == f"{plain.authority} does not have {plain.authority}/{name}"
            assert error.hint == "check the spelling of repository and tag"


def test_no_signatures(plain, tmp_path):
    image = trio.run(fetch, tmp_path, reference(plain, "acme/os:1"))
    assert trio.run(image.read_attachments, "cosign") == ()
    assert trio.run(image.read_attachments, "lookaside") == ()


def test_cosign_signatures_beside_the_image(plain, tmp_path):
    image = trio.run(fetch, tmp_path, reference(plain, "acme/os:1"))
    payload = b'{"critical": {}}'
    signature = make_image(layers=(payload,))
    document = json.loads(signature.manifest)
    document["layers"][0] |= {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "annotations": {"dev.cosignproject.cosign/signature": "c2ln"},
    }
    signature.manifest = json.dumps(document).encode()
    tag = image.digest.replace(":", "-") + ".sig"
    write_layout(tmp_path / "signature", tag, signature)
    plain.push(tmp_path / "signature", f"acme/os:{tag}")
    (found,) = trio.run(image.read_attachments, "cosign")
    assert found.payload == payload
    assert found.annotations == {"dev.cosignproject.cosign/signature": "c2ln"}
    assert found.origin == f"{plain.authority}/acme/os:{tag}"


# --- TLS and credentials ------------------------------------------------------------------------------------------


def trust(root: Path, registry: Registry, *more: bytes) -> None:
    directory = root / "etc/containers/certs.d" / registry.authority
    directory.mkdir(parents=True)
    (directory / "a.crt").write_bytes(registry.ca_file.read_bytes())
    for number, pem in enumerate(more):
        (directory / f"more{number}.crt").write_bytes(pem)


def log_in(root: Path, key: str, entry: dict, place: str = "run/ostree") -> None:
    path = root / place / "auth.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {key: entry}}))
    path.chmod(0o600)


def pair(user: str = USER, password: str = PASSWORD) -> dict:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """TLS and Basic."""
    directory = tmp_path_factory.mktemp("secure")
    write_layout(directory / "layout", "1", make_image())
    with running_registry(directory, ca=trustme.CA(), htpasswd=True) as registry:
        registry.push(directory / "layout", "acme/os:1")
        yield registry


@pytest.mark.skipif(os.geteuid() != 0, reason="the system's auth files count for root")
def test_tls_and_basic(secure, tmp_path):
    trust(tmp_path, secure, trustme.CA().cert_pem.bytes())
    log_in(tmp_path, f"{secure.authority}/acme", pair())
    image = trio.run(fetch, tmp_path, reference(secure, "acme/os:1"))
    assert read_layers(image) == [small_layer()]

    async def sources(image):
        layer = image.manifest.layers[0]
        first = await image.blob_source(layer)
        return first, await image.blob_source(layer)  # asked again: the credentials are tried

    first, second = trio.run(sources, image)
    assert first == second
    assert first.url.startswith(f"https://{secure.authority}/v2/acme/os/blobs/sha256:")
    bundle = Path(first.ca_file)
    assert bundle.read_text().count("BEGIN CERTIFICATE") == 2
    del image
    gc.collect()
    assert not bundle.exists()


def test_unknown_authority_is_not_talked_to(secure, tmp_path):
    (tmp_path / "etc/containers/certs.d" / secure.authority).mkdir(parents=True)
    with pytest.raises(TransportError) as caught:
        trio.run(fetch, tmp_path, reference(secure, "acme/os:1"))
    assert caught.value.reference == "tls-verify"
    assert caught.value.message == (
        f"the certificate of {secure.authority} is signed by an unknown authority"
    )


@pytest.mark.parametrize("call", [fetch, resolve])
def test_a_tls_server_on_loopback_is_found_out(secure, tmp_path, monkeypatch, call):
    """Plain HTTP comes first there; a real TLS server answers it with 400 whatever the method."""
    with pytest.raises(TransportError) as caught:
        trio.run(call, tmp_path, reference(secure, "acme/os:1"))
    assert caught.value.reference == "tls-verify"


def test_insecure_takes_any_certificate(secure, tmp_path, monkeypatch):
    (tmp_path / "conf").write_text(
        f'[[registry]]\nlocation = "{secure.authority}"\ninsecure = true\n'
    )
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "conf"))
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {secure.authority: pair()}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
    image = trio.run(fetch, tmp_path, reference(secure, "acme/os:1"))
    assert read_layers(image) == [small_layer()]


@pytest.mark.parametrize(
    ("entry", "hint"),
    [(None, "if it is private"), (pair("reader", "wrong-canary"), "log in again")],
)
def test_missing_and_wrong_credentials(secure, tmp_path, monkeypatch, entry, hint):
    trust(tmp_path, secure)
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {secure.authority: entry} if entry else {}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
    with pytest.raises(TransportError) as caught:
        trio.run(fetch, tmp_path, reference(secure, "acme/os:1"))
    error = caught.value
    assert (error.reference, error.catalogue, error.retryable) == ("unauthorized", "AUTH", False)
    assert error.message == f"{secure.authority} wants credentials for {secure.authority}/acme/os:1"
    assert hint in error.hint
    assert "podman login --authfile" in error.hint
    assert "canary" not in str(error.to_json())


# --- bearer tokens: a token server of our own, believed by the real registry ---------------------------------------


@contextlib.contextmanager
def with_tokens(tmp_path, monkeypatch, demand: str):
    """A registry that demands tokens, and its token server."""
    authority = TokenServer(tmp_path, demand=demand)
    with authority.server as server:
        settings = authority.settings()
        storage = tmp_path / "registry"
        storage.mkdir()
        write_layout(tmp_path / "layout", "1", make_image())
        with running_registry(storage) as open_registry:
            open_registry.push(tmp_path / "layout", "acme/os:1")
        with running_registry(storage, token=settings) as registry:
            entry = {"Basic": pair(), "refresh": {"identitytoken": "canary-identity"}, "": {}}[
                demand.partition(" ")[0].partition("_")[0]
            ]
            auth = tmp_path / "auth.json"
            auth.write_text(json.dumps({"auths": {registry.authority: entry}}))
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
            yield registry, server


DEMANDS = pytest.mark.parametrize(
    "demand",
    ["", "Basic " + pair()["auth"], "refresh_token=canary-identity"],
    ids=["anonymous", "user", "identity-token"],
)


@DEMANDS
def test_bearer_tokens(tmp_path, monkeypatch, demand):
    with with_tokens(tmp_path, monkeypatch, demand) as (registry, server):
        image = trio.run(fetch, tmp_path, reference(registry, "acme/os:1"))
        assert read_layers(image) == [small_layer()]
    (asked,) = server.requests  # one token for everything
    scope = "scope=repository%3Aacme%2Fos%3Apull"
    if asked.method == "POST":
        fields = {*asked.body.decode().split("&")}
        assert {"grant_type=refresh_token", "service=registry", scope} <= fields
        assert asked.target == "/token"
    else:
        account = "account=reader&" if demand else ""
        assert asked.target == f"/token?{account}service=registry&{scope}"
    assert asked.header("user-agent") == f"bootc/{__version__}"
    statuses = [status for _, _, status in registry.requests("bootc/")]
    assert statuses == [401, 200, 200, 200]


@DEMANDS
def test_check_with_a_token_is_one_head_more(tmp_path, monkeypatch, demand):
    with with_tokens(tmp_path, monkeypatch, demand) as (registry, server):
        trio.run(resolve, tmp_path, reference(registry, "acme/os:1"))
    assert [(method, status) for method, _, status in registry.requests("bootc/")] == [
        ("HEAD", 401),
        ("HEAD", 200),
    ]
    assert len(server.requests) == 1


# --- mirrors ------------------------------------------------------------------------------------------------------


def registries(root: Path, text: str) -> None:
    path = root / "etc/containers/registries.conf.d/mirrors.conf"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_mirrors_in_order_and_the_logical_name_stays(plain, tmp_path):
    registries(
        tmp_path,
        f"""
[[registry]]
prefix = "registry.example/os"
location = "registry.example/os"
blocked = true
[[registry.mirror]]
location = "{plain.authority}/nothing/here"
[[registry.mirror]]
location = "{plain.authority}/acme/os"
""",
    )
    wanted = ImageReference.parse("docker://registry.example/os:1")
    image = trio.run(fetch, tmp_path, wanted)
    assert image.requested == wanted
    assert str(image.resolved) == f"docker://registry.example/os@{plain.ours.digest}"
    assert read_layers(image) == [small_layer()]
    assert trio.run(resolve, tmp_path, wanted) == plain.ours.digest


def test_all_endpoints_fail_and_all_are_named(plain, tmp_path):
    registries(
        tmp_path,
        f"""
[[registry]]
location = "{plain.authority}"
[[registry.mirror]]
location = "{plain.authority}/mirror"
""",
    )
    with pytest.raises(TransportError) as caught:
        trio.run(fetch, tmp_path, reference(plain, "acme/none:1"))
    assert caught.value.message == f"{plain.authority} does not have {plain.authority}/acme/none:1"
    (note,) = caught.value.__notes__
    assert note.startswith(f"mirror {plain.authority}/mirror/acme/none: ")


def test_attestations_and_zstd_twins(plain, tmp_path):
    ours = plain.ours
    better = make_image(labels={"org.opencontainers.image.version": "zstd"})
    attestation = make_image(architecture="unknown", os_name="unknown")
    index = make_index(
        attestation.descriptor(annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        ours.descriptor(),
        better.descriptor(annotations={"io.github.containers.compression.zstd": "true"}),
    )
    write_layout(tmp_path / "layout", "twins", ours, better, attestation, index=index)
    plain.push(tmp_path / "layout", "acme/os:twins")
    image = trio.run(fetch, tmp_path, reference(plain, "acme/os:twins"))
    assert image.config.version == "zstd"
