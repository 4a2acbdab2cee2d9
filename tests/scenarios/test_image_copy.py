"""``bootc image``: deployed images listed and given back, images copied between places, a host updated from a USB stick."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import images
from support.mounted import identity, unpacked
from support.registry import running_registry

from bootc_core.cli.main import main

pytestmark = [pytest.mark.real, pytest.mark.root]
BIG = bytes(range(256)) * 8000


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    place = tmp_path_factory.mktemp("registry")
    for version in ("1", "2"):
        more = {"usr/bin/tool": f"tool {version}", "usr/share/common": BIG}
        layers = [images.bootable({"usr/lib/kernel-notes": BIG}), more]
        layers[0]["usr/lib/os-release"] = images.OS_RELEASE.format(version=version)
        if version == "2":
            layers.append({"usr/bin/.wh.tool": "", "usr/bin/tools/new": "new"})
        images.build(place / version, layers, compression="none", labels={"version": version})
    with running_registry(place) as found:
        for version in ("1", "2"):
            found.push(place / version, f"acme/os:{version}", tag="latest")
        yield found


class Host:
    """A sysroot and a configuration of its own."""

    def __init__(self, place: Path, capsys) -> None:
        self.place, self._capsys = place, capsys
        self.config = place / "config"
        (self.config / "etc/containers").mkdir(parents=True)
        self.policy("insecureAcceptAnything")

    def policy(self, kind: str) -> None:
        path = self.config / "etc/containers/policy.json"
        path.write_text(json.dumps({"default": [{"type": kind}]}))

    @property
    def sysroot(self) -> Path:
        return self.place / "host"

    def run(self, *words: str | Path, expect: int = 0, sysroot: bool = True) -> str:
        where = ["--sysroot", str(self.sysroot)] if sysroot else []
        where += ["--config-root", str(self.config)]
        with contextlib.chdir(self.place):
            status = main([*map(str, words), *where])
        found = self._capsys.readouterr()
        assert status == expect, found.err
        return found.out + found.err


@pytest.fixture
def host(tmp_path, capsys):
    return Host(tmp_path, capsys)


def deployed(host: Host) -> dict:
    return json.loads(host.run("status", "--json"))["status"]["booted"]["image"]


def config_of(registry, tag: str) -> str:
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.authority}/{tag}"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    return json.loads(raw)["config"]["digest"]


def test_list(host, registry):
    name = f"{registry.authority}/acme/os:1"
    host.run("switch", "--quiet", name)
    assert host.run("image", "list").splitlines() == [
        f"{'REPOSITORY'.ljust(len(name))}  TYPE",
        f"{name}  host",
    ]
    assert json.loads(host.run("image", "list", "--format", "json", "--type", "host")) == [
        {"image_type": "host", "image": name}
    ]
    said = host.run("image", "list", "--type", "host", expect=1, sysroot=False)
    assert "Listing host images requires a booted bootc system" in said


def test_a_deployed_image_is_given_back(host, registry, tmp_path, capsys):
    """To a registry, an archive and podman's storage: the image ID is the same, and so is the tree deployed from there."""
    name = f"{registry.authority}/acme/os:2"
    host.run("switch", "--quiet", name)
    (host.config / "etc/containers/registries.conf").write_text(
        f'[[registry]]\nlocation = "{registry.authority}"\ninsecure = true\n'
    )
    target = f"docker://{registry.authority}/acme/given:2"
    said = host.run("image", "push", "--quiet", target)
    assert f"Pushed: {target} sha256:" in said
    assert config_of(registry, "acme/given:2") == config_of(registry, "acme/os:2")
    again = Host(tmp_path / "again", capsys)
    again.run("switch", "--quiet", f"{registry.authority}/acme/given:2")
    assert identity(again.sysroot) == identity(host.sysroot)

    host.run("image", "push", "--source", name, "oci-archive:given.tar:2")
    third = Host(tmp_path / "third", capsys)
    third.run("switch", "--transport", "oci-archive", tmp_path / "given.tar:2")
    assert identity(third.sysroot) == identity(host.sysroot)

    place = Path(tempfile.mkdtemp(prefix="cs-"))
    try:
        storage = f"[vfs@{place}/graph+{place}/run]localhost/bootc"
        said = host.run("image", "copy-to-storage", "--target", storage)
        assert "Copying " in said
        assert "Pushed: containers-storage:" in said
        fourth = Host(tmp_path / "fourth", capsys)
        fourth.run("switch", "--quiet", "--transport", "containers-storage", storage)
        assert identity(fourth.sysroot) == identity(host.sysroot)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    said = host.run("image", "push", "--source", "quay.io/acme/other:1", target, expect=1)
    assert "Image quay.io/acme/other:1 not found" in said
    assert not list(Path("/var/tmp").glob("bootc-copy-*/layout"))


def _is_kept(path: str) -> bool:
    """Whether ostree keeps it where it was: the rest is mounted over, and /var is a template in the factory."""
    emptied = ("boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var")
    return path.partition("/")[0] not in emptied and not path.startswith("usr/share/factory")


