"""What is on the boot partition, and what a plan needs there. Reads only.

    loader/loader.conf
    loader/entries/bootc_<os>-<version>-<id>-<token>-1.conf      ours: boots a deployment
                                                   -1+3-0.conf   the same, counted: three tries left, none done
    loader/entries/*.conf                                        others': never touched
    EFI/Linux/bootc_composefs-<id>/{vmlinuz,initrd}              named by one entry or more

A file is written once under its name. Kernel and RAM disk that are there already with the same
content, for another deployment, are used instead of a second copy. Names are compared as FAT does,
without case.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootError, ContentError, StorageError, printable
from bootc_core.models.boot import BootEntry, BootFile, BootPlan, PresentEntry

KERNELS: Final = "EFI/Linux"
OUR_DIRECTORY: Final = "bootc_"  # not bootc/, where the original keeps unified kernel images
_OUR_NAME: Final = re.compile(r"bootc_[^-]+-[^-]+-[^-]+-[0-9a-f]{6}-1(?:\+[0-9]+-[0-9]+)?\.conf")
_SLACK_BYTES: Final = 64 * limits.KIB  # directories grow, too


@dataclass(frozen=True, slots=True)
class Found:
    """The partition as it is.

    Attributes:
        entries: readable entries, in menu order.
        raw: bytes of all files in the entry directories by path, for looking up what they name.
        torn: incomplete files whose names only we give.
    """

    entries: tuple[PresentEntry, ...]
    raw: dict[str, bytes]
    torn: tuple[str, ...]

    def ours(self) -> list[PresentEntry]:
        """Entries that boot a deployment, in menu order."""
        return [entry for entry in self.entries if bls.deployment_of(entry) is not None]

    def names(self, directory: str) -> bool:
        """Does any entry, readable or not, speak of this directory? Errs on the safe side."""
        needle = directory.lower().encode()
        return any(needle in data.lower() for data in self.raw.values())


@dataclass(frozen=True, slots=True)
class Wanted:
    """One entry as it shall be: a file that is there, or one to write.

    Attributes:
        file: path of the entry on the partition.
        present: it is there, with the right content but for the digit.
        keys: what to write otherwise; the sort key comes from the order.
        place: files that have to be written before, with their content's place.
        files: all files that it names, as far as their content is known.
    """

    file: str
    present: bool
    keys: tuple[tuple[str, str], ...] = ()
    place: tuple[BootFile, ...] = ()
    files: tuple[BootFile, ...] = ()


def look(boot_dir: Path) -> Found:
    """Everything in the entry directories.

    Raises:
        BootError: a directory cannot be read.
    """
    entries, raw, torn = [], {}, []
    for directory in (bls.ENTRIES, f"{bls.ENTRIES}.staged"):
        # The second one is how the original stages: what it names is in use.
        where = actual(boot_dir, directory)
        for name in bls.entry_names(boot_dir, where):
            file = f"{where}/{name}"
            entry = None
            try:
                raw[file] = bls.read_file(boot_dir / file)
                entry = bls.parse(file, raw[file])
            except BootError:
                raw.setdefault(file, b"")
            if directory != bls.ENTRIES:
                continue
            if _OUR_NAME.fullmatch(name) and (entry is None or bls.order_of(entry) is None):
                torn.append(file)  # cut short while it was written: the sort key comes last
            elif entry is not None:
                entries.append(entry)
    return Found(tuple(bls.menu_order(entries)), raw, tuple(torn))


# --- names -------------------------------------------------------------------------------


def folded(name: str) -> str:
    """``name`` as FAT compares it."""
    return unicodedata.normalize("NFC", name).casefold()


def actual(boot_dir: Path, path: str) -> str:
    """``path`` with the spelling that its existing parts have on the partition."""
    parts: list[str] = []
    for part in path.split("/"):
        place = boot_dir.joinpath(*parts)
        if not os.path.lexists(place / part):
            try:
                others = [name for name in os.listdir(place) if folded(name) == folded(part)]
            except OSError:
                others = []
            parts.append(others[0] if len(others) == 1 else part)
        else:
            parts.append(part)
    return "/".join(parts)


def check_names(boot_dir: Path, files: Iterable[BootFile]) -> None:
    """Refuse names that collide where case does not count, with each other or with what is there.

    Raises:
        ContentError: naming both.
        BootError: a name that FAT cannot hold.
    """
    seen: dict[str, str] = {}
    for file in files:
        parts = file.path.split("/")
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            other = seen.setdefault(folded(path), path)
            if other != path:
                raise _collision(path, other)
        *parents, name = parts
        if any(len(part) > limits.NAME_BYTES or part.endswith(".") for part in parts):
            raise BootError(
                "a boot file has a name that the boot partition cannot hold",
                reference="bad-boot-name",
                found=printable(file.path),
                catalogue="CON",
            )
        directory = boot_dir / actual(boot_dir, "/".join(parents))
        if directory.is_dir():
            for present in os.listdir(directory):
                if present != name and folded(present) == folded(name):
                    raise _collision(name, present)


def _collision(name: str, other: str) -> ContentError:
    return ContentError(
        "two names are one on the boot partition, where case does not count",
        reference="name-collision",
        found=f"{printable(name)} and {printable(other)}",
        hint="rename one of them",
    )


# --- the wish ----------------------------------------------------------------------------


def sort_prefix(found: Found, plan: BootPlan) -> str:
    """The prefix of all sort keys: that of the entry that boots now, else of the plan's system.

    With one prefix the digit alone decides, also between different systems.
    """
    for entry in found.ours()[:1]:
        if order := bls.order_of(entry):
            return order[0]
    systems = [entry.os_id for entry in plan.entries if isinstance(entry, BootEntry)]
    return bls.sort_key_prefix(systems[0] if systems else "linux")


def resolve(boot_dir: Path, found: Found, plan: BootPlan, prefix: str, token: str) -> list[Wanted]:
    """The plan's entries as files on this partition, in its order.

    Args:
        boot_dir: the partition.
        found: what is there.
        plan: the wish.
        prefix: of the sort keys, see ``sort_prefix``.
        token: four hex digits that make the names of new files fresh.

    Raises:
        BootError: an entry that the plan calls present is not, or is broken; a deployment twice;
            none.
        ContentError: names that collide.
    """
    if not plan.entries or len(plan.entries) > 8:
        raise BootError(
            "the boot plan has an impossible number of entries",
            reference="bad-boot-plan",
            expected="1 to 8",
            found=str(len(plan.entries)),
        )
    check_names(
        boot_dir,
        [file for entry in plan.entries if isinstance(entry, BootEntry) for file in entry.files],
    )
    ours = found.ours()
    result: list[Wanted] = []
    deployments: set[str] = set()
    for number, element in enumerate(plan.entries):
        deployment = element if isinstance(element, str) else element.deployment_id
        if deployment in deployments:
            raise BootError(
                "the boot plan names a deployment twice",
                reference="bad-boot-plan",
                found=printable(deployment),
            )
        deployments.add(deployment)
        fresh = f"{token}{number:02x}"
        candidates = [entry for entry in ours if bls.deployment_of(entry) == deployment]
        if isinstance(element, BootEntry):
            tries = (plan.tries or 0) if number == 0 else 0
            result.append(_new(boot_dir, found, candidates, element, prefix, fresh, tries))
        else:
            kept = _kept(boot_dir, found, candidates, element, prefix, fresh)
            if number == 0 and plan.tries == 0 and kept.present:
                kept = _uncounted(boot_dir, found, kept, fresh)
            result.append(kept)
    return result


def _kept(
    boot_dir: Path,
    found: Found,
    candidates: Sequence[PresentEntry],
    deployment: str,
    prefix: str,
    token: str,
) -> Wanted:
    whole = [entry for entry in candidates if not missing_files(boot_dir, entry)]
    if not whole:
        what = ", ".join(missing_files(boot_dir, candidates[0])) if candidates else "no entry"
        raise BootError(
            f"the boot entry of deployment {printable(deployment, 16)} is not usable",
            reference="no-boot-entry",
            expected="an entry whose files are on the boot partition",
            found=printable(what),
            hint="deploy that image again with `bootc switch`",
        )
    entry = whole[0]
    if movable(found, entry, prefix):
        return Wanted(entry.file, True)
    return copy_of(boot_dir, entry, token)


def _uncounted(boot_dir: Path, found: Found, kept: Wanted, token: str) -> Wanted:
    """The entry without its counter: in a new file, since FAT has no safe rename over anything. The counted one goes after it."""
    stem, left, _ = bls.tries_of(kept.file)
    if left is None:
        return kept
    entry = next(one for one in found.entries if one.file == kept.file)
    keys = tuple(pair for pair in entry.keys if pair[0] != "sort-key")
    # the name that systemd-bless-boot would give it, so that it finds its work done
    plain = f"{_directory(boot_dir)}/{stem}.conf"
    if plain in found.raw:
        return copy_of(boot_dir, entry, token)
    return Wanted(plain, False, keys)


def copy_of(boot_dir: Path, entry: PresentEntry, token: str) -> Wanted:
    """The same entry in a new file, for one whose sort key is none of ours: a copy can be ordered."""
    keys = tuple(pair for pair in entry.keys if pair[0] != "sort-key")
    words = (entry.get("version") or "0", bls.deployment_of(entry) or "0")
    stem = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", word)[:12] for word in words)
    return Wanted(f"{_directory(boot_dir)}/bootc_copy-{stem}-{token}-1.conf", False, keys)


def _new(
    boot_dir: Path,
    found: Found,
    candidates: Sequence[PresentEntry],
    entry: BootEntry,
    prefix: str,
    token: str,
    tries: int,
) -> Wanted:
    placed, place = _locate(boot_dir, found, entry)
    for present in candidates:
        order = bls.order_of(present)
        if order is None or not movable(found, present, prefix):
            continue
        if found.raw[present.file] == bls.entry_text(placed, order[1], order[0]):
            return Wanted(present.file, True, (), place, placed.files)
    text = bls.entry_text(placed, 0)
    keys = tuple(pair for pair in bls.parse("new", text).keys if pair[0] != "sort-key")
    name = bls.file_name(entry, token, tries)
    return Wanted(f"{_directory(boot_dir)}/{name}", False, keys, place, placed.files)


def _directory(boot_dir: Path) -> str:
    return actual(boot_dir, bls.ENTRIES)


def movable(found: Found, entry: PresentEntry, prefix: str) -> bool:
    """Can the entry be ordered by changing one digit, among entries with this prefix?"""
    order = bls.order_of(entry)
    return (
        order is not None
        and order[0] == prefix
        and bls.order_offset(found.raw[entry.file]) is not None
        and bls.tries_of(entry.file)[1] != 0
    )


def missing_files(boot_dir: Path, entry: PresentEntry) -> list[str]:
    """What the entry names and the partition lacks (or has as an empty or special file)."""
    return [
        path
        for key in ("linux", "initrd", "efi", "uki")
        for path in entry.all(key)
        if not _size(boot_dir / actual(boot_dir, path.strip("/")))
    ]


def _size(path: Path) -> int:
    try:
        info = path.lstat()
    except OSError:
        return 0
    return info.st_size if stat.S_ISREG(info.st_mode) else 0


def holds(path: Path, file: BootFile) -> bool:
    """Is the file's content at ``path``, byte for byte?"""
    if _size(path) != file.size or not file.size:
        return False
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _locate(
    boot_dir: Path, found: Found, entry: BootEntry
) -> tuple[BootEntry, tuple[BootFile, ...]]:
    """The entry with the paths that its files will have, and those that have to be written."""
    place = tuple(
        file for file in entry.files if not holds(boot_dir / actual(boot_dir, file.path), file)
    )
    if not place:
        return entry, ()
    parents = {file.path.rpartition("/")[0] for file in entry.files}
    if len(parents) == 1 and (own := parents.pop()).rpartition("/")[2].startswith(OUR_DIRECTORY):
        for directory in directories(boot_dir):
            if not found.names(directory):
                continue
            moved = {
                file: f"{KERNELS}/{directory}/{file.path[len(own) + 1 :]}" for file in entry.files
            }
            if all(holds(boot_dir / actual(boot_dir, path), file) for file, path in moved.items()):
                return (
                    replace(
                        entry,
                        linux=replace(entry.linux, path=moved[entry.linux]),
                        initrd=tuple(replace(file, path=moved[file]) for file in entry.initrd),
                    ),
                    (),
                )
    for file in place:
        users = [
            item
            for item in found.entries
            if bls.deployment_of(item) is None
            and any(folded(f"/{file.path}") == folded(value) for _, value in item.keys)
        ]
        if users:
            raise BootError(
                "a boot file of another system is in the way",
                reference="foreign-boot-file",
                found=f"{printable(file.path)}, named by {printable(users[0].file)}",
                hint="remove that entry, or rename what it names",
            )
    return entry, place


