"""Ways to break any backend deliberately: applied in the process that runs a command, before it. Every suite has to notice its own.

A suite counts only if it fails on these; ``tests/chaos`` shows that it does. A backend's own tests can pass others: any function
that breaks something when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bootc_core.fs import atomic

Change = Callable[[], None]


def _nothing(*arguments: object, **options: object) -> None:
    """In the place of a flush."""


def drop_flush(number: int) -> None:
    """The n-th flush (fsync, fdatasync, syncfs) of this process does nothing; the others work."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def flush(*arguments: object, **options: object) -> Any:
            nonlocal count
            count += 1
            return 0 if count == number else real(*arguments, **options)

        return flush

    os.fsync = counted(os.fsync)
    os.fdatasync = counted(os.fdatasync)
    setattr(atomic, "_libc", _Library(atomic._libc, counted(atomic._libc.syncfs)))  # noqa: B010 - of another type


class _Library:
    """The C library with another ``syncfs``."""

    def __init__(self, real: Any, syncfs: Callable[..., Any]) -> None:
        self._real, self.syncfs = real, syncfs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def no_flush() -> None:
    """No flush at all."""
    os.fsync = os.fdatasync = _nothing
    setattr(atomic, "_libc", _Library(atomic._libc, lambda descriptor: 0))  # noqa: B010


def write_in_place() -> None:
    """Files are truncated and written where they are."""

    def write_file(
        path: atomic.StrPath, data: bytes, *, mode: int = 0o644, sync: bool = True
    ) -> None:
        Path(path).write_bytes(data)

    atomic.write_file = write_file


def no_cleaning() -> None:
    """What a killed run left stays for ever."""
    atomic.rmtree = _nothing


def errors_ignored() -> None:
    """No system call's error is seen."""

    @contextmanager
    def mapped(doing: str, path: atomic.StrPath) -> Iterator[None]:
        del doing, path
        try:
            yield
        except OSError:
            return

    atomic.mapped = mapped


def no_lock() -> None:
    """Everybody gets the lock."""
    from bootc_core.engine import orchestrator

    @contextmanager
    def exclusive(sysroot: object, operation: str) -> Iterator[None]:
        del operation
        atomic.mkdir(sysroot.state)  # type: ignore[attr-defined]
        yield

    setattr(orchestrator, "exclusive", exclusive)  # noqa: B010 - it is not its own name


DEFECTS: Final[dict[str, Change]] = {
    "no-flush": no_flush,
    "write-in-place": write_in_place,
    "no-cleaning": no_cleaning,
    "errors-ignored": errors_ignored,
    "no-lock": no_lock,
}
"""By name, for ``--defect``."""
