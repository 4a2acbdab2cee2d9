"""Registries that lie, by the ids of the catalogue of bad inputs: one clear error each, and nothing believed."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
from bootc_registry.client import RegistryClient
from bootc_registry.config import Endpoint
from bootc_registry.fetch import fetch, resolve
from support.faulty_http import Asked, FaultyServer, Peer, error_body
from support.registry import (
    ARCHITECTURE,
    OCI,
    Image,
    digest_of,
    make_image,
    make_index,
    small_layer,
)
from trio.testing import MockClock

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, TransportError
from bootc_core.models.reference import ImageReference, RegistryName
from bootc_core.net.http import Pool

OTHER = "arm64" if ARCHITECTURE != "arm64" else "amd64"
MANIFEST = OCI + "manifest.v1+json"
INDEX = OCI + "index.v1+json"
Reply = Callable[[Peer, Asked], None]


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("REGISTRY_AUTH_FILE", "CONTAINERS_REGISTRIES_CONF", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class Lies:
    """An honest registry for some images, with replies that can be replaced by path."""

    def __init__(self, *images: Image) -> None:
        self.replies: dict[str, Reply] = {}
        for image in images:
            self.document(image.digest, image.manifest, MANIFEST)
            for digest, blob in image.blobs.items():
                self.replies[f"/v2/acme/os/blobs/{digest}"] = body(blob)
        if images:
            self.document("1", images[0].manifest, MANIFEST)

    def document(self, target: str, data: bytes, content_type: str, **headers: str) -> None:
        self.replies[f"/v2/acme/os/manifests/{target}"] = body(
            data, content_type=content_type, **headers
        )

    def index(self, data: bytes, content_type: str = INDEX) -> None:
        self.document("1", data, content_type)

    def __call__(self, peer: Peer, asked: Asked) -> None:
        reply = self.replies.get(asked.path)
        if reply is None:
            peer.reply(404, error_body("MANIFEST_UNKNOWN", "manifest unknown"))
        else:
            reply(peer, asked)


def body(data: bytes, status: int = 200, /, **headers: str) -> Reply:
    def reply(peer: Peer, asked: Asked) -> None:
        if asked.method == "HEAD":
            peer.reply(status, content_length=str(len(data)), **headers)
        else:
            peer.reply(status, data, **headers)

    return reply


def raw(data: bytes) -> Reply:
    def reply(peer: Peer, asked: Asked) -> None:
        peer.send(data)
        peer.close()

    return reply


def run(handler: Reply, tmp_path, target: str = ":1", *, call=fetch, timeout_s: float = 5) -> Any:
    with FaultyServer(handler) as server:
        reference = ImageReference.parse(f"docker://{server.authority}/acme/os{target}")

        async def main() -> Any:
            return await call(tmp_path, reference, timeout_s=timeout_s)

        try:
            result = trio.run(main, clock=MockClock(autojump_threshold=0))
        except BootcError as error:
            error.server = server
            raise
    return result, server


def failure(handler: Reply, tmp_path, target: str = ":1", **options: Any) -> BootcError:
    with pytest.raises(BootcError) as caught:
        run(handler, tmp_path, target, **options)
    error = caught.value
    text = str(error.to_json())
    assert "canary" not in text
    assert "\x1b" not in text
    return error


def changed(image: Image, **fields: Any) -> bytes:
    """The image's manifest with other fields (None: left out)."""
    value = {**json.loads(image.manifest), **fields}
    return json.dumps({key: field for key, field in value.items() if field is not None}).encode()


def with_config(image: Image, **fields: Any) -> Image:
    config = json.dumps({**json.loads(image.config), **fields}).encode()
    described = {
        "mediaType": OCI + "config.v1+json",
        "digest": digest_of(config),
        "size": len(config),
    }
    return Image(
        changed(image, config=described),
        config,
        {**image.blobs, digest_of(config): config},
        image.platform,
    )


GOOD = make_image()
CONFIG = json.loads(GOOD.manifest)["config"]
LAYER = json.loads(GOOD.manifest)["layers"][0]


def manifest(data: bytes, content_type: str = MANIFEST) -> Reply:
    lies = Lies(GOOD)
    lies.document("1", data, content_type)
    return lies


