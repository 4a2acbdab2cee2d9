"""The OCI and the boot transformation against composefs-rs, and the labels of an image's own SELinux policy."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from pathlib import Path

import pytest
from bootc_composefs import dump
from bootc_composefs.erofs import write_image
from bootc_composefs.transform import boot_transform, oci_transform
from hypothesis import given
from hypothesis import strategies as st

from bootc_core.errors import ContentError
from bootc_core.fs import verity
from bootc_core.models.tree import Node, lookup, walk
from bootc_core.oci import selinux

VECTORS = Path(__file__).parents[2] / "vectors" / "composefs"
CASES = json.loads((VECTORS / "boot.json").read_bytes())["vectors"]
TYPES = {
    "dir": stat.S_IFDIR,
    "file": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "chr": stat.S_IFCHR,
    "blk": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
    "sock": stat.S_IFSOCK,
}


class Store:
    """Contents of external files by digest, as a repository has them."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.reads = 0

    def add(self, node: Node, content: bytes) -> None:
        node.size = len(content)
        if len(content) <= 64:
            node.inline = content
        else:
            node.object = verity.digest(content)
            self.objects[node.object] = content

    def read(self, node: Node) -> bytes:
        self.reads += 1
        assert node.object is not None
        return self.objects[node.object]


def tree_of(path: Path, store: Store) -> Node:
    root = None
    for entry in json.loads(path.read_bytes()):
        parent = entry["path"].rpartition("/")[0].encode()
        name = entry["path"].rpartition("/")[2].encode()
        if entry["type"] == "hardlink":
            node = lookup(root, entry["target"].encode())
            assert node is not None
        else:
            node = Node(
                TYPES[entry["type"]] | entry["mode"],
                entry["uid"],
                entry["gid"],
                entry["mtime"],
                entry["nsec"],
                xattrs=tuple(
                    sorted(
                        (key.encode(), base64.b64decode(value))
                        for key, value in entry.get("xattrs", {}).items()
                    )
                ),
            )
        if entry["type"] == "file":
            pattern = bytes((i * 7) % 253 for i in range(entry.get("pattern", 0)))
            store.add(node, entry.get("content", "").encode() or pattern)
        elif entry["type"] == "symlink":
            node.inline = entry["target"].encode()
        elif "rdev" in entry:
            node.rdev = os.makedev(*entry["rdev"])
        if entry["path"] == "/":
            root = node
        else:
            lookup(root, parent).children[name] = node
    assert root is not None
    return root


def small(**files: bytes) -> Node:
    """A minimal tree; ``etc_shadow=b"..."`` is ``/etc/shadow``."""
    root = Node(stat.S_IFDIR | 0o700, mtime=1)
    for name in (b"usr", b"boot", b"sysroot", b"run", b"etc"):
        root.children[name] = Node(stat.S_IFDIR | 0o755, mtime=7, mtime_ns=9)
    for path, content in files.items():
        node = root
        *parents, name = path.encode().split(b"_")
        for part in parents:
            node = node.children.setdefault(part, Node(stat.S_IFDIR | 0o755))
        node.children[name] = Node(stat.S_IFREG | 0o644, inline=content, size=len(content))
    return root


def with_policy(contexts: bytes, **files: bytes) -> Node:
    root = small(**files)
    etc = root.children[b"etc"]
    etc.children[b"selinux"] = selinux_ = Node(stat.S_IFDIR | 0o755)
    selinux_.children[b"config"] = Node(stat.S_IFREG | 0o644, inline=b"SELINUXTYPE=t\n", size=14)
    node = selinux_
    for name in (b"t", b"contexts", b"files"):
        node.children[name] = Node(stat.S_IFDIR | 0o755)
        node = node.children[name]
    node.children[b"file_contexts"] = Node(
        stat.S_IFREG | 0o644, inline=contexts, size=len(contexts)
    )
    return root


def nothing(node: Node) -> bytes:
    raise AssertionError("everything here is inline")


def labels(root: Node) -> dict[bytes, bytes | None]:
    return {path: dict(node.xattrs).get(b"security.selinux") for path, node in walk(root)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: Path(case["dump"]).stem)
