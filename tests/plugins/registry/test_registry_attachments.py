"""What is attached to an image: referrers by API and by fallback tag, cosign's tags, lookaside stores; bounds on all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import trio
from bootc_registry import registries_d
from bootc_registry.attachments import read_lookaside
from bootc_registry.fetch import fetch
from support.faulty_http import FaultyServer
from support.registry import make_image

from bootc_core import limits
from bootc_core.errors import ConfigError, ContentError, TransportError
from bootc_core.models.reference import ImageReference, RegistryName
from bootc_core.net.http import Pool
from bootc_core.oci.signatures import OPENPGP, parse_blob

OCI = "application/vnd.oci.image."
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY = b"{}"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def put(into, data):
    into[digest(data)] = data
    return {"digest": digest(data), "size": len(data)}


class Repository:
    """A registry with one repository, as it stands in dictionaries; ``referrers`` None: it keeps no such lists."""

    def __init__(self):
        self.image = make_image()
        self.blobs = dict(self.image.blobs)
        self.manifests = {"1": self.image.manifest, self.image.digest: self.image.manifest}
        self.referrers = None
        self.pages = {}
        self.asked = []
        self.status = {}

    def attach(self, payload, *, kind=BUNDLE, subject=None, media_type=None):
        """A manifest that refers to the image; its entry in a list."""
        about = subject or self.image.digest
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI + "manifest.v1+json",
                "artifactType": kind,
                "config": {
                    "mediaType": "application/vnd.oci.empty.v1+json",
                    **put(self.blobs, EMPTY),
                },
                "layers": [{"mediaType": media_type or kind, **put(self.blobs, payload)}],
                "subject": {
                    "mediaType": OCI + "manifest.v1+json",
                    "digest": about,
                    "size": len(self.image.manifest),
                },
            }
        ).encode()
        self.manifests[digest(manifest)] = manifest
        # as cosign's fallback index has it, which is not what the manifest says
        return {
            "mediaType": OCI + "manifest.v1+json",
            "digest": digest(manifest),
            "size": len(manifest),
            "artifactType": "application/vnd.oci.empty.v1+json",
        }

    def __call__(self, peer, asked):
        self.asked.append(asked.target)
        name = asked.target.removeprefix("/v2/acme/os/")
        if name in self.status:
            return peer.reply(self.status[name], b"{}")
        kind, _, rest = name.partition("/")
        if kind == "blobs" and rest in self.blobs:
            return peer.reply(200, self.blobs[rest])
        if kind == "manifests" and rest in self.manifests:
            data = self.manifests[rest]
            return peer.reply(200, data, content_type=json.loads(data)["mediaType"])
        if kind == "referrers" and self.referrers is not None:
            entries, more = self.pages.get(name, (self.referrers, None))
            headers = {"link": f'<{more}>; rel="next"'} if more else {}
            body = index(entries)
            return peer.reply(200, body, content_type=OCI + "index.v1+json", **headers)
        return peer.reply(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')


def index(entries):
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": entries}
    ).encode()


@pytest.fixture
def repository():
    return Repository()


def read(root, repository, kind, about=None):
    with FaultyServer(repository) as server:

        async def work():
            name = ImageReference.parse(f"{server.authority}/acme/os:1")
            image = await fetch(root, name)
            return await image.read_attachments(f"{kind}@{about}" if about else kind)

        return trio.run(work)


# --- referrers ------------------------------------------------------------------------------------


def test_referrers_by_api(tmp_path, repository):
    repository.referrers = [repository.attach(b"one"), repository.attach(b"two")]
    found = read(tmp_path, repository, "referrers")
    assert [(item.media_type, item.payload) for item in found] == [
        (BUNDLE, b"one"),
        (BUNDLE, b"two"),
    ]
    assert found[0].origin.endswith(repository.referrers[0]["digest"])


def test_referrers_by_fallback_tag(tmp_path, repository):
    entries = [repository.attach(b"one")]
    tag = repository.image.digest.replace(":", "-")
    repository.manifests[tag] = index(entries)
    assert [item.payload for item in read(tmp_path, repository, "referrers")] == [b"one"]


def test_pages_are_followed_within_the_repository(tmp_path, repository):
    first = f"referrers/{repository.image.digest}"
    repository.referrers = []
    one, two = repository.attach(b"one"), repository.attach(b"two")
    second = f"/v2/acme/os/{first}?page=2"
    repository.pages = {first: ([one], second), f"{first}?page=2": ([two], None)}
    assert [item.payload for item in read(tmp_path, repository, "referrers")] == [b"one", b"two"]
    repository.pages[first] = ([one], "https://elsewhere.example.org/v2/other/referrers/x")
    assert [item.payload for item in read(tmp_path, repository, "referrers")] == [b"one"]


def test_a_list_without_end_is_cut(tmp_path, repository):
    first = f"referrers/{repository.image.digest}"
    repository.referrers = []
    repository.pages = {first: ([], f"/v2/acme/os/{first}")}
    assert read(tmp_path, repository, "referrers") == ()
    assert sum("/referrers/" in target for target in repository.asked) == 8


def test_referrers_of_something_else_do_not_count(tmp_path, repository):
    gone = {"mediaType": OCI + "manifest.v1+json", "digest": "sha256:" + "1" * 64, "size": 5}
    repository.referrers = [
        repository.attach(b"other subject", subject="sha256:" + "0" * 64),
        repository.attach(b"sbom", kind="application/spdx+json"),
        {**repository.attach(b"x"), "mediaType": "application/vnd.example+json"},
        gone,
        repository.attach(b"good"),
    ]
    assert [item.payload for item in read(tmp_path, repository, "referrers")] == [b"good"]


def test_no_referrers_at_all(tmp_path, repository):
    assert read(tmp_path, repository, "referrers") == ()
    repository.referrers = []
    assert read(tmp_path, repository, "referrers") == ()
    tag = repository.image.digest.replace(":", "-")
    repository.referrers = None
    repository.manifests[tag] = repository.image.manifest  # an ordinary image under that tag
    assert read(tmp_path, repository, "referrers") == ()


def test_s06_bounds(tmp_path, repository):
    repository.referrers = [repository.attach(b"%d" % number) for number in range(129)]
    with pytest.raises(ContentError) as caught:
        read(tmp_path, repository, "referrers")
    assert caught.value.catalogue == "LIM"
    half = bytes(limits.SIGNATURE_BYTES // 2)
    repository.referrers = [repository.attach(half + b"1"), repository.attach(half + b"2")]
    with pytest.raises(ContentError) as caught:
        read(tmp_path, repository, "referrers")
    assert caught.value.catalogue == "LIM"
    claimed = repository.attach(b"x")
    repository.referrers = [{**claimed, "size": limits.SIGNATURE_BYTES + 1}]
    with pytest.raises(ContentError) as caught:
        read(tmp_path, repository, "referrers")
    assert caught.value.catalogue == "LIM"


def test_damaged_attachments_are_errors(tmp_path, repository):
    entry = repository.attach(b"one")
    repository.referrers = [entry]
    repository.blobs[digest(b"one")] = b"two"
    with pytest.raises(ContentError):
        read(tmp_path, repository, "referrers")
    repository.blobs[digest(b"one")] = b"one"
    repository.manifests[entry["digest"]] += b" "
    with pytest.raises(ContentError):
        read(tmp_path, repository, "referrers")


def test_s23_a_registry_that_fails_is_not_an_unsigned_image(tmp_path, repository):
    for kind, name in (("referrers", "referrers/"), ("cosign", "manifests/")):
        suffix = ".sig" if kind == "cosign" else ""
        about = (
            repository.image.digest.replace(":", "-") + ".sig"
            if suffix
            else repository.image.digest
        )
        repository.status = {f"{name}{about}": 403}
        with pytest.raises(TransportError):
            read(tmp_path, repository, kind)


# --- cosign's tags --------------------------------------------------------------------------------


def test_tags_of_index_and_image(tmp_path, repository):
    other = "sha256:" + "7" * 64
    for about, payload in ((repository.image.digest, b"image"), (other, b"index")):
        for suffix, kind in (
            (".sig", "application/vnd.dev.cosign.simplesigning.v1+json"),
            (".att", "application/vnd.dsse.envelope.v1+json"),
        ):
            text = payload + suffix.encode()
            manifest = {
                "schemaVersion": 2,
                "mediaType": OCI + "manifest.v1+json",
                "config": {"mediaType": OCI + "config.v1+json", **put(repository.blobs, EMPTY)},
                "layers": [
                    {"mediaType": kind, **put(repository.blobs, text), "annotations": {"a": "b"}},
                    {"mediaType": "text/plain", **put(repository.blobs, b"else")},
                ],
            }
            repository.manifests[about.replace(":", "-") + suffix] = json.dumps(manifest).encode()
    for kind, suffix in (("cosign", b".sig"), ("attestations", b".att")):
        for about, payload in (
            (None, b"image"),
            (repository.image.digest, b"image"),
            (other, b"index"),
        ):
            (found,) = read(tmp_path, repository, kind, about)
            assert found.payload == payload + suffix
            assert found.annotations == {"a": "b"}
    assert read(tmp_path, repository, "nothing") == ()
    assert read(tmp_path, repository, "cosign", "sha256:" + "8" * 64) == ()


# --- lookaside ------------------------------------------------------------------------------------


def configure(root, text, name="a.yaml"):
    path = root / "etc/containers/registries.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def test_lookaside_over_http_and_from_files(tmp_path, repository):
    message = b"\x90\x0drest"
    about = repository.image.digest.replace(":", "=")
    stored = {
        f"/store/acme/os@{about}/signature-1": message,
        f"/store/acme/os@{about}/signature-2": message,
    }

    def store(peer, asked):
        data = stored.get(asked.target)
        peer.reply(404 if data is None else 200, data or b"")

    with FaultyServer(store) as server:
        configure(tmp_path, f"default-docker:\n  lookaside: {server.url('/store')}\n")
        found = read(tmp_path, repository, "lookaside")
        assert [(item.media_type, item.payload) for item in found] == [(OPENPGP, message)] * 2
        assert len(server.requests) == 3
    place = tmp_path / "files" / f"acme/os@{about}"
    place.mkdir(parents=True)
    (place / "signature-1").write_bytes(message)
    configure(tmp_path, f"default-docker:\n  lookaside: file://{tmp_path}/files\n")
    assert len(read(tmp_path, repository, "lookaside")) == 1
    for number in range(2, 132):
        (place / f"signature-{number}").write_bytes(message)
    with pytest.raises(ContentError) as caught:
        read(tmp_path, repository, "lookaside")
    assert caught.value.catalogue == "LIM"


@pytest.mark.parametrize("status", [403, 500])
def test_s23_lookaside_that_fails(tmp_path, repository, status):
    def store(peer, asked):
        peer.reply(status)

    with FaultyServer(store) as server:
        found = registries_d.Section(server.url("/store"))
        name = RegistryName.parse("quay.io/acme/os:1")
        with Pool() as pool, pytest.raises(TransportError) as caught:
            read_lookaside(tmp_path, found, name, repository.image.digest, pool)
    assert caught.value.retryable is (status == 500)


# --- registries.d ---------------------------------------------------------------------------------


def section(root, reference="quay.io/acme/os:1"):
    return registries_d.load(root, ImageReference.parse(reference), {})


def test_every_key_is_looked_up_by_itself(tmp_path):
    configure(
        tmp_path,
        """
