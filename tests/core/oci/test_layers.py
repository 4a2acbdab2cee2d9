"""Merging layers: against a straightforward model, and the rows of the catalogue that concern the merged tree."""

from __future__ import annotations

import stat
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import END, member, pax, refusal

from bootc_core.errors import ContentError
from bootc_core.models.tree import Node, lookup, walk
from bootc_core.oci.layers import LayerTree, apply_layer
from bootc_core.oci.tar import TarEntry, iter_entries


def file(path: str, content: bytes | None = b"", **fields):
    return TarEntry(path.encode(), ord("0"), size=len(content or b""), **fields), content, None


def directory(path: str, mode: int = 0o755, **fields):
    return TarEntry(path.encode(), ord("5"), mode, **fields), None, None


def symlink(path: str, target: str):
    return TarEntry(path.encode(), ord("2"), 0o777, linkname=target.encode()), None, None


def hardlink(path: str, target: str):
    return TarEntry(path.encode(), ord("1"), linkname=target.encode()), None, None


def merged(*layers: Iterable) -> LayerTree:
    tree = LayerTree()
    for number, layer in enumerate(layers, 1):
        tree.apply(layer, f"layer {number}")
    return tree


def show(root: Node) -> dict[str, object]:
    """Every path with what is there: a directory's mode, a link's target, or a file's content."""
    shown: dict[str, object] = {}
    for path, node in walk(root):
        if node.is_dir:
            shown[path.decode() + "/"] = stat.S_IMODE(node.mode)
        elif stat.S_ISLNK(node.mode):
            shown[path.decode()] = "-> " + (node.inline or b"").decode()
        else:
            shown[path.decode()] = node.inline
    return shown


def refused(*layers: Iterable) -> ContentError:
    with pytest.raises(ContentError) as caught:
        merged(*layers)
    assert caught.value.catalogue == "CON"
    return caught.value


def test_metadata_arrives():
    xattrs = ((b"user.a", b"1"),)
    entry = TarEntry(b"bin/su", ord("0"), 0o4755, 1, 2, 70000, 17, 5, xattrs=xattrs)
    node = lookup(merged([(entry, None, b"\x01" * 64)]).root, b"bin/su")
    assert node is not None
    assert (node.mode, node.uid, node.gid, node.size) == (stat.S_IFREG | 0o4755, 1, 2, 70000)
    assert (node.mtime, node.mtime_ns, node.object, node.inline, node.xattrs) == (
        17,
        5,
        b"\x01" * 64,
        None,
        xattrs,
    )


def test_implicit_parents_and_root():
    tree = merged([file("a/b/c", b"x", mode=0o600, uid=5, mtime=9), directory("", 0o700, uid=7)])
    assert show(tree.root) == {"/": 0o700, "a/": 0o755, "a/b/": 0o755, "a/b/c": b"x"}
    parent = lookup(tree.root, b"a/b")
    assert parent is not None
    assert (parent.uid, parent.mtime, tree.root.uid) == (0, 0, 7)


def test_directory_over_directory_keeps_children():
    tree = merged(
        [directory("d", 0o755), file("d/a", b"1")],
        [directory("d", 0o700, uid=3), file("d/b", b"2")],
    )
    assert show(tree.root) == {"/": 0o755, "d/": 0o700, "d/a": b"1", "d/b": b"2"}


@pytest.mark.parametrize("reverse", [False, True])
def test_t23_whiteouts_hide_lower_layers_only_wherever_they_stand(reverse):
    lower = [
        file("a", b"old"),
        file("d/x", b"old"),
        file("d/y", b"old"),
        file("e/x", b"old"),
        file("e/sub/y", b"old"),
    ]
    upper = [
        file("a", b"new"),
        file(".wh.a"),
        file("d/x", b"new"),
        file("d/.wh..wh..opq"),
        file("e/.wh.sub"),
        file("e/sub/z", b"new"),
        file(".wh.missing"),
        file("no/such/.wh.directory"),
        file("nor/.wh..wh..opq"),
    ]
    if reverse:
        upper.reverse()
    tree = merged(lower, upper)
    assert show(tree.root) == {
        "/": 0o755, "a": b"new", "d/": 0o755, "d/x": b"new",
        "e/": 0o755, "e/x": b"old", "e/sub/": 0o755, "e/sub/z": b"new",
    }  # fmt: skip
    assert (tree.stats.whiteouts, tree.stats.hidden, tree.stats.entries) == (6, 4, 14)


def test_whiteout_of_a_directory_forgets_its_metadata():
    tree = merged([directory("d", 0o700), file("d/a")], [file(".wh.d"), file("d/b")])
    assert show(tree.root) == {"/": 0o755, "d/": 0o755, "d/b": b""}


def test_whiteout_does_not_follow_links():
    tree = merged(
        [directory("real"), file("real/x"), symlink("link", "real")], [file("link/.wh.x")]
    )
    assert "real/x" in show(tree.root)


