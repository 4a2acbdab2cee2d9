"""What the filter of system calls lets through on each machine, and what a kernel without one of the means costs."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from bootc_core.oci import sandbox

OWN = 4711
ALLOW, EPERM, ENOSYS, KILL = "allow", "EPERM", "ENOSYS", "kill"
RESULTS = {
    0x7FFF0000: ALLOW,
    0x00050001: EPERM,
    0x00050026: ENOSYS,
    0x80000000: KILL,
}


def judge(program: bytes, number: int, machine: str, argument: int = 0) -> str:
    """The filter's answer, by the rules of BPF."""
    data = struct.pack("=IIQQ", number, sandbox._AUDIT[machine], 0, argument)
    steps = [struct.unpack_from("HBBI", program, place) for place in range(0, len(program), 8)]
    place = accumulator = 0
    while True:
        code, then, otherwise, value = steps[place]
        place += 1
        if code == sandbox._LOAD:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == sandbox._RETURN:
            return RESULTS[value]
        else:
            taken = {
                sandbox._EQUAL: accumulator == value,
                sandbox._GREATER_EQUAL: accumulator >= value,
                sandbox._SET: bool(accumulator & value),
            }[code]
            place += then if taken else otherwise


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("network", [True, False])
def test_filter(machine, network):
    column = ["x86_64", "aarch64"].index(machine)
    program = sandbox.filter_for(machine, OWN, network=network)
    for numbers in sandbox._DENIED.values():
        if (number := numbers[column]) is not None:
            assert judge(program, number, machine) == EPERM
    for numbers in sandbox._SOCKETS.values():
        assert judge(program, numbers[column], machine) == (ALLOW if network else EPERM)
    read, write, openat = ((0, 1, 257), (63, 64, 56))[column]
    for number in (read, write, openat):
        assert judge(program, number, machine) == ALLOW
    assert judge(program, sandbox._CLONE3, machine) == ENOSYS
    assert judge(program, sandbox._CLONE[column], machine, 17) == EPERM, "a process"
    assert judge(program, sandbox._CLONE[column], machine, 0x3D0F00) == ALLOW, "a thread"
    assert judge(program, sandbox._KILL_CALL[column], machine, OWN) == ALLOW
    assert judge(program, sandbox._KILL_CALL[column], machine, OWN + 1) == EPERM


def test_another_machine_s_calls_end_the_process():
    program = sandbox.filter_for("x86_64", OWN, network=True)
    assert judge(program, 0, "aarch64") == KILL
    assert judge(program, 0x40000000, "x86_64") == EPERM, "the x32 numbers"


WITHOUT = """
import os
from bootc_core.oci import sandbox
sandbox._LANDLOCK_CREATE = 100_000  # no kernel has so many
os.uname = lambda: os.uname_result(("", "", "", "", "pdp11"))
print(sandbox.enter([], [], network=False))
open("/etc/passwd")
"""


def test_what_a_kernel_lacks_is_told_and_the_rest_takes_effect():
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT], capture_output=True, text=True, check=True
    )
    assert "Landlock (Function not implemented)" in done.stdout
    assert "seccomp (no list of system calls for pdp11)" in done.stdout
    assert "capabilities" not in done.stdout
