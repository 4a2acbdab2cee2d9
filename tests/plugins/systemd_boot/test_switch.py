"""The switch on a boot partition: effective, idempotent, and whole whenever it is stopped."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
from pathlib import Path

import pytest
from bootc_systemd_boot import loader, partition, switch

from bootc_core.boot import bls
from bootc_core.errors import BootError, ContentError, StorageError
from bootc_core.fs import atomic
from bootc_core.models.boot import BootEntry, BootFile, BootPlan
from bootc_core.models.sysroot import Sysroot


class Killed(BaseException):
    """The process is gone: nothing in the program may catch this."""


class Host:
    """A boot directory, and deployments whose files lie beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boot = path / "boot"
        self.sysroot = Sysroot(path, self.boot, unprivileged=True)
        (path / "store").mkdir(parents=True)
        self.boot.mkdir()
        self.known: dict[str, BootEntry] = {}

    def entry(
        self, name: str, *, os_id: str = "debian", kernel: str | None = None, options: str = "rw"
    ) -> BootEntry:
        deployment = hashlib.sha512(name.encode()).hexdigest()
        files = []
        for file in ("vmlinuz", "initrd"):
            data = f"{file} of {kernel or name}\n".encode() * 40
            source = self.path / "store" / f"{name}-{file}"
            source.write_bytes(data)
            files.append(
                BootFile(
                    f"EFI/Linux/bootc_composefs-{deployment}/{file}",
                    source,
                    len(data),
                    hashlib.sha256(data).hexdigest(),
                )
            )
        entry = BootEntry(
            deployment,
            os_id,
            f"{os_id} {name}",
            name,
            f"{options} composefs={deployment}",
            files[0],
            (files[1],),
        )
        self.known[deployment] = entry
        return entry

    def switch(self, *entries: BootEntry | str, tries: int | None = None) -> None:
        switch.switch(self.sysroot, BootPlan(tuple(entries), tries=tries))

    def count_down(self, name: str) -> str:
        """What systemd-boot does with a counted entry before it starts it: one try less, one more done."""
        (path,) = self.boot.glob(f"loader/entries/*-{name}-*+*.conf")
        stem, left, done = bls.tries_of(path.name)
        return path.rename(path.with_name(f"{stem}+{left - 1}-{done + 1}.conf")).name

    def menu(self) -> list[tuple[str, str]]:
        """Version and sort key of the readable entries, in menu order."""
        return [
            (entry.get("version") or "", entry.get("sort-key") or "")
            for entry in bls.read_entries(self.boot)
        ]

    def boots(self) -> str:
        """What the boot loader would start now: its files must be there, byte for byte."""
        menu = bls.read_entries(self.boot)
        default = loader.pinned(self.boot, live=False)
        entry = loader.chosen(menu, default[0] if default else None)
        assert entry is not None
        deployment = bls.deployment_of(entry)
        assert deployment is not None
        known = self.known[deployment]
        assert known.options == entry.get("options")
        paths = [*entry.all("linux"), *entry.all("initrd")]
        assert len(paths) == len(known.files)
        for path, file in zip(paths, known.files, strict=True):
            assert partition.holds(self.boot / path.lstrip("/"), file), path
        return known.version

    def tree(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.boot)): path.read_bytes()
            for path in sorted(self.boot.rglob("*"))
            if path.is_file()
        }

    def kernels(self) -> list[str]:
        return sorted(path.name for path in (self.boot / "EFI/Linux").iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


def test_first_deployment(host: Host) -> None:
    a = host.entry("a")
    host.switch(a)
    assert host.menu() == [("a", "bootc-debian-0")]
    assert host.boots() == "a"
    assert (host.boot / "loader/loader.conf").read_bytes() == b"timeout 5\n"


def test_upgrade_keeps_two_and_moves_only_digits(host: Host) -> None:
    a, b, c = host.entry("a"), host.entry("b"), host.entry("c")
    host.switch(a)
    before = host.tree()
    host.switch(b, a.deployment_id)
    assert host.menu() == [("b", "bootc-debian-0"), ("a", "bootc-debian-1")]
    after = host.tree()
    (entry_of_a,) = [path for path in before if "loader/entries" in path]
    assert after[entry_of_a] == before[entry_of_a].replace(b"debian-0\n", b"debian-1\n")
    host.switch(c, b.deployment_id)
    assert host.menu() == [("c", "bootc-debian-0"), ("b", "bootc-debian-1")]
    assert host.boots() == "c"
    assert host.kernels() == sorted(f"bootc_composefs-{e.deployment_id}" for e in (b, c))


def test_rollback_and_back(host: Host) -> None:
    a, b = host.entry("a"), host.entry("b")
    host.switch(a)
    host.switch(b, a.deployment_id)
    host.switch(a.deployment_id, b.deployment_id)
    assert host.menu() == [("a", "bootc-debian-0"), ("b", "bootc-debian-1")]
    assert host.boots() == "a"
    host.switch(b.deployment_id, a.deployment_id)
    assert host.boots() == "b"


def test_a_new_entry_is_counted_and_given_up(host: Host) -> None:
    old, new, newer = (host.entry(name) for name in ("1", "2", "3"))
    host.switch(old, tries=0)
    host.switch(new, old.deployment_id, tries=3)
    assert [bls.tries_of(entry.file)[1:] for entry in bls.read_entries(host.boot)] == [
        (3, 0),
        (None, None),
    ]
    for left in (2, 1):
        assert host.count_down("2").endswith(f"+{left}-{3 - left}.conf")
        assert host.boots() == "2"
    host.count_down("2")
    assert host.boots() == "1"
    # what was given up stands in nobody's way, and the next update replaces it
    host.switch(newer, old.deployment_id, tries=3)
    assert host.boots() == "3"
    assert sorted(version for version, _ in host.menu()) == ["1", "3"]


def test_a_counted_entry_is_called_good(host: Host) -> None:
    old, new = (host.entry(name) for name in ("1", "2"))
    host.switch(old)
    host.switch(new, old.deployment_id, tries=3)
    counted = host.count_down("2")
    plain = f"{bls.tries_of(counted)[0]}.conf"  # as systemd-bless-boot would call it
    host.switch(new.deployment_id, old.deployment_id)  # says nothing of tries
    assert counted in bls.entry_names(host.boot)
    host.switch(new.deployment_id, old.deployment_id, tries=0)
    assert plain in bls.entry_names(host.boot)
    assert not any("+" in name for name in bls.entry_names(host.boot))
    assert [version for version, _ in host.menu()] == ["2", "1"]
    host.switch(new.deployment_id, old.deployment_id, tries=0)  # idempotent
    assert [version for version, _ in host.menu()] == ["2", "1"]


def test_going_back_to_what_was_given_up_is_possible(host: Host) -> None:
    old, new = (host.entry(name) for name in ("1", "2"))
    host.switch(old)
    host.switch(new, old.deployment_id, tries=1)
    host.count_down("2")
    assert host.boots() == "1"
    host.switch(new.deployment_id, old.deployment_id)
    assert host.boots() == "2"


def test_idempotent(host: Host) -> None:
    a, b = host.entry("a"), host.entry("b")
    host.switch(a)
    host.switch(b, a.deployment_id)
    before = host.tree()
    host.switch(b, a.deployment_id)
    host.switch(b, a)
    assert host.tree() == before


def test_another_system_takes_over_the_order_of_the_first(host: Host) -> None:
    debian, fedora = host.entry("a"), host.entry("b", os_id="fedora")
    host.switch(debian)
    host.switch(fedora, debian.deployment_id)
    assert host.boots() == "b"
    assert host.menu() == [("b", "bootc-debian-0"), ("a", "bootc-debian-1")]
    host.switch(debian.deployment_id, fedora.deployment_id)
    assert host.boots() == "a"


def test_more_than_two(host: Host) -> None:
    entries = [host.entry(name) for name in "abcde"]
    host.switch(entries[0])
    for entry in entries[1:]:
        kept = [item for item in entries if item.version < entry.version]
        host.switch(entry, *[item.deployment_id for item in reversed(kept)])
    assert host.menu() == [(name, f"bootc-debian-{n}") for n, name in enumerate("edcba")]
    host.switch(entries[1].deployment_id, entries[4].deployment_id)
    assert host.menu() == [("b", "bootc-debian-0"), ("e", "bootc-debian-1")]


def test_changed_arguments_make_a_new_entry(host: Host) -> None:
    a = host.entry("a")
    host.switch(a)
    changed = host.entry("a", options="rw quiet")
    host.switch(changed)
    assert host.boots() == "a"
    assert len(host.menu()) == 1


def test_same_kernel_is_not_written_twice(host: Host) -> None:
    a, b, c = (host.entry(name, kernel="same") for name in "abc")
    host.switch(a)
    host.switch(b, a.deployment_id)
    assert host.kernels() == [f"bootc_composefs-{a.deployment_id}"]
    host.switch(c, b.deployment_id)
    assert host.kernels() == [f"bootc_composefs-{a.deployment_id}"]
    assert host.boots() == "c"


def test_damaged_kernel_is_not_shared_but_written(host: Host) -> None:
    a, b = host.entry("a", kernel="same"), host.entry("b", kernel="same")
    host.switch(a)
    damaged = host.boot / a.linux.path
    damaged.write_bytes(b"x" * a.linux.size)
    host.switch(b, a.deployment_id)
    assert host.boots() == "b"
    host.switch(a, b.deployment_id)  # B09: repaired from the store before the switch
    assert host.boots() == "a"


def test_effective_plan_is_left_to_the_backend(host: Host) -> None:
    plan = BootPlan((), effective=True)
    switch.preflight(host.sysroot, plan)
    switch.switch(host.sysroot, plan)
    assert host.tree() == {}


FOREIGN = b"title Other\nlinux /other/vmlinuz\noptions root=/dev/sda2\n"


def test_foreign_entries_and_files_are_never_touched(host: Host) -> None:
    entries = host.boot / "loader/entries"
    entries.mkdir(parents=True)
    (entries / "other.conf").write_bytes(FOREIGN)
    (entries / "broken.conf").write_bytes(b"\0\0")
    (host.boot / "loader/loader.conf").write_bytes(b"timeout 1\n")
    for path in ("EFI/Linux/bootc/uki.efi", "EFI/Linux/arch.efi", "other/vmlinuz"):
        (host.boot / path).parent.mkdir(parents=True, exist_ok=True)
        (host.boot / path).write_bytes(b"x")
    before = host.tree()
    a, b, c = (host.entry(name) for name in "abc")
    host.switch(a)
    host.switch(b, a.deployment_id)
    host.switch(c, b.deployment_id)
    assert host.boots() == "c"
    after = host.tree()
    assert {path: after[path] for path in before} == before


@pytest.mark.parametrize(
    ("conf", "refused"),
    [
        (b"default other.conf\n", "other.conf"),
        (b"timeout 3\ndefault other\n", "other"),
        (b"default\toth*\n", "oth*"),
        (b"default @saved\n", "@saved"),
        (b"default bootc_*\n", None),
        (b"default bootc_debian*\n", None),
        (b"default gone.conf\n", None),
        (b"#default other.conf\n", None),
    ],
)
def test_pinned_default(host: Host, conf: bytes, refused: str | None) -> None:
    (host.boot / "loader/entries").mkdir(parents=True)
    (host.boot / "loader/entries/other.conf").write_bytes(FOREIGN)
    host.switch(host.entry("a"))
    (host.boot / "loader/loader.conf").write_bytes(conf)
    b = host.entry("b")
    plan = BootPlan((b, host.entry("a").deployment_id))
    before = host.tree()
    if refused is None:
        switch.preflight(host.sysroot, plan)
        switch.switch(host.sysroot, plan)
        assert host.boots() == "b"
        return
    with pytest.raises(BootError) as caught:
        switch.preflight(host.sysroot, plan)
    assert caught.value.reference == "pinned-default"
    assert refused in (caught.value.found or "")
    with pytest.raises(BootError):
        switch.switch(host.sysroot, plan)
    assert host.tree() == before


def test_pinned_default_of_a_deployment_that_stays(host: Host) -> None:
    a = host.entry("a")
    host.switch(a)
    (name,) = (host.boot / "loader/entries").iterdir()
    (host.boot / "loader/loader.conf").write_text(f"default {name.name}\n")
    with pytest.raises(BootError, match="pins another entry"):
        host.switch(host.entry("b"), a.deployment_id)


def test_foreign_entry_that_comes_first(host: Host) -> None:
    (host.boot / "loader/entries").mkdir(parents=True)
    (host.boot / "loader/entries/arch.conf").write_bytes(FOREIGN + b"sort-key arch\n")
    with pytest.raises(BootError) as caught:
        host.switch(host.entry("a"))
    assert caught.value.reference == "foreign-first"
    assert caught.value.found == "arch.conf"
    (host.boot / "loader/loader.conf").write_bytes(b"default bootc_*\n")
    host.switch(host.entry("a"))
    assert host.boots() == "a"


@pytest.mark.parametrize("sort_key", [b"", b"sort-key lab-1\n", b"sort-key debian\n"])
def test_entry_that_cannot_be_ordered_is_copied(host: Host, sort_key: bytes) -> None:
    a, b = host.entry("a"), host.entry("b")
    host.switch(a)
    (path,) = (host.boot / "loader/entries").iterdir()
    data = path.read_bytes().replace(b"sort-key bootc-debian-0\n", sort_key)
    path.unlink()
    path.with_name("lab.conf").write_bytes(data)
    assert host.boots() == "a"
    host.switch(b, a.deployment_id)
    assert host.boots() == "b"
    assert host.menu() == [("b", "bootc-debian-0"), ("a", "bootc-debian-1")]
    host.switch(a.deployment_id, b.deployment_id)
    assert host.boots() == "a"


def test_plan_that_makes_no_sense(host: Host) -> None:
    a = host.entry("a")
    host.switch(a)
    for entries, reference in (
        ((), "bad-boot-plan"),
        ((a, a.deployment_id), "bad-boot-plan"),
        (("f" * 128,), "no-boot-entry"),
        (tuple(host.entry(str(n)) for n in range(9)), "bad-boot-plan"),
    ):
        with pytest.raises(BootError) as caught:
            host.switch(*entries)
        assert caught.value.reference == reference
    (host.boot / a.linux.path).unlink()
    with pytest.raises(BootError, match="not usable"):
        host.switch(host.entry("b"), a.deployment_id)


def test_space_is_counted_before_anything_is_written(host: Host) -> None:  # D02
    a = host.entry("a")
    host.switch(a)
    b = host.entry("b")
    huge = BootFile(b.linux.path, b.linux.source, 2**50, b.linux.sha256)
    plan = BootPlan((BootEntry(b.deployment_id, "debian", "b", "b", "rw", huge), a.deployment_id))
    before = host.tree()
    for call in (switch.preflight, switch.switch):
        with pytest.raises(StorageError) as caught:
            call(host.sysroot, plan)
        assert caught.value.catalogue == "SPC"
        assert str(2**50 + 0)[:3] in (caught.value.expected or "")
        assert "bytes free" in (caught.value.found or "")
    assert host.tree() == before


@pytest.mark.parametrize("clash", ["inside", "present"])
def test_names_that_differ_in_case_only(host: Host, clash: str) -> None:  # T50
    a = host.entry("a")
    parent = a.linux.path.rpartition("/")[0]
    initrd = a.initrd[0]
    if clash == "inside":
        initrd = BootFile(f"{parent}/VMLINUZ", initrd.source, initrd.size, initrd.sha256)
    else:
        (host.boot / parent).mkdir(parents=True)
        (host.boot / parent / "Vmlinuz").write_bytes(b"x")
    entry = BootEntry(a.deployment_id, "debian", "a", "a", a.options, a.linux, (initrd,))
    before = host.tree()
    with pytest.raises(ContentError) as caught:
        host.switch(entry)
    assert caught.value.reference == "name-collision"
    assert host.tree() == before


def test_present_directories_keep_their_spelling(host: Host) -> None:
    (host.boot / "efi/LINUX").mkdir(parents=True)
    (host.boot / "Loader/Entries").mkdir(parents=True)
    host.switch(host.entry("a"))
    assert sorted(path.name for path in host.boot.iterdir()) == ["Loader", "efi"]
    assert len(list((host.boot / "Loader/Entries").iterdir())) == 1
    assert len(list((host.boot / "efi/LINUX").iterdir())) == 1


def test_source_that_is_not_what_was_promised(host: Host) -> None:
    a, b = host.entry("a"), host.entry("b")
    host.switch(a)
    before = host.tree()
    b.linux.source.write_bytes(b"?" * b.linux.size)
    with pytest.raises(StorageError) as caught:
        host.switch(b, a.deployment_id)
    assert caught.value.reference == "boot-file-mismatch"
    assert host.boots() == "a"
    host.switch(a)
    assert host.tree() == before


def test_what_the_original_staged_is_in_use(host: Host) -> None:
    a = host.entry("a")
    directory = host.boot / "EFI/Linux/bootc_composefs-1234"
    directory.mkdir(parents=True)
    (directory / "vmlinuz").write_bytes(b"x")
    staged = host.boot / "loader/entries.staged"
    staged.mkdir(parents=True)
    (staged / "bootc_x-1-1.conf").write_bytes(
        b"version 1\nlinux /EFI/Linux/bootc_composefs-1234/vmlinuz\n"
    )
    host.switch(a)
    assert directory.exists()
    shutil.rmtree(staged)
    host.switch(a)
    assert not directory.exists()


# --- stopped anywhere --------------------------------------------------------------------


def steps_of(host: Host, plan: BootPlan) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    with atomic.observe(lambda step, path: seen.append((step, path))):
        switch.switch(host.sysroot, plan)
    return seen


def stop_at(host: Host, plan: BootPlan, count: int, *, torn: bool) -> str | None:
    """Run until the step with that number, and tell its name; None if there are fewer.

    With ``torn`` only writes count, and a part of the file is left.
    """
    number = 0

    def observer(step: str, path: str) -> None:
        nonlocal number
        if torn and step != "write":
            return
        if number == count:
            if torn:
                Path(path).write_bytes(b"title torn\nlinux /EFI")
            raise Killed(step)
        number += 1

    try:
        with atomic.observe(observer):
            switch.switch(host.sysroot, plan)
    except Killed as killed:
        return str(killed)
    return None


SCENARIOS = {  # present entries in menu order, then the wish
    "first": ((), ("n",)),
    "second": (("a",), ("n", "a")),
    "third": (("a", "b"), ("n", "a")),
    "rollback": (("a", "b"), ("b", "a")),
    "pinned": (("a", "b", "c"), ("n", "a", "c")),
    "drop the first": (("a", "b"), ("n",)),
    "to the third": (("a", "b", "c"), ("c", "b")),
    "nothing new": (("a", "b"), ("a", "b")),
}


def prepare(path: Path, present: tuple[str, ...]) -> Host:
    host = Host(path)
    for count in range(1, len(present) + 1):
        names = present[len(present) - count :]
        host.switch(host.entry(names[0]), *[host.entry(name).deployment_id for name in names[1:]])
    return host


def clone(host: Host, path: Path) -> Host:
    copy = Host(path)
    shutil.copytree(host.boot, copy.boot, dirs_exist_ok=True)
    copy.known.update(host.known)
    return copy


def plan_of(host: Host, present: tuple[str, ...], wish: tuple[str, ...]) -> BootPlan:
    return BootPlan(
        tuple(
            host.entry(name).deployment_id if name in present else host.entry(name) for name in wish
        )
    )


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stopped_at_every_step(tmp_path: Path, scenario: str, torn: bool) -> None:
    present, wish = SCENARIOS[scenario]
    start = prepare(tmp_path / "start", present)
    old, switched = present[0] if present else None, False
    for count in itertools.count():
        host = clone(start, tmp_path / f"{count}")
        plan = plan_of(host, present, wish)
        if stop_at(host, plan, count, torn=torn) is None:
            break
        if old is not None:
            now = host.boots()
            assert now in {old, wish[0]}, count
            assert not (switched and now != wish[0]), "back again"
            switched = switched or now == wish[0]
        other = clone(host, tmp_path / f"{count}-other")
        # The same wish again ...
        switch.switch(host.sysroot, plan)
        assert host.menu() == [(name, f"bootc-debian-{place}") for place, name in enumerate(wish)]
        assert host.boots() == wish[0]
        assert len(host.kernels()) == len(wish)
        assert not [name for name in host.tree() if name.endswith(".new")]
        # ... or another one.
        last = bls.read_entries(other.boot)[:1] if old else []
        kept = [item for item in map(bls.deployment_of, last) if item]
        other.switch(other.entry("other"), *kept)
        assert other.boots() == "other"
        assert len(other.kernels()) == len(other.menu()) == 1 + len(kept)
    assert count > (5 if not torn else 1 if set(wish) - set(present) else -1)


@pytest.mark.parametrize("torn", [False, True])
def test_stopped_while_a_boot_is_called_good(tmp_path: Path, torn: bool) -> None:
    start = prepare(tmp_path / "start", ("a",))
    old, new = start.entry("a").deployment_id, start.entry("n")
    start.switch(new, old, tries=3)
    start.count_down("n")
    plan = BootPlan((new.deployment_id, old), tries=0)
    for count in itertools.count():
        host = clone(start, tmp_path / f"{count}")
        if stop_at(host, plan, count, torn=torn) is None:
            break
        assert host.boots() == "n", count
        switch.switch(host.sysroot, plan)
        assert host.menu() == [("n", "bootc-debian-0"), ("a", "bootc-debian-1")]
        assert not any("+" in name for name in bls.entry_names(host.boot))
    assert count > (0 if torn else 5)


@pytest.mark.parametrize("torn", [False, True])
def test_stopped_while_a_foreign_sort_key_is_replaced(tmp_path: Path, torn: bool) -> None:
    start = prepare(tmp_path / "start", ("a",))
    for count in itertools.count():
        host = clone(start, tmp_path / f"{count}")
        (path,) = (host.boot / "loader/entries").iterdir()
        data = path.read_bytes().replace(b"sort-key bootc-debian-0\n", b"sort-key lab-1\n")
        path.unlink()
        path.with_name("lab.conf").write_bytes(data)
        a, n = host.entry("a"), host.entry("n")
        if stop_at(host, BootPlan((n, a.deployment_id)), count, torn=torn) is None:
            break
        assert host.boots() in {"a", "n"}
        host.switch(n, a.deployment_id)
        assert host.menu() == [("n", "bootc-debian-0"), ("a", "bootc-debian-1")]
        assert host.boots() == "n"
    assert count > (20 if not torn else 3)


def test_error_after_the_switch_only_warns(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    a, b = host.entry("a"), host.entry("b")
    host.switch(a)

    def full_disk(step: str, path: str) -> None:
        if step == "unlink":
            raise StorageError("cannot remove it", found="I/O error")

    with atomic.observe(full_disk):
        host.switch(b)
    assert host.boots() == "b"
    assert "after the switch: cannot remove it" in caplog.text
    host.switch(b)
    assert host.menu() == [("b", "bootc-debian-0")]


def test_error_before_the_switch_changes_nothing_that_boots(host: Host) -> None:
    a = host.entry("a")
    host.switch(a)
    plan = BootPlan((host.entry("b"), a.deployment_id))
    broken = 0
    for number in itertools.count():
        count = 0

        def failing(step: str, path: str) -> None:
            nonlocal count
            count += 1
            if count == number + 1:  # noqa: B023 - called within this turn only
                raise StorageError("it broke", found=step)

        with atomic.observe(failing), contextlib.suppress(StorageError):
            switch.switch(host.sysroot, plan)
            break
        broken += 1
        assert host.boots() == "a"
    assert host.boots() == "b"
    assert broken > 10


def test_the_switch_is_one_byte_between_two_flushes(host: Host) -> None:
    a, b, n = host.entry("a"), host.entry("b"), host.entry("n")
    host.switch(b)
    host.switch(a, b.deployment_id)
    seen = steps_of(host, BootPlan((n, a.deployment_id)))
    names = [step for step, _ in seen]
    patches = [index for index, step in enumerate(names) if step == "patch"]
    assert len(patches) == 3  # the third one away, the first one back, the new one forward
    turn = patches[2]
    assert names[turn - 2] == "fsync" or names[turn - 1] == "patch"
    before, after = names[: patches[1]], names[turn + 1 :]
    assert before[before.index("syncfs") + 1] == "fsync"  # what flushes the drive under FAT
    assert "unlink" not in before
    assert "rmtree" not in before
    assert after.index("syncfs") < after.index("unlink") < after.index("rmtree")
    assert after[after.index("syncfs") + 1] == "fsync"
    assert "rename" not in names
