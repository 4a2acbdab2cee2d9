"""What skopeo, podman and umoci write is read, and means the same image in every form."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest
import trio
from bootc_archives.fetch import fetch, resolve
from support.image_archives import ARCHITECTURE, LAYERS, Layout, digest, tar

from bootc_core.errors import ContentError
from bootc_core.models.oci import LAYER_TYPES, Platform
from bootc_core.models.reference import ImageReference
from bootc_core.oci.compression import decompress

pytestmark = pytest.mark.real

OTHER = "s390x" if ARCHITECTURE != "s390x" else "amd64"
# two equal layers, and one whose member has a long name
IMAGE = (*LAYERS, LAYERS[0], tar({"usr/share/" + "n" * 80: b"", "usr/share/x": bytes(70_000)}))


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with a layout (``src:one``, ``src:multi``), a policy, and a function that copies."""
    root = tmp_path_factory.mktemp("real")
    layout = Layout()
    layout.add(layout.manifest(layers=IMAGE, version="7"), "one")
    there = layout.manifest(OTHER, version="there")
    layout.add(
        layout.index(
            (there, {"os": "linux", "architecture": OTHER}),
            (layout.manifest(version="here"), {"os": "linux", "architecture": ARCHITECTURE}),
        ),
        "multi",
    )
    layout.write(root / "src")
    policy = root / "policy.json"
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))

    def copy(source, target, *options):
        run("skopeo", "--policy", str(policy), "copy", "-q", *options, source, target)
        return target

    return root, copy


def unpacked(image, layer):
    source = trio.run(image.blob_source, layer)
    with source.path.open("rb") as file:
        file.seek(source.offset)
        data = file.read(source.length)
    assert digest(data) == layer.digest
    return b"".join(decompress([data], LAYER_TYPES[layer.media_type], "layer"))


def check(text, layers=IMAGE, version="7"):
    reference = ImageReference.parse(text)
    image = fetch(reference)
    assert resolve(reference) == image.tag_digest
    assert image.config.version == version
    found = [unpacked(image, layer) for layer in image.manifest.layers]
    assert [hashlib.sha256(one).hexdigest() for one in found] == [
        hashlib.sha256(one).hexdigest() for one in layers
    ]
    return image


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("oci:ROOT/a:new", ()),
        ("oci:ROOT/b", ()),
        ("oci:ROOT/zstd:z", ("--dest-compress-format", "zstd")),
        ("oci-archive:ROOT/a.tar:new", ()),
        ("oci-archive:ROOT/b.tar", ()),
        ("oci-archive:ROOT/c.tar:quay.io/acme/os:9", ()),
        ("docker-archive:ROOT/d.tar", ()),
        ("docker-archive:ROOT/e.tar:acme/os:9", ()),
        ("dir:ROOT/dir", ()),
        ("dir:ROOT/plain", ("--dest-decompress",)),
        ("dir:ROOT/v2s2", ("--format", "v2s2")),
    ],
)
def test_skopeo(made, target, options):
    root, copy = made
    text = copy(f"oci:{root}/src:one", target.replace("ROOT", str(root)), *options)
    image = check(text)
    if not options and not text.startswith("docker-archive"):
        # the same bytes have the same name, and skopeo agrees about it
        assert image.digest == fetch(ImageReference.parse(f"oci:{root}/src:one")).digest
        raw = run("skopeo", "inspect", "--raw", text)
        assert digest(raw.encode()) == image.tag_digest


@pytest.mark.parametrize(
    "target", ["oci:ROOT/all:m", "oci-archive:ROOT/all.tar:m", "dir:ROOT/all-dir"]
)
def test_skopeo_copies_whole_indexes(made, target):
    root, copy = made
    text = copy(f"oci:{root}/src:multi", target.replace("ROOT", str(root)), "--all")
    image = check(text, LAYERS, "here")
    assert image.index is not None
    other = fetch(ImageReference.parse(text), Platform(os="linux", architecture=OTHER))
    assert other.config.version == "there"


@pytest.mark.root
def test_podman(made):
    """``podman save`` in each of its formats, and several images in one archive."""
    root, _ = made
    storage = f"--root={root}/storage --runroot={root}/run --storage-driver=vfs".split()

    def podman(*command):
        return run("podman", *storage, *command)

    podman("pull", "-q", "--signature-policy", f"{root}/policy.json", f"oci:{root}/src:one")
    image = podman("images", "-q", "--no-trunc").split()[0].removeprefix("sha256:")
    podman("tag", image, "localhost/acme/os:9", "localhost/acme/os:stable")
    for form, transport in (
        ("oci-archive", "oci-archive"),
        ("docker-archive", "docker-archive"),
        ("oci-dir", "oci"),
        ("docker-dir", "dir"),
    ):
        target = f"{root}/podman-{form}"
        podman("save", "-q", "--format", form, "-o", target, "localhost/acme/os:9")
        check(f"{transport}:{target}")
    target = f"{root}/podman-many.tar"
    podman(*f"save -q -m -o {target} localhost/acme/os:9 localhost/acme/os:stable".split())
    for suffix in ("", ":localhost/acme/os:9", ":localhost/acme/os:stable", ":@0"):
        check(f"docker-archive:{target}{suffix}")


def test_umoci(made):
    """A layout whose images share one index.json, changed by another program."""
    root, copy = made
    copy(f"oci:{root}/src:one", f"oci:{root}/umoci:one")
    layout = f"{root}/umoci"
    run(*f"umoci tag --image {layout}:one two".split())
    run(*f"umoci config --image {layout}:two --config.label version=8".split())
    check(f"oci:{layout}:one")
    check(f"oci:{layout}:two", version="8")


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_damage_in_a_real_archive(made, form):
    root, copy = made
    path = root / f"damage-{form}.tar"
    copy(f"oci:{root}/src:one", f"{form}:{path}:acme/os:9")
    whole = path.read_bytes()
    step = len(whole) // 40
    damaged = root / f"cut-{form}.tar"
    for length in range(0, len(whole.rstrip(b"\0")), step):
        damaged.write_bytes(whole[:length])
        with pytest.raises(ContentError):
            fetch(ImageReference.parse(f"{form}:{damaged}"))


def test_gzip_archive_of_docker_save(made):
    root, copy = made
    copy(f"oci:{root}/src:one", f"docker-archive:{root}/packed.tar:acme/os:9")
    run("gzip", "-k", f"{root}/packed.tar")
    with pytest.raises(ContentError) as caught:
        fetch(ImageReference.parse(f"docker-archive:{root}/packed.tar.gz"))
    assert caught.value.reference == "compressed-archive"
    run(*str(caught.value.hint).split(), "-f")  # the hint works as written
    check(f"docker-archive:{root}/packed.tar")
