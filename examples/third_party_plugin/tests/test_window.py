"""The plugin on a whole system in a directory, with the test kit that bootc ships."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time

import pytest
from bootc_example_window import plugin
from bootc_example_window.window import FILE, Settings, decide, parse_settings

from bootc_core import Deny, Hold, Proceed
from bootc_core.errors import ConfigError, Denied
from bootc_core.testing import System, make_image

OS = "quay.io/acme/os:stable"
NIGHT = Settings(time(22), time(4))


@pytest.mark.parametrize(
    ("settings", "clock", "verdict"),
    [
        (Settings(), "12:00", Proceed()),
        (Settings(time(2), time(5)), "02:00", Proceed()),
        (Settings(time(2), time(5)), "04:59", Proceed()),
        (Settings(time(2), time(5)), "05:00", "2026-03-02T02:00"),
        (Settings(time(2), time(5)), "01:59", "2026-03-01T02:00"),
        (NIGHT, "23:00", Proceed()),
        (NIGHT, "03:00", Proceed()),
        (NIGHT, "12:00", "2026-03-01T22:00"),
        (Settings(freeze="no"), "12:00", Deny("no")),
    ],
)
def test_decision(settings, clock, verdict):
    found = decide(settings, datetime.fromisoformat(f"2026-03-01T{clock}:00+00:00"))
    if isinstance(verdict, str):
        assert isinstance(found, Hold)
        assert found.until == datetime.fromisoformat(f"{verdict}:00+00:00").astimezone(UTC)
    else:
        assert found == verdict


@pytest.mark.parametrize("text", ["window = 1", 'window = "late"', "frozen = true", "freeze = 1"])
def test_wrong_settings_say_what(text):
    with pytest.raises(ValueError, match=r"window|freeze|frozen"):
        parse_settings(text)


@pytest.fixture
def system(tmp_path):
    system = System(tmp_path, plugins={"example_window": plugin})
    system.transport.images[OS] = make_image("1")
    system.switch(OS)
    system.transport.images[OS] = make_image("2")
    (system.sysroot.config_root / "etc/bootc").mkdir(parents=True)
    return system


def test_a_freeze_stops_upgrades_and_nothing_else(system):
    (system.sysroot.config_root / FILE).write_text('freeze = "until May"\n')
    with pytest.raises(Denied, match="until May"):
        system.upgrade()
    assert system.versions() == ("1", None)
    system.switch("quay.io/acme/os:stable", insecure=True)
    assert system.versions() == ("2", "1")


def test_wrong_settings_stop_upgrades(system):
    (system.sysroot.config_root / FILE).write_text("window = 5\n")
    with pytest.raises(ConfigError):
        system.upgrade()
    assert system.versions() == ("1", None)


def test_events_are_written_down_in_order(system, tmp_path, monkeypatch):
    monkeypatch.setenv("BOOTC_EXAMPLE_EVENTS", str(tmp_path / "events"))
    system.events.clear()
    system.upgrade()
    lines = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert lines == [json.loads(json.dumps(event.to_json())) for event in system.events]
    assert lines[-1]["event"] == "transaction.completed"
