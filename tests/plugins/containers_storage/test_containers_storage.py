"""Images in podman's storage, made and read by the real programs: pulled, built, and moved to a host."""

from __future__ import annotations

import gc
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import trio
from bootc_containers_storage import storage
from support.image_archives import REF_NAME, descriptor, digest, write

from bootc_core.cli.main import main
from bootc_core.errors import BootcError
from bootc_core.models.reference import ImageReference
from bootc_core.testing.images import FakeImage, make_image

pytestmark = [pytest.mark.real, pytest.mark.root]


def layout_of(image: FakeImage, path: Path) -> Path:
    manifest, config = image.manifest, image.config
    layers = [image.blob(layer["digest"]) for layer in json.loads(manifest.raw)["layers"]]
    files = {
        "blobs/" + digest(blob).replace(":", "/"): blob
        for blob in (manifest.raw, config.raw, *layers)
    }
    entry = descriptor(manifest.media_type, manifest.raw, annotations={REF_NAME: "os"})
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return write(files, path)


class Store:
    """A containers-storage of its own."""

    def __init__(self, place: Path) -> None:
        self.specifier = f"[vfs@{place}/graph+{place}/run]"
        self.options = (
            "--root",
            f"{place}/graph",
            "--runroot",
            f"{place}/run",
            "--storage-driver",
            "vfs",
        )

    def name(self, tag: str) -> str:
        return f"{self.specifier}localhost/os:{tag}"

    def put(self, image: FakeImage, tag: str, place: Path) -> str:
        layout = layout_of(image, place)
        target = f"containers-storage:{self.name(tag)}"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:os", target], check=True
        )
        return image.digest


@pytest.fixture
def store():
    # podman bounds the length of its directories' names, and writes what rmtree must be allowed to remove
    place = Path(tempfile.mkdtemp(prefix="cs-"))
    yield Store(place)
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def host(tmp_path, capsys):
    policy = {"default": [{"type": "insecureAcceptAnything"}]}
    write({"policy.json": json.dumps(policy).encode()}, tmp_path / "config/etc/containers")
    options = ["--sysroot", str(tmp_path / "host"), "--config-root", str(tmp_path / "config")]

    def bootc(command: str, *more: str, expect: int = 0) -> str:
        status = main([command, *options, *more])
        gc.collect()  # the copy goes with the image, which may be in a cycle; a process ends here
        found = capsys.readouterr()
        assert status == expect, found.err
        return found.out + found.err

    return bootc


def test_switch_check_and_upgrade(host, store, tmp_path):
    first = make_image("1", files={"usr/bin/tool": b"one"})
    name = store.name("1")
    assert store.put(first, "1", tmp_path / "one") == trio.run(
        storage.resolve, ImageReference.parse(f"containers-storage:{name}")
    )
    host("switch", "--quiet", "--transport", "containers-storage", name)
    booted = json.loads(host("status", "--json"))["status"]["booted"]["image"]
    assert booted["imageDigest"] == first.digest
    assert booted["image"] == {"image": name, "transport": "containers-storage"}
    assert "No changes" in host("upgrade", "--check")
    store.put(make_image("2", files={"usr/bin/tool": b"two"}), "1", tmp_path / "two")
    assert "Update available" in host("upgrade", "--check")
    spool = tmp_path / "host/bootc/spool/containers-storage"
    assert not spool.exists() or not any(spool.iterdir())
    host("upgrade", "--quiet")
    assert json.loads(host("status", "--json"))["status"]["booted"]["image"]["version"] == "2"
    assert not spool.exists() or not any(spool.iterdir())


def test_sizes_are_known_without_copying(store, tmp_path):
    image = make_image("1", files={"usr/bin/tool": b"one"})
    store.put(image, "1", tmp_path / "one")
    sizes = storage.stored_sizes(ImageReference.parse(f"containers-storage:{store.name('1')}"))
    assert {layer.diff_id for layer in image.layers} <= sizes.keys()


def test_an_image_that_podman_built(host, store, tmp_path):
    context = tmp_path / "context"
    for layer in make_image("3", files={"usr/bin/tool": b"three"}).layers:
        with tarfile.open(fileobj=io.BytesIO(layer.blob)) as archive:
            archive.extractall(context / "root")
    (context / "Containerfile").write_text(
        "FROM scratch\nCOPY root /\nLABEL containers.bootc=1 org.opencontainers.image.version=3\n"
    )
    subprocess.run(
        [
            "podman",
            *store.options,
            "build",
            "-q",
            "--pull-never",
            "-t",
            "localhost/os:3",
            str(context),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    host("switch", "--quiet", "--transport", "containers-storage", store.name("3"))
    booted = json.loads(host("status", "--json"))["status"]["booted"]["image"]
    assert booted["version"] == "3"
    # what is imported is what podman has: the layers' archives, byte for byte
    saved = tmp_path / "saved.tar"
    subprocess.run(
        [
            "podman",
            *store.options,
            "save",
            "-q",
            "--format",
            "oci-archive",
            "-o",
            str(saved),
            "localhost/os:3",
        ],
        check=True,
    )
    with tarfile.open(saved) as archive:
        index = json.load(archive.extractfile("index.json"))
        blob = "blobs/" + index["manifests"][0]["digest"].replace(":", "/")
        config = json.load(archive.extractfile(blob))["config"]["digest"]
        diff_ids = json.load(archive.extractfile("blobs/" + config.replace(":", "/")))["rootfs"][
            "diff_ids"
        ]
    streams = {path.name for path in (tmp_path / "host/composefs/streams").iterdir()}
    assert {f"oci-layer-{name}" for name in diff_ids} <= streams


def test_no_such_image(host, store):
    said = host(
        "switch", "--quiet", "--transport", "containers-storage", store.name("gone"), expect=1
    )
    assert "in containers-storage" in said
    assert "podman images" in said


def test_without_skopeo(store, monkeypatch):
    monkeypatch.setattr("bootc_core.process.SEARCH_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BootcError) as caught:
        trio.run(storage.resolve, ImageReference.parse(f"containers-storage:{store.name('1')}"))
    assert caught.value.reference == "no-skopeo"
