"""Importing layers end to end, with real worker processes: sources, reuse, retries, crashes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from backports import zstd
from support.archives import END, member
from support.faulty_http import Asked, FaultyServer, Gone, Peer

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, StorageError, TransportError
from bootc_core.models.events import BlobCompleted, BlobProgressed
from bootc_core.models.image import FetchedImage, FileSource, HttpSource, PipeSource
from bootc_core.models.oci import Descriptor, Manifest
from bootc_core.models.reference import ImageReference
from bootc_core.oci.importer import DONE, LayerJob, LayerResult, import_layers

SINK = "support.layer_sinks:NoteSink"


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def archive(seed: int, files: int = 3, size: int = 700) -> bytes:
    source = random.Random(seed)
    return (
        b"".join(member(b"f%d" % number, source.randbytes(size)) for number in range(files)) + END
    )


PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "zstd": lambda data: zstd.compress(data, 1),
}


@dataclass
class Setting:
    """An image of a few layers, a staging directory, and what happened."""

    path: Path
    blobs: dict[str, bytes] = field(default_factory=dict)
    jobs: list[LayerJob] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    events: list = field(default_factory=list)
    source: Callable | None = None

    def __post_init__(self) -> None:
        self.staging = self.path / "staging"
        self.staging.mkdir(exist_ok=True)

    def add(self, tar: bytes, compression: str = "gzip") -> LayerJob:
        blob = PACK[compression](tar)
        descriptor = Descriptor.model_validate(
            {"mediaType": "x", "digest": sha(blob), "size": len(blob)}
        )
        job = LayerJob(descriptor, sha(tar), compression)
        self.blobs[job.descriptor.digest] = blob
        self.jobs.append(job)
        return job

    def file(self, digest: str) -> FileSource:
        path = self.path / f"blob-{digest[7:19]}"
        path.write_bytes(b"front" + self.blobs[digest] + b"behind")
        return FileSource(path, 5, len(self.blobs[digest]))

    async def _source(self, descriptor: Descriptor):
        self.asked.append(descriptor.digest)
        return self.source(descriptor.digest) if self.source else self.file(descriptor.digest)

    async def imported(self, sink: str = SINK, **options) -> dict[str, LayerResult]:
        layers = tuple(job.descriptor for job in self.jobs)
        manifest = Manifest.model_construct(layers=layers)
        image = FetchedImage(
            requested=ImageReference.parse("quay.io/acme/os:1"),
            resolved=ImageReference.parse("quay.io/acme/os:1"),
            index=None,
            manifest_document=None,
            manifest=manifest,
            config_document=None,
            config=None,
            blob_source=self._source,
        )
        self.events.clear()
        self.asked.clear()
        return await import_layers(
            image,
            self.jobs,
            sink=sink,
            sink_options=options,
            staging=self.staging,
            pass_directories={"shared": self.path},
            emit=self.events.append,
            transaction="t1",
        )

    def run(self, sink: str = SINK, **options) -> dict[str, LayerResult]:
        return trio.run(lambda: self.imported(sink, **options))

    def error(self, kind: type[BootcError], sink: str = SINK, **options) -> BootcError:
        with pytest.raises(kind) as caught:
            self.run(sink, **options)
        assert type(caught.value) is kind
        assert "layer 1 of quay.io/acme/os:1" in caught.value.message or kind is TransportError
        return caught.value

    def place(self, job: LayerJob) -> Path:
        return self.staging / job.diff_id[7:]


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path)


@pytest.fixture
def one(setting):
    """One layer of gzip."""
    setting.add(archive(1))
    return setting


@pytest.fixture
def hasty(monkeypatch):
    """Waiting between attempts is another test's subject."""
    monkeypatch.setattr(limits, "RETRY_WAIT_S", 0.001)


def pipe(chunks: list[bytes | Exception]) -> PipeSource:
    async def blob() -> AsyncIterator[bytes]:
        for chunk in chunks:
            await trio.lowlevel.checkpoint()
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    return PipeSource(blob)


