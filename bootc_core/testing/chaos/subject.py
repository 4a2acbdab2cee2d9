"""What is put to the test: a storage backend with its bootloader, described by its author in a Python file.

# chaos.py
from bootc_core.testing.chaos import Subject

SUBJECT = Subject(
    "mine",
    packages=("..",),                                  # directories with a pyproject.toml, if they are not installed
    tree=lambda sysroot, name: sysroot.path / "mine/deploy" / name / "root",
    etc=lambda sysroot, name: sysroot.path / "mine/deploy" / name / "etc",
    var=lambda sysroot: sysroot.path / "mine/var",
)

python -m bootc_core.testing.chaos kill errno power --subject chaos.py
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bootc_core.boot import bls
from bootc_core.errors import UsageError, printable
from bootc_core.hooks.markers import GROUP
from bootc_core.models.boot import PresentEntry
from bootc_core.models.sysroot import Sysroot

Content = bytes | None
"""Of a regular file; None: something else, or it is not there."""


def read_tree(place: Path, below: str = "usr") -> dict[str, Content]:
    """Path to content of the files beneath ``place/below``; links by their target."""
    found: dict[str, Content] = {}
    for directory, _, names in os.walk(place / below):
        for name in names:
            path = Path(directory, name)
            key = str(path.relative_to(place))
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                found[key] = os.fsencode(path.readlink())
            else:
                found[key] = path.read_bytes() if stat.S_ISREG(mode) else None
    return found


def _first_of_entry(sysroot: Sysroot, entry: PresentEntry) -> str | None:
    del sysroot
    return bls.deployment_of(entry)


def _no_check(sysroot: Sysroot) -> Sequence[str]:
    del sysroot
    return ()


@dataclass(frozen=True, slots=True)
class Subject:
    """A storage backend, and where a deployment's parts are.

    Attributes:
        name: as ``--backend`` takes it.
        tree: the directory with a deployment's ``usr``, by the deployment's identifier.
        etc, var: as running systems would see them.
        content: instead of ``tree``, for backends that have no such directory: path to content of every file below ``usr``.
        check: problems that the backend's own check finds, one line each (``bootc fsck`` or the like).
        deployment_of: the deployment that a boot entry boots, where entries name them in a way of their own.
        packages: directories of plugin packages that are not installed.
        arguments: further arguments of ``bootc switch``.
        boot: file systems that the boot partition may have.
        modules: what a run imports, imported once for all runs.
        source, installed: the file that it came from, and where its packages were made known; set by ``load``.
    """

    name: str
    tree: Callable[[Sysroot, str], Path] | None
    etc: Callable[[Sysroot, str], Path]
    var: Callable[[Sysroot], Path]
    content: Callable[[Sysroot, str], Mapping[str, Content]] | None = None
    check: Callable[[Sysroot], Sequence[str]] = _no_check
    deployment_of: Callable[[Sysroot, PresentEntry], str | None] = _first_of_entry
    packages: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    boot: tuple[str, ...] = ("ext4",)
    modules: tuple[str, ...] = ()
    source: str = ""
    installed: str = ""

    def files(self, sysroot: Sysroot, name: str) -> Mapping[str, Content]:
        """Every file below ``usr`` of a deployment."""
        if self.content is not None:
            return self.content(sysroot, name)
        if self.tree is None:
            raise UsageError(f"subject {self.name} has neither tree nor content")
        return read_tree(self.tree(sysroot, name))


def load(path: Path, scratch: Path) -> Subject:
    """The subject of a file, its packages made importable, as if they were installed.

    Raises:
        UsageError: it has none.
    """
    specification = importlib.util.spec_from_file_location(f"chaos_subject_{path.stem}", path)
    if specification is None or specification.loader is None or not path.is_file():
        raise UsageError(f"{printable(str(path))} is no Python file with a SUBJECT")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    subject = getattr(module, "SUBJECT", None)
    if not isinstance(subject, Subject):
        raise UsageError(
            f"{printable(str(path))} has no SUBJECT",
            expected="SUBJECT = bootc_core.testing.chaos.Subject(...)",
        )
    for package in subject.packages:
        install(path.parent / package, scratch)
    return replace(subject, source=str(path), installed=str(scratch))


def install(package: Path, scratch: Path) -> None:
    """Make the plugins of a package known to this process and its children: what ``pip install -e`` would write, in ``scratch``.

    Raises:
        UsageError: it has no plugin.
    """
    try:
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        plugins = project["entry-points"][GROUP]
    except (OSError, ValueError, KeyError) as problem:
        raise UsageError(
            f"{printable(str(package))} has no plugin", found=type(problem).__name__
        ) from None
    name = str(project["name"]).replace("-", "_")
    scratch.mkdir(parents=True, exist_ok=True)
    place = scratch / f"{name}-{project.get('version', '0')}.dist-info"
    place.mkdir(exist_ok=True)
    lines = [f"[{GROUP}]", *(f"{key} = {value}" for key, value in plugins.items()), ""]
    (place / "entry_points.txt").write_text("\n".join(lines))
    for entry in (str(scratch), str(package.resolve())):
        if entry not in sys.path:
            sys.path.append(entry)
