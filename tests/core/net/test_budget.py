"""The limits that processes share: amounts, rate, budget."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from bootc_core.errors import TransportError, UsageError
from bootc_core.net.budget import TransferLimits, parse_amount

SECONDS = 3.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("100000", 100_000),
        ("500K", 500_000),
        ("5M", 5_000_000),
        ("1.5G", 1_500_000_000),
        ("512Ki", 512 * 1024),
        ("2 MiB", 2 * 1024 * 1024),
        ("5MB/s", 5_000_000),
        ("0.5k", 500),
    ],
)
def test_amounts(text, value):
    assert parse_amount(text, "--max-rate") == value


@pytest.mark.parametrize("text", ["", "0", "-5M", "5X", "1e6", "M", "1.2.3K", "5 M M", "٣", "0.0K"])
def test_other_amounts_are_refused(text):
    with pytest.raises(UsageError, match="--max-rate"):
        parse_amount(text, "--max-rate")


def test_a_budget_ends_exactly():
    shared = TransferLimits.make(None, 1000)
    one, other = shared.meter(), shared.meter()
    assert one.take(600) == 600
    one.give_back(100)
    assert other.take(900) == 500
    with pytest.raises(TransportError) as caught:
        one.take(1)
    assert (caught.value.reference, caught.value.retryable) == ("byte-budget", False)
    assert one.used == 1000


TAKER = """
import sys, time
from bootc_core.net.budget import Meter
meter = Meter(int(sys.argv[1]), int(sys.argv[2]), None)
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    meter.take(65536)
"""


@pytest.mark.parametrize("processes", [1, 4])
def test_processes_share_a_rate(processes):
    rate = 4_000_000
    shared = TransferLimits.make(rate, None)
    started = time.monotonic()
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, str(shared.descriptor), str(rate), str(SECONDS)],
            pass_fds=(shared.descriptor,),
        )
        for _ in range(processes)
    ]
    assert [taker.wait(30) for taker in takers] == [0] * processes
    took = time.monotonic() - started
    used = shared.meter().used
    # never faster, whatever the machine does; the last pieces of each may have been taken ahead of their time
    assert used <= rate * (took + 0.3)
    assert used >= rate * (SECONDS - 0.5) * 0.9
