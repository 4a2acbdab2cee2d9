"""What is fuzzed: functions of bytes that end normally or with an error of ours. Anything else is a find.

Each target takes any bytes. Where formats are too strict for random bytes to get anywhere, ``Source`` reads the bytes as choices,
so that mutations of them are mutations of structure. ``seeds`` gives starting points; ``corpus/TARGET/`` has inputs that once
failed, which the tests run first.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.archives import END, header, member, padded, pax, record

from bootc_core.errors import BootcError, ContentError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CORPUS = Path(__file__).with_name("corpus")


class Source:
    """Bytes as a row of choices; at its end all choices are 0."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1] if self.place <= len(self.data) else 0

    def choose(self, options: Any, usual: int = 0) -> Any:
        """One of ``options``; three times in four one of the first ``usual``."""
        byte = self.byte()
        return options[byte % usual if usual and byte < 192 else byte % len(options)]

    def take(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        self.place += count
        return found

    @property
    def more(self) -> bool:
        return self.place < len(self.data)


def ours(work: Callable[[], Any]) -> Any:
    """Its result, or None if an error of ours was raised."""
    try:
        return work()
    except BootcError as problem:
        text = f"{problem.message} {problem.found or ''} {problem.expected or ''}"
        assert text.isprintable(), "an error that is not safe to print"
        if problem.catalogue == "BUG":
            raise
        return None


# --- layer archives: the same tree as other readers, or a refusal ----------------------------------------------------------------

NAMES = (
    b"a", b"b", b"a/b", b"./c", b"d/", b"/e", b"..", b"a/../b", b".wh.a", b".wh..wh..opq", b"", b".", b"\xff",
    b"x" * 100, b"y/" * 60 + b"z", b"n\n", b"a\0b", b"a//b", b"-f", b"link", b"caf\xc3\xa9", b"cafe\xcc\x81", b" ", b"\\",
)  # fmt: skip
KINDS = (
    b"0",
    b"0",
    b"5",
    b"2",
    b"1",
    b"0",
    b"\0",
    b"3",
    b"6",
    b"7",
    b"S",
    b"x",
    b"L",
    b"V",
    b"D",
    b"4",
)
NUMBERS = (
    0, 1, 0o644, 0o4755, 511, 512, 513, 2**33 - 1, b"", b"777", b"0000644\0", b" 644 \0", b"8\0", b"-1\0",
    b"\x80" + bytes(6) + b"\x07", b"\xff" * 8, b"0x1f\0", b"1 2\0", b"\x80" + b"\xff" * 7,
)  # fmt: skip
KEYS = (
    b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid", b"SCHILY.xattr.user.a", b"hdrcharset", b"comment",
    b"GNU.sparse.major", b"atime", b"LIBARCHIVE.xattr.user.b", b"SCHILY.xattr.security.capability", b"uname", b"realtime.x",
)  # fmt: skip
VALUES = (
    b"a", b"a/b", b"../x", b"0", b"3", b"600", b"1.5", b"-1", b"1e3", b"", b"\xff", b"BINARY", b"x" * 300, b"a\0b", b"a\nb",
    b"99999999999",
)  # fmt: skip


def archive(source: Source) -> bytes:
    """An archive that is nearly right, with whatever the source makes wrong."""
    out = bytearray()
    for _ in range(8):
        if not source.more:
            break
        what = source.byte() % 32
        if what < 24:
            body = (
                source.take(source.byte() % 40) if source.byte() % 3 else b"c" * (source.byte() * 5)
            )
            fields: dict[str, Any] = {"kind": source.choose(KINDS, 5)}
            if source.byte() % 4 == 0:
                fields[source.choose(("mode", "uid", "gid"))] = _fitting(source.choose(NUMBERS, 4))
            if fields["kind"] in {b"1", b"2"} or source.byte() % 8 == 1:
                fields["link"] = source.choose(NAMES, 4)[:100]
            if source.byte() % 16 == 1:
                fields["size"] = _fitting(source.choose(NUMBERS), 12)
            if source.byte() % 8 == 1:
                fields["magic"] = source.choose(
                    (b"ustar  \0", bytes(8), b"ustar\x0001", b"ustar\x0000")
                )
            out += member(
                source.choose(NAMES, 4)[:100],
                body if fields["kind"] in b"0\x007" else b"",
                **fields,
            )
        elif what < 28:
            kind = source.choose((b"x", b"x", b"g"))
            body = b"".join(
                record(source.choose(KEYS, 7), source.choose(VALUES, 6))
                for _ in range(source.byte() % 4)
            )
            if source.byte() % 16 == 1:
                body = body[: source.byte()]
            out += pax(body, kind)
        elif what < 30:
            out += member(
                b"././@LongLink", source.choose(NAMES) + b"\0", kind=source.choose((b"L", b"K"))
            )
        elif what == 30:
            out += bytes(512)
        else:
            out += padded(header() + source.take(20))
    if source.byte() % 8 != 1:
        out += END
    for _ in range(
        source.byte() % 4 if source.byte() % 4 == 0 else 0
    ):  # flips, checksums not mended
        if out:
            out[(source.byte() * 256 + source.byte()) % len(out)] ^= source.byte()
    return bytes(out)


def _fitting(value: int | bytes, width: int = 8) -> int | bytes:
    if isinstance(value, int):
        return value % 8 ** (width - 1)
    return value[:width]


Listed = list[tuple[bytes, str, int, bytes]]  # path, type, size, link


def our_listing(data: bytes) -> Listed | None:
    from support.archives import Recorder

    from bootc_core.oci.tar import Splitter

    sink = Recorder()

    def read() -> Listed:
        splitter = Splitter(sink, "layer")
        splitter.feed(data)
        splitter.close()
        return [(e.path, chr(e.type), e.size, e.linkname) for e, _ in sink.members]

    return ours(read)


def _canonical(name: bytes) -> bytes:
    return b"/".join(part for part in name.split(b"/") if part not in {b"", b"."})


def python_listing(data: bytes) -> Listed | None:
    """By the standard library; None: it refuses."""
    found: Listed = []
    try:
        with tarfile.open(
            fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as file:
            for info in file:
                kind = {b"\0": "0", b"7": "0"}.get(info.type, info.type.decode("latin-1"))
                link = info.linkname.encode("utf-8", "surrogateescape")
                size = info.size if kind == "0" else 0
                target = link if kind == "2" else _canonical(link) if kind == "1" else b""
                path = _canonical(info.name.encode("utf-8", "surrogateescape"))
                found.append((path, kind, size, target))
    except (tarfile.TarError, ValueError, EOFError, OverflowError, MemoryError, RecursionError):
        return None
    return found


_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_LINE = re.compile(rb"(.)[rwxsStT-]{9}\+? \S+ +(\S+) \S+ \S+ (.*)")
_C = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_TYPES = {"-": "0", "d": "5", "l": "2", "h": "1", "c": "3", "b": "4", "p": "6"}


def _unescape(text: bytes) -> bytes:
    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8) & 255]) if len(code) == 3 else _C.get(code, code)

    return _ESCAPE.sub(one, text)


