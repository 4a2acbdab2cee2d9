"""Networks and registries that misbehave (catalogue group N), at the real command line: what a person meets.

Every row is tested where it is met first; here are those whose error must be clear, and a host without any network.
"""

from __future__ import annotations

import json
import os

import pytest
from support import images, refusal
from support.faulty_http import Asked, FaultyServer, Peer
from support.refusal import Host, assert_refused
from support.registry import running_registry

pytestmark = pytest.mark.root
ALL = os.environ.get("BOOTC_BAD_INPUTS") == "all"
REALM = 'Bearer realm="https://auth.other.example/token",service="x"'


class Online(Host):
    """A host whose reference is in a registry."""

    def upgrade(self, *more, **how):
        return self.command("upgrade", *more, **how)

    def first(self, reference: str):
        return self.command("switch", "--no-signature-verification", "--quiet", reference)


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A host that was deployed from a registry, whose place a server of the test can take."""
    place = tmp_path_factory.mktemp("online")
    for version in ("1", "2"):
        images.build(place / version, refusal.layers(version), labels={"version": version})
    (place / "registry").mkdir()
    with running_registry(place / "registry") as registry:
        for version in ("1", "2"):
            registry.push(
                place / version, "acme/os:1" if version == "1" else "acme/os:2", tag="latest"
            )
        host = Online(place)
        done = host.first(f"{registry.authority}/acme/os:1")
        assert done.returncode == 0, done.stderr
        yield host, registry, place


def endless(peer: Peer, asked: Asked) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(2000):
        peer.send(b"10000\r\n" + b" " * 65536 + b"\r\n")


def raw(data: bytes):
    def reply(peer: Peer, asked: Asked) -> None:
        peer.send(data)
        peer.close()

    return reply


def moved(location: str):
    return lambda peer, asked: peer.reply(307, location=location)


ANSWERS = {
    "n01_portal": (
        lambda peer, asked: peer.reply(200, b"<html>Log in", content_type="text/html"), "INT", "web page",
    ),
    "n07_two_lengths": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), "NET", "two different lengths",
    ),
    "n09_endless": (endless, "LIM", "at most"),
    "n13_metadata": (moved("http://169.254.169.254/latest/meta-data"), "NET", "link-local"),
    "n13_file": (moved("file:///etc/shadow"), "NET", "not http or https"),
    "n14_loop": (moved("/v2/acme/os/manifests/1"), "NET", "more than 5 times"),
    "n15_realm": (
        lambda peer, asked: peer.reply(401, www_authenticate=REALM.replace("auth.other.example", "169.254.169.254")),
        "AUTH", "link-local",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_a_registry(name, tmp_path, online):
    """A host that is asked to switch to the image of such a registry stays as it is."""
    host, _, _ = online
    handler, catalogue, thing = ANSWERS[name]
    before = host.snapshot()
    with FaultyServer(handler) as server:
        done = host.first(f"{server.authority}/acme/os:1")
        error = assert_refused(done, catalogue, thing)
        assert server.authority in " ".join(error.values())
    host.assert_unchanged(before)
    assert len(server.requests) <= 12


def test_n30_no_network(tmp_path, online):
    """Downloaded in time, applied without network; back again; and an upgrade says whom it could not reach."""
    template, _, place = online
    host = Online(tmp_path)
    with running_registry(place / "registry") as registry:
        # on another port than before, since the registry of the other tests is still there
        assert host.first(f"{registry.authority}/acme/os:1").returncode == 0
        registry.push(place / "2", "acme/os:1", tag="latest")
        assert host.upgrade("--download-only").returncode == 0
        registry.push(place / "1", "acme/os:1", tag="latest")
    assert host.versions() == ("2", "1", None)
    done = host.upgrade("--from-downloaded")
    assert done.returncode == 0, done.stderr
    assert host.versions() == (None, "2", "1")
    assert host.command("rollback").returncode == 0
    assert host.versions()[1] == "1"
    if ALL:  # which has some seconds of patience
        before = host.snapshot()
        error = assert_refused(host.upgrade(), "NET", registry.authority)
        assert error["reference"] == "connection-refused"
        host.assert_unchanged(before)
    assert json.loads(host.command("status", "--json").stdout)["status"]["booted"]
    assert template.versions()[1] == "1"
