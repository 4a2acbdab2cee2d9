"""No input makes the process tree larger than 256 MiB (proportional set size, all processes together, sampled while it runs).

A few inputs here; with BOOTC_MEMORY=all (``make bound-memory``) large ones, too, and the figures are printed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from backports import zstd
from support import images
from support.archives import END, header, member, pax
from support.refusal import CLI, ENVIRONMENT, error_of

ALL = os.environ.get("BOOTC_MEMORY") == "all"
BOUND = 256 << 20
MIB = 1 << 20


class Peak:
    """The largest sum of PSS of a process and all below it, in bytes."""

    def __init__(self, pid: int) -> None:
        self.pid, self.bytes, self._end = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            self.bytes = max(self.bytes, sum(map(self._pss, self._tree())))

    def _tree(self) -> list[int]:
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    children = Path(f"/proc/{pid}/task/{task}/children").read_text()
                    todo += [int(child) for child in children.split()]
            except OSError:
                continue
        return found

    @staticmethod
    def _pss(pid: int) -> int:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return 0
        return next(
            (int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0
        )

    def end(self) -> int:
        self._end.set()
        self._thread.join()
        return self.bytes


def measured(*arguments: object) -> tuple[subprocess.CompletedProcess[str], int]:
    command = [*CLI, *map(str, arguments)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        peak = Peak(running.pid)
        out, err = running.communicate(timeout=900)
    return subprocess.CompletedProcess(command, running.returncode, out, err), peak.end()


def zeros_in_gzip(size: int) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=0) as file:
        for _ in range(size // MIB):
            file.write(bytes(MIB))
    return out.getvalue()


def image_of(place: Path, blob: bytes, kind: str, diff_id: str | None = None) -> Path:
    """A bootable image with one more layer, whose blob is ``blob`` whatever that is."""
    small = images.build(place, [images.bootable(), b"x" * 512], compression=["gzip", kind])
    import json

    manifest = json.loads(small.manifest_document.raw)
    config = json.loads(small.config_document.raw)

    def put(data: bytes) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (place / "blobs/sha256" / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    config["rootfs"]["diff_ids"][1] = diff_id or "sha256:" + "0" * 64
    manifest["config"] |= put(json.dumps(config).encode())
    manifest["layers"][1] |= put(blob)
    index = json.loads((place / "index.json").read_text())
    index["manifests"][0] |= put(json.dumps(manifest).encode())
    (place / "index.json").write_text(json.dumps(index))
    return place


HOSTILE = {
    "gzip bomb": lambda: (zeros_in_gzip((2048 if ALL else 400) * MIB), "gzip"),
    "zstd bomb": lambda: (zstd.compress(bytes((1024 if ALL else 400) * MIB), 3), "zstd"),
    "pax header that claims 3 GiB": lambda: (
        header(b"x", kind=b"x", size=3 << 30) + bytes(2048),
        "none",
    ),
    "pax header of 200 MiB": lambda: (
        pax({b"comment": b"x" * (200 * MIB)}) + member() + END,
        "none",
    ),
    "digits without end": lambda: (pax(b"9" * (8 * MIB)) + END, "none"),
    "extended headers without end": lambda: (
        pax({b"comment": b"y" * 900_000}) * 40 + member() + END,
        "none",
    ),
    "names of 4096 bytes": lambda: (
        b"".join(pax({b"path": b"/".join([b"%0100d" % n] * 40)}) + member() for n in range(3000))
        + END,
        "none",
    ),
}


@pytest.mark.parametrize("name", HOSTILE if ALL else ["zstd bomb", "pax header that claims 3 GiB"])
def test_hostile_layers(name, tmp_path):
    blob, kind = HOSTILE[name]()
    layout = image_of(tmp_path / "image", blob, kind)
    done, peak = measured(
        *("switch", "--sysroot", tmp_path / "host", "--no-signature-verification"),
        *("--transport", "oci", layout),
    )
    print(f"{name}: {peak / MIB:.0f} MiB")
    assert done.returncode == 1, done.stdout
    assert error_of(done)["class"] in {"LIM", "INT", "CON"}
    assert peak < BOUND, f"{peak / MIB:.0f} MiB"


def test_large_files_and_their_check(tmp_path):
    """One file of many MiB, through import, upgrade path and ``bootc fsck``."""
    size = (1024 if ALL else 96) * MIB
    piece = random.Random(1).randbytes(MIB)
    plain, check = io.BytesIO(), hashlib.sha256()
    compressor = zstd.ZstdCompressor(level=1)
    head = header(b"usr/big", size=size)
    for data in (head, *[piece] * (size // MIB), END):
        check.update(data)
        plain.write(compressor.compress(data))
    plain.write(compressor.flush())
    layout = image_of(tmp_path / "image", plain.getvalue(), "zstd", f"sha256:{check.hexdigest()}")
    done, peak = measured(
        *("switch", "--sysroot", tmp_path / "host", "--no-signature-verification"),
        *("--transport", "oci", layout),
    )
    assert done.returncode == 0, done.stderr
    checked, second = measured("fsck", "--sysroot", tmp_path / "host")
    assert checked.returncode == 0, checked.stderr
    print(f"a file of {size // MIB} MiB: import {peak / MIB:.0f} MiB, fsck {second / MIB:.0f} MiB")
    assert max(peak, second) < BOUND


def test_many_entries(tmp_path):
    """Memory is linear in entries; design: below 150 MB up to 50,000."""
    count = 100_000 if ALL else 10_000
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(count):
            info = tarfile.TarInfo(f"usr/share/{number // 500}/{number}")
            info.size = 8
            archive.addfile(info, io.BytesIO(b"%08d" % number))
    layout = tmp_path / "image"
    images.build(layout, [images.bootable(), out.getvalue()], compression="zstd")
    done, peak = measured(
        *("switch", "--sysroot", tmp_path / "host", "--no-signature-verification"),
        *("--transport", "oci", layout),
    )
    assert done.returncode == 0, done.stderr
    checked, second = measured("fsck", "--sysroot", tmp_path / "host")
    assert checked.returncode == 0, checked.stderr
    print(f"{count} entries: import {peak / MIB:.0f} MiB, fsck {second / MIB:.0f} MiB")
    assert max(peak, second) < BOUND


def test_the_measurement_sees_children():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = b\"a\" * (300 << 20); import time; time.sleep(1)'])"
    with subprocess.Popen([sys.executable, "-c", code]) as running:
        peak = Peak(running.pid)
        running.wait()
    assert peak.end() > BOUND