def gnu_listing(data: bytes) -> Listed | None:
    """By GNU tar; None: it refuses, or warns."""
    arguments = ["tar", "-tvvf", "-", "--numeric-owner", "--full-time", "--quoting-style=escape"]
    done = subprocess.run(
        arguments,
        input=data,
        capture_output=True,
        check=False,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    if done.returncode or done.stderr:
        return None
    found: Listed = []
    for line in done.stdout.splitlines():
        match = _LINE.fullmatch(line)
        assert match, line
        kind = _TYPES[match[1].decode()]
        name, target = match[3], b""
        for separator in (b" -> ", b" link to "):
            if (separator == b" -> ") == (kind == "2") and kind in "12":
                name, _, target = name.partition(separator)
        link = _unescape(target)
        size = int(match[2]) if kind == "0" else 0
        found.append(
            (_canonical(_unescape(name)), kind, size, link if kind == "2" else _canonical(link))
        )
    return found


_MTREE = {"file": "0", "dir": "5", "link": "2", "char": "3", "block": "4", "fifo": "6"}


def bsd_listing(data: bytes) -> Listed | None:
    """By bsdtar; None: it refuses, or warns. Hard links are files in its listing."""
    arguments = [
        "bsdtar",
        "-cf",
        "-",
        "--format=mtree",
        "--options=mtree:!all,mtree:type,mtree:size,mtree:link",
        "@-",
    ]
    done = subprocess.run(
        arguments,
        input=data,
        capture_output=True,
        check=False,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    if done.returncode or done.stderr:
        return None
    found: Listed = []
    for line in done.stdout.splitlines()[1:]:
        name, *words = line.split(b" ")
        keys = dict(word.partition(b"=")[::2] for word in words)
        kind = _MTREE[keys[b"type"].decode()]
        size = int(keys.get(b"size", b"0")) if kind == "0" else 0
        found.append((_canonical(_unescape(name)), kind, size, _unescape(keys.get(b"link", b""))))
    return found


def _whiteouts_by_name(listed: Listed) -> Listed:
    """A whiteout is one by its name, whatever type it has (AUFS made hard links)."""
    return [
        (path, "w", 0, b"") if path.rpartition(b"/")[2].startswith(b".wh.") else (path, *rest)
        for path, *rest in listed
    ]  # type: ignore[misc]


def _as_tree(listed: Listed) -> dict[bytes, tuple[str, int, bytes]]:
    """What bsdtar tells: each path once, the last one counts; a hard link is a file of a size that it may not know."""
    found = {
        path: ("0", -1, b"") if kind == "1" else (kind, size, link)
        for path, kind, size, link in listed
    }
    linked = {link for _, kind, _, link in listed if kind == "1"}
    return {
        path: ("0", -1, b"") if path in linked and what[0] == "0" else what
        for path, what in found.items()
    }


def agree(mine: Listed, theirs: Listed, who: str) -> None:
    """The same members, or AssertionError."""
    mine, theirs = _whiteouts_by_name(mine), _whiteouts_by_name(theirs)
    if who == "GNU tar":  # its columns move, so blanks in front of a name cannot be told from them
        mine, theirs = (
            [(path.lstrip(b" "), *rest) for path, *rest in one] for one in (mine, theirs)
        )  # type: ignore[misc]
    if who != "bsdtar":
        assert mine == theirs, f"{who} reads another tree"
        return
    tree, other = _as_tree(mine), _as_tree(theirs)
    for path, what in tree.items():
        if what[1] == -1 and path in other and other[path][0] == "0":
            other[path] = what
    assert tree == other, f"{who} reads another tree"


def tar(data: bytes) -> None:
    """Any bytes, then an archive made of them, against the standard library's reader."""
    for candidate in (data, archive(Source(data))):
        mine = our_listing(candidate)
        if mine is None:
            continue
        theirs = python_listing(candidate)
        if theirs is not None:
            agree(mine, theirs, "tarfile")


def tar_programs(data: bytes) -> None:
    """The same against GNU tar and bsdtar."""
    candidate = archive(Source(data))
    mine = our_listing(candidate)
    if not mine or any(b"\n" in path or not path for path, *_ in mine):
        return
    for who, read in (("GNU tar", gnu_listing), ("bsdtar", bsd_listing)):
        theirs = read(candidate)
        if theirs is not None:
            agree(mine, theirs, who)


# --- decompression ---------------------------------------------------------------------------------------------------------------


def decompression(data: bytes) -> None:
    """A framing made of the bytes: what is accepted is what other decoders give."""
    from bootc_core.oci.compression import decompress

    source = Source(data)
    plain = b"".join(member(b"f", bytes([source.byte()]) * source.byte()) for _ in range(2)) + END
    kind = source.choose(("gzip", "zstd", "none"))
    parts = []
    for _ in range(1 + source.byte() % 3):
        if kind == "gzip":
            parts.append(gzip.compress(plain, 1, mtime=0))
        elif kind == "zstd":
            parts.append(zstd.compress(plain, 1))
            if source.byte() % 4 == 0:
                parts.append(
                    b"\x50\x2a\x4d\x18" + bytes([source.byte() % 9, 0, 0, 0]) + source.take(9)
                )
        else:
            parts.append(plain)
    blob = bytearray(b"".join(parts))
    for _ in range(source.byte() % 3):
        blob[(source.byte() * 256 + source.byte()) % len(blob)] ^= source.byte()
    if source.byte() % 4 == 0:
        del blob[source.byte() % len(blob) :]
    if source.byte() % 8 == 0:
        blob += source.take(10)
    pieces = [bytes(blob[start : start + 997]) for start in range(0, len(blob), 997)]
    for candidate, named in ((pieces, kind), ([data], kind)):
        found = ours(
            lambda candidate=candidate, named=named: b"".join(decompress(candidate, named))
        )  # type: ignore[misc]
        if found is None or candidate is not pieces:
            continue
        try:
            expected = {"gzip": gzip.decompress, "zstd": zstd.decompress, "none": bytes}[kind](
                bytes(blob)
            )
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as problem:
            raise AssertionError(f"accepted, and another decoder says: {problem}") from None
        assert found == expected


# --- documents -------------------------------------------------------------------------------------------------------------------

_DIGEST = "sha256:" + "ab" * 32
_SCALARS = (
    0,
    1,
    -1,
    2**63,
    1.5,
    "",
    "a",
    None,
    True,
    [],
    {},
    _DIGEST,
    "\x00",
    "\ud800",
    [[]],
    "application/vnd.oci.image.manifest.v1+json",
)


def bent(value: Any, source: Source) -> Any:
    """``value`` with some parts replaced, removed or doubled."""
    choice = source.byte() if source.more else 255
    if choice < 24:
        return source.choose(_SCALARS)
    if isinstance(value, dict):
        made = {key: bent(inner, source) for key, inner in value.items() if source.byte() % 16 != 1}
        if choice < 40:
            made[source.choose(("mediaType", "x", "manifests", "layers", "digest", "size"))] = (
                source.choose(_SCALARS)
            )
        return made
    if isinstance(value, list):
        return [bent(inner, source) for inner in value] * (2 if choice < 32 else 1)
    return value


def _written(value: Any, source: Source) -> bytes:
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    choice = source.byte() % 16 if source.more else 15
    if choice == 0:
        return text[: source.byte() % (len(text) + 1)]
    if choice == 1:
        return text.replace(b"{", b'{"size": 1, "size": 2, ', 1)
    if choice == 2:
        return b"\xef\xbb\xbf" + text
    if choice == 3:
        return text + source.take(4)
    return text


_DESCRIPTOR = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
    "digest": _DIGEST,
    "size": 3,
}
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": _DIGEST,
        "size": 3,
    },
    "layers": [_DESCRIPTOR, _DESCRIPTOR],
    "annotations": {"a": "b"},
}
INDEX = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [
        {
            **_DESCRIPTOR,
            "mediaType": MANIFEST["mediaType"],
            "platform": {"os": "linux", "architecture": "amd64"},
        }
    ],
}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-02T03:04:05Z",
    "config": {"Labels": {"a": "b"}},
    "rootfs": {"type": "layers", "diff_ids": [_DIGEST, _DIGEST]},
}