def test_an_ostree_deployment_is_given_back(host, registry, tmp_path, capsys):
    """As one layer, by the real ostree: the tree is the same but for times; it deploys again."""
    name = f"{registry.authority}/acme/os:2"
    host.run("switch", "--quiet", "--backend", "ostree", name)
    said = host.run("image", "push", f"oci:{tmp_path}/given:2")
    assert "Pushed: oci:" in said
    copy = ("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false")
    subprocess.run([*copy, f"docker://{name}", f"oci:{tmp_path}/original:2"], check=True)
    trees = []
    for layout in ("original", "given"):
        bundle = tmp_path / f"{layout}-tree"
        unpack = ("umoci", "unpack", "--image", f"{tmp_path}/{layout}:2", bundle)
        subprocess.run(unpack, check=True, capture_output=True)
        entries = unpacked(bundle / "rootfs")["entries"]
        for record in entries.values():
            record.pop("mtime")
        trees.append({path: one for path, one in entries.items() if _is_kept(path)})
    assert trees[0] == trees[1]
    again = Host(tmp_path / "again", capsys)
    again.run(
        "switch", "--quiet", "--backend", "ostree", "--transport", "oci", tmp_path / "given:2"
    )
    assert deployed(again)["version"] == deployed(host)["version"] == "2"


def test_a_damaged_object_is_not_given_back(host, registry):
    host.run("switch", "--quiet", f"{registry.authority}/acme/os:1")
    objects = host.sysroot / "composefs/objects"
    victim = next(
        path for path in objects.rglob("*") if path.is_file() and path.read_bytes() == BIG
    )
    victim.chmod(0o600)
    victim.write_bytes(BIG[:-1] + b"!")
    said = host.run("image", "push", "oci:given", expect=1)
    assert "error: " in said
    assert not (host.place / "given/index.json").exists()


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_updates_by_usb_stick(host, registry, transport):
    """docs/registries.md, "Without network": copied where there is a network, deployed where there is none."""
    stick = host.place / "stick"
    stick.mkdir()
    source = f"{registry.authority}/acme/os"
    host.run("image", "copy", f"{source}:1", f"{transport}:{stick}/os", sysroot=False)
    host.run("switch", "--quiet", "--transport", transport, stick / "os")
    assert deployed(host)["version"] == "1"
    shutil.move(stick, host.place / "unplugged")
    assert "there is no " in host.run("upgrade", expect=1)
    shutil.move(host.place / "unplugged", stick)
    assert "No changes" in host.run("upgrade", "--check")
    if transport == "oci-archive":
        (stick / "os").unlink()
    host.run("image", "copy", f"{source}:2", f"{transport}:{stick}/os", sysroot=False)
    host.run("upgrade", "--quiet")
    assert deployed(host)["version"] == "2"
    assert deployed(host)["image"] == {"image": f"{stick}/os", "transport": transport}


def test_a_copy_goes_on_where_it_broke_off(host, registry):
    """A byte budget ends it in a layer; the next one fetches the rest of it, and nothing that is there."""

    def resumed() -> int:
        return sum(status == 206 for _, _, status in registry.requests("bootc/"))

    before = resumed()
    words = ("image", "copy", f"{registry.authority}/acme/os:1", "oci:os:1")
    said = host.run(*words, "--max-bytes", "3M", expect=1, sysroot=False)
    assert "--max-bytes" in said
    blobs = host.place / "os/blobs/sha256"
    (part,) = blobs.glob("*.part")
    assert part.stat().st_size > 0
    assert not (host.place / "os/index.json").exists()
    host.run(*words, sysroot=False)
    assert not list(blobs.glob("*.part"))
    layers = [layer for layer in blobs.iterdir() if layer.stat().st_size > len(BIG) // 2]
    assert len(layers) == 2
    assert resumed() == before + 1
    # a second copy finds everything there; a damaged part is no harm
    stale = layers[0].rename(layers[0].with_name(f"{layers[0].name}.part"))
    stale.write_bytes(b"x" * 1000)
    host.run(*words, sysroot=False)
    host.run("switch", "--quiet", "--transport", "oci", f"{host.place}/os:1")
    assert deployed(host)["version"] == "1"


def test_progress_for_programs_and_for_people(host, registry):
    """The same events as an upgrade has; at a terminal, bars that are gone at the end."""
    reading, writing = os.pipe()
    words = ("image", "copy", f"{registry.authority}/acme/os:1", "oci:os:1")
    host.run(*words, "--progress-fd", str(writing), sysroot=False)
    with contextlib.suppress(OSError):
        os.close(writing)
    with open(reading) as lines:
        found = [json.loads(line) for line in lines]
    assert any(one["type"] == "ProgressBytes" and one["bytes"] > 0 for one in found)
    shutil.rmtree(host.place / "os")
    command = [sys.executable, "-m", "bootc_core.cli.main", *words, "--config-root", host.config]
    screen, terminal = pty.openpty()
    with subprocess.Popen(
        command, cwd=host.place, stdout=subprocess.DEVNULL, stderr=terminal
    ) as run:
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):
            while data := os.read(screen, 65536):
                said += data
    os.close(screen)
    assert run.returncode == 0
    assert b"Fetched layers: " in said
    assert said.count(b"\x1b[?25h") == said.count(b"\x1b[?25l"), "the cursor is back"


def test_refused(host, registry):
    words = ("image", "copy", f"{registry.authority}/acme/os:1")
    host.policy("reject")
    assert "policy" in host.run(*words, "oci:os", expect=1, sysroot=False)
    assert not (host.place / "os").exists()
    host.run(*words, "oci:os", "--no-signature-verification", sysroot=False)
    host.policy("insecureAcceptAnything")
    (host.place / "home").mkdir()
    (host.place / "home/diary").write_text("dear diary")
    said = host.run(*words, "oci:home", expect=1, sysroot=False)
    assert "something else than an OCI layout" in said
    assert [path.name for path in (host.place / "home").iterdir()] == ["diary"]
    said = host.run(*words, "docker://127.0.0.1:1/acme/os:1", expect=1, sysroot=False)
    assert "skopeo cannot write" in said
