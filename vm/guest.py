"""A virtual machine that a test drives: wait for what its console says, type into a root shell, reboot it, kill it.

    with Guest(Path("disk.img"), forward={5000: port}) as guest:
        guest.wait_marker()
        print(guest.shell("uname -r"))

Serial port 0 is the console, port 1 a root shell (``vm/guest/``). The guest reaches nothing but the ``forward``ed ports, at
10.0.2.100. There is no use of KVM unless ``VM_ACCEL`` asks for it: on machines that are virtual themselves it may answer and
then fail.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Patience multiplies all waits: on an idle machine a boot takes half a minute under emulation, on a crowded one many
PATIENCE = float(os.environ.get("VM_PATIENCE", "1"))
BOOT_S = 420.0 * PATIENCE
_FIRMWARE = (
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
)


class GuestError(Exception):
    """The machine did not do what was waited for."""


class Guest:
    """One run of QEMU on a disk, from the first boot to power off."""

    def __init__(
        self,
        disk: Path,
        qemu: str,
        *,
        forward: Mapping[int, int] | None = None,
        memory_mib: int = 1024,
        log: Path | None = None,
        variables: Path | None = None,
        extra: tuple[str, ...] = (),
    ) -> None:
        """Start it.

        Args:
            disk: a raw image; changed.
            qemu: the program.
            forward: port in the guest (at 10.0.2.100) to port on this machine's loopback.
            memory_mib: of the guest.
            log: where its console is written.
            variables: the firmware's variables, kept from run to run; None: fresh ones.
            extra: more arguments of QEMU.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="bootc-vm."))
        self.log = log or self.directory / "console.log"
        self.log.write_bytes(b"")
        self._seen = 0
        shell, monitor = self.directory / "shell", self.directory / "monitor"
        network = "user,id=net,restrict=on"
        for inside, outside in (forward or {}).items():
            # a helper a connection: QEMU's own relay serves a single one
            network += f",guestfwd=tcp:10.0.2.100:{inside}-cmd:{sys.executable} {Path(__file__).resolve()} --relay {outside}"
        code, fresh = firmware()
        mine = variables or self.directory / "variables.fd"
        if not mine.exists():
            shutil.copy(fresh, mine)
        accel = os.environ.get("VM_ACCEL", "tcg,thread=multi")
        self.process = subprocess.Popen(
            [
                qemu,
                *("-machine", "q35", "-accel", accel),
                *("-cpu", os.environ.get("VM_CPU", "qemu64")),
                *("-smp", "2", "-m", str(memory_mib), "-display", "none", "-nodefaults"),
                *("-chardev", f"file,id=console,path={self.log}", "-serial", "chardev:console"),
                *("-chardev", f"socket,id=shell,path={shell},server=on,wait=off"),
                *("-serial", "chardev:shell"),
                *("-chardev", f"socket,id=monitor,path={monitor},server=on,wait=off"),
                *("-mon", "chardev=monitor,mode=readline"),
                *("-drive", f"if=none,id=disk,file={disk},format=raw,cache=writeback"),
                *("-device", "virtio-blk-pci,drive=disk,bootindex=1"),
                *("-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile="),
                *("-device", "virtio-rng-pci"),
                *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
                *("-drive", f"if=pflash,format=raw,unit=1,file={mine}"),
                *extra,
            ],
            stdin=subprocess.DEVNULL,
        )
        for _ in range(400):
            if shell.exists():
                break
            if self.process.poll() is not None:
                raise GuestError("qemu did not start")
            time.sleep(0.05)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(shell))
        self._buffer = b""

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(clean=exc[0] is None)

    def console(self, start: int = 0) -> str:
        """What the console said from byte ``start`` on."""
        with self.log.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")

    def wait_console(self, pattern: str, timeout_s: float = BOOT_S) -> re.Match[str]:
        """Wait for a match on the console after the last one found."""
        end = time.monotonic() + timeout_s
        while True:
            text = self.console(self._seen)
            if match := re.search(pattern, text):
                self._seen += len(text[: match.end()].encode("utf-8", "replace"))
                return match
            ended = self.process.poll() is not None
            if ended or time.monotonic() > end:
                why = "it ended" if ended else f"{timeout_s:g} s have passed"
                raise GuestError(f"no {pattern!r}: {why}; console:\n{self.console()[-4000:]}")
            time.sleep(0.1)

    def wait_marker(self, timeout_s: float = BOOT_S) -> dict[str, str]:
        """Wait until the next boot is complete; the fields of its marker."""
        match = self.wait_console(r"VM-MARKER ([^\r\n]*)[\r\n]", timeout_s)
        fields = dict(word.partition("=")[::2] for word in match[1].split())
        time.sleep(0.5)  # the shell is up by now; let it settle
        return fields

    def shell(self, command: str, *, timeout_s: float = 300.0, check: bool = True) -> str:
        """Run a command in the guest; its output.

        Raises:
            GuestError: it fails (with ``check``), or does not end in time.
        """
        while select.select([self._socket], [], [], 0)[0] and self._socket.recv(65536):
            pass
        self._buffer = b""
        tag = f"{time.time_ns():x}"
        self._socket.sendall(
            f"echo BEGIN-{tag}; ( {command} ) </dev/null 2>&1; rc=$?; echo; echo END-{tag}-$rc\n".encode()
        )
        end = time.monotonic() + timeout_s * PATIENCE
        pattern = re.compile(rb"\n?END-" + tag.encode() + rb"-(\d+)\r?\n")
        while not (match := pattern.search(self._buffer)):
            if not select.select([self._socket], [], [], max(0.0, end - time.monotonic()))[0]:
                raise GuestError(
                    f"{command!r} takes too long: {self._buffer.decode(errors='replace')}"
                )
            data = self._socket.recv(65536)
            if not data:
                raise GuestError(f"the machine ended during {command!r}")
            self._buffer += data
        # Firmware talks to this port, too: what came before the command's own output is not its
        output = (
            self._buffer[: match.start()]
            .partition(f"BEGIN-{tag}".encode())[2]
            .decode(errors="replace")
            .replace("\r\n", "\n")
        )
        if check and int(match[1]):
            raise GuestError(f"{command!r} failed ({int(match[1])}):\n{output}")
        return output.strip("\n")

    def send(self, command: str) -> None:
        """Start a command in the guest's shell and do not wait for it."""
        self._socket.sendall(command.encode() + b"\n")

    def reboot(self, timeout_s: float = BOOT_S) -> dict[str, str]:
        """Reboot from inside; the next boot's marker."""
        self.send("systemctl reboot --no-wall")
        return self.wait_marker(timeout_s)

    @staticmethod
    def clock() -> float:
        """Seconds of this machine."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let it run."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise GuestError("the machine ended by itself")

    def kill(self) -> None:
        """Pull the plug."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, clean: bool = True) -> None:
        """Power off, or pull the plug where that does not work."""
        if self.process.poll() is None and clean:
            try:
                self.send("systemctl poweroff --no-wall")
                self.process.wait(120)
            except (OSError, subprocess.TimeoutExpired):
                pass
        if self.process.poll() is None:
            self.kill()
        self._socket.close()
        if self.directory not in self.log.parents:
            shutil.rmtree(self.directory, ignore_errors=True)


def firmware() -> tuple[Path, Path]:
    """UEFI firmware and its empty variables."""
    for directory in (Path("/usr/share/OVMF"), Path("/usr/share/edk2/ovmf")):
        for code, variables in _FIRMWARE:
            if (directory / code).exists():
                return directory / code, directory / variables
    raise GuestError("no UEFI firmware: install the package ovmf")


def relay(port: int) -> None:
    """Join standard input and output to a port of the loopback: one connection of a guest."""
    remote = socket.create_connection(("127.0.0.1", port))
    waiting: list[Any] = [remote, 0]
    while True:
        ready, _, _ = select.select(waiting, [], [])
        if remote in ready:
            data = remote.recv(65536)
            if not data:
                return
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]
        if 0 in ready:
            data = os.read(0, 65536)
            if data:
                remote.sendall(data)
            else:
                waiting.remove(0)
                remote.shutdown(socket.SHUT_WR)


if __name__ == "__main__" and sys.argv[1:2] == ["--relay"]:
    relay(int(sys.argv[2]))
