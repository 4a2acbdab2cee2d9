"""The merge of /etc: every rule, and the laws that hold for all trees (catalogue B18, B19)."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootc_core import limits
from bootc_core.errors import ContentError, StorageError
from bootc_core.fs.etc_merge import (
    MergePlan,
    Tree,
    build_merged,
    changes_text,
    conflicts,
    merged,
    plan,
    populate,
    scan_directory,
    scan_tree,
)
from bootc_core.fs.owners import OwnerStore
from bootc_core.models.tree import Node

ROOT = os.geteuid() == 0
Spec = Mapping[str, Any]


def content(node: Node) -> BinaryIO:
    assert node.object is not None
    return io.BytesIO(node.object)


def file(data: bytes | str, mode: int = 0o644, **more: Any) -> Node:
    if isinstance(data, str):
        data = data.encode()
    small = len(data) <= 8
    return Node(
        stat.S_IFREG | mode,
        size=len(data),
        inline=data if small else None,
        object=None if small else data,
        **more,
    )


def link(target: str, **more: Any) -> Node:
    return Node(stat.S_IFLNK | 0o777, inline=target.encode(), **more)


def directory(children: Spec | None = None, mode: int = 0o755, **more: Any) -> Node:
    """``"name": "text"`` is a file, a dict a directory, anything else a node as it is."""
    node = Node(stat.S_IFDIR | mode, **more)
    node.children = {}
    for name, child in (children or {}).items():
        if isinstance(child, str):
            child = file(child)
        elif isinstance(child, dict):
            child = directory(child)
        node.children[name.encode()] = child
    return node


def tree(children: Spec | None) -> Tree:
    return scan_tree(directory(children), content)


def table(one: Tree) -> dict[bytes, tuple[Any, ...]]:
    """Everything that the merge promises about a tree, comparable."""
    result: dict[bytes, tuple[Any, ...]] = {}
    for path, entry in one.entries.items():
        data = b""
        if entry.kind == "f":
            with one.open(path) as stream:
                data = stream.read() or b""
        result[path] = (
            entry.kind,
            entry.mode if entry.kind != "l" else None,
            entry.uid,
            entry.gid,
            entry.target,
            data,
            tuple(pair for pair in entry.xattrs if pair[0] != b"security.selinux"),
        )
    return result


def result_of(current: Tree, new: Tree, changes: MergePlan) -> dict[bytes, tuple[Any, ...]]:
    items = merged(current, new, changes)
    out = {}
    tables = {id(current): table(current), id(new): table(new)}
    for path, (source, origin, _) in items.items():
        out[path] = tables[id(source)][origin]
    return out


# --- one rule, one row -------------------------------------------------------------------

FIFO = Node(stat.S_IFIFO | 0o644)
ROWS: dict[str, tuple[Spec, Spec, Spec, dict[str, Any], Spec | None]] = {
    # pristine, current, new; fields of the plan that are not empty; result (None: conflict)
    "nothing": ({"a": "1"}, {"a": "1"}, {"a": "2"}, {}, {"a": "2"}),
    "new default": ({}, {}, {"a": "1"}, {}, {"a": "1"}),
    "default gone": ({"a": "1"}, {"a": "1"}, {}, {}, {}),
    "added": ({}, {"a": "1"}, {}, {"added": ["a"]}, {"a": "1"}),
    "added on both sides": ({}, {"a": "1"}, {"a": "2"}, {"added": ["a"]}, {"a": "1"}),
    "added directory": (
        {},
        {"d": {"a": "1", "e": {"b": "2"}}},
        {"x": ""},
        {"added": ["d", "d/a", "d/e", "d/e/b"]},
        {"d": {"a": "1", "e": {"b": "2"}}, "x": ""},
    ),
    "added directory on both sides": (
        {},
        {"d": {"a": "1"}},
        {"d": {"b": "2"}},
        {"added": ["d", "d/a"]},
        {"d": {"a": "1", "b": "2"}},
    ),
    "content": ({"a": "1"}, {"a": "2"}, {"a": "3"}, {"modified": ["a"]}, {"a": "2"}),
    "large content": (
        {"a": "1" * 999},
        {"a": "1" * 998 + "2"},
        {"a": "1" * 999},
        {"modified": ["a"]},
        {"a": "1" * 998 + "2"},
    ),
    "target": (
        {"a": link("x")},
        {"a": link("y")},
        {"a": link("z")},
        {"modified": ["a"]},
        {"a": link("y")},
    ),
    "modified and default gone": ({"a": "1"}, {"a": "2"}, {}, {"modified": ["a"]}, {"a": "2"}),
    "mode": (
        {"a": "1"},
        {"a": file("1", 0o600)},
        {"a": "2"},
        {"modified": ["a"]},
        {"a": file("1", 0o600)},
    ),
    "owner": (
        {"a": "1"},
        {"a": file("1", gid=5)},
        {"a": "2"},
        {"modified": ["a"]},
        {"a": file("1", gid=5)},
    ),
    "attribute only": (
        {"a": file("1", xattrs=((b"user.a", b"1"),))},
        {"a": file("1", xattrs=((b"user.a", b"2"),))},
        {"a": "2"},
        {"modified": ["a"]},
        {"a": file("1", xattrs=((b"user.a", b"2"),))},
    ),
    "a label does not count": (
        {"a": file("1", xattrs=((b"security.selinux", b"x"),))},
        {"a": file("1", xattrs=((b"security.selinux", b"y\0"),))},
        {"a": "2"},
        {},
        {"a": "2"},
    ),
    "a time does not count": (
        {"a": file("1", mtime=1)},
        {"a": file("1", mtime=2)},
        {"a": "2"},
        {},
        {"a": "2"},
    ),
    "mode of a directory": (
        {"d": {"a": "1"}},
        {"d": directory({"a": "1"}, 0o700)},
        {"d": {"a": "2"}},
        {"modified": ["d"]},
        {"d": directory({"a": "2"}, 0o700)},
    ),
    "removed": ({"a": "1", "b": ""}, {"b": ""}, {"a": "2", "b": ""}, {"removed": ["a"]}, {"b": ""}),
    "removed on both sides": ({"a": "1"}, {}, {}, {"removed": ["a"]}, {}),
    "removed directory": (
        {"d": {"a": "1", "e": {"b": ""}}},
        {},
        {"d": {"a": "2", "e": {"b": ""}, "new": ""}},
        {"removed": ["d"]},
        {},
    ),
    "removed, now a directory": ({"a": "1"}, {}, {"a": {"b": ""}}, {"removed": ["a"]}, {}),
    "readded": (
        {"d": {"a": "1", "b": "2"}},
        {"d": {"a": "9", "b": "2"}},
        {},
        {"modified": ["d/a"], "readded": ["d"]},
        {"d": {"a": "9"}},
    ),
    "readded, two levels": (
        {"d": {"e": {"a": "1"}}},
        {"d": {"e": {"a": "1", "n": "2"}}},
        {"x": ""},
        {"added": ["d/e/n"], "readded": ["d", "d/e"]},
        {"d": {"e": {"n": "2"}}, "x": ""},
    ),
    "readded in place of a file": (
        {"d": {"a": "1"}},
        {"d": {"a": "9"}},
        {"d": "now a file"},
        {"modified": ["d/a"], "readded": ["d"]},
        {"d": {"a": "9"}},
    ),
    "file to link": (
        {"a": "1"},
        {"a": link("b")},
        {"a": "2"},
        {"modified": ["a"]},
        {"a": link("b")},
    ),
    "directory to file": (
        {"d": {"a": "1"}},
        {"d": "x"},
        {},
        {"modified": ["d"]},
        {"d": "x"},
    ),
    "local link in place of a directory": (
        {"d": {"a": "1"}},
        {"d": link("/var/d")},
        {"d": {"a": "2", "b": ""}},
        {"modified": ["d"]},
        {"d": link("/var/d")},
    ),
    "local directory in place of a file": (
        {"d": "1"},
        {"d": {"a": "1"}},
        {"d": "2"},
        {"added": ["d/a"], "modified": ["d"]},
        {"d": {"a": "1"}},
    ),
    "local file, new directory": (
        {"a": "1"},
        {"a": "2"},
        {"a": {"b": ""}},
        {"modified": ["a"], "conflicts": ["File 'a' now defaults to a directory in new etc"]},
        None,
    ),
    "local link, new directory": (
        {},
        {"a": link("x")},
        {"a": {"b": ""}},
        {"added": ["a"], "conflicts": ["File 'a' now defaults to a directory in new etc"]},
        None,
    ),
    "local directory, new file": (
        {},
        {"d": {"a": "1"}},
        {"d": "x"},
        {
            "added": ["d", "d/a"],
            "conflicts": ["Directory 'd' now defaults to a file in new etc"],
        },
        None,
    ),
    "changed directory, new file": (
        {"d": {}},
        {"d": directory({}, 0o700)},
        {"d": link("x")},
        {"modified": ["d"], "conflicts": ["Directory 'd' now defaults to a file in new etc"]},
        None,
    ),
    "special file": ({}, {"p": FIFO, "a": "1"}, {}, {"skipped": ["p"], "added": ["a"]}, {"a": "1"}),
    "special file of the image": ({"p": FIFO}, {"p": FIFO}, {"p": FIFO}, {}, {"p": FIFO}),
    "file to special file": (
        {"a": "1"},
        {"a": FIFO},
        {"a": "2"},
        {"skipped": ["a"], "removed": ["a"]},
        {},
    ),
    "stamp of systemd": ({".updated": ""}, {".updated": "9"}, {".updated": "2"}, {}, {}),
    "same name below": (
        {"d": {}},
        {"d": {".updated": ""}},
        {"d": {}},
        {"added": ["d/.updated"]},
        {"d": {".updated": ""}},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rule(name: str) -> None:
    pristine, current, new, fields, result = ROWS[name]
    changes = plan(tree(pristine), tree(current), tree(new))
    for field in ("added", "modified", "removed", "readded", "skipped"):
        found = [path.decode() for path in getattr(changes, field)]
        assert found == fields.get(field, []), field
    assert [conflict.reason for conflict in changes.conflicts] == fields.get("conflicts", [])
    if result is None:
        with pytest.raises(StorageError) as caught:
            merged(tree(current), tree(new), changes)
        assert caught.value.message == "Merge conflicts found in etc"
        assert fields["conflicts"][0] in (caught.value.found or "")
    else:
        assert result_of(tree(current), tree(new), changes) == table(tree(result))


def test_metadata_of_the_directory_itself() -> None:
    changed = scan_tree(directory({"a": "1"}, 0o711), content)
    changes = plan(tree({"a": "1"}), changed, tree({"a": "2"}))
    assert changes.modified == (b"",)
    assert merged(changed, tree({"a": "2"}), changes)[b""][2].mode == 0o711


def test_all_conflicts_are_named() -> None:
    names = [f"n{number:02}" for number in range(12)]
    changes = plan(tree({}), tree(dict.fromkeys(names, "")), tree({name: {} for name in names}))
    with pytest.raises(StorageError) as caught:
        changes.check()
    found = caught.value.found or ""
    assert "'n00'" in found
    assert found.endswith("and 4 more")
    assert caught.value.hint


def test_local_file_takes_the_label_of_the_new_image() -> None:
    labels = {name: ((b"security.selinux", name.encode()),) for name in ("old", "own", "new")}
    pristine = tree({"a": file("1", xattrs=labels["old"])})
    current = tree({"a": file("2", xattrs=labels["own"]), "b": file("3", xattrs=labels["own"])})
    new = tree({"a": file("1", xattrs=labels["new"])})
    items = merged(current, new, plan(pristine, current, new))
    assert items[b"a"][2].xattrs == labels["new"]
    assert items[b"b"][2].xattrs == labels["own"]


def test_text_of_changes() -> None:
    changes = plan(
        tree({"gone": "", "m": "1"}), tree({"m": "2", "a\n": ""}), tree({"m": {}, "gone": ""})
    )
    assert list(changes_text(changes)) == [
        'Added "a\\n"',
        'Modified "m"',
        'Removed "gone"',
        "Unmergable File 'm' now defaults to a directory in new etc",
    ]


class Counting(io.BytesIO):
    """A stream that gives little at once, and counts what was asked of it."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert 0 < size <= limits.CHUNK_BYTES
        Counting.most = max(Counting.most, size)
        return super().read(min(size, 1000))


