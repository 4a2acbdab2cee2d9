"""Records of deployments and the slots of ``status``: order, what is left out, what must not be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bootc_composefs import state
from bootc_composefs.repository import Repository
from bootc_composefs.splitstream import CONFIG, MANIFEST, encode_document

from bootc_core.errors import BootcError, StorageError
from bootc_core.models.boot import PresentEntry
from bootc_core.models.reference import ImageReference, SignedReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.oci.origin import Origin

IDS = [f"{number:x}" * 128 for number in range(1, 6)]
DIGESTS = [f"sha256:{number:x}{'0' * 63}" for number in range(1, 6)]


def entry(deployment_id: str, order: int | None = 0, *, strict: bool = False) -> PresentEntry:
    mark = "" if strict else "?"
    keys = [
        ("title", "x"),
        ("version", "1"),
        ("linux", f"/EFI/Linux/bootc_composefs-{deployment_id}/vmlinuz"),
        ("options", f"rw composefs={mark}{deployment_id}"),
    ]
    if order is not None:
        keys.append(("sort-key", f"bootc-debian-{order}"))
    return PresentEntry(f"loader/entries/{deployment_id[:4]}.conf", tuple(keys))


@pytest.fixture
def sysroot(tmp_path):
    """Five deployments with their documents, none of which boots yet."""
    root = Sysroot(tmp_path, tmp_path / "boot")
    (tmp_path / "bootc").mkdir()
    with Repository.create(tmp_path / "composefs") as repository:
        for number, (name, digest) in enumerate(zip(IDS, DIGESTS, strict=True), 1):
            config = json.dumps(
                {
                    "architecture": "amd64",
                    "created": "2026-01-02T03:04:05Z",
                    "config": {"Labels": {"version": str(number)}},
                }
            ).encode()
            manifest = json.dumps({"config": {"digest": digest}}).encode()
            for kind, prefix, raw in ((CONFIG, "config", config), (MANIFEST, "manifest", manifest)):
                stream = encode_document("sha512", kind, repository.put(raw), len(raw), [])
                repository.link_stream(f"oci-{prefix}-{digest}", repository.put(stream))
            directory = tmp_path / state.DEPLOY / name
            directory.mkdir(parents=True)
            origin = Origin(
                SignedReference(ImageReference.parse(f"quay.io/acme/os:{number}")),
                manifest_digest=digest,
                boot_digest="b" * 64,
                boot_type="bls",
                tag_digest=digest,
                signature="policy",
            )
            (directory / f"{name}.origin").write_bytes(origin.to_bytes(long_form=True))
    return root


def notice(sysroot: Sysroot, text: str | bytes) -> None:
    sysroot.staged_file.write_bytes(text if isinstance(text, bytes) else text.encode())


def versions(host):
    return [
        slot.image.version if slot and slot.image else None
        for slot in (host.staged, host.booted, host.rollback)
    ], [slot.image.version for slot in host.other]


def test_the_first_entry_is_booted_the_second_the_rollback(sysroot):
    host = state.read_host(sysroot, [entry(IDS[1], 0, strict=True), entry(IDS[0], 1)])
    assert versions(host) == ([None, "2", "1"], [])
    assert not host.rollback_queued
    assert host.booted.image.image.image == "quay.io/acme/os:2"
    assert host.booted.image.timestamp == "2026-01-02T03:04:05Z"
    assert host.booted.composefs.boot_digest == "b" * 64
    assert not host.booted.composefs.missing_verity_allowed
    assert host.rollback.composefs.missing_verity_allowed
    assert host.to_json()["status"]["type"] == "bootcHost"


def test_further_entries_of_other_tools_are_other_deployments(sysroot):
    entries = [entry(IDS[0], None), entry(IDS[1], None), entry(IDS[2], None), entry(IDS[2], None)]
    assert versions(state.read_host(sysroot, entries)) == ([None, "1", "2"], ["3"])


def test_what_an_interrupted_switch_wrote_is_no_deployment(sysroot):
    host = state.read_host(sysroot, [entry(IDS[0], 1), entry(IDS[1], 2), entry(IDS[2], 3)])
    assert versions(host) == ([None, "1", None], [])
    assert sum("interrupted" in note for note in host.notes) == 2


def test_entries_that_are_not_ours_do_not_count(sysroot):
    foreign = PresentEntry(
        "loader/entries/a.conf", (("linux", "/x"), ("options", "root=/dev/sda1"))
    )
    ostree = PresentEntry("loader/entries/b.conf", (("linux", "/x"), ("options", "ostree=/y")))
    odd = entry("../../etc" + "0" * 119)
    host = state.read_host(sysroot, [foreign, ostree, odd, entry(IDS[0])])
    assert versions(host) == ([None, "1", None], [])


def test_the_staged_deployment_and_its_lock(sysroot):
    entries = [entry(IDS[0])]
    notice(sysroot, json.dumps({"depl_id": IDS[3], "finalization_locked": True}))
    host = state.read_host(sysroot, entries)
    assert versions(host) == (["4", "1", None], [])
    assert host.staged.download_only
    notice(sysroot, json.dumps({"depl_id": IDS[3], "finalization_locked": False, "more": 1}))
    assert not state.read_host(sysroot, entries).staged.download_only
    assert state.tracked(sysroot, ImageReference.parse("quay.io/acme/os:4")) == DIGESTS[3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"depl_id": 3}',
        '{"depl_id": "../../x"}',
        '{"depl_id": "' + "9" * 128 + '"}',
        b"\xff\xfe",
    ],
)
def test_garbage_in_the_notice_stages_nothing(sysroot, text):
    notice(sysroot, text)
    assert versions(state.read_host(sysroot, [entry(IDS[0])])) == ([None, "1", None], [])


def test_a_deployment_with_damaged_records_is_left_out_by_name(sysroot):
    directory = sysroot.path / state.DEPLOY / IDS[1]
    (directory / f"{IDS[1]}.origin").write_text("[origin]\ncontainer-image-reference=???\n")
    host = state.read_host(sysroot, [entry(IDS[0], 0), entry(IDS[1], 1)])
    assert versions(host) == ([None, "1", None], [])
    assert host.notes == (
        f"deployment {IDS[1][:12]} is left out: the origin of a deployment is damaged",
    )
    (sysroot.path / f"composefs/streams/oci-config-{DIGESTS[0]}").unlink()
    host = state.read_host(sysroot, [entry(IDS[0], 0), entry(IDS[1], 1)])
    assert host.booted is not None
    assert host.booted.image.image_digest == DIGESTS[0]
    assert host.booted.image.version is None, "what its documents said is lost"
    assert len(host.notes) == 2


def test_a_damaged_document_is_an_error_of_ours(sysroot):
    with Repository.open(sysroot.path / "composefs", lock=False) as repository:
        digest = repository.resolve(f"streams/oci-manifest-{DIGESTS[0]}")
        path = repository.object_path(digest)
        data = path.read_bytes()
        for damage in (b"", data[:40], data[:-1]):
            path.write_bytes(damage)
            with pytest.raises(BootcError):
                state.document(repository, f"oci-manifest-{DIGESTS[0]}", 1000)
        path.unlink()
        with pytest.raises(StorageError):
            state.document(repository, f"oci-manifest-{DIGESTS[0]}", 1000)
        layer = repository.put(encode_document("sha512", MANIFEST, b"", 0, []))
        repository.link_stream("oci-manifest-sha256:none", layer)
        with pytest.raises(BootcError, match="damaged"):
            state.document(repository, "oci-manifest-sha256:none", 1000)


def test_a_reference_that_boots_nowhere_is_not_tracked(sysroot):
    assert (
        state.tracked(sysroot, ImageReference.parse("quay.io/acme/os:1")) is None
    )  # boots nowhere


def test_claims_never_raises(tmp_path):
    for name in ("missing", "file", "loop"):
        path = tmp_path / name
        if name == "file":
            path.write_text("")
        if name == "loop":
            path.symlink_to("loop")
        assert not state.claims(Sysroot(path, path / "boot"))


def test_the_beginning_of_a_repository_is_claimed_and_finished(tmp_path):
    root = Sysroot(tmp_path, tmp_path / "boot")
    path = tmp_path / "composefs"
    assert not state.claims(root)
    path.mkdir()
    for name in ("objects", "images", ".bootc-tmp-00-meta.json"):
        assert state.claims(root)
        assert state.read_host(root, []) == state.HostStatus()
        (path / name).mkdir()
    (path / "something").mkdir()
    assert not state.claims(root)
    (path / "something").rmdir()
    Repository.create(path).close()
    assert (path / "meta.json").exists()
    path.rename(tmp_path / "real")
    path.symlink_to("real")
    assert not state.claims(root)


@pytest.mark.parametrize("name", ["", "..", "abc", "A" * 128, "a" * 127, "a" * 128 + "/x"])
def test_only_digests_name_deployments(sysroot, name):
    with pytest.raises(StorageError):
        state.deployment_path(sysroot, name)


def test_status_imports_nothing_heavy():
    """100 ms for all of ``status``: these alone would be more."""
    code = (
        "import sys\n"
        "from bootc_composefs import plugin\n"
        "plugin.bootc_register_backends()\n"
        "heavy = {'trio', 'pydantic', 'ssl', 'http', 'rich', 'yaml', 'zstd', 'compression', 'backports', 'isal', 'configparser'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    paths = [str(Path(module.__file__).parents[1]) for module in (state, sys.modules["bootc_core"])]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(paths)},
    )
    assert done.stderr == ""
    assert done.stdout == "[]\n"
