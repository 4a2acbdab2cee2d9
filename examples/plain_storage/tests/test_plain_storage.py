"""The suite of storage backends, on the bootloader that ships with bootc; and what the suite's images do not have."""

from __future__ import annotations

import os

import bootc_systemd_boot.plugin
import pytest
from bootc_plain_storage import plugin

from bootc_core.testing import Link, System, make_image
from bootc_core.testing.contract import OS, StorageContract


class TestContract(StorageContract):
    kill_every = int(os.environ.get("PLAIN_KILL_EVERY", "3"))

    def system(self, path):
        return System(
            path, backend=plugin, bootloader=bootc_systemd_boot.plugin, virtual_time=False
        )

    def etc(self, system):
        return system.sysroot.path / "plain/deploy" / system.booting()[0] / "etc"

    def var(self, system):
        return system.sysroot.path / "plain/var"


@pytest.fixture
def system(tmp_path):
    return TestContract().system(tmp_path)


def test_links_and_modes_arrive(system):
    files = {"usr/lib/link": Link("version"), "usr/bin/tool": b"#!/bin/sh\n"}
    system.transport.images[OS] = make_image("1", files=files)
    system.switch(OS)
    root = system.sysroot.path / "plain/deploy" / system.booting()[0] / "root"
    assert (root / "usr/lib/link").readlink().name == "version"
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "bin").readlink().name == "bin"
