"""Images and dumps against what mkcomposefs and composefs-rs made of the same trees."""

from __future__ import annotations

import hashlib
import json
import random
import stat
from pathlib import Path

import pytest
from bootc_composefs import dump
from bootc_composefs.erofs import write_image

from bootc_core.errors import ContentError, StorageError
from bootc_core.fs import verity
from bootc_core.models.tree import Node, walk

VECTORS = Path(__file__).parents[2] / "vectors" / "composefs"
C_VECTORS = json.loads((VECTORS / "images.json").read_bytes())["vectors"]
RS = json.loads((VECTORS / "images-rs.json").read_bytes())


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("vector", C_VECTORS, ids=lambda vector: vector["name"])
def test_as_mkcomposefs(vector, version):
    text = (VECTORS / vector["dump"]).read_bytes()
    parsed = dump.parse(text)
    image = write_image(
        parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
    )
    wanted = vector["images"][f"v{version}"]
    if "file" in wanted:
        assert image == (VECTORS / wanted["file"]).read_bytes()
    assert len(image) == wanted["size"]
    assert hashlib.sha256(image).hexdigest() == wanted["sha256"]
    for algorithm in ("sha256", "sha512"):
        assert verity.digest(image, algorithm).hex() == wanted[f"fsverity_{algorithm}"]


@pytest.mark.parametrize(
    ("vector", "version"),
    [
        pytest.param(
            vector, int(version[1]), id=f"{vector['name']}-{vector['algorithm']}-{version}"
        )
        for vector in RS["vectors"]
        for version in vector["images"]
    ],
)
def test_as_composefs_rs(vector, version):
    parsed = dump.parse((VECTORS / vector["dump"]).read_bytes())
    algorithm = vector["algorithm"]
    image = write_image(parsed.root, version=version, algorithm=algorithm)
    wanted = vector["images"][f"v{version}"]
    assert len(image) == wanted["size"]
    assert hashlib.sha256(image).hexdigest() == wanted["sha256"]
    assert verity.digest(image, algorithm).hex() == wanted[f"fsverity_{algorithm}"]


@pytest.mark.parametrize(
    "pinned", RS["pinned"]["digests"], ids=lambda pinned: f"{pinned['dump']}-v{pinned['version']}"
)
def test_pinned(pinned):
    root = dump.parse((VECTORS / pinned["dump"]).read_bytes()).root
    image = write_image(root, version=pinned["version"], algorithm=pinned["algorithm"])
    assert verity.digest(image, pinned["algorithm"]).hex() == pinned["fsverity"]


# What vectors do not say ---------------------------------------------------------------------------------------------


def directory(**children: Node) -> Node:
    node = Node(stat.S_IFDIR | 0o755)
    node.children.update({name.encode(): child for name, child in children.items()})
    return node


def file(**fields) -> Node:
    return Node(stat.S_IFREG | 0o644, **({"inline": b""} | fields))


@pytest.mark.parametrize(
    ("version", "name"), [(0, "random-400"), (1, "random-400"), (1, "hardlinks"), (2, "selinux")]
)
def test_order_of_dictionaries_does_not_matter(version, name):
    text = (VECTORS / "dumps" / f"{name}.dump").read_bytes()
    parsed = dump.parse(text)
    wanted = write_image(
        parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
    )
    shuffler = random.Random(1)
    for _, node in list(walk(parsed.root)):
        if node.children:
            items = list(node.children.items())
            shuffler.shuffle(items)
            node.children = dict(items)
    again = write_image(
        parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
    )
    assert again == wanted


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("root", "reference"),
    [
        (file(), "bad-tree"),
        (directory(a=Node(0o644)), "bad-tree"),
        (directory(a=file(size=100, inline=None)), "missing-object"),
        (directory(a=file(size=100, inline=None, object=bytes(32))), "wrong-object-name"),
        (directory(a=Node(stat.S_IFLNK | 0o777)), "bad-link-target"),
        (directory(a=Node(stat.S_IFLNK | 0o777, inline=b"x" * 4096)), "bad-link-target"),
        (directory(**{"a/b": file()}), "bad-name"),
        (directory(**{"": file()}), "bad-name"),
        (directory(**{"..": file()}), "bad-name"),
        (directory(**{"n" * 256: file()}), "bad-name"),
        (directory(a=Node(stat.S_IFREG, uid=2**32, inline=b"")), "bad-metadata"),
        (directory(a=Node(stat.S_IFREG, gid=-1, inline=b"")), "bad-metadata"),
        (directory(a=Node(stat.S_IFREG, mtime=2**63, inline=b"")), "bad-metadata"),
        (directory(a=Node(stat.S_IFBLK, rdev=2**32)), "bad-metadata"),
        (directory(a=file(xattrs=((b"user." + b"n" * 256, b""),))), "xattr-too-large"),
        (directory(a=file(xattrs=((b"user.n", bytes(65536)),))), "xattr-too-large"),
        (
            directory(a=file(xattrs=tuple((b"user.%d" % n, bytes(65535)) for n in range(5)))),
            "xattr-too-large",
        ),
    ],
)
def test_refused(root, reference, version):
    with pytest.raises((ContentError, StorageError)) as caught:
        write_image(root, version=version)
    assert caught.value.reference == reference


@pytest.mark.parametrize("version", [0, 1, 2])
def test_file_without_content_is_empty(version):
    """However a tree says so."""
    empty = write_image(directory(a=file(inline=None)), version=version)
    assert empty == write_image(directory(a=file()), version=version)


