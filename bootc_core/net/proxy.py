"""Which proxy a request goes through, by the rules that Go programs (podman, skopeo) follow.

``HTTPS_PROXY`` or ``https_proxy`` for https, ``HTTP_PROXY`` or ``http_proxy`` for http, ``NO_PROXY`` or
``no_proxy`` for exceptions; ``ALL_PROXY`` is ignored. Loopback is never proxied. A ``NO_PROXY`` list holds ``*``,
addresses, networks, ``domain`` (with its subdomains) and ``.domain`` (subdomains only), each with an optional port;
nothing is looked up in DNS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from bootc_core.errors import ConfigError, TransportError, printable
from bootc_core.net.url import Url, is_loopback, parse_url


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; ``authorization`` is the value of ``Proxy-Authorization`` or empty."""

    url: Url
    authorization: str = field(default="", repr=False)


def proxy_for(url: Url, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy that ``environ`` names for ``url``, or None for a direct connection.

    Raises:
        ConfigError: ``bad-proxy``: the variable cannot be used, or names a kind of proxy that is not supported.
    """
    if is_loopback(url.host) or (url.scheme == "http" and environ.get("REQUEST_METHOD")):
        return None  # REQUEST_METHOD: under CGI a client could set HTTP_PROXY through a header "Proxy:"
    upper = f"{url.scheme.upper()}_PROXY"
    variable = upper if environ.get(upper) else upper.lower()
    value = environ.get(variable, "")
    if not value or _excepted(url, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    return _parse(value, variable)


def _parse(value: str, variable: str) -> Proxy:
    text = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(text)
        url = parse_url(f"http://{parts.netloc.rpartition('@')[2]}/")
    except (ValueError, TransportError):  # the value may hold a password and must not be shown
        raise ConfigError(
            f"{variable} is not a proxy address", reference="bad-proxy", expected="http://host:port"
        ) from None
    if parts.scheme != "http":
        raise ConfigError(
            f"{variable}: a proxy of this kind is not supported",
            reference="bad-proxy",
            expected="http://host:port",
            found=f"{printable(parts.scheme, 20)}://…",
        )
    if not parts.username:
        return Proxy(url)
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return Proxy(url, "Basic " + base64.b64encode(pair).decode())


def _excepted(url: Url, exceptions: str) -> bool:
    for item in exceptions.lower().split(","):
        name, port = _split_port(item.strip())
        if name == "*":
            return True
        if not name or (port and port != str(url.port)):
            continue
        if "/" in name:
            if _in_network(url.host, name):
                return True
        elif name.startswith((".", "*.")):
            if url.host.endswith(name.removeprefix("*")):
                return True
        elif url.host == name or url.host.endswith("." + name):
            return True
    return False


def _split_port(item: str) -> tuple[str, str]:
    if item.startswith("["):
        name, _, port = item[1:].partition("]")
        return name, port.removeprefix(":")
    if item.count(":") == 1:
        name, _, port = item.partition(":")
        return name, port
    return item, ""


def _in_network(host: str, network: str) -> bool:
    import ipaddress  # only where somebody wrote a network: 5 ms

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
