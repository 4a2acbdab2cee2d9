"""Images of podman, buildah, skopeo and umoci, from registries of every kind: what is imported is what the producer made.

``make conformance`` pulls each image from each registry and prints the table of docs/registries.md; here it is each image once
and each registry once. The tree of every producer is unpacked by another one of them, and compared with the mounted root name by
name; the same image from another registry, or packed otherwise, must have the same digest of the tree.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from support.faulty_http import Asked, FaultyServer, Peer
from support.mounted import assert_same, identity, mounted, unpacked
from support.odd_tree import odd_tree
from support.registry import PASSWORD, USER, Registry, running_registry
from support.tokens import TokenServer

pytestmark = [pytest.mark.real, pytest.mark.root]

ALL = os.environ.get("BOOTC_CONFORMANCE") == "all"
PAIR = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
BOOTC = (sys.executable, "-I", "-m", "bootc_core.cli.main")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- producers --------------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A place to make images in, and the registry they are pushed to: TLS and Basic."""

    place: Path
    registry: Registry
    trees: dict[str, Path] = field(default_factory=dict)  # by image, where the producer has it
    digests: dict[str, str] = field(default_factory=dict)  # by tag

    @property
    def storage(self) -> list[str]:
        home = self.place
        return [f"--root={home}/graph", f"--runroot={home}/run", "--storage-driver=vfs"]

    def target(self, tag: str) -> str:
        return f"docker://{self.registry.authority}/acme/os:{tag}"

    @property
    def access(self) -> list[str]:
        certificates = self.place / "certificates"
        if not certificates.exists():
            certificates.mkdir()
            shutil.copy(self.registry.ca_file, certificates)
        return [f"--cert-dir={certificates}", f"--creds={USER}:{PASSWORD}"]

    def do(self, program: str, *words: str | Path, **environment: str) -> str:
        """``podman`` or ``buildah`` with the bench's storage."""
        return run(program, *self.storage, *words, **environment).strip()

    def push(self, program: str, name: str, tag: str, *options: str) -> None:
        self.do(program, "push", "-q", *options, *self.access, name, self.target(tag))

    def stored(self, name: str) -> str:
        return f"containers-storage:[vfs@{self.place}/graph+{self.place}/run]localhost/os:{name}"

    def unpack(self, name: str) -> None:
        """The tree of an image in the storage, unpacked by umoci."""
        self.copy(self.stored(name), f"oci:{self.place}/{name}:1")
        bundle = self.place / f"{name}-tree"
        run("umoci", "unpack", "--image", f"{self.place}/{name}:1", bundle)
        self.trees[name] = bundle / "rootfs"

    def copy(self, source: str, target: str, *options: str) -> None:
        """With skopeo, from and to anywhere."""
        for side, text in (("src", source), ("dest", target)):
            if text.startswith("docker:"):
                options = (*options, *(f"--{side}-{option[2:]}" for option in self.access))
        run("skopeo", "--insecure-policy", "copy", "-q", *options, source, target)


def second_layer(root: Path) -> None:
    """What the producers change in a second layer: something new, gone, replaced by another kind, of another mode.

    A directory replaced by a link is left out: podman 4.3 cannot unpack what umoci writes then (whiteouts below the link).
    """
    odd = root / "usr/lib/odd"
    (odd / "two").unlink()
    shutil.rmtree(odd / "many")
    (odd / "few").symlink_to("size-64")
    (odd / "size-65").unlink()
    (odd / "size-65").mkdir(mode=0o711)
    (odd / "size-65/below").write_bytes(b"below what was a file")
    (odd / "set-user-id").chmod(0o755)
    (root / "usr/lib/os-release").write_text('ID=test\nVERSION_ID="2"\nPRETTY_NAME="Second"\n')


