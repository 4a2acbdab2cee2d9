"""Opening connections: addresses in parallel, proxies, TLS.

``ssl`` is imported when the first TLS connection is opened: it costs 20 ms and a default context 30 ms more.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bootc_core import limits
from bootc_core.errors import ConfigError, TransportError, printable
from bootc_core.net.faults import network_error
from bootc_core.net.proxy import Proxy
from bootc_core.net.url import Url, is_loopback, unsafe_target
from bootc_core.net.wire import Connection

if TYPE_CHECKING:
    import ssl

_STAGGER_S: Final = 0.25  # RFC 8305: how long one address may keep the next one waiting


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How a TLS server is checked and how we introduce ourselves. System trust always counts; ``ca_files`` add to it.

    Attributes:
        verify: False: any certificate will do (registries marked insecure).
        ca_files: PEM files of further authorities.
        client_cert, client_key: PEM files; sent to the first origin only, never after a redirect to another.
    """

    verify: bool = True
    ca_files: tuple[str, ...] = ()
    client_cert: str | None = None
    client_key: str | None = None


def dial(
    url: Url,
    tls: TlsOptions,
    proxy: Proxy | None,
    timeout_s: float,
    receive_buffer: int | None = None,
    sent_by: Url | None = None,
) -> Connection:
    """A connection on which requests for ``url`` can be sent; ``receive_buffer`` bounds what the kernel receives ahead.

    ``sent_by`` is the server that named ``url``, where nobody configured it: then its name must not lead into this machine.

    Raises:
        TransportError: unreachable, or TLS failed; named after the host (or the proxy); ``unsafe-address``.
        ConfigError: a certificate file cannot be used.
    """
    first = proxy.url if proxy else url
    context = (
        _context(tls) if url.scheme == "https" else None
    )  # a bad file is told before the network is asked
    guard = None if proxy else sent_by
    sock = _connect(first, min(limits.CONNECT_TIMEOUT_S, timeout_s), receive_buffer, guard)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(min(limits.CONNECT_TIMEOUT_S, timeout_s))  # bounds the handshake's silences
        if context is not None:
            if proxy:
                _tunnel(sock, url, proxy, timeout_s)
            sock = _handshake(sock, url, context)
    except BaseException:
        sock.close()
        raise
    return Connection(sock, url.label, timeout_s)


