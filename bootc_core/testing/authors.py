"""``bootc plugins new`` and ``bootc plugins check``: a plugin package begun, and one proved.

``check`` reads what the package declares, runs its own tests and those suites that need no help of the package, and prints a
certificate: which plugins, which hooks, where they run, every suite with its outcomes, and the digest of every file that was
looked at. It passes if each suite that the package's hooks call for was run and nothing failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bootc_core import __version__, process
from bootc_core.containment import declared as declarations
from bootc_core.errors import PluginError, UsageError, printable
from bootc_core.hooks.discovery import PluginSource
from bootc_core.hooks.markers import API, GROUP

CERTIFICATE: Final = 1
_TIMEOUT_S: Final = 1800.0

# hook -> the suite that a package with it has to pass
SUITES: Final = {
    "bootc_register_backends": "StorageContract",
    "bootc_register_transports": "TransportContract",
    "bootc_register_policies": "PolicyContract",
    "bootc_register_bootloaders": "BootloaderContract",
    "bootc_gate": "GateContract",
    **dict.fromkeys(declarations.PARTICIPANTS, "GateContract"),
}

_PROJECT = """\
[build-system]
requires = ["hatchling>=1.24"]
build-backend = "hatchling.build"

[project]
name = "bootc-{dashed}"
version = "0.1.0"
description = "A plugin for bootc: {name}."
requires-python = ">=3.11"
dependencies = ["bootc>=0.1"]

# This is all that makes it a plugin: bootc loads every entry point of this group.
[project.entry-points."bootc.plugins"]
{name} = "bootc_{name}.plugin"

[tool.hatch.build.targets.wheel]
packages = ["bootc_{name}"]