def documents(data: bytes) -> None:
    """Manifests, indexes, configurations."""
    from bootc_core.models import oci

    source = Source(data)
    manifest = oci.parse_manifest(
        oci.RawDocument(oci.OCI_MANIFEST, json.dumps(MANIFEST).encode()), "m"
    )
    for raw in (data, None):
        ours(
            lambda raw=raw: oci.parse_manifest(
                oci.RawDocument(oci.OCI_MANIFEST, raw or _written(bent(MANIFEST, source), source)),
                "m",
            )
        )  # type: ignore[misc]
        ours(
            lambda raw=raw: oci.parse_index(
                oci.RawDocument(oci.OCI_INDEX, raw or _written(bent(INDEX, source), source)), "i"
            )
        )  # type: ignore[misc]
        ours(
            lambda raw=raw: oci.parse_config(
                oci.RawDocument(oci.OCI_CONFIG, raw or _written(bent(CONFIG, source), source)),
                manifest,
                "c",
            )
        )  # type: ignore[misc]


POLICY = {
    "default": [{"type": "reject"}],
    "transports": {
        "docker": {
            "quay.io/acme": [
                {
                    "type": "signedBy",
                    "keyType": "GPGKeys",
                    "keyPath": "/etc/key",
                    "signedIdentity": {"type": "matchRepository"},
                }
            ],
            "": [{"type": "sigstoreSigned", "keyPath": "/etc/cosign.pub"}],
        },
        "oci": {"/tmp": [{"type": "insecureAcceptAnything"}]},
    },
}


