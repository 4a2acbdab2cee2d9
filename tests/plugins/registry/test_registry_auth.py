"""Challenges, tokens and where they may come from; the auth files."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import pytest
from bootc_registry import auth as module
from bootc_registry.auth import Authenticator, parse_challenges
from bootc_registry.client import RegistryClient
from bootc_registry.config import Endpoint
from bootc_registry.credentials import Credentials, find_credentials, parse_auth
from support.faulty_http import Asked, FaultyServer, Peer, error_body
from support.registry import make_image

from bootc_core.errors import BootcError, ConfigError, TransportError
from bootc_core.models.oci import Descriptor
from bootc_core.models.reference import RegistryName
from bootc_core.net.dial import TlsOptions
from bootc_core.net.http import Headers, Pool
from bootc_core.net.url import parse_url

CANARY = Credentials("reader", "canary-password")
GOOD = make_image()


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in (
        "REGISTRY_AUTH_FILE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["Basic realm=x"], [("basic", {"realm": "x"})]),
        (["BASIC"], [("basic", {})]),
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"'],
            [
                (
                    "bearer",
                    {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"},
                )
            ],
        ),
        (['Bearer  Realm = "a" , SERVICE=b'], [("bearer", {"realm": "a", "service": "b"})]),
        (['Bearer realm="a\\"b"'], [("bearer", {"realm": 'a"b'})]),
        (['Bearer realm="a",realm="b"'], [("bearer", {"realm": "a"})]),
        (
            ['Basic realm="x", Bearer realm="y"'],
            [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})],
        ),
        (["Negotiate", 'Basic realm="x"'], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (['Bearer realm="unfinished'], [("bearer", {})]),
        (["=,=,="], []),
    ],
)
def test_challenges(values, expected):
    headers = Headers([("WWW-Authenticate", value) for value in values])
    assert [(item.scheme, item.parameters) for item in parse_challenges(headers)] == expected


def refused(*challenges: str) -> SimpleNamespace:
    return SimpleNamespace(headers=Headers([("WWW-Authenticate", text) for text in challenges]))


def authenticator(base: str, credentials: Credentials | None = CANARY) -> Authenticator:
    return Authenticator(parse_url(base), "acme/os", credentials, lambda _: TlsOptions(), 2)


@pytest.mark.parametrize(
    ("base", "realm", "reason"),
    [
        ("https://registry.example/", "http://auth.example/token", "without TLS"),
        ("https://registry.example/", "http://registry.example/token", "without TLS"),
        ("https://registry.example/", "https://127.0.0.1/token", "a loopback address"),
        ("https://registry.example/", "https://localhost/token", "a loopback address"),
        ("http://10.0.0.1/", "http://127.0.0.1/token", "a loopback address"),
        ("https://registry.example/", "https://169.254.169.254/latest", "a link-local address"),
        ("http://127.0.0.1:1/", "http://169.254.169.254/latest", "a link-local address"),
        ("https://registry.example/", "https://[fd00:ec2::254]/", "a metadata service"),
        ("https://registry.example/", "https://100.100.100.200/", "a metadata service"),
        ("https://registry.example/", "https://0.0.0.0/", "an unspecified address"),
        ("https://registry.example/", "https://[::]/", "an unspecified address"),
        ("https://registry.example/", "https://user:pw@auth.example/", "a user name in the URL"),
        ("https://registry.example/", "file:///etc/passwd", "not http or https"),
        ("https://registry.example/", "/token", "not http or https"),
        ("https://registry.example/", "", "characters that do not belong"),
        ("https://registry.example/", "https://auth.example/ x", "characters that do not belong"),
    ],
)
def test_n15_realms_that_are_not_asked(base, realm, reason):
    auth = authenticator(base)
    with pytest.raises(TransportError) as caught:
        auth.answer(refused(f'Bearer realm="{realm}",service="x"'), [])
    error = caught.value
    assert (error.reference, error.catalogue, error.retryable) == ("bad-realm", "AUTH", False)
    assert reason in error.found
    assert "canary" not in str(error.to_json())
    assert auth.headers() == []


def token(peer: Peer, asked: Asked) -> None:
    peer.reply(200, b'{"token": "t1"}')


def test_basic_is_sent_only_with_credentials_and_only_once():
    auth = authenticator("https://registry.example/")
    assert auth.headers() == []
    assert auth.answer(refused('Basic realm="x"'), [])
    (header,) = auth.headers()
    assert header == (
        "Authorization",
        "Basic " + base64.b64encode(b"reader:canary-password").decode(),
    )
    assert not auth.answer(refused('Basic realm="x"'), [header])
    anonymous = authenticator("https://registry.example/", None)
    assert not anonymous.answer(refused('Basic realm="x"'), [])
    assert not anonymous.answer(refused("Negotiate"), [])
    assert not anonymous.answer(refused(), [])
    assert anonymous.headers() == []


def test_token_request_is_not_redirected():
    with FaultyServer(lambda peer, asked: peer.reply(307, location="/elsewhere")) as server:
        with pytest.raises(TransportError) as caught:
            authenticator(server.url()).answer(refused(f'Bearer realm="{server.url("/t")}"'), [])
        assert caught.value.reference == "redirect-refused"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "reference", "catalogue"),
    [
        (200, b"{}", "bad-token", "AUTH"),
        (200, b"[]", "bad-token", "AUTH"),
        (200, b'{"token": 7}', "bad-token", "AUTH"),
        (200, b'{"token": "a b"}', "bad-token", "AUTH"),
        (200, b'{"token": "a\\r\\nX: y"}', "bad-token", "AUTH"),
        (200, b'{"token": ""}', "bad-token", "AUTH"),
        (200, b'{"token": "a", "token": "b"}', "bad-json", "AUTH"),
        (200, b"<html>", "bad-json", "AUTH"),
        (200, b" " * (1 << 20) + b"{}", "too-large", "LIM"),
        (401, error_body("UNAUTHORIZED", "no"), "unauthorized", "AUTH"),
        (403, b"", "unauthorized", "AUTH"),
        (404, b"", "unauthorized", "AUTH"),
        (503, b"", "server-error", "NET"),
        (429, b"", "rate-limited", "NET"),
    ],
)
def test_n16_bad_answers_of_the_token_server(status, body, reference, catalogue):
    with FaultyServer(lambda peer, asked: peer.reply(status, body)) as server:
        auth = authenticator(server.url())
        with pytest.raises(BootcError) as caught:
            auth.answer(refused(f'Bearer realm="{server.url("/t")}"'), [])
        error = caught.value
        assert (error.reference, error.catalogue) == (reference, catalogue)
        assert server.authority in error.message
        assert "canary" not in str(error.to_json())


def test_n09_an_endless_token():
    def endless(peer, asked):
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            peer.send(b"10000\r\n" + b" " * 65536 + b"\r\n")

    with FaultyServer(endless) as server, pytest.raises(BootcError) as caught:
        authenticator(server.url()).answer(refused(f'Bearer realm="{server.url("/t")}"'), [])
    assert (caught.value.reference, caught.value.catalogue) == ("too-large", "LIM")


def test_n27_a_realm_whose_name_stands_for_this_machine(monkeypatch):
    """The name was fine when it was checked; its address is not."""
    with FaultyServer(token) as server:
        answers = {"auth.example": "127.0.0.1", "registry.example": "192.0.2.1"}

        def look_up(host, port, **_):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[host], port))]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        realm = f"http://auth.example:{server.port}/token"
        auth = authenticator("http://registry.example/")
        with pytest.raises(TransportError) as caught:
            auth.answer(refused(f'Bearer realm="{realm}"'), [])
    assert caught.value.reference == "unsafe-address"
    assert server.requests == []
    assert "canary" not in str(caught.value.to_json())


def test_query_of_the_token_request():
    with FaultyServer(token) as server:
        auth = authenticator(server.url())
        realm = server.url("/t?x=1")
        assert auth.answer(refused(f'Bearer realm="{realm}",service="a b&c"'), [])
        assert auth.headers() == [("Authorization", "Bearer t1")]
        (asked,) = server.requests
        assert parse_qsl(asked.target.partition("?")[2]) == [
            ("x", "1"),
            ("account", "reader"),
            ("service", "a b&c"),
            ("scope", "repository:acme/os:pull"),
        ]


@pytest.mark.parametrize(
    ("scope", "taken"),
    [
        ("repository:acme/base:pull", True),
        ("repository(plugin):acme/base:pull", True),
        ("repository:acme/base:pull,push", False),
        ("registry:catalog:*", False),
        ("repository:acme/base:pull repository:x:push", False),
    ],
)
def test_a_wider_scope_is_asked_for_only_to_pull(scope, taken):
    with FaultyServer(token) as server:
        auth = authenticator(server.url(), None)
        challenge = f'Bearer realm="{server.url("/t")}",error="insufficient_scope",scope="{scope}"'
        assert auth.answer(refused(challenge), [])
        scopes = [
            value
            for name, value in parse_qsl(server.requests[0].target.partition("?")[2])
            if name == "scope"
        ]
        assert scopes == ["repository:acme/os:pull"] + [scope] * taken


def test_a_token_is_renewed_before_its_end(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    count = [0]

    def numbered(peer: Peer, asked: Asked) -> None:
        count[0] += 1
        peer.reply(200, json.dumps({"access_token": f"t{count[0]}", "expires_in": 300}).encode())

    with FaultyServer(numbered) as server:
        auth = authenticator(server.url(), None)
        auth.answer(refused(f'Bearer realm="{server.url("/t")}"'), [])
        clock[0] += 280
        assert auth.headers() == [("Authorization", "Bearer t1")]
        clock[0] += 15
        assert auth.headers() == [("Authorization", "Bearer t2")]
        assert count == [2]


@pytest.mark.parametrize("lifetime", [1, 0, -5, "x", None, True])
def test_n16_a_lifetime_that_cannot_be_is_a_minute(monkeypatch, lifetime):
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    answer = json.dumps({"token": "t", "expires_in": lifetime}).encode()
    with FaultyServer(lambda peer, asked: peer.reply(200, answer)) as server:
        auth = authenticator(server.url(), None)
        auth.answer(refused(f'Bearer realm="{server.url("/t")}"'), [])
        clock[0] = 49
        auth.headers()
        assert len(server.requests) == 1


# --- a registry whose tokens end ------------------------------------------------------------------------------------


class Expiring:
    """Demands a token; each of them is good until ``expire`` is called."""

    def __init__(self) -> None:
        self.issued = 0
        self.valid = ""
        self.denied: set[str] = set()
        self.never = False

    def expire(self) -> None:
        self.valid = ""

    def __call__(self, peer: Peer, asked: Asked) -> None:
        if asked.path == "/token":
            self.issued += 1
            self.valid = f"Bearer token-{self.issued}"
            return peer.reply(200, json.dumps({"token": self.valid[7:]}).encode())
        if self.never or asked.header("authorization") != self.valid:
            realm = f"http://{asked.header('host')}/token"
            return peer.reply(401, www_authenticate=f'Bearer realm="{realm}",service="s"')
        if asked.path.rpartition("/")[2] in self.denied:
            return peer.reply(403, error_body("DENIED", "not yours"))
        if "/manifests/" in asked.path:
            return peer.reply(
                200, GOOD.manifest, content_type="application/vnd.oci.image.manifest.v1+json"
            )
        blob = GOOD.blobs[asked.path.rpartition("/")[2]]
        if asked.method == "HEAD":
            return peer.reply(200, content_length=str(len(blob)))
        peer.reply(200, blob)


@pytest.fixture
def expiring(tmp_path):
    handler = Expiring()
    with FaultyServer(handler) as server, Pool() as pool:
        name = RegistryName.parse(f"{server.authority}/acme/os:1")
        client = RegistryClient(tmp_path, Endpoint(name), pool, timeout_s=5)
        yield handler, client, server


def descriptor() -> Descriptor:
    layer = json.loads(GOOD.manifest)["layers"][0]
    return Descriptor.model_validate(layer)


def test_blob_source_is_renewed_when_asked_again(expiring):
    handler, client, _ = expiring
    client.get_manifest("1", "x")
    first = client.blob_source(descriptor())
    assert first.headers == (("Authorization", "Bearer token-1"),)
    again = client.blob_source(descriptor())
    assert again == first  # a broken connection: the token is still good
    handler.expire()
    renewed = client.blob_source(descriptor())
    assert renewed.headers == (("Authorization", "Bearer token-2"),)
    assert "token" not in renewed.url


def test_n23_one_layer_is_denied(expiring):
    handler, client, server = expiring
    client.get_manifest("1", "x")
    layer = descriptor()
    handler.denied.add(layer.digest)
    client.blob_source(layer)
    with pytest.raises(TransportError) as caught:
        client.blob_source(layer)
    error = caught.value
    assert (error.reference, error.catalogue) == ("denied", "AUTH")
    assert error.message == f"{server.authority} denies access to layer {layer.digest}"


def test_n16_refusals_without_end(expiring):
    handler, client, server = expiring
    handler.never = True
    with pytest.raises(TransportError) as caught:
        client.get_manifest("1", "acme/os:1")
    assert (caught.value.reference, caught.value.catalogue) == ("unauthorized", "AUTH")
    assert handler.issued == 2
    assert len(server.requests) == 5


def test_parallel_blobs_share_a_token(expiring):
    handler, client, _ = expiring
    client.get_manifest("1", "x")
    handler.expire()
    config = Descriptor.model_validate(json.loads(GOOD.manifest)["config"])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            assert client.get_blob(config, 1 << 20, "config") == GOOD.config
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert handler.issued == 2


# --- auth files -------------------------------------------------------------------------------------------------------


def pair(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


NAME = RegistryName.parse("registry.example:5000/acme/web/app:1")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["registry.example:5000/acme/web/app", "registry.example:5000"], 0),
        (["registry.example:5000", "registry.example:5000/acme"], 1),
        (["registry.example:5000/acme/we"], None),
        (["registry.example"], None),
        (["https://registry.example:5000/v2/"], 0),
        (["registry.example:5000", "https://registry.example:5000"], 0),
        ([], None),
    ],
)
def test_the_most_specific_key_counts(keys, expected):
    auths = {key: pair(f"user{number}:pw") for number, key in enumerate(keys)}
    found = parse_auth(json.dumps({"auths": auths}).encode(), NAME, "auth.json")
    assert (found.username if found else None) == (None if expected is None else f"user{expected}")


@pytest.mark.parametrize(
    "key", ["docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"]
)
def test_names_of_docker_hub(key):
    data = json.dumps({"auths": {key: pair("hub:pw")}}).encode()
    assert parse_auth(data, RegistryName.parse("debian"), "auth.json").username == "hub"


def test_forms_of_an_entry():
    def parse(entry: object) -> Credentials | None:
        return parse_auth(json.dumps({"auths": {NAME.domain: entry}}).encode(), NAME, "auth.json")

    assert parse({}) is None
    assert parse(pair("a:b:c\0\0")) == Credentials("a", "b:c")
    assert parse({**pair("a:b"), "identitytoken": "id"}) == Credentials(identity_token="id")
    for bad in (
        {"auth": "!!"},
        pair("nocolon"),
        {"auth": 7},
        [],
        pair("a:b\nc"),
        {"identitytoken": 7},
    ):
        with pytest.raises(ConfigError) as caught:
            parse(bad)
        assert caught.value.reference == "bad-auth-file"
        assert NAME.domain in caught.value.message


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"auths": []}', b'{"auths": {}, "auths": {}}', b"\xff"]
)
def test_malformed_auth_files(data):
    with pytest.raises(ConfigError, match=r"auth\.json"):
        parse_auth(data, NAME, "auth.json")


def test_absent_tables_mean_anonymous():
    for data in (b"{}", b'{"auths": null}', b'{"credsStore": "desktop"}'):
        assert parse_auth(data, NAME, "auth.json") is None


def helper(tmp_path, body: str, name: str = "test") -> dict[str, str]:
    """An environment with a ``docker-credential-NAME`` that is a shell script."""
    path = tmp_path / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin"}


HELPERS = json.dumps(
    {"credHelpers": {NAME.domain: "test"}, "auths": {NAME.domain: {"auth": "eDp5"}}}
).encode()


def test_a_credential_helper_is_asked_for_its_host(tmp_path):
    environ = helper(
        tmp_path,
        f"""[ "$1" = get ] || exit 3
