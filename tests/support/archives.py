"""Archives built byte by byte, so that tests can lie where a library would not."""

from __future__ import annotations

from collections.abc import Callable

from bootc_core.errors import ContentError
from bootc_core.oci.tar import Splitter, TarEntry

BLOCK = 512
END = bytes(2 * BLOCK)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def header(
    name: bytes = b"file",
    *,
    kind: bytes = b"0",
    mode: bytes | int = 0o644,
    uid: bytes | int = 0,
    gid: bytes | int = 0,
    size: bytes | int = 0,
    mtime: bytes | int = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: bytes | int = 0,
    minor: bytes | int = 0,
    prefix: bytes = b"",
    rest: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    def number(value: bytes | int, width: int) -> bytes:
        field = octal(value, width) if isinstance(value, int) else value
        assert len(field) <= width, field
        return field.ljust(width, b"\0")

    block = bytearray(
        name.ljust(100, b"\0")
        + number(mode, 8)
        + number(uid, 8)
        + number(gid, 8)
        + number(size, 12)
        + number(mtime, 12)
        + b" " * 8
        + kind
        + link.ljust(100, b"\0")
        + magic.ljust(8, b"\0")
        + bytes(64)
        + number(major, 8)
        + number(minor, 8)
        + prefix.ljust(155, b"\0")
    ).ljust(BLOCK, b"\0")
    if rest:
        block[345 : 345 + len(rest)] = rest
    assert len(block) == BLOCK, len(block)
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


def padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % BLOCK)


def member(name: bytes = b"file", body: bytes = b"", **fields) -> bytes:
    return header(name, size=fields.pop("size", len(body)), **fields) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax(records: dict[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    body = (
        records
        if isinstance(records, bytes)
        else b"".join(record(*item) for item in records.items())
    )
    return member(b"PaxHeaders/x", body, kind=kind)


def long(name: bytes, kind: bytes = b"L") -> bytes:
    return member(b"././@LongLink", name + b"\0", kind=kind)


class Recorder:
    """A sink that keeps what it was told, in order."""

    wants_raw = True

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.stream = bytearray()  # the archive, put together again
        self.members: list[tuple[TarEntry, bytes | None]] = []
        self._large = bytearray()

    def raw(self, data) -> None:
        self.calls.append(("raw", len(data)))
        self.stream += data

    def entry(self, entry) -> None:
        self.calls.append(("entry", entry.path))
        self.members.append((entry, None))

    def file(self, entry, body) -> None:
        assert len(body) == entry.size
        self.calls.append(("file", entry.path))
        self.stream += body
        self.members.append((entry, bytes(body)))

    def begin_file(self, entry) -> None:
        self.calls.append(("begin_file", entry.path))
        self._large = bytearray()
        self.members.append((entry, None))

    def write(self, piece) -> None:
        assert len(piece)
        self.stream += piece
        self._large += piece

    def end_file(self) -> None:
        entry = self.members[-1][0]
        assert len(self._large) == entry.size
        self.calls.append(("end_file", entry.path))
        self.members[-1] = (entry, bytes(self._large))

    def finish(self) -> dict:
        return {}

    def abort(self) -> None:
        pass


def split(archive: bytes, step: int = 1 << 20, **bounds) -> Recorder:
    """Everything that a sink is told about ``archive`` when it comes in chunks of ``step`` bytes."""
    sink = Recorder()
    splitter = Splitter(sink, "layer 1", **bounds)
    for start in range(0, len(archive), step):
        splitter.feed(archive[start : start + step])
    splitter.close()
    return sink


def refusal(action: Callable[[], object]) -> ContentError | None:
    """The error of an action that may be refused; None if it was not. Any other exception passes."""
    try:
        action()
    except ContentError as problem:
        return problem
    return None
