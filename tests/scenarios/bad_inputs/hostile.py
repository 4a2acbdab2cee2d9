"""Runs the real command line and does something to the machine before a durable step; for the tests beside this file.

usage: python hostile.py STEP ACTION DIRECTORY ARGUMENTS...

STEP is a number (the N-th durable step), ``KIND`` or ``KIND:TEXT`` (the first step of that kind whose path contains TEXT).
ACTION:
    none              nothing; the steps are listed in the file that STEPS_FILE names
    fill              the file system of DIRECTORY is filled to the last block
    abort             it (ext4, errors=remount-ro, on the device that EXT4_DEVICE names) meets an error of its own
    flip:GLOB         one byte in the middle of each file that matches changes, behind the program's back
    cut:GLOB          each loses its second half;  empty:GLOB  each loses all of its content
                      (files that were there when the run began stay as they are)
    jump:SECONDS      the wall clock that this process sees jumps
"""

import contextlib
import os
import sys
import time
from pathlib import Path

from bootc_core.cli.main import main
from bootc_core.fs import atomic

wanted, action, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
steps = []
done = False
present = set(place.rglob("*"))


def is_it(step, path):
    if wanted.isdigit():
        return len(steps) == int(wanted)
    kind, _, text = wanted.partition(":")
    return step == kind and text in path


def fill():
    """With blocks of falling size, so that nothing of ours fits any more; root's reserve is used up, too."""
    with open(place / "ballast", "ab") as file:
        for size in (1 << 20, 1 << 16, 1 << 12, 1 << 9, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\1" * size)
                    file.flush()
    os.sync()


def spoil(pattern, how):
    found = [path for path in sorted(place.glob(pattern)) if path.is_file() and path not in present]
    assert found, f"nothing matches {pattern}"
    for path in found:
        mode = path.stat().st_mode
        path.chmod(0o600)
        data = path.read_bytes()
        middle = len(data) // 2
        if how == "flip" and data:
            data = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
        elif how == "cut":
            data = data[:middle]
        elif how == "empty":
            data = b""
        with open(path, "r+b") as file:
            file.write(data)
            file.truncate(len(data))
            os.fsync(file.fileno())
        path.chmod(mode)


def observer(step, path):
    global done
    steps.append(f"{step} {path}")
    if done or not is_it(step, path):
        return
    done = True
    if action == "fill":
        fill()
    elif action == "abort":
        Path(f"/sys/fs/ext4/{os.environ['EXT4_DEVICE']}/trigger_fs_error").write_text("1")
    elif action.startswith("jump:"):
        shift, real = float(action[5:]), time.time
        time.time = lambda: real() + shift
    elif action != "none":
        how, _, pattern = action.partition(":")
        spoil(pattern, how)


with atomic.observe(observer):
    status = main(sys.argv[4:])
if "STEPS_FILE" in os.environ:
    Path(os.environ["STEPS_FILE"]).write_text("\n".join(steps) + "\n")
if not done and action != "none":
    sys.stderr.write(f"step {wanted} did not come\n")
    sys.exit(77)
sys.exit(status)
