"""Commands of the running host that its units call, at boot and at shutdown."""

from __future__ import annotations

import argparse
import sys
import time

import trio

from bootc_core import limits
from bootc_core.cli import common, deploy, outputs
from bootc_core.engine import orchestrator
from bootc_core.engine.notice import read_notice
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import TransactionError
from bootc_core.hooks.manager import Plugins
from bootc_core.models.context import Operation

_LOCK_WAIT_S = 60.0  # a run that the shutdown is ending has to let go of the lock


def finalize_staged(arguments: argparse.Namespace) -> int:
    """``bootc composefs-finalize-staged``: at shutdown, make what is staged boot next, unless it waits for more.

    Only backend and bootloader are called: no gate, no participant, no observer of others.
    """
    _, plugins, storage = common.existing(arguments, write=True)
    notice = read_notice(storage)
    if notice is None or notice.locked:
        sys.stdout.write(
            "Nothing is staged.\n"
            if notice is None
            else "What is staged waits for bootc upgrade --from-downloaded.\n"
        )
        return 0
    return deploy.run(lambda: _finalize(arguments, plugins, storage))


async def _finalize(arguments: argparse.Namespace, plugins: Plugins, storage: Storage) -> int:
    end = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return await _finalize_once(arguments, plugins, storage)
        except TransactionError as problem:
            if problem.reference != "locked" or time.monotonic() > end:
                raise
            await trio.sleep(limits.RETRY_WAIT_S)


async def _finalize_once(arguments: argparse.Namespace, plugins: Plugins, storage: Storage) -> int:
    async with orchestrator.transaction(
        plugins, storage, outputs.observers(arguments), Operation.FINALIZE, "", quiet=True
    ) as (run, host):
        notice = read_notice(storage)  # again: what was interrupted is gone now
        if notice is not None and not notice.locked:
            await orchestrator.finalize_staged(run, host, notice)
            sys.stdout.write(f"Boots next: {notice.staged.deployment_id[:12]}\n")
    return 0