def test_vectors(case):
    store = Store()
    root = tree_of(VECTORS / case["tree"], store)
    what, _, user = case["transformation"].partition("-")
    oci_transform(root, keep_user_xattrs=bool(user))
    if what == "boot":
        boot_transform(root, store.read)
    text = dump.format(root)
    assert text.decode().splitlines() == (VECTORS / case["dump"]).read_text().splitlines()
    for version in (1, 2):
        image = write_image(root, version=version)
        assert verity.digest(image).hex() == case[f"v{version}_fsverity_sha512"]


def test_oci_twice_is_once():
    root = tree_of(VECTORS / "boot/policy.tree.json", Store())
    oci_transform(root)
    text = dump.format(root)
    oci_transform(root)
    assert dump.format(root) == text


@pytest.mark.parametrize("missing", ["usr", "boot", "sysroot"])
@pytest.mark.parametrize("instead", [None, stat.S_IFLNK | 0o777])
def test_missing_directory(missing, instead):
    root = small()
    del root.children[missing.encode()]
    if instead:
        root.children[missing.encode()] = Node(instead, inline=b"elsewhere")
    if missing == "usr":
        with pytest.raises(ContentError) as caught:
            oci_transform(root)
        assert caught.value.reference == "missing-directory"
    with pytest.raises(ContentError) as caught:
        boot_transform(root, nothing)
    assert caught.value.reference == "missing-directory"
    assert f"/{missing}" in caught.value.message
    assert f"RUN mkdir -p /{missing}" in caught.value.hint


def test_run_may_be_missing_or_a_link():
    root = small()
    del root.children[b"run"]
    oci_transform(root)
    root.children[b"run"] = link = Node(stat.S_IFLNK | 0o777, inline=b"var/run", mtime=3)
    oci_transform(root)
    assert (link.inline, link.mtime) == (b"var/run", 3)


def test_no_policy_removes_labels():
    root = small(usr_a=b"x")
    file = lookup(root, b"usr/a")
    file.xattrs = ((b"security.capability", b"c"), (b"security.selinux", b"container_t"))
    boot_transform(root, nothing)
    assert file.xattrs == ((b"security.capability", b"c"),)


def test_last_match_wins_and_none_removes():
    root = with_policy(
        b"/.* all_t\n/usr/a -- first_t\n/usr/[ab] -- second_t\n/usr/b <<none>>\n/usr/c -d dir_t\n",
        usr_a=b"x",
        usr_b=b"x",
        usr_c=b"x",
    )
    lookup(root, b"usr/b").xattrs = ((b"security.selinux", b"old"),)
    boot_transform(root, nothing)
    found = labels(root)
    assert found[b"usr/a"] == b"second_t"
    assert found[b"usr/b"] is None
    assert found[b"usr/c"] == b"all_t"


def test_hard_links_are_split_only_where_labels_differ():
    root = with_policy(
        b"/usr/(a|c) one_t\n/usr/(b|d) two_t\n", usr_a=b"x", usr_b=b"", usr_c=b"", usr_d=b""
    )
    usr = root.children[b"usr"].children
    usr[b"b"] = usr[b"c"] = usr[b"d"] = usr[b"a"]
    boot_transform(root, nothing)
    assert usr[b"a"] is usr[b"c"]
    assert len({id(node) for node in usr.values()}) == 3
    assert [labels(root)[b"usr/" + name] for name in (b"a", b"b", b"c", b"d")] == [
        b"one_t",
        b"two_t",
        b"one_t",
        b"two_t",
    ]
    assert usr[b"b"].inline == b"x"


@pytest.mark.parametrize(
    ("contexts", "found"),
    [
        (b"/usr\n", "/usr"),
        (b"/usr -x usr_t\n", "/usr -x usr_t"),
        (b"/usr -d usr_t more\n", "more"),
        (b"\n# c\n/usr(/.* usr_t\n", "/usr(/.*"),
    ],
)
def test_bad_policy(contexts, found):
    root = with_policy(contexts)
    with pytest.raises(ContentError) as caught:
        boot_transform(root, nothing)
    assert caught.value.reference == "bad-selinux-policy"
    assert found in caught.value.found


@pytest.mark.parametrize("kind", ["missing", "..", "", "a/b"])
def test_policy_that_is_not_there(kind):
    root = with_policy(b"")
    config = lookup(root, b"etc/selinux/config")
    config.inline = f"SELINUXTYPE={kind}\n".encode()
    with pytest.raises(ContentError) as caught:
        boot_transform(root, nothing)
    assert caught.value.reference == "bad-selinux-policy"


