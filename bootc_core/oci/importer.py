"""Imports an image's layers with worker processes: supervision, retries, progress.

No layer byte passes through this process, unless a transport can only feed a pipe.

    staging/<diffID hex>/            one layer's directory; the sink's files
    staging/<diffID hex>/spool       what arrived of a large blob (`bootc_core.oci.worker`)
    staging/<diffID hex>/ranges      what arrived of a blob that is fetched by the file (`bootc_core.oci.ranges`)
    staging/<diffID hex>/done.json   the layer is finished: result, sink, boot id

A later run takes a finished layer as it is if the machine has not been booted since; otherwise it asks the sink to look
at what it wrote (nothing was synced, so a power cut may have emptied it) and imports the layer again where that fails.
Unfinished layers begin again, apart from spool and ranges. Whoever calls this holds the sysroot's lock: nobody else writes
into ``staging``.

A sink is named ``module:Class`` (`bootc_core.oci.sink`). Its options are ``sink_options`` plus one descriptor number for each of
``pass_directories`` under the same name. A class method ``recheck(staging_fd, options, finished) -> bool`` answers the
question above; without it the answer is no.
"""

from __future__ import annotations

import array
import fcntl
import glob
import importlib.util
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from bootc_core import errors, limits
from bootc_core.errors import BootcError, ContentError, StorageError, TransportError, printable
from bootc_core.fs import atomic
from bootc_core.models.events import BlobCompleted, BlobProgressed, Event
from bootc_core.models.image import BlobSource, FetchedImage, FileSource, HttpSource, PipeSource
from bootc_core.models.oci import Descriptor
from bootc_core.net import budget
from bootc_core.oci import chunked
from bootc_core.oci.ranges import RANGES
from bootc_core.oci.worker import SPOOL, tls_files

Emit: TypeAlias = Callable[[Event], None]

_LOG: Final = logging.getLogger(__name__)
DONE: Final = "done.json"
_OBJECTS: Final = (
    "objects"  # among a sink's directories: files that never change, by whatever names
)
_SEED_BYTES: Final = 65  # smaller contents are no files there
_VERSION: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TERM_GRACE_S: Final = 2.0
_AUTH_ATTEMPTS: Final = 2  # fresh credentials once
_PIPE_BYTES: Final = 1024 * 1024
_PASSED_ON: Final = (
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
_NETWORK: Final = "network"  # among what a job needs, beside names of files
_CRASHES: Final = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS)
)


@dataclass(frozen=True)
class LayerJob:
    """One layer to import.

    Attributes:
        descriptor: of the blob.
        diff_id: digest of the uncompressed archive, from the image's configuration.
        compression: ``none``, ``gzip`` or ``zstd``, by the descriptor's media type.
    """

    descriptor: Descriptor
    diff_id: str
    compression: str


@dataclass(frozen=True)
class LayerResult:
    """A layer that is complete in its staging directory.

    Attributes:
        diff_id: as in the job.
        bytes_compressed: of the blob.
        bytes_uncompressed: of the archive.
        entries: members of the archive.
        sink: what the sink's ``finish`` answered.
        reused: an earlier run had finished it.
    """

    diff_id: str
    bytes_compressed: int
    bytes_uncompressed: int
    entries: int
    sink: dict[str, Any]
    reused: bool


async def import_layers(
    image: FetchedImage,
    jobs: Sequence[LayerJob],
    *,
    sink: str,
    sink_options: dict[str, Any],
    staging: Path,
    pass_directories: Mapping[str, Path],
    emit: Emit,
    transaction: str,
    workers: int | None = None,
) -> dict[str, LayerResult]:
    """Import ``jobs`` (a diffID that occurs twice is imported once), largest first, on several processes.

    Idempotent: finished layers are not fetched again. Cancelling ends the processes at once and keeps what is finished.
    Nothing is synced or published; that is the backend's next step.

    Args:
        image: where blobs come from.
        jobs: the layers.
        sink: ``module:Class`` of the backend's sink.
        sink_options: JSON values for it.
        staging: an existing directory on the file system of the repository.
        pass_directories: directories for the sink, as descriptors.
        emit: receives ``BlobProgressed`` and ``BlobCompleted``.
        transaction: for the events.
        workers: processes; default: one a core.

    Returns:
        results by diffID.

    Raises:
        ContentError: a layer is damaged (INT), hostile (CON), beyond a bound (LIM), or crashed its process (CON).
        TransportError: a source does not deliver.
        StorageError: space, I/O.
    """
    unique = {job.diff_id: job for job in jobs}
    run = _Run(image, sink, sink_options, staging, emit, transaction)
    cores = len(os.sched_getaffinity(0))
    queue = deque(
        job
        for job in sorted(unique.values(), key=lambda job: -job.descriptor.size)
        if not run.take(job)
    )
    count = min(workers or cores, len(queue), limits.WORKERS)
    run.spare = count < cores
    try:
        async with AsyncExitStack() as stack:
            directories = _open_directories(stack, staging, pass_directories)
            if any(
                chunked.positions(job.descriptor.annotations, job.descriptor.size) for job in queue
            ):
                run.seeds = _Seeds(stack, staging, pass_directories, queue)
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(run.serve, queue, directories)
    except BaseExceptionGroup as group:
        raise _foremost(group) from None
    return {diff_id: run.results[diff_id] for diff_id in unique}


