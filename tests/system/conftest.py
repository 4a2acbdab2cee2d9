"""A host that booted, for all tests of what commands do there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.booted import BOOTC, Booted, version
from support.images import build


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A layout with version 1, and a host that was deployed from it."""
    home = tmp_path_factory.mktemp("base")
    build(home / "oci", [version(1)], tag="os")
    done = subprocess.run(
        [
            *(BOOTC, "switch", "--sysroot", home / "host", "--no-signature-verification"),
            *("--transport", "oci", f"{home}/oci:os"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def layout(base, tmp_path):
    return Path(shutil.copytree(base / "oci", tmp_path / "oci"))


@pytest.fixture
def host(base, layout, tmp_path):
    """A host that booted version 1 and follows it."""
    shutil.copytree(base / "host", tmp_path / "host", symlinks=True)
    (first,) = os.listdir(tmp_path / "host/state/deploy")
    origin = tmp_path / f"host/state/deploy/{first}/{first}.origin"
    origin.write_text(origin.read_text().replace(f"{base}/oci", str(layout)))
    return Booted(tmp_path / "booted", tmp_path / "host", first)
