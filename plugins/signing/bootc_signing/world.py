"""What a check needs of this host: key files beneath the configuration root, and the time.

Paths in policies are those of the system whose configuration it is: with
``--config-root DIR``, ``/etc/pki/x`` is ``DIR/etc/pki/x``.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import printable
from bootc_core.fs.trusted import read_trusted
from bootc_signing.claims import CannotCheck

# No clock of a running host is before this: one that is has lost its battery (2026-11-01)
FLOOR: Final = 1_793_491_200


@dataclass(frozen=True, slots=True)
class World:
    """This host, as checks see it.

    Attributes:
        root: configuration root.
        clock: seconds since 1970.
    """

    root: Path
    clock: Callable[[], float] = time.time
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def now(self) -> datetime:
        """The time, never before ``FLOOR``: what expired does not come back to life with a dead clock."""
        return datetime.fromtimestamp(max(self.clock(), FLOOR), UTC)

    def clock_is_wrong(self) -> bool:
        """Whether the clock is before anything that it can be."""
        return self.clock() < FLOOR

    def place(self, name: str) -> Path:
        """Where the file is that a policy calls ``name``."""
        path = Path(name)
        if self.root == Path("/") or path.is_relative_to(self.root):
            return path
        return self.root / name.lstrip("/")

    def read(self, name: str) -> bytes:
        """A file that a policy names.

        Raises:
            CannotCheck: it is not there.
            ConfigError: others could change it, or it cannot be read.
        """
        path = self.place(name)
        data = read_trusted(path, root=self.root)
        if data is None:
            raise CannotCheck(
                f"there is no file {printable(str(path))}", "put it there, or correct the policy"
            )
        return data

    def sources(
        self, paths: Iterable[str | None] = (), datas: Iterable[str | None] = (), what: str = "key"
    ) -> list[tuple[str, bytes]]:
        """Name and content of keys given as files or as base64 in the policy."""
        found = [(printable(name), self.read(name)) for name in paths if name]
        inline = [base64.b64decode(text) for text in datas if text]
        return [*found, *((f"the {what} in the policy", data) for data in inline)]

    def cached(self, key: str, make: Callable[[], Any]) -> Any:
        """``make()``, once."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
