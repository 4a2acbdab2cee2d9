"""Disks that are full, broken, read-only or odd, machines short of everything (catalogue group D), at the real command line.

Sweeps are sampled; ``make bad-inputs`` (BOOTC_BAD_INPUTS=all) takes all points.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support import images, refusal
from support.refusal import Host, assert_refused, build, copy

from bootc_core.fs import verity

pytestmark = pytest.mark.root
ALL = os.environ.get("BOOTC_BAD_INPUTS") == "all"
MIB = 1 << 20
PAYLOAD = 96  # MiB of content that compresses well, so that what is declared fits and what is written may not


@pytest.fixture(scope="module")
def composefs(tmp_path_factory):
    host, layouts = refusal.template(tmp_path_factory.mktemp("composefs"))
    files = {
        f"usr/share/big/{number}": (f"{number:04} is a line of the payload\n".encode() * 40_000)[
            :MIB
        ]
        for number in range(PAYLOAD)
    }
    layouts["big"] = build(host.place / "images/big", "2", files)
    kernel = {"usr/lib/modules/6.1.0-test/vmlinuz": os.urandom(400_000)}
    layouts["kernel"] = build(host.place / "images/kernel", "2", kernel)
    many = {f"usr/share/many/{number}": f"{number} ".encode() * 50 for number in range(600)}
    layouts["many"] = build(host.place / "images/many", "2", many)
    return host, layouts


@pytest.fixture(scope="module")
def ostree(tmp_path_factory):
    host, layouts = refusal.template(tmp_path_factory.mktemp("ostree"), "ostree")
    yield host, layouts
    refusal.wipe(host.sysroot)


@pytest.fixture(autouse=True)
def _removable(tmp_path):
    """Deployments of libostree are immutable; nobody else could remove them."""
    yield
    refusal.wipe(tmp_path / "host")


@pytest.fixture(scope="module")
def clean(composefs, tmp_path_factory):
    """Objects, by image, of a host that went from 1 to it and never met anything bad."""
    found = {}
    for name in ("2", "big", "many"):
        host = copy(composefs[0], tmp_path_factory.mktemp("clean"))
        host.assert_good_run(composefs[1][name])
        found[name] = host.objects()
        refusal.wipe(host.sysroot)
    return found


@pytest.fixture
def layouts(composefs):
    return composefs[1]


@pytest.fixture
def host(composefs, tmp_path):
    copied = copy(composefs[0], tmp_path)
    copied.serve(composefs[1]["2"])
    return copied


@pytest.fixture
def mounted(tmp_path):
    """mounted(kind, mebibytes, options...) gives a fresh file system's mount point; unmounted at the end."""
    places = []

    def mount(kind, size, *options, make=(), sectors=512):
        place = tmp_path / f"mount{len(places)}"
        place.mkdir()
        if kind == "tmpfs":
            options = ",".join((f"size={size}M", *options))
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        else:
            image = tmp_path / f"disk{len(places)}"
            with image.open("wb") as file:
                file.truncate(size * MIB)
            device = subprocess.run(
                ["losetup", "--find", "--show", "--sector-size", str(sectors), image],
                check=True, capture_output=True, text=True,
            ).stdout.strip()  # fmt: skip
            places.append(device)
            subprocess.run(
                [f"mkfs.{kind}", "-q", "-m", "0", *make, device], check=True, capture_output=True
            )
            command = [
                "mount",
                "-t",
                kind,
                *(["-o", ",".join(options)] if options else []),
                device,
                place,
            ]
            subprocess.run(command, check=True)
        places.append(place)
        return place

    mount.places = places
    yield mount
    for place in reversed(places):
        command = ["umount", place] if isinstance(place, Path) else ["losetup", "--detach", place]
        subprocess.run(command, check=True)


@pytest.fixture
def mount(mounted):
    return mounted


def device_of(place):
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", place], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def free(place):
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def leave(place, wanted):
    """A ballast file, so that so many bytes are left, to some blocks."""
    with (place / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free(place) - wanted - MIB, 4096))
        file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            while free(place) > wanted:
                os.write(file.fileno(), bytes(4096))


# --- D01, D03: space and inodes --------------------------------------------------------------------------------------

