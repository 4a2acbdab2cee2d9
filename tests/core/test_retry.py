"""The retry policies on trio's virtual clock."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from bootc_core import limits
from bootc_core.errors import ContentError, TransportError
from bootc_core.retry import REGISTRY_READ, again, is_transient


class Flaky:
    """Fails as told, then answers; remembers when it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def transient(retry_after_s: float | None = None) -> TransportError:
    return TransportError("later", retryable=True, retry_after_s=retry_after_s)


def run(call: Flaky) -> str:
    async def main() -> str:
        return await again(REGISTRY_READ, call)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def waits(call: Flaky) -> list[float]:
    return [later - earlier for earlier, later in zip(call.times, call.times[1:], strict=False)]


def test_waits_grow_with_jitter():
    call = Flaky(*[transient() for _ in range(limits.RETRIES - 1)])
    assert run(call) == "answer"
    for wait, least in zip(waits(call), (0.5, 1, 2, 4, 8, 8, 8), strict=True):
        assert least <= wait <= least + 0.5


def test_the_last_error_is_raised():
    errors = [transient() for _ in range(limits.RETRIES)]
    call = Flaky(*errors)
    with pytest.raises(TransportError) as caught:
        run(call)
    assert caught.value is errors[-1]
    assert len(call.times) == limits.RETRIES


def test_the_server_may_ask_for_more_patience_within_bounds():
    call = Flaky(transient(20), transient(10_000), transient(0))
    run(call)
    assert waits(call)[0] == 20
    assert waits(call)[1] == limits.RETRY_WAIT_MAX_S
    assert waits(call)[2] >= 2


@pytest.mark.parametrize("error", [TransportError("no"), ContentError("bad"), ValueError("odd")])
def test_other_errors_are_final(error):
    call = Flaky(error)
    with pytest.raises(type(error)) as caught:
        run(call)
    assert caught.value is error
    assert not is_transient(error)
    assert len(call.times) == 1


def test_concurrent_calls_count_for_themselves():
    calls = [Flaky(*[transient() for _ in range(limits.RETRIES - 1)]) for _ in range(3)]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(again, REGISTRY_READ, call)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [len(call.times) for call in calls] == [limits.RETRIES] * 3


def test_cancellation_passes_through_a_wait():
    call = Flaky(*[transient(50) for _ in range(4)])

    async def main() -> bool:
        with trio.move_on_after(60) as scope:
            await again(REGISTRY_READ, call)
        return scope.cancelled_caught

    assert trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(call.times) == 2
