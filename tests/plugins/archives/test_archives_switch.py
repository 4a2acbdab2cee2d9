"""The command itself, from files alone: a host moves through all local transports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.image_archives import REF_NAME, descriptor, digest, write

from bootc_core.testing.images import FakeImage, make_image


def layout_of(image: FakeImage, path):
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


@pytest.mark.real
def test_switch_and_upgrade_from_files(tmp_path):
    policy = tmp_path / "config/etc/containers/policy.json"
    host = ("--sysroot", tmp_path / "host", "--config-root", tmp_path / "config")

    def bootc(command, *options, expect=0):
        done = subprocess.run(
            [sys.executable, "-m", "bootc_core.cli.main", command, *host, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    def booted():
        done = bootc("status", "--json").partition("\n")[0]
        return json.loads(done)["status"]["booted"]["image"]

    def image(version):
        files = {"usr/bin/tool": version.encode()}
        return layout_of(make_image(version, files=files), tmp_path / "os")

    layout = image("1")
    first = ("--transport", "oci", f"{layout}:os")
    said = bootc("switch", *first, expect=1)
    assert "there is no policy.json" in said
    assert str(policy) in said
    assert "--no-signature-verification" in said

    anything = [{"type": "insecureAcceptAnything"}]
    write(
        {
            "policy.json": json.dumps(
                {
                    "default": [{"type": "reject"}],
                    "transports": {name: {"": anything} for name in ("oci", "oci-archive", "dir")},
                }
            ).encode()
        },
        policy.parent,
    )
    bootc("switch", *first)
    assert booted()["version"] == "1"
    assert "No changes" in bootc("upgrade", "--check")

    image("2")
    assert "Update available" in bootc("upgrade", "--check")
    bootc("upgrade")
    assert booted()["version"] == "2"

    for version, transport in (("3", "oci-archive"), ("4", "dir"), ("5", "docker-archive")):
        source = f"oci:{image(version)}:os"
        target = tmp_path / f"moved{version}"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", source, f"{transport}:{target}"],
            check=True,
        )
        if transport == "docker-archive":  # which the policy does not name
            said = bootc("switch", "--transport", transport, target, expect=1)
            assert "the policy rejects this image" in said
            assert f"{policy}: default" in said
            assert booted()["version"] == "4"
            bootc("switch", "--no-signature-verification", "--transport", transport, target)
        else:
            bootc("switch", "--transport", transport, target)
        assert booted()["version"] == version
        assert booted()["image"] == {"image": str(target), "transport": transport}
    assert "switched off" in bootc("status", "--format", "humanreadable")