def config_reply(reply: Reply) -> Reply:
    lies = Lies(GOOD)
    lies.replies[f"/v2/acme/os/blobs/{CONFIG['digest']}"] = reply
    return lies


def index(*entries: dict[str, Any], images: tuple[Image, ...] = (GOOD,)) -> Reply:
    lies = Lies(*images)
    lies.index(make_index(*entries))
    return lies


def nested(depth: int) -> Reply:
    lies = Lies(GOOD)
    entry = GOOD.descriptor()
    for _ in range(depth):
        data = make_index(entry)
        lies.document(digest_of(data), data, INDEX)
        entry = {
            "mediaType": INDEX,
            "digest": digest_of(data),
            "size": len(data),
            "platform": GOOD.platform,
        }
    lies.index(data)
    return lies


def sized(size: object) -> Reply:
    data = changed(GOOD, config={**CONFIG, "size": "@"}).replace(b'"@"', str(size).encode())
    return manifest(data)


def with_digest(digest: str) -> Reply:
    return manifest(changed(GOOD, layers=[{**LAYER, "digest": digest}]))


def of_image(image: Image) -> Reply:
    return Lies(image)


ENDLESS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 70
)

# id, handler, error class, reference, catalogue, text that message, expected and found must hold together
BAD = [
    (
        "M02-config",
        config_reply(body(GOOD.config[:-1] + b" ")),
        ContentError,
        "digest-mismatch",
        "INT",
        CONFIG["digest"],
    ),
    (
        "M03-short",
        config_reply(body(GOOD.config[:-1])),
        ContentError,
        "size-mismatch",
        "INT",
        f"{len(GOOD.config) - 1} bytes",
    ),
    (
        "M03-long",
        config_reply(body(GOOD.config + b" ")),
        ContentError,
        "size-mismatch",
        "INT",
        f"{len(GOOD.config) + 1} bytes",
    ),
    ("M03-endless", config_reply(raw(ENDLESS)), ContentError, "size-mismatch", "INT", "more"),
    ("M04-negative", sized(-1), ContentError, "bad-document", "INT", "config.size"),
    ("M04-float", sized(1.5), ContentError, "bad-document", "INT", "config.size"),
    ("M04-string", sized('"7"'), ContentError, "bad-document", "INT", "config.size"),
    ("M04-2**63", sized(2**63), ContentError, "bad-document", "INT", "config.size"),
    ("M04-999TB", sized(999 * 10**12), ContentError, "bad-document", "INT", "config.size"),
    (
        "M04-config",
        sized(limits.CONFIG_BYTES + 1),
        ContentError,
        "too-large",
        "LIM",
        "configuration",
    ),
    (
        "M05-length",
        manifest(b" " * (limits.MANIFEST_BYTES + 1)),
        ContentError,
        "too-large",
        "LIM",
        str(limits.MANIFEST_BYTES),
    ),
    (
        "M05-endless",
        lambda peer, asked: raw(ENDLESS)(peer, asked),
        ContentError,
        "too-large",
        "LIM",
        str(limits.MANIFEST_BYTES),
    ),
    (
        "M06",
        manifest(b'{"a":' + b"[" * 100_000),
        ContentError,
        "bad-json",
        "LIM",
        "nested deeper than 64 levels",
    ),
    (
        "M07",
        manifest(GOOD.manifest[:-1] + b', "layers": []}'),
        ContentError,
        "bad-json",
        "INT",
        "'layers' appears twice",
    ),
    (
        "M08-nan",
        manifest(GOOD.manifest[:-1] + b', "x": NaN}'),
        ContentError,
        "bad-json",
        "INT",
        "NaN is not JSON",
    ),
    (
        "M08-infinity",
        manifest(GOOD.manifest[:-1] + b', "x": -Infinity}'),
        ContentError,
        "bad-json",
        "INT",
        "-Infinity",
    ),
    (
        "M08-integer",
        manifest(GOOD.manifest[:-1] + b', "x": ' + b"9" * 1_000_000 + b"}"),
        ContentError,
        "bad-json",
        "INT",
        "64 bits",
    ),
    (
        "M08-surrogate",
        manifest(GOOD.manifest[:-1] + b', "x": "\\ud800"}'),
        ContentError,
        "bad-json",
        "INT",
        "surrogates",
    ),
    ("M08-bom", manifest(b"\xef\xbb\xbf" + GOOD.manifest), ContentError, "bad-json", "INT", "BOM"),
    (
        "M08-trailing",
        manifest(GOOD.manifest + b"{}"),
        ContentError,
        "bad-json",
        "INT",
        "Extra data",
    ),
    (
        "M08-utf16",
        manifest(GOOD.manifest.decode().encode("utf-16")),
        ContentError,
        "bad-json",
        "INT",
        "utf-8",
    ),
    (
        "M09",
        manifest(changed(GOOD, manifests=[])),
        ContentError,
        "ambiguous-document",
        "INT",
        "manifest and an index at once",
    ),
    (
        "M10-type",
        manifest(GOOD.manifest, INDEX),
        ContentError,
        "ambiguous-document",
        "INT",
        "Content-Type",
    ),
    (
        "M10-field",
        manifest(changed(GOOD, mediaType=INDEX)),
        ContentError,
        "not-an-image",
        "CON",
        INDEX,
    ),
    (
        "M10-descriptor",
        index(GOOD.descriptor(mediaType="application/vnd.docker.distribution.manifest.v2+json")),
        ContentError,
        "ambiguous-document",
        "INT",
        "another type than the index says",
    ),
    ("M12-depth", nested(3), ContentError, "index-depth", "LIM", "at most 2 levels"),
    (
        "M12-entries",
        index(*[GOOD.descriptor()] * 1001),
        ContentError,
        "bad-document",
        "LIM",
        "at most 1000 items",
    ),
    (
        "M13-none",
        index(
            make_image(architecture=OTHER).descriptor(),
            make_image(architecture="riscv64", os_name="linux").descriptor(),
        ),
        ContentError,
        "no-platform",
        "NOTFOUND",
        f"linux/{OTHER}, linux/riscv64",
    ),
    ("M13-empty", index(), ContentError, "no-platform", "NOTFOUND", "no images at all"),
    (
        "M13-two",
        index(GOOD.descriptor(), make_image(labels={"a": "b"}).descriptor()),
        ContentError,
        "ambiguous-platform",
        "NOTFOUND",
        "2 images that fit this machine equally well",
    ),
    (
        "M14-index",
        index(
            {**make_image(architecture=OTHER).descriptor(), "platform": GOOD.platform},
            images=(make_image(architecture=OTHER),),
        ),
        ContentError,
        "wrong-platform",
        "CON",
        f"linux/{OTHER}",
    ),
    (
        "M14-os",
        of_image(make_image(os_name="windows")),
        ContentError,
        "wrong-platform",
        "CON",
        "windows/",
    ),
    (
        "M15",
        of_image(with_config(GOOD, rootfs={"type": "layers", "diff_ids": []})),
        ContentError,
        "layer-count",
        "INT",
        "1 diffIDs",
    ),
    (
        "M18",
        of_image(make_image(layers=(small_layer(),) * 501)),
        ContentError,
        "bad-document",
        "LIM",
        "at most 500 items",
    ),
    (
        "M19-md5",
        with_digest("md5:" + "0" * 32),
        ContentError,
        "bad-document",
        "INT",
        "not a digest",
    ),
    (
        "M19-upper",
        with_digest("sha256:" + "A" * 64),
        ContentError,
        "bad-document",
        "INT",
        "not a digest",
    ),
    (
        "M19-short",
        with_digest("sha256:" + "0" * 63),
        ContentError,
        "bad-document",
        "INT",
        "not a digest",
    ),
    (
        "M19-path",
        with_digest("sha256:../../etc/passwd"),
        ContentError,
        "bad-document",
        "INT",
        "not a digest",
    ),
    (
        "M19-newline",
        with_digest("sha256:" + "0" * 64 + "\n"),
        ContentError,
        "bad-document",
        "INT",
        "not a digest",
    ),
    (
        "M20-missing",
        manifest(changed(GOOD, config=None)),
        ContentError,
        "bad-document",
        "INT",
        "config",
    ),
    (
        "M20-array",
        of_image(with_config(GOOD, config=[])),
        ContentError,
        "bad-document",
        "INT",
        "config",
    ),
    (
        "M20-labels",
        of_image(with_config(GOOD, config={"Labels": {"a": 1}})),
        ContentError,
        "bad-document",
        "INT",
        "config.Labels.a",
    ),
    (
        "M21-size",
        of_image(make_image(labels={"a": "b" * 300_000})),
        ContentError,
        "too-large",
        "LIM",
        "annotations or labels",
    ),
    (
        "M21-control",
        manifest(changed(GOOD, mediaType="\x1b[31mred")),
        ContentError,
        "not-an-image",
        "CON",
        "\\x1b[31mred",
    ),
    (
        "M24-schema-1",
        manifest(
            b'{"schemaVersion": 1, "fsLayers": [], "signatures": []}',
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
        ContentError,
        "schema-1",
        "CON",
        "Docker schema 1 manifest",
    ),
    (
        "M24-helm",
        manifest(
            changed(
                GOOD, config={**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}
            )
        ),
        ContentError,
        "not-an-image",
        "CON",
        "application/vnd.cncf.helm.config.v1+json",
    ),
    (
        "M24-artifact",
        manifest(
            changed(
                GOOD,
                artifactType="application/example",
                subject=GOOD.descriptor(),
                config={**CONFIG, "mediaType": "application/vnd.oci.empty.v1+json"},
            )
        ),
        ContentError,
        "not-an-image",
        "CON",
        "application/example",
    ),
    (
        "M24-foreign-layer",
        manifest(
            changed(GOOD, layers=[{**LAYER, "mediaType": OCI + "layer.nondistributable.v1.tar"}])
        ),
        ContentError,
        "unsupported-layer",
        "CON",
        "nondistributable",
    ),
    (
        "M24-other",
        manifest(b"{}", "application/json"),
        ContentError,
        "not-an-image",
        "CON",
        "application/json",
    ),
    (
        "N01-html",
        manifest(b"<!DOCTYPE html><title>Log in", "text/html"),
        ContentError,
        "not-a-registry",
        "INT",
        "web page",
    ),
    (
        "N08",
        lambda peer, asked: peer.reply(200, b"x", content_encoding="gzip"),
        ContentError,
        "content-encoding",
        "INT",
        "gzip",
    ),
    (
        "N14",
        lambda peer, asked: peer.reply(307, location="/again"),
        TransportError,
        "redirect-loop",
        "NET",
        "5 times",
    ),
    (
        "not-http",
        lambda peer, asked: raw(b"220 mail.example ESMTP\r\n")(peer, asked),
        TransportError,
        "bad-http",
        "NET",
        "220 mail.example",
    ),
    (
        "N22-404",
        Lies(),
        TransportError,
        "not-found",
        "NOTFOUND",
        "MANIFEST_UNKNOWN: manifest unknown",
    ),
    (
        "hub-style",
        lambda peer, asked: peer.reply(403, error_body("DENIED", "\x1b[2Jno")),
        TransportError,
        "denied",
        "AUTH",
        "DENIED: \\x1b[2Jno",
    ),
    (
        "name-invalid",
        lambda peer, asked: peer.reply(
            400, error_body("NAME_INVALID", "bad"), content_type="application/json"
        ),
        TransportError,
        "unexpected-status",
        "NET",
        "NAME_INVALID",
    ),
    (
        "config-404",
        config_reply(body(b"", 404)),
        TransportError,
        "not-found",
        "NOTFOUND",
        "the configuration of",
    ),
]


@pytest.mark.parametrize(
    ("handler", "kind", "reference", "catalogue", "text"),
    [case[1:] for case in BAD],
    ids=[case[0] for case in BAD],
)
def test_bad_documents(tmp_path, handler, kind, reference, catalogue, text):
    error = failure(handler, tmp_path)
    assert type(error) is kind
    assert (error.reference, error.catalogue) == (reference, catalogue)
    told = " ".join(filter(None, (error.message, error.expected, error.found)))
    assert text in told
    assert error.server.authority in error.message
    if kind is TransportError:
        assert not error.retryable
    assert not any(asked.path.endswith(LAYER["digest"]) for asked in error.server.requests)


def endless(status: str) -> Reply:
    def reply(peer: Peer, asked: Asked) -> None:
        peer.send(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(4000):
            peer.send(b"10000\r\n" + b" " * 65536 + b"\r\n")

    return reply


@pytest.mark.parametrize(
    ("status", "reference"),
    [("200 OK", "too-large"), ("403 Forbidden", "denied"), ("404 Not Found", "not-found")],
)
def test_n09_endless_documents_and_error_pages(tmp_path, status, reference):
    """250 MiB are on offer; no more is read than a document or the front of an error page may have."""
    lies = Lies(GOOD)
    lies.replies["/v2/acme/os/manifests/1"] = endless(status)
    assert failure(lies, tmp_path).reference == reference


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_m01_wrong_bytes_for_a_digest_are_not_even_read(tmp_path, algorithm):
    digest = f"{algorithm}:" + "0" * (64 if algorithm == "sha256" else 128)
    lies = Lies()
    lies.document(digest, b"{ not JSON", MANIFEST, docker_content_digest=digest)
    error = failure(lies, tmp_path, f"@{digest}")
    assert (error.reference, error.catalogue) == ("digest-mismatch", "INT")
    assert error.expected == digest
    assert error.found.startswith(algorithm + ":")


def test_m01_instance_of_an_index(tmp_path):
    lies = Lies(GOOD)
    lies.index(make_index(GOOD.descriptor()))
    lies.document(GOOD.digest, GOOD.manifest + b"\n", MANIFEST)
    error = failure(lies, tmp_path)
    assert (error.reference, error.expected) == ("digest-mismatch", GOOD.digest)


# --- what looks odd and is fine -------------------------------------------------------------------------------------


def image_from(handler: Reply, tmp_path, target: str = ":1"):
    return run(handler, tmp_path, target)[0]


def test_m17_the_same_layer_twice(tmp_path):
    image = image_from(of_image(make_image(layers=(small_layer(), small_layer()))), tmp_path)
    assert len(image.manifest.layers) == 2


def test_m25_a_tag_that_moves(tmp_path):
    lies = Lies(GOOD)
    data = make_index(GOOD.descriptor())

    def once(peer: Peer, asked: Asked) -> None:
        lies.document("1", b"moved", "text/plain")
        body(data, content_type=INDEX)(peer, asked)

    lies.replies["/v2/acme/os/manifests/1"] = once
    image, server = run(lies, tmp_path)
    assert image.tag_digest == digest_of(data)
    assert [asked.path.rpartition("/")[2] for asked in server.requests] == [
        "1",
        GOOD.digest,
        CONFIG["digest"],
    ]


def test_m26_inline_data_is_not_looked_at(tmp_path):
    data = changed(GOOD, config={**CONFIG, "data": "bGllcw=="})
    assert image_from(manifest(data), tmp_path).config_document.raw == GOOD.config


def test_m27_history_is_for_display(tmp_path):
    odd = with_config(GOOD, history=[{"created_by": "\x1b[2J"}] * 5)
    assert image_from(of_image(odd), tmp_path).digest == odd.digest


def test_docker_content_digest_is_not_believed(tmp_path, caplog):
    lies = Lies(GOOD)
    lies.document("1", GOOD.manifest, MANIFEST, docker_content_digest="sha256:" + "0" * 64)
    assert image_from(lies, tmp_path).digest == GOOD.digest
    assert "the registry says sha256:000" in caplog.text


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/json", MANIFEST + "; charset=utf-8", MANIFEST.upper()],
)
@pytest.mark.parametrize("docker", [False, True])
def test_generic_content_types_are_sniffed(tmp_path, content_type, docker):
    image = make_image(docker=docker)
    if docker and content_type.lower().startswith("application/vnd"):
        content_type = "application/vnd.docker.distribution.manifest.v2+json"
    lies = Lies(image)
    lies.document("1", image.manifest, content_type)
    fetched = image_from(lies, tmp_path)
    assert fetched.manifest_document.media_type == json.loads(image.manifest)["mediaType"]


@pytest.mark.parametrize("digest", ["", "rubbish", "md5:" + "0" * 32, "sha512:" + "0" * 128])
def test_head_without_a_usable_digest_becomes_a_get(tmp_path, digest):
    lies = Lies(GOOD)
    lies.document(
        "1", GOOD.manifest, MANIFEST, **({"docker_content_digest": digest} if digest else {})
    )
    found, server = run(lies, tmp_path, call=resolve)
    assert found == GOOD.digest
    assert [asked.method for asked in server.requests] == ["HEAD", "GET"]


def test_head_that_is_not_supported_becomes_a_get(tmp_path):
    lies = Lies(GOOD)

    def handler(peer: Peer, asked: Asked) -> None:
        if asked.method == "HEAD":
            peer.reply(405)
        else:
            lies(peer, asked)

    assert run(handler, tmp_path, call=resolve)[0] == GOOD.digest


# --- the network: what is tried again, and what is not ---------------------------------------------------------------


def flaky(times: int, fault: Reply) -> Reply:
    lies = Lies(GOOD)
    left = [times]

    def handler(peer: Peer, asked: Asked) -> None:
        if left[0] and asked.path.endswith("/manifests/1"):
            left[0] -= 1
            fault(peer, asked)
        else:
            lies(peer, asked)

    return handler


TRUNCATED = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + GOOD.manifest[:100])


