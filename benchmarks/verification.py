"""What checking one signature adds to ``bootc upgrade --check``: the same check of the same update, unsigned and signed.

    python benchmarks/verification.py [ROUNDS]

A real registry on loopback, the real command in a process of its own, rounds alternating between the kinds so that a busy
machine slows all of them; medians and the difference to ``any`` (policy.json accepts anything) in milliseconds, of the clock and of
the processor (which a busy machine changes least).
    any       no signature is asked for
    classic   sigstoreSigned with a key, cosign's tag
    bundle    a trust policy with a key, bundle as a referrer (fallback tag)
    keyless   a trust policy with an identity: the sigstore package and a trusted root
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import images
from support.registry import Registry, running_registry
from support.signing import (
    IDENTITY,
    ISSUER,
    Authority,
    b64,
    classic,
    key_bundle,
    payload,
    pem,
    statement,
)

KINDS = ("any", "classic", "bundle", "keyless")
OCI = "application/vnd.oci."
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


class Layout:
    """An OCI layout that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, data: bytes) -> dict[str, object]:
        name = images.digest(data)
        (self.path / "blobs/sha256" / name.partition(":")[2]).write_bytes(data)
        return {"digest": name, "size": len(data)}

    def tag(self, tag: str, document: dict[str, object]) -> dict[str, object]:
        data = json.dumps(document).encode()
        entry = {"mediaType": document["mediaType"], **self.put(data)}
        path = self.path / "index.json"
        index = json.loads(path.read_text())
        index["manifests"].append(
            {**entry, "annotations": {"org.opencontainers.image.ref.name": tag}}
        )
        path.write_text(json.dumps(index))
        return entry


def push_signed(
    registry: Registry, layout: Layout, digest: str, kind: str, name: str
) -> dict[str, object]:
    """Attach a signature of ``kind``; the files of the configuration that demand it."""
    key = ec.generate_private_key(ec.SECP256R1())
    config = {"mediaType": OCI + "image.config.v1+json", **layout.put(b"{}")}
    tag = digest.replace(":", "-")
    if kind == "classic":
        item = classic(key, payload(digest, name))
        layer = {
            "mediaType": item.media_type,
            **layout.put(item.payload),
            "annotations": item.annotations,
        }
        layout.tag(
            tag + ".sig",
            {
                "schemaVersion": 2,
                "mediaType": OCI + "image.manifest.v1+json",
                "config": config,
                "layers": [layer],
            },
        )
        registry.push(layout.path, f"{name.partition('/')[2]}:{tag}.sig")
        return {"key": pem(key)}
    authority = Authority()
    if kind == "bundle":
        data = key_bundle(key, statement(digest))
    else:
        data = json.dumps(
            authority.bundle(statement(digest), authority.certificate(key), key)
        ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI + "image.manifest.v1+json",
        "artifactType": BUNDLE,
        "config": config,
        "layers": [{"mediaType": BUNDLE, **layout.put(data)}],
        "subject": {"mediaType": OCI + "image.manifest.v1+json", "digest": digest, "size": 1},
    }
    entry = layout.tag("referrer", manifest)
    layout.tag(
        tag,
        {"schemaVersion": 2, "mediaType": OCI + "image.index.v1+json", "manifests": [entry]},
    )
    registry.push(layout.path, f"{name.partition('/')[2]}:{tag}")
    return {"key": pem(key), "root": authority.trusted_root()}


def configure(root: Path, kind: str, name: str, files: dict[str, object]) -> None:
    """policy.json, and a trust policy for the kinds that need one."""
    (root / "etc/containers").mkdir(parents=True)
    requirement: dict[str, object] = {"type": "insecureAcceptAnything"}
    if kind == "classic":
        requirement = {
            "type": "sigstoreSigned",
            "keyData": b64(files["key"]),
            "signedIdentity": {"type": "matchRepository"},
        }
    (root / "etc/containers/policy.json").write_text(json.dumps({"default": [requirement]}))
    if kind not in {"bundle", "keyless"}:
        return
    for file in ("key", "root"):
        (root / "etc" / file).write_bytes(files[file])  # type: ignore[arg-type]
    who = (
        'key = "/etc/key"'
        if kind == "bundle"
        else f'identity = "{IDENTITY}"\nissuer = "{ISSUER}"\ntrusted_root = "/etc/root"'
    )
    (root / "etc/bootc/trust.d").mkdir(parents=True)
    (root / "etc/bootc/trust.d/x.toml").write_text(
        f'repository = "{name}"\npolicy_json = "instead"\n[[signer]]\nname = "a"\n{who}\n'
    )


def bootc(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bootc_core.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bootc {arguments}: {done.stderr}")
    return done.stdout


def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory, running_registry(Path(directory)) as registry:
        place = Path(directory)
        commands = {}
        for kind in KINDS:
            name = f"{registry.authority}/acme/{kind}"
            layout = Layout(place / f"layout-{kind}")
            images.build(layout.path, [images.bootable()], tag="old")
            new = images.build(layout.path, [images.bootable({"etc/n": "2"})], tag="new")
            registry.push(layout.path, f"acme/{kind}:x", tag="old")
            root, sysroot = place / f"config-{kind}", place / f"sysroot-{kind}"
            where = ("--sysroot", sysroot, "--config-root", root)
            loose = place / f"loose-{kind}"
            configure(loose, "any", name, {})
            bootc("switch", "--sysroot", sysroot, "--config-root", loose, f"{name}:x")
            registry.push(layout.path, f"acme/{kind}:x", tag="new")
            files = {} if kind == "any" else push_signed(registry, layout, new.digest, kind, name)
            configure(root, kind, name, files)
            commands[kind] = ("upgrade", "--check", *where)
            told = bootc(*commands[kind])
            if ("Accepted" in told) is (kind == "any"):
                raise SystemExit(f"{kind}: {told}")
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        work: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind in KINDS:
                begin, before = time.perf_counter(), processor()
                bootc(*commands[kind])
                times[kind].append((time.perf_counter() - begin) * 1000)
                work[kind].append((processor() - before) * 1000)
    print(
        f"upgrade --check, an update is there, {rounds} rounds: median ms (least), least processor ms"
    )
    for kind in KINDS:
        middle, spent = statistics.median(times[kind]), min(work[kind])
        more = middle - statistics.median(times["any"]), spent - min(work["any"])
        print(
            f"{kind:8} {middle:7.1f} ({min(times[kind]):.1f}) {spent:7.1f}"
            f"   {more[0]:+.1f}, processor {more[1]:+.1f}"
        )


def processor() -> float:
    """Seconds of processor time of all programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
