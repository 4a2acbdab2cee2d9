"""Reading images: what was written comes back, and damaged or hostile images give our errors, soon."""

from __future__ import annotations

import json
import mmap
import stat
import struct
from pathlib import Path

import pytest
from bootc_composefs import dump
from bootc_composefs import erofs_format as form
from bootc_composefs.erofs import write_image
from bootc_composefs.erofs_format import Overrides
from bootc_composefs.erofs_read import Header, read_header, read_image, read_subtree
from hypothesis import given, settings
from hypothesis import strategies as st

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.models.tree import Node, lookup, walk

VECTORS = Path(__file__).parents[2] / "vectors" / "composefs"
C_VECTORS = json.loads((VECTORS / "images.json").read_bytes())["vectors"]
IMAGES = sorted((VECTORS / "images").iterdir())
# An attribute that means "whiteouts" replaced one of the same name when the image was made.
LOSSY = {"whiteout-xattr"}

# Trees --------------------------------------------------------------------------------------------------------------

names = st.one_of(
    st.sampled_from([b"a", b"b", b"-", b".x", b"..y", b"!", b"\xff", b"00", b"ff"]),
    st.binary(min_size=1, max_size=255).filter(lambda name: name not in {b".", b".."}),
).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"0"))
attribute_names = st.sampled_from(
    [
        b"user.a",
        b"user.overlay.x",
        b"security.selinux",
        b"security.capability",
        b"trusted.z",
        b"trusted.overlay.metacopy",
        b"trusted.overlay.overlay.opaque",
        b"system.posix_acl_access",
        b"odd",
    ]
)
attributes = st.dictionaries(
    attribute_names, st.sampled_from([b"", b"1", b"label", bytes(300)]), max_size=4
).map(lambda found: tuple(sorted(found.items())))


@st.composite
def leaves(draw, whiteouts):
    kind = draw(
        st.sampled_from(
            [
                stat.S_IFREG,
                stat.S_IFREG,
                stat.S_IFLNK,
                stat.S_IFCHR,
                stat.S_IFBLK,
                stat.S_IFIFO,
                stat.S_IFSOCK,
            ]
        )
    )
    node = Node(
        kind | draw(st.integers(0, 0o7777)),
        draw(st.sampled_from([0, 1000, 70000])),
        draw(st.sampled_from([0, 65535, 2**32 - 1])),
        draw(st.sampled_from([0, 1_700_000_000, 2**34])),
        draw(st.sampled_from([0, 999_999_999])),
        xattrs=draw(attributes),
    )
    if kind == stat.S_IFREG:
        if draw(st.booleans()):
            node.object = draw(st.integers(0, 5)).to_bytes(32, "big")
            node.size = draw(st.sampled_from([65, 4096, 2**33]))
        else:
            node.inline = draw(st.binary(max_size=64))
            node.size = len(node.inline)
    elif kind == stat.S_IFLNK:
        node.inline = draw(st.sampled_from([b"x", b"../y" * 50, b"z" * 4000]))
        node.size = len(node.inline)
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        node.rdev = draw(st.sampled_from([1, 2**32 - 1] + [0] * whiteouts))
    return node


@st.composite
def trees(draw, whiteouts=True):
    def directory(depth):
        node = Node(
            stat.S_IFDIR | draw(st.integers(0, 0o7777)),
            mtime=1_700_000_000,
            xattrs=draw(attributes),
        )
        for name in draw(st.lists(names, max_size=6, unique=True)):
            kind = draw(st.integers(0, 9))
            if kind < 3 and depth < 4:
                node.children[name] = directory(depth + 1)
            elif kind == 3 and known:
                node.children[name] = draw(st.sampled_from(known))
            else:
                node.children[name] = leaf = draw(leaves(whiteouts))
                known.append(leaf)
        return node

    known: list[Node] = []
    return directory(0)


@settings(max_examples=150, deadline=None)
@given(tree=trees(), version=st.sampled_from([0, 1]))
def test_round_trip(tree, version):
    before = dump.format(tree)
    image = write_image(tree, version=version, algorithm="sha256")
    assert dump.format(tree) == before  # untouched
    assert image == write_image(tree, version=version, algorithm="sha256")
    overrides = Overrides()
    found = read_image(image, overrides=overrides)
    assert dump.format(found) == before
    assert overrides == Overrides()
    assert write_image(found, version=version, algorithm="sha256") == image


@settings(max_examples=100, deadline=None)
@given(tree=trees())
def test_round_trip_v2(tree):
    image = write_image(tree, version=2, algorithm="sha256")
    found = read_image(image)
    for _, node in walk(tree):
        node.mtime_ns = 0  # what version 2 drops
    assert dump.format(found) == dump.format(tree)
    assert write_image(found, version=2, algorithm="sha256") == image


