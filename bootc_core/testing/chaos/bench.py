# ruff: noqa: S101 - a test suite, though it ships in the package: assert is its language
"""The host that is put to the test: tiny images, the states before each command, the commands, and the judgement of a state.

    command     before      after       what it is
    switch      -           1           the first image, into an empty directory
    upgrade     1           2, 1        fetch, stage, finalize, tidy up
    download    1           1 (2)       ``upgrade --download-only``: staged, not switched
    finalize    1 (2)       2, 1        ``upgrade --from-downloaded``
    rollback    2, 1 (3)    1, 2        drops what is staged
    collect     2, 1        3, 2        an upgrade with a deployment, an image and a layer to delete

A state is *old* or *new* by the version that boots next, and it has to be whole: every entry of the menu leads to a deployment
with the image's files, byte for byte, with the merged ``/etc`` and with its kernel; ``/var`` is kept.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bootc_core.cli import main as cli
from bootc_core.config import Config
from bootc_core.containment import loading
from bootc_core.engine import sysroots
from bootc_core.errors import BootcError
from bootc_core.fs import atomic
from bootc_core.hooks import manager
from bootc_core.models.boot import PresentEntry
from bootc_core.models.host import Deployment, HostStatus
from bootc_core.models.sysroot import Sysroot
from bootc_core.testing.chaos import defects, tracer
from bootc_core.testing.chaos.subject import Content, Subject
from bootc_core.testing.harness import remove_tree
from bootc_core.testing.images import (
    INITRD_BYTES,
    KERNEL,
    KERNEL_BYTES,
    FakeImage,
    FakeLayer,
    Files,
    Link,
    make_layer,
)

Version = str | None
Defect = Callable[[], None]

_PRELOADED: Final = (
    "bootc_core.cli.deploy",
    "bootc_core.cli.status",
    "bootc_core.engine.orchestrator",
    "bootc_core.oci.importer",
    "trio",
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command with the states before and after: what boots next, and what is kept."""

    name: str
    old: tuple[Version, Version]
    new: tuple[Version, Version]
    staged: Version = None
    stages: Version = None


COMMANDS: Final = {
    command.name: command
    for command in (
        Command("switch", (None, None), ("1", None)),
        Command("upgrade", ("1", None), ("2", "1")),
        Command("download", ("1", None), ("1", None), stages="2"),
        Command("finalize", ("1", None), ("2", "1"), staged="2"),
        Command("rollback", ("2", "1"), ("1", "2"), staged="3"),
        Command("collect", ("2", "1"), ("3", "2")),
    )
}


def files_of(version: str) -> dict[str, bytes]:
    """What distinguishes a version: some ten small files."""
    own = {
        f"usr/share/{version}/{number}": f"{version} {number} ".encode() * 40 for number in range(6)
    }
    return {
        **own,
        "usr/lib/bootc/kargs.d/10.toml": f'kargs = ["version={version}"]\n'.encode(),
        "etc/test.conf": f"setting = {version}\n".encode(),
        "usr/lib/os-release": f'ID=test\nPRETTY_NAME="Test OS {version}"\nVERSION_ID={version}\n'.encode(),
        "usr/share/version": f"{version}\n".encode(),
        f"etc/from-{version}": b"new\n",
    }


_BASE: Final[Files] = {
    **dict.fromkeys(("boot/", "dev/", "proc/", "run/", "sys/", "sysroot/", "tmp/"), b""),
    "bin": Link("usr/bin"),
    "etc/hostname": b"localhost\n",
    "etc/removed.conf": b"delete me\n",
    "usr/bin/true": b"#!/bin/sh\nexit 0\n",
    "usr/lib/middle": bytes(range(256)) * 40,
    **{f"usr/lib/part-{number}": f"part {number} ".encode() * 30 for number in range(6)},
    "var/lib/seed": b"once\n",
    f"usr/lib/modules/{KERNEL}/vmlinuz": KERNEL_BYTES,
    f"usr/lib/modules/{KERNEL}/initramfs.img": INITRD_BYTES,
}


