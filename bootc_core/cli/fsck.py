"""``bootc fsck``: checks everything that a sysroot holds, names what is damaged, and with ``--repair`` puts back what it can.

    check     journal, notice, boot entries here; objects, images, references, deployments, boot files by the backend
    repair    records that can be given up go; each deployed image is resolved, verified by policy and put back by the backend
    again     the same check: what is still wrong decides the exit status

Holds the sysroot's lock, so that nothing is half made on purpose while it looks; a read-only one is checked without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bootc_core import limits
from bootc_core.cli import checking, common, deploy
from bootc_core.engine import journal as journals
from bootc_core.engine import orchestrator, plan
from bootc_core.engine.lock import exclusive
from bootc_core.engine.notice import read_notice
from bootc_core.engine.plan import Target
from bootc_core.errors import (
    BootcError,
    ContentError,
    PluginError,
    StorageError,
    TransportError,
    printable,
)
from bootc_core.fs import atomic
from bootc_core.models.context import Operation, SignatureMode
from bootc_core.models.finding import Counted, Cure, Finding
from bootc_core.models.reference import ImageReference, Transport

if TYPE_CHECKING:
    from bootc_core.engine.sysroots import Storage
    from bootc_core.engine.transaction import Transaction
    from bootc_core.hooks.manager import Plugins
    from bootc_core.models.host import Deployment, HostStatus
    from bootc_core.models.image import VerifiedImage

_WORDS = {
    "object": "objects",
    "image": "images",
    "stream": "streams",
    "reference": "references",
    "commit": "commits",
    "deployment": "deployments",
    "entry": "boot entries",
    "journal": "journals",
}


@dataclass
class Report:
    """What one check found. ``findings`` is bounded (``limits.FINDINGS``), ``number`` is not."""

    findings: list[Finding] = field(default_factory=list)
    number: int = 0
    checked: Counter[str] = field(default_factory=Counter)


def fsck(arguments: argparse.Namespace) -> int:
    """``bootc fsck``."""
    _, plugins, storage = common.existing(arguments, write=arguments.repair or None)
    as_json = bool(arguments.json)
    with contextlib.ExitStack() as stack:
        if not arguments.repair:
            stack.enter_context(_locked(storage))
            report = _check(storage, show=not as_json)
            return _conclude(report, [], [], as_json=as_json, repaired=False)
    before, after, failures = deploy.run(lambda: _repair(arguments, plugins, storage))
    remaining = set(after.findings)
    mended = [one for one in before.findings if one not in remaining]
    return _conclude(after, mended, failures, as_json=as_json, repaired=True)


def _locked(storage: Storage) -> AbstractContextManager[None]:
    """The sysroot's lock; none where nobody can write anyway."""
    if os.statvfs(storage.sysroot.path).f_flag & os.ST_RDONLY:
        return contextlib.nullcontext()
    return exclusive(storage.sysroot, "fsck")


# --- check ----------------------------------------------------------------------------------------------------------------


def _check(storage: Storage, *, show: bool) -> Report:
    report = Report()
    for found in _everything(storage):
        if isinstance(found, Counted):
            report.checked[found.kind] += found.number
            continue
        report.number += 1
        if show and report.number <= limits.FINDINGS:
            sys.stdout.write(f"{printable(str(found), 600)}\n")
        if len(report.findings) < limits.FINDINGS:
            report.findings.append(found)
    return report


def _everything(storage: Storage) -> Iterator[Finding | Counted]:
    yield from check_journal(storage)
    yield from _check_notice(storage)
    complaints: list[str] = []
    entries = storage.bootloader.offer.read_entries(storage.sysroot, complaints.append)
    yield from (Finding("entry", "boot menu", text, Cure.HAND) for text in complaints)
    check = storage.backend.offer.check
    if check is None:
        raise PluginError(
            f"storage backend {storage.backend.offer.name} cannot check its sysroots",
            reference="no-provider",
            hint="its offer has no check; use that backend's own tools",
        )
    yield from check(storage.sysroot, entries)


def check_journal(storage: Storage) -> Iterator[Finding | Counted]:
    """Are all records whole, and is the newest run ended?"""
    directory = storage.sysroot.state / "journal"
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    except FileNotFoundError:
        return
    for name in names:
        with atomic.mapped("read", directory / name), (directory / name).open("rb") as file:
            data = file.read(limits.JOURNAL_BYTES + 1)
        whole = len(journals.parse(data))
        lines = data.count(b"\n")
        if len(data) > limits.JOURNAL_BYTES:
            yield Finding("journal", name, "larger than it may be", Cure.RECORD)
        elif whole < lines:
            yield Finding("journal", name, f"record {whole + 1} of {lines} is damaged", Cure.RECORD)
        elif data and not data.endswith(b"\n"):
            yield Finding("journal", name, "its last record is cut off", Cure.RECORD)
        elif name == names[-1] and not _ended(data):
            yield Finding("journal", name, "this run was interrupted", Cure.RECORD)
    yield Counted("journal", len(names))


def _ended(data: bytes) -> bool:
    records = journals.parse(data)
    return bool(records) and records[-1]["record"] == "end"


def _check_notice(storage: Storage) -> Iterator[Finding]:
    path = storage.sysroot.staged_file
    if path.exists() and read_notice(storage) is None:
        yield Finding(
            "notice", path.name, "it cannot be read, so nothing counts as staged", Cure.RECORD
        )


# --- repair ---------------------------------------------------------------------------------------------------------------


