"""kargs.d of an image (catalogue C05, C06, C08, C09)."""

from __future__ import annotations

import stat

import pytest

from bootc_core import limits
from bootc_core.boot import kargs_d
from bootc_core.errors import ContentError
from bootc_core.models.tree import Node


def file(data: bytes) -> Node:
    return Node(stat.S_IFREG | 0o644, size=len(data), inline=data)


def directory(**children: Node) -> Node:
    node = Node(stat.S_IFDIR | 0o755)
    node.children = {name.encode(): child for name, child in children.items()}
    return node


def image(files: dict[str, Node]) -> Node:
    kargs = directory(**files)
    return directory(usr=directory(lib=directory(bootc=directory(**{"kargs.d": kargs}))))


def read(node: Node) -> bytes:
    assert node.inline is not None
    return node.inline


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('kargs = ["a=1", "b"]', ("a=1", "b")),
        ('kargs = ["a=1 b", "c=\\"x y\\""]', ("a=1", "b", 'c="x y"')),
        ("kargs = []", ()),
        ('kargs = ["a"]\nmatch-architectures = ["x86_64", "aarch64"]', ("a",)),
        ('kargs = ["a"]\nmatch-architectures = ["aarch64"]', ()),
        ('kargs = ["a"]\nmatch-architectures = []', ()),
    ],
)
def test_parse(text: str, arguments: tuple[str, ...]) -> None:
    assert kargs_d.parse("10.toml", text.encode(), "x86_64") == arguments


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"kargs = [", "Invalid value"),
        (b"\xff\xfe", "utf-8"),
        (b"", "no key kargs"),
        (b'kargs = "a"', "kargs is something else"),
        (b"kargs = [1]", "kargs is something else"),
        (b'kargs = ["a"]\nmatch-architectures = "x86_64"', "match-architectures is something else"),
        (b'kargs = ["a"]\nmatch-architecture = ["x86_64"]', "unknown key match-architecture"),
        (b'kargs = ["a"]\nmatch-architectures = ["amd64"]', "unknown architecture amd64"),
        (b'kargs = ["a"]\nkargs = ["b"]', "overwrite"),
    ],
)
def test_malformed(data: bytes, found: str) -> None:  # C05, C09
    with pytest.raises(ContentError) as caught:
        kargs_d.parse("usr/lib/bootc/kargs.d/10.toml", data, "x86_64")
    assert caught.value.reference == "bad-kargs-d"
    assert caught.value.catalogue == "CON"
    assert "usr/lib/bootc/kargs.d/10.toml in the image" in caught.value.message
    assert found in (caught.value.found or "")


@pytest.mark.parametrize(
    ("element", "reference", "catalogue"),
    [
        ("a\\nb", "bad-karg", "CON"),
        ("a\\u0000", "bad-karg", "CON"),
        ('a=\\"b', "bad-karg", "CON"),
        ("a }", "bad-karg", "CON"),
        ("init=/bin/sh", "protected-karg", "POL"),
        ("quiet rd.break", "protected-karg", "POL"),
        ("composefs=00", "protected-karg", "POL"),
    ],
)
def test_arguments_an_image_may_not_use(element: str, reference: str, catalogue: str) -> None:
    for architecture in ("x86_64", "aarch64"):  # also where the file does not apply
        with pytest.raises(ContentError) as caught:
            kargs_d.parse(
                "10.toml",
                f'kargs = ["{element}"]\nmatch-architectures = ["x86_64"]'.encode(),
                architecture,
            )
        assert (caught.value.reference, caught.value.catalogue) == (reference, catalogue)
        assert "10.toml in the image" in caught.value.message


def test_tree_in_order_of_names() -> None:
    root = image(
        {
            "20-b.toml": file(b'kargs = ["b"]'),
            "10-a.toml": file(b'kargs = ["a"]'),
            "README": file(b"not TOML ["),
            "30-c.toml": file(b'kargs = ["c"]\nmatch-architectures = ["s390x"]'),
        }
    )
    assert kargs_d.read_tree(root, read, "x86_64") == ("a", "b")
    assert kargs_d.read_tree(root, read, "s390x") == ("a", "b", "c")
    assert kargs_d.read_tree(root, read) == ("a", "b")


def test_no_directory_is_no_arguments() -> None:
    assert kargs_d.read_tree(directory(), read) == ()
    assert kargs_d.read_tree(directory(usr=directory(lib=directory(bootc=file(b"")))), read) == ()


def test_links_stay_inside_the_image() -> None:
    link = Node(stat.S_IFLNK | 0o777, inline=b"../../../../../../etc/real.toml")
    root = image({"10.toml": link})
    with pytest.raises(ContentError, match=r"10\.toml in the image is not a file"):
        kargs_d.read_tree(root, read)
    assert root.children is not None
    root.children[b"etc"] = directory(**{"real.toml": file(b'kargs = ["a"]')})
    assert kargs_d.read_tree(root, read) == ("a",)


def test_large_file_is_not_read() -> None:
    big = Node(stat.S_IFREG | 0o644, size=limits.SETTINGS_FILE_BYTES + 1, object=b"x")
    with pytest.raises(ContentError) as caught:
        kargs_d.read_tree(image({"10.toml": big}), read)
    assert caught.value.catalogue == "LIM"
    with pytest.raises(ContentError, match="too large"):
        kargs_d.parse("x", b" " * (limits.SETTINGS_FILE_BYTES + 1), "x86_64")


def test_an_image_that_is_deployed_holds_up_no_upgrade() -> None:
    root = image(
        {
            "10.toml": file(b'kargs = ["root=UUID=1 quiet"]'),
            "20.toml": file(b"kargs = ["),
            "30.toml": file(b'kargs = ["a"]\nmatch-architectures = ["vax"]'),
            "40.toml": file(b'kargs = ["b"]'),
            "50.toml": directory(),
        }
    )
    assert kargs_d.read_tree(root, read, "x86_64", deployed=True) == ("root=UUID=1", "quiet", "b")
    with pytest.raises(ContentError):
        kargs_d.read_tree(root, read, "x86_64")