def image(version: str) -> FakeImage:
    """A bootable image of some 30 objects in two layers, the lower one shared by all versions."""
    layers: tuple[FakeLayer, ...] = (make_layer(_BASE), make_layer(files_of(version)))
    named = {"org.opencontainers.image.version": version, "containers.bootc": "1"}
    return FakeImage(layers, named)


def _expected(version: str) -> dict[str, bytes]:
    merged: dict[str, bytes | Link | None] = {**_BASE, **files_of(version)}
    return {
        path: content
        for path, content in merged.items()
        if path.startswith("usr/") and isinstance(content, bytes)
    }


@dataclass(slots=True)
class Judgement:
    """A state: which version boots next, which one is kept, which is staged, what is wrong with it, and what is left to tidy up."""

    first: Version = None
    second: Version = None
    staged: Version = None
    problems: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def versions(self) -> tuple[Version, Version]:
        """What boots next, and what is kept."""
        return self.first, self.second


class Bench:
    """A directory with images, prepared states and the host.

    Args:
        place: on a file system where writing is cheap (a tmpfs).
        subject: the backend.
        defect: applied in every process that runs a command, before it: breaks the subject deliberately.
    """

    def __init__(self, place: Path, subject: Subject, defect: Defect | None = None) -> None:
        self.place, self.subject, self.defect = place, subject, defect
        self.layout = place / "images"
        self.root = place / "host"
        place.mkdir(parents=True, exist_ok=True)
        self._states: dict[str, Path] = {}
        self.expected_names: int | None = None  # after an undisturbed run, see ``names``
        config_root = place / "config"
        config_root.mkdir(exist_ok=True)
        for module in (*_PRELOADED, *subject.modules):
            importlib.import_module(module)
        self.plugins = manager.load(provide=loading.provider())
        self.config = Config(backend=subject.name)
        for version in ("1", "2", "3"):
            if not (self.layout / version).exists():
                image(version).write_layout(self.layout / version, "os")

    # --- commands

    def serve(self, version: str) -> None:
        """Let the followed reference name that version."""
        live = self.place / "live"
        live.unlink(missing_ok=True)
        live.symlink_to(self.layout / version)

    def arguments(self, command: str) -> list[str]:
        """The command line, without the name of the program."""
        where = ["--sysroot", str(self.root), "--config-root", str(self.place / "config")]
        source = f"{self.place}/live:os"
        switch = ["switch", "--backend", self.subject.name, "--no-signature-verification"]
        lines = {
            "switch": [*switch, *self.subject.arguments, "--transport", "oci", source],
            "upgrade": ["upgrade"],
            "collect": ["upgrade"],
            "download": ["upgrade", "--download-only"],
            "finalize": ["upgrade", "--from-downloaded"],
            "rollback": ["rollback"],
            "status": ["status", "--json"],
        }
        first, *rest = lines[command]
        return [first, *where, *rest]

    def work(self, command: str, *, broken: bool = True, drop: int = 0) -> Callable[[], int]:
        """The command as a function for a process of its own.

        With the defect, unless ``broken`` is False; without its n-th flush, if ``drop`` is n.
        """
        arguments = self.arguments(command)

        def run() -> int:
            for name in [name for name in os.environ if name.startswith("BOOTC_")]:
                del os.environ[name]
            os.environ["BOOTC_ERROR_FORMAT"] = "json"
            if broken and self.defect is not None:
                self.defect()
            if drop:
                defects.drop_flush(drop)
            return cli.main(arguments)

        return run

    def do(self, command: str) -> None:
        """Run it, undisturbed.

        Raises:
            AssertionError: it failed.
        """
        done = tracer.run(self.work(command, broken=False), traced=False)
        assert done.status == 0, f"{command}: {done.stderr}"

    # --- states

    def clear(self) -> None:
        """Remove the host."""
        if self.root.exists():
            remove_tree(self.root)

    def prepare(self, command: Command) -> None:
        """Put the host into the state before the command, and serve what it fetches."""
        name = f"{command.old[0]}-{command.old[1]}-{command.staged}"
        if name not in self._states:
            self.build(command)
            place = self.place / f"state-{name}"
            copy_tree(self.root, place)
            self._states[name] = place
        self.clear()
        copy_tree(self._states[name], self.root)
        self.serve(self.served(command))

    @staticmethod
    def served(command: Command) -> str:
        """The version that the command finds when it fetches."""
        return command.stages or command.new[0] or "1"

    def build(self, command: Command) -> None:
        """Make the state before the command by running commands, in an empty directory."""
        self.clear()
        self.root.mkdir()
        self.advance(command)

    def advance(self, command: Command) -> None:
        """Bring an empty host to the state before the command."""
        done: Version = None
        for version in (command.old[1], command.old[0]):
            if version is None:
                continue
            self.serve(version)
            self.do("switch" if done is None else "upgrade")
            done = version
            if version == "1":
                self._edit()
        if command.staged is not None:
            self.serve(command.staged)
            self.do("download")

    def _edit(self) -> None:
        """What an administrator does on the first version."""
        sysroot = self.sysroot
        etc = self.subject.etc(sysroot, self._entries(sysroot)[0][0])
        (etc / "hostname").write_bytes(b"host.example\n")
        (etc / "local.conf").write_bytes(b"mine\n")
        (etc / "removed.conf").unlink()
        (self.subject.var(sysroot) / "log.txt").write_bytes(b"kept\n")

    # --- judgement

    @property
    def sysroot(self) -> Sysroot:
        """The host's sysroot."""
        return Sysroot(
            self.root,
            self.root / "boot",
            self.place / "config",
            unprivileged=os.geteuid() != 0,
        )

    def _entries(self, sysroot: Sysroot) -> list[tuple[str, PresentEntry]]:
        storage = sysroots.open_storage(sysroot, self.plugins, self.config)
        if storage is None:
            return []
        entries = storage.bootloader.offer.read_entries(sysroot, lambda message: None)
        found = [(self.subject.deployment_of(sysroot, entry), entry) for entry in entries]
        return [(name, entry) for name, entry in found if name is not None]

    def judge(self, *, deep: bool = True) -> Judgement:
        """What the host is. ``deep``: every file of every deployment on the menu is compared with its image."""
        found = Judgement()
        sysroot = self.sysroot
        try:
            storage = sysroots.open_storage(sysroot, self.plugins, self.config)
            if storage is None:
                return found
            host = storage.read_host(lambda message: None)
            found.first, found.second = _version(host.booted), _version(host.rollback)
            found.staged = _version(host.staged)
            self._judge_entries(sysroot, host, found, deep=deep)
        except (BootcError, OSError, ValueError, KeyError, AssertionError) as problem:
            found.problems.append(f"{type(problem).__name__}: {problem}")
        return found

    def _judge_entries(
        self, sysroot: Sysroot, host: HostStatus, found: Judgement, *, deep: bool
    ) -> None:
        """Every entry of ours is whole, also one that an interrupted run left; the first one is what status calls booted."""
        entries = self._entries(sysroot)
        slots = [slot for slot in (host.booted, host.rollback, *host.other) if slot]
        found.left = list(host.notes)
        if len(entries) != len(slots):
            found.left.append(f"{len(entries)} entries for {len(slots)} deployments")
        for number, (name, entry) in enumerate(entries):
            found.problems += [f"{entry.file}: {text}" for text in _boot_files(sysroot, entry)]
            if not deep:
                continue
            there = self.subject.files(sysroot, name)
            version = (there.get("usr/share/version") or b"").decode().strip()
            if number == 0 and version != found.first:
                found.problems.append(f"status says {found.first}, and {version!r} boots")
            if version in {"1", "2", "3"}:
                found.problems += [
                    f"{version}: {text}"
                    for text in self._judge_content(sysroot, name, version, there)
                ]
            else:
                found.problems.append(f"{entry.file}: no version")
        if slots and deep:
            var = self.subject.var(sysroot)
            kept: dict[str, bytes] = {"lib/seed": b"once\n"}
            if any(_version(slot) != "1" for slot in slots):
                kept["log.txt"] = b"kept\n"
            for path, data in kept.items():
                if _read(var / path) != data:
                    found.problems.append(f"/var/{path} is not what it was")

    def _judge_content(
        self, sysroot: Sysroot, name: str, version: str, there: Mapping[str, Content]
    ) -> list[str]:
        problems = []
        wanted = _expected(version)
        for path, data in wanted.items():
            if there.get(path) != data:
                what = "missing" if path not in there else "damaged"
                problems.append(f"/{path} is {what}")
        etc = self.subject.etc(sysroot, name)
        settings: dict[str, Content] = {
            "test.conf": f"setting = {version}\n".encode(),
            f"from-{version}": b"new\n",
        }
        if version != "1":
            settings |= {
                "hostname": b"host.example\n",
                "local.conf": b"mine\n",
                "removed.conf": None,
            }
        for path, content in settings.items():
            if _read(etc / path) != content:
                problems.append(f"/etc/{path} is not what it should be")
        return problems

    def leftovers(self) -> list[str]:
        """Temporary names; what a later run still may use (the spool) does not count."""
        return [
            str(path.relative_to(self.root))
            for path in self.root.rglob(f"{atomic.TEMPORARY}*")
            if "spool" not in path.parts
        ]

    def names(self) -> int:
        """How many files and directories there are, our own state aside."""
        state = self.root / "bootc"
        return sum(1 for path in self.root.rglob("*") if not path.is_relative_to(state))

    def converges(self, command: Command, found: Judgement) -> list[str]:
        """Run the command again, as a person would; what is wrong after it, or nothing.

        A rollback that had happened is not asked for again: it would go back.
        """
        again = not (command.name == "rollback" and found.first == command.new[0])
        if again:
            done = tracer.run(self.work(command.name), traced=False)
            if command.name == "finalize" and "nothing-staged" in done.stderr:
                if found.first == command.new[0]:
                    done.status = 0
                else:  # recovery may drop what an interrupted run left
                    self.serve("2")
                    done = tracer.run(self.work("upgrade"), traced=False)
            if done.status != 0:
                return [f"the next run fails: {_short(done.stderr)}"]
        after = self.judge()
        problems = [f"after the next run: {text}" for text in (*after.problems, *after.left)]
        if after.versions != command.new:
            problems.append(f"after the next run: {after.versions} instead of {command.new}")
        if command.name != "rollback" and after.staged != command.stages:
            problems.append(f"after the next run: {after.staged} is staged")
        if (
            again and command.stages is None
        ):  # a run that only downloads tidies up with the next one
            problems += [f"after the next run: {name} is left" for name in self.leftovers()]
            extra = self.names() - (self.expected_names or self.names())
            if extra > 0:
                problems.append(f"after the next run: {extra} names too many")
        problems += [f"after the next run: {text}" for text in self.subject.check(self.sysroot)]
        return problems


