"""The tar group of the catalogue of bad inputs: each row by its id, with the class that it demands.

Rows about the merged tree (T11, T13, T14, T16, T17, T23, T51) are in test_layers.py; T24, T50, T52 and T53 concern
kernels and boot files, T54 the import (test_importer.py: content that changed after its descriptor was made).
"""

from __future__ import annotations

import time
import tracemalloc

import pytest
from support.archives import BLOCK, END, header, long, member, octal, padded, pax, record, split

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.oci.tar import HeaderDecoder, Splitter, canonical, iter_entries, parse_pax

MANY_LEVELS = b"/".join([b"a"] * (limits.DEPTH + 1))
SPARSE_MAP = octal(512, 12) + octal(512, 12) + octal(0, 12) + octal(512, 12)


def sparse(numbers: bytes) -> bytes:
    return header(b"holes", kind=b"S", magic=b"ustar  ", size=0, rest=bytes(41) + numbers) + END


REFUSED = {
    "T01 parent parts": (member(b"../../etc/shadow") + END, "CON", "'..'"),
    "T03 parent parts inside": (member(b"a/b/../../../x") + END, "CON", "'..'"),
    "T03 parent parts after dot": (member(b"./../x") + END, "CON", "'..'"),
    "T03 parent parts by pax": (pax({b"path": b"a/../../x"}) + member() + END, "CON", "'..'"),
    "T03 parent parts by GNU": (long(b"a/../../x") + member() + END, "CON", "'..'"),
    "T03 parent parts by prefix": (member(b"x", prefix=b"..") + END, "CON", "'..'"),
    "T04 NUL by pax": (pax({b"path": b"a\0b"}) + member() + END, "CON", "NUL"),
    "T04 NUL by GNU": (long(b"a\0b") + member() + END, "CON", "NUL"),
    "T05 empty": (member(b"") + END[BLOCK:] + END, "CON", "no name"),
    "T05 dot": (member(b".") + END, "CON", "only a directory can be the root"),
    "T05 slash": (member(b"/") + END, "CON", "only a directory can be the root"),
    "T05 symbolic link": (
        member(b"./", kind=b"2", link=b"/tmp") + END,
        "CON",
        "only a directory can be the root",
    ),
    "T05 slash behind a file": (member(b"a/") + END, "CON", "only a directory's name"),
    "T06 component": (pax({b"path": b"a" * 256}) + member() + END, "LIM", "255 bytes"),
    "T06 path": (
        pax({b"path": b"a/" * 100 + (b"b" * 200 + b"/") * 20 + b"c"}) + member() + END,
        "LIM",
        "4096 bytes",
    ),
    "T07 levels": (pax({b"path": MANY_LEVELS}) + member() + END, "LIM", "256 levels"),
    "T07 100000 levels": (
        pax({b"path": b"a/" * 100_000 + b"b"}) + member() + END,
        "LIM",
        "4096 bytes",
    ),
    "T10 absolute": (member(b"a", kind=b"1", link=b"/etc/shadow") + END, "CON", "absolute"),
    "T10 parent parts": (member(b"a", kind=b"1", link=b"../../etc/shadow") + END, "CON", "'..'"),
    "T10 empty": (member(b"a", kind=b"1") + END, "CON", "no proper target"),
    "T10 whiteout": (member(b"a", kind=b"1", link=b".wh.b") + END, "CON", "no proper target"),
    "T12 itself": (member(b"a", kind=b"1", link=b"./a") + END, "CON", "to itself"),
    "T18 long target": (
        pax({b"linkpath": b"x" * 4096}) + member(b"a", kind=b"2", link=b"x") + END,
        "LIM",
        "4095",
    ),
    "T18 1 MiB target": (
        long(b"x" * (1 << 20), b"K") + member(b"a", kind=b"2", link=b"x") + END,
        "LIM",
        "1048576",
    ),
    "T19 empty target": (member(b"a", kind=b"2") + END, "CON", "no target"),
    "T20 nothing": (member(b"d/.wh.") + END, "CON", "no proper name"),
    "T20 dot": (member(b"d/.wh..") + END, "CON", "no proper name"),
    "T20 dot dot": (member(b"d/.wh...") + END, "CON", "no proper name"),
    "T20 of a whiteout": (member(b"d/.wh..wh.x") + END, "CON", "no proper name"),
    "T20 parent": (member(b".wh.d/x") + END, "CON", "named like a whiteout"),
    "T21 slash by pax": (
        pax({b"path": b"d/.wh.a/b"}) + member() + END,
        "CON",
        "named like a whiteout",
    ),
    "T21 dot dot victim by pax": (
        pax({b"path": b"d/.wh.../b"}) + member() + END,
        "CON",
        "whiteout",
    ),
    "T22 opaque directory": (member(b"d/.wh..wh..opq", kind=b"5") + END, "CON", "empty file"),
    "T22 opaque symbolic link": (
        member(b"d/.wh..wh..opq", kind=b"2", link=b"/") + END,
        "CON",
        "empty file",
    ),
    "T22 opaque with content": (member(b"d/.wh..wh..opq", b"x") + END, "CON", "empty file"),
    "T26 overlay whiteout": (member(b"a", kind=b"3") + END, "CON", "overlay"),
    "T26 overlay whiteout in dev": (member(b"dev/a", kind=b"3") + END, "CON", "overlay"),
    "T27 character device": (
        member(b"a", kind=b"3", major=1, minor=3) + END,
        "CON",
        "outside /dev",
    ),
    "T27 block device": (member(b"a/dev/sda", kind=b"4", major=8) + END, "CON", "outside /dev"),
    "T27 device number": (member(b"dev/a", kind=b"4", major=1 << 12) + END, "CON", "out of range"),
    "T28 socket": (member(b"a", kind=b"s") + END, "CON", "not supported"),
    "T31 no prefix": (pax({b"SCHILY.xattr.foo": b"x"}) + member() + END, "LIM", "no proper name"),
    "T31 bare prefix": (
        pax({b"SCHILY.xattr.user.": b"x"}) + member() + END,
        "LIM",
        "no proper name",
    ),
    "T31 name": (
        pax({b"SCHILY.xattr.user." + b"n" * 251: b"x"}) + member() + END,
        "LIM",
        "255 bytes",
    ),
    "T31 value": (
        pax({b"SCHILY.xattr.user.n": b"x" * 65536}) + member() + END,
        "LIM",
        "65535 bytes",
    ),
    "T31 all": (
        pax({b"SCHILY.xattr.user.%d" % n: b"x" * 20000 for n in range(2)}) + member() + END,
        "LIM",
        "32768",
    ),
    "T31 10000": (
        pax({b"SCHILY.xattr.user.%d" % n: b"" for n in range(10000)}) + member() + END,
        "LIM",
        "256",
    ),
    "T32 negative": (member(b"a", size=b"\xff" * 12) + END, "INT", "out of range"),
    "T32 2^63": (
        member(b"a", size=b"\x80" + (1 << 63).to_bytes(11, "big")) + END,
        "INT",
        "out of range",
    ),
    "T32 base-256 of another kind": (
        member(b"a", size=b"\xc0" + bytes(11)) + END,
        "INT",
        "not a number",
    ),
    "T32 not octal": (member(b"a", size=b"00000000008\0") + END, "INT", "not an octal number"),
    "T32 letters": (member(b"a", size=b"0x10\0") + END, "INT", "not an octal number"),
    "T32 minus": (member(b"a", size=b"-0000000001\0") + END, "INT", "not an octal number"),
    "T32 underscore": (member(b"a", size=b"1_0\0") + END, "INT", "not an octal number"),
    "T32 pax minus": (pax({b"size": b"-1"}) + member(b"a") + END, "INT", "not a number in range"),
    "T32 pax 2^63": (
        pax({b"size": b"9223372036854775808"}) + member(b"a") + END,
        "INT",
        "not a number in range",
    ),
    "T32 pax digits": (
        pax({b"size": b"1" * 5000}) + member(b"a") + END,
        "INT",
        "not a number in range",
    ),
    "T33 small": (member(b"dir/a", b"12345", size=6 * BLOCK), "INT", "'dir/a'"),
    "T33 large": (header(b"dir/a", size=1 << 32) + bytes(BLOCK), "INT", "'dir/a'"),
    "T34 wrong": (header(b"a", checksum=b"000001\0 ") + END, "INT", "wrong checksum"),
    "T34 blank": (header(b"a", checksum=bytes(8)) + END, "INT", "no checksum"),
    "T34 65521 off": (
        header(b"a", checksum=b"%06o\0 " % (sum(header(b"a")) + 65521)) + END,
        "INT",
        "wrong checksum",
    ),
    "T35 zero": (pax(b"0 path=x\n") + member() + END, "INT", "wrong length"),
    "T35 short": (pax(b"8 path=xyz\n") + member() + END, "INT", "wrong length"),
    "T35 long": (pax(b"99 path=x\n") + member() + END, "INT", "wrong length"),
    "T35 overlapping": (pax(b"12 path=x\n9 path=y\n") + member() + END, "INT", "wrong length"),
    "T35 no newline": (pax(b"9 path=xy") + member() + END, "INT", "wrong length"),
    "T35 no length": (pax(b"path=x\n") + member() + END, "INT", "without a length"),
    "T35 no key": (pax(b"5 =a\n\n") + member() + END, "INT", "key"),
    "T35 no equals sign": (pax(b"6 abc\n") + member() + END, "INT", "key"),
    "T36 1 GiB": (header(b"x", kind=b"x", size=1 << 30), "LIM", "1048576 bytes"),
    "T36 3 GiB": (header(b"x", kind=b"x", size=3 << 30), "LIM", "1048576 bytes"),
    "T36 long name": (header(b"x", kind=b"L", size=1 << 30), "LIM", "1048576 bytes"),
    "T37 digits": (pax(b"1" * 160_000) + member() + END, "LIM", "too many digits"),
    "T38 extended": (pax({b"comment": b""}, b"g") * 1000 + member() + END, "LIM", "in a row"),
    "T38 two": (pax({b"path": b"a"}) * 2 + member() + END, "INT", "two extended headers"),
    "T38 two long names": (long(b"a") * 2 + member() + END, "INT", "two long names"),
    "T38 two long links": (long(b"a", b"K") * 2 + member() + END, "INT", "two long link names"),
    "T39 path": (pax({b"path": b"x"}, b"g") + member() + END, "CON", "all members"),
    "T39 size": (pax({b"size": b"1"}, b"g") + member() + END, "CON", "all members"),
    "T39 linkpath": (pax({b"linkpath": b"x"}, b"g") + member() + END, "CON", "all members"),
    "T39 xattr": (pax({b"SCHILY.xattr.user.x": b"x"}, b"g") + member() + END, "CON", "all members"),
    "T40 size": (
        pax({b"size": b"512"}) + member(b"a", b"x") + bytes(BLOCK) + END,
        "INT",
        "different sizes",
    ),
    "T40 path": (pax({b"path": b"a"}) + long(b"b") + member() + END, "INT", "different names"),
    "T40 linkpath": (
        pax({b"linkpath": b"a"}) + long(b"b", b"K") + member(b"l", kind=b"2", link=b"x") + END,
        "INT",
        "different link targets",
    ),
    "T40 twice": (
        pax(record(b"path", b"a") + record(b"path", b"b")) + member() + END,
        "INT",
        "twice",
    ),
    "T40 empty": (pax({b"path": b""}) + member() + END, "INT", "empty path"),
    "T40 two xattr values": (
        pax({b"SCHILY.xattr.user.a": b"x", b"LIBARCHIVE.xattr.user.a": b"eQ"}) + member() + END,
        "INT",
        "two values",
    ),
    "T40 size of a directory": (
        member(b"d", kind=b"5", size=BLOCK) + bytes(BLOCK) + END,
        "INT",
        "no content",
    ),
    "T40 star": (
        member(b"a", prefix=b"p", rest=b"p" + bytes(162) + b"tar\0") + END,
        "INT",
        "star format",
    ),
    "T41 GNU": (sparse(b""), "LIM", "sparse"),
    "T41 0.0": (
        pax({b"GNU.sparse.size": b"1152921504606846976"}) + member() + END,
        "LIM",
        "sparse",
    ),
    "T41 0.1": (pax({b"GNU.sparse.map": b"0,1,512,1"}) + member() + END, "LIM", "sparse"),
    "T41 1.0": (
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0"}) + member() + END,
        "LIM",
        "sparse",
    ),
    "T41 star": (
        pax({b"SCHILY.realsize": b"1152921504606846976"}) + member() + END,
        "LIM",
        "sparse",
    ),
    "T42 unsorted": (sparse(SPARSE_MAP), "INT", "sparse map"),
    "T42 overlapping": (
        pax({b"GNU.sparse.map": b"0,512,511,1"}) + member() + END,
        "INT",
        "sparse map",
    ),
    "T42 negative": (pax({b"GNU.sparse.map": b"0,-512"}) + member() + END, "INT", "sparse map"),
    "T43 one zero block": (member(b"a") + bytes(BLOCK) + member(b"hidden") + END, "CON", "hidden"),
    "T43 two zero blocks": (member(b"a") + END + member(b"hidden") + END, "CON", "hidden"),
    "T43 one byte": (member(b"a") + END + bytes(511) + b"x", "CON", "hidden"),
    "T43 zeros without end": (
        member(b"a") + END + bytes(limits.END_PADDING_BYTES + BLOCK),
        "LIM",
        "follow the end",
    ),
    "T44 no end marker": (member(b"a"), "INT", "end marker"),
    "T44 half an end marker": (member(b"a") + bytes(BLOCK), "INT", "end marker"),
    "T44 nothing": (b"", "INT", "end marker"),
    "T44 in a header": (member(b"a") + header(b"b")[:100], "INT", "block of 512"),
    "T44 in the padding": (member(b"a", b"x")[:-1], "INT", "cut off"),
    "T44 in an extended header": (pax({b"path": b"x"})[:BLOCK], "INT", "cut off"),
    "T44 after an extended header": (pax({b"path": b"x"}) + END, "INT", "followed by no member"),
    "T44 odd length": (member(b"a") + END + bytes(100), "INT", "block of 512"),
    "T46 not a number": (pax({b"mtime": b"yesterday"}) + member() + END, "INT", "not a number"),
    "T46 digits": (pax({b"mtime": b"1" * 30}) + member() + END, "INT", "not a number"),
    "T47 2^32-1": (
        member(b"a", uid=b"\x80" + (2**32 - 1).to_bytes(7, "big")) + END,
        "CON",
        "owner or group",
    ),
    "T47 negative": (member(b"a", gid=b"\xff" * 8) + END, "CON", "owner or group"),
    "T47 blank": (member(b"a", uid=b"") + END, "CON", "owner or group"),
    "T47 pax": (pax({b"uid": b"4294967295"}) + member(b"a") + END, "CON", "owner or group"),
    "T47 pax name": (pax({b"gid": b"root"}) + member(b"a") + END, "INT", "not a number"),
    "T49 unknown": (member(b"a", kind=b"!") + END, "CON", "not supported"),
    "T49 reserved": (member(b"a", kind=b"8") + END, "CON", "not supported"),
    "T49 contiguous": (member(b"a", kind=b"7") + END, "CON", "not supported"),
    "T49 multi-volume": (member(b"a", kind=b"M") + END, "CON", "not supported"),
    "T49 directory dump": (member(b"a", kind=b"D") + END, "CON", "not supported"),
    "unknown format": (member(b"a", magic=b"zebra\x0000") + END, "INT", "no known format"),
    "xattr not base64": (pax({b"LIBARCHIVE.xattr.user.a": b"*"}) + member() + END, "INT", "base64"),
}