default-docker:
  lookaside: https://default.example.org
docker:
  quay.io:
    lookaside: https://host.example.org
    use-sigstore-attachments: true
  quay.io/acme:
    use-sigstore-attachments: false
  "*.example.com":
    sigstore: https://old.example.org
""",
    )
    assert section(tmp_path) == registries_d.Section("https://host.example.org", False)
    assert section(tmp_path, "quay.io/other/x") == registries_d.Section(
        "https://host.example.org", True
    )
    assert section(tmp_path, "a.example.com/x").lookaside == "https://old.example.org"
    assert section(tmp_path, "docker.io/x").lookaside == "https://default.example.org"


def test_the_store_of_this_host_is_not_that_of_another_root(tmp_path):
    assert section(tmp_path) == registries_d.Section(None, None)
    assert str(section(Path("/")).lookaside).startswith("file:///")


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "x: 1",
        "docker: 5",
        "docker:\n  5: {}",
        "docker:\n  a.org: 5",
        "docker:\n  a.org:\n    lookasid: https://x",
        "docker:\n  a.org:\n    lookaside: 5",
        "docker:\n  a.org:\n    lookaside: ftp://x",
        "docker:\n  a.org:\n    use-sigstore-attachments: 1",
        "a: &a [*a]",
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_invalid_files_block(tmp_path, text):
    configure(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        section(tmp_path)
    assert caught.value.reference == "bad-registries-d"
    assert "a.yaml" in caught.value.message


def test_a_scope_may_occur_once(tmp_path):
    configure(tmp_path, "default-docker: {}\n")
    configure(tmp_path, "default-docker: {}\n", "b.yaml")
    with pytest.raises(ConfigError, match="two files"):
        section(tmp_path)
    configure(tmp_path, "", "b.yaml")
    assert section(tmp_path).lookaside is None


# --- the file form --------------------------------------------------------------------------------


def test_signature_files():
    assert parse_blob(b"\x90abc", "x").media_type == OPENPGP
    assert parse_blob(b"\x00simple-signing\nabc", "x").payload == b"abc"
    text = b'\x00sigstore-json\n{"mimeType": "m", "payload": "YWJj", "annotations": {"k": "v"}}'
    found = parse_blob(text, "x")
    assert (found.media_type, found.payload, found.annotations) == ("m", b"abc", {"k": "v"})
    for data in (
        b"",
        b"{}",
        b"\x00",
        b"\x00other\n{}",
        b"\x00sigstore-json\n",
        b'\x00sigstore-json\n{"mimeType": "m", "payload": "!"}',
        b'\x00sigstore-json\n{"mimeType": "m", "payload": "", "more": 1}',
        b"-----BEGIN PGP MESSAGE-----",
    ):
        with pytest.raises(ContentError):
            parse_blob(data, "x")