def _short(text: str) -> str:
    return text.strip()[-600:]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _version(slot: Deployment | None) -> Version:
    return slot.image.version if slot is not None and slot.image is not None else None


def _boot_files(sysroot: Sysroot, entry: PresentEntry) -> list[str]:
    problems = []
    for key, content in (("linux", KERNEL_BYTES), ("initrd", INITRD_BYTES)):
        for value in entry.all(key):
            # with /boot on the root file system, entries may be relative to that
            place = sysroot.boot_dir / value.lstrip("/").removeprefix("boot/")
            if _read(place) != content:
                problems.append(f"{value} is not the image's")
        if not entry.get(key):
            problems.append(f"no {key}")
    return problems


def copy_tree(source: Path, target: Path) -> None:
    """A copy with everything; the immutable attribute is left out."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)


def digest_of(place: Path) -> str:
    """One digest of all names and contents beneath a directory."""
    total = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        total.update(os.fsencode(path.relative_to(place)))
        if path.is_file() and not path.is_symlink():
            total.update(path.read_bytes())
    return total.hexdigest()


def chosen(total: int, every: int) -> Sequence[int]:
    """Every n-th of 1..total, the first and last three always."""
    ends = {1, 2, 3, total - 2, total - 1, total}
    return sorted(number for number in {*range(1, total + 1, every), *ends} if 1 <= number <= total)


def remove(place: Path) -> None:
    """Remove a bench's directory."""
    if place.exists():
        remove_tree(place)
    shutil.rmtree(place, ignore_errors=True)
