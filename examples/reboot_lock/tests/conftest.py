"""A real etcd for the tests."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootc_reboot_lock import etcd

from bootc_core.errors import TransportError

pytest_plugins = ["bootc_core.testing.pytest_plugin"]


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its endpoint."""
    program = shutil.which("etcd")
    if program is None:
        pytest.fail("etcd is not installed: apt-get install etcd-server")
    place: Path = tmp_path_factory.mktemp("etcd")
    client, peer = _free_ports()
    endpoint, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                program,
                *("--data-dir", str(place / "data"), "--name", "one"),
                *("--listen-client-urls", endpoint, "--advertise-client-urls", endpoint),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"one={peers}", "--unsafe-no-fsync"),
            ],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(TransportError):
            etcd.call(endpoint, "kv/range", {"key": "YQ=="})
            break
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail((place / "log").read_text()[-2000:])
        time.sleep(0.05)
    yield endpoint
    server.terminate()
    server.wait(10)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A lock of the test's own."""
    return f"test/{request.node.name}"
