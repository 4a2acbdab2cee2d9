"""Whether root may run a plugin: everything that decides what it does belongs to root and is writable by root alone.

    site-packages and all above it       directories (a sticky one like /tmp: others cannot touch root's names in it)
    NAME-VERSION.dist-info/…             which module is the plugin
    the top-level package of the module  every directory and every .py, .pyc and .so file

For ordinary users nothing is checked: they trust themselves.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bootc_core.errors import PluginError, printable
from bootc_core.hooks.discovery import PluginSource

_CODE: Final = (".py", ".pyc", ".so", ".pth")
_FILES: Final = 20_000  # of one package; what is larger is not a plugin


def _files(place: Path) -> Iterator[Path]:
    yield place
    if not place.is_dir() or place.is_symlink():
        return
    count = 0
    for directory, names, files in os.walk(place):
        for name in (*names, *(file for file in files if file.endswith(_CODE) or "." not in file)):
            count += 1
            if count > _FILES:
                return
            yield Path(directory, name)


def _wrong(path: Path) -> str | None:
    try:
        info = path.stat()
    except FileNotFoundError:
        return None  # a link that leads nowhere runs nothing
    except OSError as problem:
        return os.strerror(problem.errno or 0)
    sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
    if info.st_uid != 0 or (info.st_mode & 0o022 and not sticky):
        return f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}"
    return None


def check(source: PluginSource, module: Path) -> None:
    """Nothing if root may run the plugin whose module is the file ``module``.

    Raises:
        PluginError: names the plugin and the first file or directory that others could change.
    """
    if os.geteuid() != 0:
        return
    package = module
    for _ in range(source.module.count(".")):
        package = package.parent
    places = [*_files(package)]
    meta = Path(source.location, f"{source.distribution}-{source.version}.dist-info")
    if meta.is_dir():
        places += [meta, meta / "entry_points.txt", *meta.absolute().parents]
    places += [*package.absolute().parents, *package.resolve().parents]
    for place in dict.fromkeys(places):
        if (found := _wrong(place)) is not None:
            raise PluginError(
                f"plugin {printable(source.name)} is not run as root: others could change it",
                reference="plugin-not-trusted",
                expected=f"{printable(str(place))} belongs to root, not writable by group or others",
                found=found,
                hint=f"install it again as root, or chown root and chmod go-w; "
                f'or block it: [plugins] blocked = ["{printable(source.name)}"]',
            )