def policies(data: bytes) -> None:
    """policy.json, trust policies, registries.conf, auth.json, registries.d."""
    from bootc_registry import config as registries
    from bootc_registry import credentials, registries_d
    from bootc_signing import policy, trust

    from bootc_core.models.reference import RegistryName

    source = Source(data)
    text = _written(bent(POLICY, source), source)
    for raw in (data, text):
        ours(lambda raw=raw: policy.parse_policy(raw, "policy.json"))  # type: ignore[misc]
        ours(lambda raw=raw: trust.parse(raw, "trust.toml"))  # type: ignore[misc]
        ours(lambda raw=raw: registries.parse_registries(raw, "registries.conf"))  # type: ignore[misc]
        ours(lambda raw=raw: registries_d.parse(raw, "default.yaml"))  # type: ignore[misc]
    auth = _written(
        bent(
            {"auths": {"quay.io": {"auth": "YTpi"}, "quay.io/acme": {"identitytoken": "x"}}}, source
        ),
        source,
    )
    name = RegistryName.parse("quay.io/acme/os:1")
    for raw in (data, auth):
        ours(lambda raw=raw: credentials.parse_auth(raw, name, "auth.json", {}))  # type: ignore[misc]


def configuration(data: bytes) -> None:
    """Settings, kernel arguments, os-release, references, labels of SELinux."""
    from bootc_core import config
    from bootc_core.boot import kargs_d, os_release
    from bootc_core.models.kargs import CommandLine
    from bootc_core.models.reference import ImageReference, SignedReference
    from bootc_core.oci import selinux

    text = data.decode("utf-8", "replace")
    ours(lambda: config.parse(text, "10.toml"))
    ours(lambda: kargs_d.parse("10.toml", data, "x86_64"))
    ours(lambda: os_release.parse(data))
    for parse in (CommandLine.parse, ImageReference.parse, SignedReference.parse):
        found = ours(lambda parse=parse: parse(text))  # type: ignore[misc]
        if found is not None and parse is not CommandLine.parse:
            assert parse(str(found)) == found, "printing and parsing are no inverses"
    ours(lambda: selinux.parse_contexts(data, "file_contexts"))
    ours(lambda: selinux.parse_aliases(data, "aliases"))