@settings(max_examples=60, deadline=None)
@given(tree=trees())
def test_dump_round_trip(tree):
    text = dump.format(tree)
    parsed = dump.parse(text)
    assert dump.format(parsed.root) == text
    assert not parsed.overrides.links
    assert not parsed.overrides.paths


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("vector", C_VECTORS, ids=lambda vector: vector["name"])
def test_vectors_come_back(vector, version):
    parsed = dump.parse((VECTORS / vector["dump"]).read_bytes())
    image = write_image(
        parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
    )
    overrides = Overrides()
    found = read_image(image, overrides=overrides)
    if vector["name"] not in LOSSY:
        assert dump.format(found) == dump.format(parsed.root)
    overrides.sizes = {}
    again = write_image(found, version=version, algorithm="sha256", overrides=overrides)
    if not parsed.overrides.homes and not parsed.overrides.sizes:
        assert again == image
    else:  # which name came first, and sizes of devices, are not in an image
        assert dump.format(read_image(again)) == dump.format(found)


def test_header():
    assert read_header((VECTORS / "images/empty.v0.erofs").read_bytes()) == Header(0, False)
    acl = Node(stat.S_IFDIR | 0o755, xattrs=((b"system.posix_acl_default", b""),))
    assert read_header(write_image(acl)[:32]) == Header(1, True)
    assert read_header(write_image(acl, version=2)) == Header(2, False)


# One directory ------------------------------------------------------------------------------------------------------


def test_subtree(tmp_path):
    parsed = dump.parse((VECTORS / "dumps/bootc-like.dump").read_bytes())
    for version in (0, 1, 2):
        image = write_image(parsed.root, version=version, algorithm="sha256")
        for path, node in walk(parsed.root):
            found = read_subtree(image, path)
            assert found is not None
            wanted = node if node.is_dir else None
            assert (
                (dump.format(found) == dump.format(wanted)) if wanted else (found.mode == node.mode)
            )
        for path in (b"missing", b"usr/missing", b"usr/bin/sh/x", b"..", b"usr/../etc"):
            assert read_subtree(image, path) is None
        assert read_subtree(image, b"/usr//./") is not None
    path = tmp_path / "image"
    path.write_bytes(image)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert read_subtree(mapped, b"usr") is not None  # and leaves nothing that keeps it mapped


def test_stubs_are_not_there():
    image = write_image(Node(stat.S_IFDIR | 0o755))
    assert read_image(image).children == {}
    assert read_subtree(image, b"7f") is None


def test_subtree_does_not_read_the_rest():
    """A damaged file elsewhere is not noticed: it is not looked at."""
    root = Node(stat.S_IFDIR | 0o755)
    for name in (b"etc", b"usr"):
        root.children[name] = Node(stat.S_IFDIR | 0o755)
        root.children[name].children[b"f"] = Node(stat.S_IFREG | 0o644, inline=name * 7, size=21)
    image = bytearray(write_image(root))
    at = image.index(b"usrusr") - 32
    image[at : at + 2] = b"\xff\xff"
    assert lookup(read_subtree(image, b"etc"), b"f").inline == b"etc" * 7
    with pytest.raises(ContentError):
        read_image(image)


# Damage -------------------------------------------------------------------------------------------------------------


def survives(image: bytes | bytearray) -> Node | None:
    """The tree, or None if the image was refused in the right way; anything else fails the test."""
    try:
        return read_image(image)
    except ContentError as problem:
        refusal = problem
    assert (refusal.reference, refusal.catalogue) == ("bad-erofs-image", "INT")
    return None