def test_size_limit():
    """1024 chunks of 2^43 bytes; version 2 has no chunk array."""
    largest = directory(a=file(size=2**53, inline=None, object=bytes(64)))
    write_image(largest)
    largest.children[b"a"].size += 1
    write_image(largest, version=2)
    with pytest.raises(ContentError) as caught:
        write_image(largest)
    assert caught.value.reference == "file-too-large"


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFREG | 0o644])
def test_inline_limit_of_version_2(mode):
    root = directory(a=Node(mode, inline=b"x" * 4064))
    write_image(root, version=2)
    root.children[b"a"].inline += b"x"
    write_image(root, version=1)
    with pytest.raises(ContentError) as caught:
        write_image(root, version=2)
    assert caught.value.reference == "bad-link-target"


@pytest.mark.parametrize("version", [1, 2])
def test_directory_in_two_places(version):
    inner = directory()
    with pytest.raises(ContentError):
        write_image(directory(a=inner, b=inner), version=version)
    inner.children[b"self"] = inner
    with pytest.raises(ContentError):
        write_image(directory(a=inner), version=version)


@pytest.mark.parametrize(("version", "algorithm"), [(3, "sha512"), (-1, "sha512"), (1, "md5")])
def test_unknown_format(version, algorithm):
    with pytest.raises(StorageError) as caught:
        write_image(directory(), version=version, algorithm=algorithm)
    assert caught.value.reference == "unknown-image-format"


def test_negative_time_counts_as_smallest():
    """As in mkcomposefs, which compares seconds with their sign."""
    image = write_image(directory(a=file(mtime=-5, mtime_ns=1)))
    assert int.from_bytes(image[1024 + 24 : 1024 + 32], "little", signed=True) == -5


def test_value_that_looks_like_the_attributes_of_the_overlay():
    """Nothing is searched for in attributes that an image brings along."""
    names = hashlib.sha512(b"1").digest(), hashlib.sha512(b"2").digest()
    plain = directory(a=file(size=100, inline=None, object=names[0]))
    piece = write_image(plain)
    at = piece.index(b"overlay.metacopy") - 4
    for value in (piece[at : at + 240], piece[at : at + 240].replace(names[0], bytes(64))):
        label = ((b"security.a", value),)
        root = directory(
            a=file(size=100, inline=None, object=names[0], xattrs=label),
            b=file(size=100, inline=None, object=names[1], xattrs=label),
            c=file(
                size=100, inline=None, object=bytes(64), xattrs=((b"security.a", value + b"x"),)
            ),
        )
        image = write_image(root)
        for name in names:
            text = name.hex().encode()
            assert image.index(b"/" + text[:2] + b"/" + text[2:], image.index(name))


# Dumps --------------------------------------------------------------------------------------------------------------


ROOT = b"/ 0 40755 2 0 0 0 0.0 - - -\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "without a root"),
        (b"\n", "line 1"),
        (b"/a 0 100644 1 0 0 0 0.0 - - -\n", "line 1"),
        (b"/ 0 100644 1 0 0 0 0.0 - - -\n", "line 1"),
        (ROOT + ROOT, "line 2"),
        (ROOT + b"/a 0 100644 1 0 0 0 0.0 - -\n", "line 2"),
        (ROOT + b"/a/b 0 100644 1 0 0 0 0.0 - - -\n", "line 2"),
        (ROOT + b"a 0 100644 1 0 0 0 0.0 - - -\n", "line 2"),
        (ROOT + b"/a 0 644 1 0 0 0 0.0 - - -\n", "line 2"),
        (ROOT + b"/a 0 100649 1 0 0 0 0.0 - - -\n", "line 2"),
        (ROOT + b"/a 0 100644 1 0 0 0 0 - - -\n", "line 2"),
        (ROOT + b"/a 3 100644 1 0 0 0 0.0 - xx -\n", "line 2"),
        (ROOT + b"/a 2 100644 1 0 0 0 0.0 - \\q -\n", "line 2"),
        (ROOT + b"/a 2 100644 1 0 0 0 0.0 - x\\ -\n", "line 2"),
        (ROOT + b"/a 9 100644 1 0 0 0 0.0 - - xyz\n", "line 2"),
        (ROOT + b"/a 0 100644 1 0 0 0 0.0 - - - noequals\n", "line 2"),
        (ROOT + b"/a 0 120777 1 0 0 0 0.0 - - -\n", "line 2"),
        (ROOT + b"/a 0 @100644 1 0 0 0 0.0 /b - -\n", "/a"),
        (ROOT + b"/a 0 @100644 1 0 0 0 0.0 /a - -\n", "/a"),
        (ROOT + b"/a 0 @100644 1 0 0 0 0.0 / - -\n", "/a"),
        (ROOT + b"/a 0 @40755 1 0 0 0 0.0 / - -\n", "line 2"),
        (ROOT + b"/a 0 100644 1 0 0 0 0.0 - - -\n/a 0 @100644 1 0 0 0 0.0 /a - -\n", "line 3"),
    ],
)
def test_bad_dump(text, what):
    with pytest.raises(ContentError) as caught:
        dump.parse(text)
    assert caught.value.reference == "bad-dump"
    assert what in caught.value.message


def test_escapes():
    for byte in range(256):
        data = bytes((byte,)) * 2
        text = dump.escape(data)
        assert dump.unescape(text) == data
        assert all(0x21 <= written <= 0x7E for written in text)
    assert dump.escape(b"a=b") == b"a=b"
    assert dump.escape(b"a=b", equals=True) == rb"a\x3db"
