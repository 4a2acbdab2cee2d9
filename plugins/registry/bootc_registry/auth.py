"""Answering a registry's challenge: nothing, Basic, or a bearer token from its token server (Docker token specification).

    request ──401, WWW-Authenticate──▶ challenge ──Basic──▶ user and password, if there are any
                                           └──Bearer──▶ GET realm?service=…&scope=repository:NAME:pull   (Basic, or anonymous)
                                                        POST realm  grant_type=refresh_token             (identity token)

The realm comes from the registry, so it must not steal credentials or reach into our own network: https (unless the registry
itself is spoken to in the clear), no user name, no link-local, metadata or loopback address, no redirects.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from bootc_core import limits
from bootc_core.errors import TransportError, printable
from bootc_core.models.base import parse_json
from bootc_core.net.dial import TlsOptions
from bootc_core.net.http import Response, request, status_error
from bootc_core.net.url import Url, is_loopback, parse_url, unsafe_target
from bootc_core.net.wire import Headers
from bootc_registry.credentials import Credentials

_WORD: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]"
_CHALLENGE: Final = re.compile(rf"\s*({_WORD}+)(?:\s+|\s*$)")
_PARAMETER: Final = re.compile(rf'\s*({_WORD}+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_SCOPE: Final = re.compile(r"repository(?:\([a-z]+\))?:[A-Za-z0-9._:/-]{1,300}:pull")
_VALUE: Final = re.compile(r"[\x21-\x7e]{1,16384}")
_LIFETIME_S: Final = 60.0  # the specification's default and lower bound
_MARGIN_S: Final = 10.0  # a token is renewed this long before its end
_CLIENT: Final = "bootc"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a registry wants to be convinced: ``basic`` or ``bearer``, parameters by lower-case name."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Headers) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` fields, in order; what cannot be read ends a field."""
    found = []
    for value in headers.all("www-authenticate"):
        rest = value
        while match := _CHALLENGE.match(rest):
            rest = rest[match.end() :]
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(rest):
                name, quoted, plain = parameter.groups()
                text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters.setdefault(name.lower(), text)
                rest = rest[parameter.end() :]
            found.append(Challenge(match[1].lower(), parameters))
    return found


class Authenticator:
    """The credentials and the current token for one repository of one registry; thread-safe.

    Args:
        base: the registry.
        repository: its path, for the scope.
        credentials: None: anonymous.
        tls_for: TLS options for a token server.
        timeout_s: silence of the token server.
    """

    def __init__(
        self,
        base: Url,
        repository: str,
        credentials: Credentials | None,
        tls_for: Callable[[Url], TlsOptions],
        timeout_s: float,
    ) -> None:
        self._base = base
        self._credentials = credentials
        self._tls_for = tls_for
        self._timeout_s = timeout_s
        self._scopes = [f"repository:{repository}:pull"]
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._authorization = ""
        self._renew_at = float("inf")

    @property
    def anonymous(self) -> bool:
        """There are no credentials for this registry."""
        return self._credentials is None

    def headers(self) -> list[tuple[str, str]]:
        """The header to send now; a token that is about to end is renewed first.

        Raises:
            TransportError: the token server does not deliver.
        """
        with self._lock:
            if self._challenge is not None and time.monotonic() >= self._renew_at:
                self._fetch_token(self._challenge)
            return [("Authorization", self._authorization)] if self._authorization else []

    def answer(self, reply: Response, sent: list[tuple[str, str]]) -> bool:
        """Take in a 401. True: a request with ``headers()`` is worth another try.

        Args:
            reply: the refusal.
            sent: what ``headers()`` had said for it.

        Raises:
            TransportError: the token server does not deliver, or is none that we may talk to.
        """
        offered = [
            item for item in parse_challenges(reply.headers) if item.scheme in {"basic", "bearer"}
        ]
        with self._lock:
            if sent != ([("Authorization", self._authorization)] if self._authorization else []):
                return True  # another thread was faster
            if not offered:
                return False
            challenge = offered[0]
            if challenge.scheme == "basic":
                if self._credentials is None or self._credentials.identity_token or sent:
                    return False
                self._challenge, self._authorization = challenge, self._credentials.basic()
                return True
            scope = challenge.parameters.get("scope", "")
            if challenge.parameters.get("error") == "insufficient_scope" and _SCOPE.fullmatch(
                scope
            ):
                self._scopes = list(dict.fromkeys([*self._scopes, scope]))[:4]
            self._fetch_token(challenge)
            return True

    def _fetch_token(self, challenge: Challenge) -> None:
        realm = self._realm(challenge)
        service = challenge.parameters.get("service", "")
        known = self._credentials
        headers: list[tuple[str, str]] = []
        body = None
        if known and known.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": known.identity_token,
                "service": service,
                "client_id": _CLIENT,
                "scope": " ".join(self._scopes),
            }
            body = urlencode(form).encode()
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
            url = str(realm)
        else:
            query = [("account", known.username)] if known else []
            query += [("service", service)] if service else []
            query += [("scope", scope) for scope in self._scopes]
            if known:
                headers.append(("Authorization", known.basic()))
            url = f"{realm}{'&' if '?' in realm.target else '?'}{urlencode(query)}"
        with request(
            "POST" if body is not None else "GET",
            url,
            headers=headers,
            body=body,
            tls=self._tls_for(realm),
            timeout_s=self._timeout_s,
            max_redirects=0,
            sent_by=self._base,
        ) as reply:
            if reply.status != 200:
                raise self._refusal(reply, realm)
            self._take(reply.read(limits.TOKEN_BYTES, "the token"), realm)
        self._challenge = challenge

    def _realm(self, challenge: Challenge) -> Url:
        try:
            realm = parse_url(challenge.parameters.get("realm", ""))
        except TransportError as problem:
            reason = problem.found or "not a URL"
        else:
            clear = realm.scheme == "http" and self._base.scheme == "https"
            reason = unsafe_target(realm.host, allow_loopback=is_loopback(self._base.host)) or ""
            if not reason and not clear:
                return realm
            reason = (
                f"{realm.label} is {reason}"
                if reason
                else f"{realm.label} is spoken to without TLS"
            )
        raise TransportError(
            f"{self._base.label} names a token server that must not be used",
            reference="bad-realm",
            found=printable(reason),
            hint="credentials were not sent; ask the registry's operator",
            catalogue="AUTH",
        )

    def _refusal(self, reply: Response, realm: Url) -> TransportError:
        error = status_error(reply, "a token")
        if error.retryable or reply.status not in {400, 401, 403, 404}:
            return error
        whose = "anonymous access" if self.anonymous else "the credentials in the auth file"
        return TransportError(
            f"{realm.label} refuses {whose} to {self._base.label}",
            reference="unauthorized",
            found=error.found,
            hint="no such repository, or credentials are needed"
            if self.anonymous
            else "log in again",
            catalogue="AUTH",
        )

    def _take(self, body: bytes, realm: Url) -> None:
        what = f"the token from {realm.label}"
        value: Any = parse_json(body, what, error=TransportError, catalogue="AUTH")
        fields = value if isinstance(value, dict) else {}
        token = fields.get("token") or fields.get("access_token")
        lifetime = fields.get("expires_in", _LIFETIME_S)
        if not isinstance(token, str) or not _VALUE.fullmatch(token):
            raise TransportError(f"{what} is not usable", reference="bad-token", catalogue="AUTH")
        if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
            lifetime = _LIFETIME_S
        self._authorization = f"Bearer {token}"
        self._renew_at = time.monotonic() + max(_LIFETIME_S, float(lifetime)) - _MARGIN_S
