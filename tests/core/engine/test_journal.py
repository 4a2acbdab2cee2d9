import json

import pytest

from bootc_core.engine import journal
from bootc_core.errors import TransactionError
from bootc_core.fs import atomic
from bootc_core.models.sysroot import Sysroot


@pytest.fixture
def sysroot(tmp_path):
    (tmp_path / "bootc").mkdir()
    return Sysroot(tmp_path, tmp_path / "boot")


def test_records_come_back_in_order_and_an_end_ends_it(sysroot):
    one = journal.Journal(sysroot, "t1")
    one.begin("upgrade", "docker://x")
    one.append("phase", phase="stage")
    name, records = journal.unfinished(sysroot.state / "journal")
    assert name == "t1"
    assert [record["record"] for record in records] == ["begin", "phase"]
    assert records[0]["target"] == "docker://x"
    one.end("completed")
    assert journal.unfinished(sysroot.state / "journal") is None


def test_a_torn_append_is_ignored_at_every_length(sysroot):
    one = journal.Journal(sysroot, "t1")
    one.begin("upgrade", "x")
    whole = one.path.read_bytes()
    one.append("phase", phase="stage")
    longer = one.path.read_bytes()
    for cut in range(len(whole), len(longer)):
        assert [r["record"] for r in journal.parse(longer[:cut])] == ["begin"]
    for cut in range(len(whole)):
        assert journal.parse(longer[:cut]) == []


def test_a_newer_format_is_refused(sysroot):
    directory = sysroot.state / "journal"
    directory.mkdir()
    (directory / "t9.jsonl").write_text(json.dumps({"record": "begin", "format": 2}) + "\n")
    with pytest.raises(TransactionError) as caught:
        journal.unfinished(directory)
    assert caught.value.reference == "newer-state"


def test_every_append_is_announced_before_it_happens(sysroot):
    one = journal.Journal(sysroot, "t1")
    steps = []
    with atomic.observe(lambda step, path: steps.append((step, path.rpartition("/")[2]))):
        one.begin("upgrade", "x")
        one.append("phase", phase="stage")
    assert steps == [("write", "t1.jsonl"), ("fsync", "journal"), ("write", "t1.jsonl")]


def test_old_finished_journals_go(sysroot):
    for number in range(journal.KEPT + 5):
        one = journal.Journal(sysroot, f"t{number:03}")
        one.begin("upgrade", "x")
        one.end("completed")
    names = sorted(path.name for path in (sysroot.state / "journal").iterdir())
    assert len(names) == journal.KEPT
    assert names[-1] == f"t{journal.KEPT + 4:03}.jsonl"