@settings(max_examples=400, deadline=None)
@given(
    which=st.sampled_from([image for image in IMAGES if image.stat().st_size <= 32768]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    focus=st.booleans(),
)
def test_flipped_bytes(which, flips, focus):
    image = bytearray(which.read_bytes())
    end = 3000 if focus else len(image)  # superblock and the first inodes
    for place, value in flips:
        image[int(place * end)] = value
    tree = survives(image)
    if tree is not None:
        assert sum(1 for _ in walk(tree)) <= len(image) // form.DIRENT.size


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_fields(data):
    """Whole 32-bit fields of inodes and directories, with values that lead somewhere."""
    image = bytearray((VECTORS / "images/bootc-like.v1.erofs").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(form.SUPERBLOCK_OFFSET // 4, len(image) // 4 - 1)) * 4
        value = data.draw(
            st.one_of(
                st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
            )
        )
        struct.pack_into("<I", image, at, value)
    survives(image)


@pytest.mark.parametrize("size", [0, 31, 32, 1024, 1151, 1152, 1300, 4096, 16383])
def test_cut_off(size):
    assert survives((VECTORS / "images/bootc-like.v1.erofs").read_bytes()[:size]) is None


def patched(offset: int, kind: str, value: int, version: int = 1) -> bytearray:
    image = bytearray(write_image(Node(stat.S_IFDIR | 0o755), version=version))
    struct.pack_into("<" + kind, image, offset, value)
    return image


@pytest.mark.parametrize(
    ("offset", "kind", "value"),
    [
        (0, "I", 1),  # magic
        (4, "I", 2),  # header version
        (12, "I", 3),  # composefs version
        (1024, "I", 1),  # EROFS magic
        (1024 + 12, "B", 9),  # block size
        (1024 + 14, "H", 65535),  # root
        (1024 + 36, "I", 2**32 - 1),  # blocks
        (1024 + 40, "I", 2**32 - 1),  # meta_blkaddr
        (1024 + 44, "I", 2**32 - 1),  # xattr_blkaddr: the stubs' shared label would be there
        (1024 + 80, "I", 1),  # incompatible feature
        (1152, "H", 2),  # compressed layout
        (1152, "H", 0xFFFF),
        (1152 + 2, "H", 65535),  # attributes
        (1152 + 4, "H", 0),  # mode
        (1152 + 4, "H", stat.S_IFLNK | 0o777),
        (1152 + 8, "I", 2**32 - 1),  # size
        (1152 + 16, "I", 2**32 - 1),  # first block
    ],
)
def test_wrong_fields(offset, kind, value):
    if offset == 1024 + 44:
        root = Node(stat.S_IFDIR | 0o755, xattrs=((b"security.selinux", b"x"),))
        image = bytearray(write_image(root))
        struct.pack_into("<" + kind, image, offset, value)
    else:
        image = patched(offset, kind, value)
    assert survives(image) is None


def with_directories(*levels: bytes) -> tuple[bytearray, list[int]]:
    """An image (version 2: no stubs) of nested directories, and where the entry of each is."""
    root = Node(stat.S_IFDIR | 0o755)
    node = root
    for name in levels:
        node.children[name] = Node(stat.S_IFDIR | 0o755)
        node = node.children[name]
    image = bytearray(write_image(root, version=2))
    places = []
    at = form.INODES_OFFSET
    for _ in levels:
        entries = at + form.EXTENDED.size
        places.append(entries + 2 * form.DIRENT.size)
        at = struct.unpack_from("<Q", image, places[-1])[0] * form.SLOT
    return image, places


def test_cycle():
    image, places = with_directories(b"a", b"b", b"c")
    assert survives(image) is not None
    root_nid = struct.unpack_from("<H", image, 1024 + 14)[0]
    for target in (root_nid, struct.unpack_from("<Q", image, places[0])[0]):
        struct.pack_into("<Q", image, places[2], target)
        assert survives(image) is None


def test_too_deep():
    image, _ = with_directories(*[b"d"] * (limits.DEPTH - 1))
    assert survives(image) is not None
    image, _ = with_directories(*[b"d"] * (limits.DEPTH + 1))
    assert survives(image) is None


def test_names():
    root = Node(stat.S_IFDIR | 0o755)
    for name in (b"aaa", b"aab"):
        root.children[name] = Node(stat.S_IFREG | 0o644, inline=b"")
    image = write_image(root, version=2)
    for bad in (b"a/a", b"a\0a", b"aab"):  # a slash, a NUL, the same name twice
        assert survives(image.replace(b"aaa", bad)) is None
    # The last name of a part may end with zeros: that is how it is told from the padding.
    assert set(read_image(image.replace(b"aab", b"aa\0")).children) == {b"aaa", b"aa"}


def test_overlap_is_bounded():
    """Many directories that all refer to one block of entries: small on disk, huge as a tree."""
    root = Node(stat.S_IFDIR | 0o755)
    for number in range(300):
        root.children[b"%03d" % number] = Node(stat.S_IFDIR | 0o755)
    full = root.children[b"000"]
    for number in range(230):
        full.children[b"%05d" % number] = Node(stat.S_IFREG | 0o644, inline=b"")
    image = bytearray(write_image(root, version=2))
    tree = read_image(image)
    assert len(tree.children) == 300
    head = bytes(image[: len(image)])
    at = form.INODES_OFFSET
    source = None
    while at < len(head) - 64:  # every directory gets size and first block of the full one
        fields = form.EXTENDED.unpack_from(head, at)
        if fields[0] >> 1 in {0, 2} and stat.S_ISDIR(fields[2]) and fields[6] * form.SLOT == at:
            if at != form.INODES_OFFSET and fields[4] > 2048:
                source = fields
            elif source is not None:
                struct.pack_into("<H", image, at, 1)
                struct.pack_into("<Q", image, at + 8, source[4])
                struct.pack_into("<I", image, at + 16, source[5])
        at += form.SLOT
    assert source is not None
    assert survives(image) is None


def test_metacopy():
    root = Node(stat.S_IFDIR | 0o755)
    root.children[b"f"] = Node(stat.S_IFREG | 0o644, size=5000, object=b"D" * 64)
    image = write_image(root, version=2)
    at = image.index(b"overlay.metacopy") + len(b"overlay.metacopy")
    assert survives(image) is not None
    for offset, value in ((0, 1), (1, 67), (2, 1), (3, 1), (3, 9)):
        bad = bytearray(image)
        bad[at + offset] = value
        assert survives(bad) is None