# --- what comes out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", PACK)
def test_layers_from_files(setting, compression):
    tars = [archive(seed, files=seed) for seed in (1, 40, 7)]
    jobs = [setting.add(tar, compression) for tar in tars]
    results = setting.run()
    assert list(results) == [job.diff_id for job in jobs]
    for job, tar, files in zip(jobs, tars, (1, 40, 7), strict=True):
        result = results[job.diff_id]
        assert (result.bytes_compressed, result.bytes_uncompressed) == (
            job.descriptor.size,
            len(tar),
        )
        assert (result.entries, result.reused) == (files, False)
        assert "sha256:" + result.sink["sha256"] == sha(tar)
        assert "staging" in result.sink["shared"]
        notes = json.loads((setting.place(job) / "notes").read_bytes())
        assert [name for name, _, _ in notes] == [f"f{number}" for number in range(files)]
    assert all(event.transaction == "t1" for event in setting.events)
    completed = [event for event in setting.events if isinstance(event, BlobCompleted)]
    assert {event.digest: event.bytes_total for event in completed} == {
        job.descriptor.digest: job.descriptor.size for job in jobs
    }
    assert {event.objects_new for event in completed} == {7}
    progress = [event for event in setting.events if isinstance(event, BlobProgressed)]
    assert all(0 < event.bytes_done <= event.bytes_total for event in progress)


def test_largest_first(setting):
    jobs = [setting.add(archive(seed, files=seed), "none") for seed in (2, 9, 5)]

    async def run() -> None:
        setting.jobs = list(jobs)
        await import_one_by_one(setting)

    trio.run(run)
    assert setting.asked == [jobs[number].descriptor.digest for number in (1, 2, 0)]


async def import_one_by_one(setting: Setting) -> None:
    image = FetchedImage(
        requested=ImageReference.parse("quay.io/acme/os:1"),
        resolved=ImageReference.parse("quay.io/acme/os:1"),
        index=None,
        manifest_document=None,
        manifest=Manifest.model_construct(layers=()),
        config_document=None,
        config=None,
        blob_source=setting._source,
    )
    await import_layers(
        image,
        setting.jobs,
        sink=SINK,
        sink_options={},
        staging=setting.staging,
        pass_directories={},
        emit=setting.events.append,
        transaction="t",
        workers=1,
    )


def test_m17_the_same_layer_twice(setting):
    job = setting.add(archive(1))
    setting.jobs.append(job)
    assert list(setting.run()) == [job.diff_id]
    assert len(setting.asked) == 1


def test_no_layers(setting):
    assert setting.run() == {}


def test_large_file_in_pieces(setting):
    tar = member(b"large", random.Random(3).randbytes(5_000_000)) + END
    job = setting.add(tar, "zstd")
    result = setting.run()[job.diff_id]
    assert "sha256:" + result.sink["sha256"] == sha(tar)


def test_from_a_pipe(setting):
    tar = archive(1, files=600, size=3000)
    job = setting.add(tar)
    setting.source = lambda digest: pipe(
        [setting.blobs[digest][:10], b"", setting.blobs[digest][10:]]
    )
    result = setting.run()[job.diff_id]
    assert "sha256:" + result.sink["sha256"] == sha(tar)