@pytest.mark.parametrize("row", REFUSED)
@pytest.mark.parametrize("step", [1 << 20, 512, 333], ids=["whole", "blocks", "odd"])
def test_refused(row, step):
    archive, catalogue, words = REFUSED[row]
    if step == 333 and len(archive) > 1 << 20:
        step = 100_003
    with pytest.raises(ContentError) as caught:
        split(archive, step)
    problem = caught.value
    assert (problem.catalogue, words in problem.message) == (catalogue, True), problem.message
    assert problem.message.startswith("layer 1: ")
    assert problem.message.isprintable()
    assert problem.reference != "bad-content"


ACCEPTED = {
    "T02 absolute": (member(b"/etc/shadow") + END, b"etc/shadow"),
    "T03 empty part": (member(b"a//b") + END, b"a/b"),
    "T03 dot part": (member(b"a/./b") + END, b"a/b"),
    "T03 leading dot": (member(b"./a/b") + END, b"a/b"),
    "T04 any bytes": (member(b"a\n\x1b[31m\xff\xfe") + END, b"a\n\x1b[31m\xff\xfe"),
    "T05 root": (member(b"./", kind=b"5") + END, b""),
    "T06 255 bytes": (pax({b"path": b"a/" + b"b" * 255}) + member() + END, b"a/" + b"b" * 255),
    "T07 256 levels": (pax({b"path": MANY_LEVELS[2:]}) + member() + END, MANY_LEVELS[2:]),
    "T20 a name that only contains it": (member(b"a.wh.b/c.wh.") + END, b"a.wh.b/c.wh."),
    "T22 opaque marker as a hard link": (
        member(b"d/.wh..wh..opq", kind=b"1", link=b"x") + END,
        b"d/.wh..wh..opq",
    ),
    "T38 some": (pax({b"comment": b""}, b"g") * 3 + pax({b"path": b"b"}) + member() + END, b"b"),
    "T39 harmless": (
        pax({b"comment": b"0123abc", b"hdrcharset": b"BINARY"}, b"g") + member() + END,
        b"file",
    ),
    "T39 at the end": (member() + pax({b"comment": b"0123abc"}, b"g") + END, b"file"),
    "T40 the same": (pax({b"path": b"a"}) + long(b"a") + member() + END, b"a"),
    "T43 padding": (member(b"a") + END + bytes(BLOCK * 18), b"a"),
    "T48 file type in the mode": (member(b"a", mode=0o100644) + END, b"a"),
    "old directory": (member(b"d/", kind=b"\0", magic=b"") + END, b"d"),
    "prefix": (member(b"name", prefix=b"very/long") + END, b"very/long/name"),
    "GNU has no prefix": (member(b"name", magic=b"ustar  ", rest=b"12345670123") + END, b"name"),
}


