r"""A strict, streaming, bounded reader of layer archives (POSIX.1-2017 ``pax``, ustar, GNU tar, V7).

    member  = { extended header } header [ content, padded to 512 ]
    archive = { member } 512 zero bytes, 512 zero bytes, { zero bytes }

    header    0 name 100 · 100 mode 8 · 108 uid 8 · 116 gid 8 · 124 size 12 · 136 mtime 12 · 148 checksum 8
              156 type 1 · 157 linkname 100 · 257 magic 8 · 329 devmajor 8 · 337 devminor 8 · 345 prefix 155
    extended  types x, g (pax records ``LENGTH KEY=VALUE\n``), L, K (GNU long name, long link name)

Whatever two readers of the format could understand differently is refused, since a signature says nothing about how bytes are
read: two extended headers of one kind, a pax size that contradicts the header, sparse files, members behind the end. Names
become keys in memory: bytes without a leading ``/``, without empty, ``.`` and ``..`` parts. They are never opened here.

Three ways in, one set of rules:

    HeaderDecoder    512-byte blocks and extended bodies to ``TarEntry``
    Splitter         a stream of bytes to the calls of a ``Sink`` (`bootc_core.oci.sink`), for workers
    iter_entries     a stream whose file contents are partly elsewhere (splitstreams) to entries, for the merge

Documented decisions: mode bits beyond 07777 are dropped (old writers put the file type there); modification times before
1970 become 1970, those beyond 2^63-1 seconds that; digits beyond nanoseconds are cut; names of users and groups, access and
change times, ACL texts and unknown pax keys are ignored; a whiteout counts by its name and may be a hard link (AUFS).
"""

from __future__ import annotations

import binascii
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias
from zlib import adler32

from bootc_core import limits
from bootc_core.errors import ContentError, printable

if TYPE_CHECKING:
    from bootc_core.oci.sink import Sink

BLOCK: Final = 512
REGULAR: Final = 0x30
HARDLINK: Final = 0x31
SYMLINK: Final = 0x32
CHARACTER: Final = 0x33
BLOCK_DEVICE: Final = 0x34
DIRECTORY: Final = 0x35
FIFO: Final = 0x36

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"

WHOLE_FILE_BYTES: Final = 1024 * 1024  # content up to here is handed over in one piece
_MAX_ID: Final = 2**32 - 2  # 2^32-1 means "no change" to chown
_MAX_TIME: Final = 2**63 - 1
_MAX_SIZE: Final = 2**63 - 1
_USTAR_SIZE: Final = 2**33  # sizes from here on do not fit in the header's octal field
_CACHE: Final = 8192  # parsed fields that are remembered

_SPARSE: Final = 0x53
_GLOBAL: Final = 0x67
_LONG_NAME: Final = 0x4C
_LONG_LINK: Final = 0x4B
_EXTENSIONS: Final = frozenset(b"xgLK")
_MEMBERS: Final = frozenset(b"0123456")

