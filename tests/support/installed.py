"""A virtual environment with this project and other packages installed by pip, from their own project files, without network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [str(word) for word in argv],
        env={**keep, "LANG": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def install(python: Path, *what: str | Path) -> None:
    done = run(
        sys.executable,
        *("-m", "pip", "--python", python, "install", "--quiet", "--no-index"),
        *("--no-deps", "--no-build-isolation", *what),
    )
    assert done.returncode == 0, done.stderr


def environment(place: Path, *packages: Path) -> Path:
    """``bin`` of a new environment; dependencies come from the environment that runs the tests."""
    made = run(sys.executable, "-m", "venv", "--without-pip", place)
    assert made.returncode == 0, made.stderr
    python = place / "bin/python"
    shown = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(shown.stdout.strip()) / "dependencies.pth").write_text(
        "".join(f"{path}\n" for path in sorted(ours))
    )
    install(python, "-e", ROOT)
    for package in packages:
        install(python, package)
    return place / "bin"
