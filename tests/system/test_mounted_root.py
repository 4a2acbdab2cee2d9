"""The system that boots is the image: mounted by this kernel, and compared with the same image unpacked by umoci.

What is compared, and what may differ, is in `support.mounted`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mounted import assert_same, mounted, unpacked
from support.odd_tree import odd_tree

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from demo import debian, layout  # noqa: E402 - the demonstration is no installed package

BOOTC = Path(sys.executable).with_name("bootc")
pytestmark = [pytest.mark.root, pytest.mark.real]


def generated_image(home: Path) -> Path:
    root = home / "tree"
    odd_tree(root)
    image = layout.Layout(home / "oci")
    names = [name for name, _ in layout.walk(root)]
    update = [
        layout.Member("usr/lib/odd", mode=0o755),
        layout.Member("usr/lib/odd/.wh.two", b""),
        layout.Member("usr/lib/odd/many", mode=0o700),
        layout.Member("usr/lib/odd/many/.wh..wh..opq", b""),
        layout.Member("usr/lib/odd/many/only", b"o" * 1000),
        layout.Member("usr/lib/odd/empty", mode=0o755),
        layout.Member("usr/lib/odd/empty/now-a-folder", link="elsewhere"),
    ]
    layers = [image.add_layer(root, names, "gzip"), image.add_tar(update, "gzip")]
    image.add_image(
        "v2", layers, {"containers.bootc": "1", "org.opencontainers.image.version": "2"}
    )
    return home / "oci"


@pytest.fixture(scope="module", params=["generated", "debian"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with an image named v2."""
    if request.param == "generated":
        return generated_image(tmp_path_factory.mktemp("image"))
    home = PROJECT / ".cache/demo" / debian.host_suite()
    if not (home / "built").exists():
        pytest.skip(
            "the demonstration's image is not built: python3 demo/build_images.py .cache/demo"
        )
    return home / "oci"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry on a free port."""
    home = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(home / "data")}},
        "http": {"addr": address},
    }
    (home / "settings.yml").write_text(json.dumps(settings))
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(home / "settings.yml")], stdout=log, stderr=log
        )
    try:
        host, _, port = address.partition(":")
        for _ in range(200):
            assert process.poll() is None, (home / "log").read_text()
            try:
                socket.create_connection((host, int(port)), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_mounted_root_is_the_image(image: Path, registry: str, tmp_path: Path) -> None:
    reference = f"{registry}/os/{image.parent.name}:v2"
    run(
        "skopeo",
        "--insecure-policy",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{image}:v2",
        f"docker://{reference}",
    )
    run(BOOTC, "switch", "--sysroot", tmp_path / "host", "--no-signature-verification", reference)
    run("umoci", "unpack", "--image", f"{image}:v2", tmp_path / "unpacked")
    boots = mounted(tmp_path / "host")
    compared = assert_same(boots, unpacked(tmp_path / "unpacked/rootfs"))
    assert any(record["xattrs"] for record in compared.values()), (
        "the image has a file capability to compare"
    )
    assert boots["links"], "the image has hard links to compare"