@pytest.mark.parametrize("row", ACCEPTED)
def test_accepted(row):
    archive, path = ACCEPTED[row]
    sink = split(archive)
    assert [entry.path for entry, _ in sink.members] == [path]
    assert bytes(sink.stream) == archive


def only(archive: bytes):
    ((entry, _),) = split(archive).members
    return entry


def test_t04_messages_are_safe_to_print():
    with pytest.raises(ContentError) as caught:
        split(member(b"\x1b]0;owned\x07/../\xff\n") + END)
    assert r"'\x1b]0;owned\x07/../\xff\n'" in caught.value.message


def test_t15_link_to_a_symbolic_link_is_kept_as_a_link():
    entry = only(member(b"b", kind=b"1", link=b"./a") + END)
    assert (entry.type, entry.linkname) == (ord("1"), b"a")


def test_t25_overlay_attributes_stay_metadata():
    """Their escaping is the image writer's (composefs-formats §2.3); here they are values with a name."""
    entry = only(pax({b"SCHILY.xattr.trusted.overlay.redirect": b"/etc"}) + member() + END)
    assert entry.xattrs == ((b"trusted.overlay.redirect", b"/etc"),)


def test_t27_devices_in_dev_keep_their_number():
    entry = only(member(b"dev/x", kind=b"4", major=259, minor=0x12345) + END)
    assert (entry.type, entry.rdev) == (ord("4"), (0x45 | 259 << 8 | 0x12300 << 12))


