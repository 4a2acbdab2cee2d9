"""Hostile and odd images (catalogue groups T, Z and M) at the real command line: one of each kind, and the ids that need all of it.

The single members, streams and documents are tested where they are read; here is what a person meets: the error, and a host
that is as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile

import pytest
from support import images, refusal
from support.images import Dir, Hard, Link
from support.refusal import assert_refused, build, copy, layers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def composefs(tmp_path_factory):
    return refusal.template(tmp_path_factory.mktemp("composefs"))


@pytest.fixture(scope="module")
def clean(composefs, tmp_path_factory):
    """Objects of a host that went from 1 to 2 and never met anything bad."""
    host = copy(composefs[0], tmp_path_factory.mktemp("clean"))
    host.assert_good_run(composefs[1]["2"])
    return host.objects()


@pytest.fixture
def host(composefs, tmp_path):
    return copy(composefs[0], tmp_path)


def refused(host, layout, catalogue, *names):
    """The rule for every row but the good run after it."""
    host.serve(layout)
    before = host.snapshot()
    error = assert_refused(host.upgrade(), catalogue, *names)
    host.assert_unchanged(before)
    return error


def device(kind, major, minor):
    member = tarfile.TarInfo()
    member.type, member.devmajor, member.devminor, member.mode = kind, major, minor, 0o600
    return member


MODULES = "usr/lib/modules"
MEMBERS = {
    "t01_parent": ({"../../etc/shadow": "x"}, "CON", "layer 2"),
    "t08_through_a_link": ({"d": Link("/etc"), "d/passwd": "x"}, "CON", "d/passwd"),
    "t11_hard_link": ({"usr/x": Hard("etc/shadow")}, "CON", "etc/shadow"),
    "t20_whiteout": ({"usr/.wh...": ""}, "CON", "layer 2"),
    "t24_no_usr": ({".wh.usr": ""}, "CON", "kernel"),
    "t24_no_sysroot": ({".wh.sysroot": ""}, "CON", "sysroot"),
    "t27_device": ({"usr/null": device(tarfile.CHRTYPE, 1, 3)}, "CON", "usr/null"),
    "t52_two_kernels": ({f"{MODULES}/7/vmlinuz": "k" * 100}, "CON", "7"),
    "t52_no_kernel": ({f"{MODULES}/6.1.0-test/.wh.vmlinuz": ""}, "CON", "kernel"),
    "t52_space": ({f"{MODULES}/.wh.6.1.0-test": "", f"{MODULES}/6 1/vmlinuz": "k" * 100}, "CON", "6 1"),
    "t52_newline": ({f"{MODULES}/.wh.6.1.0-test": "", f"{MODULES}/6\n1/vmlinuz": "k" * 100}, "CON", "6\\n1"),
    "t52_brace": ({f"{MODULES}/.wh.6.1.0-test": "", f"{MODULES}/{{6/vmlinuz": "k" * 100}, "CON", "{6"),
    "t52_percent": ({f"{MODULES}/.wh.6.1.0-test": "", f"{MODULES}/%6/vmlinuz": "k" * 100}, "CON", "%6"),
    "t53_kernel_is_a_link_out": (
        {f"{MODULES}/6.1.0-test/vmlinuz": Link("../../../../../../../../../boot/vmlinuz")}, "CON", "vmlinuz",
    ),
    "m23_no_system": ({f".wh.{name}": "" for name in ("boot", "sysroot", "usr")}, "CON", "kernel"),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_members(name, host, composefs, clean, tmp_path):
    more, catalogue, thing = MEMBERS[name]
    refused(host, build(tmp_path / "bad", "3", more), catalogue, thing)
    if name in list(MEMBERS)[::5]:
        host.assert_good_run(composefs[1]["2"], clean=clean)


def test_t50_no_name_of_the_image_reaches_the_boot_partition(host, tmp_path):
    """What collides on FAT stays in the image: files on the boot partition have names of ours."""
    place = f"{MODULES}/6.1.0-test"
    more = {
        f"{place}/VMLINUZ": "x" * 90,
        f"{place}/Initramfs.IMG": "y" * 90,
        f"{place}/\u0131nitramfs.img": "z",
    }
    host.serve(build(tmp_path / "odd", "2", more))
    assert host.upgrade().returncode == 0
    boot = host.sysroot / "boot"
    files = {
        path.name: path.read_bytes()
        for path in boot.rglob("*")
        if "Linux" in path.parts and path.is_file()
    }
    assert files == {"vmlinuz": b"kernel " * 100, "initrd": b"initrd " * 200}
    names = [path.name.lower() for path in (boot / "EFI/Linux").iterdir()]
    assert len(names) == len(set(names))


def test_t53_a_kernel_may_be_a_link_inside_the_image(host, tmp_path):
    place = f"{MODULES}/6.1.0-test"
    more = {"usr/lib/kernel": "linked " * 30, f"{place}/vmlinuz": Link("../../kernel")}
    host.serve(build(tmp_path / "odd", "2", more))
    assert host.upgrade().returncode == 0
    kernels = [path.read_bytes() for path in (host.sysroot / "boot/EFI/Linux").rglob("vmlinuz")]
    assert b"linked " * 30 in kernels


# --- documents and streams that are edited in a layout ---------------------------------------------------------------


class Layout:
    """A layout whose documents are changed and named anew, from the bottom up."""

    def __init__(self, path, version="3"):
        self.path = build(path, version)
        self.index = json.loads((path / "index.json").read_text())
        self.manifest = json.loads(self.blob(self.index["manifests"][0]["digest"]))
        self.config = json.loads(self.blob(self.manifest["config"]["digest"]))

    def blob(self, digest):
        return (self.path / "blobs/sha256" / digest.partition(":")[2]).read_bytes()

    def put(self, data):
        hexed = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / hexed).write_bytes(data)
        return {"digest": f"sha256:{hexed}", "size": len(data)}

    def layer(self, data, **fields):
        """Replace the second layer's blob."""
        self.manifest["layers"][1].update(self.put(data), **fields)

    def save(self):
        self.manifest["config"].update(self.put(json.dumps(self.config).encode()))
        self.index["manifests"][0].update(self.put(json.dumps(self.manifest).encode()))
        (self.path / "index.json").write_text(json.dumps(self.index))
        return self.path


