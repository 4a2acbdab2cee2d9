"""Failures of sockets and TLS, told so that an administrator knows which host did what."""

from __future__ import annotations

import errno
import socket
import sys

from bootc_core.errors import TransportError, printable

_UNREACHABLE = {
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.EADDRNOTAVAIL,
}
_RESET = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENETRESET, errno.ESHUTDOWN}
_VERIFY = {  # OpenSSL's X509_V_ERR_* numbers, which do not change
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "is signed by an unknown authority",
    20: "is signed by an unknown authority",
    21: "is signed by an unknown authority",
    62: "was issued for another host",
    64: "was issued for another address",
}


def network_error(problem: OSError, label: str, doing: str, received: int = 0) -> TransportError:
    """Our error for a socket's failure.

    Args:
        problem: what the socket raised.
        label: host, and port if unusual.
        doing: ``connect``, ``send`` or ``read``.
        received: body bytes that had arrived.
    """
    ssl = sys.modules.get("ssl")  # not imported unless TLS is in use
    if ssl is not None and isinstance(problem, ssl.SSLError):
        return _tls_error(problem, label)
    after = f" after {received} bytes" if received else ""
    if isinstance(problem, socket.gaierror):
        return TransportError(
            f"the host {label} is not known",
            reference="unknown-host",
            found=printable(problem.strerror or "no address"),
            hint="check the spelling of the registry, and this machine's DNS and network",
            retryable=problem.errno == socket.EAI_AGAIN,
        )
    if isinstance(problem, TimeoutError):
        return TransportError(
            f"{label} did not answer in time{after}"
            if doing != "connect"
            else f"no connection to {label} in time",
            reference="timeout",
            hint="the network or the registry is slow or blocked; check firewall and proxy",
            retryable=True,
        )
    if problem.errno == errno.ECONNREFUSED:
        return TransportError(
            f"{label} refuses the connection",
            reference="connection-refused",
            hint="nothing listens there: check host and port, and that the registry runs",
            retryable=True,
        )
    if problem.errno in _RESET:
        return TransportError(
            f"{label} broke the connection off{after}", reference="connection-reset", retryable=True
        )
    return TransportError(
        f"{label} cannot be reached"
        if doing == "connect"
        else f"the connection to {label} failed{after}",
        reference="unreachable" if problem.errno in _UNREACHABLE else "network",
        found=printable(problem.strerror or type(problem).__name__),
        retryable=problem.errno in _UNREACHABLE,
    )


def _tls_error(problem: OSError, label: str) -> TransportError:
    code = getattr(problem, "verify_code", None)
    reason = getattr(problem, "reason", None) or ""
    if code is not None:
        told = _VERIFY.get(code, "cannot be verified")
        return TransportError(
            f"the certificate of {label} {told}",
            reference="tls-verify",
            found=printable(getattr(problem, "verify_message", "") or reason),
            hint=f"put the authority's certificate into /etc/containers/certs.d/{label}/ca.crt, "
            "or check this machine's clock",
        )
    if reason in {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "UNKNOWN_PROTOCOL",
        "RECORD_LAYER_FAILURE",
    }:
        return TransportError(
            f"{label} does not speak TLS",
            reference="tls-failed",
            found=printable(reason),
            hint="a registry without TLS has to be marked insecure = true in registries.conf",
        )
    if reason == "UNEXPECTED_EOF_WHILE_READING" or type(problem).__name__ in {
        "SSLEOFError",
        "SSLZeroReturnError",
    }:
        return TransportError(
            f"{label} broke the TLS connection off", reference="connection-reset", retryable=True
        )
    wants = "CERTIFICATE_REQUIRED" in reason or "BAD_CERTIFICATE" in reason
    return TransportError(
        f"{label} and this machine cannot agree on a TLS connection",
        reference="tls-failed",
        found=printable(reason or str(problem)),
        hint=f"a client certificate may be wanted: put it into /etc/containers/certs.d/{label}/"
        if wants
        else None,
        catalogue="AUTH" if wants else "NET",
    )
