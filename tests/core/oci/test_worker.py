"""The worker process itself, spoken to as its parent does."""

from __future__ import annotations

import array
import gzip
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support.layer_sinks
from backports import zstd
from support.archives import END, member, pax

from bootc_core import limits

SINK_HOME = str(Path(support.layer_sinks.__file__).parent.parent)
TAR = (
    member(b"usr/", kind=b"5")
    + member(b"usr/a", b"text")
    + member(b"usr/b", random.Random(1).randbytes(900))
    + END
)


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Client:
    """A worker and its channel."""

    def __init__(self, staging: Path, parent: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        self.staging = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        self.path = staging
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "bootc_core.oci.worker", str(parent or os.getpid())],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[self.staging],
        )
        theirs.close()
        self.jobs = ours
        self.number = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.jobs.close()
        self.process.kill()
        self.process.communicate()
        os.close(self.staging)

    def send(self, blob: bytes, **changes) -> None:
        self.number += 1
        job = {
            "job": self.number,
            "what": "layer 1",
            "digest": sha(blob),
            "size": len(blob),
            "diff_id": sha(TAR),
            "compression": "none",
            "source": {"kind": "pipe"},
            "attached": ["source"],
            "staging": self.staging,
            "sink": "support.layer_sinks:NoteSink",
            "path": SINK_HOME,
            "options": {},
            **changes,
        }
        place = self.path / job["diff_id"].partition(":")[2]
        place.mkdir(exist_ok=True)
        (place / "notes").unlink(missing_ok=True)
        reading, writing = os.pipe()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading]))
        self.jobs.sendmsg([json.dumps(job).encode() + b"\n"], [rights])
        os.close(reading)
        try:
            os.write(writing, blob)  # small enough for the pipe
        finally:
            os.close(writing)

    def answer(self) -> dict:
        while True:
            answer = json.loads(self.process.stdout.readline())
            assert answer["job"] == self.number
            if answer["event"] != "progress":
                return answer

    def run(self, blob: bytes, **changes) -> dict:
        self.send(blob, **changes)
        return self.answer()


@pytest.fixture
def client(tmp_path):
    with Client(tmp_path) as client:
        yield client


def test_one_worker_serves_several_jobs(client):
    for compression, blob in (
        ("none", TAR),
        ("gzip", gzip.compress(TAR)),
        ("zstd", zstd.compress(TAR)),
    ):
        answer = client.run(blob, compression=compression)
        assert answer["event"] == "done"
        assert (answer["bytes"], answer["bytes_uncompressed"], answer["entries"]) == (
            len(blob),
            len(TAR),
            3,
        )
        assert "sha256:" + answer["sink"]["sha256"] == sha(TAR)


def test_end_of_input_ends_the_process(client):
    assert client.run(TAR)["event"] == "done"
    client.jobs.close()
    out, err = client.process.communicate(timeout=30)
    assert (client.process.returncode, out, err) == (0, b"", b"")


def test_term_ends_it_at_once(client):
    client.send(TAR, options={"behave": "hang"})
    client.process.terminate()
    assert client.process.wait(timeout=30) == -signal.SIGTERM


def test_a_stranger_as_parent(tmp_path):
    with Client(tmp_path, parent=1 if os.getppid() != 1 else 2) as client:
        assert client.process.wait(timeout=30) == 1


