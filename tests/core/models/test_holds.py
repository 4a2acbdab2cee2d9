"""A source holds for a bounded time however often it is asked, and what it holds is remembered by phase."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bootc_core import limits
from bootc_core.models.holds import HoldRecord
from bootc_core.models.verdict import Deny, Hold, Proceed

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def hold(days: int) -> Hold:
    return Hold(NOW + days * DAY, "window")


def test_a_hold_ends_at_the_bound_counted_from_the_first_one():
    record = HoldRecord()
    assert record.settle("fetch", [("w", hold(1))], NOW, {}) == [("w", hold(1))]
    later = record.settle("fetch", [("w", hold(40))], NOW + 13 * DAY, {})
    assert later == [("w", Hold(NOW + timedelta(seconds=limits.HOLD_MAX_S), "window"))]
    ((_, said),) = record.settle("fetch", [("w", hold(40))], NOW + 14 * DAY, {})
    assert isinstance(said, Proceed)
    assert "since 2026-03-01T00:00:00Z" in said.warning
    assert "336 hours (window)" in said.warning


def test_letting_a_phase_begin_starts_the_count_anew_for_that_phase_only():
    record = HoldRecord()
    record.settle("fetch", [("w", hold(1)), ("v", hold(1))], NOW, {})
    record.settle("stage", [("w", hold(1))], NOW, {})
    record.settle("fetch", [("w", Proceed()), ("v", hold(3))], NOW + DAY, {})
    assert record.since == {"v/fetch": NOW, "w/stage": NOW}
    assert record.settle("fetch", [("v", Deny("no"))], NOW + DAY, {}) == [("v", Deny("no"))]
    assert record.since == {"w/stage": NOW}


def test_a_bound_of_its_own_shortens_and_never_lengthens():
    record = HoldRecord()
    record.settle("fetch", [("w", hold(9)), ("v", hold(9))], NOW, {})
    settled = record.settle(
        "fetch", [("w", hold(9)), ("v", hold(99))], NOW + DAY, {"w": 86400.0, "v": 1e9}
    )
    assert isinstance(settled[0][1], Proceed)
    assert settled[1][1].until == NOW + timedelta(seconds=limits.HOLD_MAX_S)


def test_a_clock_that_went_back_does_not_lengthen_it():
    record = HoldRecord({"w/fetch": NOW + 400 * DAY})
    record.settle("fetch", [("w", hold(1))], NOW, {})
    assert record.since == {"w/fetch": NOW}


def test_it_survives_writing_and_damage_begins_anew():
    record = HoldRecord({"w/fetch": NOW}, [{"time": "x"}] * 60)
    again = HoldRecord.parse(record.to_bytes())
    assert again.since == record.since
    assert len(again.overrides) == 50
    for damage in (b"", b"{", b"[]", b'{"since": 3, "overrides": []}', record.to_bytes()[:-9]):
        assert HoldRecord.parse(damage) == HoldRecord()
