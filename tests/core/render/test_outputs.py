"""One event stream, rendered as the original's progress protocol, as journal entries and as OpenMetrics."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
from pathlib import Path

import jsonschema
import pytest

from bootc_core.errors import UsageError
from bootc_core.models import events
from bootc_core.render import journal, jsonl, openmetrics
from bootc_core.testing import System, make_image

OS = "quay.io/acme/os:1"
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "vectors/schemas/progress-v0.schema.json").read_text()
)
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def seen(tmp_path):
    system = System(tmp_path)
    system.transport.images[OS] = make_image("1")
    system.switch(OS)
    return system.events


def rendered(seen, **options) -> list[dict]:
    lines: list[bytes] = []
    observer = jsonl.Progress(lines.append, **options)
    for event in seen:
        observer(event)
    return [json.loads(line) for line in lines]


def test_a_run_in_the_originals_sequence(seen):
    lines = rendered(seen)
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    assert lines[0] == {"type": "Start", "version": "0.1.0"}
    assert [line.get("task") for line in lines[1:]] == [
        "pulling",
        "pulling",
        "pulling",
        "importing",
        "importing",
        *["staging"] * 5,
    ]
    pulling = [line for line in lines if line.get("task") == "pulling"]
    assert [(one["steps"], one["stepsTotal"], len(one["subtasks"])) for one in pulling] == [
        (0, 2, 0),
        (1, 2, 1),
        (2, 2, 2),
    ]
    assert pulling[-1]["bytes"] == pulling[-1]["bytesTotal"]
    assert all(one["bytes"] == one["bytesTotal"] for one in pulling[-1]["subtasks"])
    assert len(pulling[-1]["subtasks"][0]["id"]) == 21
    importing = [line for line in lines if line.get("task") == "importing"]
    assert [(one["steps"], one["subtasks"][0]["completed"]) for one in importing] == [
        (0, False),
        (1, True),
    ]
    staging = [line for line in lines if line.get("task") == "staging"]
    assert [one["steps"] for one in staging] == [0, 1, 1, 2, 3]
    assert [one["subtask"] for one in staging[-1]["subtasks"]] == [
        "merging",
        "deploying",
        "bound_images",
        "cleanup",
        "cleanup",
    ]
    assert all(one["completed"] for one in staging[-1]["subtasks"])


def test_without_missing_layers_only_staging_comes():
    lines = rendered(
        [
            events.ImageResolved("t", "x", DIGEST, None, 1, 5),
            events.LayersPlanned("t", 1, 0, 5, 0),
            events.DeploymentStaged("t", "d", 0),
            events.TransactionCompleted("t", True),
        ]
    )
    assert {line.get("task") for line in lines[1:]} == {"staging"}
    assert rendered([events.TransactionStarted("t", "upgrade", "x")]) == []


def test_progress_of_bytes_is_limited_and_ends_are_not():
    now = [0.0]
    seen = [events.LayersPlanned("t", 0, 1, 0, 100)]
    seen += [events.BlobProgressed("t", DIGEST, number, 100) for number in range(100)]
    lines: list[bytes] = []
    observer = jsonl.Progress(lines.append, clock=lambda: now[0])
    for event in seen:
        observer(event)
        now[0] += 0.01
    count = len(lines)
    assert count <= 2 + 6
    observer(events.BlobCompleted("t", DIGEST, 100, 1, 0))
    assert len(lines) > count


def test_a_reader_that_leaves_is_told_of_once(capsys):
    reading, writing = os.pipe()
    os.close(reading)
    observer = jsonl.observer(writing)
    for _ in range(3):
        observer(events.LayersPlanned("t", 0, 1, 0, 100))
    os.close(writing)
    assert capsys.readouterr().err == "Failed to write to jsonl: Broken pipe\n"


def test_only_the_end_of_a_pipe_is_taken(tmp_path):
    for number in (0, 1, 2, -1, 999):
        with pytest.raises(UsageError, match="Cannot use fd"):
            jsonl.check(number)
    with (tmp_path / "file").open("w") as file, pytest.raises(UsageError, match="Cannot use fd"):
        jsonl.check(file.fileno())


# --- journal


def decode(data: bytes) -> dict[str, str]:
    entry = {}
    while data:
        name, _, rest = data.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
            data = rest
        else:
            (size,) = struct.unpack("<Q", rest[:8])
            key, value, data = name, rest[8 : 8 + size], rest[8 + size + 1 :]
        entry[key.decode()] = value.decode()
    return entry


def test_entries_reach_the_journals_socket(tmp_path, seen):
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(place))
        observer = journal.Journal(place)
        wanted = [
            event for event in seen if not event.mergeable and event.name != "step.progressed"
        ]
        for event in wanted:
            observer(event)
            entry = decode(server.recv(65536))
            assert entry["SYSLOG_IDENTIFIER"] == "bootc"
            assert entry["BOOTC_EVENT"] == event.name
            assert entry["BOOTC_TRANSACTION"] == event.transaction
            assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in entry)
        observer(events.Warned("t", "two\nlines\x1b[2J"))
        entry = decode(server.recv(65536))
        assert entry["BOOTC_MESSAGE"] == "two\nlines\x1b[2J"
        assert entry["MESSAGE"] == "run.warned message=two\\nlines\\x1b[2J"
        assert entry["PRIORITY"] == "4"
        for _ in range(5000):  # nobody reads: entries are lost, nothing waits
            observer(events.Warned("t", "x"))
        observer.close()
    lost = journal.Journal(tmp_path / "missing")
    lost(events.Warned("t", "lost"))
    lost.close()


# --- metrics


def test_metrics_are_written_whole_at_the_end(tmp_path, seen):
    path = tmp_path / "bootc.prom"
    observer = openmetrics.Metrics(path, clock=lambda: 1000.5)
    for event in seen[:-1]:
        observer(event)
        assert not path.exists()
    observer(seen[-1])
    text = path.read_text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["bootc_run_success"] == "1"
    assert values["bootc_run_changed"] == "1"
    assert values["bootc_run_layers_fetched"] == "2"
    assert values["bootc_run_timestamp_seconds"] == "1000.500"
    assert 'bootc_phase_duration_seconds{phase="stage"}' in values
    assert f'digest="{make_image("1").digest}"' in text
    assert text.endswith("# EOF\n")
    for name, kind, _ in openmetrics.METRICS:
        assert f"# TYPE {name} {kind}" in text


def test_a_failure_has_its_reference(tmp_path):
    path = tmp_path / "bootc.prom"
    observer = openmetrics.Metrics(path)
    observer(events.TransactionStarted("t", "upgrade", "x"))
    observer(events.TransactionFailed("t", 'a"b', "no", False))
    assert 'reference="a\\"b"' in path.read_text()
    assert "\nbootc_run_success 0\n" in path.read_text()


def test_a_reader_that_stops_does_not_slow_a_run(tmp_path):
    """A full pipe that nobody reads: the run ends, and the observer's patience is all it costs."""
    import time

    from bootc_core.engine.bus import Bus

    reading, writing = os.pipe()
    begin = time.monotonic()
    with Bus([("progress-fd", jsonl.observer(writing))], patience_s=0.2) as bus:
        for number in range(20000):
            bus.emit(events.LayersPlanned("t", 0, 1, 0, number))
        assert time.monotonic() - begin < 2.0
    assert time.monotonic() - begin < 3.0
    threads = [one for one in threading.enumerate() if one.name == "bootc-events-progress-fd"]
    os.close(reading)
    for one in threads:
        one.join(5)
    os.close(writing)
