"""What shall boot, as data: backends say it, bootloaders make it effective.

A ``BootPlan`` is the whole wish: the entries in the order in which they shall be offered, the first one boots next. Entries of
others on the boot partition are left alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class BootFile:
    """A file that an entry needs on the boot partition: content at ``source``, to be found at ``path`` there.

    ``path`` is relative to the boot partition, e.g. ``EFI/Linux/bootc_composefs-<id>/vmlinuz``.
    """

    path: str
    source: Path
    size: int
    sha256: str  # hex


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One entry of the boot menu (Boot Loader Specification type 1).

    Attributes:
        deployment_id: the backend's name of the deployment; part of file names, so ``[A-Za-z0-9._-]`` only.
        os_id: ``ID`` of os-release.
        title: ``PRETTY_NAME`` of os-release.
        version: of os-release; shown in the menu.
        options: the kernel command line.
        linux: kernel.
        initrd: initial RAM disks, in order.
        machine_id: or None.
        extra: further keys, in order.
    """

    deployment_id: str
    os_id: str
    title: str
    version: str
    options: str
    linux: BootFile
    initrd: tuple[BootFile, ...] = ()
    machine_id: str | None = None
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[BootFile, ...]:
        """Kernel and initrds."""
        return (self.linux, *self.initrd)

    def to_json(self) -> dict[str, Any]:
        """JSON form; ``from_json`` reads it."""
        value = asdict(self)
        for file in (value["linux"], *value["initrd"]):
            file["source"] = str(file["source"])
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BootEntry:
        """The entry in ``value``, as ``to_json`` wrote it."""

        def file(item: dict[str, Any]) -> BootFile:
            return BootFile(item["path"], Path(item["source"]), item["size"], item["sha256"])

        return cls(
            deployment_id=value["deployment_id"],
            os_id=value["os_id"],
            title=value["title"],
            version=value["version"],
            options=value["options"],
            linux=file(value["linux"]),
            initrd=tuple(file(item) for item in value["initrd"]),
            machine_id=value.get("machine_id"),
            extra=tuple((key, text) for key, text in value.get("extra", ())),
        )


@dataclass(frozen=True, slots=True)
class PresentEntry:
    """An entry found on the boot partition: its file and parsed keys (repeated keys in order)."""

    file: str  # relative to the boot partition, e.g. "loader/entries/bootc_debian-13-1.conf"
    keys: tuple[tuple[str, str], ...]

    def get(self, key: str) -> str | None:
        """The first value of ``key``, or None."""
        return next((value for name, value in self.keys if name == key), None)

    def all(self, key: str) -> tuple[str, ...]:
        """All values of ``key``, in order."""
        return tuple(value for name, value in self.keys if name == key)


@dataclass(frozen=True, slots=True)
class BootPlan:
    """The wished boot menu.

    Attributes:
        entries: of this backend's deployments, first boots next. An element is a whole ``BootEntry``, or the
            ``deployment_id`` of one that is on the boot partition already and stays as it is.
        effective: the backend made it effective itself (as libostree does); the bootloader only refreshes what it derives.
        details: the backend's own notes for its cleanup, JSON values only.
        tries: how often the first entry may be tried before the next one boots instead; 0: not counted, since it is known to be
            good, or nobody would say so; None: as it is. Loaders that cannot count ignore it.
    """

    entries: tuple[BootEntry | str, ...] = ()
    effective: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    tries: int | None = None