def test_it_ends_with_its_parent(tmp_path):
    """The parent is a shell that is killed with SIGKILL, so it cannot tidy up."""
    program = (
        "import os, socket, subprocess, sys, time\n"
        "ours, theirs = socket.socketpair()\n"
        "process = subprocess.Popen([sys.executable, '-I', '-m', 'bootc_core.oci.worker', str(os.getpid())], stdin=theirs)\n"
        "print(process.pid, flush=True)\n"
        "os.set_inheritable(ours.fileno(), True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        worker = os.pidfd_open(int(parent.stdout.readline()))
        time.sleep(
            0.3
        )  # past the interpreter's start, where nothing is tied yet; either way it has to end
        parent.kill()
    poll = __import__("select").poll()
    poll.register(worker)
    assert poll.poll(30_000)
    os.close(worker)


@pytest.mark.parametrize("diff_id", [TAR, TAR + b"x"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_archive_hashed_on_a_thread(client, compression, diff_id):
    blob = TAR if compression == "none" else gzip.compress(TAR)
    answer = client.run(blob, compression=compression, spare=True, diff_id=sha(diff_id))
    assert answer["event"] == ("done" if diff_id == TAR else "failed")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_z06_every_flipped_bit_is_a_digest_mismatch(client, compression):
    """Whatever the damaged bytes look like to the decoder and the tar reader: what is unproven is not believed."""
    tar = (
        member(b"a", b"text")
        + pax({b"path": b"b" * 120, b"SCHILY.xattr.user.x": b"1"})
        + member(b"b")
        + END
    )
    blob = {"none": tar, "gzip": gzip.compress(tar, mtime=0), "zstd": zstd.compress(tar)}[
        compression
    ]
    places = (
        range(len(blob))
        if compression != "none"
        else [*range(0, 600), *range(1024, 1200), len(blob) - 1]
    )
    for place in places:
        damaged = bytearray(blob)
        damaged[place] ^= 1 << place % 8
        answer = client.run(
            bytes(damaged), digest=sha(blob), compression=compression, diff_id=sha(tar)
        )
        assert (answer["event"], answer["again"]) == ("failed", True)
        assert (answer["error"]["reference"], answer["error"]["catalogue"]) == (
            "digest-mismatch",
            "INT",
        )


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_z05_every_truncation_is_noticed(client, compression):
    blob = gzip.compress(TAR) if compression == "gzip" else zstd.compress(TAR)
    for length in range(0, len(blob), 3):
        answer = client.run(
            blob[:length], digest=sha(blob), size=len(blob), compression=compression
        )
        assert (answer["error"]["reference"], answer["error"]["catalogue"]) == (
            "size-mismatch",
            "INT",
        )
        answer = client.run(
            blob[:length], compression=compression
        )  # proven, and cut off all the same
        assert (answer["error"]["catalogue"], answer["again"]) == ("INT", False)


def test_proven_and_hostile(client):
    tar = member(b"../x") + END
    answer = client.run(tar, diff_id=sha(tar))
    assert (answer["type"], answer["again"]) == ("ContentError", False)
    assert (answer["error"]["catalogue"], "'..'" in answer["error"]["message"]) == ("CON", True)


def test_m16_another_diff_id(client):
    answer = client.run(gzip.compress(TAR), compression="gzip", diff_id=sha(b"other"))
    assert (answer["error"]["reference"], answer["again"]) == ("digest-mismatch", False)
    assert "uncompressed" in answer["error"]["message"]


def test_m03_longer(client):
    answer = client.run(TAR + b"more", digest=sha(TAR), size=len(TAR))
    assert (answer["error"]["reference"], answer["again"]) == ("size-mismatch", True)


def test_only_the_sink_is_asked_again(client):
    client.run(TAR)
    place = client.path / sha(TAR).partition(":")[2]
    for lines, whole in ((3, True), (4, False)):
        client.number += 1
        job = {
            "job": client.number,
            "what": "layer 1",
            "diff_id": sha(TAR),
            "staging": client.staging,
            "sink": "support.layer_sinks:NoteSink",
            "path": SINK_HOME,
            "options": {},
            "recheck": {"lines": lines},
        }
        client.jobs.sendall(json.dumps(job).encode() + b"\n")
        assert client.answer() == {"event": "checked", "job": client.number, "whole": whole}
    assert (place / "notes").exists()


def test_sandbox(client):
    answer = client.run(TAR, options={"behave": "inspect"})["sink"]["process"]
    assert answer["isolated"] == 1
    assert answer["no_new_privileges"] == "1"
    assert answer["bounds"] == [0, limits.WORKER_MEMORY_BYTES]
    assert answer["modules"] == []
    assert answer["memory_kib"] < 60 * 1024


def test_a_job_longer_than_one_message(client):
    answer = client.run(TAR, options={"filler": "x" * 1_000_000})
    assert answer["event"] == "done"