LEVELS = (0, 1, 20, 63, 65, 68, 75, 85, 93, 96, 98, 99) if ALL else (0, 65, 80, 95)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_d01_no_space_while_upgrading(kind, composefs, layouts, clean, tmp_path, mount):
    """Whatever is left when an upgrade begins, it says so, changes nothing, and gives the space back."""
    place = mount(kind, 220)
    for level in LEVELS:
        refusal.wipe(place / "host")
        host = copy(composefs[0], place)
        host.serve(layouts["big"])
        leave(place, level * MIB)
        before = host.snapshot()
        done = host.upgrade()
        if done.returncode == 0:
            assert level >= PAYLOAD, f"{level} MiB are enough"
            continue
        error = assert_refused(done, "SPC")
        if 0 < level < 65:  # told before anything is fetched: what is needed, what there is, where
            assert re.search(r"\d+ bytes on the file system of .*composefs", error["expected"]), (
                error
            )
            assert re.search(r"\d+ bytes", error["found"]), error
        host.assert_unchanged(before)
        (place / "ballast").unlink()
        if level in {0, 80, 95}:
            host.assert_good_run(layouts["big"], clean=clean["big"])
            used = sum(path.lstat().st_blocks * 512 for path in host.sysroot.rglob("*"))
            assert used < (PAYLOAD + 8) * MIB


@pytest.mark.parametrize("level", (0, 30, 66, 90) if ALL else (0, 90))
def test_d01_no_space_for_the_first_deployment(level, composefs, layouts, mount):
    place = mount("tmpfs", 220)
    host = Host(place)
    host.serve(layouts["big"])
    leave(place, level * MIB)
    assert_refused(host.switch(), "SPC")
    assert not (host.sysroot / "boot/loader/entries").exists()
    (place / "ballast").unlink()
    host.assert_good_run(layouts["big"])


STEPS = (
    "write:journal", "mkdir:spool", "syncfs:spool", "rename:objects", "write:.origin", "symlink:images/", "symlink:refs/oci",
    "rename:state/deploy", "write:staged-deployment", "mkdir:.bootc-tmp", "write:loader/entries",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS if ALL else STEPS[2::3])
def test_d01_full_at_a_durable_step(step, composefs, layouts, clean, mount):
    """The disk fills up between two steps. Steps that need no block may succeed; the result is old or new, whole."""
    place = mount("ext4", 100)
    host = copy(composefs[0], place)
    host.serve(layouts["2"])
    before = host.snapshot()
    done = host.hostile(step, "fill", "upgrade")
    (host.sysroot / "ballast").unlink()
    assert done.returncode != 77, done.stderr
    if done.returncode == 0:
        assert host.versions() == (None, "2", "1")
        return
    assert_refused(done, "SPC")
    host.assert_unchanged(before)
    host.assert_good_run(layouts["2"], clean=clean["2"])


def test_d01_no_space_with_ostree(ostree, composefs, layouts, mount):
    place = mount("ext4", 220)
    for level in (0, 40, 90) if ALL else (0, 60):
        refusal.wipe(place / "host")
        host = copy(ostree[0], place)
        host.serve(layouts["big"])
        leave(place, level * MIB)
        before = host.snapshot()
        assert_refused(host.upgrade(), "SPC")
        host.assert_unchanged(before)
        (place / "ballast").unlink()
    host.assert_good_run(layouts["big"])


def test_d02_no_space_on_the_boot_partition(composefs, layouts, mount):
    """Kernel and initial RAM disk do not fit: told before anything is written there, with needed and free bytes."""
    boot, place = mount("ext2", 2, make=("-b", "1024")), mount("tmpfs", 100)
    host = Host(place, flags=("--boot-dir", str(boot)))
    host.serve(layouts["1"])
    assert host.switch().returncode == 0
    leave(boot, 100 * 1024)
    entries = refusal.tree(boot)
    before = host.snapshot()
    host.serve(layouts["kernel"])
    error = assert_refused(host.upgrade(), "SPC", str(boot))
    assert int(re.search(r"(\d+) bytes", error["expected"])[1]) > 400_000, error
    assert int(re.search(r"(\d+) bytes", error["found"])[1]) <= 100 * 1024, error
    assert refusal.tree(boot) == entries
    host.assert_unchanged(before)
    (boot / "ballast").unlink()
    host.assert_good_run(layouts["kernel"])


