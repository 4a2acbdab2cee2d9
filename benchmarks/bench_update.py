#!/usr/bin/python3
"""Bytes on the wire for an update of 30 Debian packages: by the file (zstd:chunked) and by the layer, bootc and podman.

    bench_update.py CACHE [--json FILE]

Two real images of about 1 GB in 10 layers (`images.py`): v1, and v1 with 30 packages of two of its layers in another version that
Debian published (the 30 smallest of those that APT's cache below CACHE holds). podman packs both as zstd:chunked and as plain zstd.
Each contender pulls v1, then the update through a counting relay: everything that passes is counted, headers too.

bootc (pull)      fetch and import of the layers into a repository with v1, as the first half of an upgrade does
bootc (upgrade)   the whole command: image, boot entry, syncs, reading back
podman            ``podman pull`` with partial pulls enabled; the newest that installs here, in a chroot below CACHE

CPU is of the whole process tree (wait4), PSS its peak, sampled in a run of its own. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import images
from benchmarks.bench import PROJECT, Peers, Registry, execute, peak_memory
from demo import debian

PACKAGES = 30
LAYERS = (7, 8)
PULL = PROJECT / "benchmarks/pull_only.py"
INFO = "usr/lib/sysimage/dpkg"


class Relay:
    """Passes connections on to an address and counts the bytes in both directions."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self.count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            host, _, port = self._upstream.partition(":")
            server = socket.create_connection((host, int(port)))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    self.count += len(data)
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[int]]:
        """The bytes that pass meanwhile."""
        start = self.count
        found: list[int] = []
        yield found
        found.append(self.count - start)


# --- the second image -------------------------------------------------------------------------------------------------------


