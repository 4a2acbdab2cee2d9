"""The window as a table, the lock on a real etcd, and the contract of gates."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

import pytest
from bootc_reboot_lock import etcd, plugin
from bootc_reboot_lock.settings import FILE, opens, parse

from bootc_core.errors import ConfigError, Held, HookError, TransportError
from bootc_core.testing import make_image
from bootc_core.testing.contracts import OS, GateContract


@pytest.mark.parametrize(
    ("window", "clock", "expected"),
    [
        ("02:00-05:00", "02:00", None),
        ("02:00-05:00", "05:00", "2026-03-02T02:00"),
        ("02:00-05:00", "01:59", "2026-03-01T02:00"),
        ("22:00-04:00", "03:59", None),
        ("22:00-04:00", "12:00", "2026-03-01T22:00"),
    ],
)
def test_the_window(window, clock, expected):
    settings = parse(f'endpoint = "http://x"\nhost = "a"\nwindow = "{window}"', "")
    found = opens(settings, datetime.fromisoformat(f"2026-03-01T{clock}+00:00"))
    assert found == (datetime.fromisoformat(f"{expected}+00:00") if expected else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'endpoint = "ftp://x"',
        'endpoint = "http://x"',
        'endpoint = "http://x"\nhost = 3',
        'endpoint = "http://x"\nhost = "a"\nlease = 0',
        'endpoint = "http://x"\nhost = "a"\nwindow = "at night"',
        'endpoint = "http://x"\nhost = "a"\nfoo = 1',
        "= 1",
    ],
)
def test_wrong_settings_say_what_is_wrong(text):
    with pytest.raises(ValueError, match=r"\w"):
        parse(text, "")


def test_one_has_it_and_gets_it_again(etcd_server, key):
    assert etcd.acquire(etcd_server, key, "a", 60) is None
    assert etcd.acquire(etcd_server, key, "a", 60) is None
    assert etcd.acquire(etcd_server, key, "b", 60).host == "a"
    assert not etcd.release(etcd_server, key, "b")
    assert etcd.release(etcd_server, key, "a")
    assert etcd.holder(etcd_server, key) is None
    assert etcd.acquire(etcd_server, key, "b", 60) is None


def test_of_many_at_once_one_gets_it(etcd_server, key):
    got: list[str] = []

    def race(host):
        if etcd.acquire(etcd_server, key, host, 60) is None:
            got.append(host)

    threads = [threading.Thread(target=race, args=(f"host-{n}",)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert etcd.holder(etcd_server, key).host == got[0]


def test_the_lease_ends_it(etcd_server, key):
    etcd.acquire(etcd_server, key, "a", 1)
    assert etcd.holder(etcd_server, key).host == "a"
    deadline = time.monotonic() + 15
    while etcd.holder(etcd_server, key) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def settings(system, endpoint, key, extra=""):
    path = system.sysroot.config_root / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'endpoint = "{endpoint}"\nkey = "{key}"\nhost = "a"\n{extra}')


def test_a_host_waits_for_another(bootc_system, etcd_server, key):
    system = bootc_system(plugins={"reboot_lock": plugin}, virtual_time=False)
    settings(system, etcd_server, key)
    system.transport.images[OS] = make_image("1")
    system.switch(OS)
    assert etcd.holder(etcd_server, key) is None
    system.transport.images[OS] = make_image("2")
    etcd.acquire(etcd_server, key, "b", 600)
    with pytest.raises(Held, match="b is switching") as caught:
        system.upgrade()
    left = datetime.fromisoformat(caught.value.until) - datetime.now(UTC)
    assert 500 < left.total_seconds() <= 600
    etcd.release(etcd_server, key, "b")
    system.upgrade()
    assert system.versions() == ("2", "1")


def test_the_one_who_loses_the_race_changes_nothing(bootc_system, etcd_server, key):
    """Another host takes the lock after our gate was asked."""

    class Faster:
        from bootc_core import hookimpl

        @hookimpl
        async def bootc_before_finalize(self):
            etcd.acquire(etcd_server, key, "b", 600)

    system = bootc_system(plugins={"reboot_lock": plugin, "a_faster": Faster()}, virtual_time=False)
    settings(system, etcd_server, key)
    system.transport.images[OS] = make_image("1")
    with pytest.raises(HookError, match="b has the lock"):
        system.switch(OS)
    assert system.versions() == (None, None)
    assert etcd.holder(etcd_server, key).host == "b"


def test_without_etcd_or_settings_nothing_goes_on(bootc_system):
    system = bootc_system(plugins={"reboot_lock": plugin}, virtual_time=False)
    system.transport.images[OS] = make_image("1")
    with pytest.raises(ConfigError):
        system.switch(OS)
    settings(system, "http://127.0.0.1:1", "x")
    with pytest.raises(TransportError, match="does not answer"):
        system.switch(OS)


class TestContract(GateContract):
    @pytest.fixture(autouse=True)
    def _server(self, etcd_server):
        self.endpoint = etcd_server

    def plugin(self):
        return plugin

    def prepare(self, config_root):
        path = config_root / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'endpoint = "{self.endpoint}"\nkey = "contract"\nhost = "a"\n')