def test_d03_no_inodes(composefs, layouts, clean, mount):
    """There are blocks enough; the error says what there is none of."""
    place = mount("ext4", 200, make=("-N", "500"))
    host = copy(composefs[0], place)
    host.serve(layouts["many"])
    before = host.snapshot()
    error = assert_refused(host.upgrade(), "SPC")
    assert "inode" in " ".join(error.values()), error
    host.assert_unchanged(before)
    host.assert_good_run(layouts["2"], clean=clean["2"])


# --- D04, D09: errors of system calls --------------------------------------------------------------------------------

SYNCING = ("fsync", "syncfs")
NAMING = ("rename", "renameat2", "symlinkat", "mkdir", "unlink")
CALLS = {
    "d04_sync": (SYNCING, "EIO", "IO"),
    "d04_name": (NAMING, "EIO", "IO"),
    "d04_write": (("write", "pwrite64"), "EIO", "IO"),
    "d01_write": (("write", "pwrite64"), "ENOSPC", "SPC"),
    "d03_quota": (("write",), "EDQUOT", "SPC"),
    "d06_name": (("renameat2", "mkdir", "unlink"), "EROFS", "RO"),
    "d09_memory": (("renameat2", "mkdir", "fsync"), "ENOMEM", "IO"),
    "d09_descriptors": (("pidfd_open", "dup2", "pipe2", "socketpair"), "EMFILE", "IO"),
    "d09_interrupted": (("fsync", "write"), "EINTR", "IO"),
}  # fmt: skip
POINTS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89) if ALL else (1, 4, 21)


def inject(call, error, number):
    return (
        "strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={call}",
        "-e", f"inject={call}:error={error}:when={number}",
    )  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_errors_of_system_calls(name, composefs, layouts, clean, tmp_path):
    """The k-th call of each kind fails, in each thread: refused and unchanged, or made all the same; the next run converges."""
    calls, error, catalogue = CALLS[name]
    seen = {"refused": 0, "made": 0}
    for index, call in enumerate(calls):
        for number in POINTS if ALL else POINTS[index % 2 :: 2]:
            refusal.wipe(tmp_path / "host")
            host = copy(composefs[0], tmp_path)
            host.serve(layouts["2"])
            before = host.snapshot()
            where = f"{call} {number}: {error}"
            done = host.upgrade(prefix=inject(call, error, number))
            assert "Traceback" not in done.stderr, f"{where}\n{done.stderr}"
            if done.returncode == 0:
                seen["made"] += 1
                assert host.versions() == (None, "2", "1"), where
                continue
            seen["refused"] += 1
            told = assert_refused(done, (catalogue, "IO"))
            assert " " in told["message"], where
            assert refusal.difference(before, host.snapshot()) == [], f"{where}\n{told}"
            host.assert_good_run(layouts["2"], clean=clean["2"])
    print(name, seen)
    assert seen["refused"] or error == "EINTR"


def test_d04_the_first_error_of_a_sync_is_final(composefs, layouts, tmp_path):
    """Linux tells a lost write once; asking again would hear that all is well."""
    host = copy(composefs[0], tmp_path)
    host.serve(layouts["2"])
    log = tmp_path / "calls"
    prefix = (
        "strace",
        "-f",
        "-qq",
        "-y",
        "-o",
        log,
        "-e",
        "trace=syncfs",
        "-e",
        "inject=syncfs:error=EIO:when=1",
    )
    assert_refused(host.upgrade(prefix=prefix), "IO", "sync")
    calls = [line for line in log.read_text().splitlines() if "syncfs(" in line]
    assert "INJECTED" in calls[0]
    places = [re.search(r"<(.*?)>", line)[1] for line in calls]
    assert places.count(places[0]) == 1


