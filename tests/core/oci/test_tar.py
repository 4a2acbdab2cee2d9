"""The tar reader against the standard library's, and against itself under every cut."""

from __future__ import annotations

import base64
import io
import os
import random
import subprocess
import tarfile
import urllib.parse
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import BLOCK, END, header, long, member, octal, pax, refusal, split

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.oci.tar import (
    WHOLE_FILE_BYTES,
    HeaderDecoder,
    Splitter,
    TarEntry,
    canonical,
    iter_entries,
    parse_pax,
)

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
KINDS = {
    tarfile.REGTYPE: "0",
    tarfile.AREGTYPE: "0",
    tarfile.DIRTYPE: "5",
    tarfile.SYMTYPE: "2",
    tarfile.LNKTYPE: "1",
    tarfile.FIFOTYPE: "6",
}

_part = st.text(
    st.characters(min_codepoint=1, max_codepoint=0x2FF, exclude_characters="/"),
    min_size=1,
    max_size=40,
)
_names = st.lists(
    _part.filter(lambda part: part not in {".", ".."} and not part.startswith(".wh.")),
    min_size=1,
    max_size=5,
).map("/".join)


@st.composite
def _infos(draw) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(_names))
    info.type = draw(st.sampled_from([kind for kind in KINDS if kind != tarfile.AREGTYPE]))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, 2**21 - 1)), draw(st.integers(0, 2**21 - 1))
    info.mtime = draw(st.integers(0, 2**33 - 1))
    body = b""
    if info.type == tarfile.REGTYPE:
        body = draw(st.binary(max_size=1500))
        info.size = len(body)
    if info.type in {tarfile.SYMTYPE, tarfile.LNKTYPE}:
        info.linkname = draw(_names.filter(lambda target: target != info.name))
    return info, body


def write(infos: list[tuple[tarfile.TarInfo, bytes]], kind: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for info, body in infos:
            archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def as_library_reads(archive: bytes) -> list[tuple]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for info in opened:
            file = opened.extractfile(info) if info.isreg() else None
            link = info.linkname if info.type in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
            name, target = (text.encode("utf-8", "surrogateescape") for text in (info.name, link))
            content = file.read() if file else None
            found.append(
                (name, KINDS[info.type], info.mode, info.uid, info.gid, info.mtime, target, content)
            )
    return found


def as_we_read(archive: bytes, step: int = 1 << 20) -> list[tuple]:
    return [
        (
            entry.path,
            chr(entry.type),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            entry.linkname,
            body,
        )
        for entry, body in split(archive, step).members
    ]


@pytest.mark.parametrize("kind", FORMATS)
@given(infos=st.lists(_infos(), max_size=6), step=st.sampled_from([1 << 20, 4096, 512, 100]))
@settings(max_examples=120)
def test_same_as_the_standard_library(kind, infos, step):
    try:
        archive = write(infos, FORMATS[kind])
    except ValueError:  # a name does not fit in ustar
        return
    assert as_we_read(archive, step) == as_library_reads(archive)


@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_what_gnu_tar_writes(tmp_path, kind):
    """The most common writer beside Go's, in each of its formats: long names, links, odd bytes, large owners."""
    tree = tmp_path / "tree"
    deep = tree / "/".join(["directory"] * {"v7": 8, "ustar": 14}.get(kind, 20))
    deep.mkdir(parents=True)
    for number in range(30):
        (deep / f"file{number}").write_bytes(random.Random(number).randbytes(number * 100))
    (tree / "a").write_bytes(b"linked")
    os.link(tree / "a", tree / "hard")
    (tree / "soft").symlink_to(
        "directory/../hard" if kind == "v7" else "x" * (90 if kind == "ustar" else 300)
    )
    if kind != "v7":
        os.mkfifo(tree / "pipe")
    (tree / "a.wh.b").touch()
    Path(os.fsdecode(bytes(tree) + b"/\xff\n\x01")).touch()
    if kind not in {"v7", "ustar"}:
        (deep / ("n" * 200)).touch()
    command = ["tar", "-c", f"--format={kind}", "--sort=name", "-C", str(tree)]
    for extra in ([], ["--owner=user:2000000", "--group=7", "--mtime=@1.5", "--mode=u+s"]):
        for what in (".", "./"):
            archive = subprocess.run(
                [*command, *extra, what], check=True, stdout=subprocess.PIPE
            ).stdout
            assert as_we_read(archive) == [
                (
                    canonical(name),
                    kind_,
                    mode,
                    uid,
                    gid,
                    int(time),
                    canonical(link) if kind_ == "1" else link,
                    body,
                )
                for name, kind_, mode, uid, gid, time, link, body in as_library_reads(archive)
            ]


def test_sparse_files_of_gnu_tar_are_refused(tmp_path):
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 22)
        file.seek(1 << 21)
        file.write(b"data")
    for kind in ("gnu", "pax"):
        for version in ("0.0", "0.1", "1.0"):
            command = [
                "tar",
                "-cS",
                f"--format={kind}",
                f"--sparse-version={version}",
                "-C",
                str(tmp_path),
                "holes",
            ]
            archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            with pytest.raises(ContentError, match="sparse") as caught:
                split(archive)
            assert caught.value.catalogue == "LIM"