def replies(data: bytes) -> None:
    """Heads of HTTP replies, chunk sizes, challenges, URLs."""
    from bootc_registry.auth import parse_challenges

    from bootc_core.net import url, wire

    ours(lambda: wire.parse_chunk_size(data, "host"))
    ours(lambda: url.parse_url(data.decode("utf-8", "replace")))
    source = Source(data)
    lines = [
        source.choose(
            (
                b"HTTP/1.1 200 OK",
                b"HTTP/1.0 206",
                b"HTTP/2 200",
                b"HTTP/1.1 99 x",
                b"HTTP/1.1 401 No",
            )
        )
    ]
    for _ in range(source.byte() % 6):
        name = source.choose(
            (
                b"Content-Length",
                b"Transfer-Encoding",
                b"WWW-Authenticate",
                b"Content-Range",
                b"Location",
                b"X y",
                b"",
            )
        )
        value = source.choose(
            (
                b"3",
                b"3, 3",
                b"-1",
                b"chunked",
                b'Bearer realm="https://a/",service=b',
                b"Basic ",
                b"bytes 0-1/2",
                b"\xff",
                b"\r",
                source.take(9),
            )
        )
        lines.append(name + source.choose((b": ", b":", b" : ")) + value)
    head = source.choose((b"\r\n", b"\n")).join(lines) + b"\r\n\r\n"
    for raw in (data, head):
        found = ours(lambda raw=raw: wire.parse_head(raw, "host"))  # type: ignore[misc]
        if found is not None:
            parse_challenges(found.headers)