def buildah(bench: Bench) -> None:
    first = bench.do("buildah", "from", "scratch")
    odd_tree(Path(bench.do("buildah", "mount", first)))
    bench.do("buildah", "commit", "-q", first, "localhost/os:base")
    second = bench.do("buildah", "from", "localhost/os:base")
    second_layer(Path(bench.do("buildah", "mount", second)))
    bench.do("buildah", "config", "--label", "containers.bootc=1", second)
    bench.do("buildah", "commit", "-q", second, "localhost/os:buildah")
    bench.push("buildah", "localhost/os:buildah", "buildah")
    bench.unpack("buildah")


def podman(bench: Bench) -> None:
    """In Docker's format, the tree from an archive that GNU tar made."""
    context = bench.place / "context"
    odd_tree(context / "tree")
    archive = context / "tree.tar"
    pack = ("--xattrs", "--format=pax", "--exclude=./dev/*", "-cf", archive, ".")
    run("tar", "-C", context / "tree", *pack)
    (context / "Containerfile").write_text(
        "FROM scratch\nADD tree.tar /\nCOPY tree.tar /usr/share/\nLABEL containers.bootc=1\n"
    )
    build = ("build", "-q", "--pull-never", "--layers", "--format=docker")
    isolation = {"BUILDAH_ISOLATION": "chroot"}
    bench.do("podman", *build, "-t", "localhost/os:podman", context, **isolation)
    bench.push("podman", "localhost/os:podman", "podman")
    bench.unpack("podman")


def umoci(bench: Bench) -> None:
    layout, bundle = bench.place / "umoci", bench.place / "bundle"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:1")
    for change in (odd_tree, second_layer):
        shutil.rmtree(bundle, ignore_errors=True)
        run("umoci", "unpack", "--image", f"{layout}:1", bundle)
        change(bundle / "rootfs")
        run("umoci", "repack", "--image", f"{layout}:1", bundle)
    run("umoci", "config", "--image", f"{layout}:1", "--config.label", "containers.bootc=1")
    bench.copy(f"oci:{layout}:1", bench.target("umoci"))
    bench.copy(f"oci:{layout}:1", bench.stored("umoci"))
    bench.trees["umoci"] = Path(bench.do("podman", "image", "mount", "localhost/os:umoci"))


def skopeo(tag: str, *options: str) -> Callable[[Bench], None]:
    def make(bench: Bench) -> None:
        bench.copy(f"oci:{bench.place}/buildah:1", bench.target(tag), *options)

    return make


def chunked(bench: Bench) -> None:
    options = ("--compression-format=zstd:chunked", "--format=oci")
    bench.push("podman", "localhost/os:buildah", "zstd-chunked", *options)


# image: how it is made, and the one whose tree it has
IMAGES: dict[str, tuple[Callable[[Bench], None], str]] = {
    "buildah": (buildah, "buildah"),
    "podman": (podman, "podman"),
    "umoci": (umoci, "umoci"),
    "skopeo-oci": (skopeo("skopeo-oci"), "buildah"),
    "skopeo-docker": (skopeo("skopeo-docker", "--format=v2s2"), "buildah"),
    "skopeo-zstd": (skopeo("skopeo-zstd", "--dest-compress-format=zstd", "--format=oci"), "buildah"),
    "zstd-chunked": (chunked, "buildah"),
}  # fmt: skip


# --- registries --------------------------------------------------------------------------------------------------------------


class Site:
    """A configuration root that reaches ``registry.example/os`` in one way."""

    def __init__(self, place: Path) -> None:
        self.root = place
        (place / "etc/containers").mkdir(parents=True)
        policy = {"default": [{"type": "insecureAcceptAnything"}]}
        (place / "etc/containers/policy.json").write_text(json.dumps(policy))

    def trust(self, authority: str, ca: trustme.CA) -> None:
        place = self.root / "etc/containers/certs.d" / authority
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(ca.cert_pem.bytes())

    def log_in(self, authority: str, entry: dict[str, str]) -> None:
        path = self.root / "etc/ostree/auth.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"auths": {authority: entry}}))
        path.chmod(0o600)

    def reach(
        self, primary: str, *mirrors: str, blocked: bool = False, insecure: bool = False
    ) -> None:
        flags = f"blocked = {str(blocked).lower()}\ninsecure = {str(insecure).lower()}\n"
        text = (
            f'[[registry]]\nprefix = "registry.example/os"\nlocation = "{primary}/acme/os"\n{flags}'
        )
        text += "".join(f'[[registry.mirror]]\nlocation = "{one}/acme/os"\n' for one in mirrors)
        (self.root / "etc/containers/registries.conf").write_text(text)


