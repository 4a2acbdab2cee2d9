"""Named policies for trying again. Idempotent reads only; never a phase, never something that was refused.

    await again(REGISTRY_READ, lambda: trio.to_thread.run_sync(client.get_manifest, tag, abandon_on_cancel=True))

An error counts as transient only if it is a ``TransportError`` that says so (``retryable``). Waits grow with jitter, and are at
least what the server asked for (``retry_after_s``). Cancellation passes at once. Imports tenacity and trio: not for ``status``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import tenacity
import trio

from bootc_core import limits
from bootc_core.errors import TransportError

_LOG: Final = logging.getLogger(__name__)
_FIRST_WAIT_S: Final = 0.5
_GROWTH: Final = tenacity.wait_exponential(
    multiplier=_FIRST_WAIT_S, max=limits.RETRY_WAIT_GROWN_S
) + tenacity.wait_random(0, _FIRST_WAIT_S)

_ABSENT: Final = frozenset({"connection-refused", "unknown-host", "unreachable"})
_ABSENT_ATTEMPTS: Final = (
    5  # there is nobody: patience of some seconds, then the next mirror or the error
)

T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, TransportError) and error.retryable


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = (error.retry_after_s or 0.0) if isinstance(error, TransportError) else 0.0
    return min(max(asked, _GROWTH(state)), limits.RETRY_WAIT_MAX_S)


def _enough(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    absent = isinstance(error, TransportError) and error.reference in _ABSENT
    return state.attempt_number >= (_ABSENT_ATTEMPTS if absent else limits.RETRIES)


def _log(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _LOG.info("%s; trying again in %.1f s", error, state.upcoming_sleep)


REGISTRY_READ: Final = tenacity.AsyncRetrying(
    stop=_enough,
    wait=_wait,
    retry=tenacity.retry_if_exception(is_transient),
    before_sleep=_log,
    sleep=trio.sleep,
    reraise=True,
)
"""Manifests, tokens and small blobs: some seconds of patience, then the last error."""


async def again(policy: tenacity.AsyncRetrying, call: Callable[[], Awaitable[T]]) -> T:
    """The result of ``call``, repeated as ``policy`` says; concurrent calls do not disturb each other.

    Raises:
        BaseException: what the last try raised.
    """

    async def attempt() -> (
        T
    ):  # tenacity awaits coroutine functions only, not what merely returns an awaitable
        return await call()

    return await policy.copy()(attempt)
