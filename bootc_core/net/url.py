"""URLs as the HTTP client takes them: absolute, ASCII, ``http`` or ``https``, without user names.

    https://registry.example:5000/v2/x/manifests/1
    scheme  host             port target            label = host as a person writes it, port only if unusual

An origin is scheme, host and port (RFC 6454); credentials stay within one.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

from bootc_core.errors import TransportError, printable

_PORTS: Final = {"http": 80, "https": 443}
_URL_BYTES: Final = 8192  # pre-signed URLs of object stores reach 3000
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9._-]{0,253})")


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed URL. ``host`` is lower case and without brackets; ``target`` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two URLs must share to share credentials."""
        return (self.scheme, self.host, self.port)

    @property
    def authority(self) -> str:
        """The ``Host`` header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def label(self) -> str:
        """For messages: host and unusual port; never path or query, which may hold a signature."""
        return self.authority

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> Url:
    """The URL in ``text``; a fragment is dropped.

    Raises:
        TransportError: ``bad-url``; the text itself is not shown, since it may hold a secret.
    """
    try:
        return _parse(text)
    except ValueError as problem:
        reason = str(problem)
    except OSError:
        reason = "a malformed IPv6 address"
    raise TransportError("a URL cannot be used", reference="bad-url", found=reason)


def _parse(text: str) -> Url:
    if not _VISIBLE.fullmatch(text) or len(text) > _URL_BYTES:
        raise ValueError("characters that do not belong into a URL, or too long")
    parts = urlsplit(text)
    scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    if scheme not in _PORTS:
        raise ValueError(f"the scheme {printable(scheme, 20)!r} is not http or https")
    if "@" in parts.netloc:
        raise ValueError("a user name in the URL")
    if ":" in host:
        socket.inet_pton(socket.AF_INET6, host)  # refuses zone identifiers too
    elif not _NAME.fullmatch(host):
        raise ValueError("no usable host name")
    if port == 0:
        raise ValueError("port 0")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(scheme, host, port or _PORTS[scheme], target)


def resolve(base: Url, location: str) -> Url:
    """``location`` of a redirect, absolute or relative to ``base``.

    Raises:
        TransportError: ``bad-url``.
    """
    if not _VISIBLE.fullmatch(location):  # urljoin would silently drop line breaks
        raise TransportError(
            f"{base.label} redirects to something that is not a URL", reference="bad-url"
        )
    try:
        return parse_url(urljoin(str(base), location))
    except TransportError as problem:
        problem.message = f"{base.label} redirects to a URL that cannot be used"
        raise


def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or a literal loopback address; names are not looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _literal(host)
    return address is not None and (address == b"\0" * 15 + b"\1" or _v4(address)[:1] == b"\x7f")


def unsafe_target(host: str, *, allow_loopback: bool) -> str | None:
    """Why a server must not send us to ``host``: it would turn us against our own network; None if it may.

    Link-local, metadata and unspecified addresses are refused, loopback unless ``allow_loopback``. Other private
    addresses are legal. Literal addresses, in every spelling that the resolver takes; names are not looked up.
    """
    if is_loopback(host):
        return None if allow_loopback else "a loopback address"
    if host == "metadata.google.internal":
        return "a metadata service"
    address = _literal(host)
    if address is None:
        return None
    v4 = _v4(address)
    if v4[:2] == b"\xa9\xfe" or (address[0] == 0xFE and address[1] & 0xC0 == 0x80):
        return "a link-local address"
    if v4 == b"\x64\x64\x64\xc8" or address == socket.inet_pton(socket.AF_INET6, "fd00:ec2::254"):
        return "a metadata service"
    if v4[:1] == b"\0" or not any(address):
        return "an unspecified address"
    return None


def _literal(host: str) -> bytes | None:
    """The 16 bytes of a literal address (IPv4 as ``::ffff:a.b.c.d``), None for a name."""
    try:
        if ":" in host:
            return socket.inet_pton(socket.AF_INET6, host)
        return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(host.removesuffix("."))
    except OSError:
        return None


def _v4(address: bytes) -> bytes:
    """The IPv4 part of a mapped address, empty for a real IPv6 one."""
    return address[12:] if address[:12] == b"\0" * 10 + b"\xff\xff" else b""
