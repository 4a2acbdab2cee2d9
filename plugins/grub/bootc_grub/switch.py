"""Make a boot plan effective where GRUB reads it: one exchange of two directories.

    BOOT/bootc_composefs-<id>/{vmlinuz,initrd}        kernels; one copy for deployments that share it
    BOOT/loader/entries/bootc_<os>-<version>-1.conf   what boots next; -0 the one before
    BOOT/loader/entries/bootc.grub                    the same as a menu (``menu``)
    BOOT/loader/entries.staged/                       the next ones, while they are made
    BOOT/boot -> .                                    where BOOT is no file system of its own

Names and numbers are the original's, so are the exchange and the place where things are staged: either program goes on from what
the other left. GRUB with ``blscfg`` sorts by the name, its last number first; all of ours share the rest of it.

    1. room     what an interrupted run left goes
    2. place    kernels and RAM disks, then the whole staged directory; others' entries are linked into it
    3. settle   all of it is where GRUB sees it: GRUB reads file systems without their journals
    4. switch   both directories change names: the point of no return
    5. settle   nothing of the old state was freed before
    6. clear

An error before 4 leaves what boots as it was; after it none is raised.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootcError, BootError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.models.boot import BootEntry, BootFile, BootPlan, PresentEntry
from bootc_core.models.sysroot import Sysroot
from bootc_grub import menu

_log: Final = logging.getLogger(__name__)
MENU: Final = "bootc.grub"
STAGED: Final = f"{bls.ENTRIES}.staged"
GRUB_DIRECTORIES: Final = ("grub", "grub2")
DERIVED: Final = "bootc.cfg"
"""In GRUB's own directory: the menu of entries that a storage backend writes itself."""
_ON_ESP: Final = "EFI/Linux/"  # how backends name directories of kernels
_OUR_DIRECTORY: Final = "bootc_"
_NAME: Final = re.compile(r"(bootc_.+)-[0-9]+")
_SLACK_BYTES: Final = 64 * limits.KIB


@dataclass(frozen=True, slots=True)
class _Wish:
    """The menu as it shall be: entry files with their bytes, what has to be written before, others' files."""

    texts: dict[str, bytes]
    place: tuple[BootFile, ...]
    foreign: tuple[str, ...]
    needed: frozenset[str]  # directories of kernels


def preflight(sysroot: Sysroot, plan: BootPlan) -> None:
    """Raise what ``switch`` would raise before it writes anything.

    Raises:
        BootError: an entry is not there, or the plan makes no sense.
        StorageError: no space.
    """
    if not plan.effective:
        _check_space(sysroot.boot_dir, _wish(sysroot, plan))


def switch(sysroot: Sysroot, plan: BootPlan) -> None:
    """Make ``plan`` effective; see the module. Idempotent.

    Raises:
        BootError, StorageError: before the point of no return only; what boots is unchanged.
    """
    if plan.effective:
        refresh(sysroot)
        return
    boot = sysroot.boot_dir
    wish = _wish(sysroot, plan)
    entries, staged = boot / bls.ENTRIES, boot / STAGED
    if _present(entries) == {**wish.texts, **_foreign_bytes(entries, wish)}:
        if staged.exists():
            atomic.rmtree(staged)
        _clear(boot, wish)
        return
    _check_space(boot, wish)
    for directory in (boot, boot / "loader"):
        atomic.mkdir(directory)
    if _prefix(sysroot):
        atomic.symlink(".", boot / "boot")
    if staged.exists():
        atomic.rmtree(staged)
    _clear(boot, wish)
    for file in wish.place:
        _place(boot, file)
    atomic.mkdir(staged)
    for name, data in wish.texts.items():
        atomic.create_file(staged / name, data)
    for name in wish.foreign:
        atomic.announce("link", staged / name)
        with atomic.mapped("link", staged / name):
            os.link(entries / name, staged / name)
    for directory in (staged, boot / "loader", boot):
        atomic.fsync(directory)
    settle(sysroot)
    if entries.exists():
        atomic.exchange(staged, entries)
    else:
        atomic.rename(staged, entries)
    try:
        atomic.fsync(boot / "loader")
        settle(sysroot)
        if staged.exists():
            atomic.rmtree(staged)
        _clear(boot, wish)
    except BootcError as problem:  # what boots is decided; the next run clears up
        _log.warning("after the switch: %s: %s", problem.message, problem.found)


def settle(sysroot: Sysroot) -> None:
    """Everything on the boot file system is where a reader without its journal finds it.

    A sysroot that is a directory of a larger file system boots nothing by itself, and that file system is not stopped for it.
    """
    boot = sysroot.boot_dir
    if sysroot.live or os.path.ismount(sysroot.path) or os.path.ismount(boot):
        atomic.freeze(boot)
    else:
        atomic.syncfs(boot)


# --- entries that a backend writes itself ----------------------------------------------------------------------------------


