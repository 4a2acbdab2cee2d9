r"""The process that imports layers: ``python -I -m bootc_core.oci.worker PARENT``, started by `bootc_core.oci.importer`.

    source ──▶ sha256 of the blob ──▶ decompression ──▶ sha256 (diffID) ──▶ tar splitter ──▶ sink ──▶ staging/<diffID hex>/
               └▶ staging/<diffID hex>/spool (large HTTP blobs: what arrived, so that a killed pull goes on at that byte)

Standard input is a Unix socket on which the parent sends one JSON line for each job, with descriptors attached (SCM_RIGHTS) in the
order of ``attached``; standard output answers in JSON lines:

    ◀ {"job": 1, "what": "layer 2", "digest": "sha256:…", "size": 5, "diff_id": "sha256:…", "compression": "gzip",
       "source": {"kind": "http", "url": …, "headers": [[…, …]], "tls": {…}} | {"kind": "file", "offset": 0, "length": 5}
                 | {"kind": "pipe"},
       "attached": ["source"], "staging": 7, "sink": "module:Class", "path": "/where/it/is", "options": {…},
       "spool_bytes": 262144, "retry_wait_s": 0.5, "limits": {"descriptor": 9, "rate": null, "most": 100000000} | null,
       "chunked": {"positions": […], "table": 10, "directories": [11]} | null,
       "readable": [12, 13],               directories beneath which files are read, besides staging
       "spare": false}                     spare: there are more processors than workers
    ◀ {"job": 2, …, "recheck": {…}}        only ask the sink whether the finished layer is whole
    ▶ {"event": "progress", "job": 1, "bytes": 4}
    ▶ {"event": "done", "job": 1, "bytes": 5, "bytes_uncompressed": 1024, "entries": 0, "sink": {…}}
    ▶ {"event": "checked", "job": 2, "whole": true}
    ▶ {"event": "failed", "job": 1, "type": "ContentError", "error": {…}, "again": false}

``again`` says that the blob's bytes were not the promised ones, so that a fresh download may help. While they are
unproven, nothing that was read from them is believed, errors included: after any problem with the content the rest
of the blob is hashed, and if it is not the promised one, that is the error.

    ▶ {"event": "unconfined", "job": 1, "missing": ["Landlock (…)"]}    once, before any other, if the kernel lacks something

The process has what it was given: an empty environment, the descriptors of its directories, its source. With its first job it gives
up the rest (`bootc_core.oci.sandbox`): what that job needs decides whether there is a network and which files of TLS can be
read, so a job that needs more goes to another process. It ends with its parent (PR_SET_PDEATHSIG), at the end of its input, on
TERM at once, and beyond its bounds of memory, processor time, open files and the size of a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, TransportError, printable
from bootc_core.oci.compression import decompress
from bootc_core.oci.digest import ThreadedVerifier, Verifier
from bootc_core.oci.tar import Splitter

if TYPE_CHECKING:
    from bootc_core.net.budget import Meter
    from bootc_core.net.http import Pool
    from bootc_core.oci.chunked import Seeds
    from bootc_core.oci.sink import Sink

SPOOL: Final = "spool"  # in a layer's staging directory; sinks use other names
_PROGRESS_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_NICE: Final = 2  # the host's services come first, but someone is waiting
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DESCRIPTORS: Final = 4  # at most with one job


class Channel:
    """Jobs in, answers out."""

    def __init__(self, jobs: socket.socket, answers: int) -> None:
        self._jobs = jobs
        self._answers = answers
        self._rest = b""

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next job and the descriptors that came with it; None when the parent closed the channel."""
        pieces = [self._rest]
        descriptors: list[int] = []
        while b"\n" not in pieces[-1]:
            data, found, _, _ = socket.recv_fds(self._jobs, 65536, _DESCRIPTORS)
            descriptors += found
            if not data:
                return None
            pieces.append(data)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return json.loads(line), descriptors

    def send(self, event: str, job: int, **fields: Any) -> None:
        """One line to the parent."""
        line = json.dumps({"event": event, "job": job, **fields}).encode() + b"\n"
        while line:
            line = line[os.write(self._answers, line) :]


class _Source(Protocol):
    """Where the blob comes from."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill the front of ``buffer``; 0 at the end."""

    def close(self) -> None:
        """Give up what was not read."""


