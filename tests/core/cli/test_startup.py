"""What the fast commands may import. Time itself is measured by the benchmarks; a test that reads a clock would be flaky."""

import subprocess
import sys

import pytest

HEAVY = {
    "trio",
    "pydantic",
    "ssl",
    "http",
    "asyncio",
    "rich",
    "yaml",
    "cryptography",
    "isal",
    "backports.zstd",
    "tenacity",
}
CODE = """
import sys
from bootc_core.cli.main import main
try:
    status = main({arguments!r})
except SystemExit as stop:
    status = stop.code
print(sorted(set(sys.modules)), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["switch", "--help"],
        ["trust", "--help"],
        ["trust", "show", "--sysroot", "EMPTY", "--help"],
        ["status"],
        ["status", "--json"],
        ["status", "--sysroot", "EMPTY"],
        ["completion", "bash"],
    ],
)
def test_no_heavy_module(arguments, tmp_path):
    arguments = [str(tmp_path) if word == "EMPTY" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CODE.format(arguments=arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules = set(eval(done.stderr.splitlines()[-1]))
    assert modules & HEAVY == set()
