"""Entries of the Boot Loader Specification, type 1: print, parse, order (UAPI.1).

    loader/entries/bootc_debian-13-3f2a9c04d1e5-7b1c0e-1.conf
        title      Debian GNU/Linux 13 (trixie)
        version    13
        linux      /EFI/Linux/bootc_composefs-<id>/vmlinuz
        initrd     /EFI/Linux/bootc_composefs-<id>/initrd
        options    root=UUID=... rw composefs=<id>
        sort-key   bootc-debian-0
                                └ the one byte that decides the order: changed in place

``sort-key`` is ``bootc-<os id>-N``: at rest 0 boots next and 1 is the one before, as the original
has it. The file's name begins as the original's (``bootc_<os id>-<version>-``) and is then unique,
since a name is written once and never again: FAT keeps no promise about replacing. Values are one
line of text without control characters, so nothing breaks out of its key.

Everything but ``read_entries`` and ``read_file`` is pure.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from bootc_core import limits
from bootc_core.errors import BootError, printable
from bootc_core.models.boot import BootEntry, PresentEntry
from bootc_core.models.kargs import CommandLine

ENTRIES: Final = "loader/entries"
DEPLOYMENT_KEY: Final = "x-bootc-deployment"
"""Names the deployment where the kernel command line does not (no ``composefs=``)."""

_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_ORDER: Final = re.compile(r"(bootc-[A-Za-z0-9._-]{1,80})-([0-9])")
_ORDER_LINE: Final = re.compile(
    rb"^[ \t]*sort-key[ \t]+bootc-[A-Za-z0-9._-]{1,80}-([0-9])[ \t]*\r?$", re.MULTILINE
)
_TRIES: Final = re.compile(r"(.+)\+([0-9]+)(?:-([0-9]+))?")
_DEPLOYMENT: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_PATH: Final = re.compile(r"[A-Za-z0-9._+-]+(?:/[A-Za-z0-9._+-]+)*")


# --- print -------------------------------------------------------------------------------


def file_name(entry: BootEntry, token: str, tries: int = 0) -> str:
    """A name for the entry's file; ``token`` (a few hex digits) makes it a fresh one.

    Letters, digits and ``._-`` only, at most 110 characters, and distinct for distinct tokens also
    where case does not count. With ``tries`` (1 to 9) the loader counts down in the name, which keeps its length.
    """

    def word(text: str, limit: int) -> str:
        return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")[:limit].rstrip("_.")

    system = word(entry.os_id, 24) or "linux"
    version = word(entry.version, 32) or "0"
    deployment = word(entry.deployment_id, 12) or "0"
    counter = f"+{min(tries, 9)}-0" if tries else ""
    return f"bootc_{system}-{version}-{deployment}-{token}-1{counter}.conf"


def entry_text(entry: BootEntry, order: int, sort_prefix: str | None = None) -> bytes:
    """The bytes of the entry's file, with ``order`` (0 to 9) as the last byte of its sort key.

    Args:
        entry: what shall boot; its files are named by their paths on the boot partition.
        order: place in the menu.
        sort_prefix: instead of ``bootc-<os id>``, where entries of several systems share one order.

    Raises:
        BootError: a value that is no single line, a path that FAT or a boot loader may not take, a
            command line that is too long, an entry that is too large.
    """
    if not 0 <= order <= 9:
        raise ValueError("the order of an entry is one digit")
    if not _DEPLOYMENT.fullmatch(entry.deployment_id):
        raise _bad("deployment", entry.deployment_id, "letters, digits and . _ -")
    line = CommandLine.parse(entry.options).checked()
    options = str(line)
    if options.startswith('"') and options.endswith('"'):
        raise _bad("options", options, "no quotes at both ends, where boot loaders take them away")
    pairs = [("title", entry.title), ("version", entry.version or entry.deployment_id)]
    for key, files in (("linux", (entry.linux,)), ("initrd", entry.initrd)):
        for file in files:
            if not _PATH.fullmatch(file.path) or ".." in file.path.split("/"):
                raise _bad(key, file.path, "a relative path of letters, digits and . _ + -")
            pairs.append((key, f"/{file.path}"))
    pairs.append(("options", options))
    if entry.machine_id:
        pairs.append(("machine-id", entry.machine_id))
    pairs += entry.extra
    if line.deployment != entry.deployment_id and DEPLOYMENT_KEY not in dict(entry.extra):
        pairs.append((DEPLOYMENT_KEY, entry.deployment_id))
    # Last, so that a file that was cut short has no place among ours.
    pairs.append(("sort-key", f"{sort_prefix or sort_key_prefix(entry.os_id)}-{order}"))
    return print_entry(pairs)


def print_entry(pairs: Iterable[tuple[str, str]]) -> bytes:
    """The bytes of an entry with these keys and values, in this order.

    Raises:
        BootError: a key or a value that would read back as something else; too many bytes.
    """
    lines = []
    for key, value in pairs:
        if not _KEY.fullmatch(key):
            raise _bad("key", key, "a word")
        if any(not char.isprintable() for char in value) or value != value.strip() or not value:
            raise _bad(key, value, "one line of text")
        lines.append(f"{key} {value}\n")
    data = "".join(lines).encode()
    if len(data) > limits.BOOT_ENTRY_BYTES:
        raise BootError(
            "a boot entry is too large",
            reference="bad-boot-entry",
            expected=f"at most {limits.BOOT_ENTRY_BYTES} bytes",
            found=f"{len(data)} bytes",
            catalogue="LIM",
        )
    return data


def sort_key_prefix(os_id: str) -> str:
    """The part of our sort keys before the digit, e.g. ``bootc-debian``."""
    return f"bootc-{re.sub(r'[^A-Za-z0-9._-]+', '_', os_id)[:64] or 'linux'}"


def _bad(key: str, found: str, expected: str) -> BootError:
    return BootError(
        f"{key} is not fit for a boot entry",
        reference="bad-boot-entry",
        expected=expected,
        found=printable(found),
        catalogue="CON",
    )


# --- parse -------------------------------------------------------------------------------


def parse(file: str, data: bytes) -> PresentEntry:
    """The keys and values of an entry, in order, unknown ones too.

    Args:
        file: its path relative to the boot partition; goes into the result and into errors.
        data: its bytes.

    Raises:
        BootError: torn, too large, no text, or nothing in it that could boot.
    """

    def damaged(why: str) -> BootError:
        return BootError(
            f"the boot entry {printable(file)} is damaged", reference="bad-boot-entry", found=why
        )

    if len(data) > limits.BOOT_ENTRY_BYTES:
        raise damaged(f"more than {limits.BOOT_ENTRY_BYTES} bytes")
    if b"\0" in data:
        raise damaged("a NUL byte")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise damaged("bytes that are not UTF-8") from None
    keys = []
    for line in re.split(r"[\r\n]+", text):
        line = line.strip(" \t")
        if not line or line.startswith("#"):
            continue
        key, value = [*line.split(None, 1), "", ""][:2]
        if not _KEY.fullmatch(key) or any(not char.isprintable() for char in value if char != "\t"):
            raise damaged(f"the line {printable(line, 60)}")
        if value:
            keys.append((key, value))
    kinds = {key for key, _ in keys} & {"linux", "efi", "uki", "uki-url"}
    if len(kinds) != 1:
        raise damaged("nothing to boot in it" if not kinds else " and ".join(sorted(kinds)))
    return PresentEntry(file, tuple(keys))


def deployment_of(entry: PresentEntry) -> str | None:
    """The deployment that the entry boots: from ``composefs=`` (without ``?``), else from our own key."""
    try:
        line = CommandLine.parse(" ".join(entry.all("options")))
    except BootError:
        return None
    return line.deployment or entry.get(DEPLOYMENT_KEY)


def order_of(entry: PresentEntry) -> tuple[str, int] | None:
    """Prefix and digit of a sort key of ours; None for others, which are never changed."""
    values = entry.all("sort-key")
    match = _ORDER.fullmatch(values[0]) if len(values) == 1 else None
    return (match[1], int(match[2])) if match else None


def order_offset(data: bytes) -> int | None:
    """Where in the entry's bytes the digit of its sort key is; None if there is not exactly one."""
    matches = list(_ORDER_LINE.finditer(data))
    return matches[0].start(1) if len(matches) == 1 else None