def test_t28_fifo_is_kept():
    assert only(member(b"f", kind=b"6") + END).type == ord("6")


def test_t29_special_bits_and_capabilities_are_metadata():
    capability = b"\x01\0\0\x02\0\x04\0\0" + bytes(12)
    entry = only(
        pax({b"SCHILY.xattr.security.capability": capability}) + member(b"su", mode=0o6755) + END
    )
    assert (entry.mode, entry.xattrs) == (0o6755, ((b"security.capability", capability),))


def test_t30_security_attributes_are_left_to_the_backend():
    values = {
        b"SCHILY.xattr.security.selinux": b"system_u:object_r:bin_t:s0\0",
        b"SCHILY.xattr.security.ima": b"\x03",
    }
    entry = only(pax(values) + member() + END)
    assert [name for name, _ in entry.xattrs] == [b"security.ima", b"security.selinux"]


def test_t34_signed_checksum_is_the_other_documented_form():
    block = header(b"\xe4\xf6\xfc" * 20)
    signed = sum(block) - sum(block[148:156]) + 256 - 256 * sum(byte > 127 for byte in block)
    archive = header(b"\xe4\xf6\xfc" * 20, checksum=b"%06o\0 " % signed) + END
    assert only(archive).path == b"\xe4\xf6\xfc" * 20


