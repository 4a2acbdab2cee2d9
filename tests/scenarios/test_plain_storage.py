"""The example backend, installed, in the place of both built-in ones; and its own tests where it is installed."""

from __future__ import annotations

import json
import shutil

import pytest
from support.installed import ROOT, environment, run

from bootc_core.testing import make_image

EXAMPLE = ROOT / "examples/plain_storage"


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("plain") / "venv", EXAMPLE)


@pytest.mark.parametrize("blocked", ["composefs", "ostree"])
def test_it_takes_the_place_of_a_built_in_backend(tmp_path, tools, blocked):
    config = tmp_path / "config"
    (config / "etc/containers").mkdir(parents=True)
    (config / "etc/bootc/config.d").mkdir(parents=True)
    (config / "etc/containers/policy.json").write_text(
        '{"default": [{"type": "insecureAcceptAnything"}]}'
    )
    (config / "etc/bootc/config.d/10-plain.toml").write_text(
        f'[plugins]\nblocked = ["{blocked}"]\n[storage]\nbackend = "plain"\n'
    )
    where = ("--sysroot", tmp_path / "host", "--config-root", config)

    def bootc(*words):
        done = run(tools / "bootc", *words, *where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    make_image("1").write_layout(tmp_path / "layout", "stable")
    bootc("switch", "--transport", "oci", f"{tmp_path}/layout:stable")
    make_image("2").write_layout(tmp_path / "layout", "stable")
    bootc("upgrade")
    status = json.loads(bootc("status", "--json"))["status"]
    assert status["booted"]["image"]["version"] == "2"
    bootc("rollback")
    status = json.loads(bootc("status", "--json"))["status"]
    assert status["booted"]["image"]["version"] == "1"
    assert (tmp_path / "host/plain/deploy").is_dir()
    assert not (tmp_path / "host/composefs").exists()


def test_it_gets_its_certificate(tmp_path, tools):
    shutil.copytree(EXAMPLE, tmp_path / "plain")
    done = run(tools / "bootc", "plugins", "check", tmp_path / "plain", PLAIN_KILL_EVERY="7")
    certificate = json.loads(done.stdout)
    assert certificate["problems"] == []
    assert certificate["needed"] == ["StorageContract"]
    assert certificate["suites"]["StorageContract"]["passed"] >= 25
    assert certificate["plugins"][0]["runs"] == "in process"