# --- D05, D13: a medium that lies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
def test_d05_what_was_written_is_read_back(how, host, layouts, clean):
    """The content of staged objects changes after it was hashed: found before any of it gets a name."""
    before = host.snapshot()
    done = host.hostile("syncfs:spool", f"{how}:bootc/spool/composefs/*/objects/*", "upgrade")
    assert_refused(done, "IO", "disk")
    host.assert_unchanged(before)
    assert not [path for path in host.objects() if path.startswith(".")]
    refusal.wipe(host.sysroot / "bootc/spool")
    host.assert_good_run(layouts["2"], clean=clean["2"])


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_d05_damaged_splitstreams_are_not_published(how, host, layouts):
    """Only the good bytes, which were read and hashed before, get the name."""
    done = host.hostile("syncfs:spool", f"{how}:bootc/spool/composefs/*/stream", "upgrade")
    if done.returncode:
        assert_refused(done, ("IO", "INT"))
        host.assert_good_run(layouts["2"])
    assert host.versions() == (None, "2", "1")
    assert damaged(host) == []


def test_d05_what_was_damaged_is_not_taken_again(host, layouts, clean):
    """The next run must not trust the staged layer whose content the medium lost."""
    done = host.hostile("syncfs:spool", "flip:bootc/spool/composefs/*/objects/*", "upgrade")
    assert done.returncode == 1
    host.assert_good_run(layouts["2"], clean=clean["2"])


def test_d05_images_are_read_back(host, layouts):
    """What the parent writes itself, the image that boots among it, is compared with its name after the sync."""
    before = host.snapshot()
    done = host.hostile("symlink:images/", "flip:composefs/objects/*/*", "upgrade")
    if done.returncode == 0:  # it was read back before this step
        done = host.command("status", "--json")
        pytest.fail("an image that changed before it was named was taken")
    assert_refused(done, ("IO", "INT"))
    host.assert_unchanged(before)


def damaged(host):
    """Objects whose content is not what their name says."""
    objects = host.sysroot / "composefs/objects"
    return [
        name
        for name in host.objects()
        if verity.digest((objects / name).read_bytes(), "sha512").hex() != name.replace("/", "")
    ]


def spoil(path, how):
    data = path.read_bytes()
    match how:
        case "flip":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "grown":
            path.write_bytes(data + b"x")
        case "links":
            os.link(path, path.with_name(f"{path.name}x"))
        case "directory":
            path.unlink()
            path.mkdir()
        case "symlink":
            path.unlink()
            path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("how", ["empty", "missing", "cut", "flip"])
def test_d13_damaged_streams_are_fetched_again(how, host, layouts):
    """A stream of a layer that the new image shares: found on use, repaired."""
    shared = build(host.place / "shared", "3")
    host.serve(layouts["2"])
    assert host.upgrade().returncode == 0
    for link in (host.sysroot / "composefs/streams").glob("oci-layer-*"):
        target = link.resolve()
        if how == "missing":
            target.unlink()
        else:
            spoil(target, how)
    host.serve(shared)
    done = host.upgrade()
    assert done.returncode == 0, done.stderr
    assert host.versions() == (None, "3", "2")


@pytest.mark.parametrize("how", ["empty", "cut", "grown"])
def test_d13_objects_of_another_size_are_repaired(how, host, layouts):
    """Content that the new image needs and the store has only by name."""
    host.assert_good_run(layouts["2"])
    wanted = refusal.layers("2")[1]["usr/share/2/1"]
    found = [
        path
        for path in (host.sysroot / "composefs/objects").glob("*/*")
        if path.read_bytes() == wanted
    ]
    assert len(found) == 1
    spoil(found[0], how)
    host.serve(
        build(host.place / "again", "3", {"usr/share/2": images.Dir(), "usr/share/2/1": wanted})
    )
    done = host.upgrade()
    assert done.returncode == 0, done.stderr
    assert found[0].read_bytes() == wanted


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "missing"])
def test_d13_a_damaged_image_of_what_boots(how, host, layouts):
    """The image with the pristine /etc: without it there is no merge, so nothing is switched, and the object is named."""
    (name,) = (host.sysroot / "composefs/images").glob("*")
    target = name.resolve()
    if how == "missing":
        target.unlink()
    else:
        spoil(target, how)
    before = host.snapshot()
    error = assert_refused(host.upgrade(), "INT")
    assert error["reference"] in {"damaged-object", "missing-object"}
    host.assert_unchanged(before)
    assert host.command("status").returncode == 0