_PAYLOAD = {
    "critical": {
        "identity": {"docker-reference": "quay.io/acme/os"},
        "image": {"docker-manifest-digest": _DIGEST},
        "type": "cosign container image signature",
    },
    "optional": {"creator": "x", "timestamp": 1},
}
_BUNDLE = {
    "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
    "verificationMaterial": {
        "certificate": {"rawBytes": "AAAA"},
        "tlogEntries": [
            {
                "logIndex": "1",
                "logId": {"keyId": "AAAA"},
                "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
                "integratedTime": "1",
                "inclusionPromise": {"signedEntryTimestamp": "AAAA"},
                "canonicalizedBody": "e30=",
            }
        ],
    },
    "messageSignature": {
        "messageDigest": {"algorithm": "SHA2_256", "digest": "AAAA"},
        "signature": "AAAA",
    },
}
_STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "x", "digest": {"sha256": "ab" * 32}}],
    "predicateType": "https://sigstore.dev/cosign/sign/v1",
    "predicate": {},
}


def signatures(data: bytes) -> None:
    """Payloads, envelopes, bundles, log entries, keys, certificates: none of them counts, and each says why."""
    from bootc_signing import bundle, certificates, claims, keyless, keys, rekor
    from bootc_signing.claims import CannotCheck, Rejected

    from bootc_core.oci import signatures as blobs

    def refused(work: Callable[[], Any]) -> None:
        try:
            ours(work)
        except (Rejected, CannotCheck):
            return

    source = Source(data)
    payload = _written(bent(_PAYLOAD, source), source)
    bent_bundle = _written(bent(_BUNDLE, source), source)
    statement = _written(bent(_STATEMENT, source), source)
    for raw in (data, payload):
        refused(lambda raw=raw: claims.parse_payload(raw, "cosign"))  # type: ignore[misc]
        refused(lambda raw=raw: claims.parse_payload(raw, "openpgp"))  # type: ignore[misc]
    for raw in (data, bent_bundle):
        refused(lambda raw=raw: bundle.parse(raw))  # type: ignore[misc]
        refused(lambda raw=raw: rekor.parse_set(raw, [], 0))  # type: ignore[misc]
        refused(lambda raw=raw: keyless.load_trusted_root(raw, "root"))  # type: ignore[misc]
    for raw in (data, statement):
        refused(
            lambda raw=raw: claims.parse_statement(raw, "application/vnd.in-toto+json", _DIGEST)
        )  # type: ignore[misc]
    refused(lambda: keys.parse_public_key(data, "key"))
    refused(lambda: certificates.load(data, "certificate"))
    refused(lambda: blobs.parse_blob(data, "file"))


