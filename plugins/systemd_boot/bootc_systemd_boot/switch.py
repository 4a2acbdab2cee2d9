"""Make a boot plan effective, in an order that a power cut on FAT cannot spoil.

    1. room      kernel directories that nothing names go
    2. place     kernel and RAM disk, under names that no entry uses yet; read back
    3. prepare   digits of the entries that are not concerned (``order``)
    4. create    the new entry's file, under a fresh name, behind the one that boots now
    5. flush     all of it reaches the medium
    6. switch    one byte of one file, in place: the point of no return
    7. flush
    8. clear     entries that are not wanted, then the kernels that only they named

Up to 6 an error leaves what boots as it was; after it none is raised. There is nothing to remember:
a run that was stopped anywhere is completed, or superseded, by the next one from what is on the
partition.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bootc_core.boot import bls
from bootc_core.errors import BootcError, BootError, StorageError, printable
from bootc_core.fs import atomic
from bootc_core.models.boot import BootFile, BootPlan, PresentEntry
from bootc_core.models.sysroot import Sysroot
from bootc_systemd_boot import loader, order, partition
from bootc_systemd_boot.partition import Found, Wanted

_log: Final = logging.getLogger(__name__)


def preflight(sysroot: Sysroot, plan: BootPlan) -> None:
    """Raise what ``switch`` would raise before it writes anything.

    Raises:
        BootError: entries or a pinned default stand in the way, or the plan makes no sense.
        ContentError: names that collide.
        StorageError: no space.
    """
    if plan.effective:
        return
    _plan(sysroot, plan)


def switch(sysroot: Sysroot, plan: BootPlan) -> None:
    """Make ``plan`` effective; see the module. Idempotent.

    Raises:
        BootError, ContentError, StorageError: before the point of no return only; what boots is
        unchanged.
    """
    if plan.effective:
        return
    boot_dir = sysroot.boot_dir
    found, wanted, prefix = _plan(sysroot, plan)

    _make_directories(boot_dir, wanted)
    for name in partition.garbage(boot_dir, found, wanted):
        atomic.rmtree(boot_dir / partition.actual(boot_dir, partition.KERNELS) / name)
    conf = boot_dir / partition.actual(boot_dir, loader.CONF)
    if not conf.exists():
        atomic.create_file(conf, loader.FRESH_CONF)
    for item in wanted:
        for file in item.place:
            _place(boot_dir, file)
    found, wanted = _adopt_first(boot_dir, found, wanted, prefix)
    steps = order.steps(_digits(found, prefix), [item.file for item in wanted])

    _apply(boot_dir, steps.prepare)
    written = {item.file: item for item in wanted}
    for change in steps.create:
        keys = [*written[change.file].keys, ("sort-key", f"{prefix}-{change.digit}")]
        atomic.create_file(boot_dir / change.file, bls.print_entry(keys))
    _flush(boot_dir, wanted)
    _apply(boot_dir, steps.shift)
    _apply(boot_dir, steps.switch)
    try:
        _flush(boot_dir, wanted[:1])
        _clear(boot_dir, wanted)
        _apply(boot_dir, steps.settle)
        _flush(boot_dir, wanted[:1])
    except BootcError as problem:  # what boots is decided; the next run clears up
        _log.warning("after the switch: %s: %s", problem.message, problem.found)


# --- before ------------------------------------------------------------------------------


def _plan(sysroot: Sysroot, plan: BootPlan) -> tuple[Found, list[Wanted], str]:
    boot_dir = sysroot.boot_dir
    found = partition.look(boot_dir)
    prefix = partition.sort_prefix(found, plan)
    wanted = partition.resolve(boot_dir, found, plan, prefix, os.urandom(2).hex())
    _rehearse(found, wanted, prefix, loader.pinned(boot_dir, live=sysroot.live))
    partition.check_space(boot_dir, wanted, partition.garbage(boot_dir, found, wanted))
    return found, wanted, prefix


def _digits(found: Found, prefix: str) -> dict[str, int]:
    """File and digit of our entries that a digit can order, in menu order."""
    digits = {}
    for entry in found.ours():
        key = bls.order_of(entry)
        if key is not None and partition.movable(found, entry, prefix):
            digits[entry.file] = key[1]
    return digits


def _rehearse(
    found: Found, wanted: list[Wanted], prefix: str, default: tuple[str, str] | None
) -> None:
    """Go through the order of changes on paper: something of others may stand in between.

    Raises:
        BootError: at some moment another entry would boot than the old or the new one.
    """
    menu = {entry.file: entry for entry in found.entries}
    steps = order.steps(_digits(found, prefix), [item.file for item in wanted])
    keys = {item.file: item.keys for item in wanted if not item.present}
    ours = found.ours()
    for stage in (steps.prepare, steps.create, steps.shift):
        _change(menu, stage, keys, prefix)
        if ours and _digits(found, prefix) and partition.movable(found, ours[0], prefix):
            loader.check_effective(bls.menu_order(menu.values()), ours[0].file, default)
    _change(menu, steps.switch, keys, prefix)
    loader.check_effective(bls.menu_order(menu.values()), wanted[0].file, default)


def _change(
    menu: dict[str, PresentEntry],
    changes: Iterable[order.Change],
    keys: dict[str, tuple[tuple[str, str], ...]],
    prefix: str,
) -> None:
    for change in changes:
        entry = menu.get(change.file)
        pairs = keys[change.file] if entry is None else entry.keys
        rest = tuple(pair for pair in pairs if pair[0] != "sort-key")
        menu[change.file] = PresentEntry(
            change.file, (*rest, ("sort-key", f"{prefix}-{change.digit}"))
        )


# --- the steps ---------------------------------------------------------------------------


def _make_directories(boot_dir: Path, wanted: Iterable[Wanted]) -> None:
    needed = [bls.ENTRIES, partition.KERNELS]
    needed += [file.path.rpartition("/")[0] for item in wanted for file in item.place]
    if not boot_dir.is_dir():
        atomic.mkdir(boot_dir)
    for path in needed:
        parts = path.split("/") if path else []
        for count in range(1, len(parts) + 1):
            place = boot_dir / partition.actual(boot_dir, "/".join(parts[:count]))
            atomic.mkdir(place, None)


def _place(boot_dir: Path, file: BootFile) -> None:
    """Write a kernel or RAM disk; what is there under that name is a part of it, or damaged.

    Raises:
        StorageError: no space, or the source is not what the deployment promised.
    """
    path = boot_dir / partition.actual(boot_dir, file.path)
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


def _adopt_first(
    boot_dir: Path, found: Found, wanted: list[Wanted], prefix: str
) -> tuple[Found, list[Wanted]]:
    """If the entry that boots now cannot be ordered, put a copy that can before it.

    The copy is complete and on the medium before it gets a name that counts, and it boots the same.
    """
    ours = found.ours()
    if not ours or partition.movable(found, ours[0], prefix):
        return found, wanted
    deployment = bls.deployment_of(ours[0])
    copy = partition.copy_of(boot_dir, ours[0], os.urandom(3).hex())
    replaced = []
    for item in wanted:
        keys = PresentEntry(item.file, item.keys)
        same = not item.present and not item.files and bls.deployment_of(keys) == deployment
        replaced.append(Wanted(copy.file, True) if same else item)
    final = boot_dir / copy.file
    temporary = final.with_name(f"{final.name}.new")
    atomic.create_file(temporary, bls.print_entry([*copy.keys, ("sort-key", f"{prefix}-0")]))
    atomic.fsync(final.parent)
    atomic.syncfs(boot_dir)
    atomic.fsync(temporary)
    atomic.rename_new(temporary, final)
    atomic.fsync(final.parent)
    atomic.syncfs(boot_dir)
    atomic.fsync(final)
    return partition.look(boot_dir), replaced


def _apply(boot_dir: Path, changes: Iterable[order.Change]) -> None:
    for change in changes:
        path = boot_dir / change.file
        data = bls.read_file(path)
        offset = bls.order_offset(data)
        if offset is None:
            raise BootError(
                f"the boot entry {printable(change.file)} changed meanwhile",
                reference="bad-boot-entry",
                hint="run the command again",
            )
        digit = b"%d" % change.digit
        if data[offset : offset + 1] != digit:
            atomic.patch(path, offset, digit)


def _flush(boot_dir: Path, wanted: Iterable[Wanted]) -> None:
    """Everything reaches the medium. The file comes last: on FAT only its fsync flushes the drive."""
    items = list(wanted)
    directories = {partition.actual(boot_dir, bls.ENTRIES)}
    for item in items:
        for file in item.files:
            path = partition.actual(boot_dir, file.path)
            atomic.fsync(boot_dir / path)
            while path := path.rpartition("/")[0]:
                directories.add(path)
        atomic.fsync(boot_dir / item.file)
    for directory in sorted(directories, reverse=True):
        atomic.fsync(boot_dir / directory)
    atomic.syncfs(boot_dir)
    for item in items:
        atomic.fsync(boot_dir / item.file)


# --- after -------------------------------------------------------------------------------


def _clear(boot_dir: Path, wanted: list[Wanted]) -> None:
    """Entries first, then the kernels that only they named."""
    found = partition.look(boot_dir)
    keep = {item.file for item in wanted}
    gone = [entry.file for entry in found.ours() if entry.file not in keep]
    entries = boot_dir / partition.actual(boot_dir, bls.ENTRIES)
    gone += [file for file in found.torn if file not in keep]
    gone += [
        f"{partition.actual(boot_dir, bls.ENTRIES)}/{name}"
        for name in sorted(os.listdir(entries))
        if name.startswith("bootc_") and name.endswith(".conf.new")
    ]
    for file in gone:
        atomic.unlink(boot_dir / file)
    if gone:
        _flush(boot_dir, wanted[:1])
        found = partition.look(boot_dir)
    for name in partition.garbage(boot_dir, found, wanted):
        atomic.rmtree(boot_dir / partition.actual(boot_dir, partition.KERNELS) / name)
