"""Kernel command lines: parse, print, compare, change, merge (catalogue C06 to C08)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc_core import limits
from bootc_core.errors import BootError, ContentError
from bootc_core.models.kargs import (
    PROTECTED,
    CommandLine,
    Parameter,
    merge_image_change,
    refuse_protected,
)

P = Parameter


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", []),
        ("  \t ", []),
        ("rw", ["rw"]),
        (" root=UUID=a  rw ", ["root=UUID=a", "rw"]),
        ('a="b c" d', ['a="b c"', "d"]),
        ('"a=b c" d', ['"a=b c"', "d"]),
        ('dyndbg="file x.c +p; file y.c +p"', ['dyndbg="file x.c +p; file y.c +p"']),
        ("a=1 a=1", ["a=1", "a=1"]),
    ],
)
def test_parse(text: str, parameters: list[str]) -> None:
    line = CommandLine.parse(text)
    assert [parameter.text for parameter in line] == parameters
    assert str(line) == " ".join(parameters)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("a-b=1", "a_b=1", True),
        ("a-b", "a_b", True),
        ("a=b-c", "a=b_c", False),
        ("a", "a=", False),
        ("a=", 'a=""', True),
        ('a="b c"', '"a=b c"', True),
        ("a=1", "a=2", False),
        ("A=1", "a=1", False),
        ("a=b=c", "a=b=c", True),
    ],
)
def test_equality(a: str, b: str, equal: bool) -> None:
    assert (P(a) == P(b)) is equal
    if equal:
        assert hash(P(a)) == hash(P(b))


def test_key_and_value() -> None:
    assert (P("root=UUID=x").key, P("root=UUID=x").value) == ("root", "UUID=x")
    assert (P('"a=b c"').key, P('"a=b c"').value) == ("a", "b c")
    assert P("rw").value is None


@pytest.mark.parametrize("text", ["a\nb", "a\0", "a\rb", "\x1b[31m", "a\x7f", "a\x85b", "\udc80"])
def test_control_characters_are_refused(text: str) -> None:  # C06
    with pytest.raises(BootError) as caught:
        CommandLine.parse(text, "kargs")
    assert caught.value.reference == "bad-karg"
    assert caught.value.catalogue == "CON"
    assert text not in (caught.value.found or "")


@pytest.mark.parametrize("text", ['"', 'a="b', 'a"b c', 'a="b" c="'])
def test_open_quote_is_refused(text: str) -> None:  # C06
    with pytest.raises(ContentError, match="never closed"):
        CommandLine.parse(text, error=ContentError)


def test_length() -> None:  # C07
    fits = CommandLine.parse("x" * limits.KARGS_BYTES)
    assert fits.checked() is fits
    with pytest.raises(BootError) as caught:
        CommandLine.parse("x" * (limits.KARGS_BYTES - 1) + "é").checked()
    assert caught.value.catalogue == "LIM"
    assert caught.value.found == f"{limits.KARGS_BYTES + 1} bytes"
    with pytest.raises(BootError, match="too long"):
        merge_image_change(fits, [], [P("y")])


def test_changes() -> None:
    line = CommandLine.parse("root=a rw console=tty0 console=ttyS0 a-b=1")
    assert line.get("console") == "tty0"
    assert line.all("console") == ("tty0", "ttyS0")
    assert line.get("a_b") == "1"
    assert line.get("rw") is None
    assert line.has("rw")
    assert not line.has("ro")
    assert P("a_b=1") in line
    assert str(line.add([P("rw"), P("quiet"), P("quiet")])).endswith("a-b=1 quiet")
    assert str(line.extend([P("rw")])).endswith("a-b=1 rw")
    assert str(line.remove(P("console=tty0"))) == "root=a rw console=ttyS0 a-b=1"
    assert str(line.remove_key("console")) == "root=a rw a-b=1"
    assert str(line.add_or_modify(P("console=x"))) == "root=a rw console=x a-b=1"
    assert str(line.add_or_modify(P("new=x"))).endswith("a-b=1 new=x")
    assert len(line) == 5


def test_composefs() -> None:
    line = CommandLine.parse("root=a composefs=?11 rw")
    assert line.deployment == "11"
    assert str(line.with_composefs("22", optional=False)) == "root=a composefs=22 rw"
    assert str(line.with_composefs("22", optional=True)) == "root=a composefs=?22 rw"
    assert str(CommandLine().with_composefs("2", optional=True)) == "composefs=?2"
    assert CommandLine.parse("composefs=? composefs").deployment is None


def merge(current: str, old: str, new: str) -> str:
    parse = CommandLine.parse
    return str(merge_image_change(parse(current), parse(old), parse(new)))


@pytest.mark.parametrize(
    ("current", "old", "new", "result"),
    [
        ("root=a rw", "", "x=1", "root=a rw x=1"),
        ("root=a x=1 local", "x=1", "x=2", "root=a local x=2"),
        ("root=a x=1 local", "x=1", "", "root=a local"),  # no kargs.d: an empty one
        ("root=a local", "x=1", "x=1", "root=a local"),  # removed locally, stays removed
        (
            "root=a x=9",
            "x=1",
            "x=2",
            "root=a x=9 x=2",
        ),  # changed locally: the old value is not ours
        ("root=a y", "", "y", "root=a y"),  # there already
        ("a", "", 'dyndbg="file a +p"', 'a dyndbg="file a +p"'),
        ('a dyndbg="f +p"', 'dyndbg="f +p"', "", "a"),
        ("a_b=1 z", "a-b=1", "", "z"),
        (
            "root=a init=/x z",
            "root=a init=/x z",
            "",
            "root=a init=/x",
        ),  # C08: not the image's to remove
        ("rw", "", "root=b init=/x y", "rw y"),
        ("c=1 c=2", "c=1 c=2", "c=2", "c=2"),
    ],
)
def test_merge(current: str, old: str, new: str, result: str) -> None:
    assert merge(current, old, new) == result


words = st.lists(
    st.from_regex(r"[a-c](-[a-b])?(=[0-2]|=\"[0-1] [0-1]\")?", fullmatch=True), max_size=6
).map(" ".join)


@given(words, words)
def test_same_image_changes_nothing(current: str, image: str) -> None:
    assert merge(current, image, image) == str(CommandLine.parse(current))


@given(words, words, words)
def test_merge_laws(current: str, old: str, new: str) -> None:
    result = CommandLine.parse(merge(current, old, new))
    before, after = CommandLine.parse(old), CommandLine.parse(new)
    for parameter in CommandLine.parse(current):
        if parameter not in before or parameter in after:
            assert parameter in result  # what is local, or still the image's, stays
    for parameter in after:
        if parameter not in before:
            assert parameter in result
    for parameter in before:
        if parameter not in after:
            assert parameter not in result
    assert merge(str(result), old, new) == str(result)


@given(st.text(max_size=40))
def test_parse_prints_back_or_refuses(text: str) -> None:
    try:
        line = CommandLine.parse(text)
    except BootError:
        return
    assert CommandLine.parse(str(line)).parameters == line.parameters
    assert "\n" not in str(line)


@pytest.mark.parametrize("key", sorted(PROTECTED | {"systemd.debug-shell"}))
def test_protected(key: str) -> None:  # C08
    for text in (key, f"{key}=1", f'"{key}=1 2"'):
        with pytest.raises(ContentError) as caught:
            refuse_protected(CommandLine.parse(f"quiet {text}"), "x.toml in the image")
        assert caught.value.reference == "protected-karg"
        assert caught.value.catalogue == "POL"
        assert "x.toml" in caught.value.message


@pytest.mark.parametrize("text", ["a}", "a={", '"a }"'])
def test_braces_of_an_image(text: str) -> None:  # C06: they end a menu entry of GRUB
    with pytest.raises(ContentError, match="brace"):
        refuse_protected([P(text)], "x.toml in the image")