def test_t36_nothing_is_allocated_for_a_claim():
    decoder = HeaderDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(ContentError):
            decoder.header(header(b"x", kind=b"x", size=3 << 30))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_t37_time_is_linear():
    """The standard library's regular expression needs minutes for a header of this size."""
    body = b"1" * limits.PAX_BYTES
    started = time.process_time()
    with pytest.raises(ContentError):
        parse_pax(body)
    assert time.process_time() - started < 5


def test_t40_sizes_beyond_the_octal_field():
    """Writers put 0, the low bits, or the largest number there; readers all use the other one."""
    for field in (0, (1 << 33) - 1, 5):
        size = (1 << 33) + 5
        decoder = HeaderDecoder()
        assert (
            decoder.header(
                header(b"PaxHeaders", kind=b"x", size=len(record(b"size", b"%d" % size)))
            )
            is None
        )
        decoder.extension(record(b"size", b"%d" % size))
        entry = decoder.header(header(b"large", size=field))
        assert entry is not None
        assert entry.size == size


def test_t45_members_are_counted():
    archive = b"".join(member(b"f%d" % number) for number in range(101)) + END
    with pytest.raises(ContentError, match="more than 100 members") as caught:
        split(archive, max_entries=100)
    assert caught.value.catalogue == "LIM"