def test_contents_are_streamed() -> None:
    data = bytes(range(256)) * 4096
    big = Node(stat.S_IFREG | 0o644, size=len(data), object=data)

    def pieces(node: Node) -> BinaryIO:
        return Counting(node.object or b"")

    one, two = (scan_tree(directory({"a": big}), pieces) for _ in range(2))
    assert plan(one, two, one) == MergePlan()
    assert Counting.most == limits.CHUNK_BYTES


def test_contents_are_read_only_where_they_can_tell() -> None:
    def never(node: Node) -> BinaryIO:
        raise AssertionError("read")

    sized = [
        scan_tree(directory({"a": Node(stat.S_IFREG | 0o644, size=size, object=b"x")}), never)
        for size in (9, 10)
    ]
    assert plan(sized[0], sized[1], sized[0]).modified == (b"a",)


# --- laws --------------------------------------------------------------------------------


names = st.sampled_from(["a", "a-b", "b", "c"])
leaves = st.one_of(
    st.sampled_from(["", "1", "2", "3 is long enough"]),
    st.sampled_from(["x", "y"]).map(link),
    st.builds(file, st.sampled_from(["1", "2"]), st.sampled_from([0o600, 0o755])),
    st.builds(lambda: file("1", uid=3)),
)
trees = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda inner: st.dictionaries(
        names,
        st.one_of(leaves, inner, inner.map(lambda value: directory(value, 0o700))),
        max_size=4,
    ),
    max_leaves=14,
)


