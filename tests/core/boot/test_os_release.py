"""os-release, as systemd reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc_core.boot.os_release import OsRelease, parse

DEBIAN = b"""PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
ID=debian
HOME_URL="https://www.debian.org/"
"""


def test_debian() -> None:
    assert parse(DEBIAN) == OsRelease("debian", "Debian GNU/Linux 13 (trixie)", "13 (trixie)", "13")


def test_defaults() -> None:
    assert parse(b"") == OsRelease("linux", "Linux", None, None)
    assert parse(b"NAME=Arch\nID=arch\n") == OsRelease("arch", "Arch", None, None)
    assert parse(b"VERSION_ID=4\n").version == "4"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"PRETTY_NAME=x", "x"),
        (b"PRETTY_NAME='a \"b\" $c'", 'a "b" $c'),
        (b'PRETTY_NAME="a \\"b\\" \\$c \\\\ \\x"', 'a "b" $c \\ \\x'),
        (b"PRETTY_NAME=a\\ b", "a b"),
        (b"PRETTY_NAME=\"a\"'b'c", "abc"),
        (b"  PRETTY_NAME=x  ", "x"),
        (b"PRETTY_NAME=a b", "Linux"),
        (b'PRETTY_NAME="a', "Linux"),
        (b"PRETTY_NAME=$(reboot)", "Linux"),
        (b"# PRETTY_NAME=x", "Linux"),
        (b'PRETTY_NAME="a\x1b[31mb"', "a [31mb"),
        (b'PRETTY_NAME="' + b"a" * 999 + b'"', "a" * 256),
        (b"PRETTY_NAME=\xff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_values(line: bytes, value: str) -> None:
    assert parse(line).pretty_name == value


@pytest.mark.parametrize("identity", [b"Debian", b"../x", b'"a b"', b"", b"x" * 65])
def test_identity_is_a_word(identity: bytes) -> None:
    assert parse(b"ID=" + identity).id == "linux"


@given(st.binary(max_size=200))
def test_never_raises_and_is_printable(data: bytes) -> None:
    release = parse(b"PRETTY_NAME=" + data + b"\nVERSION=" + data)
    for text in (release.id, release.pretty_name, release.version or ""):
        assert text.isprintable()
