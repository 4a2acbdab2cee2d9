"""ostree's object formats and checksums (libostree, ``ostree-core.h``), pure.

    content   sha256(u32be size of header, 4 zero bytes, header (uuuusa(ayay)), file content)     objects/xx/rest.file
    dirmeta   sha256((uuua(ayay)))                                                                objects/xx/rest.dirmeta
    dirtree   sha256((a(say)a(sayay)))                                                            objects/xx/rest.dirtree
    commit    sha256((a{sv}aya(say)sstayay))                                                      objects/xx/rest.commit

Numbers are big-endian inside. Extended attributes are sorted by name, names with their NUL. Modes include the file type.
Times are not part of any object.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from bootc_ostree.variant import decode, encode, swap32, swap64

HEADER: Final = "(uuuusa(ayay))"
DIRMETA: Final = "(uuua(ayay))"
DIRTREE: Final = "(a(say)a(sayay))"
COMMIT: Final = "(a{sv}aya(say)sstayay)"

COMMIT_ETC: Final = "usr/etc"  # where a commit has the image's /etc
COMMIT_VAR: Final = "usr/share/factory/var"  # and its /var, for libostree before 2024.3

Xattrs = Iterable[tuple[bytes, bytes]]


def _xattrs(xattrs: Xattrs) -> list[tuple[bytes, bytes]]:
    return [(name + b"\0", value) for name, value in sorted(xattrs)]


def file_header(uid: int, gid: int, mode: int, target: str = "", xattrs: Xattrs = ()) -> bytes:
    """What is hashed in front of a file's content (for a symbolic link: instead of it)."""
    if target:
        return _header(uid, gid, mode, target, tuple(xattrs))
    return _common_header(uid, gid, mode, tuple(xattrs))


def _header(
    uid: int, gid: int, mode: int, target: str, xattrs: tuple[tuple[bytes, bytes], ...]
) -> bytes:
    variant = encode(HEADER, (swap32(uid), swap32(gid), swap32(mode), 0, target, _xattrs(xattrs)))
    return len(variant).to_bytes(4, "big") + bytes(4) + variant