def test_worker_is_clean(one, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("SECRET", "x")
    (result,) = one.run(behave="inspect").values()
    process = result.sink["process"]
    assert process["environment"].pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"
    assert process["environment"] == {
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "https_proxy": "http://proxy.example:3128",
    }
    assert (process["directory"], process["session"], process["modules"]) == ("/", True, [])


def test_worker_reaches_nothing_but_its_staging_directory(one):
    """Root's worker and a user's: no files, processes, sockets, devices, capabilities."""
    (result,) = one.run(behave="inspect").values()
    assert result.sink["process"]["reached"] == []
    assert result.sink["process"]["capabilities"] == [""]


def test_worker_of_a_download_reaches_the_network_alone(setting):
    job = setting.add(archive(1))
    blob = setting.blobs[job.descriptor.digest]
    with FaultyServer(lambda peer, asked: peer.reply(200, blob)) as server:
        setting.source = lambda _: HttpSource(server.url("/blob"))
        (result,) = setting.run(behave="inspect").values()
    assert result.sink["process"]["reached"] == ["connect"]


def test_a_job_that_needs_more_gets_another_process(setting, monkeypatch):
    """A file first, so that its process has no network; then a download."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one process
    large, small = setting.add(archive(1, files=50)), setting.add(archive(2))
    blob = setting.blobs[small.descriptor.digest]
    with FaultyServer(lambda peer, asked: peer.reply(200, blob)) as server:
        setting.source = lambda digest: (
            setting.file(digest)
            if digest == large.descriptor.digest
            else HttpSource(server.url("/blob"))
        )
        results = setting.run()
    assert len(results) == 2


# --- reuse ------------------------------------------------------------------------------------------------------------------


def test_finished_layers_are_not_fetched_again(setting):
    for seed in (1, 2, 3):
        setting.add(archive(seed))
    first = setting.run()
    second = setting.run()
    assert setting.asked == []
    assert all(result.reused for result in second.values())
    assert [result.sink for result in second.values()] == [result.sink for result in first.values()]
    assert len([event for event in setting.events if isinstance(event, BlobCompleted)]) == 3


def edit_done(setting: Setting, **changes) -> None:
    path = setting.place(setting.jobs[0]) / DONE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_after_a_reboot_the_sink_looks_again(one):
    (first,) = one.run().values()
    edit_done(one, boot_id="another")
    (second,) = one.run().values()
    assert (one.asked, second.reused, second.sink) == ([], True, first.sink)
    one.run()
    edit_done(one, boot_id="another")
    (one.place(one.jobs[0]) / "notes").write_text("[]")  # as after a power cut
    (third,) = one.run().values()
    assert (len(one.asked), third.reused, third.sink) == (1, False, first.sink)


def test_a_sink_that_cannot_look_again(one):
    one.run(sink="support.layer_sinks:ForgetfulSink")
    edit_done(one, boot_id="another")
    (result,) = one.run(sink="support.layer_sinks:ForgetfulSink").values()
    assert (len(one.asked), result.reused) == (1, False)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"sink": "other:Sink"},
        {"digest": "sha256:x"},
        {"diff_id": "x"},
        {"result": 1},
        {"bytes": None},
    ],
)
def test_notes_that_do_not_fit_are_not_believed(one, change):
    one.run()
    edit_done(one, **change)
    (result,) = one.run().values()
    assert (len(one.asked), result.reused) == (1, False)


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_rubbish_notes(one, rubbish):
    one.run()
    (one.place(one.jobs[0]) / DONE).write_bytes(rubbish)
    (result,) = one.run().values()
    assert (len(one.asked), result.reused) == (1, False)


def test_leftovers_of_an_unfinished_layer_go(one):
    place = one.place(one.jobs[0])
    (place / "objects").mkdir(parents=True)
    (place / "objects" / "x").write_text("x")
    (place / "notes").write_text("half")
    one.run()
    assert sorted(entry.name for entry in place.iterdir()) == [DONE, "notes"]


# --- the content is wrong ---------------------------------------------------------------------------------------------------


def test_m02_damaged_blob_is_fetched_once_more(one):
    (digest,) = one.blobs
    good = one.blobs[digest]
    served = [b"x" + good[1:], good]
    one.source = lambda digest: pipe([served.pop(0)])
    (result,) = one.run().values()
    assert (len(one.asked), result.reused) == (2, False)


def test_m02_twice_damaged_is_refused(one):
    (digest,) = one.blobs
    one.blobs[digest] = one.blobs[digest][:-1] + b"x"
    problem = one.error(ContentError)
    assert (problem.reference, problem.catalogue, len(one.asked)) == ("digest-mismatch", "INT", 2)
    assert problem.expected == digest
    assert sorted(entry.name for entry in one.place(one.jobs[0]).iterdir()) == []


def test_t54_content_that_changed_after_its_descriptor(one):
    (digest,) = one.blobs
    source = one.file(digest)
    one.source = lambda _: source
    source.path.write_bytes(source.path.read_bytes().swapcase())
    assert one.error(ContentError).catalogue == "INT"


def test_m16_wrong_diff_id_is_refused_at_once(setting):
    job = setting.add(archive(1))
    setting.jobs = [LayerJob(job.descriptor, sha(b"other"), "gzip")]
    problem = setting.error(ContentError)
    assert (problem.reference, problem.catalogue, len(setting.asked)) == (
        "digest-mismatch",
        "INT",
        1,
    )


def test_hostile_layer_names_layer_and_member(setting):
    setting.add(member(b"a/../../etc/shadow") + END)
    setting.add(archive(2))
    problem = setting.error(ContentError)
    assert (problem.catalogue, "'a/../../etc/shadow'" in problem.message) == ("CON", True)
    assert setting.asked.count(setting.jobs[0].descriptor.digest) == 1


def test_z01_all_layers_together(setting, monkeypatch):
    for seed in (1, 2):
        setting.add(archive(seed))
    monkeypatch.setattr(limits, "IMAGE_BYTES", len(archive(1)) + 1)
    with pytest.raises(ContentError, match="is too large uncompressed") as caught:
        setting.run()
    assert caught.value.catalogue == "LIM"


def test_z09_media_type_and_bytes(setting):
    job = setting.add(archive(1), "none")
    setting.jobs = [LayerJob(job.descriptor, job.diff_id, "gzip")]
    problem = setting.error(ContentError)
    assert (problem.reference, problem.found) == ("compression-mismatch", "plain data")


# --- the process dies ---------------------------------------------------------------------------------------------------------


def test_z12_crash(one):
    problem = one.error(ContentError, behave="crash")
    assert (problem.catalogue, problem.reference, problem.found) == (
        "CON",
        "worker-died",
        "SIGSEGV",
    )


def test_z13_killed(one):
    problem = one.error(ContentError, behave="kill")
    assert (problem.catalogue, problem.found) == ("LIM", "SIGKILL")


def test_z13_memory(one):
    problem = one.error(ContentError, behave="memory")
    assert (problem.catalogue, str(limits.WORKER_MEMORY_BYTES) in problem.expected) == ("LIM", True)


def test_z13_silence(one, monkeypatch):
    monkeypatch.setattr(limits, "WORKER_SILENCE_S", 0.5)
    problem = one.error(ContentError, behave="hang")
    assert (problem.catalogue, problem.reference) == ("LIM", "worker-hangs")


def test_exit(one):
    problem = one.error(StorageError, behave="exit")
    assert problem.found == "exit status 3: going away"


def test_nonsense(one):
    assert "nonsense" in one.error(StorageError, behave="babble").message


def test_defect(one):
    problem = one.error(BootcError, behave="defect")
    assert (problem.catalogue, "RuntimeError: a defect (layer_sinks.py:" in problem.found) == (
        "BUG",
        True,
    )


def test_d_full_disk(one):
    problem = one.error(StorageError, behave="full")
    assert (problem.catalogue, problem.reference) == ("SPC", "no-space")


def test_unknown_sink(one):
    assert "nowhere" in (one.error(BootcError, sink="nowhere:Sink").found or "")


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_cancelled_workers_are_gone(one):
    before = children()

    async def main() -> None:
        with trio.CancelScope() as scope:

            async def stop() -> None:
                while not children() - before:  # noqa: ASYNC110 - processes set no event
                    await trio.sleep(0.01)
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                await one.imported(behave="hang")
        assert scope.cancelled_caught

    trio.run(main)
    assert children() == before


PARENT = """
import sys, trio
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[2])
import test_importer as t