@given(trees, trees)
def test_no_local_change_gives_the_new_image(pristine: Spec, new: Spec) -> None:
    changes = plan(tree(pristine), tree(pristine), tree(new))
    assert changes == MergePlan()
    assert result_of(tree(pristine), tree(new), changes) == table(tree(new))


@given(trees, trees)
def test_unchanged_image_gives_the_current_state(pristine: Spec, current: Spec) -> None:
    changes = plan(tree(pristine), tree(current), tree(pristine))
    assert not changes.conflicts
    assert result_of(tree(current), tree(pristine), changes) == table(tree(current))


@given(trees, trees, trees)
def test_conflicts_alone_are_those_of_the_plan(pristine: Spec, current: Spec, new: Spec) -> None:
    old, now, then = tree(pristine), tree(current), tree(new)
    assert conflicts(old, now, then).conflicts == plan(old, now, then).conflicts


@given(trees, trees, trees)
def test_local_always_wins(pristine: Spec, current: Spec, new: Spec) -> None:
    old, now, then = tree(pristine), tree(current), tree(new)
    changes = plan(old, now, then)
    if changes.conflicts:
        with pytest.raises(StorageError):
            merged(now, then, changes)
        return
    result = result_of(now, then, changes)
    mine, theirs = table(now), table(then)
    changed = {*changes.added, *changes.modified, *changes.readded}
    for path in changed:
        assert result[path] == mine[path]
    for path in changes.removed:
        assert not any(item == path or item.startswith(path + b"/") for item in result)
    for path in result:
        assert path in changed or result[path] == theirs[path]
        parent = path.rpartition(b"/")[0]
        assert not path or result[parent][0] == "d"
    for path in theirs:
        covered = [
            item
            for item in (*changes.removed, *changed)
            if path == item or path.startswith(item + b"/")
        ]
        assert path in result or covered
    # Once more, from the result: nothing is left to do.
    again = plan(then, _Table(result), then)
    if not again.conflicts:
        assert result_of(_Table(result), then, again) == result