async def _repair(
    arguments: argparse.Namespace, plugins: Plugins, storage: Storage
) -> tuple[Report, Report, list[str]]:
    show = not arguments.json
    before = _check(storage, show=show)
    if not before.number:
        return before, before, []
    checking.check_providers(plugins)
    failures: list[str] = []
    async with orchestrator.transaction(
        plugins, storage, deploy.observers(arguments), Operation.REPAIR, "", reason=arguments.reason
    ) as (run, host):
        _give_up_records(storage, before.findings)
        if any(one.cure is Cure.FETCH for one in before.findings):
            findings = tuple(one for one in before.findings if one.cure is Cure.FETCH)
            for slot in _images(host, findings):
                try:
                    await _restore(run, slot, findings)
                except BootcError as problem:
                    name = slot.image.image.image if slot.image else ""
                    failures.append(f"{name}: {problem.message}: {problem.found or problem.hint}")
            if not failures:  # else what has no entry now would go for good
                await run.prune()
        after = _check(storage, show=False)
    return before, after, failures


def _give_up_records(storage: Storage, findings: list[Finding]) -> None:
    """Journals that cannot be read to their end go aside, for whoever wants to look; a notice of nothing goes."""
    for one in findings:
        if one.kind == "notice":
            atomic.unlink(storage.sysroot.staged_file)
        elif one.kind == "journal":
            path = storage.sysroot.state / "journal" / one.name
            if any(True for found in check_journal(storage) if _names(found, one.name)):
                atomic.rename(path, path.with_suffix(".damaged"))


def _names(found: Finding | Counted, name: str) -> bool:
    return isinstance(found, Finding) and found.name == name


def _images(host: HostStatus, findings: tuple[Finding, ...]) -> list[Deployment]:
    """One deployment of each image on the host."""
    found: dict[str, Deployment] = {}
    lost = (one.deployment for one in findings)
    for slot in (host.staged, host.booted, host.rollback, *host.other, *lost):
        if slot is not None and slot.image is not None:
            found.setdefault(slot.image.image_digest, slot)
    return list(found.values())


async def _restore(run: Transaction, slot: Deployment, findings: tuple[Finding, ...]) -> None:
    """Fetch, verify and put back one image, for all its deployments.

    Raises:
        BootcError: it is not to be had, not accepted, or the backend cannot put it back.
    """
    if slot.image is None:
        return
    mode = SignatureMode(slot.signature_mode) if slot.signature_mode else SignatureMode.POLICY
    run.update(signature=mode)
    verified = await _accepted(
        run, plan.reference_of(slot.image.image), slot.image.image_digest, mode
    )
    menu = await run.hooks.repair(
        run.storage.backend.plugin,
        run.context,
        verified,
        run.storage.sysroot,
        findings,
        run.bus.emit,
    )
    if menu is not None and not menu.effective:
        await run.hooks.switch_boot(
            run.storage.bootloader.plugin, run.context, run.storage.sysroot, menu
        )


async def _accepted(
    run: Transaction, reference: ImageReference, digest: str, mode: SignatureMode
) -> VerifiedImage:
    """The image with this digest: by its name while that still means it, else by the digest itself."""
    pinned = reference
    if reference.transport is Transport.REGISTRY:
        pinned = replace(reference, name=str(reference.registry_name().with_digest(digest)))
    try:
        found = await run.fetch(Target(Operation.REPAIR, reference, mode))
        if found.digest != digest and pinned != reference:
            found = await run.fetch(Target(Operation.REPAIR, pinned, mode))
    except TransportError:
        if pinned == reference:
            raise
        found = await run.fetch(Target(Operation.REPAIR, pinned, mode))
    if found.digest != digest:
        raise ContentError(
            f"{reference.display()} is another image by now",
            reference="another-image",
            expected=digest,
            found=found.digest,
            hint="bootc upgrade brings the new one; the damaged one cannot be had from there any more",
            catalogue="INT",
        )
    return await run.verify(found)


# --- words ----------------------------------------------------------------------------------------------------------------


def _conclude(
    report: Report, mended: list[Finding], failures: list[str], *, as_json: bool, repaired: bool
) -> int:
    if as_json:
        value: dict[str, Any] = {
            "format": 1,
            "ok": report.number == 0,
            "checked": dict(sorted(report.checked.items())),
            "problems": report.number,
            "findings": [one.to_json() for one in report.findings],
            "repaired": [one.to_json() for one in mended],
            "failures": failures,
        }
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    else:
        for text in failures:
            sys.stdout.write(f"not put back: {printable(text, 600)}\n")
        for one in mended:
            sys.stdout.write(f"repaired: {printable(f'{one.kind} {one.name}', 400)}\n")
        looked = ", ".join(
            f"{number} {_WORDS.get(kind, kind)}" for kind, number in report.checked.items()
        )
        sys.stdout.write(f"Checked {looked}.\n")
    if not report.number:
        if not as_json:
            sys.stdout.write("No problem was found.\n" if not mended else "All is well now.\n")
        return 0
    first = report.findings[0]
    raise StorageError(
        f"{report.number} problem{'s' if report.number > 1 else ''} "
        + ("remain" if repaired else "found"),
        reference="fsck",
        found=printable(str(first), 300),
        hint=_hint(report, repaired=repaired),
        catalogue="INT",
    )


def _hint(report: Report, *, repaired: bool) -> str:
    if not repaired and any(one.cure is not Cure.HAND for one in report.findings):
        return "bootc fsck --repair puts back what it can"
    return "docs/fsck.md says what to do about each kind; bootc rollback or switch lead to a whole deployment"
