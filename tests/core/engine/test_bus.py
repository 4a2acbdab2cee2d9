import threading

from bootc_core import limits
from bootc_core.engine.bus import Bus
from bootc_core.models import events


def test_events_arrive_in_order_at_every_observer():
    seen = {"a": [], "b": []}
    with Bus([("a", seen["a"].append), ("b", seen["b"].append)]) as bus:
        for number in range(100):
            bus.emit(events.Warned("t", str(number)))
    assert [event.message for event in seen["a"]] == [str(number) for number in range(100)]
    assert seen["b"] == seen["a"]


def test_a_failing_observer_is_logged_once_and_the_others_go_on(caplog):
    seen = []

    def broken(event):
        raise RuntimeError("no")

    with Bus([("broken", broken), ("good", seen.append)]) as bus:
        bus.emit(events.Warned("t", "1"))
        bus.emit(events.Warned("t", "2"))
    assert len(seen) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "the event observer of plugin broken failed"
    ]


def test_a_blocked_observer_delays_the_end_by_its_patience_only_and_progress_is_merged():
    release = threading.Event()
    seen = []

    def slow(event):
        release.wait()
        seen.append(event)

    bus = Bus([("slow", slow)], patience_s=0.05)
    with bus:
        bus.emit(events.Warned("t", "first"))
        for number in range(limits.EVENT_QUEUE * 3):
            bus.emit(events.BlobProgressed("t", "sha256:x", number, limits.EVENT_QUEUE * 3))
        bus.emit(events.Warned("t", "last"))
    release.set()
    bus._lanes[0].thread.join(10)
    assert isinstance(seen[0], events.Warned)
    assert len(seen) <= limits.EVENT_QUEUE + 3
    assert seen[-1].message == "last"
    progress = [event.bytes_done for event in seen if isinstance(event, events.BlobProgressed)]
    assert progress[-1] == limits.EVENT_QUEUE * 3 - 1
