"""The HTTP client against servers that lie, drip, stall and redirect (catalogue ids N.. in the names)."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import trustme
from support.faulty_http import Asked, FaultyServer, Peer, error_body

from bootc_core import __version__, limits
from bootc_core.errors import BootcError, ConfigError, ContentError, TransportError, UsageError
from bootc_core.net import dial
from bootc_core.net.http import (
    Headers,
    Pool,
    TlsOptions,
    content_range,
    request,
    retry_after_s,
    status_error,
)
from bootc_core.net.proxy import proxy_for
from bootc_core.net.url import parse_url, unsafe_target

SECRET = "Bearer canary-4711"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def answer(data: bytes, *, close: bool = True):
    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(data)
        if close:
            peer.close()

    return handler


def fetch(server: FaultyServer, target: str = "/", **options) -> bytes:
    with request("GET", server.url(target), timeout_s=5, **options) as reply:
        return reply.read(limits.MIB)


def failure(handler, **options) -> BootcError:
    with FaultyServer(handler) as server, pytest.raises(BootcError) as caught:
        fetch(server, headers=[("Authorization", SECRET)], **options)
    for text in (str(caught.value), str(caught.value.to_json())):
        assert "canary" not in text
    return caught.value


# --- bodies --------------------------------------------------------------------------------------------------------


def test_request_line_and_headers():
    with FaultyServer(lambda peer, asked: peer.reply(200, b"hello")) as server:
        assert fetch(server, "/v2/?a=b", headers=[("Accept", "text/plain")]) == b"hello"
    (asked,) = server.requests
    assert (asked.method, asked.target) == ("GET", "/v2/?a=b")
    assert dict(asked.headers) == {
        "Host": server.authority,
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": f"bootc/{__version__}",
        "Accept": "text/plain",
    }


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 1_000_003])
def test_bodies_by_length_and_in_chunks(size):
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]

    def handler(peer: Peer, asked: Asked) -> None:
        if asked.path == "/length":
            return peer.reply(200, body)
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, size, 5000):
            piece = body[start : start + 5000]
            peer.send(b"%X;name=value\r\n%b\r\n" % (len(piece), piece))
        peer.send(b"0\r\nTrailer: ignored\r\n\r\n")

    with FaultyServer(handler) as server, Pool() as pool:
        for target in ("/length", "/chunked", "/length"):
            with request("GET", server.url(target), connection_pool=pool) as reply:
                assert reply.read(2 * limits.MIB) == body
                assert reply.received == size
    assert server.connections == 1


def test_many_tiny_chunks_are_read_in_linear_time():
    count = 100_000

    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        peer.send(b"1\r\nx\r\n" * count + b"0\r\n\r\n")

    with FaultyServer(handler) as server, request("GET", server.url()) as reply:
        assert reply.read(limits.MIB) == b"x" * count


def test_body_until_close_only_where_the_size_is_known():
    with FaultyServer(answer(b"HTTP/1.1 200 OK\r\n\r\nhello")) as server:
        assert fetch(server, size=5) == b"hello"
        with pytest.raises(TransportError) as caught:
            fetch(server, size=6)
        assert caught.value.retryable
        with pytest.raises(TransportError, match="malformed") as caught:
            fetch(server)
        assert (
            caught.value.found == "a body without a length, whose truncation could not be noticed"
        )


def test_head_has_no_body_whatever_its_length_says():
    with (
        FaultyServer(lambda peer, asked: peer.reply(content_length="5000")) as server,
        Pool() as pool,
    ):
        for _ in range(2):
            with request("HEAD", server.url(), connection_pool=pool) as reply:
                assert reply.headers.get("Content-Length") == "5000"
                assert reply.read(1) == b""
    assert server.connections == 1


def test_interim_replies_are_skipped():
    assert failure(answer(b"HTTP/1.1 100 Continue\r\n\r\n" * 20)).found == "interim replies only"
    data = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    )
    with FaultyServer(answer(data)) as server:
        assert fetch(server) == b"x"


def test_read_refuses_more_than_its_limit():  # N09
    error = None
    for handler in (
        lambda peer, asked: peer.reply(200, b"x" * 101),
        answer(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n"
            + b"x" * 101
            + b"\r\n0\r\n\r\n"
        ),
    ):
        with (
            FaultyServer(handler) as server,
            request("GET", server.url()) as reply,
            pytest.raises(ContentError) as caught,
        ):
            reply.read(100, "token")
        error = caught.value
        assert (error.reference, error.catalogue) == ("too-large", "LIM")
        assert error.message == f"token from {server.authority} is too large"
        assert error.expected == "at most 100 bytes"


def test_loopback_is_fast_and_copies_nothing():
    size = 64 * limits.MIB
    block = b"\0" * limits.MIB

    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            peer.send(block)

    buffer = bytearray(limits.MIB)
    with FaultyServer(handler) as server, request("GET", server.url()) as reply:
        total = 0
        while count := reply.readinto(buffer):
            total += count
    assert total == size


# --- N07: heads that two parsers could read differently -----------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "a bare line feed"),
        (b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n", "a bad header line: A"),
        (b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "a bad header line: A"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "a folded header:  c"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "a bad header line: A "),
        (b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", "a bad header line: "),
        (b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", "a bad header line: A"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "two different lengths",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na", "a length that is not a number: +1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\na", "a length that is not a number: -1"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na",
            "a length that is not a number: 1, 1",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nab", "a length that is not a number: ²"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "a length and a chunked body at once",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "an unknown transfer encoding",
        ),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "an unknown transfer encoding"),
        (b"HTTP/2 200\r\n\r\n", "a bad status line: HTTP/2 200"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "a bad status line: HTTP/1.1 2000 OK"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP: SSH-2.0-OpenSSH\\r\\n"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 129 + b"\r\n", "more than 128 header fields"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 17000 + b"\r\n\r\n", "a bad header line: A"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000, "headers of more than 65536 bytes"),
    ],
)
def test_n07_ambiguous_heads(head, found):
    error = failure(answer(head))
    assert isinstance(error, TransportError)
    assert (error.reference, error.catalogue, error.retryable) == ("bad-http", "NET", False)
    assert error.found == found
    assert "127.0.0.1:" in error.message


def test_equal_lengths_are_no_contradiction():
    with FaultyServer(
        answer(b"HTTP/1.1 200\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na")
    ) as server:
        assert fetch(server) == b"a"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"\r\n", "a bad chunk size: "),
        (b"g\r\n", "a bad chunk size: g"),
        (b"-1\r\n", "a bad chunk size: -1"),
        (b"0x1\r\nx\r\n0\r\n\r\n", "a bad chunk size: 0x1"),
        (b" 1\r\nx\r\n0\r\n\r\n", "a bad chunk size:  1"),
        (b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n", "a bad chunk size: 1_0"),
        (b"f" * 16 + b"\r\n", "a bad chunk size: ffffffffffffffff"),
        (b"1\nx\r\n0\r\n\r\n", "a chunk line with a bare line feed or carriage return"),
        (b"1;\ra\r\nx\r\n0\r\n\r\n", "a chunk line with a bare line feed or carriage return"),
        (b"1\r\nxy\r\n0\r\n\r\n", "a chunk that is longer than its size"),
        (b"1;" + b"x" * 20000, "an endless chunk line"),
        (b"0\r\n" + b"A: b\r\n" * 200, "too many trailers"),
    ],
)
def test_n07_bad_chunks(body, found):
    error = failure(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    assert (error.reference, error.found) == ("bad-http", found)


# --- N01, N02, N10, N11, N28: connections that fail -----------------------------------------------------------------


def test_n01_refused():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError) as caught:
        request("GET", f"http://127.0.0.1:{port}/v2/")
    assert (caught.value.reference, caught.value.retryable) == ("connection-refused", True)
    assert caught.value.message == f"127.0.0.1:{port} refuses the connection"


def test_n01_unknown_host(monkeypatch):
    def nobody(*_args, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(TransportError) as caught:
        request("GET", "https://registry.invalid/v2/")
    assert (caught.value.reference, caught.value.retryable) == ("unknown-host", False)
    assert caught.value.message == "the host registry.invalid is not known"


@pytest.mark.parametrize("after", [0, 1, 999])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_n02_broken_off_after_n_bytes(after, how):
    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * after)
        if how == "reset":  # RST would overtake the bytes
            peer.sock.shutdown(socket.SHUT_WR)
        peer.close()

    error = failure(handler)
    assert (error.reference, error.retryable) == ("connection-reset", True)
    assert error.message.endswith(f"after {after} of 1000 bytes")


def test_reset_in_the_head_and_in_chunks():
    error = failure(lambda peer, asked: peer.reset())
    assert (error.reference, error.retryable) == ("connection-reset", True)
    error = failure(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"))
    assert error.message.endswith("after 2 bytes")
    assert error.retryable


def test_n10_slow_drip_in_body_and_head():
    def handler(peer: Peer, asked: Asked) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        if asked.path == "/head":
            peer.drip(head, 0.05)
        peer.send(head)
        peer.drip(b"x" * 1000, 0.05)

    with FaultyServer(handler) as server:
        for target, reference in (("/body", "too-slow"), ("/head", "timeout")):
            with (
                pytest.raises(TransportError) as caught,
                request("GET", server.url(target), timeout_s=1) as reply,
            ):
                reply.read(2000)
            assert (caught.value.reference, caught.value.retryable) == (reference, True)


def test_silence_is_a_timeout():
    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        peer.stall()

    with (
        FaultyServer(handler) as server,
        pytest.raises(TransportError) as caught,
        request("GET", server.url(), timeout_s=1) as reply,
    ):
        reply.read(1000)
    assert caught.value.message == f"{server.authority} did not answer in time after 3 bytes"


def test_n11_stall_after_the_body_does_not_matter():
    def handler(peer: Peer, asked: Asked) -> None:
        peer.reply(200, b"done")
        peer.stall()

    with FaultyServer(handler) as server:
        assert fetch(server) == b"done"


def test_n28_closed_while_idle_is_tried_again():
    def handler(peer: Peer, asked: Asked) -> None:
        if asked.path == "/reset":
            return peer.reset()
        peer.reply(200, b"x")
        if asked.path == "/close":
            peer.close()

    with FaultyServer(handler) as server, Pool() as pool:
        for target in ("/close", "/keep", "/keep"):
            assert fetch(server, target, connection_pool=pool) == b"x"
        assert server.connections == 2
        with pytest.raises(TransportError) as caught:  # seen: it fails on the new connection too
            fetch(server, "/reset", connection_pool=pool)
        assert caught.value.reference == "connection-reset"
        assert [asked.path for asked in server.requests].count("/reset") == 2


def test_pool_is_bounded_and_shared_by_threads():
    with FaultyServer(lambda peer, asked: peer.reply(200, b"x")) as server, Pool(size=2) as pool:
        failures = []

        def work() -> None:
            try:
                for _ in range(20):
                    assert fetch(server, connection_pool=pool) == b"x"
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(pool._idle) <= 2
    assert len(server.requests) == 160
    assert pool._idle == []


def test_bytes_beyond_the_body_end_the_connection():
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    with FaultyServer(answer(data, close=False)) as server, Pool() as pool:
        for _ in range(2):
            assert fetch(server, connection_pool=pool) == b"a"
    assert server.connections == 2


def test_ipv6_literal():
    with FaultyServer(lambda peer, asked: peer.reply(200, b"six"), host="::1") as server:
        assert fetch(server) == b"six"
    assert server.requests[0].header("host") == f"[::1]:{server.port}"


def test_n26_a_dead_address_does_not_delay_the_next(monkeypatch):
    with FaultyServer(lambda peer, asked: peer.reply(200, b"four")) as server:
        silent = socket.socket()
        silent.bind(("127.0.0.1", 0))  # a full backlog answers nothing
        silent.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
            fillers.append(filler)
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", silent.getsockname()),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
        started = time.monotonic()
        assert fetch(server) == b"four"
        assert time.monotonic() - started < 2
        for sock in (*fillers, silent):
            sock.close()


# --- N12, N13, N14: redirects ----------------------------------------------------------------------------------------


def redirect(location: str, status: int = 307):
    return lambda peer, asked: peer.reply(status, b"moved", location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_n12_credentials_stay_with_the_origin(status):
    with FaultyServer(lambda peer, asked: peer.reply(200, b"blob")) as store:

        def registry(peer: Peer, asked: Asked) -> None:
            target = {"/a": "/b", "/b": store.url("/c?signature=canary")}[asked.path]
            peer.reply(status, b"", location=target)

        with FaultyServer(registry) as server:
            headers = [("Authorization", SECRET), ("Cookie", "canary"), ("Range", "bytes=5-")]
            with request("GET", server.url("/a"), headers=headers) as reply:
                assert (reply.read(9), reply.redirects) == (b"blob", 2)
                assert reply.url == store.url("/c?signature=canary")
    assert [asked.header("authorization") for asked in server.requests] == [SECRET, SECRET]
    (asked,) = store.requests
    assert asked.header("authorization") is asked.header("cookie") is None
    assert asked.header("range") == "bytes=5-"


def test_credentials_do_not_come_back_after_a_detour():
    with FaultyServer(lambda peer, asked: peer.reply(302, location=f"{home}/back")) as other:

        def registry(peer: Peer, asked: Asked) -> None:
            if asked.path == "/":
                peer.reply(302, location=other.url("/"))
            else:
                peer.reply(200, b"x")

        with FaultyServer(registry) as server:
            home = server.url("").rstrip("/")
            assert fetch(server, headers=[("Authorization", SECRET)]) == b"x"
    assert [asked.header("authorization") for asked in server.requests] == [SECRET, None]


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "unix:/run/x",
        "data:,x",
        "http://169.254.169.254/latest",
        "http://0xa9fea9fe/latest",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://100.100.100.200/",
        "http://0.0.0.0/",
        "http://user:canary@127.0.0.1/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "//a b/",
    ],
)
def test_n13_redirect_to_somewhere_strange(location):
    error = failure(redirect(location))
    assert isinstance(error, TransportError)
    assert error.reference in {"redirect-refused", "bad-url"}
    assert (error.catalogue, error.retryable) == ("NET", False)


def test_n13_never_from_https_to_http(authority):
    with (
        FaultyServer(lambda peer, asked: peer.reply(200)) as plain,
        FaultyServer(redirect(plain.url("/")), tls=authority.server) as server,
        pytest.raises(TransportError, match="redirects to a place without TLS") as caught,
    ):
        fetch(server, tls=authority.client)
    assert caught.value.reference == "redirect-refused"
    assert plain.requests == []


@pytest.mark.parametrize(
    ("address", "here", "refused"),
    [
        ("127.0.0.1", "192.0.2.7", "a loopback address"),
        ("::1", "192.0.2.7", "a loopback address"),
        ("169.254.169.254", "192.0.2.7", "a link-local address"),
        ("::ffff:169.254.169.254", "192.0.2.7", "a link-local address"),
        ("0.0.0.0", "192.0.2.7", "an unspecified address"),
        ("fd00:ec2::254", "192.0.2.7", "a metadata service"),
        ("127.0.0.1", "127.0.0.1", ""),
        ("10.1.2.3", "192.0.2.7", ""),
    ],
)
def test_n27_a_name_is_as_good_as_its_address(monkeypatch, address, here, refused):
    """What a redirect names is looked up once, and what is found is what is connected to."""
    answers = {"store.example": address, "registry.example": here}

    def look_up(host, port, **_):
        family = socket.AF_INET6 if ":" in answers[host] else socket.AF_INET
        rest = (0, 0) if family == socket.AF_INET6 else ()
        return [(family, socket.SOCK_STREAM, 6, "", (answers[host], port, *rest))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    registry, store = (parse_url(f"https://{host}/") for host in reversed([*answers]))
    found = dial._addresses(store)
    if refused:
        with pytest.raises(TransportError) as caught:
            dial._safe(found, store, registry)
        assert caught.value.reference == "unsafe-address"
        assert refused in caught.value.message
    else:
        assert dial._safe(found, store, registry) == found


def test_n27_unsafe_addresses_beside_others_are_left_out(monkeypatch):
    found = [
        (socket.AF_INET, ("169.254.1.1", 443)),
        (socket.AF_INET, ("192.0.2.9", 443)),
    ]
    urls = parse_url("https://store.example/"), parse_url("https://192.0.2.1/")
    assert dial._safe(found, *urls) == found[1:]


def test_redirects_without_one_place_and_of_posts():
    assert failure(lambda peer, asked: peer.reply(302)).reference == "redirect-refused"
    head = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /a\r\nLocation: /b\r\n\r\n"
    assert failure(answer(head)).reference == "redirect-refused"
    with FaultyServer(redirect("/x", 308)) as server, pytest.raises(TransportError, match="POST"):
        request("POST", server.url(), body=b"refresh_token=canary")
    assert len(server.requests) == 1


def test_n14_redirect_loop():
    with FaultyServer(redirect("/again")) as server:
        with pytest.raises(TransportError) as caught:
            fetch(server)
        assert caught.value.reference == "redirect-loop"
        assert len(server.requests) == limits.REDIRECTS + 1
        with pytest.raises(TransportError) as caught:
            fetch(server, max_redirects=0)
        assert caught.value.reference == "redirect-refused"


# --- N17, N18: TLS ----------------------------------------------------------------------------------------------------


class Authority:
    def __init__(self, directory):
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(directory / "ca.crt")
        self.ca_file = str(directory / "ca.crt")
        self.client = TlsOptions(ca_files=(self.ca_file,))
        self.server = self.context("127.0.0.1")
        self.directory = directory

    def context(self, *names: str, **options) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, **options).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


def hello(peer: Peer, asked: Asked) -> None:
    peer.reply(200, b"hello")


def test_tls_with_our_authority_and_keep_alive(authority):
    with FaultyServer(hello, tls=authority.server) as server, Pool() as pool:
        for _ in range(3):
            assert fetch(server, tls=authority.client, connection_pool=pool) == b"hello"
    assert server.connections == 1


def test_n17_certificates_that_do_not_convince(authority):
    from datetime import UTC, datetime, timedelta

    yesterday = datetime.now(UTC) - timedelta(days=1)
    cases = [
        (authority.context("127.0.0.1"), TlsOptions(), "is signed by an unknown authority"),
        (authority.context("other.example"), authority.client, "was issued for another"),
        (authority.context("127.0.0.1", not_after=yesterday), authority.client, "has expired"),
    ]
    for context, options, told in cases:
        with FaultyServer(hello, tls=context) as server:
            with pytest.raises(TransportError) as caught:
                fetch(server, tls=options)
            error = caught.value
            assert error.message.startswith(f"the certificate of {server.authority} {told}")
            assert (error.reference, error.catalogue, error.retryable) == (
                "tls-verify",
                "NET",
                False,
            )
            assert error.hint
            assert server.requests == []
            assert fetch(server, tls=TlsOptions(verify=False)) == b"hello"


def test_n17_no_tls_at_all():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            sock, _ = listener.accept()
            sock.recv(65536)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            sock.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        port = listener.getsockname()[1]
        with pytest.raises(TransportError) as caught:
            request("GET", f"https://127.0.0.1:{port}/", timeout_s=5)
        thread.join()
    assert caught.value.reference == "tls-failed"
    assert caught.value.message == f"127.0.0.1:{port} does not speak TLS"


def test_n17_handshake_stall():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(TransportError) as caught,
    ):
        request("GET", f"https://127.0.0.1:{listener.getsockname()[1]}/", timeout_s=0.5)
    assert (caught.value.reference, caught.value.retryable) == ("timeout", True)


def test_client_certificate_goes_to_the_first_origin_only(authority):
    pair = authority.ca.issue_cert("client@example.org")
    cert, key = authority.directory / "c.cert", authority.directory / "c.key"
    cert.write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
    pair.private_key_pem.write_to_path(key)
    seen = []
    demanding = authority.context("127.0.0.1")
    demanding.verify_mode = ssl.CERT_OPTIONAL
    authority.ca.configure_trust(demanding)

    def store(peer: Peer, asked: Asked) -> None:
        seen.append(bool(peer.sock.getpeercert()))
        peer.reply(200, b"x")

    with FaultyServer(store, tls=demanding) as other:

        def registry(peer: Peer, asked: Asked) -> None:
            seen.append(bool(peer.sock.getpeercert()))
            peer.reply(307, location=other.url("/"))

        with FaultyServer(registry, tls=demanding) as server:
            options = TlsOptions(
                ca_files=authority.client.ca_files, client_cert=str(cert), client_key=str(key)
            )
            assert fetch(server, tls=options) == b"x"
    assert seen == [True, False]


def test_n17_client_certificate_is_missing(authority):
    demanding = authority.context("127.0.0.1")
    demanding.verify_mode = ssl.CERT_REQUIRED
    demanding.maximum_version = (
        ssl.TLSVersion.TLSv1_2
    )  # in 1.3 the refusal comes after the handshake
    authority.ca.configure_trust(demanding)
    with FaultyServer(hello, tls=demanding) as server, pytest.raises(TransportError) as caught:
        fetch(server, tls=authority.client)
    assert caught.value.reference in {"tls-failed", "connection-reset"}


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_n18_bad_authority_file(tmp_path, content):
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        request("GET", "https://127.0.0.1:1/", tls=TlsOptions(ca_files=(str(path),)))
    assert caught.value.reference == "bad-certificate-file"
    assert str(path) in caught.value.message


# --- N19: proxies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("https://quay.io/", {}, None),
        ("https://quay.io/", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128/"),
        ("https://quay.io/", {"https_proxy": "p:3128"}, "http://p:3128/"),
        ("https://quay.io/", {"HTTPS_PROXY": "http://a", "https_proxy": "http://b"}, "http://a/"),
        ("https://quay.io/", {"HTTP_PROXY": "http://p", "ALL_PROXY": "http://q"}, None),
        ("http://quay.io/", {"HTTP_PROXY": "http://p"}, "http://p/"),
        ("http://quay.io/", {"HTTP_PROXY": "http://p", "REQUEST_METHOD": "GET"}, None),
        ("https://localhost/", {"HTTPS_PROXY": "http://p"}, None),
        ("https://127.1.2.3/", {"HTTPS_PROXY": "http://p"}, None),
        ("https://[::1]/", {"HTTPS_PROXY": "http://p"}, None),
        ("https://quay.io/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("https://quay.io/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "a, QUAY.io"}, None),
        ("https://cdn.quay.io/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "quay.io"}, None),
        ("https://quay.io/", {"HTTPS_PROXY": "http://p", "NO_PROXY": ".quay.io"}, "http://p/"),
        ("https://cdn.quay.io/", {"HTTPS_PROXY": "http://p", "NO_PROXY": ".quay.io"}, None),
        ("https://okquay.io/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "quay.io"}, "http://p/"),
        ("https://quay.io/", {"HTTPS_PROXY": "http://p", "no_proxy": "quay.io:5000"}, "http://p/"),
        ("https://quay.io:5000/", {"HTTPS_PROXY": "http://p", "no_proxy": "quay.io:5000"}, None),
        ("https://10.1.2.3/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, None),
        ("https://11.1.2.3/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, "http://p/"),
        ("https://[fd00::1]/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "fd00::/8"}, None),
        ("https://[fd00::1]/", {"HTTPS_PROXY": "http://p", "NO_PROXY": "[fd00::1]"}, None),
    ],
)
def test_proxy_selection_follows_go(url, environ, expected):
    found = proxy_for(parse_url(url), environ)
    assert (str(found.url) if found else None) == expected


@pytest.mark.parametrize(
    "value", ["socks5://canary:canary@p:1", "http://canary:canary@", "http://:canary@p:x"]
)
def test_bad_proxy_is_told_without_its_password(value):
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        proxy_for(parse_url("https://quay.io/"), {"HTTPS_PROXY": value})
    assert "canary" not in str(caught.value.to_json())


def test_plain_request_through_a_proxy(monkeypatch):
    with FaultyServer(lambda peer, asked: peer.reply(200, b"via")) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@{proxy.authority}")
        with request("GET", "http://registry.example/v2/") as reply:
            assert reply.read(9) == b"via"
    (asked,) = proxy.requests
    assert asked.target == "http://registry.example/v2/"
    assert asked.header("proxy-authorization") == "Basic " + base64.b64encode(b"user:p@ss").decode()


def test_tls_through_a_proxy_and_n19_407(monkeypatch, tmp_path):
    authority = Authority(tmp_path)

    def relay(peer: Peer, asked: Asked) -> None:
        assert asked.method == "CONNECT"
        if not asked.header("proxy-authorization"):
            return peer.reply(407, proxy_authenticate="Basic")
        assert asked.header("authorization") is None
        with socket.create_connection(("127.0.0.1", server.port)) as upstream:
            peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")

            def pump(source: socket.socket, sink: socket.socket) -> None:
                try:
                    while data := source.recv(65536):
                        sink.sendall(data)
                    sink.shutdown(socket.SHUT_WR)
                except OSError:
                    return

            back = threading.Thread(target=pump, args=(upstream, peer.sock))
            back.start()
            pump(peer.sock, upstream)
            back.join()
        peer.close()

    with (
        FaultyServer(hello, tls=authority.context("registry.example")) as server,
        FaultyServer(relay) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://u:canary@{proxy.authority}")
        with request("GET", "https://registry.example/v2/", tls=authority.client) as reply:
            assert reply.read(9) == b"hello"
        assert proxy.requests[0].target == "registry.example:443"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.authority}")
        with pytest.raises(TransportError) as caught:
            request("GET", "https://registry.example/v2/", tls=authority.client)
    assert (caught.value.reference, caught.value.catalogue) == ("proxy-auth", "AUTH")
    assert proxy.authority in caught.value.message


# --- headers, statuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        ("X", "a\r\nInjected: b"),
        ("X", "a\0"),
        ("X Y", "secret"),
        ("Host", "other"),
        ("X", "geheimnisvoll-ä"),
    ],
)
def test_headers_that_would_change_the_request(field):
    with pytest.raises(UsageError) as caught:
        request("GET", "http://127.0.0.1:1/", headers=[field])
    assert field[1] not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/a b", "http://h/\r\nX: y", "ftp://h/", "http:///x", "http://[::1%25lo]/"],
)
def test_urls_that_are_none(url):
    with pytest.raises(TransportError) as caught:
        request("GET", url)
    assert caught.value.reference == "bad-url"


@pytest.mark.parametrize(
    ("status", "reference", "catalogue", "retryable"),
    [
        (400, "unexpected-status", "NET", False),
        (401, "unauthorized", "AUTH", False),
        (403, "denied", "AUTH", False),
        (404, "not-found", "NOTFOUND", False),
        (408, "server-error", "NET", True),
        (429, "rate-limited", "NET", True),
        (500, "server-error", "NET", True),
        (501, "server-error", "NET", False),
        (503, "server-error", "NET", True),
    ],
)
def test_status_errors(status, reference, catalogue, retryable):
    body = error_body("SOME_CODE", "be\x1b[31mware")
    with (
        FaultyServer(lambda peer, asked: peer.reply(status, body, retry_after="7")) as server,
        request("GET", server.url()) as reply,
    ):
        error = status_error(reply, "layer 1")
    assert (error.reference, error.catalogue, error.retryable) == (reference, catalogue, retryable)
    assert error.retry_after_s == (7 if retryable else None)
    assert error.found == f"HTTP {status} (SOME_CODE: be\\x1b[31mware)"
    assert server.authority in error.message
    assert "layer 1" in error.message


def test_error_pages_of_every_kind():
    for body, told in (
        (b"<html>no", "web page"),
        (b"", "HTTP 404"),
        (b"[1]", "HTTP 404"),
        (b"[" * 60000, "HTTP 404"),
    ):
        with (
            FaultyServer(lambda peer, asked, body=body: peer.reply(404, body)) as server,
            request("GET", server.url()) as reply,
        ):
            assert told in status_error(reply, "x").found
    endless = b"HTTP/1.1 500 Oops\r\n\r\n" + b"x" * 200_000
    with FaultyServer(answer(endless)) as server, request("GET", server.url()) as reply:
        assert status_error(reply, "x").found == "HTTP 500"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1),
        ("1000000000", limits.RETRY_WAIT_MAX_S),
        ("9" * 400, limits.RETRY_WAIT_MAX_S),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2195 07:28:00 GMT", limits.RETRY_WAIT_MAX_S),
        ("rubbish", None),
        ("-5", None),
        ("", None),
    ],
)
def test_n21_retry_after(value, expected):
    assert retry_after_s(Headers([("Retry-After", value)])) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes 5-9/10", (5, 9, 10)),
        ("bytes 5-10/10", None),
        ("bytes 9-5/10", None),
        ("bytes */10", None),
        ("bytes 5-9/*", None),
        ("Bytes 5-9/10", None),
        ("", None),
    ],
)
def test_n04_content_range(value, expected):
    with (
        FaultyServer(lambda peer, asked: peer.reply(206, b"x", content_range=value)) as server,
        request("GET", server.url()) as reply,
    ):
        assert content_range(reply) == expected


@pytest.mark.parametrize(
    ("host", "loopback", "refused"),
    [
        ("auth.docker.io", False, False),
        ("10.0.0.1", False, False),
        ("127.0.0.1", False, True),
        ("127.0.0.1", True, False),
        ("127.1", False, True),
        ("2130706433", False, True),
        ("localhost", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("169.254.1.1", True, True),
        ("fd00:ec2::254", True, True),
        ("::", True, True),
        ("fe9f::1", True, True),
    ],
)
def test_places_that_a_server_must_not_send_us_to(host, loopback, refused):
    assert bool(unsafe_target(host, allow_loopback=loopback)) == refused


def test_plain_http_imports_no_tls():
    program = (
        "import sys, bootc_core.net.http\n"
        "assert not {'ssl', 'http.client', 'email', 'trio', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_digest_of_a_streamed_body_matches():
    body = b"layer" * 100_000
    digest = hashlib.sha256()
    with FaultyServer(lambda peer, asked: peer.reply(200, body)) as server:
        buffer = bytearray(10_007)
        with request("GET", server.url(), size=len(body)) as reply:
            assert reply.length == len(body)
            while count := reply.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    assert digest.digest() == hashlib.sha256(body).digest()