def test_d13_an_immutable_object(host, layouts, tmp_path, mount):
    """One that may not be replaced: refused by name, and good again when the flag is gone."""
    place = mount("ext4", 100)
    host = copy(host, place)
    host.serve(layouts["2"])
    wanted = refusal.layers("2")[1]["usr/share/2/1"]
    name = verity.digest(wanted, "sha512").hex()
    target = host.sysroot / "composefs/objects" / name[:2] / name[2:]
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(wanted[:-1])
    subprocess.run(["chattr", "+i", target], check=True)
    try:
        before = host.snapshot()
        error = assert_refused(host.upgrade(), ("ENV", "IO"))
        assert name[2:] in error["message"]
        host.assert_unchanged(before)
    finally:
        subprocess.run(["chattr", "-i", target], check=True)
    host.assert_good_run(layouts["2"])
    assert target.read_bytes() == wanted


# --- D06, D07, D08: read-only, and the wrong disk --------------------------------------------------------------------

MOMENTS = ("write:journal", "mkdir:spool", "syncfs:spool", "rename:objects", "syncfs:composefs", "symlink:refs/oci",
           "write:staged-deployment", "write:loader/entries", "patch:loader/entries")  # fmt: skip


@pytest.mark.parametrize("step", MOMENTS if ALL else MOMENTS[1::3])
def test_d06_read_only_in_the_middle(step, composefs, layouts, mount):
    """The file system gives up on an error of its own, as ext4 does; after repair, the next run converges."""
    place = mount("ext4", 100, "errors=remount-ro")
    device = device_of(place)
    host = copy(composefs[0], place)
    host.serve(layouts["2"])
    os.sync()
    before = host.snapshot()
    done = host.hostile(step, "abort", "upgrade", env={"EXT4_DEVICE": device.removeprefix("/dev/")})
    assert done.returncode == 1, done.stderr
    assert_refused(done, ("RO", "IO"))
    assert host.command("status").returncode == 0
    subprocess.run(["umount", place], check=True)
    subprocess.run(["e2fsck", "-fy", device], check=False, capture_output=True)
    subprocess.run(["mount", device, place], check=True)
    assert host.versions()[1:] == ("1", None)
    host.assert_good_run(layouts["2"])
    assert before


@pytest.mark.parametrize("backend", ["composefs", "ostree"])
def test_d07_read_only_from_the_start(backend, composefs, ostree, tmp_path):
    """A bind mount that is read-only: refused at once and clearly; status works and shows it."""
    template, layouts = composefs if backend == "composefs" else ostree
    host = copy(template, tmp_path)
    host.serve(layouts["2"])
    before = host.snapshot()
    subprocess.run(["mount", "--bind", host.sysroot, host.sysroot], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", host.sysroot], check=True)
        error = assert_refused(host.upgrade(), "RO", "read-only")
        assert str(host.sysroot) in error["message"]
        assert_refused(host.command("rollback"), ("RO", "STATE"))
        assert host.versions() == (None, "1", None)
    finally:
        subprocess.run(["umount", host.sysroot], check=True)
    host.assert_unchanged(before)
    host.assert_good_run(layouts["2"])


@pytest.mark.parametrize("command", ["upgrade", "switch", "rollback"])
@pytest.mark.parametrize("backend", ["composefs", "ostree"])
def test_d08_the_boot_partition_is_not_there(backend, command, composefs, ostree, tmp_path):
    """Deployments, and no boot entry of any of them: whatever is at /boot is not this host's. Nothing is written or pruned."""
    template, layouts = composefs if backend == "composefs" else ostree
    host = copy(template, tmp_path)
    host.assert_good_run(layouts["2"])
    (host.sysroot / "boot").rename(tmp_path / "partition")
    (host.sysroot / "boot").mkdir()
    host.serve(layouts["3"])
    before = host.snapshot()
    done = host.switch() if command == "switch" else host.command(command)
    assert_refused(done, ("STATE", "USE"))
    host.assert_unchanged(before)
    assert os.listdir(host.sysroot / "boot") == []
    (host.sysroot / "boot").rmdir()
    (tmp_path / "partition").rename(host.sysroot / "boot")
    host.assert_good_run(layouts["3"], "3")


# --- D10, D11, D12, D16, D17: file systems ---------------------------------------------------------------------------

KINDS = {
    "tmpfs": ("tmpfs", 160, ()),
    "ext2_without_xattrs": ("ext2", 160, ("-O", "^ext_attr")),
    "ext4_without_journal": ("ext4", 160, ("-O", "^has_journal")),
    "small_blocks": ("ext4", 160, ("-b", "1024")),
}


@pytest.mark.parametrize("name", KINDS)
def test_d10_file_systems_that_lack_something(name, layouts, mount):
    """No fs-verity, reflinks, extended attributes or journal: it works, and status tells what is not guarded."""
    kind, size, make = KINDS[name]
    host = Host(mount(kind, size, make=make))
    host.serve(layouts["1"])
    done = host.switch()
    assert done.returncode == 0, done.stderr
    host.assert_good_run(layouts["2"])
    assert host.command("rollback").returncode == 0
    assert host.status()["booted"]["composefs"]["missingVerityAllowed"] is True


@pytest.mark.parametrize("name", ["overlay"])
def test_d10_overlay(name, layouts, mount):
    """An upper layer that copies on write and renames directories only if it may."""
    place = mount("tmpfs", 160)
    for directory in ("lower", "upper", "work", "merged"):
        (place / directory).mkdir()
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "overlay", place / "merged"], check=True
    )
    try:
        host = Host(place / "merged")
        host.serve(layouts["1"])
        assert host.switch().returncode == 0
        host.assert_good_run(layouts["2"])
    finally:
        subprocess.run(["umount", place / "merged"], check=True)


