"""The child process of one call to a plugin: ``python -I -m bootc_core.containment.child``, see ``messages``.

    this process          ends at TERM at once, so that a deadline is kept whatever the plugin does
     └─ the plugin        in a process namespace of its own where the kernel allows it: whatever it starts ends with it
         └─ a daemon      elsewhere (ordinary users) it becomes a child of this process, which ends it

Memory, processor time and core files are bounded; standard output is for the answer, so what the plugin prints goes to standard
error. The parent ends the whole process group in any case.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Final

from bootc_core import limits

SERVICE: Final = "service"  # argument of a child that runs as one
PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWPID: Final = 0x20000000


def _children() -> list[int]:
    """Processes whose parent is this one."""
    found, me = [], str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - hundreds of them
                    text = file.read()
            except OSError:
                continue
            if text.rpartition(b")")[2].split()[1].decode() == me:
                found.append(int(name))
    return found


def _sweep() -> None:
    """End all children; what they started becomes ours in turn, so as often as there are some."""
    for _ in range(limits.CHILD_SWEEPS):
        children = _children()
        if not children:
            return
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def _ended(child: int, answers: int) -> bool:
    """Wait until the child ends, or nobody is left to read its answer (False): as a service it would not end with its reader."""
    ends = os.pidfd_open(child)
    waiting = select.poll()
    waiting.register(ends, select.POLLIN)
    waiting.register(answers, 0)
    while True:
        for descriptor, _ in waiting.poll():
            return descriptor == ends


def confine(memory_bytes: int, *, service: bool = False) -> None:
    """Bound this process and what it starts, and give the plugin a process of its own; returns in that one.

    ``service``: systemd ends what is left, and in a process namespace root's ``systemctl`` would not find its PID 1.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    apart = service or libc.unshare(_CLONE_NEWPID) == 0  # an ordinary user may not
    if not apart:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child:

        def end(number: int, frame: object) -> None:
            _sweep()
            os._exit(128 + number)

        if not apart:
            signal.signal(signal.SIGTERM, end)
        answers = os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if not _ended(child, answers):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not apart:
            _sweep()
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(-code, signal.SIG_DFL) if -code not in {
                signal.SIGKILL,
                signal.SIGSTOP,
            } else None
            os.kill(os.getpid(), -code)
        os._exit(code & 0xFF)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    for kind, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, limits.WORKER_CPU_S),
    ):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def _plugin(request: dict[str, Any]) -> Any:
    from bootc_core.hooks import manager
    from bootc_core.hooks.discovery import PluginSource

    for path in reversed(request["path"]):
        if path not in sys.path:
            sys.path.insert(0, path)
    source = PluginSource(request["plugin"], request["module"], "", "", "")
    module = manager.import_plugin(source)
    manager.register(manager.new_manager(), module, source)  # the checks of the contract
    return module


def answer(request: dict[str, Any]) -> Any:
    """Call the hook; its answer as JSON."""
    import inspect

    import trio

    from bootc_core.containment import messages

    function = getattr(_plugin(request), request["hook"])
    arguments = messages.unpack(request["arguments"])
    wanted = [arguments[name] for name in inspect.signature(function).parameters]
    return messages.pack_answer(request["hook"], trio.run(function, *wanted))


def observe(request: dict[str, Any], lines: Iterator[bytes]) -> None:
    """Hand every event of the lines that follow to the plugin."""
    from bootc_core.models import events

    function = _plugin(request).bootc_on_event
    kinds = {kind.name: kind for kind in events.Event.__subclasses__()}
    for line in lines:
        value = json.loads(line)["event"]
        kind = kinds.get(value.pop("event"))
        if kind is not None:
            function(kind(**value))


def serve(stdin: IO[bytes], answers: int) -> None:
    """Read the request, answer it."""
    from bootc_core.containment import messages

    try:
        request = json.loads(stdin.readline(limits.CHILD_REQUEST_BYTES))
        os.environ.update(request["environment"])
        if request["hook"] == "bootc_on_event":
            observe(request, iter(stdin.readline, b""))
            said: dict[str, Any] = {"answer": None}
        else:
            said = {"answer": answer(request)}
    except BaseException as problem:  # whatever it is, it is the plugin's failure and told as such
        only: BaseException = problem
        while isinstance(only, BaseExceptionGroup):
            only = only.exceptions[0]
        said = {"error": messages.pack_error(only)}
    data = json.dumps({"protocol": messages.PROTOCOL, **said}).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


def main() -> None:
    """Serve one request."""
    memory = int(sys.argv[1]) if len(sys.argv) > 1 else limits.CHILD_MEMORY_BYTES
    confine(memory, service=sys.argv[2:] == [SERVICE])
    answers = os.dup(1)
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