class _Descriptor:
    """A pipe, or a range of a regular file; the descriptor is closed with it."""

    def __init__(
        self, descriptor: int, offset: int | None = None, length: int | None = None
    ) -> None:
        self._descriptor, self._offset, self._left = descriptor, offset, length

    def readinto(self, buffer: memoryview) -> int:
        if self._offset is None:
            return os.readv(self._descriptor, [buffer])
        if self._left is not None and self._left < len(buffer):
            buffer = buffer[: self._left]
        count = os.preadv(self._descriptor, [buffer], self._offset) if buffer else 0
        self._offset += count
        if self._left is not None:
            self._left -= count
        return count

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Spool:
    """What arrived of a blob, kept until the layer is finished. Never synced: after a power cut the digest rejects it."""

    def __init__(self, directory: int, most: int) -> None:
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(SPOOL, flags, 0o600, dir_fd=directory)
        self.size = os.fstat(self._descriptor).st_size
        if self.size > most:  # not what this program wrote
            os.ftruncate(self._descriptor, 0)
            self.size = 0

    def reader(self) -> _Descriptor:
        """Its content as a source."""
        return _Descriptor(os.dup(self._descriptor), 0, self.size)

    def write(self, data: memoryview) -> None:
        """Append; a full disk ends the spool, not the import."""
        if self._descriptor < 0:
            return
        try:
            while data:
                count = os.pwrite(self._descriptor, data, self.size)
                self.size += count
                data = data[count:]
        except OSError:
            self.drop()

    def close(self) -> None:
        """Keep it for the next run."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def drop(self) -> None:
        """Remove it."""
        self.close()
        with contextlib.suppress(OSError):
            os.unlink(SPOOL, dir_fd=self._directory)


class _Blob:
    """The blob's bytes in order, hashed; iteration ends normally only if they are what the descriptor promised.

    Not a generator, so that iteration can go on after a consumer in between has failed.
    """

    def __init__(
        self, sources: list[tuple[_Source, _Spool | None]], verifier: Verifier, report: Any
    ) -> None:
        self._sources = sources
        self._verifier = verifier
        self._report = report
        self._due = 0.0
        self._view = memoryview(bytearray(limits.CHUNK_BYTES))
        self._refusal: ContentError | None = None
        self.proven = False

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        if self._refusal is not None:
            raise self._refusal
        try:
            return self._next()
        except ContentError as problem:
            self._refusal = problem
            raise

    def _next(self) -> memoryview:
        while self._sources:
            source, spool = self._sources[0]
            count = source.readinto(self._view)
            if not count:
                source.close()
                del self._sources[0]
                continue
            piece = self._view[:count]
            self._verifier.update(piece)
            if spool is not None:
                spool.write(piece)
            if (now := time.monotonic()) >= self._due:
                self._due = now + _PROGRESS_S
                self._report(self._verifier.bytes)
            return piece
        if not self.proven:
            self._verifier.finish()
            self.proven = True
        raise StopIteration

    def close(self) -> None:
        """Give up what was not read."""
        for source, _ in self._sources:
            source.close()
        self._sources.clear()


class Worker:
    """Runs jobs one after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pool: Pool | None = None
        self._meter: Meter | None = None
        self._seeds: Seeds | None = None
        self._confined = False

    def serve(self) -> None:
        """Until the parent closes the channel."""
        while (received := self._channel.receive()) is not None:
            job, descriptors = received
            attached = dict(zip(job.get("attached", ()), descriptors, strict=True))
            try:
                event, fields = self._run(job, attached)
            except BootcError as problem:
                event, fields = "failed", failure(problem)
            except MemoryError:
                event, fields = "failed", failure(_beyond_memory(job["what"]))
            except OSError as problem:
                from bootc_core.fs.atomic import storage_error

                event, fields = (
                    "failed",
                    failure(storage_error(problem, "stage", job["what"], near=job["staging"])),
                )
            except Exception as problem:  # the process's edge: the parent gets it, with its place
                event, fields = "failed", failure(_defect(job["what"], problem))
            finally:
                for descriptor in attached.values():
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            self._channel.send(event, job["job"], **fields)

    def _run(self, job: dict[str, Any], attached: dict[str, int]) -> tuple[str, dict[str, Any]]:
        layer = os.open(job["diff_id"].partition(":")[2], _DIRECTORY, dir_fd=job["staging"])
        try:
            make = _load(job["sink"], job.get("path"))
            if not self._confined:
                self._confine(job, owners=getattr(make, "sets_owners", False))
            if "recheck" in job:
                check = getattr(make, "recheck", None)
                whole = check is not None and bool(check(layer, job["options"], job["recheck"]))
                return "checked", {"whole": whole}
            return "done", self._import(job, attached, layer, make)
        finally:
            os.close(layer)

    def _confine(self, job: dict[str, Any], *, owners: bool) -> None:
        """Before the first untrusted byte: import what the job takes, then give up all else."""
        from bootc_core.oci import sandbox

        source = job.get("source") or {}
        network = "recheck" in job or source.get("kind") == "http"  # the next one may be fetched
        if network:
            import bootc_core.oci.download
        if job.get("chunked"):
            import bootc_core.oci.chunked
            import bootc_core.oci.ranges  # noqa: F401
        missing = sandbox.enter(
            [job["staging"]],
            job.get("readable") or (),
            network=network,
            files=tls_files(source.get("tls")),
            owners=owners,
        )
        self._confined = True
        if missing:
            self._channel.send("unconfined", job["job"], missing=missing)

    def _import(
        self, job: dict[str, Any], attached: dict[str, int], layer: int, make: Any
    ) -> dict[str, Any]:
        what: str = job["what"]
        blob_check = Verifier(job["digest"], job["size"], what)
        diff_check = self._diff_check(job)
        spool = None
        if job["source"]["kind"] == "http" and job["size"] > job.get(
            "spool_bytes", limits.SPOOL_LAYER_BYTES
        ):
            spool = _Spool(layer, job["size"])
        if job.get("chunked") and job["source"]["kind"] == "http" and not (spool and spool.size):
            by_file = self._import_by_file(job, layer, make)
            if by_file is not None:
                if spool is not None:
                    spool.drop()
                return by_file
        blob = _Blob(self._open(job, attached, spool), blob_check, self._reporter(job["job"]))
        done = False
        try:
            sink: Sink = make(layer, job["options"])
            splitter = Splitter(sink, what)
            try:
                for piece in decompress(blob, job["compression"], what):
                    if diff_check is not None:
                        diff_check.update(piece)
                    splitter.feed(piece)
                splitter.close()
                if diff_check is not None:
                    diff_check.finish()
                answer = sink.finish()
            except BaseException as problem:
                sink.abort()
                if isinstance(problem, ContentError):
                    for _ in (
                        blob
                    ):  # which error it is depends on whether these are the promised bytes at all
                        pass
                raise
            done = True
        except ContentError as problem:
            if not blob.proven:
                problem.again = True  # type: ignore[attr-defined] # read by failure()
            done = True  # proven and refused, or not the blob: neither is worth keeping
            raise
        finally:
            blob.close()
            if diff_check is not None:
                diff_check.close()
            if spool is not None:
                spool.drop() if done else spool.close()
        return {
            "bytes": blob_check.bytes,
            "bytes_uncompressed": splitter.bytes,
            "entries": splitter.entries,
            "sink": answer,
        }

    def _import_by_file(self, job: dict[str, Any], layer: int, make: Any) -> dict[str, Any] | None:
        """Import a layer of which the host holds most files; None if it is better fetched as a whole.

        Raises:
            BootcError: with ``whole`` if the whole layer may be better: what was staged is to be cleared first.
        """
        from bootc_core.oci import chunked, ranges
        from bootc_core.oci.download import Download

        pool, meter = self._line(job)
        told = job["chunked"]
        if self._seeds is None and told["table"] is not None:
            self._seeds = chunked.Seeds(told["table"], told["directories"])
        toc, digest, split = told["positions"]
        where = chunked.Positions(tuple(toc), digest, tuple(split))

        kept = ranges.Ranges(layer, job["size"])

        def download(start: int, end: int) -> Download:
            return Download(job, start, pool, meter, end=end)

        def fetch(start: int, end: int) -> ranges.Range:
            return ranges.Range(kept, start, end, download)

        try:
            source = chunked.Layer(
                where,
                job["size"],
                fetch,
                self._seeds,
                self._reporter(job["job"]),
                told.get("own") if hasattr(make, "reuse") else None,
            )
        except (chunked.NotWorthwhile, BootcError, OSError) as problem:
            if chunked.falls_back(problem):
                kept.drop()
                return None
            kept.close()
            raise
        diff_check = Verifier(job["diff_id"], None, f"{job['what']}, uncompressed,")
        sink: Sink = make(layer, job["options"])
        splitter = Splitter(sink, job["what"])
        try:
            for piece in source:
                if isinstance(piece, chunked.Known):
                    for data in piece.content:
                        diff_check.update(data)
                    # all of a member, where one of this size is due: no need to name it by its content again
                    sink.reuse(splitter.external(piece.size), piece.name)  # type: ignore[attr-defined]
                    continue
                diff_check.update(piece)
                splitter.feed(piece)
            splitter.close()
            diff_check.finish()
            answer = sink.finish()
        except BaseException as problem:
            source.close()
            sink.abort()
            if isinstance(problem, BootcError | OSError) and chunked.falls_back(problem):
                kept.drop()
                partly = ContentError(
                    f"{job['what']} cannot be fetched by the file",
                    reference="partial-pull",
                    found=printable(str(problem)),
                )
                partly.whole = True  # type: ignore[attr-defined] # read by failure()
                raise partly from problem
            kept.close()
            raise
        kept.drop()
        return {
            "bytes": source.received,
            "bytes_uncompressed": splitter.bytes,
            "entries": splitter.entries,
            "sink": answer,
        }

    def _diff_check(self, job: dict[str, Any]) -> Verifier | None:
        """What hashes the archive; None where that would be the blob's hash a second time."""
        if job["compression"] == "none" and job["digest"] == job["diff_id"]:
            return None
        kind = ThreadedVerifier if job.get("spare") and job["compression"] != "none" else Verifier
        return kind(job["diff_id"], None, f"{job['what']}, uncompressed,")

    def _open(
        self, job: dict[str, Any], attached: dict[str, int], spool: _Spool | None
    ) -> list[tuple[_Source, _Spool | None]]:
        source = job["source"]
        if source["kind"] == "pipe":
            return [(_Descriptor(attached.pop("source")), None)]
        if source["kind"] == "file":
            return [(_Descriptor(attached.pop("source"), source["offset"], source["length"]), None)]
        from bootc_core.oci.download import Download

        pool, meter = self._line(job)
        position = 0
        sources: list[tuple[_Source, _Spool | None]] = []
        if spool is not None and spool.size:
            position = spool.size
            sources.append((spool.reader(), None))
        sources.append((Download(job, position, pool, meter), spool))
        return sources

    def _line(self, job: dict[str, Any]) -> tuple[Pool, Meter | None]:
        """Connections, and what the command's limits leave of the line."""
        if self._pool is None:
            from bootc_core.net.http import Pool

            buffer = None
            if (told := job.get("limits")) is not None:
                from bootc_core.net.budget import RECEIVE_BUFFER_BYTES, Meter

                self._meter = Meter(told["descriptor"], told["rate"], told["most"])
                buffer = RECEIVE_BUFFER_BYTES
            self._pool = Pool(2, receive_buffer=buffer)
        return self._pool, self._meter

    def _reporter(self, job: int) -> Any:
        return lambda count: self._channel.send("progress", job, bytes=count)


