"""A blocking HTTP/1.1 client for registries: strict, bounded, without copies, standard library only.

    with request("GET", url, headers=[("Authorization", "Bearer …")], connection_pool=pool) as reply:
        if reply.status != 200:
            raise status_error(reply, "layer sha256:…")
        while count := reply.readinto(buffer):
            …

What is promised: ``Authorization``, ``Cookie`` and client certificates go to the exact origin of ``url`` only; a
redirect never leads from https to http; bodies are never decoded; a body that ends early, drips or stalls is an
error; error texts name hosts, never paths, queries or header values. Used in worker processes (plain sockets) and
from trio through threads.
"""

from __future__ import annotations

import json
import os
import re
import select
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, NoReturn

from bootc_core import __version__, limits
from bootc_core.errors import ContentError, TransportError, UsageError, printable
from bootc_core.net.dial import TlsOptions, dial, proxy_refusal
from bootc_core.net.proxy import Proxy, proxy_for
from bootc_core.net.url import Url, is_loopback, parse_url, resolve, unsafe_target
from bootc_core.net.wire import (
    Connection,
    Head,
    Headers,
    Untouched,
    bad_http,
    parse_chunk_size,
)

__all__ = [
    "Headers",
    "Pool",
    "Response",
    "TlsOptions",
    "content_range",
    "registry_errors",
    "request",
    "retry_after_s",
    "status_error",
]

USER_AGENT: Final = f"bootc/{__version__}"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_IDEMPOTENT: Final = frozenset({"GET", "HEAD"})
_PRIVATE: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
)
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_NAME: Final = re.compile(r"[A-Za-z0-9-]+")
_IDLE_S: Final = 15.0  # servers close idle connections after 15 to 120 seconds
_DRAIN_BYTES: Final = 16 * limits.KIB  # read to keep a connection; beyond it a new one is cheaper
_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")

_Key = tuple[tuple[str, str, int], TlsOptions, Proxy | None]


