"""Images against the real mkcomposefs, byte for byte, and mounted by the kernel.

The program knows SHA-256 only, so these dumps have SHA-256 objects; SHA-512 is shown by the vectors of ``test_erofs``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bootc_composefs import dump
from bootc_composefs.erofs import write_image
from bootc_composefs.erofs_format import backing_path, is_whiteout

from bootc_core.fs import verity
from bootc_core.models.tree import Node, walk

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).parents[2] / "tools" / "mkcomposefs.sh"
TREES = 300


@pytest.fixture(scope="module")
def mkcomposefs() -> str:
    """A command that runs the real program; fetched once into the cache."""
    run = subprocess.run([SCRIPT], capture_output=True, text=True)
    if run.returncode == 3 and not os.environ.get("CI"):
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def real_image(command: str, source: Path, *options: str) -> bytes | None:
    """What the real program makes of a dump; ``None`` if it refuses it."""
    image = source.with_suffix(".erofs")
    image.unlink(missing_ok=True)
    run = subprocess.run([command, "--from-file", *options, source, image], capture_output=True)
    if run.returncode != 0:
        return None
    data = image.read_bytes()
    image.unlink()
    return data


NAMES = [
    b"a",
    b"b",
    b"-",
    b".x",
    b"..y",
    b".-",
    b"!",
    b"~",
    b"A B",
    b"\xff\xfe",
    b"n\n",
    b"\\",
    b"@",
    b"=",
]
NAME_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789-_.ABCDEFGHIJKLMNOPQRSTUVWXY"
ATTRIBUTES = [
    b"user.a",
    b"user.b",
    b"user.",
    b"user.overlay.opaque",
    b"security.selinux",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"system.posix_acl_accessx",
    b"system.other",
    b"trusted.a",
    b"trusted.z",
    b"trusted.overlay.opaque",
    b"trusted.overlay.metacopy",
    b"trusted.overlay.redirect",
    b"trusted.overlay.overlay.x",
    b"lustre.lov",
    b"plain",
]


class Maker:
    """A dump of pseudo-random entries, made to meet the corners of the format."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.wide = self.random.random() < 0.3  # ids and times that need long inodes
        self.whiteouts = self.random.random() < 0.3
        self.values = [
            self.random.randbytes(self.random.choice([0, 1, 3, 8, 30, 200])) for _ in range(12)
        ]

    def choice(self, *values: int) -> int:
        return self.random.choice(values)

    def name(self) -> bytes:
        kind = self.random.random()
        if kind < 0.2:
            return self.random.choice(NAMES)
        if kind < 0.25:
            return b"%02x" % self.random.randrange(256)
        length = self.choice(3, 8, 8, 20, 60, 255)
        return self.text(NAME_BYTES, length)

    def text(self, alphabet: bytes, length: int) -> bytes:
        """A text of some letters; ``alphabet`` has a power of two of them."""
        return self.random.randbytes(length).translate(alphabet * (256 // len(alphabet)))

    def xattrs(self) -> bytes:
        if self.random.random() < 0.5:
            return b""
        names = self.random.sample(ATTRIBUTES, self.choice(1, 1, 2, 3, 6))
        return b"".join(
            b" %s=%s"
            % (dump.escape(name, equals=True), dump.escape(self.random.choice(self.values)))
            for name in names
        )

    def metadata(self) -> tuple[int, int, int, bytes]:
        """Permission bits, owner, group, time."""
        seconds = 1_700_000_000 + (self.choice(0, 1, 86400, 2**33) if self.wide else 0)
        nanoseconds = self.choice(0, 0, 1, 999_999_999) if self.wide else 0
        ids = (0, 0, 0, 1000, 65535, 65536, 2**32 - 1) if self.wide else (0, 0, 1000)
        mode = self.choice(0o644, 0o755, 0o4755, 0o1777, 0)
        return mode, self.choice(*ids), self.choice(*ids), b"%d.%d" % (seconds, nanoseconds)

    def line(
        self, path: bytes, kind: int, *, size: int = 0, rdev: int = 0, rest: bytes = b"- - -"
    ) -> bytes:
        mode, uid, gid, time = self.metadata()
        links = self.choice(1, 1, 1, 2, 65536) if self.wide else 1
        fields = (dump.escape(path), size, kind | mode, links, uid, gid, rdev, time, rest)
        return b"%s %d %o %d %d %d %d %s %s" % fields + self.xattrs() + b"\n"

    def regular(self, path: bytes) -> bytes:
        if self.random.random() < 0.5:
            size = self.choice(0, 1, 30, 64, 65, 500, 2047, 2048, 2049, 4095, 4096, 4097, 5000)
            content = self.random.randbytes(size) if size <= 65 else self.text(NAME_BYTES, size)
            field = dump.escape(content) or b"-"
            return self.line(
                path,
                stat.S_IFREG,
                size=size,
                rest=b"- %s -" % (rb"\x2d" if content == b"-" else field),
            )
        size = self.choice(1, 65, 4096, 4097, 100_000, 2**31, 2**32, 2**43, 2**43 + 1, 2**45)
        digest = hashlib.sha256(b"%d" % self.random.randrange(50)).digest()
        name, path_ = digest.hex().encode(), backing_path(digest)
        form = self.random.random()
        rest = b"%s - %s" % (path_, name)
        if form < 0.05:
            rest = b"- - %s" % name
        elif form < 0.1:
            rest = b"%s - -" % path_
        elif form < 0.13:
            rest = b"- - -"
        elif form < 0.16:
            rest = b"/odd/path - %s" % name
        return self.line(path, stat.S_IFREG, size=size, rest=rest)

    def other(self, path: bytes) -> bytes:
        kind = self.random.random()
        if kind < 0.5:
            length = self.choice(1, 5, 40, 300, 1000, 3000, 4000, 4095)
            target = self.text(b"abcdef/.", length)
            return self.line(path, stat.S_IFLNK, size=len(target), rest=b"%s - -" % target)
        if kind < 0.6 and self.whiteouts:
            return self.line(path, stat.S_IFCHR)
        if kind < 0.7:
            return self.line(path, stat.S_IFIFO)
        if kind < 0.75:
            return self.line(path, stat.S_IFSOCK)
        return self.line(
            path,
            self.choice(stat.S_IFCHR, stat.S_IFBLK),
            rdev=self.choice(1, 259, 2**20, 2**32 - 1),
        )

    def dump(self, lines: int) -> bytes:
        directories = [b""]
        files: list[bytes] = []
        used: set[bytes] = set()
        out = [self.line(b"/", stat.S_IFDIR)]
        while len(out) < lines:
            path = self.random.choice(directories) + b"/" + self.name()
            if path in used:
                continue
            used.add(path)
            kind = self.random.random()
            if kind < 0.2:
                directories.append(path)
                out.append(self.line(path, stat.S_IFDIR))
                continue
            if kind < 0.27 and files:
                target = dump.escape(self.random.choice(files))
                out.append(b"%s 0 @100644 1 0 0 0 0.0 %s - -\n" % (dump.escape(path), target))
            elif kind < 0.75:
                out.append(self.regular(path))
            else:
                out.append(self.other(path))
            files.append(path)
        return b"".join(out)


def compare(command: str, folder: Path, seed: int) -> str:
    """``same``, ``refused`` (by the real program), or what differs."""
    maker = Maker(seed)
    text = maker.dump(maker.random.randint(0, 400))
    source = folder / f"{seed}.dump"
    source.write_bytes(text)
    parsed = dump.parse(text)
    try:
        for version, options in ((1, ["--min-version=1"]), (0, [])):
            wanted = real_image(command, source, *options)
            if wanted is None:
                return "refused"
            found = write_image(
                parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
            )
            if found != wanted:
                at = next(
                    (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), -1
                )
                return f"seed {seed}, version {version}: {len(found)} and {len(wanted)} bytes, differ at {at}"
    finally:
        source.unlink()
    return "same"


def test_random_trees(mkcomposefs, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: compare(mkcomposefs, tmp_path, seed), range(TREES)))
    assert [result for result in results if result not in {"same", "refused"}] == []
    # It refuses attributes that it would have to replace by much shorter ones.
    assert results.count("same") > TREES * 0.9


def lines_of(top: Path) -> Iterator[bytes]:
    """The dump of a directory, with hard links; contents up to 64 bytes inline, others named by a hash of their path."""
    seen: dict[tuple[int, int], bytes] = {}
    for folder, folders, names in os.walk(os.fsencode(top)):
        folders.sort()
        entries = [folder] if folder == os.fsencode(top) else []
        for path in entries + [os.path.join(folder, name) for name in sorted(folders + names)]:
            info = os.lstat(path)
            relative = dump.escape(
                b"/" + os.path.relpath(path, os.fsencode(top)) if path != folder else b"/"
            )
            if not stat.S_ISDIR(info.st_mode):
                first = seen.setdefault((info.st_dev, info.st_ino), relative)
                if first != relative:
                    yield b"%s 0 @100644 1 0 0 0 0.0 %s - -\n" % (relative, first)
                    continue
            size = 0
            rest = b"- - -"
            if stat.S_ISLNK(info.st_mode):
                target = os.readlink(path)
                size, rest = len(target), b"%s - -" % dump.escape(target)
            elif stat.S_ISREG(info.st_mode):
                size = info.st_size
                if 0 < size <= 64:
                    content = Path(os.fsdecode(path)).read_bytes()
                    rest = b"- %s -" % (rb"\x2d" if content == b"-" else dump.escape(content))
                elif size:
                    digest = hashlib.sha256(path).digest()
                    rest = b"%s - %s" % (backing_path(digest), digest.hex().encode())
            rdev = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
            yield b"%s %d %o %d %d %d %d %d.%d %s\n" % (
                relative,
                size,
                info.st_mode,
                info.st_nlink,
                info.st_uid,
                info.st_gid,
                rdev,
                *divmod(info.st_mtime_ns, 10**9),
                rest,
            )


@pytest.mark.parametrize("top", ["/usr/lib/python3", "/usr/share/doc", "/etc"])
def test_real_directory(mkcomposefs, tmp_path, top):
    if not Path(top).is_dir():
        pytest.skip(f"this machine has no {top}")
    text = b"".join(lines_of(Path(top)))
    source = tmp_path / "real.dump"
    source.write_bytes(text)
    parsed = dump.parse(text)
    for version, options in ((1, ["--min-version=1"]), (0, [])):
        image = write_image(
            parsed.root, version=version, algorithm="sha256", overrides=parsed.overrides
        )
        assert image == real_image(mkcomposefs, source, *options)


# The kernel ---------------------------------------------------------------------------------------------------------

# In a mount namespace of its own: nothing is left, whatever happens.
MOUNT_AND_LIST = """
import hashlib, json, os, subprocess, sys
folder = sys.argv[1]
os.chdir(folder)
for command in (
    "mount -t erofs -o ro,loop image lower",
    "mount -t overlay -o ro,metacopy=on,redirect_dir=on,lowerdir=lower::objects overlay merged",
):
    subprocess.run(command.split(), check=True)
found = {}
top = b"merged"
for here, folders, names in os.walk(top):
    for path in [here] * (here == top) + [os.path.join(here, name) for name in folders + names]:
        info = os.lstat(path)
        content = ""
        directory = os.path.isdir(path) and not os.path.islink(path)
        if os.path.islink(path):
            content = os.fsencode(os.readlink(path)).hex()
        elif os.path.isfile(path):
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        found[os.path.relpath(path, top).hex()] = [
            info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_rdev,
            info.st_size * (not directory), info.st_nlink * (not directory), content,
            sorted((name, os.getxattr(path, name, follow_symlinks=False).hex())
                   for name in os.listxattr(path, follow_symlinks=False)),
        ]
json.dump(found, sys.stdout)
"""


def mounted_tree(objects: Path) -> tuple[Node, dict[Node, bytes]]:
    """A tree with one of everything, and the contents of its files; those with objects are stored."""
    contents: dict[Node, bytes] = {}

    def file(content: bytes, mode: int = 0o644, **fields) -> Node:
        node = Node(
            stat.S_IFREG | mode, 1, 70000, 1_700_000_000, 123_456_789, size=len(content), **fields
        )
        contents[node] = content
        if len(content) <= 64:
            node.inline = content
        else:
            node.object = verity.digest(content)
            path = objects / os.fsdecode(backing_path(node.object))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return node

    def directory(**children: Node) -> Node:
        node = Node(stat.S_IFDIR | 0o755, mtime=1_600_000_000)
        node.children.update((name.encode(), child) for name, child in children.items())
        return node

    shared = file(b"shared" * 100)
    root = directory(
        bin=Node(stat.S_IFLNK | 0o777, inline=b"usr/bin", mtime=5),
        usr=directory(
            bin=directory(
                tool=file(
                    bytes(70000),
                    0o4755,
                    xattrs=((b"security.capability", b"\1\0\0\2" + bytes(16)),),
                ),
                alias=shared,
                empty=file(b""),
            ),
            lib=directory(
                copy=file(b"shared" * 100),
                again=shared,
                long=Node(stat.S_IFLNK | 0o777, inline=b"x/" * 2047),
                nested=file(b"n", xattrs=((b"trusted.overlay.opaque", b"y"), (b"user.a", b"b"))),
            ),
        ),
        dev=directory(
            null=Node(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
            disk=Node(stat.S_IFBLK | 0o660, rdev=os.makedev(259, 70000)),
            pipe=Node(stat.S_IFIFO | 0o600),
            gone=Node(stat.S_IFCHR | 0o600),
        ),
        many=directory(**{f"{number:04}": file(b"%d" % number) for number in range(600)}),
    )
    return root, contents


@pytest.mark.root
@pytest.mark.parametrize("version", [1, 2])
def test_mounted(tmp_path, version):
    """EROFS below, the object directory beside it, overlayfs on top: what a booted system sees."""
    for name in ("objects", "lower", "merged"):
        (tmp_path / name).mkdir()
    root, contents = mounted_tree(tmp_path / "objects")
    if (
        version == 2
    ):  # has no way to show a whiteout within an overlay, and no room for long targets
        del root.children[b"dev"].children[b"gone"]
        root.children[b"usr"].children[b"lib"].children[b"long"].inline = b"x" * 4064
    (tmp_path / "image").write_bytes(write_image(root, version=version))
    command = ["unshare", "--mount", sys.executable, "-I", "-c", MOUNT_AND_LIST, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode and not os.environ.get("CI"):
        pytest.skip(f"this machine cannot mount images: {run.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    links: dict[Node, int] = {}
    for _, node in walk(root):
        links[node] = links.get(node, 0) + 1
    wanted = {}
    for path, node in walk(root):
        mode, xattrs = node.mode, dict(node.xattrs)
        content = (node.inline or b"").hex() if stat.S_ISLNK(mode) else ""
        if node in contents:
            content = hashlib.sha256(contents[node]).hexdigest()
        if is_whiteout(node):  # shown as what the next overlay takes for one
            mode = stat.S_IFREG | stat.S_IMODE(mode)
            xattrs = {b"trusted.overlay.whiteout": b"", b"user.overlay.whiteout": b""}
            content = hashlib.sha256(b"").hexdigest()
        if path == b"dev" and version == 1:
            xattrs = {
                b"trusted.overlay.whiteouts": b"",
                b"trusted.overlay.opaque": b"x",
                b"user.overlay.whiteouts": b"",
                b"user.overlay.opaque": b"x",
            }
        size = 0 if node.is_dir or (node.inline is None and node.object is None) else node.size
        wanted[(path or b".").hex()] = [
            mode,
            node.uid,
            node.gid,
            node.mtime * 10**9 + (node.mtime_ns if version == 1 else 0),
            node.rdev,
            len(node.inline or b"") if stat.S_ISLNK(mode) else size,
            0 if node.is_dir else links[node],
            content,
            sorted([name.decode(), value.hex()] for name, value in xattrs.items()),
        ]
    assert found.keys() == wanted.keys()
    for path, entry in wanted.items():
        assert found[path] == entry, bytes.fromhex(path)
