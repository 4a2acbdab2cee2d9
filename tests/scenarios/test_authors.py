"""From nothing to a plugin that stops a real upgrade: new, edit, check, install, seen. Offline; each step is timed."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from support.installed import environment, install, run

from bootc_core.testing import make_image
from bootc_core.testing.authors import certify


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("author")


def test_new_edit_check_install_and_seen_in_a_run(place, capsys):
    tools = environment(place / "venv")
    bootc = tools / "bootc"
    package = place / "weekdays"
    times: dict[str, float] = {}

    def timed(name, *argv):
        begin = time.monotonic()
        done = run(*argv)
        times[name] = time.monotonic() - begin
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    timed("new", bootc, "plugins", "new", "weekdays", "--directory", package)
    decide = package / "bootc_weekdays/decide.py"
    text = decide.read_text()
    assert 'Deny(reason or "stopped")' in text
    decide.write_text(
        text.replace('Deny(reason or "stopped")', 'Deny(reason or "not on weekdays")')
    )
    tests = package / "tests/test_weekdays.py"
    tests.write_text(tests.read_text().replace('Deny("stopped")', 'Deny("not on weekdays")'))
    certificate = json.loads(timed("check", bootc, "plugins", "check", package).stdout)
    assert certificate["result"] == "passed"
    assert certificate["suites"]["GateContract"] == {"passed": 10}
    assert certificate["plugins"][0]["runs"] == "in a child"
    assert "bootc_weekdays/decide.py" in certificate["files"]
    begin = time.monotonic()
    install(tools / "python", package)
    times["install"] = time.monotonic() - begin

    config = place / "config"
    (config / "etc/containers").mkdir(parents=True)
    (config / "etc/bootc").mkdir()
    (config / "etc/containers/policy.json").write_text(
        '{"default": [{"type": "insecureAcceptAnything"}]}'
    )
    where = ("--sysroot", place / "host", "--config-root", config)
    make_image("1").write_layout(place / "layout", "stable")
    timed("switch", bootc, "switch", "--transport", "oci", f"{place}/layout:stable", *where)
    make_image("2").write_layout(place / "layout", "stable")
    (config / "etc/bootc/weekdays.stop").write_text("")
    begin = time.monotonic()
    done = run(bootc, "upgrade", *where)
    times["stopped upgrade"] = time.monotonic() - begin
    assert done.returncode == 1
    assert "weekdays does not allow fetch: not on weekdays" in done.stderr
    assert "weekdays: denies fetch: not on weekdays" in run(bootc, "why-not", *where).stdout
    listed = run(bootc, "plugins", "list").stdout
    assert "weekdays runs in a child, fails closed\n" in listed
    (config / "etc/bootc/weekdays.stop").unlink()
    timed("upgrade", bootc, "upgrade", *where)
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()))
    assert sum(times.values()) < 180

    # the same upgrade in the process, since root says so: the same contract
    (config / "etc/bootc/config.d").mkdir()
    (config / "etc/bootc/config.d/10-trust.toml").write_text(
        '[plugins]\nin-process = ["weekdays"]\n'
    )
    (config / "etc/bootc/weekdays.stop").write_text("twice")
    done = run(bootc, "upgrade", *where)
    assert "weekdays does not allow fetch: twice" in done.stderr
    listed = run(bootc, "plugins", "list", "--config-root", config).stdout
    assert "weekdays runs in process, fails closed\n" in listed


@pytest.fixture
def package(place, tmp_path):
    shutil.copytree(place / "weekdays", tmp_path / "weekdays")
    return tmp_path / "weekdays"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("return decide(", "return bool(", "failed: tests/test_weekdays.py::TestContract::"),
        ("BOOTC_API = 1", "BOOTC_API = 7", "weekdays: BOOTC_API is 7, not 1"),
        (
            "from bootc_core import hookimpl\n",
            "from bootc_core import hookimpl\nfrom bootc_weekdays.decide import bootc_verify\n",
            "bootc_verify is not a function with @hookimpl at the top level",
        ),
        (
            "@hookimpl\nasync def bootc_gate(",
            "@hookimpl\ndef bootc_register_policies():\n    return []\n\n\n@hookimpl\nasync def bootc_gate(",
            "no passed test of PolicyContract",
        ),
    ],
)
def test_a_package_that_is_not_right_gets_no_certificate(package, old, new, problem):
    path = package / "bootc_weekdays/plugin.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    certificate = certify(package)
    assert certificate["result"] == "failed"
    assert any(problem in one for one in certificate["problems"]), certificate["problems"]


@pytest.mark.root
def test_others_may_not_change_what_root_runs(place):
    """A package that others than root can write is refused by name, and blocking it is the remedy."""
    import os

    bootc = place / "venv/bin/bootc"
    (packages,) = (place / "venv/lib").glob("python*/site-packages")
    for path, mode in (
        (packages / "bootc_weekdays/decide.py", 0o666),
        (packages / "bootc_weekdays", 0o777),
        (packages, 0o777),
    ):
        before = path.stat().st_mode & 0o7777
        path.chmod(mode)
        done = run(bootc, "plugins", "list")
        path.chmod(before)
        assert done.returncode == 1
        assert "plugin weekdays is not run as root: others could change it" in done.stderr
        assert f"{path} belongs to root" in done.stderr
        assert f"mode {mode:04o}" in done.stderr
    path = packages / "bootc_weekdays/plugin.py"
    os.chown(path, 1234, -1)
    done = run(bootc, "plugins", "list")
    assert "owner 1234" in done.stderr
    assert run(bootc, "plugins", "list", "--no-plugin", "weekdays").returncode == 0
    assert run(bootc, "plugins", "list", "--safe-mode").returncode == 0
    os.chown(path, 0, -1)
    assert run(bootc, "plugins", "list").returncode == 0