setting = t.Setting(Path(sys.argv[3]))
small, large = setting.add(t.archive(1)), setting.add(t.archive(2, files=50))

async def forever():
    yield setting.blobs[large.descriptor.digest][:1000]
    print("small done" if (setting.place(small) / t.DONE).exists() else "waiting", flush=True)
    while not (setting.place(small) / t.DONE).exists():
        await trio.sleep(0.01)
    print("small done", flush=True)
    await trio.sleep_forever()

setting.source = lambda digest: setting.file(digest) if digest == small.descriptor.digest else t.PipeSource(forever)
t.limits.WORKERS = 2
t.os.sched_getaffinity = lambda _: {0, 1}
setting.run()
"""


def test_x_killed_parent_leaves_finished_layers_and_no_process(setting):
    """SIGKILL in the middle of the second layer: the next run fetches that one alone."""
    here = Path(__file__).parent
    arguments = [
        sys.executable,
        "-c",
        PARENT,
        str(here.parent.parent),
        str(here),
        str(setting.path),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as parent:
        while parent.stdout.readline() != b"small done\n":
            assert parent.poll() is None
        workers = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        watched = [os.pidfd_open(int(pid)) for pid in workers]
        parent.send_signal(signal.SIGKILL)
    assert watched  # the one that had the small layer may be gone already

    async def ended() -> None:
        with trio.fail_after(30):
            for process in watched:
                await trio.lowlevel.wait_readable(process)

    trio.run(ended)
    for process in watched:
        os.close(process)
    small, large = setting.add(archive(1)), setting.add(archive(2, files=50))
    results = setting.run()
    assert setting.asked == [large.descriptor.digest]
    assert (results[small.diff_id].reused, results[large.diff_id].reused) == (True, False)


# --- the source is wrong --------------------------------------------------------------------------------------------------------


def test_pipe_that_breaks_is_opened_again(one, hasty):
    (good,) = one.blobs.values()
    broken = TransportError("the line broke", retryable=True)
    served = [pipe([good[:5], broken]), pipe([good])]
    one.source = lambda _: served.pop(0)
    assert len(one.run()) == 1
    assert len(one.asked) == 2


def test_pipe_that_breaks_for_good(one):
    one.source = lambda _: pipe([TransportError("no such thing", catalogue="NOTFOUND")])
    problem = one.error(TransportError)
    assert (problem.message, len(one.asked)) == ("no such thing", 1)


def test_pipe_that_breaks_always(one, hasty):
    one.source = lambda _: pipe([TransportError("the line broke", retryable=True)])
    one.error(TransportError)
    assert len(one.asked) == limits.RETRIES + 1


def test_pipe_that_never_ends_is_cut(one):
    (good,) = one.blobs.values()

    async def endless() -> AsyncIterator[bytes]:
        yield good
        while True:
            await trio.lowlevel.checkpoint()
            yield bytes(100_000)

    one.source = lambda _: PipeSource(endless)
    assert one.error(ContentError).reference == "size-mismatch"


def test_n29_not_a_regular_file(one, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        one.source = lambda _, path=path: FileSource(path)
        with pytest.raises(ContentError, match="not a regular file"):
            one.run()


def test_missing_file(one, tmp_path):
    one.source = lambda _: FileSource(tmp_path / "missing")
    with pytest.raises(StorageError, match="missing"):
        one.run()


# --- HTTP -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(setting):
    """One incompressible layer of 400 kB, and the way to serve it."""
    setting.add(archive(9, files=4, size=100_000), "none")
    (blob,) = setting.blobs.values()

    def use(handler: Callable[[Peer, Asked], None]) -> FaultyServer:
        server = FaultyServer(handler)
        setting.source = lambda _: HttpSource(
            server.url("/blob"), headers=(("Authorization", "Bearer t"),)
        )
        return server

    setting.blob, setting.serve = blob, use
    return setting


def start_of(asked: Asked) -> int:
    text = asked.header("range")
    return int(text.removeprefix("bytes=").removesuffix("-")) if text else 0


def honest(blob: bytes, peer: Peer, asked: Asked, stop: int | None = None) -> None:
    """The blob from where it was asked for; with ``stop`` the connection breaks before that byte."""
    start = start_of(asked)
    fields = f"Content-Length: {len(blob) - start}\r\n"
    status = "200 OK"
    if start:
        status = "206 Partial Content"
        fields += f"Content-Range: bytes {start}-{len(blob) - 1}/{len(blob)}\r\n"
    peer.send(f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + blob[start:stop])
    if stop is not None:
        peer.close()


def test_http(served):
    with served.serve(lambda peer, asked: honest(served.blob, peer, asked)) as server:
        assert len(served.run()) == 1
    assert [asked.header("authorization") for asked in server.requests] == ["Bearer t"]


@pytest.mark.parametrize("stops", [(1,), (512, 513, 200_000), (100_000, 100_000, 399_999)])
def test_n02_breaks_are_resumed_at_the_byte(served, stops, hasty):
    todo = list(stops)
    with served.serve(
        lambda peer, asked: honest(served.blob, peer, asked, todo.pop(0) if todo else None)
    ) as server:
        assert len(served.run()) == 1
    starts = [start_of(asked) for asked in server.requests]
    assert starts[0] == 0
    assert starts[1:] == list(stops)


def test_n02_resets(served, hasty):
    def handler(peer: Peer, asked: Asked) -> None:
        if len(server.requests) < 4:
            honest_part = served.blob[start_of(asked) : start_of(asked) + 1000]
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(served.blob)}\r\n\r\n"
            if start_of(asked):
                head = (
                    f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(served.blob) - start_of(asked)}\r\n"
                    f"Content-Range: bytes {start_of(asked)}-{len(served.blob) - 1}/{len(served.blob)}\r\n\r\n"
                )
            peer.send(head.encode() + honest_part)
            peer.reset()
        else:
            honest(served.blob, peer, asked)

    with served.serve(handler) as server:
        assert len(served.run()) == 1
    assert len(served.asked) == 1  # all in the worker


def test_n02_breaks_without_end(served, hasty):
    with served.serve(lambda peer, asked: peer.close()) as server:
        problem = served.error(TransportError)
    assert problem.retryable
    assert len(server.requests) == limits.RETRIES + 1
    assert len(served.asked) == 1


@pytest.mark.parametrize("second", ["whole", "other range", "other total", "416"])
def test_n03_n04_n05_servers_that_cannot_resume(served, second, hasty):
    blob = served.blob

    def handler(peer: Peer, asked: Asked) -> None:
        start = start_of(asked)
        if not start:
            honest(blob, peer, asked, stop=1000 if len(server.requests) == 1 else None)
        elif second == "whole":
            peer.reply(200, blob)
        elif second == "416":
            peer.reply(416)
        else:
            first = 0 if second == "other range" else start
            total = len(blob) + (second == "other total")
            peer.reply(206, blob[first:], content_range=f"bytes {first}-{len(blob) - 1}/{total}")

    with served.serve(handler) as server:
        assert len(served.run()) == 1
    assert len(served.asked) == 1


def test_n05_a_range_that_is_the_whole(served):
    """206 where no range was asked for: fine if it is all of the blob."""
    blob = served.blob

    def handler(peer: Peer, asked: Asked) -> None:
        peer.reply(206, blob, content_range=f"bytes 0-{len(blob) - 1}/{len(blob)}")

    with served.serve(handler) as server:
        assert len(served.run()) == 1
    assert len(server.requests) == 1


def test_n05_a_range_that_nobody_asked_for(served, hasty):
    blob = served.blob

    def handler(peer: Peer, asked: Asked) -> None:
        peer.reply(206, blob[1:], content_range=f"bytes 1-{len(blob) - 1}/{len(blob)}")

    with served.serve(handler):
        assert served.error(TransportError).reference == "bad-range"


def test_n08_the_bytes_of_the_wire_count(served, hasty):
    packed = gzip.compress(served.blob).ljust(len(served.blob), b"\0")
    with served.serve(
        lambda peer, asked: peer.reply(200, packed, content_encoding="gzip")
    ) as server:
        assert served.error(ContentError).catalogue == "INT"
    assert {asked.header("accept-encoding") for asked in server.requests} == {"identity"}


@pytest.mark.parametrize("start", ["blob", "zeros"])
def test_n09_an_endless_blob_stops_at_its_size(served, hasty, start):
    sent = [0]

    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        data = served.blob if start == "blob" else bytes(65536)
        while sent[0] < 200 << 20:
            peer.send(b"%x\r\n%s\r\n" % (len(data), data))
            sent[0] += len(data)

    with served.serve(handler):
        problem = served.error(ContentError)
    assert problem.catalogue == "INT"
    assert sent[0] < 64 << 20  # what sockets hold, and what the second attempt got


def test_n06_body_that_changes_between_pieces(served, hasty):
    other = served.blob.swapcase()

    def handler(peer: Peer, asked: Asked) -> None:
        number = len(server.requests)
        honest(other if number == 2 else served.blob, peer, asked, 1000 if number == 1 else None)

    with served.serve(handler) as server:
        assert len(served.run()) == 1
    assert [start_of(asked) for asked in server.requests] == [0, 1000, 0]


def test_n21_n22_busy_servers(served, hasty):
    def handler(peer: Peer, asked: Asked) -> None:
        if len(server.requests) <= 2:
            peer.reply((429, 503)[len(server.requests) - 1], b"", retry_after="0")
        else:
            honest(served.blob, peer, asked)

    with served.serve(handler) as server:
        assert len(served.run()) == 1
    assert len(server.requests) == 3


def test_n22_missing_is_not_retried(served):
    with served.serve(lambda peer, asked: peer.reply(404, b"{}")) as server:
        problem = served.error(TransportError)
    assert (problem.catalogue, len(server.requests), len(served.asked)) == ("NOTFOUND", 1, 1)


def test_n23_credentials_are_renewed_once(served):
    def handler(peer: Peer, asked: Asked) -> None:
        if asked.header("authorization") == "Bearer new":
            honest(served.blob, peer, asked)
        else:
            peer.reply(401, b"{}")

    with served.serve(handler) as server:
        tokens = ["Bearer old", "Bearer new"]
        served.source = lambda _: HttpSource(
            server.url("/b"), headers=(("Authorization", tokens.pop(0)),)
        )
        assert len(served.run()) == 1
        served.source = lambda _: HttpSource(
            server.url("/b"), headers=(("Authorization", "Bearer old"),)
        )
        (served.place(served.jobs[0]) / DONE).unlink()
        problem = served.error(TransportError)
    assert (problem.catalogue, len(served.asked)) == ("AUTH", 2)


def test_m03_http_body_that_is_longer(served):
    with served.serve(lambda peer, asked: peer.reply(200, served.blob + b"x")):
        assert served.error(ContentError).reference == "size-mismatch"


# --- the spool ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spooled(served, monkeypatch):
    monkeypatch.setattr(limits, "SPOOL_LAYER_BYTES", 1000)
    return served


def interrupted(setting: Setting, stop: int) -> None:
    """A run that is cancelled when the worker has spooled ``stop`` bytes, which is where the server stalls."""
    spool = setting.place(setting.jobs[0]) / "spool"

    def handler(peer: Peer, asked: Asked) -> None:
        peer.send(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(setting.blob)}\r\n\r\n".encode()
            + setting.blob[:stop]
        )
        raise Gone if peer.sock.recv(1) == b"" else AssertionError

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setting.imported)
            while not spool.exists() or spool.stat().st_size < stop:  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    with setting.serve(handler):
        trio.run(main)
    assert spool.read_bytes() == setting.blob[:stop]


def test_an_interrupted_pull_goes_on_at_the_byte(spooled):
    interrupted(spooled, 150_000)
    with spooled.serve(lambda peer, asked: honest(spooled.blob, peer, asked)) as server:
        assert len(spooled.run()) == 1
    assert [start_of(asked) for asked in server.requests] == [150_000]
    assert not (spooled.place(spooled.jobs[0]) / "spool").exists()


def test_a_complete_spool_needs_no_request(spooled):
    interrupted(spooled, 150_000)
    (spooled.place(spooled.jobs[0]) / "spool").write_bytes(spooled.blob)
    with spooled.serve(lambda peer, asked: peer.close()) as server:
        assert len(spooled.run()) == 1
    assert server.requests == []


@pytest.mark.parametrize("spoilt", ["zeros", "longer"])
def test_a_spoilt_spool_costs_one_download(spooled, spoilt):
    interrupted(spooled, 150_000)
    spool = spooled.place(spooled.jobs[0]) / "spool"
    spool.write_bytes(bytes(150_000) if spoilt == "zeros" else spooled.blob + b"more")
    with spooled.serve(lambda peer, asked: honest(spooled.blob, peer, asked)) as server:
        assert len(spooled.run()) == 1
    assert [start_of(asked) for asked in server.requests] == (
        [150_000, 0] if spoilt == "zeros" else [0]
    )


def test_a_refused_layer_leaves_no_spool(setting, monkeypatch):
    monkeypatch.setattr(limits, "SPOOL_LAYER_BYTES", 100)
    tar = member(b"../x") + END
    setting.add(tar, "none")
    with FaultyServer(lambda peer, asked: peer.reply(200, tar)) as server:
        setting.source = lambda _: HttpSource(server.url("/blob"))
        assert setting.error(ContentError).catalogue == "CON"
    assert list(setting.place(setting.jobs[0]).iterdir()) == []
