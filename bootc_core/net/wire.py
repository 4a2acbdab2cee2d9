"""Reading HTTP/1.1 from a socket: strict and bounded, so that what two parsers could read differently is refused.

    status-line CRLF *(name ":" value CRLF) CRLF body          RFC 9112

Refused: bare CR or LF, folded lines, blanks around names, differing ``Content-Length``, ``Content-Length`` with
``Transfer-Encoding``, encodings other than ``chunked``, chunk sizes that are not plain hexadecimal, heads beyond the bounds.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bootc_core import limits
from bootc_core.errors import TransportError, printable
from bootc_core.net.faults import network_error

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*"
)
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_READ_AHEAD: Final = 64 * limits.KIB
_INTERIM: Final = 8  # 1xx replies in front of the real one


def bad_http(label: str, found: str) -> TransportError:
    """The error for a reply that is not proper HTTP."""
    return TransportError(
        f"{label} sends a malformed HTTP reply",
        reference="bad-http",
        found=printable(found),
        hint="something between here and the registry may be broken; try without a proxy",
    )


class Headers:
    """Header fields, looked up without regard to case."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Sequence[tuple[str, str]] = ()) -> None:
        self._fields = [(name.lower(), value) for name, value in fields]

    def get(self, name: str, default: str = "") -> str:
        """The first field of that name, or ``default``."""
        name = name.lower()
        return next((value for key, value in self._fields if key == name), default)

    def all(self, name: str) -> list[str]:
        """All fields of that name, in order."""
        name = name.lower()
        return [value for key, value in self._fields if key == name]

    def __contains__(self, name: str) -> bool:
        return any(key == name.lower() for key, _ in self._fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)


