"""Makes zstd:chunked layers as containers/storage does: for tests and benchmarks, since Debian's podman writes no tar-split yet."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import tarfile
from typing import Any, Final

from bootc_core.oci.compression import zstd_module

_SKIPPABLE: Final = 0x184D2A50
_PREFIX: Final = "io.github.containers.zstd-chunked."
_TYPES: Final = {
    tarfile.REGTYPE: "reg",
    tarfile.AREGTYPE: "reg",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.DIRTYPE: "dir",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


def _skippable(data: bytes) -> bytes:
    return struct.pack("<II", _SKIPPABLE, len(data)) + data


def compress(tar: bytes, level: int = 3) -> tuple[bytes, dict[str, str]]:
    """The layer's blob and its descriptor's annotations for the archive ``tar``."""
    zstd = zstd_module()
    blob = io.BytesIO()
    entries: list[dict[str, Any]] = []
    lines: list[bytes] = []
    position = 0

    def segment(end: int) -> None:
        nonlocal position
        data = tar[position:end]
        if data:
            blob.write(zstd.compress(data, level))
            payload = base64.b64encode(data).decode()
            lines.append(
                json.dumps({"type": 2, "payload": payload, "position": len(lines)}).encode()
            )
        position = end

    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        for member in archive:
            start = member.offset_data if member.isreg() else position
            if member.isreg():
                segment(start)
            content = tar[start : start + member.size] if member.isreg() else b""
            entry: dict[str, Any] = {
                "type": _TYPES[member.type],
                "name": member.name,
                "linkName": member.linkname,
                "mode": member.mode,
                "size": member.size if member.isreg() else 0,
                "uid": member.uid,
                "gid": member.gid,
                "modtime": "1970-01-01T00:00:00Z",
            }
            if content:
                entry["digest"] = "sha256:" + hashlib.sha256(content).hexdigest()
                entry["offset"] = blob.tell()
                blob.write(zstd.compress(content, level))
                entry["endOffset"] = blob.tell()
                lines.append(
                    json.dumps(
                        {
                            "type": 1,
                            "name": member.name,
                            "size": len(content),
                            "payload": "",
                            "position": len(lines),
                        }
                    ).encode()
                )
                position = start + len(content)
            entries.append({key: value for key, value in entry.items() if value not in ("", 0)})
    segment(len(tar))
    split_plain = b"\n".join(lines) + b"\n"
    split = zstd.compress(split_plain, level)
    toc_plain = json.dumps(
        {
            "version": 1,
            "entries": entries,
            "tarSplitDigest": "sha256:" + hashlib.sha256(split).hexdigest(),
        }
    ).encode()
    toc = zstd.compress(toc_plain, level)
    toc_at = blob.tell() + 8
    blob.write(_skippable(toc))
    split_at = blob.tell() + 8
    blob.write(_skippable(split))
    footer = struct.pack(
        "<7Q",
        toc_at,
        len(toc),
        len(toc_plain),
        1,
        split_at,
        len(split),
        len(split_plain),
    )
    blob.write(_skippable(footer + b"GNUlInUx"))
    return blob.getvalue(), {
        f"{_PREFIX}manifest-checksum": "sha256:" + hashlib.sha256(toc).hexdigest(),
        f"{_PREFIX}manifest-position": f"{toc_at}:{len(toc)}:{len(toc_plain)}:1",
        f"{_PREFIX}tarsplit-position": f"{split_at}:{len(split)}:{len(split_plain)}",
    }