_TIME: Final = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]{0,64}))?")
_DECIMAL: Final = re.compile(rb"[0-9]{1,20}")
_XATTR_RAW: Final = b"SCHILY.xattr."
_XATTR_CODED: Final = b"LIBARCHIVE.xattr."
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.")
_GLOBAL_REFUSED: Final = frozenset((b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"))
_ONCE: Final = _GLOBAL_REFUSED

Xattrs: TypeAlias = tuple[tuple[bytes, bytes], ...]


class TarEntry:
    """One member: its metadata with all extended headers applied, its names checked and made canonical.

    Attributes:
        path: canonical key (``b"usr/bin/sh"``), ``b""`` for the root directory.
        type: ASCII code: 0x30 regular file, ``1`` hard link, ``2`` symbolic link, ``3`` character and ``4`` block
            device, ``5`` directory, ``6`` FIFO. Nothing else occurs.
        mode: permission bits, at most 07777.
        uid, gid: 0 to 2^32-2.
        size: of the content in bytes; 0 unless regular.
        mtime, mtime_ns: seconds since 1970 and nanoseconds, never negative.
        linkname: target: of a symbolic link verbatim, of a hard link a canonical key.
        rdev: of devices, in the kernel's 32-bit form (as ``st_rdev``).
        xattrs: sorted by name.
    """

    __slots__ = (
        "gid",
        "linkname",
        "mode",
        "mtime",
        "mtime_ns",
        "path",
        "rdev",
        "size",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        path: bytes,
        type: int,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime: int = 0,
        mtime_ns: int = 0,
        linkname: bytes = b"",
        rdev: int = 0,
        xattrs: Xattrs = (),
    ) -> None:
        self.path = path
        self.type = type
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.mtime_ns = mtime_ns
        self.linkname = linkname
        self.rdev = rdev
        self.xattrs = xattrs

    @property
    def is_whiteout(self) -> bool:
        """Does it hide something of lower layers instead of being something?"""
        return WHITEOUT in self.path and self.path.rpartition(b"/")[2].startswith(WHITEOUT)

    def __repr__(self) -> str:
        return f"TarEntry('{printable(self.path)}' type={chr(self.type)} {self.mode:04o} size={self.size})"


class _Problem(Exception):
    """What is wrong; turned into ``ContentError`` where member and layer are known."""

    def __init__(
        self, message: str, reference: str, catalogue: str, found: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.reference, self.catalogue, self.found = (
            message,
            reference,
            catalogue,
            found,
        )


def _damaged(message: str, found: bytes | str | None = None) -> _Problem:
    return _Problem(message, "bad-archive", "INT", None if found is None else printable(found, 80))


def _hostile(message: str, found: bytes | str | None = None) -> _Problem:
    return _Problem(message, "bad-member", "CON", None if found is None else printable(found, 160))


def _ambiguous(message: str, found: bytes | str | None = None) -> _Problem:
    return _Problem(
        message, "ambiguous-archive", "INT", None if found is None else printable(found, 80)
    )


def _limit(message: str, found: bytes | str | None = None) -> _Problem:
    return _Problem(
        message, "limit-exceeded", "LIM", None if found is None else printable(found, 80)
    )


def canonical(name: bytes, *, whiteouts: bool = True) -> bytes:
    """``name`` as a key: relative to the root, without empty and ``.`` parts; ``b""`` is the root itself.

    Args:
        name: as an archive has it; a leading ``/`` means the root of the image.
        whiteouts: check names that begin with ``.wh.`` (they may only hide a proper name, and only stand last).

    Raises:
        ContentError: ``..``, NUL, too long, too deep, a whiteout that means itself or its parent.
    """
    try:
        return _canonical(name, whiteouts)
    except _Problem as problem:
        raise _error("name", name, problem) from None


def _canonical(name: bytes, whiteouts: bool) -> bytes:
    if b"\0" in name:
        raise _hostile("its name contains a NUL byte")
    if len(name) > 2 * limits.PATH_BYTES:
        raise _limit(f"its path is longer than {limits.PATH_BYTES} bytes", f"{len(name)} bytes")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise _hostile("its path contains '..'")
    if len(parts) > limits.DEPTH:
        raise _limit(f"its path has more than {limits.DEPTH} levels", f"{len(parts)} levels")
    for part in parts:
        if len(part) > limits.NAME_BYTES:
            raise _limit(
                f"a part of its path is longer than {limits.NAME_BYTES} bytes", f"{len(part)} bytes"
            )
    path = b"/".join(parts)
    if len(path) > limits.PATH_BYTES:
        raise _limit(f"its path is longer than {limits.PATH_BYTES} bytes", f"{len(path)} bytes")
    if whiteouts and WHITEOUT in path:
        _check_whiteout(parts)
    return path


def _check_whiteout(parts: list[bytes]) -> None:
    for part in parts[:-1]:
        if part.startswith(WHITEOUT):
            raise _hostile("a directory is named like a whiteout")
    last = parts[-1]
    if last.startswith(WHITEOUT) and last != OPAQUE:
        victim = last[len(WHITEOUT) :]
        if victim in {b"", b".", b".."} or victim.startswith(WHITEOUT):
            raise _hostile("the whiteout hides no proper name")


def _error(what: str, name: bytes | None, problem: _Problem) -> ContentError:
    member = "" if name is None else f"cannot accept '{printable(name)}': "
    return ContentError(
        f"{what}: {member}{problem.message}",
        reference=problem.reference,
        found=problem.found,
        catalogue=problem.catalogue,
    )


def _number(field: bytes, what: str) -> int | None:
    """A numeric field: octal digits between spaces and NULs, or GNU base-256; None if blank."""
    first = field[0]
    if first & 0x80:
        if first == 0x80:
            return int.from_bytes(field[1:], "big")
        if first == 0xFF:
            return int.from_bytes(field, "big", signed=True)
        raise _damaged(f"its {what} is not a number", field)
    digits = field.strip(b" \0")
    if not digits:
        return None
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _damaged(f"its {what} is not an octal number", field)
    return int(digits, 8)


def _time(seconds: int, nanoseconds: int = 0) -> tuple[int, int]:
    if seconds < 0:
        return 0, 0
    if seconds > _MAX_TIME:
        return _MAX_TIME, 0
    return seconds, nanoseconds


def _pax_time(text: bytes) -> tuple[int, int]:
    match = _TIME.fullmatch(text)
    if match is None:
        raise _damaged("its modification time is not a number", text)
    sign, whole, fraction = match.groups()
    if sign:
        return 0, 0  # whatever the fraction: before, or at, the epoch
    return _time(int(whole), int((fraction or b"")[:9].ljust(9, b"0")))


def _pax_number(text: bytes, what: str, most: int) -> int:
    if not _DECIMAL.fullmatch(text) or (value := int(text)) > most:
        raise _damaged(f"its {what} is not a number in range", text)
    return value


def parse_pax(body: bytes) -> list[tuple[bytes, bytes]]:
    """Keys and values of a pax extended header, in order; linear in its length.

    Raises:
        ContentError: a record without a proper length, key or end.
    """
    try:
        return _records(body)
    except _Problem as problem:
        raise _error("extended header", None, problem) from None


def _records(body: bytes) -> list[tuple[bytes, bytes]]:
    records = []
    position, end = 0, len(body)
    while position < end:
        space = body.find(b" ", position, position + 9)
        digits = body[position:space] if space > 0 else body[position : position + 9]
        if not digits.isdigit():
            raise _damaged("an extended header has a record without a length", digits)
        if space < 0:
            raise _limit("an extended header has a record length of too many digits", digits)
        following = position + int(digits)
        if following > end or following < space + 4 or body[following - 1] != 0x0A:
            raise _damaged("an extended header has a record of the wrong length", digits)
        key, equals, value = body[space + 1 : following - 1].partition(b"=")
        if not equals or not key:
            raise _damaged("an extended header has a record without a key", key[:40])
        records.append((key, value))
        position = following
    return records


class _Pax:
    """What one ``x`` header says about the member that follows."""

    __slots__ = ("coded", "raw", "sparse", "values")

    def __init__(self, body: bytes) -> None:
        self.values: dict[bytes, bytes] = {}
        self.raw: dict[bytes, bytes] = {}
        self.coded: dict[bytes, bytes] = {}
        self.sparse: list[int] | None = None
        for key, value in _records(body):
            if key in _ONCE:
                if self.values.setdefault(key, value) != value:
                    raise _ambiguous(f"an extended header gives {key.decode()} twice")
                if not value:
                    raise _ambiguous(f"an extended header gives an empty {key.decode()}")
            elif key.startswith(_XATTR_RAW):
                _note_xattr(self.raw, key[len(_XATTR_RAW) :], value)
            elif key.startswith(_XATTR_CODED):
                name = urllib.parse.unquote_to_bytes(key[len(_XATTR_CODED) :])
                try:
                    value = binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
                except ValueError:
                    raise _damaged("an extended attribute is not base64", name) from None
                _note_xattr(self.coded, name, value)
            elif key.startswith(b"GNU.sparse.") or key == b"SCHILY.realsize":
                self.sparse = self.sparse or []
                if key == b"GNU.sparse.map":
                    self.sparse += [_sparse_number(text) for text in value.split(b",")]

    def xattrs(self) -> Xattrs:
        if not self.raw and not self.coded:
            return ()
        for name, value in self.coded.items():
            if self.raw.setdefault(name, value) != value:
                raise _ambiguous("its extended attribute has two values", name)
        if len(self.raw) > limits.XATTRS:
            raise _limit(
                f"it has more than {limits.XATTRS} extended attributes", str(len(self.raw))
            )
        total = sum(len(name) + len(value) for name, value in self.raw.items())
        if total > limits.XATTRS_BYTES:
            raise _limit(
                f"its extended attributes take more than {limits.XATTRS_BYTES} bytes",
                f"{total} bytes",
            )
        return tuple(sorted(self.raw.items()))


def _note_xattr(table: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    if not name.startswith(_XATTR_NAMESPACES) or b"\0" in name or name in _XATTR_NAMESPACES:
        raise _Problem(
            "an extended attribute has no proper name", "bad-member", "LIM", printable(name, 80)
        )
    if len(name) > limits.XATTR_NAME_BYTES:
        raise _limit(
            f"an extended attribute's name is longer than {limits.XATTR_NAME_BYTES} bytes",
            f"{len(name)} bytes",
        )
    if len(value) > limits.XATTR_VALUE_BYTES:
        raise _limit(
            f"an extended attribute is longer than {limits.XATTR_VALUE_BYTES} bytes",
            f"{len(value)} bytes",
        )
    if table.setdefault(name, value) != value:
        raise _ambiguous("its extended attribute has two values", name)


def _sparse_number(text: bytes) -> int:
    return _pax_number(text, "sparse map", _MAX_SIZE)


def _check_sparse_map(numbers: list[int]) -> None:
    """A sparse file is refused anyway; a map that makes no sense is called damage instead."""
    position = 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=False):
        if offset < position or length < 0:
            raise _damaged("its sparse map is not in order")
        position = offset + length


def _refuse_sparse(numbers: list[int]) -> NoReturn:
    _check_sparse_map(numbers)
    raise _limit("it is a sparse file, whose real size cannot be bounded by the archive")


class HeaderDecoder:
    """Turns blocks into entries, one archive each; the caller cuts the stream.

    ::

        entry = decoder.header(block)          512 bytes, ``bytes``
        if entry is not None:                  a member; entry.size bytes of content follow, padded to 512
        elif decoder.pending:                  an extended header; its body of decoder.pending bytes follows, padded;
            decoder.extension(body)            hand it over without the padding
        elif decoder.ended:                    the end; only zeros may follow (check them yourself)
        decoder.close()                        when there are no more blocks

    Attributes:
        entries: members so far.
        pending: size of the extended body that is due, 0 if none is.
        ended: both zero blocks were seen.
        last: path of the last member, for messages.
    """

    __slots__ = (
        "_count", "_kind", "_long_link", "_long_name", "_most", "_owners", "_pax", "_sums", "_times", "_what",
        "_zeros", "ended", "entries", "last", "pending",
    )  # fmt: skip

    def __init__(self, what: str = "layer", *, max_entries: int = limits.ENTRIES) -> None:
        """Decode headers of ``what`` (named in errors), at most ``max_entries`` members."""
        self._what = what
        self._most = max_entries
        self.entries = 0
        self.pending = 0
        self.ended = False
        self.last = b""
        self._zeros = 0
        self._kind = 0
        self._count = 0
        self._pax: _Pax | None = None
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._sums: dict[bytes, int] = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, tuple[int, int]] = {}

    def header(self, block: bytes) -> TarEntry | None:
        """The member whose header ``block`` is; None for an extended header or a zero block.

        Raises:
            ContentError: damaged (INT), hostile or unsupported (CON), beyond a bound (LIM).
        """
        try:
            return self._header(block)
        except _Problem as problem:
            raise self._refusal(block, problem) from None

    def extension(self, body: bytes) -> None:
        """Take the body of the extended header that was announced by ``pending``.

        Raises:
            ContentError: as ``header``.
        """
        try:
            self._extension(body)
        except _Problem as problem:
            raise self._refusal(None, problem) from None

    def close(self) -> None:
        """Say that no block follows.

        Raises:
            ContentError: the archive does not end with two zero blocks (it is truncated).
        """
        if not self.ended:
            where = f"after '{printable(self.last)}'" if self.entries else "before the first member"
            raise _error(
                self._what,
                None,
                _damaged("the archive ends without its end marker, so it is cut off", where),
            )

    def _refusal(self, block: bytes | None, problem: _Problem) -> ContentError:
        name: bytes | None = self._long_name
        if self._pax is not None and b"path" in self._pax.values:
            name = self._pax.values[b"path"]
        if name is None and block is not None:
            name = block[:100].partition(b"\0")[0]
        return _error(self._what, name, problem)

    def _header(self, block: bytes) -> TarEntry | None:
        if (block[0] == 0 or self._zeros) and self._end_block(block):
            return None
        # 1. Checksum. A half's adler32 is exact: 256 bytes sum up to less than its modulus, and C adds them.
        field = block[148:156]
        wanted = self._sums.get(field)
        if wanted is None:
            wanted = self._remember_sum(field)
        if (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 != wanted:
            self._check_signed_sum(block, wanted)
        # 2. Extended headers
        kind = block[156]
        if kind in _EXTENSIONS:
            self._announce(block, kind)
            return None
        # 3. Fields
        pair = block[100:124]
        owner = self._owners.get(pair)
        if owner is None:
            owner = self._remember_owner(pair)
        mode, uid, gid = owner
        size = _number(block[124:136], "size") or 0
        stamp = block[136:148]
        time = self._times.get(stamp)
        if time is None:
            time = self._remember_time(stamp)
        name = self._name(block)
        linkname = b""
        if 0x31 <= kind <= 0x32:
            linkname = block[157:257].partition(b"\0")[0]
        xattrs: Xattrs = ()
        # 4. What extended headers say
        if self._count:
            if self._long_name is not None:
                name = self._long_name
            if self._long_link is not None and linkname:
                linkname = self._long_link
            if (pax := self._pax) is not None:
                values = pax.values
                name = self._agreed(values.get(b"path"), self._long_name, name, "name")
                if 0x31 <= kind <= 0x32:
                    linkname = self._agreed(
                        values.get(b"linkpath"), self._long_link, linkname, "link target"
                    )
                if b"size" in values:
                    size = self._pax_size(values[b"size"], size)
                if b"uid" in values:
                    uid = _pax_number(values[b"uid"], "owner", _MAX_SIZE)
                if b"gid" in values:
                    gid = _pax_number(values[b"gid"], "group", _MAX_SIZE)
                if b"mtime" in values:
                    time = _pax_time(values[b"mtime"])
                if pax.sparse is not None:
                    _refuse_sparse(pax.sparse)
                xattrs = pax.xattrs()
        # 5. Type
        if kind == 0:
            kind = DIRECTORY if name.endswith(b"/") else REGULAR
        if kind not in _MEMBERS:
            self._refuse_type(block, kind)
        if size < 0 or size > _MAX_SIZE:
            raise _damaged("its size is out of range", str(size))
        if size and kind != REGULAR:
            raise _ambiguous("it has a size but no content", f"{size} bytes")
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise _hostile(
                "its owner or group is not a number in range", f"{uid}:{gid}" if uid != -1 else None
            )
        # 6. Name. Plain ones need no second look: without "//" and "/." there is no empty, dot or whiteout part.
        path = name
        if kind == DIRECTORY and name[-1:] == b"/":
            path = name.rstrip(b"/")
        if path.startswith(b"./"):
            path = path[2:]
        if (
            not path
            or len(path) > limits.NAME_BYTES
            or b"/." in path
            or b"//" in path
            or path[0] in b"./"
            or path[-1] == 0x2F
            or self._count
        ):
            path, kind, linkname = self._check_name(name, kind, size, linkname)
        # 7. Links and devices
        rdev = 0
        if kind != REGULAR and kind != DIRECTORY:
            if kind == SYMLINK:
                _check_symlink(linkname)
            elif kind == HARDLINK:
                linkname = self._check_hardlink(linkname)
                if linkname == path:
                    raise _hostile("it is a hard link to itself")
            elif kind != FIFO:
                rdev = _device(block, kind, path)
        self.entries += 1
        if self.entries > self._most:
            raise _limit(f"there are more than {self._most} members")
        self.last = path
        if self._count:
            self._count = 0
            self._pax = self._long_name = self._long_link = None
        return TarEntry(path, kind, mode, uid, gid, size, time[0], time[1], linkname, rdev, xattrs)

    def _end_block(self, block: bytes) -> bool:
        """Is it a zero block? After the first one nothing else may come."""
        if block.count(0) == BLOCK:
            if self._pax is not None or self._long_name is not None or self._long_link is not None:
                raise _damaged("an extended header is followed by no member")
            self._zeros += 1
            self.ended = self._zeros >= 2
            return True
        if self._zeros:
            raise _Problem(
                "something is hidden behind the end of the archive", "hidden-members", "CON"
            )
        return False

    def _remember_sum(self, field: bytes) -> int:
        """The sum that a header with this checksum field must have, the field counted as it stands."""
        value = _number(field, "header checksum")
        if value is None:
            raise _damaged("its header has no checksum")
        if len(self._sums) >= _CACHE:
            self._sums.clear()
        wanted = self._sums[field] = value + sum(field) - 8 * 0x20
        return wanted

    def _check_signed_sum(self, block: bytes, wanted: int) -> None:
        """Old Unix versions added the bytes as signed numbers; that is the only other documented form."""
        high = sum(1 for byte in block if byte > 127) - sum(
            1 for byte in block[148:156] if byte > 127
        )
        if sum(block) - 256 * high != wanted:
            raise _damaged("its header has the wrong checksum")

    def _remember_owner(self, field: bytes) -> tuple[int, int, int]:
        mode, uid, gid = (
            _number(field[:8], "mode"),
            _number(field[8:16], "owner"),
            _number(field[16:], "group"),
        )
        if len(self._owners) >= _CACHE:
            self._owners.clear()
        owner = (mode or 0) & 0o7777, -1 if uid is None else uid, -1 if gid is None else gid
        self._owners[field] = owner
        return owner

    def _remember_time(self, field: bytes) -> tuple[int, int]:
        if len(self._times) >= _CACHE:
            self._times.clear()
        time = self._times[field] = _time(_number(field, "modification time") or 0)
        return time

    def _name(self, block: bytes) -> bytes:
        end = block.find(0, 0, 100)
        name = block[:100] if end < 0 else block[:end]
        magic = block[257:263]
        if magic == b"ustar\0":
            if block[345]:
                if block[508:] == b"tar\0":
                    raise _ambiguous("it is in the star format, which other readers take for ustar")
                return block[345:500].partition(b"\0")[0] + b"/" + name
        elif magic != b"ustar " and magic.count(0) != 6:
            raise _damaged("its header is of no known format", magic)
        return name

    def _agreed(self, pax: bytes | None, gnu: bytes | None, plain: bytes, what: str) -> bytes:
        """The name from three places; the header's own one is only a shortened copy."""
        if pax is not None and gnu is not None and pax != gnu:
            raise _ambiguous(f"two extended headers give it different {what}s", gnu)
        return pax if pax is not None else plain

    def _pax_size(self, text: bytes, plain: int) -> int:
        size = _pax_number(text, "size", _MAX_SIZE)
        fits = {size}
        if (
            size >= _USTAR_SIZE
        ):  # too large for octal digits, and writers differ in what they put there
            fits |= {0, size % _USTAR_SIZE, _USTAR_SIZE - 1}
        if plain not in fits:
            raise _ambiguous(
                "its header and extended header give different sizes", f"{plain} and {size}"
            )
        return size

    def _check_name(
        self, name: bytes, kind: int, size: int, linkname: bytes
    ) -> tuple[bytes, int, bytes]:
        path = _canonical(name, True)
        if not path and (kind != DIRECTORY or not name):
            raise _hostile("only a directory can be the root" if name else "it has no name")
        if kind != DIRECTORY and name.endswith((b"/", b"/.")):
            raise _hostile("only a directory's name may end like this")
        if WHITEOUT in path and path.rpartition(b"/")[2].startswith(WHITEOUT):
            if kind not in {REGULAR, HARDLINK} or size:
                raise _hostile("a whiteout is an empty file")
            return path, REGULAR, b""
        return path, kind, linkname

    def _check_hardlink(self, linkname: bytes) -> bytes:
        if linkname.startswith(b"/"):
            raise _hostile("the target of the hard link is absolute", linkname)
        try:
            target = _canonical(linkname, True)
        except _Problem as problem:
            problem.message = f"the target of the hard link is unacceptable: {problem.message}"
            problem.found = printable(linkname, 160)
            raise
        if not target or target.rpartition(b"/")[2].startswith(WHITEOUT):
            raise _hostile("the hard link has no proper target", linkname)
        return target

    def _announce(self, block: bytes, kind: int) -> None:
        size = _number(block[124:136], "size") or 0
        if size < 0:
            raise _damaged("an extended header has a negative size")
        if size > limits.PAX_BYTES:
            raise _limit(
                f"an extended header is longer than {limits.PAX_BYTES} bytes", f"{size} bytes"
            )
        self._count += 1
        if self._count > limits.EXTENSIONS:
            raise _limit(f"there are more than {limits.EXTENSIONS} extended headers in a row")
        self._kind, self.pending = kind, size
        if not size:
            self._extension(b"")

    def _extension(self, body: bytes) -> None:
        kind, self.pending = self._kind, 0
        if kind == _LONG_NAME:
            if self._long_name is not None:
                raise _ambiguous("two long names stand in front of one member")
            self._long_name = self._long(body)
        elif kind == _LONG_LINK:
            if self._long_link is not None:
                raise _ambiguous("two long link names stand in front of one member")
            self._long_link = self._long(body)
        elif kind == _GLOBAL:
            for key, _ in _records(body):
                if key in _GLOBAL_REFUSED or key.startswith(
                    (_XATTR_RAW, _XATTR_CODED, b"GNU.sparse.")
                ):
                    raise _hostile("a global header changes all members", key)
        elif self._pax is not None:
            raise _ambiguous("two extended headers stand in front of one member")
        else:
            self._pax = _Pax(body)

    def _long(self, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        if b"\0" in name:
            raise _hostile("a long name contains a NUL byte")
        if not name:
            raise _ambiguous("a long name is empty")
        return name

    def _refuse_type(self, block: bytes, kind: int) -> NoReturn:
        if kind == _SPARSE:
            numbers = [_number(block[at : at + 12], "sparse map") for at in range(386, 482, 12)]
            _refuse_sparse([number for number in numbers if number is not None])
        raise _hostile("its type is not supported", bytes([kind]))


def _check_symlink(target: bytes) -> None:
    if not target:
        raise _hostile("the symbolic link has no target")
    if len(target) > limits.LINK_BYTES:
        raise _limit(
            f"the target of the symbolic link is longer than {limits.LINK_BYTES} bytes",
            f"{len(target)} bytes",
        )
    if b"\0" in target:
        raise _hostile("the target of the symbolic link contains a NUL byte")


def _device(block: bytes, kind: int, path: bytes) -> int:
    major = _number(block[329:337], "device number") or 0
    minor = _number(block[337:345], "device number") or 0
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise _hostile("its device number is out of range", f"{major}:{minor}")
    if kind == CHARACTER and not major and not minor:
        raise _hostile("it is a whiteout of an overlay file system, which has no place in a layer")
    if not path.startswith(b"dev/"):
        raise _hostile("a device node outside /dev is not accepted", f"{major}:{minor}")
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


_HEADER, _EXTENDED, _WHOLE, _PIECES, _PADDING, _TAIL = range(6)


class Splitter:
    """Cuts a stream of archive bytes into the calls of a sink (their order is described there).

    Content up to ``whole`` bytes is handed over in one view, valid during the call; larger content in pieces. What ``raw``
    received and the contents together are exactly the archive. Memory: one chunk and one whole file.
    """

    def __init__(
        self,
        sink: Sink,
        what: str = "layer",
        *,
        max_entries: int = limits.ENTRIES,
        whole: int = WHOLE_FILE_BYTES,
    ) -> None:
        """Split for ``sink``; ``what`` names the archive in errors, ``max_entries`` bounds its members."""
        self._sink = sink
        self._what = what
        self._whole = whole
        self._decoder = HeaderDecoder(what, max_entries=max_entries)
        self._state = _HEADER
        self._entry: TarEntry | None = None
        self._left = 0  # bytes of content or padding still to come
        self._held: list[bytes] = []  # an unfinished block, extended body or whole file
        self._held_bytes = 0
        self._need = 0  # its full length
        self._tail = 0
        self.bytes = 0

    @property
    def entries(self) -> int:
        """Members so far."""
        return self._decoder.entries

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the archive, as many as there are.

        Raises:
            ContentError: damaged (INT), hostile or unsupported (CON), beyond a bound (LIM).
        """
        data = chunk if type(chunk) is bytes else bytes(chunk)
        self.bytes += len(data)
        start = 0
        if self._held:
            start = self._need - self._held_bytes
            if len(data) < start:
                self._held.append(data)
                self._held_bytes += len(data)
                return
            self._held.append(data[:start])
            joined = b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            self._run(joined, 0)
        if start < len(data):
            self._run(data, start)

    def external(self, size: int) -> TarEntry:
        """Say that the content of the member whose header was fed last is elsewhere; go on with its padding.

        Returns:
            the member.

        Raises:
            ContentError: no content, or one of another size, is due here.
        """
        entry = self._entry
        due = self._state in {_WHOLE, _PIECES} and not self._held and entry is not None
        begun = self._state == _PIECES and self._left != size
        if not due or begun or entry is None or entry.size != size:
            raise _error(
                self._what,
                self._decoder.last,
                _damaged("content stands where none, or another one, belongs"),
            )
        self._entry = None
        self.bytes += size
        self._left = -size & (BLOCK - 1)
        self._state = _PADDING
        return entry

    def close(self) -> None:
        """Say that the archive is complete.

        Raises:
            ContentError: it is not.
        """
        if self._state in {_WHOLE, _PIECES, _PADDING, _EXTENDED}:
            raise _error(
                self._what,
                self._decoder.last,
                _damaged("the archive ends within it, so it is cut off"),
            )
        if self._held or self.bytes % BLOCK:
            raise _error(
                self._what,
                None,
                _damaged("the archive ends within a block of 512 bytes", f"{self.bytes} bytes"),
            )
        self._decoder.close()

    def _hold(self, rest: bytes, need: int) -> None:
        self._need = need
        if rest:
            self._held.append(rest)
            self._held_bytes = len(rest)

    def _run(self, data: bytes, pos: int) -> None:
        end = len(data)
        view = memoryview(data)
        sink, decoder = self._sink, self._decoder
        header = decoder.header
        raw = sink.raw if sink.wants_raw else None
        raw_start = pos
        state = self._state
        while True:
            if state == _HEADER:
                if end - pos < BLOCK:
                    self._hold(data[pos:], BLOCK)
                    break
                entry = header(data[pos : pos + BLOCK])
                pos += BLOCK
                if entry is None:
                    if decoder.pending:
                        state = _EXTENDED
                    elif decoder.ended:
                        state = _TAIL
                    continue
                if raw is not None:
                    raw(view[raw_start:pos])
                    raw_start = pos
                size = entry.size
                if not size:
                    if entry.type != REGULAR or entry.is_whiteout:
                        sink.entry(entry)
                    else:
                        sink.file(entry, view[pos:pos])
                    continue
                self._entry = entry
                if size > self._whole:
                    sink.begin_file(entry)
                    self._left = size
                    state = _PIECES
                else:
                    state = _WHOLE
            elif state == _WHOLE:
                entry = self._entry
                assert entry is not None  # noqa: S101 - for the type checker; set with the state
                size = entry.size
                if end - pos < size:
                    self._hold(data[pos:], size)
                    raw_start = pos
                    break
                sink.file(entry, view[pos : pos + size])
                self._entry = None
                raw_start = pos = pos + size
                self._left = -size & (BLOCK - 1)
                state = _PADDING
            elif state == _PIECES:
                take = min(self._left, end - pos)
                if take:
                    sink.write(view[pos : pos + take])
                    raw_start = pos = pos + take
                    self._left -= take
                if self._left:
                    break
                sink.end_file()
                entry = self._entry
                assert entry is not None  # noqa: S101
                self._left = -entry.size & (BLOCK - 1)
                self._entry = None
                state = _PADDING
            elif state == _PADDING:
                take = min(self._left, end - pos)
                pos += take
                self._left -= take
                if self._left:
                    break
                state = _HEADER
            elif state == _EXTENDED:
                size = decoder.pending
                padded = (size + BLOCK - 1) & -BLOCK
                if end - pos < padded:
                    self._hold(data[pos:], padded)
                    break
                decoder.extension(data[pos : pos + size])
                pos += padded
                state = _HEADER
            else:
                self._check_tail(data, pos)
                pos = end
                break
        self._state = state
        if raw is not None and pos > raw_start:
            raw(view[raw_start:pos])

    def _check_tail(self, data: bytes, pos: int) -> None:
        size = len(data) - pos
        self._tail += size
        if data.count(0, pos) != size:
            raise _error(
                self._what,
                None,
                _Problem(
                    "something is hidden behind the end of the archive", "hidden-members", "CON"
                ),
            )
        if self._tail > limits.END_PADDING_BYTES:
            raise _error(
                self._what,
                None,
                _limit(f"more than {limits.END_PADDING_BYTES} bytes follow the end of the archive"),
            )


Merged: TypeAlias = tuple[TarEntry, bytes | None, bytes | None]


class _Collector:
    """A sink that keeps entries with their inline content."""

    wants_raw = False

    def __init__(self) -> None:
        self.found: list[Merged] = []

    def raw(self, data: bytes | memoryview) -> None:
        """Never called."""

    def entry(self, entry: TarEntry) -> None:
        self.found.append((entry, None, None))

    def file(self, entry: TarEntry, body: memoryview) -> None:
        self.found.append((entry, bytes(body), None))

    def begin_file(self, entry: TarEntry) -> None:
        """Never called: everything counts as small."""

    def write(self, piece: memoryview) -> None:
        """Never called."""

    def end_file(self) -> None:
        """Never called."""

    def finish(self) -> dict[str, Any]:
        return {}

    def abort(self) -> None:
        """Nothing to close."""


def iter_entries(
    parts: Iterable[bytes | memoryview | tuple[bytes, int]],
    what: str = "layer",
    *,
    max_entries: int = limits.ENTRIES,
) -> Iterator[Merged]:
    """The members of an archive whose file contents may be elsewhere, in the form that the layer merge takes.

    Args:
        parts: in the order of the archive: its bytes (any cut), or ``(object name, size)`` in place of the whole content
            of the member whose header came last. Padding after such a content is among the bytes.
        what: names the archive in errors.
        max_entries: bound on members.

    Yields:
        ``(entry, inline, object)``: ``inline`` is the content of a regular file that was among the bytes (``b""`` if it is
        empty), ``object`` the name that stood in its place; both None for other members.

    Raises:
        ContentError: as ``Splitter``; also content elsewhere where none of that size belongs.
    """
    sink = _Collector()
    splitter = Splitter(sink, what, max_entries=max_entries, whole=_MAX_SIZE)
    found = sink.found
    for part in parts:
        if type(part) is tuple:
            name, size = part
            yield splitter.external(size), None, name
        else:
            splitter.feed(part)  # type: ignore[arg-type] # the tuple case is above
            if found:
                yield from found
                found.clear()
    splitter.close()