class _Table:
    """A tree made of a table, for a second merge."""

    def __init__(self, rows: dict[bytes, tuple[Any, ...]]) -> None:
        from bootc_core.fs.etc_merge import Entry

        self._data = {path: row[5] for path, row in rows.items()}
        self.entries = {
            path: Entry(
                row[0],
                row[1] or 0,
                row[2],
                row[3],
                target=row[4],
                size=len(row[5]),
                xattrs=row[6],
            )
            for path, row in rows.items()
        }

    def open(self, path: bytes) -> BinaryIO:
        return io.BytesIO(self._data[path])


@settings(max_examples=40)
@given(trees, trees, trees)
@pytest.mark.parametrize("privileged", [pytest.param(True, marks=pytest.mark.root), False])
def test_on_disk_as_in_theory(privileged: bool, pristine: Spec, current: Spec, new: Spec) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        store = None if privileged else OwnerStore(place / "owners.json")
        views = {name: store.below(name.encode()) if store else None for name in ("now", "out")}
        populate(place / "now", directory(current), content, views["now"])
        now = scan_directory(place / "now", views["now"])
        assert table(now) == table(tree(current))
        changes = plan(tree(pristine), now, tree(new))
        assert changes == plan(tree(pristine), tree(current), tree(new))
        if changes.conflicts:
            return
        build_merged(place / "out", now, tree(new), changes, views["out"])
        if store:
            store.save()
            views["out"] = OwnerStore.load(store.file).below(b"out")
        result = table(scan_directory(place / "out", views["out"]))
        assert result == result_of(tree(current), tree(new), changes)
    finally:
        shutil.rmtree(place)