class Pool:
    """Idle connections for the next request to the same origin with the same TLS options; thread-safe, bounded.

    Args:
        size: connections that are kept at most.
        receive_buffer: bytes that the kernel may receive ahead of the reader; default: as much as it likes.
    """

    def __init__(self, size: int = 16, receive_buffer: int | None = None) -> None:
        self._size = size
        self.receive_buffer = receive_buffer
        self._lock = threading.Lock()
        self._idle: list[tuple[_Key, float, Connection]] = []
        self._closed = False

    def take(self, key: _Key) -> Connection | None:
        """The connection used last for ``key`` that is still open, or None."""
        now = time.monotonic()
        while True:
            with self._lock:
                place = next(
                    (i for i in reversed(range(len(self._idle))) if self._idle[i][0] == key), None
                )
                if place is None:
                    return None
                _, since, connection = self._idle.pop(place)
            if now - since < _IDLE_S and not _readable(connection):
                return connection
            connection.close()

    def put(self, key: _Key, connection: Connection) -> None:
        """Keep ``connection`` for later; the one idle for longest makes room."""
        with self._lock:
            if not self._closed:
                self._idle.append((key, time.monotonic(), connection))
                connection = self._idle.pop(0)[2] if len(self._idle) > self._size else None  # type: ignore[assignment]
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close all idle connections; those in use are closed when they are done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, _, connection in idle:
            connection.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _readable(connection: Connection) -> bool:
    """An idle connection on which something can be read was closed by the server, or is out of step."""
    poll = select.poll()
    poll.register(connection.sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Response:
    """A reply whose body has not been read. A context manager: leaving it gives the connection back or closes it.

    Attributes:
        status: the status code, 200 to 599.
        headers: the header fields.
        url: where the reply came from, after redirects; may hold a signature, so never show it.
        length: of the body in bytes, None if only its end will tell.
        redirects: how many were followed.
    """

    def __init__(
        self,
        connection: Connection,
        head: Head,
        url: Url,
        *,
        bodyless: bool,
        size: int | None,
        release: tuple[Pool, _Key] | None,
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self.url = str(url)
        self.host = url.label
        self.redirects = 0
        self._connection: Connection | None = connection
        self._release = release if head.keep_alive else None
        self._chunked = head.chunked and not bodyless
        self._in_chunk = False  # a chunk's content was read, its line end was not
        self._until_close = False
        self.length: int | None = 0 if bodyless else head.length
        if self.length is None and not self._chunked:
            self._release = None
            self._until_close = True
            if (
                self.status < 400 and size is None
            ):  # of an error reply only the front is of interest
                connection.close()
                raise bad_http(
                    self.host, "a body without a length, whose truncation could not be noticed"
                )
            self._left = -1 if size is None else size
        else:
            self._left = self.length or 0
        if not self._chunked and not self._left:
            self._finish()

    @property
    def received(self) -> int:
        """Body bytes handed out so far."""
        return self._received if self._connection is None else self._connection.received

    _received = 0

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill the front of ``buffer`` with the next bytes of the body; their number, 0 at the end of the body.

        Raises:
            TransportError: the body ends early, stalls, drips or is malformed (``retryable`` tells).
        """
        connection = self._connection
        if connection is None:
            return 0
        view = memoryview(buffer)
        try:
            if self._chunked and not self._left and not self._next_chunk(connection):
                return 0
            if 0 <= self._left < len(view):
                view = view[: self._left]
            count = connection.recv_into(view)
            if not count:
                if self._until_close and self._left < 0:
                    self._finish()
                    return 0
                self._cut_off(connection)
            if self._left > 0:
                self._left -= count
                if not self._left and not self._chunked:
                    self._finish()
        except BaseException:
            self.close()
            raise
        return count

    def _cut_off(self, connection: Connection) -> NoReturn:
        raise connection.cut_off(None if self._chunked else connection.received + self._left)

    def _next_chunk(self, connection: Connection) -> bool:
        if self._in_chunk and connection.read_line():
            raise bad_http(self.host, "a chunk that is longer than its size")
        self._left = parse_chunk_size(connection.read_line(), self.host)
        self._in_chunk = True
        if self._left:
            return True
        for _ in range(limits.HTTP_HEADERS):
            if not connection.read_line():
                self._finish()
                return False
        raise bad_http(self.host, "too many trailers")

    def read(self, limit: int, what: str = "reply") -> bytes:
        """The whole rest of the body, which may have at most ``limit`` bytes.

        Args:
            limit: in bytes.
            what: names the document in the error.

        Raises:
            ContentError: ``too-large`` (LIM).
            TransportError: as ``readinto``.
        """
        if (self.length or 0) <= limit:
            data = self.read_front(limit + 1)
            if len(data) <= limit:
                return data
        found = f"{self.length} bytes" if self.length else "more"
        self.close()
        raise ContentError(
            f"{what} from {self.host} is too large",
            reference="too-large",
            expected=f"at most {limit} bytes",
            found=found,
            catalogue="LIM",
        )

    def read_front(self, limit: int) -> bytes:
        """At most ``limit`` bytes of the rest of the body; what follows is not looked at."""
        data = bytearray()
        piece = bytearray(min(limit, limits.CHUNK_BYTES))
        while len(data) < limit:
            count = self.readinto(memoryview(piece)[: limit - len(data)])
            if not count:
                break
            data += memoryview(piece)[:count]
        return bytes(data)

    def _finish(self) -> None:
        """The body is complete: the connection is free."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._received = connection.received
        if self._release and connection.idle:
            pool, key = self._release
            pool.put(key, connection)
        else:
            connection.close()

    def close(self) -> None:
        """Give up what was not read; never raises."""
        if self._connection is not None:
            self._received = self._connection.received
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def request(
    method: str,
    url: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    tls: TlsOptions | None = None,
    timeout_s: float = limits.READ_TIMEOUT_S,
    max_redirects: int = limits.REDIRECTS,
    connection_pool: Pool | None = None,
    size: int | None = None,
    sent_by: Url | None = None,
) -> Response:
    """Send a request and return the reply, its body unread; redirects of GET and HEAD are followed.

    Args:
        method: ``GET``, ``HEAD`` or ``POST``.
        url: absolute, http or https.
        headers: further header fields; ``Authorization`` and ``Cookie`` stay with this URL's origin.
        body: for POST.
        tls: how to check the server; default: system trust.
        timeout_s: silence on the connection, and time for a whole head; connecting has its own bound.
        max_redirects: more are an error; 0: a redirect is an error.
        connection_pool: keeps connections open for the next request.
        size: what the caller knows of the body's length in bytes; only then may the body end with the connection.
        sent_by: the server that named ``url``, if it comes from one: see ``dial``.

    Raises:
        TransportError: NET, AUTH; ``retryable`` says whether the same request may succeed later.
        ConfigError: a certificate file or a proxy variable cannot be used.
    """
    target = parse_url(url)
    tls = tls or TlsOptions()
    fields = _checked(headers)
    for followed in range(max_redirects + 1):
        reply = _exchange(
            method, target, fields, body, tls, timeout_s, connection_pool, size, sent_by
        )
        reply.redirects = followed
        if reply.status not in _REDIRECTS:
            return reply
        with reply:
            following = _redirected(reply, target, method)
            if reply.length is not None and reply.length <= _DRAIN_BYTES:
                reply.read_front(_DRAIN_BYTES)
        if following.origin != target.origin:
            fields = [field for field in fields if field[0].lower() not in _PRIVATE]
            tls = TlsOptions(verify=tls.verify, ca_files=tls.ca_files)
            sent_by = sent_by or target
        target = following
    raise TransportError(
        f"{parse_url(url).label} redirects "
        + (f"more than {max_redirects} times" if max_redirects else "where it must not"),
        reference="redirect-loop" if max_redirects else "redirect-refused",
        found=f"the last redirect leads to {target.label}",
    )


def _checked(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    fields = list(headers)
    for name, value in fields:
        if not _NAME.fullmatch(name) or name.lower() in _OURS or not _VALUE.fullmatch(value):
            raise UsageError(
                f"the header {printable(name, 60)!r} cannot be sent", reference="bad-header"
            )  # the value may be a secret
    return fields


def _redirected(reply: Response, base: Url, method: str) -> Url:
    locations = set(reply.headers.all("location"))
    if method not in _IDEMPOTENT or len(locations) != 1:
        raise TransportError(
            f"{base.label} redirects, but not to one place"
            if method in _IDEMPOTENT
            else f"{base.label} redirects a {method} request",
            reference="redirect-refused",
            found=f"HTTP {reply.status}",
        )
    url = resolve(base, locations.pop())
    reason = unsafe_target(url.host, allow_loopback=is_loopback(base.host))
    if base.scheme == "https" and url.scheme == "http":
        reason = "a place without TLS"
    if reason:
        raise TransportError(
            f"{base.label} redirects to {reason}", reference="redirect-refused", found=url.label
        )
    return url


def _exchange(
    method: str,
    url: Url,
    fields: list[tuple[str, str]],
    body: bytes | None,
    tls: TlsOptions,
    timeout_s: float,
    pool: Pool | None,
    size: int | None,
    sent_by: Url | None,
) -> Response:
    proxy = proxy_for(url, os.environ)
    key: _Key = (url.origin, tls, proxy)
    message = _encode(method, url, fields, body, proxy, keep=pool is not None)
    used = pool.take(key) if pool and method in _IDEMPOTENT else None
    if used is not None:
        try:
            return _talk(used, message, method, url, timeout_s, size, pool, key)
        except Untouched:
            pass  # the server closed it while it was idle: the request was not seen
    connection = dial(url, tls, proxy, timeout_s, pool.receive_buffer if pool else None, sent_by)
    return _talk(connection, message, method, url, timeout_s, size, pool, key)


def _talk(
    connection: Connection,
    message: bytes,
    method: str,
    url: Url,
    timeout_s: float,
    size: int | None,
    pool: Pool | None,
    key: _Key,
) -> Response:
    try:
        connection.begin(timeout_s)
        connection.send(message)
        head = connection.read_head()
        connection.begin(timeout_s)
    except BaseException:
        connection.close()
        raise
    if head.status == 407 and key[2]:
        connection.close()
        raise proxy_refusal(key[2])
    return Response(
        connection,
        head,
        url,
        bodyless=method == "HEAD" or head.status in {204, 304},
        size=size,
        release=(pool, key) if pool else None,
    )


def _encode(
    method: str,
    url: Url,
    fields: list[tuple[str, str]],
    body: bytes | None,
    proxy: Proxy | None,
    *,
    keep: bool,
) -> bytes:
    forward = proxy is not None and url.scheme == "http"
    given = {name.lower() for name, _ in fields}
    lines = [
        f"{method} {url if forward else url.target} HTTP/1.1",
        f"Host: {url.authority}",
        "Accept-Encoding: identity",
        f"Connection: {'keep-alive' if keep else 'close'}",
    ]
    if "user-agent" not in given:
        lines.append(f"User-Agent: {USER_AGENT}")
    if "accept" not in given:
        lines.append("Accept: */*")
    if forward and proxy and proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")


def content_range(reply: Response) -> tuple[int, int, int] | None:
    """First and last byte and total of a 206 reply; None unless there is exactly one well-formed ``Content-Range``."""
    values = reply.headers.all("content-range")
    match = _RANGE.fullmatch(values[0]) if len(values) == 1 else None
    if not match:
        return None
    first, last, total = (int(text) for text in match.groups())
    return (first, last, total) if first <= last < total else None


def retry_after_s(headers: Headers) -> float | None:
    """Seconds to wait by ``Retry-After`` (a number or a date), at most ``limits.RETRY_WAIT_MAX_S``; None if unreadable."""
    value = headers.get("retry-after").strip()
    if re.fullmatch("[0-9]+", value, re.ASCII):
        wait = float(value[:10]) if len(value) <= 10 else limits.RETRY_WAIT_MAX_S
    elif value:
        from email.utils import parsedate_to_datetime

        try:
            wait = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError):
            return None
    else:
        return None
    return min(max(0.0, wait), limits.RETRY_WAIT_MAX_S)


def registry_errors(body: bytes) -> list[tuple[str, str]]:
    """Codes and messages of a registry's error document; empty if ``body`` is anything else. Both are foreign text."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return []
    items = value.get("errors") if isinstance(value, dict) else None
    if not isinstance(items, list):
        return []
    return [
        (str(item.get("code") or ""), str(item.get("message") or ""))
        for item in items[:8]
        if isinstance(item, dict)
    ]


def status_error(reply: Response, what: str, hint: str | None = None) -> TransportError:
    """The error for a reply with an unwanted status; reads (a bounded part of) its body and closes it.

    ==========  =========================  ==========
    status      reference                  catalogue
    ==========  =========================  ==========
    401         ``unauthorized``           AUTH
    403         ``denied``                 AUTH
    404, 410    ``not-found``              NOTFOUND
    429         ``rate-limited``           NET, retryable
    408, 5xx    ``server-error``           NET, retryable (not 501, 505)
    other       ``unexpected-status``      NET
    ==========  =========================  ==========

    Args:
        reply: the reply.
        what: names the thing that was asked for, e.g. ``layer sha256:…``.
        hint: replaces the usual hint.
    """
    try:
        body = reply.read_front(limits.ERROR_BODY_BYTES)
    except TransportError:
        body = b""  # the status says enough
    reply.close()
    status, host = reply.status, reply.host
    told = "; ".join(": ".join(filter(None, pair)) for pair in registry_errors(body))
    if not told and body.lstrip()[:1] == b"<":
        told = "a web page, not a registry's answer"
    found = f"HTTP {status}" + (f" ({printable(told)})" if told else "")
    reference, catalogue, message = "unexpected-status", "NET", f"{host} does not deliver {what}"
    if status == 401:
        reference, catalogue, message = (
            "unauthorized",
            "AUTH",
            f"{host} wants credentials for {what}",
        )
    elif status == 403:
        reference, catalogue, message = "denied", "AUTH", f"{host} denies access to {what}"
    elif status in {404, 410}:
        reference, catalogue, message = "not-found", "NOTFOUND", f"{host} does not have {what}"
    elif status == 429:
        reference, message = "rate-limited", f"{host} limits how often {what} may be asked for"
        hint = hint or "wait, or authenticate: most registries allow more to known users"
    elif status >= 500 or status == 408:
        reference, message = "server-error", f"{host} has a problem of its own with {what}"
    return TransportError(
        message,
        reference=reference,
        found=found,
        hint=hint,
        catalogue=catalogue,
        retryable=status in _RETRYABLE,
        retry_after_s=retry_after_s(reply.headers) if status in _RETRYABLE else None,
    )