@pytest.mark.parametrize("config", [b"", b"#SELINUXTYPE=x\n", b"SELINUX=enforcing\n"])
def test_config_without_type_means_no_policy(config):
    root = with_policy(b"/.* all_t\n")
    lookup(root, b"etc/selinux/config").inline = config
    boot_transform(root, nothing)
    assert set(labels(root).values()) == {None}


@pytest.mark.parametrize(
    ("expression", "prefix", "whole", "needle"),
    [
        (b"/usr/bin/env", b"/usr/bin/env", True, b""),
        (rb"/usr/lib/a\.so", b"/usr/lib/a.so", True, b""),
        (b"/usr(/.*)?", b"/usr", False, b""),
        (b"/usr(/.*)?/bin(/.*)?", b"/usr", False, b"/bin"),
        (b"/usr/lib64?/x", b"/usr/lib6", False, b"/x"),
        (b"/usr/a+b", b"/usr/a", False, b"b"),
        (rb"/x\.*", b"/x", False, b""),
        (rb"/x\d", b"/x", False, b""),
        (rb"/x\x41abc", b"/x", False, b""),
        (b"/a|/b", b"", False, b""),
        (b"/a(b|c)", b"/a", False, b""),
        (b"/a[(]b|c[)]d", b"", False, b""),
        (b"/a[](]b|c[)]d", b"", False, b""),
        (b"/a[^](]b(c)|d", b"", False, b""),
        (b"/a(x(y)|z)bc", b"/a", False, b"bc"),
        (b"/a[|]", b"/a", False, b""),
        (b"/a{2}bc", b"/", False, b"bc"),
        (b"/a(?!b)cd", b"/a", False, b""),
        (b".*", b"", False, b""),
        (b".+/lib", b"", False, b"/lib"),
        (b"", b"", True, b""),
    ],
)
def test_literals(expression, prefix, whole, needle):
    assert selinux.literals(expression) == (prefix, whole, needle)


@pytest.mark.parametrize(
    ("expression", "yes", "no"),
    [
        (b"/dev/tty[[:digit:]]+", b"/dev/tty17", b"/dev/ttyd"),
        (b"/x[^[:space:]]", b"/xa", b"/x "),
        (b"/x[a[]", b"/x[", b"/xb"),
        (b"/x[]a]", b"/x]", b"/xb"),
        (b"/x[&&|~]", b"/x&", b"/xa"),
        (b"/x(?<n>a)", b"/xa", b"/xb"),
        (b"/x(?<=x)a", b"/xa", b"/xb"),
        (b"/usr/(?!keep)[a-z]*", b"/usr/look", b"/usr/keep"),
        (b"/x.", b"/x\n", b"/x"),
        (b"/x.", b"/x\xff", b"/x\xff\xff"),
        (b"/x(a++|b)", b"/xaa", b"/xab"),
    ],
)
def test_expressions(expression, yes, no):
    policy = selinux.Policy(selinux.parse_contexts(expression + b" t\n", "file_contexts"), {})
    assert policy.label(yes, stat.S_IFREG) == b"t"
    assert policy.label(no, stat.S_IFREG) is None


PATHS = st.text("/ab.x", min_size=1, max_size=8).map(lambda text: b"/" + text.encode())
EXPRESSIONS = st.one_of(
    PATHS.map(re.escape),
    PATHS,
    st.from_regex(r"/[ab](/\.\*|\(a\|b\)|[ab]\?|\[ab\]\+|\(/\.\*\)\?)?[abx/]?", fullmatch=True).map(
        str.encode
    ),
)


@given(
    lines=st.lists(st.tuples(EXPRESSIONS, st.sampled_from([b"", b"--", b"-d"])), max_size=12),
    paths=st.lists(PATHS, max_size=8),
)
def test_search_is_the_plain_one(lines, paths):
    """Finding lines by their literal text gives what trying every line gives."""
    text = b"".join(
        b"%b %b t%d\n" % (expression, letter, number)
        for number, (expression, letter) in enumerate(lines)
        if b" " not in expression
    )
    parsed = selinux.parse_contexts(text, "file_contexts")
    policy = selinux.Policy(parsed, {})
    for path in paths:
        wanted = None
        for line in parsed:
            if line.matches(path + b"-") and line.letter in {b"", b"-"}:
                wanted = line.context
        assert policy.label(path, stat.S_IFREG) == wanted
