"""What would survive a power cut at the moment when the boot menu changes, judged from the durable steps.

A ledger watches ``fs.atomic`` and knows which files of the sysroot had their content, and which
names their directory, brought to the medium:

    syncfs DIR              everything there is fsync FILE              that file's content fsync
    DIR               the names in it write, rename, fsync DIR in a row       ``atomic.write_file``:
    content before name before directory

When the boot partition is first touched (anything but a sync), everything else of the sysroot has
to be durable, since the menu is about to refer to it. The engine's own state explains and decides
nothing, so it is left out, and so is the boot partition, whose order is the bootloader's matter.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bootc_core.models.sysroot import Sysroot

_Content = tuple[int, int]  # size, time of change


class Ledger:
    """An observer for ``atomic.observe``; what was there when it was made counts as durable.

    Attributes:
        left: what was not durable when the boot partition was first touched; None: it was not.
    """

    def __init__(self, sysroot: Sysroot) -> None:
        self._sysroot = sysroot
        self._durable: dict[tuple[int, int], _Content] = {}
        self._names: set[str] = set()  # given, their directory not yet synced
        self._recent: list[tuple[str, str]] = []
        self.left: list[str] | None = None
        self._scan()

    def __call__(self, step: str, path: str) -> None:
        """One durable step is about to happen."""
        if self.left is not None:
            return
        inside = Path(path).is_relative_to(self._sysroot.boot_dir)
        if inside and step not in {"fsync", "syncfs"}:
            self.left = self._undurable()
            return
        if step in {"rename", "symlink", "link"} and self._counts(Path(path)):
            self._names.add(path)
        elif step == "syncfs":
            self._scan()
            self._names.clear()
        elif step == "fsync":
            self._fsync(Path(path))
        self._recent = [*self._recent[-1:], (step, path)]

    def _counts(self, path: Path) -> bool:
        sysroot = self._sysroot
        return path.is_relative_to(sysroot.path) and not any(
            path.is_relative_to(place) for place in (sysroot.boot_dir, sysroot.state)
        )

    def _fsync(self, path: Path) -> None:
        if path.is_file():
            self._take(path)
            return
        self._names = {name for name in self._names if Path(name).parent != path}
        steps = [step for step, _ in self._recent]
        paths = {name for _, name in self._recent}
        if steps == ["write", "rename"] and len(paths) == 1:
            target = Path(paths.pop())
            if target.parent == path and target.is_file():
                self._take(target)

    def _take(self, path: Path) -> None:
        info = path.lstat()
        self._durable[info.st_dev, info.st_ino] = (info.st_size, info.st_mtime_ns)

    def _files(self) -> list[Path]:
        found = []
        for directory, names, files in os.walk(self._sysroot.path):
            place = Path(directory)
            names[:] = [name for name in names if self._counts(place / name)]
            found += [place / name for name in files]
        return [path for path in found if stat.S_ISREG(path.lstat().st_mode)]

    def _scan(self) -> None:
        if self._sysroot.path.is_dir():
            for path in self._files():
                self._take(path)

    def _undurable(self) -> list[str]:
        left = sorted(f"the name {name}" for name in self._names)
        for path in self._files():
            info = path.lstat()
            known = self._durable.get((info.st_dev, info.st_ino))
            if known != (info.st_size, info.st_mtime_ns):
                left.append(f"the content of {path}")
        return left