def test_d11_no_rename_crosses_a_device(host, tmp_path, mount):
    """Another file system where layers are spooled cannot be renamed from: noticed, told, nothing changed."""
    spool = host.sysroot / "bootc/spool"
    spool.mkdir(exist_ok=True)
    other = mount("tmpfs", 100)
    subprocess.run(["mount", "--bind", other, spool], check=True)
    try:
        before = host.snapshot()
        assert_refused(host.upgrade(), "IO", "composefs/objects", "cross-device")
        host.assert_unchanged(before)
    finally:
        subprocess.run(["umount", spool], check=True)
    log = tmp_path / "steps"
    host.serve(host.live.parent / "images/3")
    assert host.hostile("0", "none", "upgrade", env={"STEPS_FILE": str(log)}).returncode == 0
    device = os.stat(host.sysroot).st_dev
    spooled = {line.split()[1] for line in log.read_text().splitlines() if "spool" in line}
    assert all(path.startswith(str(host.sysroot)) for path in spooled)
    assert os.stat(host.sysroot / "composefs/objects").st_dev == device


@pytest.mark.parametrize("what", ["symlink", "symlink_objects", "owner", "mode"])
def test_d12_a_store_that_others_can_change(what, host, layouts, tmp_path):
    store = host.sysroot / "composefs"
    match what:
        case "symlink":
            store.rename(tmp_path / "elsewhere")
            store.symlink_to(tmp_path / "elsewhere")
        case "symlink_objects":
            (store / "objects").rename(tmp_path / "elsewhere")
            (store / "objects").symlink_to(tmp_path / "elsewhere")
        case "owner":
            os.chown(store / "objects", 65534, 65534)
        case "mode":
            (store / "objects").chmod(0o777)
    before = host.snapshot()
    # a link in the store's place is no store: nothing is deployed there, and nothing is started there either
    assert_refused(host.upgrade(), "USE" if what == "symlink" else "STATE", "host")
    if what == "symlink":
        assert_refused(host.switch(), "STATE", "composefs")
    host.assert_unchanged(before)