def directories(boot_dir: Path) -> list[str]:
    """Names of the directories with kernels that are ours."""
    try:
        listing = sorted(os.listdir(boot_dir / actual(boot_dir, KERNELS)))
    except OSError:
        return []
    return [name for name in listing if name.startswith(OUR_DIRECTORY)]


def garbage(boot_dir: Path, found: Found, wanted: Iterable[Wanted]) -> list[str]:
    """Kernel directories that no entry names and the wish does not need: left by interrupted runs."""
    needed = {
        folded(part) for item in wanted for file in item.files for part in file.path.split("/")
    }
    return [
        name
        for name in directories(boot_dir)
        if folded(name) not in needed and not found.names(name)
    ]


# --- space -------------------------------------------------------------------------------


def check_space(boot_dir: Path, wanted: Iterable[Wanted], unused: Iterable[str]) -> None:
    """Refuse what does not fit beside all that has to stay until the switch.

    Args:
        boot_dir: the partition, or where it will be.
        wanted: the wish.
        unused: kernel directories that are removed before anything is written.

    Raises:
        StorageError: with needed and free bytes.
    """
    place = boot_dir
    while not place.exists():
        place = place.parent
    usage = os.statvfs(place)
    block = usage.f_frsize or 4096

    def blocks(size: int) -> int:
        return -(-size // block) * block

    needed = 0
    for item in wanted:
        needed += sum(blocks(file.size) for file in item.place)
        needed += block * len({file.path.rpartition("/")[0] for file in item.place})
        needed += 0 if item.present else blocks(limits.KIB)
    if not needed:
        return
    free = usage.f_bavail * block
    for name in unused:
        for parent, _, names in os.walk(boot_dir / actual(boot_dir, KERNELS) / name):
            free += sum(blocks(_size(Path(parent, file))) for file in names)
    needed += _SLACK_BYTES
    if needed > free:
        raise StorageError(
            f"not enough space on the boot partition {boot_dir}",
            reference="boot-space",
            expected=f"{needed} bytes for kernel, initial RAM disk and entry",
            found=f"{free} bytes free",
            hint="remove what is not needed there; the entries of present deployments stay",
            catalogue="SPC",
        )