def derived_menu(sysroot: Sysroot) -> Path | None:
    """The menu that is derived from others' entries, where one is in use."""
    paths = [sysroot.boot_dir / name / DERIVED for name in GRUB_DIRECTORIES]
    return next((path for path in paths if path.is_file()), None)


def refresh(sysroot: Sysroot, path: Path | None = None) -> None:
    """Write the derived menu anew if the entries have changed; ``path`` makes one.

    The old one keeps a second name until the new one is where GRUB sees it, so that its blocks are not used again before.

    Raises:
        StorageError: the old menu is untouched; it boots what booted before.
    """
    place = path or derived_menu(sysroot)
    if place is None:
        return
    data = menu.text(bls.read_entries(sysroot.boot_dir), _prefix(sysroot))
    if place.exists() and place.read_bytes() == data:
        return
    fresh, old = place.with_name(f"{DERIVED}.new"), place.with_name(f"{DERIVED}.old")
    for left in (fresh, old):
        atomic.unlink(left)
    atomic.create_file(fresh, data)
    if place.exists():
        atomic.announce("link", old)
        with atomic.mapped("link", old):
            os.link(place, old)
    atomic.fsync(place.parent)
    settle(sysroot)
    atomic.rename(fresh, place)
    atomic.fsync(place.parent)
    settle(sysroot)
    atomic.unlink(old)


def refresh_host(directory: str | None) -> None:
    """``refresh`` of the running host, or of the sysroot in ``directory``.

    Raises:
        BootcError: it is no host, or see ``refresh``.
    """
    if directory is not None:
        path = Path(os.path.realpath(directory))
        refresh(Sysroot(path, path / "boot"))
        return
    from bootc_core.host import live

    refresh(live.open_sysroot(write=True))


# --- the wish --------------------------------------------------------------------------------------------------------------


def _prefix(sysroot: Sysroot) -> str:
    """What stands before paths on the boot directory as GRUB names them."""
    own = os.path.ismount(sysroot.boot_dir) or sysroot.boot_dir.name != "boot"
    return "" if own else "/boot"


def _wish(sysroot: Sysroot, plan: BootPlan) -> _Wish:
    boot = sysroot.boot_dir
    if not plan.entries or len(plan.entries) > 8:
        raise BootError(
            "the boot plan has an impossible number of entries",
            reference="bad-boot-plan",
            expected="1 to 8",
            found=str(len(plan.entries)),
        )
    present = bls.read_entries(boot)
    ours = [entry for entry in present if bls.deployment_of(entry) is not None]
    names = [one if isinstance(one, str) else one.deployment_id for one in plan.entries]
    if len(set(names)) != len(names):
        raise BootError("the boot plan names a deployment twice", reference="bad-boot-plan")
    stem, prefix = _common(plan.entries[0], ours)
    texts: dict[str, bytes] = {}
    place: list[BootFile] = []
    made: list[PresentEntry] = []
    for number, element in enumerate(plan.entries):
        if isinstance(element, BootEntry):
            located, missing = _locate(boot, element)
            place += [file for file in missing if file not in place]
            data = _text(located, _prefix(sysroot), number, prefix)
        else:
            kept = _kept(boot, ours, element)
            keys = [pair for pair in kept.keys if pair[0] != "sort-key"]
            data = bls.print_entry([*keys, ("sort-key", f"{prefix}-{number}")])
        name = f"{stem}-{len(plan.entries) - 1 - number}.conf"
        texts[name] = data
        made.append(bls.parse(f"{bls.ENTRIES}/{name}", data))
    foreign = [entry for entry in present if bls.deployment_of(entry) is None]
    texts[MENU] = menu.text([*made, *foreign], _prefix(sysroot))
    mine = {Path(entry.file).name for entry in ours} | {*texts, MENU}
    others = tuple(name for name in _listing(boot / bls.ENTRIES) if name not in mine)
    needed = {
        part
        for entry in (*made, *foreign)
        for key in ("linux", "initrd")
        for value in entry.all(key)
        for part in value.split("/")
    }
    return _Wish(texts, tuple(place), others, frozenset(needed))


def _common(first: BootEntry | str, ours: Sequence[PresentEntry]) -> tuple[str, str]:
    """What all names begin with, so that their numbers alone decide, and the same for sort keys."""
    if isinstance(first, BootEntry):
        system, version = (
            re.sub(r"[^A-Za-z0-9.]+", "_", word)[:32].strip("_.") or other
            for word, other in ((first.os_id, "linux"), (first.version, "0"))
        )
        return f"bootc_{system}-{version}", bls.sort_key_prefix(first.os_id)
    for entry in ours:
        if bls.deployment_of(entry) == first:
            match = _NAME.fullmatch(bls.tries_of(entry.file)[0])
            order = bls.order_of(entry)
            return match[1] if match else "bootc_linux-0", order[0] if order else "bootc-linux"
    return "bootc_linux-0", "bootc-linux"