def large_example() -> bytes:
    """Every kind of member and extended header, and contents around the limits of what is handed over whole."""
    random.seed(1)
    parts = [pax({b"comment": b"made by a test"}, b"g"), member(b"./", kind=b"5", mode=0o755)]
    for size in (
        0,
        1,
        64,
        65,
        511,
        512,
        513,
        WHOLE_FILE_BYTES,
        WHOLE_FILE_BYTES + 1,
        WHOLE_FILE_BYTES * 2 + 700,
    ):
        parts.append(member(b"data/%d" % size, random.randbytes(size)))
    parts += [
        pax(
            {b"path": b"pax/" + b"p" * 150, b"mtime": b"1.25", b"SCHILY.xattr.user.a": b"\0\xff=\n"}
        )
        + member(b"x", b"y"),
        long(b"gnu/" + b"g" * 200) + member(b"x", b"z" * 600, magic=b"ustar  "),
        long(b"t" * 300, b"K") + member(b"link", kind=b"2", link=b"t"),
        member(b"hard", kind=b"1", link=b"data/64"),
        member(b"data/.wh.gone"),
        member(b"data/.wh..wh..opq"),
        member(b"dev/null", kind=b"3", major=1, minor=3),
        member(b"pipe", kind=b"6"),
        END,
        bytes(BLOCK * 7),
    ]
    return b"".join(parts)


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 4096, 65536, 1 << 20, 1 << 26])
def test_any_cut_gives_the_same_and_loses_no_byte(step):
    archive = large_example()
    if step < 500:
        archive = archive[: 40 * BLOCK] + END
        archive = member(b"a", b"b" * 700) + pax({b"path": b"q" * 200}) + member(b"x", b"y") + END
    whole, cut = split(archive), split(archive, step)
    assert bytes(cut.stream) == archive
    assert [(repr(entry), body) for entry, body in cut.members] == [
        (repr(entry), body) for entry, body in whole.members
    ]


def test_order_of_calls():
    archive = (
        member(b"d", kind=b"5")
        + member(b"a", b"xy")
        + member(b"b", bytes(2000))
        + member(b".wh.c")
        + END
    )
    assert split(archive, whole=1000).calls == [
        ("raw", 512),
        ("entry", b"d"),
        ("raw", 512),
        ("file", b"a"),
        ("raw", 510 + 512),
        ("begin_file", b"b"),
        ("end_file", b"b"),
        ("raw", 48 + 512),
        ("entry", b".wh.c"),
        ("raw", 1024),
    ]


def test_raw_is_not_called_without_demand():
    class Plain:
        wants_raw = False
        seen = 0

        def file(self, entry, body):
            self.seen += len(body)

    sink = Plain()
    splitter = Splitter(sink)
    splitter.feed(memoryview(member(b"a", b"xyz") + END))
    splitter.close()
    assert (sink.seen, splitter.entries, splitter.bytes) == (3, 1, 2048)


def test_extended_attributes_in_both_spellings():
    name, value = b"user.mime type", b"text\0\xff"
    coded = b"LIBARCHIVE.xattr." + urllib.parse.quote_from_bytes(name).encode()
    archive = (
        pax({b"SCHILY.xattr." + name: value, coded: base64.b64encode(value).rstrip(b"=")})
        + member(b"a")
        + pax({coded: base64.b64encode(value), b"SCHILY.xattr.security.capability": b""})
        + member(b"b")
        + END
    )
    first, second = (entry for entry, _ in split(archive).members)
    assert first.xattrs == ((name, value),)
    assert second.xattrs == ((b"security.capability", b""), (name, value))


def test_extended_headers_apply_once():
    archive = (
        pax({b"path": b"long", b"mtime": b"7", b"uid": b"9"})
        + member(b"a")
        + member(b"b", mtime=1)
        + END
    )
    first, second = (entry for entry, _ in split(archive).members)
    assert (first.path, first.mtime, first.uid) == (b"long", 7, 9)
    assert (second.path, second.mtime, second.uid) == (b"b", 1, 0)


