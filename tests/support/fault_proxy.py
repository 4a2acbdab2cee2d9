"""A proxy in front of a registry that breaks what passes in the ways of real networks, counts bytes, and never lies about digests.

with FaultProxy(registry.authority, Faults(seed=1)) as proxy:
    pull(f"docker://{proxy.authority}/acme/os:1")
    proxy.sent["sha256:…"]      # body bytes of the blob that went out, over all requests
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from support.faulty_http import Asked, FaultyServer, Gone, Peer

PIECE = 32 * 1024
_PASSED = ("content-type", "docker-content-digest", "docker-distribution-api-version")


@dataclass
class Faults:
    """Shares of requests (0 to 1) that meet each fault, decided by the seed and the number of the request."""

    seed: int = 0
    errors: float = 0.20
    resets: float = 0.05
    stalls: float = 0.10
    ranges: float = 0.40  # of the requests that name one
    redirects: float = 0.20
    stall_s: float = 1.0
    pace_bytes_per_s: float | None = None


@dataclass
class FaultProxy:
    """Two origins on loopback, the registry's and a blob store's that redirects lead to."""

    upstream: str
    faults: Faults
    authorization: str | None = None
    on_bytes: Callable[[int], None] | None = None
    sent: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def __enter__(self) -> FaultProxy:
        self._lock = threading.Lock()
        self._number = 0
        self.total = 0
        self._store = FaultyServer(self._serve_store).__enter__()
        self._front = FaultyServer(self._serve).__enter__()
        self.authority = self._front.authority
        return self

    def __exit__(self, *_: object) -> None:
        self._front.__exit__()
        self._store.__exit__()

    def _dice(self) -> random.Random:
        with self._lock:
            self._number += 1
            return random.Random(f"{self.faults.seed}/{self._number}")

    def _serve(self, peer: Peer, asked: Asked) -> None:
        dice, faults = self._dice(), self.faults
        self.seen["requests"] += 1
        if self.authorization and asked.header("authorization") != self.authorization:
            peer.reply(401, www_authenticate='Basic realm="test"')
            return
        if dice.random() < faults.errors:
            self.seen["errors"] += 1
            peer.reply(dice.choice((500, 502, 503, 504)), b"try later")
            return
        if "/blobs/" in asked.path and asked.method == "GET" and dice.random() < faults.redirects:
            self.seen["redirects"] += 1
            location = self._store.url(f"{asked.path}?signature=canary-{dice.random()}")
            peer.reply(dice.choice((302, 307, 308)), location=location)
            return
        self._forward(peer, asked, dice)

    def _serve_store(self, peer: Peer, asked: Asked) -> None:
        for name in ("authorization", "cookie"):
            if asked.header(name):
                self.leaks.append(f"{name} at {asked.path}")
        self._forward(peer, asked, self._dice())

    def _forward(self, peer: Peer, asked: Asked, dice: random.Random) -> None:
        faults = self.faults
        wanted = asked.header("range")
        headers = {"Accept": asked.header("accept") or "*/*"}
        status, override = None, ""
        if wanted and dice.random() < faults.ranges:
            self.seen["wrong ranges"] += 1
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            match dice.randrange(3):
                case 0:
                    peer.reply(416)
                    return
                case 1:  # another range than the one that was asked for
                    wanted = f"bytes={max(0, start - 7)}-"
                case _:
                    override = f"bytes {start + 1}-{start + 2}/{start + 3}"
        if wanted:
            headers["Range"] = wanted
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            connection.request(asked.method, asked.target.partition("?")[0], headers=headers)
            reply = connection.getresponse()
            status = reply.status
            lines = [f"HTTP/1.1 {status} Odd", f"Content-Length: {reply.headers['content-length']}"]
            lines += [f"{name}: {reply.headers[name]}" for name in _PASSED if reply.headers[name]]
            if override or reply.headers["content-range"]:
                lines.append(f"Content-Range: {override or reply.headers['content-range']}")
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
            peer.send("\r\n".join([*lines, "", ""]).encode())
            if asked.method == "HEAD":
                return
            length = int(reply.headers["content-length"])
            digest = asked.path.rpartition("/")[2] if "/blobs/" in asked.path else ""
            cut = dice.randrange(length + 1) if dice.random() < faults.resets else None
            pause = dice.randrange(length + 1) if dice.random() < faults.stalls else None
            self._pass_on(peer, reply, digest, cut, pause)
        finally:
            connection.close()

    def _pass_on(
        self,
        peer: Peer,
        reply: http.client.HTTPResponse,
        digest: str,
        cut: int | None,
        pause: int | None,
    ) -> None:
        done = 0
        while data := reply.read(PIECE):
            if cut is not None and done + len(data) >= cut:
                self._send(peer, data[: cut - done], digest)
                self.seen["resets"] += 1
                peer.reset()
                raise Gone
            if pause is not None and done + len(data) >= pause:
                self.seen["stalls"] += 1
                pause = None
                time.sleep(self.faults.stall_s)
            self._send(peer, data, digest)
            done += len(data)
            if self.faults.pace_bytes_per_s:
                time.sleep(len(data) / self.faults.pace_bytes_per_s)

    def _send(self, peer: Peer, data: bytes, digest: str) -> None:
        peer.send(data)
        with self._lock:
            if digest:
                self.sent[digest] += len(data)
                self.total += len(data)
            total = self.total
        if digest and self.on_bytes:
            self.on_bytes(total)