# --- order -------------------------------------------------------------------------------


def menu_order(entries: Iterable[PresentEntry]) -> list[PresentEntry]:
    """The entries as systemd-boot shows them; the first one boots unless a default is pinned.

    Those that boot counting has given up come last; then those with a sort key before those
    without; then by sort key, machine id, newest version, and file name descending.
    """
    return sorted(entries, key=functools.cmp_to_key(_compare))


def tries_of(file: str) -> tuple[str, int | None, int | None]:
    """Name without ``.conf`` and counter, tries left, tries done (``NAME+LEFT-DONE.conf``)."""
    name = file.rsplit("/", 1)[-1]
    stem = name[: -len(".conf")] if name.lower().endswith(".conf") else name
    match = _TRIES.fullmatch(stem)
    if not match or len(match[2]) > 9 or len(match[3] or "") > 9:
        return stem, None, None
    return match[1], int(match[2]), int(match[3] or 0)


def _compare(a: PresentEntry, b: PresentEntry) -> int:
    (name_a, left_a, done_a), (name_b, left_b, done_b) = tries_of(a.file), tries_of(b.file)
    if (left_a == 0) != (left_b == 0):
        return 1 if left_a == 0 else -1
    key_a, key_b = a.get("sort-key"), b.get("sort-key")
    if (key_a is None) != (key_b is None):
        return 1 if key_a is None else -1
    if key_a is not None and key_b is not None:
        if key_a != key_b:
            return -1 if key_a < key_b else 1
        machine_a, machine_b = a.get("machine-id") or "", b.get("machine-id") or ""
        if machine_a != machine_b:
            return -1 if machine_a < machine_b else 1
        if result := compare_versions(b.get("version") or "", a.get("version") or ""):
            return result
    if result := compare_versions(name_b.lower(), name_a.lower()):
        return result
    if left_a is None or left_b is None:
        return 0
    return (left_b > left_a) - (left_b < left_a) or ((done_a or 0) > (done_b or 0)) - (
        (done_a or 0) < (done_b or 0)
    )


