"""``bootc trust``: whose signatures count, why an image was accepted, and what the policy would say of another one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bootc_core import paths
from bootc_core.cli import common
from bootc_core.errors import PluginError, printable
from bootc_core.models.reference import ImageReference, Transport

if TYPE_CHECKING:
    from bootc_core.engine.sysroots import Storage
    from bootc_core.hooks.calls import Hooks
    from bootc_core.hooks.manager import Plugins
    from bootc_core.hooks.offers import TrustOffer
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage, PolicyAnswer

_UNVERIFIED = "insecure"  # SignatureMode.INSECURE, without importing the models
_UNVERIFIED_ROW = (
    "accepted",
    "without verification (--no-signature-verification), as its updates will be; "
    "bootc switch without it verifies the next image",
)
_OPTIONS = ("key", "gpg", "identity", "issuer", "trusted_root", "rekor", "lookaside", "max_age")


def _offers(plugins: Plugins) -> list[tuple[str, TrustOffer]]:
    found = [
        (name, offered.offer.trust)
        for name, offered in plugins.policies.items()
        if offered.offer.trust is not None
    ]
    if not found:
        raise PluginError(
            "no loaded signature policy answers this command",
            reference="no-provider",
            hint="unblock the plugin signing",
        )
    return found


def _print_rows(rows: Iterable[tuple[str, str]], indent: str = "") -> None:
    table = [(label, value) for label, value in rows if value]
    width = max((len(label) for label, _ in table), default=0)
    for label, value in table:
        sys.stdout.write(f"{indent}{label.rjust(width)}: {printable(value, 1000)}\n")


def _storage(arguments: argparse.Namespace, *, write: bool = False) -> tuple[Plugins, Storage]:
    return common.existing(arguments, write=write)[1:]


def _deployed(storage: Storage) -> list[tuple[str, str, str, bool]]:
    """Slot, reference and digest of each deployed image, and whether it was deployed without verification."""
    host = storage.read_host(lambda message: None)
    slots = [("staged", host.staged), ("booted", host.booted), ("rollback", host.rollback)]
    slots += [("other", entry) for entry in host.other]
    return [
        (
            slot,
            entry.image.image.image,
            entry.image.image_digest,
            entry.signature_mode == _UNVERIFIED,
        )
        for slot, entry in slots
        if entry is not None and entry.image is not None
    ]


# --- add ------------------------------------------------------------------------------------------


def add(arguments: argparse.Namespace) -> int:
    """Show the files that make signatures of a repository count, and write them."""
    _, plugins = common.load(arguments)
    root = arguments.config_root or Path("/")
    options = {name: str(value) for name in _OPTIONS if (value := getattr(arguments, name))}
    files = [
        item
        for _, offer in _offers(plugins)
        for item in offer.add(root, arguments.repository, options)
    ]
    changed = [(path, data) for path, data in files if _present(path) != data]
    for path, data in changed:
        verb = "change" if path.exists() else "write"
        sys.stdout.write(f"# {verb} {printable(str(path), 1000)}\n")
        text = data.decode("utf-8", "replace")
        if "\ufffd" in text:
            text = f"({len(data)} bytes, binary)\n"
        for line in text.splitlines():
            sys.stdout.write(printable(line, 1000) + "\n")
        sys.stdout.write("\n")
    if not changed:
        sys.stdout.write("Everything is in place already.\n")
        return 0
    if arguments.dry_run:
        sys.stdout.write("Nothing was written (--dry-run).\n")
        return 0
    if not arguments.yes and not _confirmed():
        sys.stdout.write("Nothing was written; --yes writes without asking.\n")
        return 1
    _write(changed)
    sys.stdout.write(
        f"Written. bootc trust explain {printable(arguments.repository)} tells more.\n"
    )
    return 0


def _present(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stdout.write("Write these files? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _write(files: list[tuple[Path, bytes]]) -> None:
    """Keys first, policy.json last: at no moment does a rule name a key that is not there."""
    from bootc_core.fs import atomic

    for path, data in sorted(files, key=lambda item: item[0].name == "policy.json"):
        missing = [place for place in path.parents if not place.is_dir()]
        for place in reversed(missing):
            atomic.mkdir(place)
        atomic.write_file(path, data)


# --- show, recheck --------------------------------------------------------------------------------


def show(arguments: argparse.Namespace) -> int:
    """Why each deployed image was accepted."""
    plugins, storage = _storage(arguments)
    deployed = _deployed(storage)
    if arguments.json:
        import json

        value = [
            {
                "slot": slot,
                "image": name,
                "digest": digest,
                "verified": not unverified,
                "evidence": {}
                if unverified
                else {
                    policy: dict(offer.evidence(storage.sysroot.state, digest))
                    for policy, offer in _offers(plugins)
                },
            }
            for slot, name, digest, unverified in deployed
        ]
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return 0
    for slot, name, digest, unverified in deployed:
        sys.stdout.write(f"{slot}: {printable(name)}@{digest}\n")
        if unverified:
            _print_rows([_UNVERIFIED_ROW], "  ")
            continue
        for _, offer in _offers(plugins):
            rows = list(offer.evidence(storage.sysroot.state, digest))
            _print_rows(rows or [("accepted", "without a signature that was kept")], "  ")
    return 0


def recheck(arguments: argparse.Namespace) -> int:
    """Check again, offline, what the acceptance of each deployed image was built on; exit status 1 if one does not hold."""
    import trio

    plugins, storage = _storage(arguments)
    failed = 0
    for slot, name, digest, unverified in _deployed(storage):
        if unverified:
            sys.stdout.write(f"{slot}: {printable(name)}@{digest}: {_UNVERIFIED_ROW[1]}\n")
            failed += arguments.strict
            continue
        for policy, offer in _offers(plugins):
            answer = trio.run(
                offer.recheck, storage.sysroot.config_root, storage.sysroot.state, digest
            )
            text = f"{slot}: {printable(name)}@{digest}: "
            if answer is None:
                sys.stdout.write(f"{text}nothing was kept to check ({policy})\n")
                failed += arguments.strict
            elif answer.accept:
                sys.stdout.write(f"{text}holds: {printable(answer.reason)}\n")
                _print_rows([("rule", answer.rule), *answer.evidence], "  ")
            else:
                kind = "is refused" if answer.could_check else "cannot be checked"
                sys.stdout.write(f"{text}{kind} now: {printable(answer.reason, 600)}\n")
                _print_rows([("rule", answer.rule), ("hint", answer.hint or "")], "  ")
                failed += 1
    return 1 if failed else 0


# --- explain --------------------------------------------------------------------------------------


def explain(arguments: argparse.Namespace) -> int:
    """Which rules count for an image and, unless ``--offline``, what they say of it now. Nothing is deployed or kept."""
    _, plugins = common.load(arguments)
    root = arguments.config_root or Path("/")
    transport = Transport.REGISTRY
    reference = ImageReference.parse(arguments.image, transport)
    for _, offer in _offers(plugins):
        _print_rows(offer.rules(root, reference))
    if arguments.offline:
        return 0
    import trio

    context = _context(arguments, reference)
    image, answers = trio.run(_ask, plugins, context, reference)
    sys.stdout.write("\n")
    rows = [("digest", image.digest)]
    if image.index is not None:
        rows.append(("index", image.index.digest))
    accepted = True
    for policy, answer in answers:
        verdict = {True: "accepts", False: "refuses", None: "abstains"}[answer.accept]
        if answer.accept is False and not answer.could_check:
            verdict = "cannot check, and so refuses"
        accepted = accepted and answer.accept is not False
        rows += [(policy, verdict), ("reason", answer.reason), ("rule", answer.rule)]
        rows += [*answer.evidence, ("hint", answer.hint or "")]
    _print_rows(rows)
    accepted = accepted and any(answer.accept for _, answer in answers)
    sys.stdout.write(f"\nThe image would be {'accepted' if accepted else 'refused'}.\n")
    return 0 if accepted else 1


def _context(arguments: argparse.Namespace, reference: ImageReference) -> Context:
    from bootc_core.engine.transaction import new_transaction_id
    from bootc_core.models.context import (
        Context,
        ImageSummary,
        Operation,
        Phase,
        SignatureMode,
    )

    return Context(
        transaction=new_transaction_id(),
        operation=Operation.SWITCH,
        phase=Phase.VERIFY,
        sysroot=str(arguments.sysroot or paths.LIVE_SYSROOT),
        live=arguments.sysroot is None,
        config_root=str(arguments.config_root or "/"),
        to_image=ImageSummary(reference=str(reference)),
        signature=SignatureMode.ENFORCE if arguments.enforce else SignatureMode.POLICY,
        started_at=datetime.now(UTC),
        reason="bootc trust explain",
        dry_run=True,
    )


async def _ask(
    plugins: Plugins, context: Context, reference: ImageReference
) -> tuple[FetchedImage, list[tuple[str, PolicyAnswer]]]:
    from bootc_core.hooks.calls import Hooks

    hooks = Hooks(plugins)
    image = await hooks.fetch(
        plugins.transport(reference.transport.value).plugin, context, reference
    )
    return image, await ask(hooks, context, image)


async def ask(
    hooks: Hooks, context: Context, image: FetchedImage
) -> list[tuple[str, PolicyAnswer]]:
    """The answers of all policies; one that broke could not check."""
    from bootc_core.models.image import PolicyAnswer

    answers = []
    for answer in await hooks.verify(context, image):
        if answer.error is not None:
            broke = PolicyAnswer(
                accept=False,
                reason=answer.error.message
                + (f": {answer.error.found}" if answer.error.found else ""),
                could_check=False,
                hint=answer.error.hint,
            )
            answers.append((answer.plugin, broke))
        elif answer.value is not None:
            answers.append((answer.plugin, answer.value))
    return answers


# --- memory ---------------------------------------------------------------------------------------


def permit_downgrade(arguments: argparse.Namespace) -> int:
    """Let the next image of a name be older than the one before, once."""
    return _change(arguments, "permit-downgrade", ImageReference.parse(arguments.image))


def pin(arguments: argparse.Namespace) -> int:
    """Begin the memory of versions anew, where it was lost."""
    return _change(arguments, "pin", None)


def _change(arguments: argparse.Namespace, action: str, reference: ImageReference | None) -> int:
    from bootc_core.engine.lock import exclusive

    plugins, storage = _storage(arguments, write=True)
    with exclusive(storage.sysroot, f"trust {action}"):
        for _, offer in _offers(plugins):
            said = offer.change(storage.sysroot.state, action, reference, arguments.reason)
            sys.stdout.write(said + "\n")
    return 0
