"""Our objects against those of the real ostree."""

import contextlib
import os
import shutil
import subprocess

import pytest
from bootc_ostree import objects, variant
from hypothesis import given
from hypothesis import strategies as st


def ostree(*arguments):
    return subprocess.run(
        ["ostree", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.real
@pytest.mark.root
def test_a_tree_gets_the_checksums_of_the_real_ostree(tmp_path):
    assert shutil.which("ostree"), "the ostree program is needed"
    tree = tmp_path / "tree"
    (tree / "sub/deeper").mkdir(parents=True)
    (tree / "file").write_bytes(b"content\n")
    (tree / "empty").write_bytes(b"")
    (tree / "sub/suid").write_bytes(b"x" * 5000)
    (tree / "sub/link").symlink_to("../file")
    (tree / "sub/naïve").write_bytes(b"utf-8 name")
    os.chown(tree / "sub/suid", 7, 8)
    (tree / "sub/suid").chmod(0o4755)
    os.setxattr(tree / "file", "user.b", b"2")
    os.setxattr(tree / "file", "user.a", b"\x00\xff")
    os.setxattr(tree / "sub", "user.dir", b"value")
    (tree / "sub/deeper").chmod(0o2750)
    repo = tmp_path / "repo"
    ostree("init", f"--repo={repo}", "--mode=bare")
    head = ostree(
        "commit",
        f"--repo={repo}",
        "-b",
        "x",
        f"--tree=dir={tree}",
        "--timestamp=2026-01-01T00:00:00Z",
        "-s",
        "hi",
    )

    def objects_of(kind):
        return {path.parent.name + path.stem for path in (repo / "objects").glob(f"*/*.{kind}")}

    made = {"file": set(), "dirmeta": set(), "dirtree": set()}

    import hashlib

    def visit(path):
        files, directories = [], []
        for name in os.listdir(path):
            place = path / name
            info = place.lstat()
            attributes = [
                (n.encode(), os.getxattr(place, n, follow_symlinks=False))
                for n in os.listxattr(place, follow_symlinks=False)
            ]
            if place.is_symlink():
                digest = objects.symlink_checksum(
                    info.st_uid, info.st_gid, os.readlink(place).encode(), attributes
                )
                files.append((name, digest))
                made["file"].add(digest.hex())
            elif place.is_dir():
                directories.append((name, *visit(place)))
            else:
                header = objects.file_header(info.st_uid, info.st_gid, info.st_mode, "", attributes)
                digest = hashlib.sha256(header + place.read_bytes()).digest()
                files.append((name, digest))
                made["file"].add(digest.hex())
        info = path.lstat()
        attributes = [(n.encode(), os.getxattr(path, n)) for n in os.listxattr(path)]
        meta = hashlib.sha256(
            objects.dirmeta(info.st_uid, info.st_gid, info.st_mode, attributes)
        ).digest()
        listing = hashlib.sha256(objects.dirtree(files, directories)).digest()
        made["dirmeta"].add(meta.hex())
        made["dirtree"].add(listing.hex())
        return listing, meta

    root_tree, root_meta = visit(tree)
    for kind, names in made.items():
        assert names == objects_of(kind), kind
    raw = (repo / f"objects/{head[:2]}/{head[2:]}.commit").read_bytes()
    parsed = objects.parse_commit(raw)
    assert (parsed["tree"], parsed["meta"], parsed["subject"]) == (root_tree, root_meta, "hi")
    binding = parsed["metadata"].pop("ostree.ref-binding")
    assert binding == ["x"]
    assert parsed["metadata"] == {}


@pytest.mark.real
def test_a_commit_of_ours_is_read_by_the_real_ostree(tmp_path):
    import hashlib

    repo = tmp_path / "repo"
    ostree("init", f"--repo={repo}", "--mode=bare-user")
    listing, meta = objects.dirtree([], []), objects.dirmeta(0, 0, 0o40755)
    names = [hashlib.sha256(data).hexdigest() for data in (listing, meta)]
    big = "v" * 70000
    made = objects.commit(
        bytes.fromhex(names[0]),
        bytes.fromhex(names[1]),
        metadata={"ostree.manifest-digest": "sha256:" + "0" * 64, "big": big, "a": ""},
        timestamp=1767225600,
    )
    head = hashlib.sha256(made).hexdigest()
    for name, suffix, data in (
        (names[0], "dirtree", listing),
        (names[1], "dirmeta", meta),
        (head, "commit", made),
    ):
        place = repo / "objects" / name[:2]
        place.mkdir(exist_ok=True)
        (place / f"{name[2:]}.{suffix}").write_bytes(data)
    (repo / "refs/heads/ours").write_text(head + "\n")
    ostree("fsck", f"--repo={repo}", "--quiet")
    assert (
        ostree("show", f"--repo={repo}", "--print-metadata-key=ostree.manifest-digest", "ours")
        == f"'sha256:{'0' * 64}'"
    )
    assert ostree("show", f"--repo={repo}", "--print-metadata-key=big", "ours") == f"'{big}'"
    assert "Date:  2026-01-01 00:00:00 +0000" in ostree("show", f"--repo={repo}", "ours")
    assert objects.parse_commit(made)["metadata"]["big"] == big


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("sha256:abc", "sha256_3A_abc"),
        ("docker://quay.io/org/img:tag", "docker_3A__2F__2F_quay_2E_io/org/img_3A_tag"),
        ("registry:quay.io/coreos/fedora:latest", "registry_3A_quay_2E_io/coreos/fedora_3A_latest"),
        ("a_b/", "a__b_2F_"),
    ],
)
def test_ref_escaping(text, escaped):
    assert objects.escape_ref(text) == escaped


@given(
    st.lists(
        st.tuples(
            st.text(
                alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
                max_size=300,
            ),
            st.binary(max_size=40),
        ),
        max_size=40,
    ),
    st.integers(0, 2**64 - 1),
)
def test_round_trip(pairs, number):
    value = (pairs, number, [(key, ("ay", data)) for key, data in pairs])
    assert variant.decode("(a(say)ta{sv})", variant.encode("(a(say)ta{sv})", value)) == value


_NAMES = st.text(
    alphabet=st.characters(exclude_characters="\0/", exclude_categories=["Cs"]),
    min_size=1,
    max_size=300,
)


@given(
    st.dictionaries(_NAMES, st.binary(min_size=32, max_size=32), max_size=30),
    st.dictionaries(_NAMES, st.binary(min_size=64, max_size=64), max_size=30),
)
def test_lists_are_written_as_the_general_encoder_writes_them(files, directories):
    first = list(files.items())
    second = [(name, both[:32], both[32:]) for name, both in directories.items()]
    expected = variant.encode(objects.DIRTREE, (sorted(first), sorted(second)))
    assert objects.dirtree(first, second) == expected
    assert objects.parse_dirtree(expected) == (sorted(first), sorted(second))


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_value_or_a_valueerror(data):
    for parse in (objects.parse_commit, objects.parse_dirtree):
        with contextlib.suppress(ValueError):
            parse(data)
