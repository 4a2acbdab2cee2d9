"""Processor time of an import by stage, on one layer: what hashing, decoding and splitting cost without any storage.

    python -m benchmarks.micro_import [LAYER.tar | DIRECTORY] [--compression zstd]

Without an argument the layer is an archive of this interpreter's standard library. Each line adds one stage to the one
before, so the difference is the stage's cost; the last line is the rate of headers alone.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bootc_core import limits
from bootc_core.oci.compression import decompress
from bootc_core.oci.digest import Verifier
from bootc_core.oci.tar import Splitter, TarEntry

_ANY = "sha256:" + "0" * 64


class Nothing:
    """A sink that only lets the splitter do its work."""

    wants_raw = True

    def raw(self, data: bytes | memoryview) -> None: ...
    def entry(self, entry: TarEntry) -> None: ...
    def file(self, entry: TarEntry, body: memoryview) -> None: ...
    def begin_file(self, entry: TarEntry) -> None: ...
    def write(self, piece: memoryview) -> None: ...
    def end_file(self) -> None: ...
    def finish(self) -> dict[str, Any]:
        return {}

    def abort(self) -> None: ...


def archive(source: Path) -> bytes:
    if source.is_file():
        return source.read_bytes()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as opened:
        opened.add(source, "usr/lib")
    return stream.getvalue()


def packed(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, 6)
    if compression == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return bytes(zstd.compress(data, 3))
    return data


def timed(name: str, size: int, action: Callable[[], None]) -> None:
    best = min(_once(action) for _ in range(3))
    print(f"{name:32} {best:6.2f} s   {size / best / 1e6:8.0f} MB/s")


def _once(action: Callable[[], None]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="processor time of an import by stage")
    parser.add_argument("layer", nargs="?", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--compression", default="zstd", choices=["none", "gzip", "zstd"])
    options = parser.parse_args()
    data = archive(options.layer)
    blob = packed(data, options.compression)
    print(f"{len(data) / 1e6:.0f} MB, {len(blob) / 1e6:.0f} MB as {options.compression}; best of 3")

    def chunks(check: Verifier | None) -> Iterator[memoryview]:
        view = memoryview(blob)
        for start in range(0, len(view), limits.CHUNK_BYTES):
            piece = view[start : start + limits.CHUNK_BYTES]
            if check is not None:
                check.update(piece)
            yield piece

    def stage(*, hashed: bool, diff: bool, split: bool) -> Callable[[], None]:
        def action() -> None:
            check = Verifier(_ANY, None, "blob") if hashed else None
            diff_check = Verifier(_ANY, None, "archive")
            splitter = Splitter(Nothing())
            for piece in decompress(chunks(check), options.compression):
                if diff:
                    diff_check.update(piece)
                if split:
                    splitter.feed(piece)

        return action

    timed("decode", len(data), stage(hashed=False, diff=False, split=False))
    timed("+ sha256 of the blob", len(data), stage(hashed=True, diff=False, split=False))
    timed("+ sha256 of the archive", len(data), stage(hashed=True, diff=True, split=False))
    timed("+ tar", len(data), stage(hashed=True, diff=True, split=True))

    header = tarfile.TarInfo("usr/share/doc/package/copyright").tobuf(tarfile.USTAR_FORMAT)
    count = 100_000

    def headers() -> None:
        splitter = Splitter(Nothing(), max_entries=count)
        for _ in range(count // 1000):
            splitter.feed(header * 1000)

    spent = min(_once(headers) for _ in range(3))
    print(f"headers alone: {count / spent:,.0f} a second")


if __name__ == "__main__":
    main()