def state(data: bytes) -> None:
    """What is read from the host: journal, boot entries, origins, splitstreams, images, lists of layers."""
    from bootc_composefs import erofs_read, meta, splitstream
    from bootc_ostree import objects
    from bootc_systemd_boot import loader

    from bootc_core.boot import bls
    from bootc_core.engine import journal, recovery
    from bootc_core.oci import origin

    recovery.decide(journal.parse(data), None)
    ours(lambda: bls.parse("x.conf", data))
    ours(lambda: origin.parse(data))
    ours(lambda: meta.parse(data))
    loader.parse_default(data)
    loader.parse_variable(data)
    for parse in (objects.parse_commit, objects.parse_dirtree, objects.parse_dirmeta):
        try:
            parse(data)
        except ValueError:
            continue
    stream = ours(lambda: splitstream.parse(data, "sha512"))
    if stream is not None:
        ours(stream.named_refs)
        ours(lambda: list(stream.chunks()))
    ours(lambda: erofs_read.read_image(data))


def stored(data: bytes) -> None:
    """A real splitstream and a real image with bytes changed."""
    from bootc_composefs import erofs_read, splitstream
    from bootc_composefs.erofs import write_image

    source = Source(data)
    stream = splitstream.encode_document(
        "sha512", splitstream.CONFIG, bytes(64), 8, [("x", bytes(64))]
    )
    image = write_image(_tree(), version=source.choose((1, 2)), algorithm="sha256")
    for whole, read in (
        (
            stream,
            lambda raw: [
                list(one.chunks()) for one in [splitstream.parse(raw, "sha512")] if one.named_refs()
            ],
        ),
        (image, erofs_read.read_image),
    ):
        raw = bytearray(whole)
        for _ in range(1 + source.byte() % 4):
            place = (source.byte() * 65536 + source.byte() * 256 + source.byte()) % len(raw)
            raw[place] = source.byte()
        if source.byte() % 8 == 0:
            del raw[(source.byte() * 256 + source.byte()) % len(raw) :]
        ours(lambda read=read, raw=raw: read(bytes(raw)))  # type: ignore[misc]


def _tree() -> Any:
    import stat

    from bootc_core.models.tree import Node

    root = Node(stat.S_IFDIR | 0o755)
    assert root.children is not None
    root.children[b"file"] = Node(stat.S_IFREG | 0o644, size=100, object=bytes(32))
    root.children[b"small"] = Node(
        stat.S_IFREG | 0o644, size=3, inline=b"abc", xattrs=((b"user.a", b"b"),)
    )
    root.children[b"link"] = Node(stat.S_IFLNK | 0o777, size=1, inline=b"x")
    return root


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        tar,
        tar_programs,
        decompression,
        documents,
        policies,
        configuration,
        replies,
        signatures,
        state,
        stored,
    )
}
CONTENT = ContentError  # for the regression tests


def seeds(name: str) -> list[bytes]:
    """Where a fuzzer begins: what failed once, and bytes that make whole things."""
    found = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    starts = {
        "tar": [member(b"a", b"x") + END, pax({b"path": b"b"}) + member() + END],
        "documents": [json.dumps(one).encode() for one in (MANIFEST, INDEX, CONFIG)],
        "policies": [
            json.dumps(POLICY).encode(),
            b'unqualified-search-registries = ["a"]\n[[registry]]\nlocation = "b"\n',
        ],
        "configuration": [
            b'kargs = ["a=b"]\n',
            b"ID=x\nNAME='y'\n",
            b"quay.io/a/b:1@sha256:" + b"a" * 64,
        ],
        "replies": [
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
            b"ff;x=y\r\n",
            b"https://a:1/b?c",
        ],
        "signatures": [json.dumps(_PAYLOAD).encode(), json.dumps(_BUNDLE).encode()],
        "state": [
            b'{"record":"begin","format":1}\n',
            b"title x\nlinux /a\noptions b\nsort-key bootc-x-0\n",
            b"[origin]\ncontainer-image-reference=ostree-unverified-registry:a/b\n",
        ],
    }
    return [*found, *starts.get(name, []), bytes(range(64)), bytes(range(255, 0, -1)), b""]
