"""``bootc plan`` and what ``upgrade --check`` adds: from metadata, changing nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.image_archives import REF_NAME, descriptor, digest, write

from bootc_core.cli.main import main
from bootc_core.testing.images import FakeImage, make_image


def layout_of(image: FakeImage, path: Path, annotations: dict[str, str] | None = None) -> Path:
    manifest, config = image.manifest, image.config
    value = json.loads(manifest.raw)
    layers = [image.blob(layer["digest"]) for layer in value["layers"]]
    raw = manifest.raw
    if annotations:
        value["layers"][-1]["annotations"] = annotations
        raw = json.dumps(value).encode()
    files = {"blobs/" + digest(blob).replace(":", "/"): blob for blob in (raw, config.raw, *layers)}
    entry = descriptor(manifest.media_type, raw, annotations={REF_NAME: "os"})
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    return write(files, path)


@pytest.fixture
def host(tmp_path, capsys):
    policy = {"default": [{"type": "insecureAcceptAnything"}]}
    write({"policy.json": json.dumps(policy).encode()}, tmp_path / "config/etc/containers")
    options = ["--sysroot", str(tmp_path / "host"), "--config-root", str(tmp_path / "config")]

    def bootc(command: str, *more: str, expect: int = 0) -> str:
        assert main([command, *options, *more]) == expect
        return capsys.readouterr().out

    layout_of(make_image("1", files={"usr/bin/tool": b"one"}), tmp_path / "os")
    bootc("switch", "--quiet", "--transport", "oci", f"{tmp_path}/os:os")
    return bootc


def listing(path: Path) -> list[tuple[str, int]]:
    found = []
    for place, _, files in os.walk(path):
        found += [(f"{place}/{name}", os.lstat(f"{place}/{name}").st_mtime_ns) for name in files]
    return sorted(found)


@pytest.mark.root
def test_nothing_to_do(host):
    assert "Nothing to do" in host("plan")
    value = json.loads(host("plan", "--json"))
    assert value["changed"] is False
    assert value["bytes"] == {"most": 0, "least": 0}
    assert value["kernel"]["changes"] is False
    assert value["kernelArguments"]["change"] is False


@pytest.mark.root
def test_an_update(host, tmp_path):
    new = make_image("2", files={"usr/bin/tool": b"two"})
    layout_of(new, tmp_path / "os")
    before = listing(tmp_path / "host")
    value = json.loads(host("plan", "--json"))
    text = host("plan")
    assert listing(tmp_path / "host") == before
    layers = json.loads(new.manifest.raw)["layers"]
    known = {item["digest"] for item in value["layers"]["missing"]}
    assert known <= {layer["digest"] for layer in layers}
    assert value["apiVersion"] == "bootc.plan/v1"
    assert value["changed"] is True
    assert value["image"]["version"] == "2"
    assert value["current"]["version"] == "1"
    assert value["bytes"]["most"] == sum(
        layer["size"] for layer in layers if layer["digest"] in known
    )
    assert value["bytes"]["least"] == value["bytes"]["most"]
    assert value["kernel"]["changes"] is None
    assert value["space"][0]["what"] == "system and boot"
    assert value["space"][0]["enough"] is True
    assert "Version:  2 (now 1)" in text
    assert "Kernel arguments: unknown before the layers are fetched" in text
    said = host("upgrade", "--check")
    assert "Update available" in said
    assert f"Download: {value['bytes']['most']} bytes" in said


@pytest.mark.root
def test_layers_that_come_by_file(host, tmp_path):
    new = make_image("2", files={"usr/bin/tool": os.urandom(4000)})
    prefix = "io.github.containers.zstd-chunked."
    layout_of(
        new,
        tmp_path / "os",
        {
            f"{prefix}manifest-checksum": "sha256:" + "0" * 64,
            f"{prefix}manifest-position": "100:50:60:1",
            f"{prefix}tarsplit-position": "160:20:60",
        },
    )
    value = json.loads(host("plan", "--json"))
    assert [item["byFile"] for item in value["layers"]["missing"]].count(True) == 1
    assert value["bytes"]["least"] < value["bytes"]["most"]
    assert "file by file" in host("plan")


@pytest.mark.root
def test_another_image(host, tmp_path):
    layout_of(make_image("9", files={"usr/bin/tool": b"nine"}), tmp_path / "other")
    value = json.loads(host("plan", "--json", "--transport", "oci", f"{tmp_path}/other:os"))
    assert value["image"]["version"] == "9"
    assert value["image"]["reference"] == f"oci:{tmp_path}/other:os"


def test_without_a_host(tmp_path, capsys):
    assert main(["plan", "--sysroot", str(tmp_path / "none")]) == 1
    assert "nothing is deployed" in capsys.readouterr().err
