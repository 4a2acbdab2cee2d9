"""One repository at one endpoint: manifests, small blobs, and where large ones are (OCI distribution specification 1.1).

    HEAD/GET /v2/NAME/manifests/TAG-OR-DIGEST        GET /v2/NAME/blobs/DIGEST

Blocking; called from threads. The first request also finds out the scheme: https, and plain HTTP only on loopback or where
registries.conf says ``insecure``. On loopback HTTP comes first (a developer's registry), unless certs.d knows the host.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.errors import ConfigError, ContentError, TransportError, printable
from bootc_core.models.base import check_digest
from bootc_core.models.image import HttpSource
from bootc_core.models.oci import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    RawDocument,
    sniff,
)
from bootc_core.net.dial import TlsOptions
from bootc_core.net.http import Pool, Response, request, status_error
from bootc_core.net.url import Url, is_loopback, parse_url
from bootc_registry.auth import Authenticator
from bootc_registry.config import Certificates, Endpoint, load_certificates
from bootc_registry.credentials import FILES, find_credentials

_LOG: Final = logging.getLogger(__name__)
_ACCEPT: Final = ",".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))
_OTHER_SCHEME: Final = frozenset(
    {"tls-failed", "connection-refused", "connection-reset", "bad-http"}
)
_ROUNDS: Final = 3  # requests for one thing: without, with a token, with a renewed or wider one


class RegistryClient:
    """Reads from one endpoint.

    Args:
        root: configuration root.
        endpoint: what to read from.
        pool: keeps connections; the caller closes it.
        helpers: who is asked for credentials, in order (`credentials.find_credentials`).
        timeout_s: silence on a connection.

    Raises:
        ConfigError: blocked by registries.conf, or an auth or certificate file is wrong.
    """

    def __init__(
        self,
        root: Path,
        endpoint: Endpoint,
        pool: Pool,
        helpers: tuple[str, ...] = (FILES,),
        timeout_s: float = limits.READ_TIMEOUT_S,
    ) -> None:
        name = endpoint.name
        if endpoint.blocked:
            raise ConfigError(
                f"{name.repository} must not be contacted",
                reference="registry-blocked",
                found=f"blocked = true in {endpoint.blocked}",
                catalogue="POL",
            )
        self.name = name
        self._root = root
        self._insecure = endpoint.insecure
        self._pool = pool
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._tls: dict[str, TlsOptions] = {}
        certificates = load_certificates(root, name.domain)
        self._tls[name.host] = self._options(certificates)
        self._schemes = _schemes(name.host, endpoint.insecure, certificates.configured)
        self._credentials = find_credentials(root, name, helpers=helpers)
        self._auth: Authenticator | None = None
        self._base: Url | None = None
        self._handed_out: dict[str, int] = {}

    # --- documents

    def head_manifest(self, target: str, what: str) -> str | None:
        """The digest of the manifest or index that ``target`` (tag or digest) names; None if a HEAD does not tell.

        Raises:
            TransportError: not there, not permitted, unreachable.
        """
        with self._ask("HEAD", f"manifests/{target}", [("Accept", _ACCEPT)]) as reply:
            if reply.status in {405, 501}:
                return None
            if reply.status != 200:
                raise self._refusal(reply, what)
            digest = reply.headers.get("docker-content-digest")
        try:
            check_digest(digest)
        except ValueError:
            return None
        return digest if digest.startswith("sha256:") else None

    def get_manifest(self, target: str, what: str) -> RawDocument:
        """The manifest or index that ``target`` names; by digest, its bytes are checked before they are read.

        Raises:
            TransportError: not there, not permitted, unreachable, broken off.
            ContentError: too large, another digest, not an image.
        """
        with self._ask("GET", f"manifests/{target}", [("Accept", _ACCEPT)]) as reply:
            if reply.status != 200:
                raise self._refusal(reply, what)
            told = reply.headers.get("docker-content-digest")
            content_type = _document_type(reply, what)
            raw = reply.read(limits.MANIFEST_BYTES, what)
        document = RawDocument(content_type, raw)
        if ":" in target:
            document.check(target, what)
        _refuse_page(document, what, self.name.host)
        media_type, _ = sniff(raw, content_type, what)
        if told.startswith("sha256:") and told != document.digest:
            _LOG.warning(
                "%s: the registry says %s, the bytes are %s", what, printable(told), document.digest
            )
        return RawDocument(media_type, raw)

    def get_referrers(self, path: str, what: str) -> tuple[bytes, str | None] | None:
        """One page of a list of referrers, and the path of the next one; None: the registry keeps no such lists.

        Args:
            path: ``referrers/DIGEST``, or what a page named as the next one.
            what: names the list in errors.

        Raises:
            TransportError, ContentError: as ``get_manifest``.
        """
        with self._ask("GET", path, [("Accept", OCI_INDEX)]) as reply:
            if reply.status in {400, 404, 405, 501}:
                return None
            if reply.status != 200:
                raise self._refusal(reply, what)
            told = _document_type(reply, what)
            following = _next_page(reply.headers.get("link"), f"/v2/{self.name.path}/")
            raw = reply.read(limits.MANIFEST_BYTES, what)
        # what answers 200 to everything is no list (old registries send pages of their own there)
        return (raw, following) if told == OCI_INDEX else None

    def get_blob(self, descriptor: Descriptor, limit: int, what: str) -> bytes:
        """A small blob, checked against size and digest.

        Raises:
            TransportError, ContentError: as ``get_manifest``.
        """
        expected = f"{descriptor.size} bytes"
        if descriptor.size > limit:
            raise ContentError(
                f"{what} is too large",
                reference="too-large",
                expected=f"at most {limit} bytes",
                found=expected,
                catalogue="LIM",
            )
        with self._ask("GET", f"blobs/{descriptor.digest}", [], size=descriptor.size) as reply:
            if reply.status != 200:
                raise self._refusal(reply, what)
            if reply.length is not None and reply.length != descriptor.size:
                raise _size_error(what, expected, f"{reply.length} bytes")
            data = reply.read_front(descriptor.size + 1)
        if len(data) != descriptor.size:
            more = "more" if len(data) > descriptor.size else f"{len(data)} bytes"
            raise _size_error(what, expected, more)
        RawDocument("", data).check(descriptor.digest, what)
        return data

    def blob_source(self, descriptor: Descriptor) -> HttpSource:
        """Where a worker gets the blob. Asked again for the same one, the credentials are tried first and renewed if stale.

        Raises:
            TransportError: the credentials cannot be renewed, or the registry denies the blob.
        """
        with self._lock:
            asked = self._handed_out.get(descriptor.digest, 0)
            self._handed_out[descriptor.digest] = asked + 1
        if asked or self._base is None:
            self._check_access(descriptor)
        base, auth = self._connected()
        tls = self._tls_for(base)
        return HttpSource(
            url=f"{base}v2/{self.name.path}/blobs/{descriptor.digest}",
            headers=tuple(auth.headers()),
            ca_file=tls.ca_files[0] if tls.ca_files else None,
            client_cert=tls.client_cert,
            client_key=tls.client_key,
            tls_verify=tls.verify,
        )

    def _check_access(self, descriptor: Descriptor) -> None:
        try:
            with self._ask("HEAD", f"blobs/{descriptor.digest}", [], max_redirects=0) as reply:
                if reply.status in {401, 403, 404}:
                    raise self._refusal(reply, f"layer {descriptor.digest}")
        except TransportError as problem:
            if problem.reference != "redirect-refused":  # sent on to a store: permitted
                raise

    # --- requests

    def _ask(
        self,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        size: int | None = None,
        max_redirects: int = limits.REDIRECTS,
    ) -> Response:
        """The reply to a request for something in the repository, credentials shown where they are wanted."""
        if self._base is not None:
            return self._ask_at(*self._connected(), method, path, headers, size, max_redirects)
        failure: TransportError | None = None
        refused: tuple[Url, Authenticator, Response] | None = None
        for scheme in self._schemes:
            base = parse_url(f"{scheme}://{self.name.host}/")
            auth = Authenticator(
                base, self.name.path, self._credentials, self._tls_for, self._timeout_s
            )
            try:
                reply = self._ask_at(base, auth, method, path, headers, size, max_redirects)
            except TransportError as problem:
                if failure is None or problem.reference == "tls-verify":
                    failure = problem  # the second scheme is a guess: its failure counts only if it was right
                if problem.reference not in _OTHER_SCHEME:
                    break
                continue
            if scheme != self._schemes[-1] and _wants_tls(reply):
                refused = (base, auth, reply)
                continue
            if refused:
                refused[2].close()
            self._base, self._auth = base, auth
            return reply
        if refused:
            if failure is None or failure.reference != "tls-verify":
                self._base, self._auth = refused[:2]
                return refused[2]
            refused[2].close()
        assert failure is not None  # noqa: S101 - there is at least one scheme
        raise failure

    def _ask_at(
        self,
        base: Url,
        auth: Authenticator,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        size: int | None,
        max_redirects: int,
    ) -> Response:
        round_ = 0
        while True:
            round_ += 1
            sent = auth.headers()
            reply = request(
                method,
                f"{base}v2/{self.name.path}/{path}",
                headers=[*headers, *sent],
                tls=self._tls_for(base),
                timeout_s=self._timeout_s,
                max_redirects=max_redirects,
                connection_pool=self._pool,
                size=size,
            )
            foreign = parse_url(reply.url).origin != base.origin  # its challenge is none of ours
            if reply.status != 401 or foreign or round_ == _ROUNDS:
                return reply
            try:
                if not auth.answer(reply, sent):
                    return reply
            except BaseException:
                reply.close()
                raise
            reply.read_front(limits.ERROR_BODY_BYTES)  # so that the connection can be used again
            reply.close()

    def _connected(self) -> tuple[Url, Authenticator]:
        assert self._base is not None  # noqa: S101 - a manifest was read before
        assert self._auth is not None  # noqa: S101
        return self._base, self._auth

    def _tls_for(self, url: Url) -> TlsOptions:
        """TLS options for the registry, or for its token server."""
        own = parse_url(f"{url.scheme}://{self.name.host}/").origin == url.origin
        host = self.name.host if own else url.authority
        with self._lock:
            if host not in self._tls:
                self._tls[host] = self._options(load_certificates(self._root, host), own=False)
            return self._tls[host]

    def _options(self, found: Certificates, *, own: bool = True) -> TlsOptions:
        files = found.ca_files
        if len(files) > 1:
            files = (self._bundle(files),)  # a blob source names one file
        return TlsOptions(
            verify=not (own and self._insecure),
            ca_files=files,
            client_cert=found.client_cert,
            client_key=found.client_key,
        )

    def _bundle(self, files: tuple[str, ...]) -> str:
        descriptor, name = tempfile.mkstemp(prefix="bootc-ca-", suffix=".pem")
        weakref.finalize(self, Path(name).unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as bundle:
            for path in files:
                try:
                    bundle.write(Path(path).read_bytes() + b"\n")
                except OSError as problem:
                    raise ConfigError(
                        f"cannot read {printable(path)}",
                        reference="bad-certificate-file",
                        found=printable(problem.strerror or ""),
                    ) from None
        return name

    def _refusal(self, reply: Response, what: str) -> TransportError:
        """The error for a status that is not 200; registries hide what they do not want to show, so the hints are broad."""
        login = f"podman login --authfile {_login_file()} {self.name.domain}"
        if reply.status not in {401, 403, 404}:
            return status_error(reply, what)
        denied = reply.status != 404
        error = status_error(reply, what)
        if denied and self._credentials is None:
            hint = f"check the spelling; if it is private, log in: {login}"
        elif denied:
            hint = f"the credentials for {self.name.domain} do not allow it, or there is no such image; log in again: {login}"
        else:
            hint = "check the spelling of repository and tag"
        error.hint = hint
        return error


def _login_file() -> str:
    return "/etc/ostree/auth.json" if os.geteuid() == 0 else "~/.config/ostree/auth.json"


def _schemes(host: str, insecure: bool, tls_is_meant: bool) -> tuple[str, ...]:
    """Schemes to try, in order."""
    if tls_is_meant and not insecure:
        return ("https",)
    if is_loopback(parse_url(f"http://{host}/").host) and not tls_is_meant:
        return ("http", "https")
    return ("https", "http") if insecure else ("https",)


def _wants_tls(reply: Response) -> bool:
    """Whether this is how a TLS server answers a request in the clear (Go, nginx and Apache all say 400)."""
    registry = "docker-distribution-api-version" in reply.headers
    return reply.status == 400 and not registry and "json" not in reply.headers.get("content-type")


def _size_error(what: str, expected: str, found: str) -> ContentError:
    return ContentError(
        f"{what} has another size than its descriptor says",
        reference="size-mismatch",
        expected=expected,
        found=found,
        hint="the registry or a mirror serves damaged data",
        catalogue="INT",
    )


def _next_page(link: str, base: str) -> str | None:
    """Path within the repository of a ``Link`` header's next page; None: the last one, or it leads elsewhere."""
    match = re.match(r'\s*<([^<>\s]{1,2000})>\s*;.*\brel="?next"?', link)
    if match is None:
        return None
    target = match[1]
    if "://" in target:
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.removeprefix(base) if target.startswith(base + "referrers/") else None


def _document_type(reply: Response, what: str) -> str:
    """The media type of a document's reply, parameters stripped."""
    encoding = reply.headers.get("content-encoding", "identity").lower()
    if encoding not in {"identity", ""}:
        raise ContentError(
            f"{what} arrives compressed although that was not asked for",
            reference="content-encoding",
            found=printable(encoding, 40),
            hint="a proxy between here and the registry changes what passes",
            catalogue="INT",
        )
    return reply.headers.get("content-type").partition(";")[0].strip().lower()


def _refuse_page(document: RawDocument, what: str, host: str) -> None:
    if document.media_type == "text/html" or document.raw.lstrip()[:1] == b"<":
        raise ContentError(
            f"{host} answers with a web page instead of {what}",
            reference="not-a-registry",
            found=printable(document.raw.lstrip()[:60]),
            hint="there may be no registry at that address, or a portal or proxy stands in between",
            catalogue="INT",
        )