def _open_directories(
    stack: AsyncExitStack, staging: Path, passed: Mapping[str, Path]
) -> dict[str, int]:
    """Descriptors by name, the staging directory's under ``""``; closed with ``stack``."""
    found = {}
    for name, path in [("", staging), *passed.items()]:
        with atomic.mapped("open", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        found[name] = descriptor
    return found


class _Seeds:
    """Local content that layers with a table of contents may share.

    The repository's objects, those of other pulls that were interrupted, and whatever ``chunked.PLACES`` names. The table is a
    memory file; all are closed with ``stack``.
    """

    def __init__(
        self,
        stack: AsyncExitStack,
        staging: Path,
        passed: Mapping[str, Path],
        queue: Iterable[LayerJob],
    ) -> None:
        places = [path for name, path in passed.items() if name == _OBJECTS and path.is_dir()]
        begun = {job.diff_id.partition(":")[2] for job in queue}  # cleared when they begin again
        places += sorted(
            path
            for path in staging.glob(f"*/{_OBJECTS}")
            if (path.parent / DONE).exists() or path.parent.name not in begun
        )
        places += _elsewhere_on_the_host()
        places = places[: limits.SEEDS]
        table = chunked.list_seeds(places, _SEED_BYTES)
        self._table = os.memfd_create("bootc-seeds", os.MFD_CLOEXEC)
        stack.callback(os.close, self._table)
        view = memoryview(table)
        while view:
            view = view[os.write(self._table, view) :]
        self.directories: list[int] = []
        for place in places:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            self.directories.append(descriptor)
        own = passed.get(_OBJECTS)
        self._own = self.directories[0] if own is not None and places[:1] == [own] else None

    @property
    def descriptors(self) -> list[int]:
        """What a worker process inherits."""
        return [self._table, *self.directories]

    def job(self, descriptor: Descriptor) -> dict[str, Any] | None:
        """For a worker's job; None if the layer has no table of contents."""
        where = chunked.positions(descriptor.annotations, descriptor.size)
        if where is None:
            return None
        return {
            "positions": [where.toc, where.toc_digest, where.split],
            "own": self._own,
            "table": self._table,
            "directories": self.directories,
        }


def _elsewhere_on_the_host() -> list[Path]:
    """Directories that ``chunked.PLACES`` names, the newest first."""
    found = []
    for pattern in chunked.PLACES.get():
        for place in glob.iglob(pattern):  # noqa: PTH207 - the pattern is absolute
            with suppress(OSError):
                about = os.stat(place)
                if stat.S_ISDIR(about.st_mode):
                    found.append((about.st_mtime, place))
    return [Path(place) for _, place in sorted(found, reverse=True)]


def _foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show when several processes failed at once: an interruption, then the first of ours."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        problem = todo.pop(0)
        if isinstance(problem, BaseExceptionGroup):
            todo = [*problem.exceptions, *todo]
        else:
            leaves.append(problem)
    for wanted in (KeyboardInterrupt, SystemExit, BootcError, Exception):
        for leaf in leaves:
            if isinstance(leaf, wanted):
                return leaf
    return leaves[0]


class _Run:
    """What the workers of one import share."""

    def __init__(
        self,
        image: FetchedImage,
        sink: str,
        options: dict[str, Any],
        staging: Path,
        emit: Emit,
        transaction: str,
    ) -> None:
        self.image, self.sink, self.options, self.staging = image, sink, options, staging
        self.emit, self.transaction = emit, transaction
        self.results: dict[str, LayerResult] = {}
        self.spare = False  # fewer workers than processors
        self.limits = budget.CURRENT.get()
        self.seeds: _Seeds | None = None
        self.boot = _BOOT_ID.read_text().strip()
        self.path = _home_of(sink)
        self.numbers = {
            layer.digest: f"layer {number} of {image.requested.display()}"
            for number, layer in reversed([*enumerate(image.manifest.layers, 1)])
        }

    async def serve(self, queue: deque[LayerJob], directories: dict[str, int]) -> None:
        """One worker process, as long as there are jobs."""
        inherited = [*directories.values(), *([self.limits.descriptor] if self.limits else [])]
        inherited += self.seeds.descriptors if self.seeds else []
        while queue:
            async with _worker(inherited) as worker:
                while queue:
                    job = queue.popleft()
                    try:
                        self._finish(job, await self.layer(worker, job, directories))
                    except _NeedsMoreError:
                        queue.appendleft(job)
                        break

    def take(self, job: LayerJob) -> bool:
        """Take over what an earlier run finished since the machine was booted; False if there is nothing."""
        found = _read_done(self._place(job) / DONE, job, self.sink)
        if found is None or found[0] != self.boot:
            return False
        self._finish(job, found[1])
        return True

    def _place(self, job: LayerJob) -> Path:
        return self.staging / job.diff_id.partition(":")[2]

    def _finish(self, job: LayerJob, result: LayerResult) -> None:
        self.results[job.diff_id] = result
        if sum(known.bytes_uncompressed for known in self.results.values()) > limits.IMAGE_BYTES:
            raise ContentError(
                f"{self.image.requested.display()} is too large uncompressed",
                reference="limit-exceeded",
                expected=f"at most {limits.IMAGE_BYTES} bytes",
                catalogue="LIM",
            )
        self.emit(
            BlobCompleted(
                transaction=self.transaction,
                digest=job.descriptor.digest,
                bytes_total=job.descriptor.size,
                objects_new=int(result.sink.get("objects_new", 0)),
                objects_known=int(result.sink.get("objects_known", 0)),
            )
        )

    async def layer(
        self, worker: _Worker, job: LayerJob, directories: dict[str, int]
    ) -> LayerResult:
        """What was finished before the machine was booted, if it is whole still; or the layer imported anew."""
        place = self._place(job)
        request = {
            "what": self.numbers.get(job.descriptor.digest, f"layer {job.descriptor.digest}"),
            "digest": job.descriptor.digest,
            "size": job.descriptor.size,
            "diff_id": job.diff_id,
            "compression": job.compression,
            "staging": directories[""],
            "sink": self.sink,
            "path": self.path,
            "readable": [
                *(fd for name, fd in directories.items() if name),
                *(self.seeds.directories if self.seeds else ()),
            ],
            "spare": self.spare,
            "spool_bytes": limits.SPOOL_LAYER_BYTES,
            "retry_wait_s": limits.RETRY_WAIT_S,
            "limits": self.limits.to_json() if self.limits else None,
            "chunked": self.seeds.job(job.descriptor) if self.seeds else None,
            "options": {**self.options, **{name: fd for name, fd in directories.items() if name}},
        }
        finished = _read_done(place / DONE, job, self.sink)
        if finished is not None and await worker.recheck(request, finished[1].sink):
            self._note(place, job, finished[1])
            return finished[1]
        result = await self._fresh(worker, job, request, place)
        self._note(place, job, result)
        return result

    def _note(self, place: Path, job: LayerJob, result: LayerResult) -> None:
        """Let the next run know that the layer is finished."""
        note = {
            "version": _VERSION,
            "boot_id": self.boot,
            "sink": self.sink,
            "digest": job.descriptor.digest,
            "diff_id": job.diff_id,
            "bytes": result.bytes_compressed,
            "bytes_uncompressed": result.bytes_uncompressed,
            "entries": result.entries,
            "result": result.sink,
        }
        atomic.write_file(place / DONE, json.dumps(note).encode(), sync=False)

    async def _fresh(
        self, worker: _Worker, job: LayerJob, request: dict[str, Any], place: Path
    ) -> LayerResult:
        """Import the layer, with the retries that make sense for its source and error."""
        denied = failed = 0
        mismatched = False
        missed: list[str] = []  # places that did not deliver
        while True:
            _clear(place)
            source: BlobSource | None = None
            try:
                source = await self.image.blob_source(job.descriptor)
                answer = await worker.do(request, source, self._progress(job))
                return LayerResult(
                    diff_id=job.diff_id,
                    bytes_compressed=answer["bytes"],
                    bytes_uncompressed=answer["bytes_uncompressed"],
                    entries=answer["entries"],
                    sink=answer["sink"],
                    reused=False,
                )
            except TransportError as problem:
                if _elsewhere(problem, source, missed):
                    continue
                if problem.catalogue == "AUTH" and isinstance(source, HttpSource):
                    denied += 1  # credentials may have expired while other layers were fetched
                    if denied >= _AUTH_ATTEMPTS:
                        raise
                    continue
                failed += 1
                # HTTP requests were repeated in the worker already
                if (
                    not problem.retryable
                    or isinstance(source, HttpSource)
                    or failed > limits.RETRIES
                ):
                    raise
                await trio.sleep(_wait_s(failed, problem.retry_after_s))
            except ContentError as problem:
                if getattr(problem, "whole", False) and request.get("chunked"):
                    _LOG.info("%s (%s); fetching all of it", problem.message, problem.found)
                    request["chunked"] = None
                    continue
                if not getattr(problem, "again", False):
                    raise
                if _elsewhere(problem, source, missed):
                    continue
                if mismatched:
                    for note in missed:
                        problem.add_note(note)
                    raise
                mismatched = True

    def _progress(self, job: LayerJob) -> Callable[[int], None]:
        def report(count: int) -> None:
            self.emit(
                BlobProgressed(
                    transaction=self.transaction,
                    digest=job.descriptor.digest,
                    bytes_done=count,
                    bytes_total=job.descriptor.size,
                )
            )

        return report


def _elsewhere(problem: BootcError, source: BlobSource | None, missed: list[str]) -> bool:
    """Whether another place has the blob as well, so that one which did not deliver is left, and named."""
    if not isinstance(source, HttpSource) or not source.elsewhere:
        return False
    if problem.reference == "byte-budget":
        return False
    missed.append(f"mirror {source.elsewhere}: {problem.message}")
    _LOG.warning("%s", missed[-1])
    return True


def _wait_s(failures: int, told: float | None) -> float:
    wait = (
        limits.RETRY_WAIT_S * 2 ** (failures - 1) * (0.75 + os.urandom(1)[0] / 512)
        if told is None
        else told
    )
    return min(wait, limits.RETRY_WAIT_MAX_S)


def _home_of(sink: str) -> str | None:
    """The directory in which the sink's top-level package is found: an isolated process may not look there by itself."""
    spec = importlib.util.find_spec(sink.partition(":")[0].partition(".")[0])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).parent)
    return str(Path(spec.origin).parent) if spec.origin else None