@pytest.mark.parametrize(
    ("fault", "reference"),
    [
        (body(b"", 500), "server-error"),
        (body(b"<html>", 502), "server-error"),
        (body(b"", 503, retry_after="3"), "server-error"),
        (body(b"", 504), "server-error"),
        (body(b"", 429, retry_after="1"), "rate-limited"),
        (TRUNCATED, "connection-reset"),
    ],
    ids=["500", "502", "503", "504", "429", "truncated"],
)
def test_n22_transient_failures(tmp_path, fault, reference):
    image, _ = run(flaky(limits.RETRIES - 1, fault), tmp_path)
    assert image.digest == GOOD.digest
    error = failure(flaky(limits.RETRIES, fault), tmp_path)
    assert (error.reference, error.retryable) == (reference, True)
    assert len(error.server.requests) == limits.RETRIES


def test_n21_retry_after_is_waited_for(tmp_path):
    lies = flaky(2, body(b"", 429, retry_after="40"))
    with FaultyServer(lies) as server:
        reference = ImageReference.parse(f"docker://{server.authority}/acme/os:1")

        async def main() -> float:
            started = trio.current_time()
            await fetch(tmp_path, reference)
            return trio.current_time() - started

        assert 80 <= trio.run(main, clock=MockClock(autojump_threshold=0)) < 90


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
def test_n22_refusals_are_not_tried_again(tmp_path, status):
    error = failure(body(b"{}", status, content_type="application/json"), tmp_path)
    assert len(error.server.requests) == 1
    assert not error.retryable