def test_t24_whiteouts_of_everything_leave_an_empty_tree():
    """That such a tree cannot boot is said where the kernel is looked for."""
    assert show(merged([file("usr/a"), file("boot/b")], [file(".wh..wh..opq")]).root) == {
        "/": 0o755
    }


@pytest.mark.parametrize("target", ["/", "/etc", "../../.."])
def test_t08_nothing_is_placed_through_a_symbolic_link(target):
    problem = refused([symlink("d", target), file("d/etc/x")])
    assert problem.reference == "parent-not-directory"
    assert "'d/etc/x'" in problem.message
    assert target in (problem.found or "")
    assert refused([symlink("d", target)], [file("d/x")]).reference == "parent-not-directory"


def test_t08_nor_through_a_file():
    assert "is a file" in (refused([file("d"), file("d/x")]).found or "")
    assert "special" in (refused([(TarEntry(b"d", ord("6")), None, None), file("d/x")]).found or "")


def test_t09_hard_link_through_a_symbolic_link():
    assert (
        refused([symlink("d", "../../.."), hardlink("x", "d/etc/shadow")]).reference
        == "bad-hard-link"
    )


def test_t11_hard_link_to_nothing_names_both_ends():
    problem = refused([hardlink("etc/passwd-copy", "etc/passwd")])
    assert "'etc/passwd-copy'" in problem.message
    assert "'etc/passwd'" in problem.message
    assert problem.found == "nothing of that name"


def test_t12_cycle():
    assert refused([hardlink("a", "b"), hardlink("b", "a")]).reference == "bad-hard-link"


def test_t13_hard_link_to_a_directory():
    assert refused([directory("d"), hardlink("x", "d")]).found == "a directory"
    assert refused([file("d/y"), hardlink("x", "d")]).found == "a directory"


@pytest.mark.parametrize("reverse", [False, True])
def test_t14_hard_link_to_what_the_same_layer_hides(reverse):
    upper = [hardlink("b", "a"), file(".wh.a")]
    if reverse:
        upper.reverse()
    assert refused([file("a")], upper).found == "nothing of that name"


def test_t14_hard_link_to_what_replaces_the_hidden():
    tree = merged([file("a", b"old")], [file(".wh.a"), file("a", b"new"), hardlink("b", "a")])
    assert show(tree.root) == {"/": 0o755, "a": b"new", "b": b"new"}


def test_t15_hard_link_to_a_symbolic_link():
    tree = merged([file("t", b"kept"), symlink("s", "t"), hardlink("h", "s")], [file("h", b"new")])
    assert show(tree.root) == {"/": 0o755, "t": b"kept", "s": "-> t", "h": b"new"}


def test_hard_links_share_their_inode_across_layers():
    tree = merged(
        [file("a", b"1")], [hardlink("x/b", "a")], [hardlink("c", "x/b"), file("a", b"2")]
    )
    assert lookup(tree.root, b"c") is lookup(tree.root, b"x/b")
    assert show(tree.root) == {"/": 0o755, "a": b"2", "c": b"1", "x/": 0o755, "x/b": b"1"}


def test_t16_the_last_of_one_name_wins_wholly():
    tree = merged([file("n", b"1"), directory("n"), file("n/child", b"2"), symlink("n", "x")])
    assert show(tree.root) == {"/": 0o755, "n": "-> x"}
    assert tree.stats.duplicates == 2
    again = merged([symlink("n", "x"), directory("n", 0o700), file("n/child", b"2")])
    assert show(again.root) == {"/": 0o755, "n/": 0o700, "n/child": b"2"}


def test_t17_directory_replaced_by_a_link():
    lower = [directory("d"), file("d/a", b"1"), file("d/e/f", b"2")]
    assert show(merged(lower, [symlink("d", "/etc")]).root) == {"/": 0o755, "d": "-> /etc"}
    assert (
        refused(lower, [file("d/e/g"), symlink("d", "/etc"), file("d/e/h")]).reference
        == "parent-not-directory"
    )
    assert (
        refused(lower, [file("d/g"), hardlink("d", "d/a"), file("d/h")]).reference
        == "parent-not-directory"
    )


def test_t27_devices():
    device = TarEntry(b"dev/sda", ord("4"), rdev=0x800), None, None
    tree = merged(
        [directory("dev", 0o711), device, file("dev/.hidden/x"), symlink("dev/fd", "/proc/self/fd")]
    )
    assert show(tree.root) == {"/": 0o755, "dev/": 0o711}
    assert tree.stats.dropped == 3
    assert (
        "'etc/sda'" in refused([(TarEntry(b"etc/sda", ord("4"), rdev=0x800), None, None)]).message
    )


def test_t45_members_of_all_layers_are_counted():
    tree = LayerTree(max_entries=3)
    tree.apply([file("a"), file("b")])
    with pytest.raises(ContentError, match="too many files") as caught:
        tree.apply([file("c"), file("d")], "layer 2")
    assert (caught.value.catalogue, caught.value.expected) == ("LIM", "at most 3")