def test_t45_memory_stays_flat():
    class Nothing:
        wants_raw = False

        def file(self, entry, body):
            pass

    chunk = b"".join(member(b"usr/share/doc/%05d" % number) for number in range(1000))
    splitter = Splitter(Nothing())
    splitter.feed(chunk)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            splitter.feed(chunk)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    assert splitter.entries == 21_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"-1", (0, 0)),
        (b"-0.5", (0, 0)),
        (b"1700000000.123456789", (1_700_000_000, 123_456_789)),
        (b"1700000000.1234567899999", (1_700_000_000, 123_456_789)),
        (b"1.5", (1, 500_000_000)),
        (b"1.", (1, 0)),
        (b"884541600000", (884_541_600_000, 0)),
        (b"99999999999999999999", (2**63 - 1, 0)),
    ],
)
def test_t46_times(text, expected):
    entry = only(pax({b"mtime": text}) + member() + END)
    assert (entry.mtime, entry.mtime_ns) == expected


def test_t46_header_times():
    assert only(member(b"a", mtime=b"\xff" * 12) + END).mtime == 0
    assert only(member(b"a", mtime=b"\x80" + b"\xff" * 11) + END).mtime == 2**63 - 1


def test_t47_large_ids():
    entry = only(
        pax({b"uid": b"4294967294"})
        + member(b"a", gid=b"\x80" + (2**32 - 2).to_bytes(7, "big"))
        + END
    )
    assert (entry.uid, entry.gid) == (2**32 - 2, 2**32 - 2)


def test_t48_bits_beyond_permissions_are_dropped():
    assert only(member(b"a", mode=0o7777777) + END).mode == 0o7777


def test_content_elsewhere_must_fit():
    archive = header(b"a", size=100)
    with pytest.raises(ContentError, match="content stands where") as caught:
        list(iter_entries([archive, (b"name", 99)]))
    assert caught.value.catalogue == "INT"
    with pytest.raises(ContentError, match="content stands where"):
        list(iter_entries([(b"name", 1)]))
    with pytest.raises(ContentError, match="content stands where"):
        list(iter_entries([archive, b"part", (b"name", 100)]))


def test_canonical_names_the_name():
    with pytest.raises(ContentError, match=r"'a/\.\./b'"):
        canonical(b"a/../b")


def test_padded_is_what_it_says():
    assert len(padded(b"x")) == BLOCK
