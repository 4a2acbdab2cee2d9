"""Reading a file of the administrator: bounded, regular, and (for root) writable by root alone.

    open O_NONBLOCK               a FIFO or device never blocks a run
    fstat                         regular, small, owner root, not group- or world-writable
    parents                       the same, up to the configuration root

Symbolic links are followed only if they end inside the configuration root and what they lead to passes the same checks.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bootc_core import limits
from bootc_core.errors import ConfigError, printable


def check_owner(path: Path, info: os.stat_result, root: Path) -> None:
    """Refuse what somebody else could have changed; for root only, since an ordinary user trusts himself.

    Raises:
        ConfigError: names the file or directory, its owner and mode.
    """
    if os.geteuid() != 0:
        return
    todo = [(path, info)]
    parent = path.parent
    while parent != parent.parent and parent.is_relative_to(root) and parent != root:
        todo.append((parent, parent.stat()))
        parent = parent.parent
    for place, found in todo:
        if found.st_uid != 0 or (found.st_mode & 0o022 and not _sticky(found)):
            raise ConfigError(
                f"{printable(str(place))} can be changed by others than root",
                reference="unsafe-permissions",
                expected="owner root, not writable by group or others",
                found=f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}",
                hint=f"chown root {printable(str(place))} && chmod go-w {printable(str(place))}",
            )


def _sticky(info: os.stat_result) -> bool:
    """A directory like /tmp: others can add names, and cannot touch those of root."""
    return stat.S_ISDIR(info.st_mode) and bool(info.st_mode & stat.S_ISVTX)


def _beneath(path: Path, descriptor: int, root: Path) -> Path:
    """Where the opened file really is; a name beneath ``root`` may not lead out of it."""
    try:
        real = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:  # no /proc: as the names say now
        real = path.resolve()
    if path.is_relative_to(root) and not real.is_relative_to(root.resolve()):
        raise ConfigError(
            f"{printable(str(path))} leads out of the configuration root",
            reference="unsafe-link",
            expected=f"a file beneath {printable(str(root))}",
            found=printable(str(real)),
            hint="copy the file there, or correct the link",
        )
    return real


def read_trusted(
    path: Path, *, root: Path = Path("/"), limit: int = limits.SETTINGS_FILE_BYTES
) -> bytes | None:
    """The content of a settings file, or None if it does not exist (or is masked by a link to ``/dev/null``).

    Raises:
        ConfigError: not a regular file, too large, unreadable, or writable by others than root.
    """
    name = printable(str(path))
    try:
        if path.is_symlink() and path.readlink() == Path("/dev/null"):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(
                f"{name} is a link that leads nowhere",
                reference="unreadable",
                found=printable(str(path.readlink())),
                hint="correct the link; one to /dev/null masks the file",
            ) from None
        return None
    except OSError as problem:
        raise ConfigError(
            f"cannot read {name}", reference="unreadable", found=os.strerror(problem.errno or 0)
        ) from None
    try:
        info = os.fstat(descriptor)
        real = _beneath(path, descriptor, root)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(
                f"{name} is not a regular file",
                reference="unreadable",
                found=stat.filemode(info.st_mode),
            )
        if info.st_size > limit:
            raise ConfigError(
                f"{name} is too large",
                reference="too-large",
                expected=f"at most {limit} bytes",
                found=str(info.st_size),
            )
        check_owner(path, info, root)
        check_owner(real, info, root.resolve())  # of a link, both ends count
        pieces, left = [], limit + 1
        while left and (piece := os.read(descriptor, left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    except OSError as problem:
        raise ConfigError(
            f"cannot read {name}", reference="unreadable", found=os.strerror(problem.errno or 0)
        ) from None
    finally:
        os.close(descriptor)
