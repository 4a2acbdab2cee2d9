"""Runs inside of a deployment, as on the host that booted it; see ``test_live.py``.

usage: python live_host.py COMMAND...     commands: switch=PATH, download, upgrade, rollback, discard, lock, unlock, prune

Prints a JSON list: for each command what it came to, and the status document after it.
"""

import json
import sys
from pathlib import Path

import trio

from bootc_core.config import Config
from bootc_core.engine import orchestrator, plan, sysroots
from bootc_core.engine.notice import read_notice, write_notice
from bootc_core.hooks import manager
from bootc_core.models.context import Operation, SignatureMode
from bootc_core.models.notice import StagedNotice
from bootc_core.models.reference import ImageReference, Transport
from bootc_core.models.sysroot import Sysroot

plugins = manager.load()
storage = sysroots.open_storage(
    Sysroot(Path("/sysroot"), Path("/boot"), live=True), plugins, Config()
)
assert storage is not None
found = []


async def run(command: str) -> str:
    name, _, target = command.partition("=")
    operation = Operation.ROLLBACK if name == "rollback" else Operation.UPGRADE
    notice = read_notice(storage)
    if name in {"lock", "unlock"}:
        if notice is None:
            return "nothing"
        write_notice(storage, StagedNotice(notice.staged, name == "lock", notice.digest))
        return name
    async with orchestrator.transaction(
        plugins, storage, [], operation, target, SignatureMode.INSECURE
    ) as (transaction, host):
        if name == "rollback":
            return (await orchestrator.roll_back(transaction, host)).kind
        if name == "discard":
            await transaction.discard(notice.staged)
            return name
        if name == "prune":
            await transaction.prune()
            return name
        if target:
            reference = ImageReference.make(Transport.OCI, target)
            wanted = plan.Target(Operation.SWITCH, reference, SignatureMode.INSECURE)
        else:
            wanted = plan.plan_upgrade(host, SignatureMode.INSECURE, None)
        done = await orchestrator.deploy(
            transaction, host, wanted, download_only=name == "download"
        )
        return done.kind


for command in sys.argv[1:]:
    told = trio.run(run, command)
    notice = read_notice(storage)
    staged = [notice.staged.deployment_id, notice.locked, notice.digest] if notice else None
    status = storage.read_host(lambda message: None).to_json()
    found.append({"told": told, "notice": staged, "host": status})
print(json.dumps(found))