[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
filterwarnings = ["error"]
"""

_PLUGIN = '''\
"""Hook implementations only; what they need is imported when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootc_core import hookimpl

if TYPE_CHECKING:
    from bootc_core import Context, Phase, Verdict

BOOTC_API = 1
BOOTC_ON_FAILURE = "closed"  # "open": if this plugin breaks, a run goes on with a warning


@hookimpl
async def bootc_gate(context: Context, phase: Phase) -> Verdict | None:
    """May ``phase`` begin? None: no opinion."""
    from bootc_{name}.decide import decide, load

    if context.operation != "upgrade" or phase != "fetch":
        return None
    return decide(load(context.config_root))
'''

_DECIDE = '''\
"""The settings, and the decision: a pure function of them, so that its test is a table."""

from __future__ import annotations

from pathlib import Path

from bootc_core import Deny, Proceed, Verdict

FILE = "etc/bootc/{dashed}.stop"


def load(config_root: str) -> str | None:
    """Why upgrades shall not run, or None: the content of the file beneath ``config_root``."""
    try:
        return (Path(config_root) / FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def decide(reason: str | None) -> Verdict:
    """Deny with the reason, if there is one."""
    return Proceed() if reason is None else Deny(reason or "stopped")
'''

_TEST = '''\
"""The decision, the plugin on a whole host, and the contract of gates."""

from __future__ import annotations

import pytest
from bootc_{name} import plugin
from bootc_{name}.decide import FILE, decide

from bootc_core import Deny, Proceed
from bootc_core.errors import Denied
from bootc_core.testing import make_image
from bootc_core.testing.contracts import OS, GateContract


@pytest.mark.parametrize(
    ("reason", "verdict"), [(None, Proceed()), ("no", Deny("no")), ("", Deny("stopped"))]
)
def test_the_decision(reason, verdict):
    assert decide(reason) == verdict


def test_an_upgrade_is_stopped(bootc_system):
    system = bootc_system(plugins={{"{name}": plugin}})
    system.transport.images[OS] = make_image("1")
    system.switch(OS)
    system.transport.images[OS] = make_image("2")
    file = system.sysroot.config_root / FILE
    file.parent.mkdir(parents=True)
    file.write_text("not today\\n")
    with pytest.raises(Denied, match="not today"):
        system.upgrade()
    file.unlink()
    system.upgrade()
    assert system.versions() == ("2", "1")


class TestContract(GateContract):
    def plugin(self):
        return plugin
'''

_CONFTEST = '''\
"""The fixtures of bootc's test kit."""

pytest_plugins = ["bootc_core.testing.pytest_plugin"]
'''

_README = """\
# bootc-{dashed}

A plugin for bootc. Try it, prove it, install it:

    bootc plugins check .
    pip install .
    bootc plugins list
"""

_GENERIC = '''\
"""Made by ``bootc plugins check``: the suite for gates and participants, on the module as it is."""

from importlib import import_module

from bootc_core.testing.contracts import GateContract


class TestAsItIs(GateContract):
    def plugin(self):
        return import_module("{module}")
'''


def new(arguments: argparse.Namespace) -> int:
    """Write a package that works: a gate, its decision, tests with the suite.

    Raises:
        UsageError: the name cannot be one, or the directory is not empty.
    """
    name = arguments.name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
        raise UsageError(
            f"{printable(name, 60)} cannot be a plugin's name",
            expected="lower-case letters, digits and underscores, a letter first",
        )
    place = arguments.directory or Path(name)
    if place.exists() and any(place.iterdir()):
        raise UsageError(f"{printable(str(place))} is not empty", hint="give --directory DIR")
    files = {
        "pyproject.toml": _PROJECT,
        "README.md": _README,
        f"bootc_{name}/__init__.py": f'"""A plugin for bootc: {name}."""\n',
        f"bootc_{name}/plugin.py": _PLUGIN,
        f"bootc_{name}/decide.py": _DECIDE,
        "tests/conftest.py": _CONFTEST,
        f"tests/test_{name}.py": _TEST,
    }
    for path, text in files.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.format(name=name, dashed=name.replace("_", "-")), encoding="utf-8")
        sys.stdout.write(f"{target}\n")
    sys.stderr.write(f"Next: edit {place}/bootc_{name}/decide.py; bootc plugins check {place}\n")
    return 0


def _sources(place: Path) -> tuple[dict[str, Any], list[PluginSource]]:
    try:
        project = tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError) as problem:
        raise UsageError(
            f"{printable(str(place))} is not a package",
            expected="a directory with a pyproject.toml that has a [project]",
            found=printable(f"{type(problem).__name__}: {problem}"),
        ) from None
    entries = project.get("entry-points", {}).get(GROUP, {})
    if not entries:
        raise PluginError(
            f"{printable(str(place))} has no plugin",
            reference="plugin-broken",
            expected=f'[project.entry-points."{GROUP}"] in pyproject.toml',
        )
    name = str(project.get("name", "")).replace("-", "_")
    version = str(project.get("version", "0"))
    source = [
        PluginSource(key, module, name, version, str(place)) for key, module in entries.items()
    ]
    return project, source


def _digests(place: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(place.rglob("*")):
        hidden = any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(place).parts
        )
        if path.is_file() and not hidden and path.suffix in {".py", ".toml"}:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield str(path.relative_to(place)), f"sha256:{digest}"


def _run_tests(place: Path, generic: list[str], report: Path) -> process.Completed:
    with tempfile.TemporaryDirectory(prefix="bootc-check-") as scratch:
        made = Path(scratch)
        for number, module in enumerate(generic):
            (made / f"test_generic_{number}.py").write_text(_GENERIC.format(module=module))
        own = [str(place / "tests")] if (place / "tests").is_dir() else []
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "BOOTC_"))
        }
        environment |= {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
        return process.run_blocking(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *("-p", "bootc_core.testing.pytest_plugin", "--import-mode=importlib"),
                *("--basetemp", str(made / "tmp"), "--bootc-report", str(report)),
                *(*own, *([str(made)] if generic else [])),
            ],
            timeout_s=_TIMEOUT_S,
            env=environment,
            cwd=str(place),
            check=False,
            label="pytest",
        )


def _tested(place: Path, generic: list[str], needed: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Outcomes of the package's tests by suite, and what is wrong with them."""
    problems = []
    with tempfile.TemporaryDirectory(prefix="bootc-report-") as scratch:
        report = Path(scratch, "report.json")
        done = _run_tests(place, generic, report)
        try:
            suites: dict[str, Any] = json.loads(report.read_bytes())
        except (OSError, ValueError):
            suites = {}
            problems.append(f"the tests did not run: {done.last_lines() or done.ending()}")
    if done.returncode != 0:
        failed = [name for group in suites.values() for name in group.get("failed", ())]
        problems += [f"failed: {name}" for name in failed] or [f"pytest: {done.ending()}"]
    problems += [
        f"no passed test of {suite}: subclass it in tests/ (bootc_core.testing)"
        for suite in sorted(needed)
        if not suites.get(suite, {}).get("passed")
    ]
    return suites, problems


def certify(place: Path) -> dict[str, Any]:
    """The certificate of the package in ``place``; ``result`` is ``passed`` or ``failed``, with ``problems``.

    Raises:
        UsageError: it is no package.
        PluginError: it has no plugin, or one that cannot be read.
    """
    place = place.absolute()
    project, sources = _sources(place)
    problems: list[str] = []
    plugins = []
    needed: set[str] = set()
    generic = []
    for source in sources:
        declared = declarations.read(source)
        if declared.api != API:
            problems.append(f"{source.name}: BOOTC_API is {declared.api!r}, not {API}")
        where = "in process" if declared.provides else "in a child"
        if not declared.provides:
            try:
                declarations.check(source, declared)
            except PluginError as problem:
                problems.append(f"{source.name}: {problem.message}: {problem.found}")
                where = "in process, if root says so"
        needed |= {suite for hook, suite in SUITES.items() if hook in declared.hooks}
        if "GateContract" in {SUITES.get(hook) for hook in declared.hooks}:
            generic.append(source.module)
        plugins.append(
            {
                "name": source.name,
                "module": source.module,
                "api": declared.api,
                "hooks": sorted(declared.hooks),
                "runs": where,
                "on_failure": declared.on_failure,
            }
        )
    begin = time.monotonic()
    suites: dict[str, Any] = {}
    if not problems:  # what cannot be loaded needs no tests
        suites, problems = _tested(place, generic, needed)
    return {
        "certificate": CERTIFICATE,
        "result": "failed" if problems else "passed",
        "problems": problems,
        "package": project.get("name"),
        "version": str(project.get("version", "0")),
        "plugins": plugins,
        "suites": {
            name: {outcome: len(tests) for outcome, tests in sorted(group.items())}
            for name, group in sorted(suites.items())
        },
        "needed": sorted(needed),
        "seconds": round(time.monotonic() - begin, 1),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "bootc": __version__,
        "api": API,
        "python": platform.python_version(),
        "files": dict(_digests(place)),
    }


def check(arguments: argparse.Namespace) -> int:
    """Print the certificate as JSON; exit status 0 if it passed.

    Raises:
        UsageError: it is no package, or pytest is not installed.
        PluginError: it has no plugin, or one that cannot be read.
    """
    from importlib.util import find_spec

    if find_spec("pytest") is None:
        raise UsageError("plugins check needs pytest", hint="pip install pytest, or bootc[dev]")
    certificate = certify(arguments.package)
    sys.stdout.write(json.dumps(certificate, indent=2) + "\n")
    for problem in certificate["problems"]:
        sys.stderr.write(f"{printable(problem, 400)}\n")
    return 0 if certificate["result"] == "passed" else 1