def _read_done(path: Path, job: LayerJob, sink: str) -> tuple[str, LayerResult] | None:
    """Boot id and result of a finished layer; None if there is none that fits, whatever the file holds."""
    try:
        value = json.loads(path.read_bytes()[: limits.WORKER_LINE_BYTES])
        fits = (
            value["version"] == _VERSION
            and value["sink"] == sink
            and value["digest"] == job.descriptor.digest
            and value["diff_id"] == job.diff_id
        )
        if not fits or not isinstance(value["result"], dict):
            return None
        return str(value["boot_id"]), LayerResult(
            diff_id=job.diff_id,
            bytes_compressed=int(value["bytes"]),
            bytes_uncompressed=int(value["bytes_uncompressed"]),
            entries=int(value["entries"]),
            sink=value["result"],
            reused=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _clear(place: Path) -> None:
    """An empty directory for the layer, except for what arrived of its blob."""
    if not place.is_dir() or place.is_symlink():
        atomic.rmtree(place)
    atomic.mkdir(place, 0o700)
    with atomic.mapped("read", place):
        names = os.listdir(place)
    for name in sorted(
        names, key=lambda name: name != DONE
    ):  # from here on the layer is unfinished
        if name not in {SPOOL, RANGES}:
            atomic.rmtree(place / name)


@asynccontextmanager
async def _worker(inherited: Sequence[int]) -> AsyncIterator[_Worker]:
    """A worker process; gone when the context is left, however it is left."""
    worker = _Worker(inherited)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.read_stderr)
            yield worker
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await worker.end()


