"""Images against the real mkcomposefs: pseudo-random trees and a directory of this machine, byte for byte.

The program knows SHA-256 only, so these dumps have SHA-256 objects; SHA-512 is shown by the vectors of ``test_erofs``.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bootc_composefs import dump
from bootc_composefs.erofs import write_image
from bootc_composefs.erofs_format import backing_path

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