def _text(entry: BootEntry, prefix: str, number: int, sort_prefix: str) -> bytes:
    """The entry's bytes, its paths as GRUB names them."""

    def named(file: BootFile) -> BootFile:
        return replace(file, path=f"{prefix}/{file.path}".lstrip("/"))

    moved = replace(
        entry, linux=named(entry.linux), initrd=tuple(named(file) for file in entry.initrd)
    )
    return bls.entry_text(moved, number, sort_prefix)


def _locate(boot: Path, entry: BootEntry) -> tuple[BootEntry, tuple[BootFile, ...]]:
    """The entry with the paths that its files will have, and those that have to be written.

    A directory of ours that has the same files is used instead of a second copy.
    """
    own = tuple(replace(file, path=file.path.removeprefix(_ON_ESP)) for file in entry.files)
    parents = {file.path.rpartition("/")[0] for file in own}
    directories = ["", *_directories(boot)] if len(parents) == 1 else [""]
    for directory in directories:
        there = tuple(
            replace(file, path=f"{directory}/{file.path.rpartition('/')[2]}") if directory else file
            for file in own
        )
        if all(_holds(boot / file.path, file) for file in there):
            own = there
            break
    missing = tuple(file for file in own if not _holds(boot / file.path, file))
    return replace(entry, linux=own[0], initrd=own[1:]), missing


def _kept(boot: Path, ours: Sequence[PresentEntry], deployment: str) -> PresentEntry:
    candidates = [entry for entry in ours if bls.deployment_of(entry) == deployment]
    for entry in candidates:
        if all(_file_of(boot, path) for key in ("linux", "initrd") for path in entry.all(key)):
            return entry
    raise BootError(
        f"the boot entry of deployment {printable(deployment, 16)} is not usable",
        reference="no-boot-entry",
        expected="an entry whose files are in the boot directory",
        found="files of it are missing" if candidates else "no entry",
        hint="deploy that image again with `bootc switch`",
    )


def _file_of(boot: Path, path: str) -> Path | None:
    """What GRUB finds at ``path``, seen from here; None if nothing is there."""
    names = (path.lstrip("/"), path.removeprefix("/boot/").lstrip("/"))
    return next((boot / name for name in names if (boot / name).is_file()), None)


def _holds(path: Path, file: BootFile) -> bool:
    try:
        if path.is_symlink() or path.stat().st_size != file.size or not file.size:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _listing(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    except OSError:
        return []


def _directories(boot: Path) -> list[str]:
    try:
        listing = sorted(entry.name for entry in os.scandir(boot) if entry.is_dir())
    except OSError:
        return []
    return [name for name in listing if name.startswith(_OUR_DIRECTORY)]


def _present(entries: Path) -> dict[str, bytes]:
    return {name: (entries / name).read_bytes() for name in _listing(entries)}


def _foreign_bytes(entries: Path, wish: _Wish) -> dict[str, bytes]:
    return {name: (entries / name).read_bytes() for name in wish.foreign}


# --- steps -----------------------------------------------------------------------------------------------------------------


def _check_space(boot: Path, wish: _Wish) -> None:
    place = boot
    while not place.exists():
        place = place.parent
    usage = os.statvfs(place)
    needed = sum(file.size for file in wish.place) + _SLACK_BYTES
    free = usage.f_bavail * (usage.f_frsize or 4096)
    if wish.place and needed > free:
        raise StorageError(
            f"not enough space on the boot file system {boot}",
            reference="boot-space",
            expected=f"{needed} bytes for kernel, initial RAM disk and entry",
            found=f"{free} bytes free",
            hint="remove what is not needed there; the entries of present deployments stay",
            catalogue="SPC",
        )


def _place(boot: Path, file: BootFile) -> None:
    path = boot / file.path
    parts = file.path.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        atomic.mkdir(boot.joinpath(*parts[:count]))
    if os.path.lexists(path):
        atomic.unlink(path)
    with atomic.mapped("read", file.source):
        stream = file.source.open("rb")
    with stream:
        digest = atomic.create_file(path, stream)
    if digest != file.sha256:
        atomic.unlink(path)
        raise StorageError(
            f"{printable(file.path)} is not what the deployment holds",
            reference="boot-file-mismatch",
            expected=f"sha256:{file.sha256}",
            found=f"sha256:{digest}",
            hint="the sysroot's storage is damaged; deploy the image again",
            catalogue="INT",
        )
    atomic.fsync(path.parent)


def _clear(boot: Path, wish: _Wish) -> None:
    """Kernels that neither the wish nor the present entries name."""
    named = b"\n".join(_present(boot / bls.ENTRIES).values())
    for name in _directories(boot):
        if name not in wish.needed and name.encode() not in named:
            atomic.rmtree(boot / name)