def plain_layer(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """A layer's archive."""
    blob = layout / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")
    return subprocess.run(["zstd", "-dqc", str(blob)], check=True, capture_output=True).stdout


def members(data: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """Members by name, with contents."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = data[member.offset_data : member.offset_data + member.size]
            found[member.name] = (member, content if member.isreg() else b"")
    return found


def merged(name: str) -> str:
    """A package's path in a system whose /bin, /lib and /sbin are in /usr."""
    name = name.removeprefix("./").rstrip("/")
    return f"usr/{name}" if name.startswith(("bin/", "sbin/", "lib/", "lib64/")) else name


def choose(cache: Path, layers: dict[int, dict[str, Any]], database: dict[str, Any]) -> list[Any]:
    """Package, its layer, its old files, and the archive of another version: the smallest ones."""
    status = database[f"{INFO}/status"][1].decode()
    installed = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (.*)$", paragraph, re.MULTILINE))
        if fields:
            installed[fields["Package"]] = fields["Version"]
    archives: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in (cache / "apt-archives").glob("*.deb"):
        name, version, _ = path.name.split("_")
        archives[name][version.replace("%3a", ":")] = path
    found = []
    for name, versions in archives.items():
        other = [path for version, path in versions.items() if version != installed.get(name)]
        if name not in installed or not other:
            continue
        entry = next(
            (
                database[key]
                for key in (f"{INFO}/info/{name}.list", f"{INFO}/info/{name}:amd64.list")
                if key in database
            ),
            None,
        )
        if entry is None:
            continue
        old = [merged(line[1:]) for line in entry[1].decode().splitlines() if line != "/."]
        homes = {
            number
            for number, held in layers.items()
            for path in old
            if path in held and held[path][0].isreg()
        }
        if len(homes) == 1 and homes <= set(LAYERS):
            found.append((other[0].stat().st_size, name, homes.pop(), old, other[0]))
    return sorted(found)[:PACKAGES]


def replace(held: dict[str, tuple[tarfile.TarInfo, bytes]], old: Sequence[str], deb: Path) -> None:
    """Put the files of ``deb`` in place of ``old``."""
    for path in old:
        if path in held and not held[path][0].isdir():
            del held[path]
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True)
    for name, (member, content) in members(data.stdout).items():
        path = merged(name)
        if path and (path not in held or not member.isdir()):
            member.name, member.uname, member.gname = path, "", ""
            if member.islnk():
                member.linkname = merged(member.linkname)
            held[path] = (member, content)


def archive(held: dict[str, tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """The layer's archive, in order of names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as out:
        for name in sorted(held, key=os.fsencode):
            member, content = held[name]
            out.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return stream.getvalue()


def build(cache: Path, layout: Path) -> list[str]:
    """Add the tag v1u to the layout; the packages that differ."""
    note = layout / "v1u.json"
    if note.exists():
        return list(json.loads(note.read_text()))
    blobs = layout / "blobs/sha256"

    def put(data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    index = json.loads((layout / "index.json").read_bytes())
    ref = "org.opencontainers.image.ref.name"
    (first,) = [entry for entry in index["manifests"] if entry["annotations"][ref] == "v1"]
    manifest = json.loads((blobs / first["digest"][7:]).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    held = {
        number: members(plain_layer(layout, layer))
        for number, layer in enumerate(manifest["layers"])
        if number in (*LAYERS, len(manifest["layers"]) - 1)
    }
    chosen = choose(
        cache, {number: held[number] for number in LAYERS}, held[len(manifest["layers"]) - 1]
    )
    for _, _, number, old, deb in chosen:
        replace(held[number], old, deb)
    for number in LAYERS:
        tar = archive(held[number])
        packed = subprocess.run(
            ["zstd", "-q", "-c", "-3", "-T1"], input=tar, check=True, capture_output=True
        )
        digest, size = put(packed.stdout)
        manifest["layers"][number] = {**manifest["layers"][number], "digest": digest, "size": size}
        config["rootfs"]["diff_ids"][number] = "sha256:" + hashlib.sha256(tar).hexdigest()
    digest, size = put(json.dumps(config).encode())
    manifest["config"] = {**manifest["config"], "digest": digest, "size": size}
    digest, size = put(json.dumps(manifest).encode())
    index["manifests"] = [
        entry for entry in index["manifests"] if entry["annotations"][ref] != "v1u"
    ]
    index["manifests"].append(
        {**first, "digest": digest, "size": size, "annotations": {ref: "v1u"}}
    )
    (layout / "index.json").write_text(json.dumps(index))
    names = [name for _, name, *_ in chosen]
    note.write_text(json.dumps(names))
    return names


# --- podman -----------------------------------------------------------------------------------------------------------------


class Podman:
    """podman in the peers' chroot, with a storage of its own below it."""

    def __init__(self, peers: Peers, name: str) -> None:
        self._peers = peers
        self._place = f"/var/tmp/bench-update-{name}"
        settings = peers.root / "etc/containers/storage.conf"
        settings.write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{self._place}/run"\ngraphroot = "{self._place}/graph"\n'
            '[storage.options.pull_options]\nenable_partial_images = "true"\n'
        )

    def command(self, *words: str) -> list[str]:
        """In a mount namespace of its own, so that nothing stays mounted."""
        script = 'for name in proc dev sys; do mount --rbind /$name "$1/$name"; done; root=$1; shift; exec chroot "$root" "$@"'
        return ["unshare", "-m", "sh", "-ec", script, "sh", str(self._peers.root), "podman", *words]

    def clear(self) -> None:
        """An empty storage."""
        shutil.rmtree(self._peers.root / self._place.lstrip("/"), ignore_errors=True)


def measured(command: Sequence[str]) -> float:
    """CPU seconds of a command and all its children."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:300]}\n{said[-2000:].decode(errors='replace')}")
    return used.ru_utime + used.ru_stime


def changed_bytes(layout_tag: Sequence[dict[str, Any]]) -> Counter[str]:
    """Sizes by digest."""
    return Counter({layer["digest"]: layer["size"] for layer in layout_tag})


def manifest_of(address: str, name: str) -> list[dict[str, Any]]:
    """The layers of an image in the registry."""
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{address}/{name}"],
        check=True,
        capture_output=True,
    ).stdout
    return list(json.loads(raw)["layers"])


def main() -> None:
    """Build what is missing, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    images.build(cache)
    layout = cache / "oci-zstd"
    scratch = cache / "update"
    scratch.mkdir(exist_ok=True)
    names = build(cache, layout)
    debian.say(f"{len(names)} packages: {' '.join(names)}")
    results: dict[str, dict[str, float]] = {}
    with Registry(scratch) as registry:
        relay = Relay(registry.address)
        peers = Peers(cache / "peers", scratch)
        podman = Podman(peers, "store")
        told = subprocess.run(
            podman.command("--version"), check=True, capture_output=True, text=True
        )
        version = told.stdout.split()[-1]
        for tag in ("v1", "v1u"):
            registry.push(layout, tag, f"os/plain:{tag}")
        if not (scratch / "chunked").exists():
            podman.clear()
            for tag in ("v1", "v1u"):
                plain = f"{registry.address}/os/plain:{tag}"
                execute(podman.command("pull", "-q", "--tls-verify=false", plain))
                execute(
                    podman.command(
                        *(
                            "push",
                            "-q",
                            "--tls-verify=false",
                            "--compression-format",
                            "zstd:chunked",
                        ),
                        *(
                            "--force-compression",
                            plain,
                            f"docker://{registry.address}/os/chunked:{tag}",
                        ),
                    )
                )
            (scratch / "chunked").touch()
        for kind in ("plain", "chunked"):
            old, new = (manifest_of(registry.address, f"os/{kind}:{tag}") for tag in ("v1", "v1u"))
            known = {layer["digest"] for layer in old}
            size = sum(layer["size"] for layer in new if layer["digest"] not in known)
            debian.say(f"{kind}: {size} bytes of changed layers")
            results[f"layers {kind}"] = {"bytes": size}
            place = scratch / "host"
            shutil.rmtree(place, ignore_errors=True)
            bootc = str(PROJECT / ".venv/bin/bootc")
            host = ["--sysroot", str(place)]
            tag = f"{relay.address}/os/{kind}"
            execute([bootc, "switch", *host, "--no-signature-verification", f"{tag}:v1"])
            pull = [str(PROJECT / ".venv/bin/python"), str(PULL), f"docker://{tag}:v1u", str(place)]
            with relay.counting() as count:
                cpu = measured(pull)
            pss, _ = peak_memory(pull)
            results[f"bootc pull {kind}"] = {"bytes": count[0], "cpu": cpu, "pss": pss}
            whole = [bootc, "switch", *host, "--no-signature-verification", f"{tag}:v1u"]
            with relay.counting() as count:
                cpu = measured(whole)
            results[f"bootc upgrade {kind}"] = {"bytes": count[0], "cpu": cpu}
            podman.clear()
            execute(podman.command("pull", "-q", "--tls-verify=false", f"{tag}:v1"))
            with relay.counting() as count:
                cpu = measured(podman.command("pull", "-q", "--tls-verify=false", f"{tag}:v1u"))
            podman.clear()
            execute(podman.command("pull", "-q", "--tls-verify=false", f"{tag}:v1"))
            pss, _ = peak_memory(podman.command("pull", "-q", "--tls-verify=false", f"{tag}:v1u"))
            podman.clear()
            results[f"podman {version} {kind}"] = {"bytes": count[0], "cpu": cpu, "pss": pss}
    whole_bytes = results["layers plain"]["bytes"]
    print(f"\n{'':28}{'bytes':>12} {'of plain':>9} {'CPU s':>7} {'PSS MB':>7}")
    for name, row in results.items():
        spent, held = (f"{row[key]:.2f}" if key in row else "" for key in ("cpu", "pss"))
        share = 100 * row["bytes"] / whole_bytes
        print(f"{name:28}{int(row['bytes']):>12} {share:>8.1f}% {spent:>7} {held:>7}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"packages": names, "results": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
