"""Boot entries: print, parse, order, read (catalogue B05, C06)."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc_core import limits
from bootc_core.boot import bls
from bootc_core.errors import BootError
from bootc_core.models.boot import BootEntry, BootFile, PresentEntry

KERNEL = BootFile("EFI/Linux/bootc_composefs-12ab/vmlinuz", Path("/x"), 1, "0" * 64)
INITRD = BootFile("EFI/Linux/bootc_composefs-12ab/initrd", Path("/y"), 1, "0" * 64)
ENTRY = BootEntry(
    "12ab", "debian", "Debian 13", "13", "root=UUID=a rw composefs=12ab", KERNEL, (INITRD,)
)


def change(**fields: object) -> BootEntry:
    values = {name: getattr(ENTRY, name) for name in BootEntry.__dataclass_fields__}
    return BootEntry(**{**values, **fields})


def test_text() -> None:
    assert bls.entry_text(ENTRY, 0) == (
        b"title Debian 13\n"
        b"version 13\n"
        b"linux /EFI/Linux/bootc_composefs-12ab/vmlinuz\n"
        b"initrd /EFI/Linux/bootc_composefs-12ab/initrd\n"
        b"options root=UUID=a rw composefs=12ab\n"
        b"sort-key bootc-debian-0\n"
    )


def test_text_with_everything() -> None:
    entry = change(
        options="rw", machine_id="0123", extra=(("x-options-source-a", "b=1"),), version=""
    )
    lines = bls.entry_text(entry, 2, "bootc-fedora").decode().splitlines()
    assert lines[1] == "version 12ab"
    assert lines[-4:] == [
        "machine-id 0123",
        "x-options-source-a b=1",
        "x-bootc-deployment 12ab",
        "sort-key bootc-fedora-2",  # last: a file cut short has no place among ours
    ]


def test_file_name() -> None:
    assert bls.file_name(ENTRY, "00ff00") == "bootc_debian-13-12ab-00ff00-1.conf"
    wild = change(os_id="open-suse/../x", version="13 (a)\n-b" * 20, deployment_id="f" * 128)
    name = bls.file_name(wild, "00ff00")
    assert (
        name == "bootc_open_suse_.._x-13_a_b13_a_b13_a_b13_a_b13_a_b13-ffffffffffff-00ff00-1.conf"
    )
    assert len(name) <= 110
    assert bls.file_name(change(version="..."), "0") == "bootc_debian-0-12ab-0-1.conf"


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "a\noptions init=/bin/sh"},
        {"title": ""},
        {"title": " a"},
        {"version": "1\0"},
        {"version": "\x1b[2J"},
        {"options": "a\nlinux /evil"},
        {"options": 'a="b'},
        {"options": '"a b" c="d"'},
        {"options": "x" * (limits.KARGS_BYTES + 1)},
        {"deployment_id": "../x"},
        {"deployment_id": ""},
        {"machine_id": "a\nb"},
        {"extra": (("a b", "c"),)},
        {"extra": (("a", "c\nd"),)},
        {"linux": BootFile("EFI/../x", Path("/x"), 1, "")},
        {"linux": BootFile("/EFI/x", Path("/x"), 1, "")},
        {"linux": BootFile("EFI/a b", Path("/x"), 1, "")},
        {"initrd": (BootFile("EFI/a\nb", Path("/x"), 1, ""),)},
    ],
)
def test_nothing_breaks_out_of_its_key(fields: dict[str, object]) -> None:  # C06
    with pytest.raises(BootError):
        bls.entry_text(change(**fields), 0)


def test_bounds() -> None:
    with pytest.raises(ValueError, match="one digit"):
        bls.entry_text(ENTRY, 10)
    with pytest.raises(BootError, match="too large"):
        bls.print_entry([("a", "b" * limits.BOOT_ENTRY_BYTES)])


def test_parse_keeps_what_it_does_not_know() -> None:
    entry = bls.parse(
        "loader/entries/x.conf",
        b"# comment\r\ntitle\t Fedora  40 \r\n\r\nlinux /v\r\noptions a\r\noptions b\r\n"
        b"grub_users $x\r\nempty\r\n",
    )
    assert entry == PresentEntry(
        "loader/entries/x.conf",
        (
            ("title", "Fedora  40"),
            ("linux", "/v"),
            ("options", "a"),
            ("options", "b"),
            ("grub_users", "$x"),
        ),
    )
    assert entry.all("options") == ("a", "b")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 512,
        b"title x\n",
        b"linux /a\nefi /b\n",
        b"linux /a\nuki /b\n",
        b"linux /a\ntitle \xff\n",
        b"linux /a\ntitle a\x07b\n",
        b"linux /a\n1key x\n",
        b"linux",
        b"linux /a\n" + b"#" * limits.BOOT_ENTRY_BYTES,
    ],
)
def test_damaged(data: bytes) -> None:  # B05
    with pytest.raises(BootError) as caught:
        bls.parse("loader/entries/x.conf", data)
    assert "loader/entries/x.conf" in caught.value.message


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True).filter(
                lambda key: key not in {"linux", "efi", "uki", "uki-url"}
            ),
            st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8),
        ),
        max_size=6,
    )
)
def test_print_and_parse(pairs: list[tuple[str, str]]) -> None:
    pairs = [("linux", "/v"), *pairs]
    assert bls.parse("x", bls.print_entry(pairs)).keys == tuple(pairs)


@given(st.binary(max_size=300))
def test_parse_refuses_or_prints_back(data: bytes) -> None:
    try:
        entry = bls.parse("x", b"linux /v\n" + data)
    except BootError:
        return
    assert all(value and "\n" not in value for _, value in entry.keys)


@pytest.mark.parametrize(
    ("keys", "deployment"),
    [
        ([("options", "rw composefs=12ab")], "12ab"),
        ([("options", "rw composefs=?12ab")], "12ab"),
        ([("options", "rw"), ("options", "composefs=1")], "1"),
        ([("options", "rw")], None),
        ([], None),
        ([("options", 'composefs="')], None),
        ([("options", "rw"), ("x-bootc-deployment", "7")], "7"),
        ([("options", "composefs=1"), ("x-bootc-deployment", "7")], "1"),
    ],
)
def test_deployment(keys: list[tuple[str, str]], deployment: str | None) -> None:
    assert bls.deployment_of(PresentEntry("x", tuple(keys))) == deployment


def test_order_and_its_place_in_the_file() -> None:
    data = bls.entry_text(ENTRY, 3)
    assert bls.order_of(bls.parse("x", data)) == ("bootc-debian", 3)
    offset = bls.order_offset(data)
    assert offset is not None
    assert data[offset : offset + 2] == b"3\n"
    for key in ("bootc-debian", "bootc-debian-10", "debian-1", "bootc--", "Bootc-a-1"):
        other = data.replace(b"bootc-debian-3", key.encode())
        assert bls.order_of(bls.parse("x", other)) is None
        assert bls.order_offset(other) is None
    assert bls.order_offset(data + data) is None
    assert bls.order_of(bls.parse("x", data + b"sort-key bootc-debian-1\n")) is None


def entry(file: str, **keys: str) -> PresentEntry:
    return PresentEntry(
        f"loader/entries/{file}", tuple((key.replace("_", "-"), keys[key]) for key in keys)
    )


MENU = [
    entry("z.conf", sort_key="a"),
    entry("c.conf", sort_key="bootc-debian-0"),
    entry("b.conf", sort_key="bootc-debian-1", machine_id="1", version="1"),
    entry("d.conf", sort_key="bootc-debian-1", machine_id="2", version="2"),
    entry("e.conf", sort_key="bootc-debian-1", machine_id="2", version="1.9"),
    entry("y.conf", sort_key="bootc-debian-1", machine_id="2", version="1.9~rc1"),
    entry("x.conf", sort_key="bootc-debian-1", machine_id="2", version="1.9~rc1"),
    entry("n-10.conf"),
    entry("n-9+3.conf"),
    entry("n-1.conf"),
    entry("a+0-3.conf", sort_key="a"),
    entry("n-11+0.conf"),
]


def test_menu_order() -> None:
    shuffled = list(MENU)
    random.Random(7).shuffle(shuffled)
    assert bls.menu_order(shuffled) == MENU


def test_tries() -> None:
    assert bls.tries_of("a/b+3-1.conf") == ("b", 3, 1)
    assert bls.tries_of("b+3.CONF") == ("b", 3, 0)
    assert bls.tries_of("b.conf") == ("b", None, None)
    assert bls.tries_of("b+x.conf") == ("b+x", None, None)
    few, many = entry("a+1-2.conf", sort_key="s"), entry("a+2-1.conf", sort_key="s")
    assert bls.menu_order([few, many]) in ([few, many], [many, few])


def test_versions_of_the_specification() -> None:
    ordered = [
        "122.1",
        "123~rc1-1",
        "123",
        "123-a",
        "123-a.1",
        "123-a1",
        "123-a1.1",
        "123-3",
        "123-3.1",
    ]
    ordered += ["123^patch1", "123^1", "123.a-1", "123.1-1", "123a-1", "124-1"]
    for (i, a), (j, b) in itertools.product(enumerate(ordered), repeat=2):
        assert bls.compare_versions(a, b) == (i > j) - (i < j), (a, b)
    assert bls.compare_versions("00123", "123") == 0
    assert bls.compare_versions("1_2_3", "1.3.3") == 1
    assert bls.compare_versions("", "~") == 1


@pytest.mark.real
def test_versions_as_systemd_compares_them() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    dice = random.Random(3)
    signs = {"<": -1, "==": 0, ">": 1}
    compared = 0
    for _ in range(60):
        a, b = ("".join(dice.choices("01a2bZ~-^._+", k=dice.randint(1, 8))) for _ in range(2))
        if a.startswith("-") or b.startswith("-"):
            continue
        done = subprocess.run(
            ["systemd-analyze", "compare-versions", a, b], capture_output=True, text=True
        )
        assert bls.compare_versions(a, b) == signs[done.stdout.split()[1]], (a, b)
        compared += 1
    assert compared > 30


def test_read(tmp_path: Path) -> None:
    assert bls.read_entries(tmp_path) == []
    place = tmp_path / "loader/entries"
    place.mkdir(parents=True)
    (place / "b.conf").write_bytes(bls.entry_text(ENTRY, 1))
    (place / "a.CONF").write_bytes(bls.entry_text(ENTRY, 0))
    (place / "empty.conf").touch()
    (place / ".hidden.conf").write_bytes(bls.entry_text(ENTRY, 0))
    (place / "auto-x.conf").write_bytes(bls.entry_text(ENTRY, 0))
    (place / "x.conf.new").write_bytes(bls.entry_text(ENTRY, 0))
    (place / "dir.conf").mkdir()
    (place / "link.conf").symlink_to("b.conf")
    subprocess.run(["mkfifo", str(place / "fifo.conf")], check=True)
    warnings: list[str] = []
    found = bls.read_entries(tmp_path, warnings.append)
    assert [item.file for item in found] == ["loader/entries/a.CONF", "loader/entries/b.conf"]
    assert len(warnings) == 4
    assert any("empty.conf is damaged: nothing to boot in it" in text for text in warnings)
    assert bls.read_entries(tmp_path) == found


def test_read_is_bounded(tmp_path: Path) -> None:
    place = tmp_path / "loader/entries"
    place.mkdir(parents=True)
    for number in range(limits.BOOT_ENTRIES + 2):
        (place / f"{number:04}.conf").write_bytes(b"linux /v\n")
    warnings: list[str] = []
    assert len(bls.read_entries(tmp_path, warnings.append)) == limits.BOOT_ENTRIES
    assert len(warnings) == 1
    (place / "0000.conf").write_bytes(b"linux /v\n" * limits.BOOT_ENTRY_BYTES)
    with pytest.raises(BootError):
        bls.parse("x", bls.read_file(place / "0000.conf"))
    assert len(bls.read_file(place / "0000.conf")) == limits.BOOT_ENTRY_BYTES + 1
