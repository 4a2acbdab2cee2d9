"""What every row of the catalogue of bad inputs asks for: refused by class, the thing named, nothing changed, the next run good.

host = Host(tmp_path, template)            a sysroot with one good deployment, and a reference that can be pointed at images
before = host.snapshot()
done = host.upgrade_to(bad_layout)
assert_refused(done, "CON", "kargs.d/x.toml")
host.assert_unchanged(before)
host.assert_good_run()
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import images

from bootc_core.cli.main import main

CLI = (sys.executable, "-I", "-m", "bootc_core.cli.main")
HOSTILE = Path(__file__).parents[1] / "scenarios/bad_inputs/hostile.py"
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "BOOTC_ERROR_FORMAT": "json",
}

# Below SYSROOT/bootc: what a refused run may write. Everything else there is state.
_OURS = ("bootc/journal", "bootc/lock", "bootc/spool", "bootc/cache")
# Content of images that no deployment refers to, and what names it: kept for the next run, removed by its cleaning up.
_STORES = (
    "composefs/images/",
    "composefs/streams/",
    "composefs/objects/",
    "ostree/repo/objects/",
    "ostree/repo/tmp/",
    "ostree/repo/state/",
    "ostree/repo/refs/heads/ostree/container/blob/",
)

Tree = dict[str, tuple[Any, ...]]


def tree(root: Path) -> Tree:
    """Everything below ``root``: type, mode, owner, and content or target, by path."""
    found: Tree = {}
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(directory, name)
            info = path.lstat()
            content: str | int = ""
            if stat.S_ISREG(info.st_mode):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                content = info.st_rdev
            key = str(path.relative_to(root))
            found[key] = (stat.filemode(info.st_mode), info.st_uid, info.st_gid, content)
    return found


def state_of(sysroot: Path) -> Tree:
    """``tree`` without what a refused run may write."""
    return {
        path: what
        for path, what in tree(sysroot).items()
        if not path.startswith(_OURS) and path not in {"bootc", "lost+found"}
    }


def difference(before: Tree, after: Tree) -> list[str]:
    """What changed, one line each; new unnamed content of a store does not count."""
    lines = [f"gone: {path}" for path in before if path not in after]
    lines += [
        f"changed: {path}" for path in before if path in after and before[path] != after[path]
    ]
    lines += [
        f"new: {path}" for path in after if path not in before and not path.startswith(_STORES)
    ]
    return lines


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The error in JSON that the run printed last."""
    found = [line for line in done.stderr.splitlines() if line.startswith('{"error"')]
    assert found, f"no error told; status {done.returncode}:\n{done.stdout}{done.stderr}"
    error: dict[str, str] = json.loads(found[-1])["error"]
    return error


def assert_refused(
    done: subprocess.CompletedProcess[str], catalogue: str | Sequence[str], *names: str
) -> dict[str, str]:
    """Exit status, class, the thing named, no traceback; returns the error."""
    assert done.returncode in {1, 2}, f"status {done.returncode}:\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    error = error_of(done)
    wanted = {catalogue} if isinstance(catalogue, str) else set(catalogue)
    assert error["class"] in wanted, error
    text = " ".join(error.values())
    for name in names:
        assert name in text, error
    assert text.isprintable(), error
    return error


OS = 'ID=acme\nPRETTY_NAME="Acme {0}"\nVERSION_ID={0}\n'


def layers(version: str, more: images.Layer | None = None) -> list[images.Layer]:
    """A bootable image in two layers; ``more`` goes into the second."""
    base = images.bootable({"etc/issue": "issue\n", "etc/gone": "gone\n", "var/lib/seed": "seed\n"})
    base["usr/lib/os-release"] = OS.format(version)
    files: dict[str, images.Item] = {
        f"usr/share/{version}/{number}": f"{version} {number} ".encode() * 40 for number in range(4)
    }
    files["usr/lib/bootc/kargs.d/10.toml"] = f'kargs = ["version={version}"]\n'
    return [base, {**files, **(more or {})}]


def build(path: Path, version: str, more: images.Layer | None = None, **how: Any) -> Path:
    """A layout with an image of that version."""
    images.build(path, layers(version, more), labels={"version": version}, **how)
    return path