def test_n10_slow_drip(tmp_path):
    def drip(peer: Peer, asked: Asked) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n")
        peer.drip(b" " * 3000, 0.05)

    with FaultyServer(drip) as server, Pool() as pool:
        name = RegistryName.parse(f"{server.authority}/acme/os:1")
        client = RegistryClient(tmp_path, Endpoint(name), pool, timeout_s=1)
        with pytest.raises(TransportError) as caught:
            client.get_manifest("1", "acme/os:1")
    error = caught.value
    assert (error.reference, error.catalogue, error.retryable) == ("too-slow", "NET", True)
    assert error.message == f"{server.authority} delivers too slowly"


def test_n01_nobody_there(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reference = ImageReference.parse(f"docker://127.0.0.1:{port}/acme/os:1")
    for call in (fetch, resolve):
        with pytest.raises(TransportError) as caught:
            trio.run(call, tmp_path, reference, clock=MockClock(autojump_threshold=0))
        assert caught.value.reference == "connection-refused"
        assert caught.value.message == f"127.0.0.1:{port} refuses the connection"


def test_cancellation_does_not_wait_for_the_network(tmp_path):
    def stall(peer: Peer, asked: Asked) -> None:
        peer.stall()

    with FaultyServer(stall) as server:
        reference = ImageReference.parse(f"docker://{server.authority}/acme/os:1")

        async def main() -> bool:
            with trio.move_on_after(0.2) as scope:
                await fetch(tmp_path, reference)
            return scope.cancelled_caught

        assert trio.run(main)


def test_n12_redirected_documents_without_credentials(tmp_path):
    store = Lies(GOOD)
    with FaultyServer(store) as other:

        def handler(peer: Peer, asked: Asked) -> None:
            peer.reply(307, location=other.url(asked.target))

        image, _ = run(handler, tmp_path)
    assert image.digest == GOOD.digest


def test_a_foreign_hosts_challenge_is_not_answered(tmp_path):
    challenge = 'Bearer realm="http://127.0.0.1:1/token",service="x"'
    with FaultyServer(lambda peer, asked: peer.reply(401, www_authenticate=challenge)) as other:

        def handler(peer: Peer, asked: Asked) -> None:
            peer.reply(307, location=other.url("/blob"))

        error = failure(handler, tmp_path)
    assert error.reference == "unauthorized"
    assert len(other.requests) == 1


# --- N24, N25: mirrors that lie -------------------------------------------------------------------------------------


def behind_mirrors(tmp_path, *mirrors: Reply) -> tuple[Any, list[FaultyServer]]:
    """The image by digest from registry.example, whose primary is the last of ``mirrors``."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(FaultyServer(handler)) for handler in mirrors]
        return of_mirrors(tmp_path, servers), servers


def of_mirrors(tmp_path, servers: list[FaultyServer]) -> Any:
    *others, primary = (server.authority for server in servers)
    lines = ["[[registry]]", 'prefix = "registry.example"', f'location = "{primary}"']
    for authority in others:
        lines += ["[[registry.mirror]]", f'location = "{authority}"']
    path = tmp_path / "etc/containers/registries.conf"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))
    reference = ImageReference.parse(f"docker://registry.example/acme/os@{GOOD.digest}")

    async def main() -> Any:
        return await fetch(tmp_path, reference, timeout_s=5)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def liar() -> Lies:
    lies = Lies(GOOD)
    lies.document(GOOD.digest, GOOD.manifest + b" ", MANIFEST)
    return lies


def test_n24_the_next_mirror_is_asked_and_the_liar_named(tmp_path, caplog):
    image, (first, second, primary) = behind_mirrors(tmp_path, liar(), Lies(GOOD), Lies(GOOD))
    assert image.digest == GOOD.digest
    assert len(first.requests) == 1
    assert len(second.requests) == 2
    assert primary.requests == []
    assert f"mirror {first.authority}/acme/os: " in caplog.text


def test_n25_all_lie_and_all_are_listed(tmp_path):
    with pytest.raises(ContentError) as caught:
        behind_mirrors(tmp_path, liar(), liar(), liar())
    assert (caught.value.reference, caught.value.catalogue) == ("digest-mismatch", "INT")
    assert len(caught.value.__notes__) == 2
    assert all(note.startswith("mirror 127.0.0.1:") for note in caught.value.__notes__)


async def _ask(image: Any, times: int) -> list[Any]:
    return [await image.blob_source(image.manifest.layers[0]) for _ in range(times)]


def test_n24_a_blob_that_one_mirror_does_not_deliver_is_at_the_next(tmp_path):
    """Asked again, another place is given, until there is none: the primary is tried as long as the importer likes."""
    lacking = Lies(GOOD)
    del lacking.replies[f"/v2/acme/os/blobs/{LAYER['digest']}"]
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(FaultyServer(handler))
            for handler in (Lies(GOOD), lacking, Lies(GOOD))
        ]
        image = of_mirrors(tmp_path, servers)
        found = trio.run(_ask, image, 3, clock=MockClock(autojump_threshold=0))
    first, _, primary = (server.authority for server in servers)
    assert [source.url.split("/")[2] for source in found] == [first, primary, primary]
    assert [source.elsewhere for source in found] == [f"{first}/acme/os", "", ""]
    assert [asked.method for asked in servers[1].requests] == ["HEAD"]