def tls_files(tls: dict[str, Any] | None) -> list[str]:
    """What a source's TLS reads by name."""
    if not tls:
        return []
    files = [*(tls.get("ca_files") or ()), tls.get("client_cert"), tls.get("client_key")]
    return [str(file) for file in files if file]


def _load(name: str, path: str | None) -> Any:
    """The sink's class; ``path`` is where the parent found its top-level package."""
    if path and path not in sys.path:
        sys.path.append(path)
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def failure(problem: BootcError) -> dict[str, Any]:
    """An error as JSON values; `bootc_core.oci.importer` makes the same error of them (of its class in `errors`)."""
    fields = {
        key: getattr(problem, key)
        for key in ("message", "reference", "expected", "found", "hint", "catalogue")
    }
    if isinstance(problem, TransportError):
        fields |= {"retryable": problem.retryable, "retry_after_s": problem.retry_after_s}
    kind = next(kind for kind in type(problem).__mro__ if kind.__module__ == BootcError.__module__)
    return {
        "type": kind.__name__,
        "error": fields,
        "again": bool(getattr(problem, "again", False)),
        "whole": bool(getattr(problem, "whole", False)),
    }


def _beyond_memory(what: str) -> ContentError:
    return ContentError(
        f"{what} takes too much memory",
        reference="limit-exceeded",
        expected=f"a worker process within {limits.WORKER_MEMORY_BYTES} bytes",
        catalogue="LIM",
    )


def _defect(what: str, problem: Exception) -> BootcError:
    """An exception that should not exist, with the innermost place where it came from."""
    trace = problem.__traceback__
    place = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
        place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return BootcError(
        f"{what}: the importing process failed",
        reference="worker-failed",
        found=printable(f"{type(problem).__name__}: {problem} ({place})"),
        hint="this is a defect; please report it with this line",
    )


def confine(parent: int) -> None:
    """Bound this process, and tie its life to ``parent`` (a process id)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for kind, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.WORKER_MEMORY_BYTES),
        (resource.RLIMIT_CPU, limits.WORKER_CPU_S),
        (resource.RLIMIT_NOFILE, limits.WORKER_FILES),
        (resource.RLIMIT_FSIZE, limits.LAYER_BYTES),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)
        resource.setrlimit(kind, (bound, bound))
    os.nice(_NICE)


def main() -> None:
    """Serve the parent whose process id is the only argument."""
    confine(int(sys.argv[1]))
    gc.disable()  # entries have no cycles, and the process ends with its last layer
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not get between the lines
    Worker(Channel(socket.socket(fileno=0), answers)).serve()
    os._exit(0)  # nothing to tidy up; the interpreter's shutdown would cost 10 ms


if __name__ == "__main__":
    main()