class _NeedsMoreError(Exception):
    """The process gave up what this job needs: the job is another one's."""


class _Worker:
    """The parent's side of `bootc_core.oci.worker`; one job at a time."""

    def __init__(self, inherited: Sequence[int]) -> None:
        jobs, theirs = socket.socketpair()
        answers, answers_end = os.pipe()
        talk, talk_end = os.pipe()
        environment = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
        environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            # Not through trio: it starts processes from a thread, and the worker's death signal is bound to that thread.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "bootc_core.oci.worker", str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=answers_end,
                stderr=talk_end,
                pass_fds=tuple(inherited),
                cwd="/",
                env=environment,
                start_new_session=True,  # interrupts from the terminal reach the parent, which cancels
            )
        finally:
            theirs.close()
            os.close(answers_end)
            os.close(talk_end)
        self._pid = os.pidfd_open(self._process.pid)
        self._jobs = trio.socket.from_stdlib_socket(jobs)
        self._answers = trio.lowlevel.FdStream(answers)
        self._talk = trio.lowlevel.FdStream(talk)
        self._stderr = b""
        self._rest = b""
        self._number = 0
        self._kept: frozenset[str] | None = None  # of what jobs need, what the first one left it

    async def read_stderr(self) -> None:
        """Keep the end of what the process says beside its answers."""
        while data := await self._talk.receive_some(limits.CHUNK_BYTES):
            self._stderr = (self._stderr + data)[-limits.WORKER_STDERR_BYTES :]

    async def recheck(self, request: dict[str, Any], finished: dict[str, Any]) -> bool:
        """Does the sink find the layer whole?"""
        self._use({_NETWORK})
        answer = await self._ask({**request, "recheck": finished}, [], lambda count: None)
        return bool(answer["whole"])

    async def do(
        self, request: dict[str, Any], source: BlobSource, progress: Callable[[int], None]
    ) -> dict[str, Any]:
        """Import one layer from ``source``; the answer's fields.

        Raises:
            BootcError: the worker's error, or that it died.
        """
        if isinstance(source, HttpSource):
            tls = {
                "verify": source.tls_verify,
                "ca_files": [source.ca_file] if source.ca_file else [],
                "client_cert": source.client_cert,
                "client_key": source.client_key,
            }
            self._use({_NETWORK, *tls_files(tls)})
            request = {
                **request,
                "source": {
                    "kind": "http",
                    "url": source.url,
                    "headers": source.headers,
                    "tls": tls,
                },
            }
            return await self._ask(request, [], progress)
        self._use(set())
        if isinstance(source, FileSource):
            descriptor = _open_regular(source.path)
            try:
                kind = {"kind": "file", "offset": source.offset, "length": source.length}
                return await self._ask(
                    {**request, "source": kind, "attached": ["source"]}, [descriptor], progress
                )
            finally:
                os.close(descriptor)
        return await self._piped(request, source, progress)

    def _use(self, needs: set[str]) -> None:
        """Raise if an earlier job left the process without what this one needs."""
        if self._kept is None:
            self._kept = frozenset(needs)
        elif not needs <= self._kept:
            raise _NeedsMoreError

    async def _piped(
        self, request: dict[str, Any], source: PipeSource, progress: Callable[[int], None]
    ) -> dict[str, Any]:
        reading, writing = os.pipe()
        stream = trio.lowlevel.FdStream(writing)
        trouble: list[Exception] = []
        answer: dict[str, Any] = {}

        async def feed() -> None:
            """Pass the source's bytes on; its end, or its error, is the pipe's end."""
            async with stream:
                try:
                    await _pump(source.open(), stream)
                except trio.BrokenResourceError:
                    pass  # the worker has seen enough and says why
                except Exception as problem:
                    trouble.append(problem)

        with suppress(OSError):  # beyond the user's allowance: slower, nothing else
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed)
                kind = {"source": {"kind": "pipe"}, "attached": ["source"]}
                try:
                    answer = await self._ask(
                        {**request, **kind}, [reading], progress, close=reading
                    )
                finally:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise (trouble[0] if trouble else _foremost(group)) from None
        return answer

    async def _ask(
        self,
        request: dict[str, Any],
        descriptors: list[int],
        progress: Callable[[int], None],
        *,
        close: int | None = None,
    ) -> dict[str, Any]:
        """Send a job and wait for its answer; ``close`` is our copy of a descriptor that only the worker may hold."""
        self._number += 1
        try:
            await self._send({**request, "job": self._number}, descriptors)
        finally:
            if close is not None:
                os.close(close)
        what = str(request["what"])
        while True:
            with trio.move_on_after(limits.WORKER_SILENCE_S) as patience:
                answer = await self._receive(what)
            if patience.cancelled_caught:
                self._process.kill()
                raise ContentError(
                    f"{what}: the importing process hangs",
                    reference="worker-hangs",
                    expected=f"a sign of life within {limits.WORKER_SILENCE_S:.0f} s",
                    catalogue="LIM",
                )
            event = answer["event"]
            if event == "progress":
                progress(int(answer["bytes"]))
            elif event == "unconfined":
                missing = ", ".join(printable(str(text), 80) for text in answer["missing"])
                _LOG.warning("importing processes run without: %s", missing)
            elif event == "failed":
                raise _error(answer)
            else:
                return answer

    async def _send(self, request: dict[str, Any], descriptors: list[int]) -> None:
        line = json.dumps(request).encode() + b"\n"
        ancillary = []
        if descriptors:
            ancillary = [
                (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())
            ]
        try:
            sent = await self._jobs.sendmsg([line], ancillary)
            while sent < len(line):
                sent += await self._jobs.send(line[sent:])
        except OSError:
            raise await self._death(str(request["what"])) from None

    async def _receive(self, what: str) -> dict[str, Any]:
        while b"\n" not in self._rest:
            data = await self._answers.receive_some(limits.CHUNK_BYTES)
            if not data:
                raise await self._death(what)
            self._rest += data
            if len(self._rest) > limits.WORKER_LINE_BYTES:
                raise _babble(what)
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            raise _babble(what) from None
        if not isinstance(answer, dict) or answer.get("job") != self._number:
            raise _babble(what)
        return answer

    async def _death(self, what: str) -> BootcError:
        """Why the process is gone: a crash is the content's doing until shown otherwise."""
        with trio.move_on_after(_TERM_GRACE_S):
            await trio.lowlevel.wait_readable(self._pid)
        status = self._process.poll()
        said = printable(self._stderr.strip().rpartition(b"\n")[2], 160)
        if status is None:
            return StorageError(
                f"{what}: the importing process closed its channel", reference="worker-died"
            )
        if status >= 0:
            found = f"exit status {status}" + (f": {said}" if said else "")
            return StorageError(
                f"{what}: the importing process died", reference="worker-died", found=found
            )
        number = -status
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        if number == signal.SIGXCPU:
            return ContentError(
                f"{what} takes too much processor time",
                reference="limit-exceeded",
                expected=f"at most {limits.WORKER_CPU_S} s",
                found=name,
                catalogue="LIM",
            )
        if number == signal.SIGKILL:
            return ContentError(
                f"{what}: the importing process was killed",
                reference="worker-died",
                found=name,
                hint="the machine may be short of memory; look at the kernel's log",
                catalogue="LIM",
            )
        if number in _CRASHES:
            return ContentError(
                f"{what} crashed the importing process",
                reference="worker-died",
                found=f"{name}" + (f": {said}" if said else ""),
                hint="treat the image as hostile, and report it",
            )
        return StorageError(
            f"{what}: the importing process died", reference="worker-died", found=name
        )

    async def end(self) -> None:
        """End the process: TERM, then KILL; reap it and close all channels. Never raises."""
        self._jobs.close()
        try:
            if self._process.poll() is None:
                self._process.terminate()
                with trio.move_on_after(_TERM_GRACE_S):
                    await trio.lowlevel.wait_readable(self._pid)
                if self._process.poll() is None:
                    self._process.kill()
                    await trio.lowlevel.wait_readable(self._pid)
        finally:
            self._process.wait()
            os.close(self._pid)
            await trio.aclose_forcefully(self._answers)
            await trio.aclose_forcefully(self._talk)


async def _pump(blob: AsyncIterator[bytes], stream: trio.lowlevel.FdStream) -> None:
    """All of ``blob`` into ``stream``; a generator is closed however this ends."""
    async with AsyncExitStack() as stack:
        if (close := getattr(blob, "aclose", None)) is not None:
            stack.push_async_callback(close)
        async for chunk in blob:
            await stream.send_all(chunk)


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file; anything else is refused without waiting for it."""
    with atomic.mapped("read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ContentError(
            f"{printable(str(path))} is not a regular file", reference="bad-blob-file"
        )
    return descriptor


def _babble(what: str) -> BootcError:
    return StorageError(f"{what}: the importing process answers nonsense", reference="worker-died")


def _error(answer: dict[str, Any]) -> BootcError:
    """The worker's error, as the same class."""
    kind = getattr(errors, str(answer["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, BootcError)):
        kind = BootcError
    problem = kind(**answer["error"])
    for mark in ("again", "whole"):
        if answer.get(mark):
            setattr(problem, mark, True)  # read by _Run._fresh
    return problem
