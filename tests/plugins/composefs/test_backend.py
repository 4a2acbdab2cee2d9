"""The backend end to end: real layers through the real pipeline, real boot entries, a whole life of a host in a directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from bootc_composefs import backend, gc, layers, meta, state
from bootc_composefs.erofs_read import read_image
from bootc_composefs.fsck import check
from bootc_composefs.repository import Repository
from bootc_systemd_boot import switch
from support.images import Dir, File, Hard, Link, bootable, build

from bootc_core.boot import bls
from bootc_core.errors import ContentError, StorageError
from bootc_core.fs import atomic, verity
from bootc_core.fs.owners import OwnerStore
from bootc_core.models import events
from bootc_core.models.context import Context, Operation, Phase, SignatureMode
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.models.tree import lookup


class Host:
    """A sysroot in a directory with the operations of an engine, without gates and journal."""

    def __init__(self, path: Path, *, unprivileged: bool = False):
        self.sysroot = Sysroot(path, path / "boot", unprivileged=unprivileged)
        path.mkdir(exist_ok=True)
        (path / "boot").mkdir(exist_ok=True)
        self.events: list[events.Event] = []
        self.signature = SignatureMode.POLICY

    @property
    def context(self) -> Context:
        return Context(
            transaction="t",
            operation=Operation.SWITCH,
            phase=Phase.STAGE,
            sysroot=str(self.sysroot.path),
            live=False,
            signature=self.signature,
            started_at=datetime.now(UTC),
        )

    def stage(self, image, reference="quay.io/acme/os:1"):
        return trio.run(
            backend.stage, self.context, image.verified(reference), self.sysroot, self.events.append
        )

    def finalize(self, staged):
        return trio.run(backend.finalize, self.context, self.sysroot, staged, self.events.append)

    def apply(self, plan):
        switch.switch(self.sysroot, plan)

    def prune(self):
        return trio.run(backend.prune, self.context, self.sysroot)

    def discard(self, staged=None):
        return trio.run(backend.discard, self.context, self.sysroot, staged)

    def deploy(self, image, reference="quay.io/acme/os:1"):
        staged = self.stage(image, reference)
        self.apply(self.finalize(staged))
        self.prune()
        return staged

    def rollback(self):
        self.apply(trio.run(backend.rollback, self.context, self.sysroot))
        self.prune()

    @property
    def entries(self):
        return bls.read_entries(self.sysroot.boot_dir)

    @property
    def menu(self):
        return [bls.deployment_of(entry) for entry in self.entries]

    @property
    def status(self):
        return state.read_host(self.sysroot, self.entries)

    def etc(self, deployment_id: str) -> Path:
        return self.sysroot.path / "state/deploy" / deployment_id / "etc"

    def repository(self):
        return Repository.open(self.sysroot.path / "composefs")

    def check(self):
        with self.repository() as repository:
            assert check(repository) == []

    def notice(self, staged):
        self.sysroot.staged_file.write_text(
            json.dumps({"depl_id": staged.deployment_id, "finalization_locked": True})
        )

    def kinds(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path / "host")


BASE = bootable(
    {
        "etc/hostname": "image",
        "etc/big": "b" * 3000,
        "etc/secret": File(b"s" * 100, mode=0o640, gid=42),
        "etc/alternatives": Dir(mode=0o750, mtime=1_500_000_000.25),
        "etc/alternatives/editor": Link("/usr/bin/vi"),
        "usr/bin/tool": File(b"t" * 5000, mode=0o4755),
        "usr/bin/again": Hard("usr/bin/tool"),
        "usr/bin/ping": File(b"p" * 200, xattrs={"security.capability": "\x01\x00\x00\x02"}),
        "var/lib/state": "from the image",
        "var/log": Dir(),
        "run/gone": "x",
        "boot/gone": "x",
        "usr/lib/bootc/kargs.d/10-base.toml": 'kargs = ["console=ttyS0", "old=1"]',
    }
)


def second(more=None, **kwargs):
    return {**BASE, **bootable(version="2", **kwargs), **(more or {})}


@pytest.fixture
def one(tmp_path):
    return build(tmp_path / "one", [BASE, {"usr/share": Dir(), "usr/share/doc": "d" * 900}])


@pytest.fixture
def two(tmp_path):
    changed = {
        "etc/hostname": "image two",
        "etc/new": "new",
        "usr/lib/bootc/kargs.d/10-base.toml": 'kargs = ["console=ttyS0", "new=2"]',
        "usr/lib/os-release": 'ID=testos\nPRETTY_NAME="Test OS 2"\nVERSION_ID=2\n',
        "var/lib/state": "must never arrive",
    }
    return build(
        tmp_path / "two", [BASE, changed], labels={"org.opencontainers.image.version": "2.0"}
    )


def test_first_deployment(host, one):
    staged = host.deploy(one)
    name = staged.deployment_id
    assert len(name) == 128
    assert host.menu == [name]
    assert staged.entry.title == "Test OS 1"
    assert staged.entry.os_id == "testos"
    assert staged.entry.options == f"console=ttyS0 old=1 composefs=?{name}"
    assert [file.path for file in staged.entry.files] == [
        f"EFI/Linux/bootc_composefs-{name}/vmlinuz",
        f"EFI/Linux/bootc_composefs-{name}/initrd",
    ]
    boot = host.sysroot.boot_dir
    kernel, initrd = b"kernel " * 100, b"initrd " * 200
    assert (boot / staged.entry.linux.path).read_bytes() == kernel
    assert (boot / staged.entry.initrd[0].path).read_bytes() == initrd
    assert staged.details["boot_digest"] == hashlib.sha256(kernel + initrd).hexdigest()
    host.check()

    directory = host.sysroot.path / "state/deploy" / name
    assert sorted(os.listdir(directory)) == sorted(["etc", "var", f"{name}.origin"])
    assert os.readlink(directory / "var") == "../../os/default/var"
    assert (directory / "var/lib/state").read_text() == "from the image"
    etc = directory / "etc"
    assert (etc / "hostname").read_text() == "image"
    assert (etc / "big").read_text() == "b" * 3000
    secret = (etc / "secret").stat()
    assert (stat.S_IMODE(secret.st_mode), secret.st_uid, secret.st_gid) == (0o640, 0, 42)
    alternatives = (etc / "alternatives").stat()
    assert stat.S_IMODE(alternatives.st_mode) == 0o750
    assert alternatives.st_mtime_ns == 1_500_000_000_250_000_000
    assert os.readlink(etc / "alternatives/editor") == "/usr/bin/vi"
    assert (directory / f"{name}.origin").read_text() == (
        "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://quay.io/acme/os:1\n\n"
        f"[boot]\nboot_type=bls\ndigest={staged.details['boot_digest']}\n\n"
        f"[image]\nmanifest_digest={one.digest}\n\n"
        f"[bootc-python]\ntag_digest={one.index_document.digest}\nsignature=policy\n"
        'accepted=[{"accept": true, "cryptographic": false, "evidence": {}, "policy": "test-policy", '
        '"reason": "tests accept everything", "rule": "tests"}]\n'
    )


def test_the_image_holds_the_merged_tree(host, one):
    staged = host.deploy(one)
    with host.repository() as repository:
        digest = bytes.fromhex(staged.deployment_id)
        root = read_image(repository.read(digest))
        assert repository.resolve(f"images/{staged.deployment_id}") == digest
        tool = lookup(root, b"usr/bin/tool")
        assert tool is lookup(root, b"usr/bin/again")
        assert stat.S_IMODE(tool.mode) == 0o4755
        assert repository.read(tool.object) == b"t" * 5000
        assert lookup(root, b"etc/hostname").inline == b"image"
        assert dict(lookup(root, b"usr/bin/ping").xattrs) == {
            b"security.capability": b"\x01\0\0\x02"
        }
        assert lookup(root, b"run").children == {}
        assert lookup(root, b"boot").children == {}
        manifest = repository.stream(f"oci-manifest-{one.digest}")
        config_name = f"oci-config-{one.config_document.digest}"
        assert manifest.content_type == b"ocimanif"
        assert repository.read(manifest.document()) == one.manifest_document.raw
        assert manifest.named_refs() == {
            f"config:{one.config_document.digest}": repository.resolve(f"streams/{config_name}"),
            **{name: repository.resolve(f"streams/oci-layer-{name}") for name in one.diff_ids},
        }
        config = repository.stream(config_name)
        assert repository.read(config.document()) == one.config_document.raw
        references = config.named_refs()
        assert references["composefs.image.boot.v1"] == digest
        assert "composefs.image.v1" not in references  # nothing mounts it: not made
        assert repository.tags() == {gc.deployment_tag(one.digest): f"oci-manifest-{one.digest}"}
    tag = host.sysroot.path / f"composefs/streams/refs/oci/localhost%2Fbootc-{one.digest}"
    assert os.readlink(tag) == f"../../oci-manifest-{one.digest}"


def test_the_same_image_has_the_same_identity_however_it_is_packed(tmp_path, one):
    found = set()
    for number, compression in enumerate(["none", "gzip", "zstd"]):
        image = build(
            tmp_path / f"l{number}",
            [BASE, {"usr/share": Dir(), "usr/share/doc": "d" * 900}],
            compression=compression,
        )
        found.add(Host(tmp_path / f"h{number}").stage(image).deployment_id)
    assert len(found) == 1


def test_upgrade_keeps_local_changes_and_rollback_returns(host, one, two):
    first = host.deploy(one)
    old_etc = host.etc(first.deployment_id)
    (old_etc / "local").write_text("mine")
    (old_etc / "big").write_text("edited")
    (old_etc / "secret").unlink()
    var = host.sysroot.path / "state/os/default/var/lib"
    (var / "mine").write_text("kept")
    host.events.clear()
    second_ = host.deploy(two, "quay.io/acme/os:2")
    assert host.menu == [second_.deployment_id, first.deployment_id]
    etc = host.etc(second_.deployment_id)
    assert (etc / "local").read_text() == "mine"
    assert (etc / "big").read_text() == "edited"
    assert (etc / "hostname").read_text() == "image two"
    assert (etc / "new").read_text() == "new"
    assert not (etc / "secret").exists()
    assert (old_etc / "hostname").read_text() == "image"
    assert (var / "mine").read_text() == "kept"
    assert (var / "state").read_text() == "from the image"
    assert second_.entry.options == f"console=ttyS0 composefs=?{second_.deployment_id} new=2"
    # the same kernel: one directory on the boot partition
    assert second_.entry.linux.path == first.entry.linux.path
    assert sorted(os.listdir(host.sysroot.boot_dir / "EFI/Linux")) == [
        f"bootc_composefs-{first.deployment_id}"
    ]
    planned = host.kinds(events.LayersPlanned)[0]
    assert (planned.layers_present, planned.layers_needed) == (1, 1)
    host.check()

    status = host.status
    assert status.booted.image.image.image == "quay.io/acme/os:2"
    assert status.booted.image.version == "2.0"
    assert status.booted.image.image_digest == two.digest
    assert status.booted.image.timestamp == "2026-01-02T03:04:05Z"
    assert status.booted.accepted.startswith("test-policy: tests accept everything")
    assert status.booted.composefs.verity == second_.deployment_id
    assert status.booted.composefs.missing_verity_allowed
    assert status.rollback.image.image_digest == one.digest
    assert status.staged is None
    assert status.other == ()
    assert status.notes == ()

    host.rollback()
    assert host.menu == [first.deployment_id, second_.deployment_id]
    assert (old_etc / "local").read_text() == "mine"
    assert host.status.booted.image.image_digest == one.digest
    host.rollback()
    assert host.menu == [second_.deployment_id, first.deployment_id]
    host.check()


def test_a_third_generation_drops_the_first_with_everything_only_it_needed(
    host, tmp_path, one, two
):
    first = host.deploy(one)
    host.deploy(two)
    three = build(
        tmp_path / "three",
        [second({"usr/bin/three": "3" * 700}, kernel=b"other " * 50, initrd=b"ram " * 50)],
    )
    third = host.deploy(three)
    assert first.deployment_id not in host.menu
    assert state.existing(host.sysroot) == sorted(host.menu)
    host.check()
    with host.repository() as repository:
        streams = {name for name in os.listdir(repository.path / "streams") if name != "refs"}
        # the first layer of "one" is the first of "two", the second is nobody's now
        assert f"oci-layer-{one.diff_ids[0]}" in streams
        assert f"oci-layer-{one.diff_ids[1]}" not in streams
        assert f"oci-manifest-{one.digest}" not in streams
        assert set(repository.tags()) == {
            gc.deployment_tag(two.digest),
            gc.deployment_tag(three.digest),
        }
        before = sorted(str(path) for path in repository.path.rglob("*"))
    host.prune()
    assert sorted(str(path) for path in (host.sysroot.path / "composefs").rglob("*")) == before
    assert third.entry.linux.path == f"EFI/Linux/bootc_composefs-{third.deployment_id}/vmlinuz"
    assert (host.sysroot.boot_dir / third.entry.linux.path).read_bytes() == b"other " * 50


def test_the_same_image_twice_is_refused_by_name(host, one, two):
    host.deploy(one)
    with pytest.raises(StorageError) as caught:
        host.stage(one)
    assert caught.value.reference == "same-deployment"
    assert (
        str(caught.value)
        == "Target image has the same fs-verity digest as the existing booted deployment."
    )
    staged = host.stage(two)
    host.notice(staged)
    with pytest.raises(StorageError, match="existing staged deployment"):
        host.stage(two)
    host.sysroot.staged_file.unlink()
    host.apply(host.finalize(staged))
    with pytest.raises(StorageError, match="existing rollback deployment"):
        host.stage(one)


def test_a_leftover_of_an_interrupted_run_is_made_anew(host, one, two):
    host.deploy(one)
    staged = host.stage(two)
    name = staged.deployment_id
    origin = state.deployment_path(host.sysroot, name) / f"{name}.origin"
    whole = origin.read_bytes()
    origin.write_text("torn")
    host.events.clear()
    again = host.stage(two)
    assert again.deployment_id == name
    assert origin.read_bytes() == whole
    assert host.kinds(events.LayersPlanned)[0].layers_needed == 0
    assert host.kinds(events.BlobCompleted) == []


def test_conflicts_in_etc_are_found_before_anything_is_staged(host, tmp_path, one):
    first = host.deploy(one)
    (host.etc(first.deployment_id) / "hostname").write_text("mine")
    (host.etc(first.deployment_id) / "app").mkdir()
    (host.etc(first.deployment_id) / "app/x").write_text("mine")
    layer = {key: item for key, item in BASE.items() if key != "etc/hostname"}
    image = build(tmp_path / "conflict", [layer | {"etc/hostname": Dir(), "etc/app": "a file"}])
    with pytest.raises(StorageError, match="Merge conflicts found in etc") as caught:
        host.stage(image)
    assert "File 'hostname' now defaults to a directory in new etc" in caught.value.found
    assert "Directory 'app' now defaults to a file in new etc" in caught.value.found
    assert state.existing(host.sysroot) == [first.deployment_id]


def test_finalize_is_repeatable_and_takes_the_last_edits(host, one, two):
    first = host.deploy(one)
    etc = host.etc(first.deployment_id)
    staged = host.stage(two)
    (etc / "late").write_text("1")
    plan = host.finalize(staged)
    new_etc = host.etc(staged.deployment_id)
    assert (new_etc / "late").read_text() == "1"
    (etc / "late").write_text("2")
    (etc / "later").write_text("2")
    again = host.finalize(type(staged).from_json(json.loads(json.dumps(staged.to_json()))))
    assert again == plan
    assert [item if isinstance(item, str) else item.deployment_id for item in plan.entries] == [
        staged.deployment_id,
        first.deployment_id,
    ]
    assert (new_etc / "late").read_text() == "2"
    assert (new_etc / "later").read_text() == "2"
    host.apply(again)
    (new_etc / "late").write_text("edited in the new system")
    assert host.finalize(staged).entries == plan.entries
    assert (new_etc / "late").read_text() == "edited in the new system"


def test_special_files_in_etc_are_named(host, one, two):
    first = host.deploy(one)
    os.mkfifo(host.etc(first.deployment_id) / "pipe")
    host.finalize(host.stage(two))
    assert "pipe" in host.kinds(events.Warned)[-1].message


def test_discard_drops_the_staged_state_and_says_what_boots(host, one, two):
    assert host.discard() is None
    first = host.deploy(one)
    staged = host.stage(two)
    plan = host.discard(staged)
    assert plan.entries == (first.deployment_id,)
    assert state.existing(host.sysroot) == [first.deployment_id]
    assert host.discard(staged) == plan
    host.stage(two)
    assert host.discard().entries == (first.deployment_id,)
    assert state.existing(host.sysroot) == [first.deployment_id]
    staged = host.stage(two)
    host.notice(staged)
    host.discard()
    assert staged.deployment_id in state.existing(host.sysroot)
    assert host.status.staged.download_only
    assert host.status.staged.image.image_digest == two.digest


def test_discard_never_drops_what_boots(host, one):
    first = host.deploy(one)
    assert host.discard(first).entries == (first.deployment_id,)
    assert state.existing(host.sysroot) == [first.deployment_id]


def test_rollback_without_a_second_deployment(host, one):
    with pytest.raises(StorageError, match="No rollback available"):
        host.rollback()
    host.deploy(one)
    with pytest.raises(StorageError) as caught:
        host.rollback()
    assert caught.value.reference == "no-rollback"


def test_enforced_signatures_are_recorded_in_the_reference(host, one):
    host.signature = SignatureMode.ENFORCE
    staged = host.deploy(one)
    origin = state.load_origin(host.sysroot, staged.deployment_id)
    assert str(origin.reference) == "ostree-image-signed:docker://quay.io/acme/os:1"
    assert origin.signature == "enforce"
    assert host.status.booted.image.image.signature == "containerPolicy"


def test_tracked_is_what_the_reference_named(host, one):
    host.deploy(one)
    reference = ImageReference.parse("quay.io/acme/os:1")
    assert state.tracked(host.sysroot, reference) == one.index_document.digest
    assert state.tracked(host.sysroot, ImageReference.parse("quay.io/acme/os:2")) is None
    assert state.bootloader(host.sysroot) == "systemd-boot"
    assert state.manifest(host.sysroot, one.digest) == one.manifest_document.raw
    assert state.manifest(host.sysroot, "sha256:" + "0" * 64) is None
    assert state.manifest(host.sysroot, "../../x") is None


def test_a_new_sysroot_is_claimed_by_nobody(host):
    assert not state.claims(host.sysroot)
    assert host.status == state.HostStatus()
    assert state.tracked(host.sysroot, ImageReference.parse("quay.io/acme/os:1")) is None
    assert state.bootloader(host.sysroot) is None


def test_local_kernel_arguments_survive_and_removed_ones_stay_removed(host, one, two):
    first = host.deploy(one)
    entry = host.sysroot.boot_dir / host.entries[0].file
    text = entry.read_text()
    options = f"console=ttyS0 old=1 composefs=?{first.deployment_id}"
    assert options in text
    entry.write_text(
        text.replace(options, f'root=UUID=1 "quoted=a b" composefs=?{first.deployment_id} old=1 rw')
    )
    staged = host.deploy(two)
    assert (
        staged.entry.options
        == f'root=UUID=1 "quoted=a b" composefs=?{staged.deployment_id} rw new=2'
    )


@pytest.mark.parametrize(
    ("files", "reference"),
    [
        ({"usr/lib/bootc/kargs.d/x.toml": "kargs = ["}, "bad-kargs-d"),  # C05
        ({"usr/lib/bootc/kargs.d/x.toml": 'kargs = ["a\\nlinux /evil"]'}, "bad-karg"),  # C06
        ({"usr/lib/bootc/kargs.d/x.toml": 'kargs = ["a}"]'}, "bad-karg"),  # C06
        ({"usr/lib/bootc/kargs.d/x.toml": f'kargs = ["{"a" * 3000}"]'}, "kargs-too-long"),  # C07
        ({"usr/lib/bootc/kargs.d/x.toml": 'kargs = ["init=/bin/sh"]'}, "protected-karg"),  # C08
        ({"usr/lib/bootc/kargs.d/x.toml": 'kargs = ["composefs=00"]'}, "protected-karg"),  # C08
    ],
)
def test_bad_kernel_arguments_are_refused_before_anything_is_named(
    host, tmp_path, files, reference
):
    directories = {"usr/lib/bootc": Dir(), "usr/lib/bootc/kargs.d": Dir()}
    image = build(tmp_path / "bad", [bootable(), directories | files])
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the reference is what counts
        host.stage(image)
    assert caught.value.reference == reference
    assert state.existing(host.sysroot) == []
    with host.repository() as repository:
        assert os.listdir(repository.path / "streams") == []


@pytest.mark.parametrize(
    ("layers_", "reference"),
    [
        ([{"usr": Dir(), "usr/bin": Dir(), "boot": Dir(), "sysroot": Dir()}], "no-kernel"),
        ([bootable(), {"usr/lib/modules/7/vmlinuz": "k" * 100}], "several-kernels"),
        ([{key: item for key, item in bootable().items() if key != "boot"}], "missing-directory"),
        (
            [{key: item for key, item in bootable().items() if key != "sysroot"}],
            "missing-directory",
        ),
        (
            [{"etc": "a file", **{k: v for k, v in bootable().items() if k != "etc"}}],
            "bad-image-tree",
        ),
    ],
)
def test_images_that_cannot_boot_are_refused(host, tmp_path, layers_, reference):
    with pytest.raises(ContentError) as caught:
        host.stage(build(tmp_path / "bad", layers_))
    assert caught.value.reference == reference
    assert state.existing(host.sysroot) == []
    assert host.menu == []


def test_a_lying_layer_leaves_nothing_with_a_name(host, tmp_path, one):
    layout = one.path
    blob = one.blob(json.loads(one.manifest_document.raw)["layers"][1]["digest"])
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(ContentError) as caught:
        host.stage(one)
    assert caught.value.catalogue == "INT"
    with host.repository() as repository:
        assert os.listdir(repository.path / "streams") == []
        assert os.listdir(repository.path / "images") == []
    assert layout.exists()


def test_a_failed_run_gives_back_space_and_keeps_finished_layers(host, one):
    """Stopped before the first flush; one layer was finished, the other (made so here) was not."""
    steps: list[str] = []
    with atomic.observe(lambda step, path: steps.append(step)):
        Host(host.sysroot.path.with_name("other")).stage(one)
    with stop_before(steps.index("syncfs") + 1):
        host.stage(one)
    staging = layers.spool(host.sysroot)
    first, second_ = (staging / name.partition(":")[2] for name in one.diff_ids)
    (second_ / "done.json").unlink()
    (second_ / "spool").write_bytes(b"arrived")
    assert host.discard() is None
    assert (first / "done.json").exists()
    assert os.listdir(second_) == ["spool"]
    (second_ / "spool").unlink()
    one.blob(json.loads(one.manifest_document.raw)["layers"][0]["digest"]).unlink()
    assert host.deploy(one).deployment_id == host.menu[0]
    host.check()


def test_no_space_is_told_before_anything_is_fetched(host, tmp_path, monkeypatch, one):
    """SPC, with the sentence of the original."""
    with Repository.create(host.sysroot.path / "composefs") as repository:
        huge = one.fetched().manifest.layers[0].model_copy(update={"size": 1 << 45})
        with pytest.raises(StorageError) as caught:
            layers.check_space(repository.path, [huge], "quay.io/acme/os:1", fresh=False)
    assert caught.value.catalogue == "SPC"
    assert str(caught.value).startswith(
        "Insufficient free space for quay.io/acme/os:1 (available: "
    )
    assert str(caught.value).endswith("required: 35.2 TB)")


def test_a_missing_object_is_fetched_again(host, one, two):
    host.deploy(one)
    with host.repository() as repository:
        root = read_image(repository.read(bytes.fromhex(host.menu[0])))
        victim = lookup(root, b"usr/bin/tool").object
        repository.object_path(victim).unlink()
        assert any("missing" in problem for problem in check(repository))
    host.events.clear()
    host.deploy(two)
    assert host.kinds(events.LayersPlanned)[0].layers_needed == 2
    host.check()


@contextmanager
def stop_before(number: int):
    """Raise instead of the durable step of that number."""
    seen = 0

    class Cut(BaseException):
        pass

    def observer(step, path):
        nonlocal seen
        seen += 1
        if seen == number:
            raise Cut(f"{step} {path}")

    with atomic.observe(observer), suppress(Cut):
        yield


def count_steps(action) -> int:
    steps = []
    with atomic.observe(lambda step, path: steps.append(step)):
        action()
    return len(steps)


def test_interrupted_before_any_durable_step_the_next_run_converges(tmp_path, one, two):
    """At every durable step of stage and finalize: old or new, and the next run makes the same deployment."""
    base = Host(tmp_path / "base")
    first = base.deploy(one)

    def copy(name: str) -> Host:
        subprocess.run(["cp", "-a", tmp_path / "base", tmp_path / name], check=True)
        return Host(tmp_path / name)

    def upgrade(host: Host):
        staged = host.stage(two)
        return staged, host.finalize(staged)

    wanted, plan = upgrade(reference := copy("reference"))
    reference.apply(plan)
    reference.prune()
    expected = tree_of(reference.sysroot.path)
    total = count_steps(lambda: upgrade(copy("counted")))
    assert total > 40
    for number in range(1, total + 1):
        host = copy(f"cut{number}")
        with stop_before(number):
            upgrade(host)
            pytest.fail("it was not stopped")
        assert host.menu == [first.deployment_id]
        assert host.status.booted.image.image_digest == one.digest
        for name in state.existing(host.sysroot):  # what exists is whole
            assert state.load_origin(host.sysroot, name).manifest_digest in {one.digest, two.digest}
        with host.repository() as repository:
            for name in os.listdir(repository.path / "streams"):
                if name != "refs":
                    refs = repository.stream(name).object_refs
                    assert all(repository.size(ref) is not None for ref in refs)
        staged, plan = upgrade(host)
        assert staged.deployment_id == wanted.deployment_id
        host.apply(plan)
        host.prune()
        assert tree_of(host.sysroot.path) == expected, number
        shutil.rmtree(host.sysroot.path)


def tree_of(root: Path) -> dict[str, object]:
    """Names, kinds, links and contents below a sysroot; without what differs from run to run."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.startswith("boot/loader/entries/") or "/objects/" in name:
            continue
        found[name] = (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
    return found


def test_flushes_are_few(host, one, two):
    """At most two whole flushes for a stage, and no more single ones for more files."""
    steps: list[str] = []
    with atomic.observe(lambda step, path: steps.append(step)):
        host.stage(one)
    assert steps.count("syncfs") == 2
    assert steps.count("fsync") <= 8


def test_an_ordinary_users_sysroot_records_what_it_cannot_set(tmp_path, one, two):
    host = Host(tmp_path / "host", unprivileged=True)
    first = host.deploy(one)
    owners = OwnerStore.load(host.sysroot.state / "owners.json")
    prefix = f"state/deploy/{first.deployment_id}/etc".encode()
    assert owners.get(prefix + b"/secret").gid == 42
    assert (
        owners.get(prefix + b"/secret").mode is None
        or owners.get(prefix + b"/secret").mode == 0o640
    )
    second_ = host.deploy(two)
    owners = OwnerStore.load(host.sysroot.state / "owners.json")
    assert owners.get(f"state/deploy/{second_.deployment_id}/etc/secret".encode()).gid == 42
    host.rollback()
    host.deploy(build(tmp_path / "three", [second({"usr/bin/three": "3" * 700})]))
    owners = OwnerStore.load(host.sysroot.state / "owners.json")
    assert list(owners.items(f"state/deploy/{second_.deployment_id}".encode())) == []


def test_status_survives_damaged_records(host, one, two):
    first = host.deploy(one)
    second_ = host.deploy(two)
    origin = (
        host.sysroot.path / "state/deploy" / first.deployment_id / f"{first.deployment_id}.origin"
    )
    for text in (
        b"",
        b"\xff\xfe",
        b"[origin]\ncontainer-image-reference=x\n",
        b"[image]\nmanifest_digest=../..\n",
    ):
        origin.write_bytes(text)
        status = host.status
        assert status.booted.composefs.verity == second_.deployment_id
        assert status.rollback is None
        assert "left out" in status.notes[0]
    origin.unlink()
    host.sysroot.staged_file.write_bytes(b"{")
    assert host.status.staged is None
    host.prune()  # the records of a live deployment are damaged: its layers stay
    with host.repository() as repository:
        assert repository.resolve(f"streams/oci-manifest-{one.digest}") is not None
    host.check()


def test_prune_keeps_everything_while_the_menu_is_unreadable(host, one, two):
    host.deploy(one)
    host.stage(two)
    before = state.existing(host.sysroot)
    damaged = host.sysroot.boot_dir / "loader/entries/bootc_x-1-0.conf"
    damaged.write_bytes(b"linux \0")
    with pytest.raises(StorageError, match="Inconsistent state"):
        host.prune()
    damaged.unlink()
    assert state.existing(host.sysroot) == before
    entries = host.sysroot.boot_dir / "loader/entries"
    entries.rename(host.sysroot.boot_dir / "elsewhere")
    assert host.prune()
    assert state.existing(host.sysroot) == before


@pytest.mark.parametrize(
    ("algorithm", "default", "extra", "names"),
    [
        ("sha256", 1, (), {"composefs.image.boot.v1"}),
        ("sha512", 2, (), {"composefs.image.boot"}),
        ("sha512", 1, (2,), {"composefs.image.boot", "composefs.image.boot.v1"}),
    ],
)
def test_an_existing_repository_keeps_hash_and_formats(
    host, one, two, algorithm, default, extra, names
):
    path = host.sysroot.path / "composefs"
    Repository.create(path, algorithm=algorithm).close()
    text = meta.to_bytes(algorithm, default, extra)
    if default == 2:  # as older programs left it
        text = text.replace(b'"erofs_formats"', b'"ignored"')
    (path / "meta.json").write_bytes(text)
    first = host.deploy(one)
    assert len(first.deployment_id) == (64 if algorithm == "sha256" else 128)
    with host.repository() as repository:
        assert repository.formats == (default, *extra)
        found = repository.stream(f"oci-config-{one.config_document.digest}").named_refs()
        assert {name for name in found if name.startswith("composefs.")} == names
        identity = "composefs.image.boot" if default == 2 else "composefs.image.boot.v1"
        assert found[identity].hex() == first.deployment_id
    second_ = host.deploy(two)
    assert host.menu == [second_.deployment_id, first.deployment_id]
    assert (path / "meta.json").read_bytes() == text
    host.check()


def test_with_fs_verity_nothing_is_optional(host, one, two):
    if not verity.supported(host.sysroot.path):
        pytest.skip("the file system has no fs-verity")
    staged = host.deploy(one)
    host.deploy(two)
    assert f"composefs={staged.deployment_id}" in staged.entry.options.split()
    with host.repository() as repository:
        assert repository.secure
        for folder in (repository.path / "objects").iterdir():
            for file in folder.iterdir():
                descriptor = os.open(file, os.O_RDONLY)
                assert verity.measure(descriptor).hex() == folder.name + file.name
                os.close(descriptor)
    host.check()
