"""oci:, oci-archive:, docker-archive: and dir:, hand-built: what is read, and each refusal."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import trio
from bootc_archives import plugin
from bootc_archives.fetch import fetch, resolve
from support.image_archives import (
    ARCHITECTURE,
    LAYERS,
    OCI,
    Layout,
    config,
    descriptor,
    digest,
    saved,
    simple_layout,
    tar,
    write,
)

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, TransportError
from bootc_core.models.oci import LAYER_TYPES, Platform
from bootc_core.models.reference import ImageReference

OTHER = "s390x" if ARCHITECTURE != "s390x" else "amd64"
HERE = {"os": "linux", "architecture": ARCHITECTURE}
THERE = {"os": "linux", "architecture": OTHER}


def read(image, layer):
    source = trio.run(image.blob_source, layer)
    with source.path.open("rb") as file:
        file.seek(source.offset)
        return file.read(source.length)


def check_layers(image, layers=LAYERS):
    """Every layer is where the image says, with the right digests, compressed and not."""
    assert len(image.manifest.layers) == len(layers)
    for layer, expected in zip(image.manifest.layers, layers, strict=True):
        data = read(image, layer)
        algorithm = layer.digest.partition(":")[0]
        assert hashlib.new(algorithm, data).hexdigest() == layer.digest.partition(":")[2]
        plain = gzip.decompress(data) if LAYER_TYPES[layer.media_type] == "gzip" else data
        assert plain == expected
    assert [digest(layer) for layer in layers] == list(image.config.rootfs.diff_ids)


def get(text):
    reference = ImageReference.parse(text)
    image = fetch(reference)
    assert resolve(reference) == image.tag_digest
    assert image.requested == reference
    assert image.manifest_document.digest == image.digest
    return image


def refused(text, reference, kind=BootcError):
    with pytest.raises(kind) as caught:
        fetch(ImageReference.parse(text))
    assert caught.value.reference == reference, caught.value.to_json()
    assert caught.value.message.isprintable()
    return caught.value


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
@pytest.mark.parametrize("suffix", ["", ":stable", ":@0"])
def test_layout(tmp_path, transport, suffix):
    layout = simple_layout()
    path = tmp_path / "image"
    (layout.write if transport == "oci" else layout.write_tar)(path)
    image = get(f"{transport}:{path}{suffix}")
    assert image.index is None
    assert image.digest == layout.entries[0]["digest"]
    assert image.config.version == "1"
    check_layers(image)


def test_relative_path(tmp_path, monkeypatch):
    simple_layout().write(tmp_path / "image")
    simple_layout().write_tar(tmp_path / "image.tar")
    monkeypatch.chdir(tmp_path)
    for text in ("oci:image", "oci-archive:image.tar"):
        image = get(text)
        monkeypatch.chdir("/")
        check_layers(image)
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_index_gives_the_image_for_this_machine(tmp_path, transport):
    layout = Layout()
    mine, other = layout.manifest(version="mine"), layout.manifest(OTHER, version="other")
    index = layout.add(layout.index((other, THERE), (mine, HERE)), "multi")
    path = tmp_path / "image"
    (layout.write if transport == "oci" else layout.write_tar)(path)
    image = get(f"{transport}:{path}:multi")
    assert image.index is not None
    assert (image.index.raw, image.tag_digest) == (index, digest(index))
    assert (image.digest, image.config.version) == (digest(mine), "mine")
    elsewhere = fetch(
        ImageReference.parse(f"{transport}:{path}"), Platform(os="linux", architecture=OTHER)
    )
    assert elsewhere.digest == digest(other)


def test_index_in_an_index(tmp_path):
    layout = Layout()
    mine = layout.manifest()
    inner = layout.index((mine, HERE))
    outer = layout.index((inner, HERE))
    layout.add(outer)
    image = get(f"oci:{layout.write(tmp_path / 'image')}")
    assert (image.tag_digest, image.digest) == (digest(outer), digest(mine))
    layout.entries.clear()
    layout.add(layout.index((outer, HERE)))
    assert refused(f"oci:{layout.write(tmp_path / 'deep')}", "index-depth").catalogue == "LIM"


def test_one_of_several(tmp_path):
    layout = Layout()
    first = layout.add(layout.manifest(version="1"), "v1")
    second = layout.add(layout.manifest(version="2"), "quay.io/acme/os:v2")
    third = layout.add(layout.manifest(version="3"))
    path = layout.write(tmp_path / "image")
    assert get(f"oci:{path}:v1").digest == digest(first)
    assert get(f"oci:{path}:quay.io/acme/os:v2").digest == digest(second)
    assert get(f"oci:{path}:@2").digest == digest(third)
    for suffix in ("", ":v3", ":@3"):
        error = refused(f"oci:{path}{suffix}", "no-such-image", TransportError)
        assert error.found == "v1, quay.io/acme/os:v2, @2"
        assert error.catalogue == "NOTFOUND"


def test_artifacts_beside_the_image_do_not_count(tmp_path):
    layout = simple_layout()
    layout.entries.append(descriptor("application/vnd.example+json", b"{}"))
    layout.write_index()
    check_layers(get(f"oci:{layout.write(tmp_path / 'image')}"))


def test_one_name_for_two_images(tmp_path):
    layout = simple_layout("same")
    layout.add(layout.manifest(version="2"), "same")
    error = refused(f"oci:{layout.write(tmp_path / 'image')}:same", "no-such-image")
    assert "2 images called same" in error.message.replace("'", "")


def test_sha512_blobs(tmp_path):
    layout = Layout()
    manifest = layout.manifest()
    sha512 = hashlib.sha512(manifest).hexdigest()
    layout.files[f"blobs/sha512/{sha512}"] = manifest
    layout.add(manifest)
    layout.entries[0]["digest"] = f"sha512:{sha512}"
    layout.write_index()
    image = get(f"oci:{layout.write(tmp_path / 'image')}")
    assert image.digest == digest(manifest)
    layout.files[f"blobs/sha512/{sha512}"] = manifest.replace(b"schemaVersion", b"schemaversion")
    refused(f"oci:{layout.write(tmp_path / 'bad')}", "digest-mismatch")


def directory_files(layers=LAYERS):
    layout = Layout()
    manifest = layout.manifest(layers=layers)
    files = {"version": b"Directory Transport Version: 1.1\n", "manifest.json": manifest}
    for name, data in layout.files.items():
        if name.startswith("blobs/"):
            files[name.rpartition("/")[2]] = data
    return files


def test_directory(tmp_path):
    files = directory_files()
    image = get(f"dir:{write(files, tmp_path / 'image')}")
    assert image.digest == digest(files["manifest.json"])
    check_layers(image)
    (tmp_path / "image/version").unlink()
    check_layers(get(f"dir:{tmp_path / 'image'}"))


def test_directory_with_an_index(tmp_path):
    layout = Layout()
    mine = layout.manifest()
    index = layout.index((mine, HERE))
    files = {
        "version": b"Directory Transport Version: 1.2\n",
        "manifest.json": index,
        f"{digest(mine).removeprefix('sha256:')}.manifest.json": mine,
    }
    for name, data in layout.files.items():
        if name.startswith("blobs/") and data != mine:
            files[name.rpartition("/")[2]] = data
    image = get(f"dir:{write(files, tmp_path / 'image')}")
    assert (image.tag_digest, image.digest) == (digest(index), digest(mine))
    check_layers(image)


@pytest.mark.parametrize("suffix", ["", ":@0", ":quay.io/acme/os:9"])
def test_docker_archive(tmp_path, suffix):
    path = tmp_path / "image.tar"
    path.write_bytes(tar(saved()))
    image = get(f"docker-archive:{path}{suffix}")
    check_layers(image)
    assert [layer.digest for layer in image.manifest.layers] == [digest(one) for one in LAYERS]
    assert {layer.media_type for layer in image.manifest.layers} == {f"{OCI}.layer.v1.tar"}


def test_docker_archive_digest_is_of_the_content_alone(tmp_path):
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    files = saved()
    one.write_bytes(tar(files))
    two.write_bytes(tar(dict(reversed(files.items()))))
    assert get(f"docker-archive:{one}").digest == get(f"docker-archive:{two}").digest
    manifest = {
        "config": descriptor(f"{OCI}.config.v1+json", config()),
        "layers": [descriptor(f"{OCI}.layer.v1.tar", layer) for layer in LAYERS],
        "mediaType": f"{OCI}.manifest.v1+json",
        "schemaVersion": 2,
    }
    exact = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert get(f"docker-archive:{one}").manifest_document.raw == exact


def test_docker_archive_names_are_normalised(tmp_path):
    path = tmp_path / "image.tar"
    path.write_bytes(tar(saved(tags=("debian:13", "/bad tag/"))))
    for suffix in ("debian:13", "docker.io/library/debian:13"):
        get(f"docker-archive:{path}:{suffix}")
    error = refused(f"docker-archive:{path}:debian", "no-such-image")
    assert error.found == "debian:13, /bad tag/"


def test_docker_archive_with_several_images(tmp_path):
    one, two = saved(("acme/a:1",)), saved((), LAYERS[:1])
    items = json.loads(one["manifest.json"]) + json.loads(two["manifest.json"])
    items[1]["RepoTags"] = None
    files = {**one, **two, "manifest.json": json.dumps(items).encode()}
    path = tmp_path / "image.tar"
    path.write_bytes(tar(files))
    check_layers(get(f"docker-archive:{path}:acme/a:1"))
    check_layers(get(f"docker-archive:{path}:@1"), LAYERS[:1])
    error = refused(f"docker-archive:{path}", "no-such-image")
    assert error.found == "acme/a:1, @1"
    refused(f"docker-archive:{path}:@2", "no-such-image")


@pytest.mark.parametrize("hard", [False, True])
def test_docker_archive_links_count_one_level(tmp_path, hard):
    layers = (LAYERS[0], LAYERS[0], LAYERS[1])
    files = saved(layers=layers)
    del files["1/layer.tar"]
    target = "0/layer.tar" if hard else "../0/layer.tar"
    path = tmp_path / "image.tar"
    path.write_bytes(tar(files, {"1/layer.tar": target}, hard))
    check_layers(get(f"docker-archive:{path}"), layers)


@pytest.mark.parametrize(
    "target", ["../../0/layer.tar", "/etc/passwd", "layer.tar", "../2/x", ".."]
)
def test_docker_archive_links_to_nothing(tmp_path, target):
    files = saved()
    del files["1/layer.tar"]
    path = tmp_path / "image.tar"
    path.write_bytes(tar(files, {"1/layer.tar": target, "2/x": "../0/layer.tar"}))
    refused(f"docker-archive:{path}", "missing-file", ContentError)


def test_docker_archive_with_compressed_layers(tmp_path):
    stored = [gzip.compress(layer, mtime=0) for layer in LAYERS]
    path = tmp_path / "image.tar"
    path.write_bytes(tar(saved(stored=stored)))
    image = get(f"docker-archive:{path}")
    check_layers(image)
    assert [layer.digest for layer in image.manifest.layers] == [digest(one) for one in stored]


def test_a_layer_whose_first_name_looks_compressed(tmp_path):
    layers = (tar({"BZh91": b"x"}),)
    path = tmp_path / "BZh.tar"
    path.write_bytes(tar({"BZh": b"", **saved(layers=layers)}))
    check_layers(get(f"docker-archive:{path}"), layers)


def test_layers_stored_otherwise_than_the_manifest_says(tmp_path):
    """Local tools do that; the digest is of what is stored, so nothing is believed."""
    layout = Layout()
    value = json.loads(layout.manifest())
    gzip_type = value["layers"][0]["mediaType"]
    value["layers"] = [
        descriptor(gzip_type, layout.blob(LAYERS[0])),
        {**value["layers"][1], "mediaType": gzip_type.replace("gzip", "zstd")},
    ]
    document = layout.add(layout.blob(json.dumps(value).encode()))
    image = get(f"oci:{layout.write(tmp_path / 'image')}")
    check_layers(image)
    assert image.manifest_document.raw == document
    types = [LAYER_TYPES[layer.media_type] for layer in image.manifest.layers]
    assert types == ["none", "gzip"]


# --- what is refused ------------------------------------------------------------------------------

TRANSPORTS = ("oci", "oci-archive", "docker-archive", "dir")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_missing(tmp_path, transport):
    error = refused(f"{transport}:{tmp_path}/gone", "not-found", TransportError)
    assert (error.catalogue, error.retryable) == ("NOTFOUND", False)
    assert f"{tmp_path}/gone" in error.message


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_c02_not_a_file(tmp_path, transport, kind):
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/null")
    refused(f"{transport}:{path}", "not-a-file", TransportError)


def test_a_file_where_a_directory_belongs(tmp_path):
    path = simple_layout().write_tar(tmp_path / "image.tar")
    error = refused(f"oci:{path}", "not-a-directory", TransportError)
    assert "oci-archive:" in str(error.hint)
    refused(f"dir:{path}", "not-a-directory", TransportError)


def test_other_formats_are_recognised(tmp_path):
    layout = simple_layout().write(tmp_path / "layout")
    layout_tar = simple_layout().write_tar(tmp_path / "layout.tar")
    docker = tmp_path / "docker.tar"
    docker.write_bytes(tar(saved()))
    ancient = tmp_path / "ancient.tar"
    ancient.write_bytes(tar({"repositories": b"{}"}))
    other = tmp_path / "other.tar"
    other.write_bytes(tar({"README": b""}))
    for text, hint in (
        (f"oci-archive:{docker}", "docker-archive:"),
        (f"docker-archive:{layout_tar}", "oci-archive:"),
        (f"docker-archive:{ancient}", "1.10"),
        (f"dir:{layout}", "oci:"),
    ):
        assert hint in str(refused(text, "not-a-layout", TransportError).hint)
    for text in (f"oci-archive:{other}", f"docker-archive:{other}", f"oci:{tmp_path}"):
        assert refused(text, "not-a-layout", TransportError).hint is None
    assert "oci:" in str(refused(f"oci-archive:{layout}", "not-a-file").hint)


@pytest.mark.parametrize(
    "header", [b"", b"{}", b"[]", b'{"imageLayoutVersion":"2.0.0"}', b'{"imageLayoutVersion":1}']
)
def test_unknown_layout_version(tmp_path, header):
    layout = simple_layout()
    layout.files["oci-layout"] = header
    path = layout.write(tmp_path / "image")
    with pytest.raises(ContentError):
        fetch(ImageReference.parse(f"oci:{path}"))


def test_unknown_directory_version(tmp_path):
    files = directory_files()
    files["version"] = b"Directory Transport Version: 2.0\n"
    refused(f"dir:{write(files, tmp_path / 'image')}", "unknown-layout")


def blob_of(layout, number):
    """Name of the blob: 0 configuration, 1 and 2 layers, 3 manifest."""
    return [name for name in layout.files if name.startswith("blobs/")][number]


def written(layout, transport, path):
    return layout.write(path) if transport == "oci" else layout.write_tar(path)


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
@pytest.mark.parametrize("number", range(4))
def test_missing_blob(tmp_path, transport, number):
    layout = simple_layout()
    del layout.files[blob_of(layout, number)]
    error = refused(
        f"{transport}:{written(layout, transport, tmp_path / 'i')}", "missing-file", ContentError
    )
    assert error.catalogue == "INT"


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("change", [b"x", None])
def test_m03_wrong_size(tmp_path, transport, number, change):
    layout = simple_layout()
    name = blob_of(layout, number)
    layout.files[name] = layout.files[name] + change if change else layout.files[name][:-1]
    error = refused(f"{transport}:{written(layout, transport, tmp_path / 'i')}", "size-mismatch")
    assert error.catalogue == "INT"


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
@pytest.mark.parametrize("number", [0, 3])
def test_m01_m02_wrong_digest(tmp_path, transport, number):
    layout = simple_layout()
    name = blob_of(layout, number)
    layout.files[name] = layout.files[name].replace(b"sha256", b"sha257", 1)
    error = refused(f"{transport}:{written(layout, transport, tmp_path / 'i')}", "digest-mismatch")
    assert error.catalogue == "INT"


def test_m02_docker_archive_config_of_another_name(tmp_path):
    files = saved()
    name = next(iter(files))
    files[name] = files[name] + b" "
    path = tmp_path / "image.tar"
    path.write_bytes(tar(files))
    refused(f"docker-archive:{path}", "digest-mismatch")


def test_m14_configuration_of_another_machine(tmp_path):
    layout = Layout()
    layout.add(layout.manifest(OTHER))
    error = refused(f"oci:{layout.write(tmp_path / 'image')}", "wrong-platform")
    assert error.found == f"linux/{OTHER}"


def test_m13_no_image_for_this_machine(tmp_path):
    layout = Layout()
    layout.add(layout.index((layout.manifest(OTHER), THERE)))
    error = refused(f"oci:{layout.write(tmp_path / 'image')}", "no-platform")
    assert error.found == f"linux/{OTHER}"


def test_m15_layer_count(tmp_path):
    files = saved()
    items = json.loads(files["manifest.json"])
    items[0]["Layers"].pop()
    files["manifest.json"] = json.dumps(items).encode()
    path = tmp_path / "image.tar"
    path.write_bytes(tar(files))
    refused(f"docker-archive:{path}", "layer-count")


@pytest.mark.parametrize(
    "change",
    [
        b"[]",
        b"{}",
        b"null",
        b"[1]",
        b'[{"Config": 1}]',
        b'[{"Layers": []}]',
        b'[{"Config": "a", "Config": "b"}]',
        b'[{"Config": "../../etc/passwd"}]',
        b'[{"Config": "gone"}]',
        b'[{"Config": "/etc/passwd"}]',
        b'[{"Config": ""}]',
        b"[" * 100_000,
    ],
)
def test_docker_archive_bad_manifest(tmp_path, change):
    path = tmp_path / "image.tar"
    path.write_bytes(tar({**saved(), "manifest.json": change}))
    with pytest.raises((ContentError, TransportError)) as caught:
        fetch(ImageReference.parse(f"docker-archive:{path}"))
    assert caught.value.catalogue in ("INT", "CON", "NOTFOUND", "LIM")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256:../../../etc/passwd", None),
        ("md5:" + "a" * 32, None),
        ("sha256:" + "A" * 64, None),
        (None, -1),
        (None, 1.5),
        (None, "7"),
        (None, 2**63),
    ],
)
def test_m04_m19_bad_descriptors(tmp_path, name, value):
    layout = simple_layout()
    layout.entries[0].update({"digest": name} if name else {"size": value})
    layout.write_index()
    error = refused(f"oci:{layout.write(tmp_path / 'image')}", "bad-document")
    assert error.catalogue == "INT"


def test_m05_huge_documents(tmp_path):
    layout = simple_layout()
    layout.files["index.json"] += b" " * limits.MANIFEST_BYTES
    error = refused(f"oci:{layout.write(tmp_path / 'image')}", "too-large")
    assert error.catalogue == "LIM"
    layout = Layout()
    layout.add(layout.blob(layout.manifest() + b" " * limits.MANIFEST_BYTES))
    refused(f"oci:{layout.write(tmp_path / 'second')}", "too-large")


def test_m07_m08_strict_json(tmp_path):
    for number, text in enumerate((b'{"manifests":[],"manifests":[]}', b"{} x", b"\xef\xbb\xbf{}")):
        layout = simple_layout()
        layout.files["index.json"] = text
        refused(f"oci:{layout.write(tmp_path / str(number))}", "bad-json")


def test_m18_too_many_layers(tmp_path):
    layout = Layout()
    raw = json.loads(layout.manifest())
    raw["layers"] *= limits.LAYERS
    layout.add(layout.blob(json.dumps(raw).encode()))
    refused(f"oci:{layout.write(tmp_path / 'image')}", "bad-document")


def test_m24_artifacts_are_no_images(tmp_path):
    layout = Layout()
    raw = json.loads(layout.manifest())
    raw["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    layout.add(layout.blob(json.dumps(raw).encode()))
    refused(f"oci:{layout.write(tmp_path / 'image')}", "not-an-image")


def test_blob_links_that_lead_out(tmp_path):
    layout = simple_layout()
    path = layout.write(tmp_path / "image")
    for number in range(4):
        blob = path / blob_of(layout, number)
        outside = tmp_path / f"outside{number}"
        blob.rename(outside)
        blob.symlink_to(outside)
        error = refused(f"oci:{path}", "path-escape", ContentError)
        assert str(outside) in str(error.found)
        blob.unlink()
        outside.rename(path / "moved")
        blob.symlink_to("../../moved")  # inside is fine
        get(f"oci:{path}")
        blob.unlink()
        (path / "moved").rename(blob)


def test_index_json_link_that_leads_out(tmp_path):
    path = simple_layout().write(tmp_path / "image")
    (path / "index.json").unlink()
    (path / "index.json").symlink_to("/etc/passwd")
    refused(f"oci:{path}", "path-escape", ContentError)


def test_special_files_as_blobs_do_not_block(tmp_path):
    layout = simple_layout()
    path = layout.write(tmp_path / "image")
    for number in range(4):
        blob = path / blob_of(layout, number)
        data = blob.read_bytes()
        blob.unlink()
        os.mkfifo(blob)
        refused(f"oci:{path}", "not-a-file", ContentError)
        blob.unlink()
        blob.write_bytes(data)


def test_a_link_to_the_layout_itself_is_fine(tmp_path):
    simple_layout().write(tmp_path / "image")
    (tmp_path / "link").symlink_to("image")
    check_layers(get(f"oci:{tmp_path}/link"))


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd"])
def test_compressed_archives_say_how_to_unpack(tmp_path, transport, program):
    magic = {
        "gzip": gzip.compress(b"x"),
        "xz": b"\xfd7zXZ\x00" + bytes(20),
        "bzip2": b"BZh91AY" + bytes(20),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    }[program]
    path = tmp_path / "image.tar"
    path.write_bytes(magic)
    error = refused(f"{transport}:{path}", "compressed-archive", ContentError)
    assert program in error.message
    assert str(path) in str(error.hint)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_truncated_archives(tmp_path, transport):
    whole = tar(simple_layout().files if transport == "oci-archive" else saved())
    path = tmp_path / "image.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        archive.getmembers()
        content = archive.offset  # without the end marker and the padding
    for length in (0, 1, 511, 512, 513, 700, content // 2, content - 512, content, content + 512):
        path.write_bytes(whole[:length])
        with pytest.raises(ContentError) as caught:
            fetch(ImageReference.parse(f"{transport}:{path}"))
        assert caught.value.catalogue == "INT", length
    path.write_bytes(whole[: content + 1024])
    fetch(ImageReference.parse(f"{transport}:{path}"))


def test_rubbish_archives(tmp_path):
    path = tmp_path / "image.tar"
    path.write_bytes(b"This is not a tar file." * 100)
    with pytest.raises(ContentError):
        fetch(ImageReference.parse(f"oci-archive:{path}"))


def test_one_name_twice_in_an_archive(tmp_path):
    first = tar(simple_layout().files)
    second = tar({"index.json": b"{}"})
    path = tmp_path / "image.tar"
    path.write_bytes(first.rstrip(b"\0") + bytes(-len(first.rstrip(b"\0")) % 512) + second)
    refused(f"oci-archive:{path}", "ambiguous-archive", ContentError)


def test_t_members_behind_the_end(tmp_path):
    path = tmp_path / "image.tar"
    path.write_bytes(tar(simple_layout().files) + tar({"index.json": b"{}"}))
    refused(f"oci-archive:{path}", "hidden-members", ContentError)


def test_too_many_members(tmp_path):
    path = tmp_path / "image.tar"
    block = tar({"x": b""})[:512]
    path.write_bytes(block * 2 + bytes(1024))
    refused(f"oci-archive:{path}", "ambiguous-archive")
    directory = tar({"x/": b""})[:156] + b"5" + tar({"x/": b""})[157:512]
    total = sum(directory[:148]) + sum(directory[156:]) + 8 * 32
    directory = directory[:148] + b"%06o\0 " % total + directory[156:]
    path.write_bytes(directory * (limits.ARCHIVE_MEMBERS + 1) + bytes(1024))
    assert refused(f"oci-archive:{path}", "limit-exceeded").catalogue == "LIM"


def test_an_archive_that_is_replaced_meanwhile(tmp_path):
    path = simple_layout().write_tar(tmp_path / "image.tar")
    image = get(f"oci-archive:{path}")
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(TransportError) as caught:
        trio.run(image.blob_source, image.manifest.layers[0])
    assert caught.value.reference == "changed-meanwhile"


@pytest.mark.root
@pytest.mark.parametrize(
    ("transport", "mode"), [*((transport, 0) for transport in TRANSPORTS), ("oci", 0o444)]
)
def test_no_permission(tmp_path, transport, mode):
    """In a process of another user, since root may read everything."""
    path = tmp_path / "image"
    if transport in ("oci", "dir"):
        write(simple_layout().files if transport == "oci" else directory_files(), path)
    else:
        path.write_bytes(tar(saved()))
    path.chmod(mode)
    program = (
        "import os, sys\n"
        "from bootc_archives.fetch import fetch\n"
        "from bootc_core.errors import TransportError\n"
        "from bootc_core.models.reference import ImageReference\n"
        "os.chdir(sys.argv[2]); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: fetch(ImageReference.parse(sys.argv[1]))\n"
        "except TransportError as problem: print(problem.reference)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"{transport}:{path.name}", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "no-permission\n"


# --- the hooks ------------------------------------------------------------------------------------


def test_hooks(tmp_path):
    path = simple_layout().write(tmp_path / "image")
    (offer,) = plugin.bootc_register_transports()
    assert set(offer.transports) == set(TRANSPORTS)
    reference = ImageReference.parse(f"oci:{path}")
    image = trio.run(plugin.bootc_fetch, reference)
    assert image is not None
    assert trio.run(plugin.bootc_resolve, reference) == image.tag_digest
    check_layers(image)
    other = ImageReference.parse("quay.io/acme/os")
    assert trio.run(plugin.bootc_fetch, other) is None
    assert trio.run(plugin.bootc_resolve, other) is None