@dataclass
class Host:
    """A sysroot in ``place/host``; its reference is ``place/live``, a link to a layout."""

    place: Path
    backend: str = "composefs"
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()  # a program that runs the command: strace, setpriv, prlimit
    flags: tuple[str, ...] = ()  # after the subcommand

    @property
    def sysroot(self) -> Path:
        return self.place / "host"

    @property
    def live(self) -> Path:
        return self.place / "live"

    def serve(self, layout: Path) -> None:
        """What the host's reference names from now on."""
        self.live.unlink(missing_ok=True)
        self.live.symlink_to(layout)

    def run(
        self,
        *arguments: str | Path,
        prefix: Sequence[str | Path] = (),
        cli: Sequence[str | Path] = CLI,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
        **how: Any,
    ) -> subprocess.CompletedProcess[str]:
        """The real command line in a process of its own."""
        how.setdefault("stdin", subprocess.DEVNULL)
        if "stdout" not in how and "stderr" not in how:
            how["capture_output"] = True
        command = [*prefix, *self.prefix, *cli, arguments[0], *self.flags, *arguments[1:]]
        return subprocess.run(
            [str(part) for part in command],
            text=True,
            timeout=timeout,
            check=False,
            env={**ENVIRONMENT, **self.environment, **(env or {})},
            **how,
        )

    def command(
        self, command: str, *more: str | Path, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        return self.run(command, "--sysroot", self.sysroot, *more, **how)

    def switch(self, *more: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
        """Deploy what ``live`` names, for the first time."""
        return self.command("switch", *self.switch_flags(), *more, self.live, **how)

    def switch_flags(self) -> tuple[str, ...]:
        return ("--backend", self.backend, "--no-signature-verification", "--transport", "oci")

    def upgrade(self, *more: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
        return self.command("upgrade", *more, **how)

    def hostile(
        self, step: str, action: str, *arguments: str | Path, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """The command with ``action`` done to the machine before the durable step ``step`` (see hostile.py)."""
        cli = (sys.executable, "-I", HOSTILE, step, action, self.sysroot)
        return self.run(*arguments, "--sysroot", self.sysroot, cli=cli, **how)

    def status(self) -> dict[str, Any]:
        """In this process, since it is asked so often; the tests that are about status run the command."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            returned = main(["status", "--json", "--sysroot", str(self.sysroot), *self.flags])
        assert returned == 0, out.getvalue()
        found: dict[str, Any] = json.loads(out.getvalue())["status"]
        return found

    def versions(self) -> tuple[str | None, str | None, str | None]:
        """Versions that are staged, boot next, and are kept for rollback."""
        status = self.status()

        def version(slot: dict[str, Any] | None) -> str | None:
            return slot["image"]["version"] if slot and slot["image"] else None

        return version(status["staged"]), version(status["booted"]), version(status["rollback"])

    def snapshot(self) -> Tree:
        return state_of(self.sysroot)

    def assert_unchanged(self, before: Tree) -> None:
        """Deployments, boot entries, origins, trust: byte for byte as before."""
        assert difference(before, self.snapshot()) == []
        assert not [path for path in before if ".bootc-tmp-" in path]

    def objects(self) -> set[str]:
        objects = self.sysroot / "composefs/objects"
        return {str(path.relative_to(objects)) for path in objects.rglob("*") if path.is_file()}

    def assert_good_run(
        self, good: Path, version: str = "2", clean: set[str] | None = None
    ) -> None:
        """The next good run succeeds, and nothing of the bad one is left (``clean``: objects of a host that never saw it)."""
        self.serve(good)
        before = self.versions()[1]
        done = self.upgrade() if before is not None else self.switch()
        assert done.returncode == 0, done.stderr
        assert self.versions() == (None, version, before)
        left = [
            path
            for path in self.sysroot.rglob("*")
            if path.name.startswith((".bootc-tmp-", ".tmp-")) or path.parent.name == "spool"
        ]
        assert left == []
        if clean is not None:
            assert self.objects() == clean


def template(place: Path, backend: str = "composefs") -> tuple[Host, dict[str, Path]]:
    """A host that boots version 1, and layouts of the versions 1, 2 and 3."""
    layouts = {version: build(place / "images" / version, version) for version in ("1", "2", "3")}
    host = Host(place, backend)
    host.serve(layouts["1"])
    done = host.switch()
    assert done.returncode == 0, done.stderr
    return host, layouts


def copy(host: Host, place: Path) -> Host:
    """The same host in ``place``: same images, same reference (whose path is the template's)."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", host.sysroot, place / "host"], check=True)
    return Linked(place, host.backend, reference=host.live)


@dataclass
class Linked(Host):
    """A copied host: its reference is the one that the template was deployed from."""

    reference: Path = Path()

    @property
    def live(self) -> Path:
        return self.reference


def wipe(path: Path) -> None:
    """Remove ``path``, deployments of libostree included, which are immutable."""
    for deployment in path.glob("ostree/deploy/*/deploy/*.?"):
        subprocess.run(["chattr", "-i", deployment], check=False, capture_output=True)
    shutil.rmtree(path, ignore_errors=True)
    assert not path.exists()