def _addresses(url: Url) -> list[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError as problem:
        raise network_error(problem, url.label, "connect") from problem
    return [(family, address) for family, _, _, _, address in found]


def _safe(
    addresses: list[tuple[int, tuple[object, ...]]], url: Url, sent_by: Url
) -> list[tuple[int, tuple[object, ...]]]:
    """Those that a server may send us to: a name is as good as the address it stands for (DNS rebinding)."""
    reasons = [unsafe_target(str(address[0]), allow_loopback=False) for _, address in addresses]
    if any(reasons) and _is_here(sent_by):
        return addresses
    safe = [one for one, reason in zip(addresses, reasons, strict=True) if not reason]
    if not safe:
        raise TransportError(
            f"{sent_by.label} sends us to {url.label}, a name that stands for {next(filter(None, reasons))}",
            reference="unsafe-address",
            found=printable(str(addresses[0][1][0])),
            hint="the registry, or whoever answers for that name, may be up to something",
        )
    return safe


def _is_here(url: Url) -> bool:
    """Whether the host of ``url`` is this machine: a developer's registry may send us to others here."""
    if is_loopback(url.host):
        return True
    return all(is_loopback(str(address[0])) for _, address in _addresses(url))


def _connect(
    url: Url, timeout_s: float, receive_buffer: int | None, sent_by: Url | None
) -> socket.socket:
    """The first of the host's addresses that answers; a dead one delays the others by a quarter of a second only."""
    deadline = time.monotonic() + timeout_s
    found = _addresses(url)
    if sent_by is not None and sent_by.host != url.host:
        found = _safe(found, url, sent_by)
    waiting = _interleave(found)
    pending: dict[int, socket.socket] = {}
    failure: OSError = TimeoutError()
    try:
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise network_error(TimeoutError(), url.label, "connect")
            if waiting:
                try:
                    sock = _start(*waiting.pop(0), receive_buffer)
                except OSError as problem:
                    failure = problem
                    continue
                pending[sock.fileno()] = sock
            if not pending:
                raise network_error(failure, url.label, "connect")
            pause = min(_STAGGER_S if waiting else timeout_s, deadline - now)
            poll = select.poll()  # not select(): descriptors may be above 1023
            for number in pending:
                poll.register(number, select.POLLOUT)
            for number, _ in poll.poll(max(1, int(pause * 1000))):
                sock = pending.pop(number)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return sock
                sock.close()
                failure = OSError(code, os.strerror(code))
    finally:
        for sock in pending.values():
            sock.close()


def _start(family: int, address: tuple[object, ...], receive_buffer: int | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if (
        receive_buffer is not None
    ):  # before connecting: a window that was offered cannot be taken back
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    code = sock.connect_ex(address)
    if code not in {0, errno.EINPROGRESS}:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _interleave(
    addresses: Sequence[tuple[int, tuple[object, ...]]],
) -> list[tuple[int, tuple[object, ...]]]:
    """The resolver's order, but families alternate, so that one broken family costs one wait."""
    families = list(dict.fromkeys(family for family, _ in addresses))
    queues = [[item for item in addresses if item[0] == family] for family in families]
    mixed = []
    for turn in range(max(map(len, queues), default=0)):
        mixed += [queue[turn] for queue in queues if turn < len(queue)]
    return mixed


def _tunnel(sock: socket.socket, url: Url, proxy: Proxy, timeout_s: float) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    lines = [f"CONNECT {host}:{url.port} HTTP/1.1", f"Host: {host}:{url.port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    connection = Connection(sock, f"the proxy {proxy.url.label}", timeout_s)
    connection.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
    head = connection.read_head()
    if head.status == 407:
        raise proxy_refusal(proxy)
    if head.status != 200:
        raise TransportError(
            f"the proxy {proxy.url.label} does not connect to {url.label}",
            reference="proxy-failed",
            found=f"HTTP {head.status}",
            retryable=head.status in {502, 503, 504},
        )
    if not connection.idle:
        raise TransportError(
            f"the proxy {proxy.url.label} talks before its turn", reference="proxy-failed"
        )


def proxy_refusal(proxy: Proxy) -> TransportError:
    """The error for a proxy that wants (other) credentials."""
    return TransportError(
        f"the proxy {proxy.url.label} wants {'other ' if proxy.authorization else ''}credentials",
        reference="proxy-auth",
        found="HTTP 407",
        hint="user and password belong into the proxy variable: http://USER:PASSWORD@host:port",
        catalogue="AUTH",
    )


def _handshake(sock: socket.socket, url: Url, context: ssl.SSLContext) -> socket.socket:
    try:
        return context.wrap_socket(sock, server_hostname=url.host)
    except OSError as problem:
        raise network_error(problem, url.label, "connect") from problem
    except ValueError as problem:  # a host name that TLS cannot carry
        raise TransportError(
            f"{url.label} cannot be used with TLS",
            reference="tls-failed",
            found=printable(str(problem)),
        ) from None


@functools.lru_cache(maxsize=16)
def _context(tls: TlsOptions) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for name in tls.ca_files:
        with _file(name, "certificate authorities"):
            context.load_verify_locations(cafile=name)
    if tls.client_cert:
        with _file(tls.client_cert, "client certificate"):
            context.load_cert_chain(tls.client_cert, tls.client_key, password=_no_password)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to type its password")


@contextlib.contextmanager
def _file(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as problem:
        raise ConfigError(
            f"the file of the {what} cannot be used: {printable(name)}",
            reference="bad-certificate-file",
            found=printable(getattr(problem, "strerror", None) or str(problem)),
        ) from None
