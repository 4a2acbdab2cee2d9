"""Small sinks that worker processes of these tests load by name."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Any


class NoteSink:
    """Writes one line for each member, and the SHA-256 of raw bytes and contents together; ``recheck`` compares a file."""

    wants_raw = True

    def __init__(self, staging_fd: int, options: dict[str, Any]) -> None:
        self.staging, self.options = staging_fd, options
        self.lines: list[list[Any]] = []
        self.all = hashlib.sha256()
        self.size = 0
        behave = options.get("behave")
        if behave == "hang":
            time.sleep(3600)
        if behave == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if behave == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if behave == "exit":
            print("going away", flush=True)  # stdout is not the channel
            os._exit(3)
        if behave == "defect":
            raise RuntimeError("a defect")
        if behave == "full":
            raise OSError(28, "No space left on device")
        if behave == "memory":
            self.hoard = bytearray(2 << 30)
        if behave == "babble":
            for descriptor in range(3, 20):
                try:
                    os.write(descriptor, b"nonsense\n")
                except OSError:
                    continue

    def raw(self, data: bytes | memoryview) -> None:
        self.all.update(data)

    def entry(self, entry: Any) -> None:
        self.lines.append([entry.path.decode(), chr(entry.type), None])

    def file(self, entry: Any, body: memoryview) -> None:
        self.all.update(body)
        self.lines.append([entry.path.decode(), "0", hashlib.sha256(body).hexdigest()])

    def begin_file(self, entry: Any) -> None:
        self.large = hashlib.sha256()
        self.lines.append([entry.path.decode(), "0", None])

    def write(self, piece: memoryview) -> None:
        self.all.update(piece)
        self.large.update(piece)

    def end_file(self) -> None:
        self.lines[-1][2] = self.large.hexdigest()

    def finish(self) -> dict[str, Any]:
        descriptor = os.open(
            "notes", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self.staging
        )
        os.write(descriptor, json.dumps(self.lines).encode())
        os.close(descriptor)
        shared = self.options.get("shared")
        names = sorted(os.listdir(shared)) if shared is not None else None
        return {
            "sha256": self.all.hexdigest(),
            "lines": len(self.lines),
            "shared": names,
            "process": self.process() if self.options.get("behave") == "inspect" else None,
            "objects_new": 7,
        }

    def process(self) -> dict[str, Any]:
        """What this process may and has."""
        with open("/proc/self/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        return {
            "environment": dict(os.environ),
            "isolated": sys.flags.isolated,
            "no_new_privileges": status["NoNewPrivs"].strip(),
            "memory_kib": int(status["VmHWM"].split()[0]),
            "bounds": [
                resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_CORE, resource.RLIMIT_AS)
            ],
            "modules": sorted(
                name for name in sys.modules if name in {"trio", "pydantic", "pluggy", "ssl"}
            ),
            "directory": os.getcwd(),
            "session": os.getsid(0) == os.getpid(),
            "capabilities": sorted(
                {status[name].strip("0\t ") for name in ("CapPrm", "CapEff", "CapBnd")}
            ),
            "reached": self.reached(),
        }

    def reached(self) -> list[str]:
        """What this process can do and should not be able to."""
        attempts = {
            "read /etc/passwd": lambda: os.open("/etc/passwd", os.O_RDONLY),
            "read the root directory": lambda: os.listdir("/"),
            "write to /tmp": lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
            "leave staging": lambda: os.open(
                "../../escaped", os.O_CREAT | os.O_RDWR, dir_fd=self.staging
            ),
            "start a program": lambda: os.execv("/bin/true", ["true"]),
            "fork": os.fork,
            "signal the parent": lambda: os.kill(os.getppid(), 0),
            "make a device": lambda: os.mknod(
                "null", 0o20666, os.makedev(1, 3), dir_fd=self.staging
            ),
            "see another process": lambda: os.open(f"/proc/{os.getppid()}/environ", os.O_RDONLY),
            "listen": lambda: socket.socket().bind(("127.0.0.1", 0)),
            "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
        }
        found = []
        for name, attempt in attempts.items():
            try:
                attempt()
            except ConnectionRefusedError:
                found.append(name)
            except OSError:
                continue
            else:
                found.append(name)
        return found

    def abort(self) -> None:
        pass

    @classmethod
    def recheck(cls, staging_fd: int, options: dict[str, Any], finished: dict[str, Any]) -> bool:
        descriptor = os.open("notes", os.O_RDONLY, dir_fd=staging_fd)
        with os.fdopen(descriptor, "rb") as file:
            return len(json.load(file)) == finished["lines"]


class ForgetfulSink(NoteSink):
    """Cannot check again."""

    recheck = None  # type: ignore[assignment]
