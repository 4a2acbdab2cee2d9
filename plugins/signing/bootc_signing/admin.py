"""What ``bootc trust`` asks of this plugin, and what it notes while a deployment is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_core.errors import StorageError, UsageError, printable
from bootc_core.fs import atomic
from bootc_core.models.context import SignatureMode
from bootc_core.models.reference import ImageReference, policy_scopes
from bootc_signing import evidence, memory
from bootc_signing.policy import describe
from bootc_signing.trust import DIRECTORIES
from bootc_signing.trust import scopes as trust_scopes

if TYPE_CHECKING:
    from bootc_core.models.context import Context
    from bootc_core.models.image import PolicyAnswer

_KEPT: Final = 32  # records; a host has a handful of deployments


def remember(context: Context) -> None:
    """Note the version that was staged.

    Raises:
        StorageError: the memory is damaged, or cannot be written.
    """
    if context.dry_run or context.to_image is None or context.to_image.digest is None:
        return
    state = Path(context.sysroot) / "bootc"
    record = evidence.load(state, context.to_image.digest)
    name = memory.key(ImageReference.parse(context.to_image.reference).canonical())
    if record is None or name is None:
        return
    seen = memory.Seen(
        digest=record.digest, created=record.created, version=record.version, at=memory.stamp()
    )
    known = memory.load(state)
    changed = memory.remember(known, name, seen)
    if changed.images.get(name) != known.images.get(name) or changed != known:
        memory.save(state, changed)
    _prune(state)


def _prune(state: Path) -> None:
    directory = state / "trust/evidence"
    files = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-_KEPT]:
        atomic.unlink(path)


def rules(config_root: Path, reference: ImageReference) -> list[tuple[str, str]]:
    """Which rules count for an image, and why: label and text, in order. Reads configuration only.

    Raises:
        ConfigError: a file cannot be used.
    """
    from bootc_signing.decide import settings

    found = settings(config_root, reference)
    rows = [("image", found.reference.display())]
    identity, parents = policy_scopes(found.reference)
    looked = [scope for scope in (identity, *parents) if scope] + ["the transport", "default"]
    rows.append(("policy.json", found.file or f"none of {', '.join(found.places)}"))
    if found.rule is not None:
        rows.append(("looked up", ", ".join(looked)))
        rows.append(("rule", found.rule.place))
        rows += [("requires", describe(item)) for item in found.rule.requirements]
    if found.trust is None:
        places = " and ".join(f"{config_root / place}" for place in DIRECTORIES)
        rows.append(("trust policy", f"none for this repository in {places}"))
        return rows
    file, policy = found.trust
    rows.append(("trust policy", file))
    rows.append(("scopes", ", ".join(trust_scopes(found.reference))))
    rows.append(("covers", policy.repository))
    rows += [("signer", signer.describe()) for signer in policy.signer]
    rows.append(("requires", f"{policy.expression().describe()} on {policy.signed}"))
    for wanted in policy.attestation:
        by = f" by {', '.join(wanted.signers)}" if wanted.signers else ""
        rows.append(("attestation", wanted.predicate + by))
    rows.append(("downgrade", policy.downgrade))
    if policy.max_age:
        rows.append(("max age", policy.max_age))
    also = {"also": "has to accept too", "instead": "is not asked, unless it rejects by name"}
    rows.append(("policy.json", also[policy.policy_json]))
    return rows


def kept(state: Path, digest: str) -> list[tuple[str, str]]:
    """Evidence of a deployed image, as it was kept; empty: nothing was.

    Raises:
        StorageError: the record is damaged.
    """
    record = evidence.load(state, digest)
    if record is None:
        return []
    return [("image", record.reference), *record.facts]


async def recheck(config_root: Path, state: Path, digest: str) -> PolicyAnswer | None:
    """Today's answer about a deployed image, from what was kept; None: nothing was kept.

    Raises:
        StorageError: the record is damaged.
        ConfigError: the policy cannot be used.
    """
    import trio

    from bootc_signing.decide import decide, settings

    record = await trio.to_thread.run_sync(evidence.load, state, digest)
    if record is None:
        return None
    image = evidence.Kept(record).image()
    found = await trio.to_thread.run_sync(settings, config_root, image.requested)
    answer, _ = await decide(found, image, SignatureMode(record.mode))
    return answer


def change(state: Path, action: str, reference: ImageReference | None, reason: str) -> str:
    """Change the memory of versions, as an administrator says; what was done, in words.

    ``permit-downgrade``: take one older image of the name. ``pin``: begin the memory anew, as it was lost.

    Raises:
        StorageError: the memory is damaged, or cannot be written.
        UsageError: the image names its bytes itself.
    """
    if action == "pin":
        path = state / "trust/memory.json"
        known = memory.Memory()
        try:
            known = memory.load(state)
        except StorageError as problem:
            if path.exists():
                lost = path.with_name(f"memory.lost-{memory.stamp()}.json")
                atomic.rename(path, lost)
            memory.save(state, memory.Memory())
            return f"the memory of versions begins anew ({problem.found})"
        memory.save(state, known)
        return f"the memory of versions is sound ({len(known.images)} images); nothing was lost"
    name = memory.key(reference.canonical()) if reference is not None else None
    if reference is None or name is None:
        raise UsageError(
            "a reference by digest needs no permit",
            reference="usage",
            found=printable(str(reference)),
            hint="name the image by its tag",
        )
    memory.save(state, memory.permit(memory.load(state), name, reason))
    return f"the next image of {name} may be older than the one before, once"
