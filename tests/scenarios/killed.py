"""Runs the real command line and dies by SIGKILL before durable step N; for tests and for ``make chaos-kill``.

usage: python killed.py N REPORT ARGUMENTS...      N = 0: die nowhere, write the list of steps to
REPORT
"""

import os
import signal
import sys

from bootc_core.cli.main import main
from bootc_core.fs import atomic

wanted, report = int(sys.argv[1]), sys.argv[2]
steps = []


def observer(step, path):
    steps.append(f"{step} {path}")
    if len(steps) == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


with atomic.observe(observer):
    status = main(sys.argv[3:])
with open(report, "w") as file:
    file.write("\n".join(steps))
sys.exit(status)