@dataclass
class Hall:
    """All registries, each with the same content."""

    stack: ExitStack
    place: Path
    storage: Path
    ca: trustme.CA
    sites: dict[str, Site] = field(default_factory=dict)
    asked: dict[str, list[Asked]] = field(default_factory=dict)

    def serve(self, name: str, **how: object) -> Registry:
        place = self.place / name.replace(" ", "-")
        place.mkdir()
        (place / "storage").symlink_to(self.storage)
        return self.stack.enter_context(running_registry(place, **how))

    def site(self, name: str) -> Site:
        self.sites[name] = site = Site(self.place / f"site-{len(self.sites)}")
        return site


def lying(upstream: str, about: str) -> Callable[[Peer, Asked], None]:
    """A mirror that says 200 and gives something else for what has ``about`` in its path."""

    def handler(peer: Peer, asked: Asked) -> None:
        connection = http.client.HTTPConnection(upstream, timeout=30)
        accept = {"Accept": asked.header("accept") or "*/*"}
        connection.request(asked.method, asked.target, headers=accept)
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        if about in asked.path and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        fields = {"content_type": reply.headers["content-type"] or "application/octet-stream"}
        if asked.method == "HEAD":
            fields["content_length"] = reply.headers["content-length"] or "0"
        peer.reply(reply.status, data, **fields)

    return handler


def open_hall(hall: Hall) -> None:
    ca = hall.ca
    plain = hall.serve("http")
    hall.site("HTTP").reach(plain.authority, insecure=True)

    basic_plain = hall.serve("http basic", htpasswd=True)
    site = hall.site("HTTP, Basic")
    site.reach(basic_plain.authority, insecure=True)
    site.log_in(basic_plain.authority, {"auth": PAIR})

    tls = hall.serve("tls", ca=ca)
    site = hall.site("TLS")
    site.reach(tls.authority)
    site.trust(tls.authority, ca)

    basic = hall.serve("tls basic", ca=ca, htpasswd=True)

    def with_basic(name: str, *mirrors: str) -> Site:
        site = hall.site(name)
        site.reach(basic.authority, *mirrors)
        site.trust(basic.authority, ca)
        site.log_in(basic.authority, {"auth": PAIR})
        return site

    with_basic("TLS, Basic")

    for name, demand, entry in (
        ("TLS, token for anybody", "", None),
        ("TLS, token for a user", f"Basic {PAIR}", {"auth": PAIR}),
        ("TLS, identity token", "refresh_token=an-identity", {"identitytoken": "an-identity"}),
    ):
        place = hall.place / f"tokens-{len(hall.sites)}"
        place.mkdir()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(context)
        tokens = TokenServer(place, demand=demand, tls=context)
        server = hall.stack.enter_context(tokens.server)
        registry = hall.serve(name, ca=ca, token=tokens.settings())
        site = hall.site(name)
        site.reach(registry.authority)
        site.trust(registry.authority, ca)
        site.trust(server.authority, ca)
        if entry:
            site.log_in(registry.authority, entry)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with_basic("a mirror that is down", nobody)
    for about in ("manifests", "blobs"):
        mirror = hall.stack.enter_context(FaultyServer(lying(plain.authority, f"/{about}/")))
        hall.asked[about] = mirror.requests
        with_basic(f"a mirror that lies about {about}", mirror.authority)

    with_basic("blocked").reach(basic.authority, blocked=True)