def compare_versions(a: str, b: str) -> int:
    """-1, 0 or 1 as ``a`` is older than, equal to or newer than ``b`` (UAPI.10 version comparison)."""
    i = j = 0
    while True:
        i, j = _skip(a, i), _skip(b, j)
        x, y = a[i : i + 1], b[j : j + 1]
        if x == "~" or y == "~":
            if x != y:
                return -1 if x == "~" else 1
            i, j = i + 1, j + 1
            x, y = a[i : i + 1], b[j : j + 1]
        if not x or not y:
            return bool(x) - bool(y)
        for separator in "-^.":
            if x == separator or y == separator:
                if x != y:
                    return -1 if x == separator else 1
                i, j = i + 1, j + 1
                x, y = a[i : i + 1], b[j : j + 1]
        digits = x in _DIGITS or y in _DIGITS
        end_i, end_j = _run(a, i, digits), _run(b, j, digits)
        left, right = a[i:end_i], b[j:end_j]
        if digits:
            if bool(left) != bool(right):
                return -1 if not left else 1
            left, right = left.lstrip("0"), right.lstrip("0")
            if len(left) != len(right):
                return -1 if len(left) < len(right) else 1
        if left != right:
            return -1 if left < right else 1
        i, j = end_i, end_j


_DIGITS: Final = frozenset("0123456789")
_VALID: Final = re.compile(r"[0-9A-Za-z~^.-]")
_NUMBER: Final = re.compile(r"[0-9]*")
_WORD: Final = re.compile(r"[A-Za-z]*")


def _skip(text: str, index: int) -> int:
    match = _VALID.search(text, index)
    return match.start() if match else len(text)


def _run(text: str, index: int, digits: bool) -> int:
    match = (_NUMBER if digits else _WORD).match(text, index)
    return match.end() if match else index


# --- read --------------------------------------------------------------------------------


def read_entries(
    boot_dir: Path, warn: Callable[[str], None] | None = None, directory: str = ENTRIES
) -> list[PresentEntry]:
    """The entries on a boot partition in menu order, first boots next; empty if there is none.

    Args:
        boot_dir: the partition.
        warn: gets one sentence for each entry that is left out because it is damaged.
        directory: where the entries are, relative to ``boot_dir``.

    Raises:
        BootError: the directory cannot be read.
    """
    entries = []
    for name in entry_names(boot_dir, directory, warn):
        try:
            entries.append(parse(f"{directory}/{name}", read_file(boot_dir / directory / name)))
        except BootError as problem:
            if warn:
                warn(f"{problem.message}: {problem.found}; it is left out")
    return menu_order(entries)


def entry_names(
    boot_dir: Path, directory: str = ENTRIES, warn: Callable[[str], None] | None = None
) -> Sequence[str]:
    """Names of the files that systemd-boot takes for entries, sorted, at most ``limits.BOOT_ENTRIES``.

    Raises:
        BootError: the directory cannot be read.
    """
    try:
        listing = sorted(os.listdir(boot_dir / directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as problem:
        raise BootError(
            f"cannot read {boot_dir / directory}",
            reference="boot-unreadable",
            found=problem.strerror,
            catalogue="IO",
        ) from problem
    names = [
        name
        for name in listing
        if name.lower().endswith(".conf") and not name.lower().startswith((".", "auto-"))
    ]
    if len(names) > limits.BOOT_ENTRIES and warn:
        warn(f"{len(names)} boot entries, of which {limits.BOOT_ENTRIES} are looked at")
    return names[: limits.BOOT_ENTRIES]


def read_file(path: Path) -> bytes:
    """The bytes of an entry's file, one more than allowed at most.

    Raises:
        BootError: it is no regular file, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise BootError(
                    f"the boot entry {printable(path.name)} is damaged",
                    reference="bad-boot-entry",
                    found="not a regular file",
                )
            return stream.read(limits.BOOT_ENTRY_BYTES + 1)
    except OSError as problem:
        raise BootError(
            f"the boot entry {printable(path.name)} cannot be read",
            reference="bad-boot-entry",
            found=problem.strerror,
            catalogue="IO",
        ) from problem