@pytest.mark.parametrize("kind", ["missing", "noexec", "tiny", "foreign"])
def test_d16_temporary_directories_are_not_needed(kind, host, layouts, clean, tmp_path, mount):
    """TMPDIR, /tmp and /var/tmp: none of them is used for data. Their file systems are replaced in a mount namespace."""
    match kind:
        case "missing":
            prefix, place = (), "/nonexistent"
        case "noexec":
            place = mount("tmpfs", 1, "noexec")
            prefix = ()
        case "tiny":
            place = mount("tmpfs", 1)
            leave(place, 0)
            prefix = ()
        case "foreign":
            place = tmp_path / "temporary"
            place.mkdir(0o555)
            prefix = ()
    done = host.upgrade(
        prefix=prefix, env={"TMPDIR": str(place), "TMP": str(place), "TEMP": str(place)}
    )
    assert done.returncode == 0, done.stderr
    assert host.objects() == clean["2"]
    log = tmp_path / "opened"
    host.serve(layouts["3"])
    strace = ("strace", "-f", "-qq", "-o", log, "-e", "trace=openat,mkdir,mkdirat,creat")
    assert host.upgrade(prefix=strace).returncode == 0
    sysroot = str(host.sysroot)
    written = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if re.search(r"O_WRONLY|O_RDWR|O_CREAT|mkdir", line) and re.search(r'"(/var)?/tmp/', line)
    ]
    assert [line for line in written if sysroot not in line] == []


def test_d17_large_sectors(layouts, mount):
    """A disk whose sectors have 4096 bytes, with the boot partition on it."""
    place = mount("ext4", 160, sectors=4096)
    host = Host(place)
    host.serve(layouts["1"])
    assert host.switch().returncode == 0
    host.assert_good_run(layouts["2"])


def test_d18_discard_while_writing(layouts, mount):
    """The file system trims as it goes, and once more from outside in the middle of an upgrade."""
    place = mount("ext4", 160, "discard")
    host = Host(place)
    host.serve(layouts["1"])
    assert host.switch().returncode == 0
    stop = threading.Event()

    def trim():
        while not stop.is_set():
            subprocess.run(["fstrim", place], check=False, capture_output=True)
            stop.wait(0.05)

    thread = threading.Thread(target=trim)
    thread.start()
    try:
        host.assert_good_run(layouts["2"])
    finally:
        stop.set()
        thread.join()
    subprocess.run(["umount", place], check=True)
    device = [item for item in mount.places if not isinstance(item, Path)][-1]
    subprocess.run(["e2fsck", "-fn", device], check=True, capture_output=True)
    subprocess.run(["mount", device, place], check=True)
    assert host.versions() == (None, "2", "1")


# --- D14, D15: time and memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-(10**9), 10**9], ids=["back", "forward"])
def test_d14_the_clock_jumps(seconds, host, layouts):
    done = host.hostile("mkdir:spool", f"jump:{seconds}", "upgrade")
    assert done.returncode == 0, done.stderr
    assert host.versions() == (None, "2", "1")


def test_d14_no_deadline_uses_the_wall_clock():
    """``time.time`` has one user, which compares with a date that a server sent, and bounds the result."""
    users = set()
    root = Path(refusal.__file__).parents[2]
    for path in [*(root / "bootc_core").rglob("*.py"), *(root / "plugins").rglob("*.py")]:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [
                    ast.unparse(node.func)
                    for node in ast.walk(function)
                    if isinstance(node, ast.Call)
                ]
                if {"time.time", "time.time_ns"} & set(calls):
                    users.add(f"{path.relative_to(root)}:{function.name}")
    assert users == {"bootc_core/net/http.py:retry_after_s"}


def test_d15_memory_processors_and_niceness(host, layouts, tmp_path):
    """20,000 files and 40 MiB on one processor at the lowest priority: all processes together stay below 256 MiB."""
    files = {f"usr/share/x/{number}": f"{number:07}".encode() for number in range(20_000)}
    files["usr/share/large"] = b"0123456789abcdef" * (40 * MIB // 16)
    host.serve(build(tmp_path / "wide", "2", files, compression="zstd"))
    process = subprocess.Popen(
        ["nice", "-n", "19", "taskset", "-c", "0", *refusal.CLI, "upgrade", "--sysroot", host.sysroot],
        env=refusal.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, proportional(process.pid))
        time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "Queued for next boot" in out
    assert 0 < peak < 256 * MIB, f"{peak / MIB:.0f} MiB"
    print(f"peak {peak / MIB:.0f} MiB")


def proportional(pid):
    """Memory of a process and its descendants, shared pages divided among them."""
    total, todo = 0, [pid]
    while todo:
        current = todo.pop()
        try:
            text = Path(f"/proc/{current}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) * 1024
            for task in Path(f"/proc/{current}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, TypeError):
            continue
    return total