NAMES = (
    "HTTP",
    "HTTP, Basic",
    "TLS",
    "TLS, Basic",
    "TLS, token for anybody",
    "TLS, token for a user",
    "TLS, identity token",
    "a mirror that is down",
    "a mirror that lies about manifests",
    "a mirror that lies about blobs",
)
BY_DIGEST = ("a mirror that lies about manifests",)


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Bench, Hall]]:
    # podman bounds the length of its directories' names, and writes what rmtree must be allowed to remove
    place = Path(tempfile.mkdtemp(prefix="cf-"))
    try:
        with ExitStack() as stack:
            ca = trustme.CA()
            (place / "push").mkdir()
            registry = stack.enter_context(running_registry(place / "push", ca=ca, htpasswd=True))
            bench = Bench(place, registry)
            for tag, (make, _) in IMAGES.items():
                make(bench)
                raw = run("skopeo", "inspect", "--raw", *bench.access, bench.target(tag))
                bench.digests[tag] = "sha256:" + hashlib.sha256(raw.encode()).hexdigest()
            hall = Hall(stack, place, place / "push/storage", ca)
            open_hall(hall)
            assert set(hall.sites) == {*NAMES, "blocked"}
            yield bench, hall
    finally:
        umount = (f"--root={place}/graph", f"--runroot={place}/run", "--storage-driver=vfs")
        for program, words in (
            ("podman", ("image", "umount", "-a")),
            ("buildah", ("umount", "-a")),
        ):
            subprocess.run([program, *umount, *words], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


def switch(site: Site, sysroot: Path, name: str) -> subprocess.CompletedProcess[str]:
    where = ("--sysroot", str(sysroot), "--config-root", str(site.root))
    command = (*BOOTC, "switch", "--quiet", *where, f"registry.example/os{name}")
    environment = {"PATH": "/usr/bin:/bin", "BOOTC_ERROR_FORMAT": "json"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_image_from_every_registry(made, tmp_path):
    bench, hall = made
    known: dict[str, str] = {}
    rows: dict[str, list[str]] = {name: [] for name in NAMES}
    pairs = [(image, name) for name in NAMES for image in IMAGES]
    if not ALL:  # each of both once
        images = list(IMAGES)
        pairs = [(images[number % len(images)], name) for number, name in enumerate(NAMES)]
    for number, (image, name) in enumerate(pairs):
        sysroot = tmp_path / str(number)
        # a tag means what the first place says; only a digest can be lied about
        what = f"@{bench.digests[image]}" if name in BY_DIGEST else f":{image}"
        done = switch(hall.sites[name], sysroot, what)
        assert done.returncode == 0, f"{image} from {name}: {done.stderr}"
        tree = IMAGES[image][1]
        if tree not in known:
            expected = unpacked(bench.trees[tree])
            compared = assert_same(mounted(sysroot), expected, folder_times=tree != "umoci")
            assert len(compared) > 40
            known[tree] = identity(sysroot)
        assert identity(sysroot) == known[tree], f"{image} from {name}"
        if "mirror" in name:
            assert "mirror" in done.stderr, "the mirror that failed is named"
        rows[name].append(image)
        shutil.rmtree(sysroot)
    assert len(set(known.values())) == 3
    assert all(hall.asked.values()), "the mirrors that lie were asked"
    for name, images in rows.items():
        print(
            f"| {name} | " + " | ".join("=" if image in images else "" for image in IMAGES) + " |"
        )


def test_the_page_shows_all_of_them():
    page = (Path(__file__).parents[2] / "docs/registries.md").read_text()
    assert "| | " + " | ".join(IMAGES) + " |\n" in page
    assert [name for name in NAMES if f"\n| {name} |" not in page] == []


def test_a_blocked_location_is_not_asked(made, tmp_path):
    _, hall = made
    done = switch(hall.sites["blocked"], tmp_path / "host", ":buildah")
    assert done.returncode == 1
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["reference"] == "registry-blocked"
    assert "registries.conf" in error["found"]