def test_ignored_keys():
    records = {
        b"uname": b"root",
        b"gname": b"\xff",
        b"atime": b"x",
        b"ctime": b"1",
        b"SCHILY.fflags": b"nodump",
        b"SCHILY.acl.access": b"user::rwx",
        b"RHT.security.selinux": b"x",
        b"vendor.KEY": b"",
    }
    ((entry, _),) = split(pax(records) + member(b"a") + END).members
    assert (entry.path, entry.xattrs) == (b"a", ())


@given(st.binary(max_size=300), st.integers(0, 2**31))
@settings(max_examples=300)
def test_rubbish_raises_nothing_else(data, seed):
    random.seed(seed)
    archive = bytearray(
        member(b"a/b", b"c")
        + pax({b"path": b"x", b"mtime": b"1.5"})
        + member(b"y", b"z" * 600)
        + END
    )
    for byte in data[:20]:
        archive[random.randrange(len(archive))] = byte
    for candidate in (bytes(archive), data, bytes(archive[: random.randrange(len(archive))])):
        step = random.choice([100, 512, 1 << 20])
        if problem := refusal(partial(split, candidate, step)):
            assert problem.catalogue in {"INT", "CON", "LIM"}
            assert problem.message.isprintable()
        else:
            sink = split(candidate, step)
            assert bytes(sink.stream) == candidate
            for entry, _ in sink.members:
                assert b".." not in entry.path.split(b"/")
                assert not entry.path.startswith(b"/")


@given(st.binary(max_size=200))
def test_repaired_headers_raise_nothing_else(data):
    """Rubbish in the fields, with a checksum that is right, reaches the code behind the checksum."""
    block = bytearray(header(b"name", kind=b"0"))
    for place, byte in zip(range(0, 500, 3), data, strict=False):
        block[place] = byte
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    if problem := refusal(lambda: HeaderDecoder().header(bytes(block))):
        assert problem.catalogue in {"INT", "CON", "LIM"}
    else:
        entry = HeaderDecoder().header(bytes(block))
        assert entry is None or canonical(entry.path) == entry.path


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=30).filter(lambda key: b"=" not in key),
            st.binary(max_size=99),
        )
    )
)
def test_pax_records_come_back(records):
    from support.archives import record

    assert parse_pax(b"".join(record(*item) for item in records)) == records


@given(st.binary(max_size=60))
def test_canonical_is_idempotent_and_stays_inside(name):
    try:
        key = canonical(name)
    except ContentError:
        return
    assert canonical(key) == key
    assert not key.startswith(b"/")
    assert not {b"", b".", b".."} & set(key.split(b"/")) or key == b""


def test_entries_with_content_elsewhere():
    """As a splitstream has it: small contents among the bytes, large ones by name, padding among the bytes."""
    parts = [
        member(b"d", kind=b"5") + member(b"small", b"abc") + header(b"large", size=1000),
        (b"\x01" * 32, 1000),
        bytes(24) + member(b"empty") + header(b"exact", size=1024),
        (b"\x02" * 32, 1024),
        header(b"last", size=3)[:100],
        header(b"last", size=3)[100:] + b"x",
        b"yz" + bytes(509),
        END + bytes(BLOCK),
    ]
    found = [(entry.path, inline, name) for entry, inline, name in iter_entries(parts)]
    assert found == [
        (b"d", None, None),
        (b"small", b"abc", None),
        (b"large", None, b"\x01" * 32),
        (b"empty", b"", None),
        (b"exact", None, b"\x02" * 32),
        (b"last", b"xyz", None),
    ]


def test_content_elsewhere_and_truncated():
    with pytest.raises(ContentError, match="cut off"):
        list(iter_entries([header(b"large", size=1000), (b"x", 1000)]))


def test_decoder_alone():
    decoder = HeaderDecoder("x")
    assert decoder.header(header(b"PaxHeaders", kind=b"x", size=12)) is None
    assert decoder.pending == 12
    decoder.extension(b"12 path=abc\n")
    entry = decoder.header(header(b"short", size=9))
    assert isinstance(entry, TarEntry)
    assert (entry.path, entry.size, decoder.pending, decoder.last) == (b"abc", 9, 0, b"abc")
    for ended in (False, True):
        assert decoder.header(bytes(BLOCK)) is None
        assert decoder.ended is ended
    decoder.close()


def test_numbers_between_spaces_and_zeros():
    block = header(b"a", mode=b"   644 ", uid=b"\0\0\x30\0", size=octal(0, 12), mtime=b" 17\0")
    entry = HeaderDecoder().header(block)
    assert entry is not None
    assert (entry.mode, entry.uid, entry.mtime) == (0o644, 0, 0o17)


def test_bounds_are_those_of_the_table():
    assert limits.XATTRS_BYTES < limits.PAX_BYTES
    with pytest.raises(ContentError, match=str(limits.EXTENSIONS)):
        split(pax({b"comment": b""}, b"g") * (limits.EXTENSIONS + 1) + member() + END)