# --- on disk -----------------------------------------------------------------------------


def rich_tree() -> Node:
    shared = file("shared content", 0o640, mtime=1_700_000_000, mtime_ns=123456789)
    root = directory(
        {
            "plain": file("x", 0o444, uid=12, gid=34, mtime=5, mtime_ns=6),
            "setuid": file("x", 0o4755),
            "private": file("s3cret", 0o000),
            "caps": file("x", xattrs=((b"security.capability", CAPABILITY),)),
            "marked": file("x", xattrs=((b"user.note", b"\0\xff"),)),
            "link": link("../../etc/passwd", uid=7),
            "first": shared,
            "fifo": Node(stat.S_IFIFO | 0o620),
            "null": Node(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
            "locked": directory({"second": shared, "a": "1"}, 0o555, mtime=77),
            ".updated": "stamp",
        },
        0o751,
        mtime=99,
        mtime_ns=1,
    )
    assert root.children is not None
    root.children[b"caf\xc3\xa9 \xff\n"] = file("odd name")
    return root


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.mark.root
def test_populate_as_root(tmp_path: Path) -> None:
    place = tmp_path / "etc"
    populate(place, rich_tree(), content)
    info = {path.name: path.lstat() for path in [place, *place.iterdir()]}
    assert (info["plain"].st_uid, info["plain"].st_gid) == (12, 34)
    assert stat.S_IMODE(info["plain"].st_mode) == 0o444
    assert info["plain"].st_mtime_ns == 5_000_000_006
    assert stat.S_IMODE(info["setuid"].st_mode) == 0o4755
    assert stat.S_IMODE(info["private"].st_mode) == 0
    assert os.getxattr(place / "caps", "security.capability") == CAPABILITY
    assert os.getxattr(place / "marked", "user.note") == b"\0\xff"
    assert os.readlink(place / "link") == "../../etc/passwd"
    assert info["link"].st_uid == 7
    assert (place / "locked/second").stat().st_ino == info["first"].st_ino
    assert info["first"].st_mtime_ns == 1_700_000_000_123456789
    assert stat.S_ISFIFO(info["fifo"].st_mode)
    assert info["null"].st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE(info["locked"].st_mode) == 0o555
    assert info["locked"].st_mtime == 77
    assert stat.S_IMODE(info["etc"].st_mode) == 0o751
    assert info["etc"].st_mtime_ns == 99_000_000_001
    assert ".updated" not in info
    assert (place / os.fsdecode(b"caf\xc3\xa9 \xff\n")).read_bytes() == b"odd name"
    assert table(scan_directory(place)) == table(scan_tree(rich_tree(), content))


def test_populate_as_an_ordinary_user(tmp_path: Path) -> None:
    store = OwnerStore(tmp_path / "owners.json")
    populate(tmp_path / "etc", rich_tree(), content, store.below(b"etc"))
    store.save()
    place = tmp_path / "etc"
    for path in place.rglob("*"):
        info = path.lstat()
        assert info.st_uid == os.geteuid()
        assert not info.st_mode & 0o6000  # nobody's privileges for the wrong user
    assert (place / "private").read_bytes() == b"s3cret"
    assert not (place / "null").exists()
    assert (place / "locked/second").stat().st_ino == (place / "first").stat().st_ino
    view = OwnerStore.load(store.file).below(b"etc")
    assert table(scan_directory(place, view)) == table(scan_tree(rich_tree(), content))


def test_an_ordinary_user_s_changes_count(tmp_path: Path) -> None:
    store = OwnerStore(tmp_path / "owners.json")
    view = store.below(b"etc")
    image = directory({"shadow": file("x", 0o400, gid=42), "b": "1", "c": file("1", uid=9)})
    populate(tmp_path / "etc", image, content, view)
    place = tmp_path / "etc"
    (place / "shadow").chmod(0o644)  # a chmod on disk is a change ...
    (place / "own").write_text("mine")
    (place / "own").chmod(0o600)
    (place / "c").unlink()
    (place / "c").write_text("2")  # ... and a new file keeps the owner that its path had
    now = scan_directory(place, view)
    changes = plan(scan_tree(image, content), now, scan_tree(image, content))
    assert (changes.added, changes.modified) == ((b"own",), (b"c", b"shadow"))
    assert (now.entries[b"shadow"].mode, now.entries[b"shadow"].gid) == (0o644, 42)
    assert (now.entries[b"own"].uid, now.entries[b"own"].mode) == (0, 0o600)
    assert now.entries[b"c"].uid == 9


def test_nothing_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    place = tmp_path / "etc"
    place.mkdir()
    (place / "dir").symlink_to(outside)
    (place / "file").symlink_to(outside / "secret")
    now = scan_directory(place)
    assert {path: entry.kind for path, entry in now.entries.items()} == {
        b"": "d",
        b"dir": "l",
        b"file": "l",
    }
    with pytest.raises(StorageError):
        now.open(b"file")
    with pytest.raises(StorageError):
        now.open(b"dir/secret")
    target = tmp_path / "new"
    target.symlink_to(outside)
    with pytest.raises(StorageError):
        populate(target, directory({"a": "1"}), content)
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_hostile_names_are_refused(tmp_path: Path) -> None:
    for name in (b"..", b".", b"", b"a/b", b"a\0b", b"x" * 300):
        root = directory()
        assert root.children is not None
        root.children[name] = file("x")
        place = tmp_path / "etc"
        with pytest.raises(StorageError):
            populate(place, root, content)
        shutil.rmtree(place)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_wrong_trees(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        scan_directory(tmp_path / "gone")  # not "everything was removed"
    assert table(scan_tree(None, content)) == table(tree({}))
    with pytest.raises(ContentError, match="something else"):
        scan_tree(file("x"), content)
    store = OwnerStore(tmp_path / "o") if not ROOT else None
    populate(tmp_path / "empty", None, content, store.below(b"e") if store else None)
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(StorageError):
        populate(tmp_path / "empty", None, content)  # only a fresh directory


def test_too_deep(tmp_path: Path) -> None:
    place = tmp_path / "etc"
    os.makedirs(place / "/".join("d" * (limits.DEPTH + 3)))
    with pytest.raises(ContentError) as caught:
        scan_directory(place)
    assert caught.value.catalogue == "LIM"


@pytest.mark.root
def test_mount_points_are_noted_and_not_copied(tmp_path: Path) -> None:
    place = tmp_path / "etc"
    populate(place, directory({"d": {"a": "1"}, "b": "1"}), content)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place / "d")], check=True)
    try:
        (place / "d/huge").write_text("x")
        pristine, new = tree({"d": {"a": "1"}, "b": "1"}), tree({"d": {"a": "2"}, "b": "2"})
        now = scan_directory(place)
        changes = plan(pristine, now, new)
        assert changes == MergePlan(skipped=(b"d",))
        build_merged(tmp_path / "out", now, new, changes)
        assert (tmp_path / "out/d/a").read_text() == "2"
        assert not (tmp_path / "out/d/huge").exists()
    finally:
        subprocess.run(["umount", str(place / "d")], check=True)


@pytest.mark.root
def test_hard_links_within_current_survive(tmp_path: Path) -> None:
    place = tmp_path / "etc"
    populate(place, directory({"a": "1"}), content)
    (place / "b").write_text("local")
    os.link(place / "b", place / "c")
    now = scan_directory(place)
    new = tree({"a": "2", "b": "image"})
    build_merged(tmp_path / "out", now, new, plan(tree({"a": "1"}), now, new))
    assert (tmp_path / "out/b").stat().st_ino == (tmp_path / "out/c").stat().st_ino
    assert (tmp_path / "out/b").read_text() == "local"


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(StorageError) as caught:
            populate(tmp_path / "etc", directory({"a": "x" * 200_000}), content)
        assert caught.value.catalogue == "SPC"
        assert str(tmp_path / "etc/a") in caught.value.message
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_many_files() -> None:  # B18
    many = {f"{number:05}": file("") for number in range(20_000)}
    one, two = tree({"d": many}), tree({"d": many})
    assert plan(one, two, one) == MergePlan()
    gone = plan(one, tree({}), one)
    assert gone.removed == (b"d",)
    assert list(merged(tree({}), one, gone)) == [b""]