def second(layout):
    return layout.blob(layout.manifest["layers"][1]["digest"])


LAYER = "application/vnd.oci.image.layer.v1.tar"
EDITS = {
    "z05_truncated": (lambda layout: layout.layer(second(layout)[:-9]), "INT", "layer 2"),
    "z06_damaged_on_disk": (
        lambda layout: (
            layout.path / "blobs/sha256" / layout.manifest["layers"][1]["digest"].partition(":")[2]
        ).write_bytes(second(layout)[:-1] + b"?"), "INT", "layer 2",
    ),
    "z08_rubbish": (lambda layout: layout.layer(second(layout) + b"rubbish"), "INT", "layer 2"),
    "z09_xz": (lambda layout: layout.layer(lzma.compress(b"x" * 2000)), "INT", "layer 2"),
    "z10_bzip2": (lambda layout: layout.manifest["layers"][1].update(mediaType=f"{LAYER}+bzip2"), "CON", "bzip2"),
    "z10_encrypted": (
        lambda layout: layout.manifest["layers"][1].update(mediaType=f"{LAYER}+gzip+encrypted"), "CON", "encrypted",
    ),
    "z10_foreign": (
        lambda layout: layout.manifest["layers"][1].update(
            mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["http://127.0.0.1:1/x"]
        ), "CON", "foreign",
    ),
    "m14_machine": (lambda layout: layout.config.update(architecture="s390x"), "CON", "s390x"),
    "m15_count": (lambda layout: layout.config["rootfs"]["diff_ids"].pop(), "INT", "diffIDs"),
    "m16_diff_id": (
        lambda layout: layout.config["rootfs"]["diff_ids"].__setitem__(1, "sha256:" + "0" * 64), "INT", "layer 2",
    ),
    "m19_digest": (lambda layout: layout.manifest["layers"][1].update(digest="sha256:../../x"), "INT", "digest"),
    "m24_artifact": (
        lambda layout: layout.manifest["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"),
        "CON", "helm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_documents_and_streams(name, host, composefs, clean, tmp_path):
    edit, catalogue, thing = EDITS[name]
    layout = Layout(tmp_path / "bad")
    edit(layout)
    refused(host, layout.save(), catalogue, thing)
    if name in list(EDITS)[::5]:
        host.assert_good_run(composefs[1]["2"], clean=clean)


def test_m22_content_counts_and_not_labels(host, tmp_path):
    """Labels claim another version and kernel; the boot menu shows what is in the image."""
    path = tmp_path / "odd"
    claims = {"version": "99", "ostree.linux": "9.9.9", "containers.bootc": "1"}
    images.build(path, layers("2"), labels=claims)
    host.serve(path)
    assert host.upgrade().returncode == 0
    entries = [path.read_text() for path in (host.sysroot / "boot/loader/entries").glob("*.conf")]
    new = next(text for text in entries if "version=2" in text)
    assert "title Acme 2" in new
    assert "99" not in new.replace(new.split("composefs=")[1].split()[0], "").split("linux")[0]
    assert "9.9.9" not in new


def test_m28_the_same_content_under_other_types(host, tmp_path):
    """Layers that differ in compression alone are known by their content; documents are kept by their own digests."""
    host.serve(build(tmp_path / "gzip", "2"))
    assert host.upgrade().returncode == 0
    first = host.status()["booted"]["image"]["imageDigest"]
    for number, compression in enumerate(("zstd", "none")):
        place = tmp_path / compression
        more = {"usr/share/more": str(number) * 100}
        images.build(place, [*layers("2"), more], labels={"version": "2"}, compression=compression)
        host.serve(place)
        done = host.upgrade()
        assert done.returncode == 0, done.stderr
        assert "layers already present: 2; layers needed: 1 " in done.stderr
        assert host.status()["booted"]["image"]["imageDigest"] != first


def test_t07_depth_is_bounded_whoever_asks(host, tmp_path):
    """A layer that nobody could make by hand, from the bytes on."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("d/" * 2000 + "x"))
    images.build(tmp_path / "bad", [layers("3")[0], {"usr/x": Dir()}, out.getvalue()])
    refused(host, tmp_path / "bad", "LIM", "layer 3")
