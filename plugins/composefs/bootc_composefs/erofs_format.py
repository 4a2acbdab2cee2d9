"""What writer and reader of EROFS metadata images share: offsets, records, extended attributes.

An image holds names, metadata and small contents; large files are holes whose data overlayfs finds in the object directory:

    0         composefs header, 32 bytes, zeros up to 1024
    1024      EROFS superblock, 128 bytes
    1152      inodes, each on a multiple of 32 bytes with its xattrs and its inline tail; an inode's number ("nid") is its
              address divided by 32
              shared extended attributes
              zeros up to a multiple of 4096
              blocks: directories, long targets, larger inline contents

All integers are little-endian. Versions 0 and 1 differ in one attribute and the number in the header; version 2 (older
repositories) differs in order and placement.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field
from typing import Final

import xxhash

from bootc_core.errors import ContentError, printable
from bootc_core.models.tree import Node, Xattrs

BLOCK: Final = 4096
SLOT: Final = 32  # inodes start on multiples of it
SUPERBLOCK_OFFSET: Final = 1024
INODES_OFFSET: Final = 1152

COMPOSEFS_MAGIC: Final = 0xD078629A
EROFS_MAGIC: Final = 0xE0F5E1E2
HEADER_VERSION: Final = 1
FLAG_HAS_ACL: Final = 1
FEATURE_COMPAT: Final = 6  # mtime + xattr name filter

# magic, version, flags, composefs version
HEADER: Final = struct.Struct("<IIII16x")
# magic, checksum, compat, block bits, extra slots, root nid, inodes, build time s, ns, blocks, meta block, xattr block, incompat
SUPERBLOCK: Final = struct.Struct("<IIIBBHQqIIII32xI44x")
# format, xattr count, mode, links, size, -, U, ino, uid, gid, -
COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
# format, xattr count, mode, -, size, U, ino, uid, gid, mtime, ns, links, -
EXTENDED: Final = struct.Struct("<HHHHQIIIIqII16x")
# nid, offset of the name in its part, file type, -
DIRENT: Final = struct.Struct("<QHBB")
XATTR_HEADER: Final = struct.Struct("<IB7x")  # name filter, number of shared references
XATTR_ENTRY: Final = struct.Struct("<BBH")  # suffix length, prefix index, value length

PLAIN: Final = 0  # data layouts
INLINE: Final = 2
CHUNKED: Final = 4
CHUNK_BITS_MAX: Final = 43
CHUNKS_MAX: Final = 1024
V2_CHUNK_FORMAT: Final = 31
TAIL_MAX: Final = 2048  # a larger tail of a directory or file gets a block

FILE_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

OVERLAY: Final = b"trusted.overlay."
ESCAPED: Final = b"trusted.overlay.overlay."
METACOPY: Final = b"trusted.overlay.metacopy"
REDIRECT: Final = b"trusted.overlay.redirect"
OPAQUE: Final = b"trusted.overlay.opaque"
ACL_NAMES: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})

SHARED_MAX: Final = 128  # references of one inode; more are stored inline

_PREFIXES: Final = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_PREFIXES_V2: Final = (*_PREFIXES[:4], (b"lustre.", 5), _PREFIXES[4])
PREFIX_OF_INDEX: Final = {0: b""} | {index: prefix for prefix, index in _PREFIXES_V2}
_FILTER_SEED: Final = 0x25BBE08F


@dataclass(slots=True)
class Overrides:
    """What a dump or a foreign image says and a tree cannot: only needed to repeat such an image exactly, bit for bit."""

    links: dict[Node, int] = field(default_factory=dict)  # link counts of files, when not the names
    sizes: dict[Node, int] = field(default_factory=dict)  # recorded sizes of devices and FIFOs
    paths: dict[Node, bytes | None] = field(default_factory=dict)
    """Backing paths of external files that are not ``xx/rest`` of the object; ``None``: no path."""
    homes: dict[Node, tuple[Node, bytes]] = field(default_factory=dict)
    """The name (directory, name in it) of a hard-linked file that decides about its place, when not the first one."""


def is_whiteout(node: Node) -> bool:
    """Is it a character device with number 0, which hides a name of a lower layer?"""
    return node.rdev == 0 and stat.S_ISCHR(node.mode)


def backing_path(name: bytes) -> bytes:
    """The path of an object below the object directory: ``xx/rest`` in hex."""
    text = name.hex().encode()
    return text[:2] + b"/" + text[2:]


def split_name(name: bytes, version: int) -> tuple[int, bytes]:
    """Prefix index and suffix of an attribute's name; the first prefix that matches counts."""
    for prefix, index in _PREFIXES_V2 if version == 2 else _PREFIXES:
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    return 0, name


def filter_bit(name: bytes, version: int) -> int:
    """The bit that stands for an attribute's name in the filter of an inode (which stores the complement)."""
    index, suffix = split_name(name, version)
    return 1 << (xxhash.xxh32_intdigest(suffix, _FILTER_SEED + index) & 31)


def xattr_entry(name: bytes, value: bytes, version: int) -> bytes:
    """One attribute as it stands in an inode or in the shared table, padded to a multiple of 4.

    Raises:
        ContentError: name or value are longer than the format can say.
    """
    index, suffix = split_name(name, version)
    if len(suffix) > 255 or len(value) > 65535:
        raise ContentError(
            f"the extended attribute {printable(name, 80)} does not fit in an image",
            reference="xattr-too-large",
            expected="a name of 255 and a value of 65535 bytes at most",
            found=f"{len(name)} and {len(value)} bytes",
            catalogue="LIM",
        )
    entry = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
    return entry + bytes(-len(entry) & 3)


def escape(xattrs: Xattrs) -> Xattrs:
    """The attributes as an overlay on top must find them: ``trusted.overlay.*`` gets one more ``overlay.``; sorted."""
    return tuple(
        sorted(
            (ESCAPED + name[len(OVERLAY) :] if name.startswith(OVERLAY) else name, value)
            for name, value in xattrs
        )
    )
