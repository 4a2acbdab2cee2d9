"""owners.json: what an ordinary user cannot set (design, sysroots)."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootc_core import limits
from bootc_core.errors import StorageError
from bootc_core.fs import atomic
from bootc_core.fs.owners import Owner, OwnerStore

DEVICE = Owner(mode=stat.S_IFCHR | 0o600, rdev=0x103)


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "owners.json"
    store = OwnerStore.load(file)
    etc = store.below(b"state/deploy/1/etc")
    etc.set(b"shadow", Owner(gid=42, mode=0o640, disk_mode=0o600))
    etc.set(b"caf\xc3\xa9\n%\xff", Owner(uid=1, xattrs=((b"security.capability", b"\0\xff"),)))
    etc.set(b"null", DEVICE)
    etc.set(b"", Owner(uid=7))
    store.save()
    again = OwnerStore.load(file).below(b"state/deploy/1/etc")
    for path in (b"shadow", b"caf\xc3\xa9\n%\xff", b"null", b""):
        assert again.get(path) == etc.get(path) is not None
    assert again.devices() == [(b"null", DEVICE)]
    assert file.read_text().isascii()


@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=12),
        st.builds(
            Owner,
            uid=st.integers(0, 2**32 - 2),
            gid=st.integers(0, 3),
            mode=st.none() | st.integers(0, 0o177777),
            disk_mode=st.none() | st.integers(0, 0o7777),
            rdev=st.integers(0, 2**32),
            xattrs=st.dictionaries(st.binary(min_size=1, max_size=8), st.binary(max_size=8)).map(
                lambda value: tuple(sorted(value.items()))
            ),
        ),
        max_size=4,
    )
)
def test_any_record_comes_back(records: dict[bytes, Owner]) -> None:
    for path, owner in records.items():
        assert Owner.from_json(json.loads(json.dumps(owner.to_json()))) == owner, path


def test_plain_files_need_no_record(tmp_path: Path) -> None:
    store = OwnerStore(tmp_path / "owners.json")
    store.set(b"a", Owner())
    store.save()
    assert not store.file.exists()
    store.set(b"a", Owner(uid=1))
    store.set(b"a", Owner())
    assert store.get(b"a") is None


def test_clear_takes_a_directory_and_nothing_else(tmp_path: Path) -> None:
    store = OwnerStore(tmp_path / "owners.json")
    for path in (b"x/etc", b"x/etc/a", b"x/etc2", b"x/etc2/a", b"x"):
        store.set(path, Owner(uid=1))
    store.below(b"x/etc").clear()
    assert [
        path for path in (b"x/etc", b"x/etc/a", b"x/etc2", b"x/etc2/a", b"x") if store.get(path)
    ] == [b"x/etc2", b"x/etc2/a", b"x"]


def test_saved_once_and_atomically(tmp_path: Path) -> None:
    store = OwnerStore(tmp_path / "owners.json")
    store.set(b"a", Owner(uid=1))
    steps: list[str] = []
    with atomic.observe(lambda step, path: steps.append(step)):
        store.save()
        store.save()
        store.set(b"a", Owner(uid=1))
        store.save()
    assert steps == ["write", "rename", "fsync"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"version":2,"entries":{}}',
        b'{"version":"1","entries":{}}',
        b'{"version":1,"entries":[]}',
        b'{"version":1,"entries":{},"x":1}',
        b'{"version":1,"entries":{"a":{},"a":{}}}',
        b'{"version":1,"entries":{"a":[]}}',
        b'{"version":1,"entries":{"a":{"uid":-1}}}',
        b'{"version":1,"entries":{"a":{"uid":4294967295}}}',
        b'{"version":1,"entries":{"a":{"uid":true}}}',
        b'{"version":1,"entries":{"a":{"uid":1.5}}}',
        b'{"version":1,"entries":{"a":{"mode":65536}}}',
        b'{"version":1,"entries":{"a":{"owner":1}}}',
        b'{"version":1,"entries":{"a":{"xattrs":[]}}}',
        b'{"version":1,"entries":{"a":{"xattrs":{"x":1}}}}',
        b'{"version":1,"entries":{"a":{"xattrs":{"x":"*"}}}}',
        b"\xff",
    ],
)
def test_damaged(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "owners.json"
    file.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        OwnerStore.load(file)
    assert caught.value.reference == "bad-owners"
    assert caught.value.catalogue == "STATE"
    assert str(file) in caught.value.message


def test_bounded(tmp_path: Path) -> None:
    file = tmp_path / "owners.json"
    with file.open("wb") as stream:
        stream.truncate(limits.OWNERS_BYTES + 1)
    with pytest.raises(StorageError, match="damaged"):
        OwnerStore.load(file)


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "owners.json").mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        OwnerStore.load(tmp_path / "owners.json")