cat > {tmp_path}/asked
echo '{{"ServerURL": "x", "Username": "reader", "Secret": "canary-secret"}}'""",
    )
    found = parse_auth(HELPERS, NAME, "auth.json", environ)
    assert (found.username, found.password) == ("reader", "canary-secret")
    assert (tmp_path / "asked").read_text() == NAME.domain
    assert "canary" not in repr(found)


def test_a_helper_may_know_an_identity_token(tmp_path):
    environ = helper(tmp_path, """echo '{"Username": "<token>", "Secret": "t0ken"}'""")
    assert parse_auth(HELPERS, NAME, "auth.json", environ).identity_token == "t0ken"


def test_a_helper_that_has_none_means_anonymous(tmp_path):
    environ = helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    assert parse_auth(HELPERS, NAME, "auth.json", environ) is None


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("echo the vault is locked; exit 1", "the vault is locked"),
        ("exit 7", "status 7"),
        ("echo canary-secret", "not JSON"),
        ("echo '{}'", "no usable Username"),
        ("""echo '{"Username": "a", "Secret": "b\\\\nInjected: x"}'""", "no usable"),
    ],
)
def test_a_helper_that_fails_is_named(tmp_path, body, found):
    environ = helper(tmp_path, body)
    with pytest.raises(ConfigError) as caught:
        parse_auth(HELPERS, NAME, "auth.json", environ)
    assert caught.value.reference == "credential-helper"
    assert "docker-credential-test" in caught.value.message
    assert found in caught.value.found
    assert "canary" not in str(caught.value.to_json())


@pytest.mark.real
def test_a_real_helper(tmp_path):
    """``docker-credential-pass``: a store of its own, encrypted to a key of its own."""
    home = Path(tempfile.mkdtemp(prefix="gpg-"))  # sockets have short names
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "GNUPGHOME": str(home / "gnupg")}
    environ["PASSWORD_STORE_DIR"] = str(home / "store")
    (home / "gnupg").mkdir(mode=0o700)

    def run(*command: str, stdin: str = "") -> str:
        done = subprocess.run(
            command, env=environ, input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    data = json.dumps({"credHelpers": {NAME.domain: "pass", "other.example": "pass"}}).encode()
    try:
        key = ("--batch", "--passphrase", "", "--quick-generate-key", "tests", "future-default")
        run("gpg", *key, "default", "never")
        run("pass", "init", "tests")
        entry = {"ServerURL": NAME.domain, "Username": "reader", "Secret": "canary-in-the-store"}
        run("docker-credential-pass", "store", stdin=json.dumps(entry))
        found = parse_auth(data, NAME, "auth.json", environ)
        assert (found.username, found.password) == ("reader", "canary-in-the-store")
        other = RegistryName.parse("other.example/os:1")
        assert parse_auth(data, other, "auth.json", environ) is None
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=environ, check=False)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("name", ["gone", "../evil", "", "a b"])
def test_a_helper_that_is_not_there(tmp_path, name):
    data = json.dumps({"credHelpers": {NAME.domain: name}}).encode()
    with pytest.raises(ConfigError) as caught:
        parse_auth(data, NAME, "auth.json", {"PATH": str(tmp_path)})
    assert caught.value.reference == "credential-helper"


def test_registries_conf_says_who_is_asked_in_which_order(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    environ = helper(tmp_path, """echo '{"Username": "from", "Secret": "helper"}'""")
    path = tmp_path / "etc/ostree/auth.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"auths": {NAME.domain: {"auth": "ZnJvbTpmaWxl"}}}))
    path.chmod(0o600)
    first = find_credentials(tmp_path, NAME, environ, ("containers-auth.json", "test"))
    second = find_credentials(tmp_path, NAME, environ, ("test", "containers-auth.json"))
    assert (first.password, second.password) == ("file", "helper")


def test_secrets_are_in_no_repr():
    text = repr(Credentials("canary", "canary", "canary"))
    assert "canary" not in text


def write(path, user: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {NAME.domain: pair(f"{user}:pw")}}))
    path.chmod(0o600)


def test_order_for_root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    home = tmp_path / "home"
    write(home / ".config/containers/auth.json", "personal")
    write(home / ".docker/config.json", "personal")
    environ = {"HOME": str(home), "XDG_RUNTIME_DIR": str(tmp_path / "runtime")}
    assert find_credentials(tmp_path, NAME, environ) is None
    for place, user in (("usr/lib", "image"), ("etc", "machine"), ("run", "now")):
        write(tmp_path / place / "ostree/auth.json", user)
        assert find_credentials(tmp_path, NAME, environ).username == user
    (tmp_path / "run/ostree/auth.json").write_text("{}")  # the first that exists is the only one
    assert find_credentials(tmp_path, NAME, environ) is None
    write(tmp_path / "explicit.json", "explicit")
    environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "explicit.json")
    assert find_credentials(tmp_path, NAME, environ).username == "explicit"
    environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"gone\.json"):
        find_credentials(tmp_path, NAME, environ)


def test_order_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    home, runtime = tmp_path / "home", tmp_path / "runtime"
    environ = {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}
    write(tmp_path / "etc/ostree/auth.json", "machine")
    assert find_credentials(tmp_path, NAME, environ) is None
    write(home / ".docker/config.json", "docker")
    assert find_credentials(tmp_path, NAME, environ).username == "docker"
    (runtime / "containers").mkdir(parents=True)
    (runtime / "containers/auth.json").write_text("{}")  # without an entry: the next file
    assert find_credentials(tmp_path, NAME, environ).username == "docker"
    write(home / ".config/containers/auth.json", "podman")
    assert find_credentials(tmp_path, NAME, environ).username == "podman"
    write(home / ".config/ostree/auth.json", "ours")
    assert find_credentials(tmp_path, NAME, environ).username == "ours"
    write(runtime / "ostree/auth.json", "now")
    assert find_credentials(tmp_path, NAME, environ).username == "now"


def test_absolute_links_stay_beneath_the_root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "run/ostree").mkdir(parents=True)
    (tmp_path / "run/ostree/auth.json").symlink_to("/run/containers/0/auth.json")
    assert find_credentials(tmp_path, NAME, {}) is None
    write(tmp_path / "run/containers/0/auth.json", "linked")
    assert find_credentials(tmp_path, NAME, {}).username == "linked"
    (tmp_path / "run/ostree/auth.json").unlink()
    (tmp_path / "run/ostree/auth.json").symlink_to("/run/ostree/auth.json")
    with pytest.raises(ConfigError, match="too many links"):
        find_credentials(tmp_path, NAME, {})


def test_n20_a_readable_file_is_warned_of(tmp_path, caplog):
    write(tmp_path / "auth.json", "open")
    (tmp_path / "auth.json").chmod(0o644)
    environ = {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
    assert find_credentials(tmp_path, NAME, environ).username == "open"
    assert "can be read by others than its owner (mode 0644)" in caplog.text