def test_t51_live_mounts_are_only_names():
    paths = ["proc/1/mem", "sys/power/state", "run/x", "sysroot/ostree/y", "ostree/repo/config"]
    shown = show(merged([file(path, b"z") for path in paths]).root)
    assert [path for path, content in shown.items() if content == b"z"] == sorted(paths)


def test_from_the_archive_to_the_tree():
    layer = (
        member(b"./", kind=b"5", mode=0o750)
        + pax({b"mtime": b"1.5", b"SCHILY.xattr.user.a": b"1"})
        + member(b"./a", b"text", mode=0o640, uid=3)
        + member(b"./l", kind=b"2", link=b"a")
        + END
    )
    root = Node(stat.S_IFDIR | 0o755)
    stats = apply_layer(root, iter_entries([layer]))
    assert (stats.entries, show(root)) == (3, {"/": 0o750, "a": b"text", "l": "-> a"})
    node = lookup(root, b"a")
    assert node is not None
    assert (node.uid, node.mtime, node.mtime_ns, node.xattrs) == (
        3,
        1,
        500_000_000,
        ((b"user.a", b"1"),),
    )


def test_equal_attributes_are_one_object():
    layers = [
        [file("a", xattrs=((b"user.a", bytes(5)),))],
        [file("b", xattrs=((b"user.a", bytes(5)),))],
    ]
    root = merged(*layers).root
    first, second = lookup(root, b"a"), lookup(root, b"b")
    assert first is not None
    assert second is not None
    assert first.xattrs is second.xattrs


def test_a_file_needs_content():
    with pytest.raises(ValueError, match="content"):
        merged([(TarEntry(b"a", ord("0"), size=1), None, None)])


def test_depth_needs_no_recursion():
    path = "/".join(["d"] * 256)
    tree = merged([file(path, b"x")], [file(path.rpartition("/")[0] + "/.wh.d"), symlink("d", "x")])
    assert show(tree.root) == {"/": 0o755, "d": "-> x"}


# --- the model: paths to values, one layer after another, each rule in its plainest form ----------------------------------

_NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
_ENTRIES = st.one_of(
    st.builds(file, _NAMES, st.binary(min_size=1, max_size=2)),
    st.builds(directory, _NAMES, st.integers(0, 0o7777)),
    st.builds(symlink, _NAMES, _NAMES),
    st.builds(hardlink, _NAMES, _NAMES),
    st.builds(
        lambda path: file("/".join([*path.split("/")[:-1], ".wh." + path.split("/")[-1]])), _NAMES
    ),
    st.builds(lambda path: file(path + "/.wh..wh..opq"), _NAMES),
)


class Refusal(Exception):
    pass


def beneath(path: str, parent: str) -> bool:
    return path.startswith(parent + "/")


def model(layers: list[list]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for layer in layers:
        for entry, _, _ in layer:
            parent, _, base = entry.path.decode().rpartition("/")
            if base == ".wh..wh..opq":
                tree = {path: value for path, value in tree.items() if not beneath(path, parent)}
            elif base.startswith(".wh."):
                victim = "/".join(filter(None, [parent, base.removeprefix(".wh.")]))
                tree = {
                    path: value
                    for path, value in tree.items()
                    if path != victim and not beneath(path, victim)
                }
        for entry, inline, _ in layer:
            path = entry.path.decode()
            parts = path.split("/")
            if parts[-1].startswith(".wh."):
                continue
            for number in range(1, len(parts)):
                if not isinstance(tree.setdefault("/".join(parts[:number]), 0o755), int):
                    raise Refusal
            if entry.type == ord("5"):
                if not isinstance(tree.get(path), int):
                    tree[path] = 0
                tree[path] = entry.mode
                continue
            value: object = inline
            if entry.type == ord("2"):
                value = "-> " + entry.linkname.decode()
            if entry.type == ord("1"):
                value = tree.get(entry.linkname.decode())
                if value is None or isinstance(value, int):
                    raise Refusal
            tree = {other: kept for other, kept in tree.items() if not beneath(other, path)}
            tree[path] = value
    return tree


@given(st.lists(st.lists(_ENTRIES, max_size=12), min_size=1, max_size=4))
@settings(max_examples=300)
def test_same_as_the_model(layers):
    try:
        expected = model(layers)
    except Refusal:
        refused(*layers)
        return
    shown = show(merged(*layers).root)
    assert shown.pop("/") == 0o755
    assert {path.removesuffix("/"): value for path, value in shown.items()} == expected


@given(st.lists(st.lists(_ENTRIES, max_size=8), max_size=3))
@settings(max_examples=100)
def test_deterministic(layers):
    if problem := refusal(lambda: merged(*layers)):
        assert str(refused(*layers)) == str(problem)
    else:
        first, second = merged(*layers), merged(*layers)
        assert show(first.root) == show(second.root)
        assert first.stats == second.stats