@lru_cache(maxsize=4096)  # an image's files have few combinations
def _common_header(uid: int, gid: int, mode: int, xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return _header(uid, gid, mode, "", xattrs)


def symlink_checksum(uid: int, gid: int, target: bytes, xattrs: Xattrs = ()) -> bytes:
    """Checksum of a symbolic link.

    Raises:
        UnicodeDecodeError: the target is not UTF-8.
    """
    target.decode("utf-8")
    pairs = tuple(xattrs)
    if pairs:
        header = _header(uid, gid, stat.S_IFLNK | 0o777, target.decode("utf-8"), pairs)
        return hashlib.sha256(header).digest()
    # (uuuusa(ayay)) written out, since an image has thousands: four numbers, text, end of the text
    body = _link_numbers(uid, gid) + target + b"\0"
    width = 1 if len(body) + 1 < 1 << 8 else 2
    # the array of attributes, empty, begins at a multiple of its alignment, which is 1
    variant = body + len(body).to_bytes(width, "little")
    return hashlib.sha256(len(variant).to_bytes(4, "big") + bytes(4) + variant).digest()


@lru_cache(maxsize=256)
def _link_numbers(uid: int, gid: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in (uid, gid, stat.S_IFLNK | 0o777, 0))


def dirmeta(uid: int, gid: int, mode: int, xattrs: Xattrs = ()) -> bytes:
    """A directory's metadata object."""
    return encode(DIRMETA, (swap32(uid), swap32(gid), swap32(mode), _xattrs(xattrs)))


def dirtree(
    files: Sequence[tuple[str, bytes]], directories: Sequence[tuple[str, bytes, bytes]]
) -> bytes:
    """A directory's list: (name, checksum) and (name, tree checksum, metadata checksum), each sorted by name.

    Written out rather than by ``encode``, since every directory of an image passes here: ``a(say)`` is elements of name, NUL,
    checksum, end of the name, then the ends of all elements; ``a(sayay)`` likewise.
    """
    first = _array((name.encode() + b"\0", checksum, b"") for name, checksum in sorted(files))
    second = _array((name.encode() + b"\0", tree, meta) for name, tree, meta in sorted(directories))
    width = 1
    while len(first) + len(second) + width >= 1 << (8 * width):
        width *= 2
    return first + second + len(first).to_bytes(width, "little")


def _array(elements: Iterable[tuple[bytes, bytes, bytes]]) -> bytes:
    out: list[bytes] = []
    ends: list[int] = []
    position = 0
    for name, second, third in elements:
        length, offsets = len(name) + len(second) + len(third), 2 if third else 1
        width = 1 if length + offsets < 256 else 2
        out += (name, second, third)
        if third:  # ends of all members but the last, the last of them first
            out.append((len(name) + len(second)).to_bytes(width, "little"))
        out.append(len(name).to_bytes(width, "little"))
        position += length + offsets * width
        ends.append(position)
    if not ends:
        return b""
    width = 1
    while position + width * len(ends) >= 1 << (8 * width):
        width *= 2
    out.append(b"".join([end.to_bytes(width, "little") for end in ends]))
    return b"".join(out)


def commit(
    root_tree: bytes,
    root_meta: bytes,
    *,
    metadata: dict[str, str],
    timestamp: int,
    parent: bytes = b"",
    subject: str = "",
) -> bytes:
    """A commit object; metadata values are strings, sorted by key, so that equal inputs give equal commits."""
    pairs = [(key, ("s", metadata[key])) for key in sorted(metadata)]
    return encode(COMMIT, (pairs, parent, [], subject, "", swap64(timestamp), root_tree, root_meta))


def parse_commit(data: bytes) -> dict[str, Any]:
    """``metadata`` (keys to Python values), ``parent``, ``timestamp``, ``tree`` and ``meta`` of a commit object.

    Raises:
        ValueError: not a commit.
    """
    pairs, parent, _, subject, _, timestamp, tree, meta = decode(COMMIT, data)
    return {
        "metadata": {key: value for key, (_, value) in pairs},
        "parent": parent,
        "subject": subject,
        "timestamp": swap64(timestamp),
        "tree": tree,
        "meta": meta,
    }


def parse_dirmeta(data: bytes) -> tuple[int, int, int, tuple[tuple[bytes, bytes], ...]]:
    """Owner, group, mode and attributes of a dirmeta object.

    Raises:
        ValueError: not a dirmeta.
    """
    uid, gid, mode, xattrs = decode(DIRMETA, data)
    pairs = tuple((name.rstrip(b"\0"), value) for name, value in xattrs)
    return swap32(uid), swap32(gid), swap32(mode), pairs


def parse_dirtree(data: bytes) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes, bytes]]]:
    """Files and directories of a dirtree object.

    Raises:
        ValueError: not a dirtree.
    """
    files, directories = decode(DIRTREE, data)
    return list(files), list(directories)


def escape_ref(text: str) -> str:
    """``text`` as part of a ref name, as ostree-ext escapes it: ``docker://x_y`` to ``docker_3A__2F__2F_x__y``.

    Raises:
        ValueError: empty, or with a NUL.
    """
    if not text or "\0" in text:
        raise ValueError("an empty name cannot be a ref")
    out = []
    for index, char in enumerate(text):
        if char.isascii() and (char.isalnum() or char == "-"):
            out.append(char)
        elif char == "_":
            out.append("__")
        elif (
            char == "/"
            and index
            and index + 1 < len(text)
            and text[index - 1].isascii()
            and text[index - 1].isalnum()
        ):
            out.append(char)
        else:
            out.append(f"_{ord(char):02X}_")
    return "".join(out)


def unescape_ref(name: str) -> str:
    """The reverse of ``escape_ref``.

    Raises:
        ValueError: not what ``escape_ref`` makes.
    """
    out = []
    position = 0
    while position < len(name):
        char = name[position]
        position += 1
        if char != "_":
            out.append(char)
            continue
        end = name.find("_", position)
        if end < 0:
            raise ValueError("a ref with half an escape")
        out.append(chr(int(name[position:end], 16)) if end > position else "_")
        position = end + 1
    return "".join(out)