class Connection:
    """A socket, the bytes that were read too early, and the clock that ends a connection which is silent or drips.

    Not thread-safe: one request at a time.
    """

    __slots__ = (
        "_arrived",
        "_at",
        "_data",
        "_waited_s",
        "_window_s",
        "label",
        "received",
        "sock",
        "timeout_s",
    )

    def __init__(self, sock: socket.socket, label: str, timeout_s: float) -> None:
        self.sock = sock
        self.label = label
        self._data = b""  # read too early ...
        self._at = 0  # ... and used up to here
        self.begin(timeout_s)

    def begin(self, timeout_s: float) -> None:
        """Start the clock of a new request: silence longer than ``timeout_s`` ends it."""
        self.timeout_s = timeout_s
        self._window_s = min(limits.SLOW_WINDOW_S, timeout_s)
        self._waited_s = 0.0
        self._arrived = 0
        self.received = 0

    @property
    def idle(self) -> bool:
        """Nothing unread is left over, so the next reply will belong to the next request."""
        return self._at == len(self._data)

    def close(self) -> None:
        """Close the socket; never raises."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        try:
            self.sock.settimeout(self.timeout_s)
            self.sock.sendall(data)
        except OSError as problem:
            raise _with_touch(network_error(problem, self.label, "send"), b"") from problem

    def recv_into(self, view: memoryview) -> int:
        """Fill the front of ``view`` with the next bytes of the body; 0 when the server closed.

        Raises:
            TransportError: silence, less than ``limits.SLOW_BYTES_PER_S`` over the window, or a broken connection.
        """
        early = len(self._data) - self._at
        if early:
            count = min(len(view), early)
            view[:count] = self._data[self._at : self._at + count]
            self._at += count
        else:
            count = self._recv(view)
        self.received += count
        return count

    def _recv(self, view: memoryview) -> int:
        started = time.monotonic()
        try:
            count = self.sock.recv_into(view)
        except OSError as problem:
            raise network_error(problem, self.label, "read", self.received) from problem
        self._waited_s += time.monotonic() - started
        self._arrived += count
        if self._waited_s >= self._window_s:
            if count and self._arrived < limits.SLOW_BYTES_PER_S * self._waited_s:
                raise TransportError(
                    f"{self.label} delivers too slowly",
                    reference="too-slow",
                    expected=f"at least {limits.SLOW_BYTES_PER_S} bytes a second",
                    found=f"{self._arrived} bytes in {self._waited_s:.1f} seconds",
                    retryable=True,
                )
            self._waited_s = 0.0
            self._arrived = 0
        return count

    def read_line(self) -> bytes:
        """The next line of the chunked framing, without its line end."""
        while (end := self._data.find(b"\n", self._at, self._at + limits.HTTP_LINE_BYTES)) < 0:
            if len(self._data) - self._at >= limits.HTTP_LINE_BYTES:
                raise bad_http(self.label, "an endless chunk line")
            scratch = bytearray(_READ_AHEAD)
            count = self._recv(memoryview(scratch))
            if not count:
                raise self.cut_off()
            self._data = self._data[self._at :] + scratch[:count]
            self._at = 0
        line = self._data[self._at : end]
        self._at = end + 1
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            raise bad_http(self.label, "a chunk line with a bare line feed or carriage return")
        return line[:-1]

    def cut_off(self, total: int | None = None) -> TransportError:
        """The error for a body that ends too early."""
        of = f" of {total}" if total is not None else ""
        return TransportError(
            f"{self.label} broke the connection off after {self.received}{of} bytes",
            reference="connection-reset",
            retryable=True,
        )

    def read_head(self) -> Head:
        """The next reply's status and headers; interim replies (1xx) are skipped.

        Raises:
            TransportError: ``bad-http``, ``timeout``, or ``connection-reset`` (as ``Untouched`` if no byte had come).
        """
        deadline = time.monotonic() + self.timeout_s
        for _ in range(_INTERIM):
            head = parse_head(self._read_head_bytes(deadline), self.label)
            if head.status >= 200:
                return head
            if head.status == 101:
                break
        raise bad_http(self.label, "interim replies only")

    def _read_head_bytes(self, deadline: float) -> bytes:
        data = self._data[self._at :]
        self._data, self._at = b"", 0
        searched = 0
        while True:
            if not b"HTTP/".startswith(data[:5]):
                raise bad_http(self.label, f"not HTTP: {printable(data[:32])}")
            newline = data.find(b"\n")
            if newline >= 0 and data[newline - 1] != 0x0D:
                raise bad_http(self.label, "a bare line feed")  # its end would never be found
            end = data.find(b"\r\n\r\n", searched, limits.HTTP_HEAD_BYTES)
            if end >= 0:
                self._data = data[end + 4 :]
                return data[:end]
            if len(data) >= limits.HTTP_HEAD_BYTES:
                raise bad_http(self.label, f"headers of more than {limits.HTTP_HEAD_BYTES} bytes")
            searched = max(0, len(data) - 3)
            try:
                self.sock.settimeout(max(0.001, deadline - time.monotonic()))
                piece = self.sock.recv(_READ_AHEAD)
                self.sock.settimeout(self.timeout_s)
            except OSError as problem:
                raise _with_touch(network_error(problem, self.label, "read"), data) from problem
            if not piece:
                raise _with_touch(self.cut_off(), data)
            data += piece


class Untouched(TransportError):
    """The connection ended before the first byte of a reply: on a connection that was used before, try a new one."""


def _with_touch(error: TransportError, data: bytes) -> TransportError:
    if data or error.reference == "timeout":
        return error
    return Untouched(
        error.message.replace(" after 0 bytes", " without an answer"),
        reference=error.reference,
        found=error.found,
        hint=error.hint,
        retryable=error.retryable,
    )


class Head:
    """Status and headers of a reply, and how its body ends.

    Attributes:
        length: of the body in bytes by ``Content-Length``, or None.
        chunked: the body is chunked.
        keep_alive: the connection may be used again after the body.
    """

    __slots__ = ("chunked", "headers", "keep_alive", "length", "status")

    def __init__(self, status: int, headers: Headers, minor: int, label: str) -> None:
        self.status = status
        self.headers = headers
        self.length = _content_length(headers, label)
        encodings = headers.all("transfer-encoding")
        self.chunked = bool(encodings)
        if self.chunked:
            if [value.lower() for value in encodings] != ["chunked"] or minor == 0:
                raise bad_http(label, "an unknown transfer encoding")
            if self.length is not None:
                raise bad_http(label, "a length and a chunked body at once")
        options = {
            item.strip().lower() for value in headers.all("connection") for item in value.split(",")
        }
        self.keep_alive = "close" not in options and (minor == 1 or "keep-alive" in options)


def _content_length(headers: Headers, label: str) -> int | None:
    values = set(headers.all("content-length"))
    if not values:
        return None
    if len(values) > 1:
        raise bad_http(label, "two different lengths")
    (value,) = values
    if not _LENGTH.fullmatch(value):
        raise bad_http(label, f"a length that is not a number: {printable(value, 40)}")
    return int(value)


def parse_head(data: bytes, label: str) -> Head:
    """The head in ``data`` (without the empty line that ends it).

    Raises:
        TransportError: ``bad-http``.
    """
    lines = data.split(b"\r\n")
    status = _STATUS.fullmatch(lines[0])
    if not status:
        raise bad_http(label, f"a bad status line: {printable(lines[0], 60)}")
    if len(lines) - 1 > limits.HTTP_HEADERS:
        raise bad_http(label, f"more than {limits.HTTP_HEADERS} header fields")
    fields = []
    for line in lines[1:]:
        field = _HEADER.fullmatch(line)
        if not field or len(line) > limits.HTTP_LINE_BYTES:
            what = "a folded header" if line[:1] in b" \t" else "a bad header line"
            raise bad_http(label, f"{what}: {printable(line.partition(b':')[0], 60)}")
        fields.append((field[1].decode("ascii"), field[2].decode("latin-1")))
    return Head(int(status[2]), Headers(fields), int(status[1]), label)


def parse_chunk_size(line: bytes, label: str) -> int:
    """The size in a chunk's first line; extensions are ignored.

    Raises:
        TransportError: ``bad-http``.
    """
    size = _CHUNK.fullmatch(line)
    if not size:
        raise bad_http(label, f"a bad chunk size: {printable(line, 40)}")
    return int(size[1], 16)
