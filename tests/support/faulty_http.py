"""An HTTP server on loopback that says exactly what a test tells it to, byte for byte, and remembers what it was asked.

def lie(peer, asked):
    peer.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\nabc")
    peer.reset()

with FaultyServer(lie) as server:
    request("GET", server.url("/x"))
    assert server.requests[0].header("host") == server.authority
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Gone(Exception):
    """The peer left, or the server is stopping."""


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self._stopping = stopping
        self.open = True

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError:
            raise Gone from None

    def reply(self, status: int = 200, body: bytes = b"", /, **headers: str) -> None:
        """An honest reply; ``content_type="x"`` becomes ``Content-Type: x``."""
        fields = {"content_length": str(len(body)), **headers}
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Odd')}"]
        lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in fields.items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def drip(self, data: bytes, pause_s: float) -> None:
        """One byte at a time."""
        for number in range(len(data)):
            self.send(data[number : number + 1])
            if self._stopping.wait(pause_s):
                raise Gone

    def stall(self) -> None:
        """Nothing more, until the server is stopped or the peer has left."""
        with contextlib.suppress(OSError):
            self.sock.settimeout(30)
            self.sock.recv(1)
        raise Gone

    def reset(self) -> None:
        """Break the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.open = False
        self._file.close()
        self.sock.close()

    def read_request(self) -> Asked | None:
        try:
            if self._file.peek(1)[:1] == b"\x16":  # TLS, and we do not speak it
                return None
            line = self._file.readline().decode("latin-1")
            if not line:
                return None
            method, target, _ = line.split(" ", 2)
            headers = []
            while (line := self._file.readline().decode("latin-1").rstrip("\r\n")) != "":
                name, _, value = line.partition(":")
                headers.append((name, value.strip()))
            length = next(
                (int(value) for name, value in headers if name.lower() == "content-length"), 0
            )
            return Asked(method, target, tuple(headers), self._file.read(length))
        except (OSError, ValueError):
            return None


Handler = Callable[[Peer, Asked], None]


@dataclass
class FaultyServer:
    """Calls ``handler`` for each request, connections in threads of their own."""

    handler: Handler
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    requests: list[Asked] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> FaultyServer:
        self._stopping = threading.Event()
        self._peers: list[Peer] = []
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, target: str = "/") -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{target}"

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        if self.tls:
            try:
                sock = self.tls.wrap_socket(sock, server_side=True)
            except (OSError, ssl.SSLError):
                sock.close()
                return
        peer = Peer(sock, self._stopping)
        self._peers.append(peer)
        self.connections += 1
        try:
            while peer.open and (asked := peer.read_request()):
                self.requests.append(asked)
                self.handler(peer, asked)
        except Gone:
            pass
        finally:
            with contextlib.suppress(OSError):
                peer.close()


def error_body(code: str, message: str) -> bytes:
    """A registry's error document."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()
