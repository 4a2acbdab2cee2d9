"""A key with a lease in etcd, by its JSON gateway (``/v3/…``): what this plugin needs of it, and nothing else."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from bootc_core.errors import TransportError

TIMEOUT_S = 5.0
_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the lock, under which lease, and for how many seconds still."""

    host: str
    lease: str
    seconds: int


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def call(endpoint: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request.

    Raises:
        TransportError: no answer, or none that is JSON.
    """
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked with the settings
        f"{endpoint}/v3/{method}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310 - likewise
            value: dict[str, Any] = json.loads(reply.read(_BYTES))
    except (OSError, ValueError, urllib.error.URLError) as problem:
        raise TransportError(
            f"etcd at {endpoint} does not answer", found=str(problem), retryable=True
        ) from problem
    return value


def holder(endpoint: str, key: str) -> Holder | None:
    """Who has the lock, or None."""
    found = call(endpoint, "kv/range", {"key": _text(key)}).get("kvs")
    if not found:
        return None
    lease = str(found[0].get("lease", "0"))
    left = call(endpoint, "lease/timetolive", {"ID": lease}) if lease != "0" else {}
    value = base64.b64decode(found[0]["value"]).decode("utf-8", "replace")
    return Holder(value, lease, max(0, int(left.get("TTL", 0))))


def acquire(endpoint: str, key: str, host: str, seconds: int) -> Holder | None:
    """Take the lock under a new lease if nobody has it; None: it is ours, else who was faster. One transaction decides."""
    lease = str(call(endpoint, "lease/grant", {"TTL": str(seconds)})["ID"])
    put = {"requestPut": {"key": _text(key), "value": _text(host), "lease": lease}}
    free = {"key": _text(key), "target": "CREATE", "result": "EQUAL", "createRevision": "0"}
    ours = {"key": _text(key), "target": "VALUE", "result": "EQUAL", "value": _text(host)}
    for condition in (free, ours):  # nobody's, or our own from before: then under the new lease
        if call(endpoint, "kv/txn", {"compare": [condition], "success": [put]}).get("succeeded"):
            return None
    call(endpoint, "lease/revoke", {"ID": lease})
    return holder(endpoint, key) or Holder("another host", "0", 0)


def release(endpoint: str, key: str, host: str) -> bool:
    """Give the lock back if it is ours; whether it was."""
    ours = {"key": _text(key), "target": "VALUE", "result": "EQUAL", "value": _text(host)}
    gone = {"requestDeleteRange": {"key": _text(key)}}
    said = call(endpoint, "kv/txn", {"compare": [ours], "success": [gone]})
    return bool(said.get("succeeded"))
