"""The answer of this plugin: which rules count for an image, what they need, and whether it is there.

    settings     policy.json's rule, and the trust policy of the repository, if there is one
    subjects     what may be signed: what the reference names (an index), and the manifest for this machine
    attachments  read one kind at a time, until what was found is enough

policy.json: all requirements of the rule have to pass, on one of the subjects (as skopeo does since 1.22.2). A trust policy
is asked beside it, or instead of it where it says so; what policy.json rejects by name stays rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from bootc_core.models.base import check_digest
from bootc_core.models.context import SignatureMode
from bootc_core.models.image import Attachment, FetchedImage, PolicyAnswer
from bootc_core.models.reference import ImageReference
from bootc_signing import memory, signers
from bootc_signing.bundle import Subject
from bootc_signing.load import load_policy
from bootc_signing.policy import (
    FLAG,
    Policy,
    Reject,
    Rule,
    SignedBy,
    SigstoreSigned,
    describe,
    rule_for,
)
from bootc_signing.requirements import Found, Result, fulfils
from bootc_signing.trust import TrustPolicy, policy_for
from bootc_signing.trust import load as load_trust
from bootc_signing.world import World

if TYPE_CHECKING:
    from bootc_core.models.context import Context

_KINDS: Final = {SignedBy: ("lookaside",), SigstoreSigned: ("cosign", "lookaside")}
_BUNDLES: Final = (
    "the image carries bundles (cosign 3), which name no repository: "
    "bootc trust add REPOSITORY --key FILE makes them count"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What this host says about one reference.

    Attributes:
        world: files and time.
        reference: as the administrator named the image, with one of tag and digest.
        file: the policy.json that counts; None: there is none.
        rule: its rule.
        places: where a policy.json may be.
        trust: file and policy for the repository.
    """

    world: World
    reference: ImageReference
    file: str | None
    rule: Rule | None
    places: tuple[str, ...]
    trust: tuple[str, TrustPolicy] | None

    @property
    def asks_policy_json(self) -> bool:
        """Whether policy.json has to accept."""
        return self.trust is None or self.trust[1].policy_json == "also"


def settings(root: Path, reference: ImageReference, world: World | None = None) -> Settings:
    """What the configuration beneath ``root`` says; blocking.

    Raises:
        ConfigError: a file is malformed or unsafe, which blocks every image.
    """
    name = reference.canonical()
    found = load_policy(root)
    policy: Policy | None = found.policy
    rule = rule_for(policy, name) if policy is not None else None
    trust = policy_for(load_trust(root), name)
    return Settings(world or World(root), name, found.file, rule, found.places, trust)


@dataclass(slots=True)
class Gatherer:
    """Attachments of an image, each kind read once."""

    image: FetchedImage
    read: dict[tuple[str, str], tuple[Attachment, ...]] = field(default_factory=dict)

    def subjects(self) -> list[tuple[str, Subject]]:
        """What may be signed, what the reference names first."""
        image = self.image
        found = [("image", Subject(image.digest, image.manifest_document.raw))]
        if image.index is not None:
            found.insert(0, ("index", Subject(image.index.digest, image.index.raw)))
        return found

    async def get(self, kind: str, digest: str) -> None:
        """Read one kind beside one manifest."""
        if (kind, digest) not in self.read:
            check_digest(digest)
            self.read[kind, digest] = await self.image.read_attachments(f"{kind}@{digest}")

    def found(self, what: str, subject: Subject) -> Found:
        """What was read beside one manifest so far."""
        kinds = {
            kind: items for (kind, digest), items in self.read.items() if digest == subject.digest
        }
        return Found(subject, what, kinds)


# --- policy.json ----------------------------------------------------------------------------------


async def by_policy_json(found: Settings, gatherer: Gatherer) -> PolicyAnswer:
    """What policy.json says."""
    if found.rule is None:
        return answer_missing(found.places)
    place = f"{found.file}: {found.rule.place}"
    requirements = found.rule.requirements
    if any(isinstance(item, Reject) for item in requirements):
        return PolicyAnswer(
            accept=False,
            reason="the policy rejects this image",
            rule=place,
            hint=f"if it shall be allowed, give it a rule of its own in {found.file}",
        )
    kinds = list(
        dict.fromkeys(kind for item in requirements for kind in _KINDS.get(type(item), ()))
    )
    failures: list[tuple[str, str, Result]] = []
    for what, subject in gatherer.subjects():
        results: list[Result] = []
        for kind in kinds or [""]:
            if kind:
                await gatherer.get(kind, subject.digest)
            beside = gatherer.found(what, subject)
            results = await trio.to_thread.run_sync(_all, found, beside)
            if all(result.accepted for result in results):
                return _accepted(found, what, subject, results, place)
        failures += [
            (what, describe(item), result)
            for item, result in zip(requirements, results, strict=True)
            if not result.accepted
        ]
    answer = _refused(failures, place, found.file or "policy.json")
    if answer.could_check and any(isinstance(item, SigstoreSigned) for item in requirements):
        for _, subject in gatherer.subjects():
            await gatherer.get("referrers", subject.digest)
            if gatherer.read["referrers", subject.digest]:
                return replace(answer, hint=_BUNDLES)
    return answer


def _all(found: Settings, beside: Found) -> list[Result]:
    assert found.rule is not None  # noqa: S101 - the caller looked
    return [fulfils(item, beside, found.reference, found.world) for item in found.rule.requirements]


def _accepted(
    found: Settings, what: str, subject: Subject, results: Sequence[Result], place: str
) -> PolicyAnswer:
    claims = [result for result in results if result.claim is not None]
    if not claims:
        return PolicyAnswer(accept=True, reason="the policy accepts any image here", rule=place)
    evidence: dict[str, str] = {"signed": f"{what} {subject.digest}"}
    for number, result in enumerate(claims, 1):
        assert result.claim is not None  # noqa: S101 - chosen so
        prefix = f"signature {number} " if len(claims) > 1 else ""
        evidence |= signers.facts(result, prefix)
    evidence["checked"] = memory.stamp()
    who = claims[0].claim.principal if claims[0].claim else ""
    return PolicyAnswer(
        accept=True,
        reason=f"signed by {who}",
        rule=place,
        cryptographic=True,
        evidence=tuple(evidence.items()),
    )


def _refused(failures: list[tuple[str, str, Result]], place: str, file: str) -> PolicyAnswer:
    several = len({what for what, _, _ in failures}) > 1
    texts = []
    for what, name, result in failures:
        front = f"{what}: " if several else ""
        texts.append(f"{front}{name}: {result.reason()}")
    cannot = [result for _, _, result in failures if not result.could_check]
    hint = (
        cannot[0].hint if cannot else f"the rule is in {file}; bootc trust explain IMAGE says more"
    )
    return PolicyAnswer(
        accept=False,
        reason="; ".join(dict.fromkeys(texts)),
        rule=place,
        could_check=not cannot,
        hint=hint,
    )


# --- trust policies -------------------------------------------------------------------------------


async def by_trust(found: Settings, gatherer: Gatherer, created: str | None) -> PolicyAnswer:
    """What the repository's trust policy says of the signatures; its memory is asked elsewhere."""
    assert found.trust is not None  # noqa: S101 - the caller looked
    file, policy = found.trust
    subjects = gatherer.subjects()
    if policy.signed == "index":
        subjects = subjects[:1]
    elif policy.signed == "image":
        subjects = subjects[-1:]
    state = signers.State(policy, found.world)
    for kind in signers.kinds(policy):
        for what, subject in subjects:
            await gatherer.get(kind, subject.digest)
            await trio.to_thread.run_sync(state.look, gatherer.found(what, subject))
            if state.enough(subjects):
                return await trio.to_thread.run_sync(state.answer, file, subjects, created)
    return await trio.to_thread.run_sync(state.answer, file, subjects, created)


def by_name(found: Settings) -> PolicyAnswer | None:
    """A refusal if policy.json rejects exactly this image, its repository, or a namespace above it; else None."""
    if found.rule is None or found.rule.place == "default":
        return None
    if not any(isinstance(item, Reject) for item in found.rule.requirements):
        return None
    return PolicyAnswer(
        accept=False,
        reason="the policy rejects this image",
        rule=f"{found.file}: {found.rule.place}",
        hint=f"a trust policy does not overrule that; change {found.file}",
    )


# --- both, and the rest ---------------------------------------------------------------------------


async def decide(
    found: Settings, image: FetchedImage, mode: SignatureMode
) -> tuple[PolicyAnswer, Gatherer]:
    """The answer of the rules, version memory aside, and what was read for it."""
    gatherer = Gatherer(image)
    created = image.config.created
    answers: list[PolicyAnswer] = []
    if found.asks_policy_json:
        answers.append(await by_policy_json(found, gatherer))
    elif (refusal := by_name(found)) is not None:
        answers.append(refusal)
    if found.trust is not None and all(answer.accept for answer in answers):
        answers.append(await by_trust(found, gatherer, created))
    return enforce(combine(answers), mode, found), gatherer


def combine(answers: Sequence[PolicyAnswer]) -> PolicyAnswer:
    """One answer of several that all have to accept."""
    for answer in answers:
        if not answer.accept:
            return answer
    evidence = {name: value for answer in answers for name, value in answer.evidence}
    strongest = [answer for answer in answers if answer.cryptographic] or answers
    return replace(
        strongest[-1],
        rule="; ".join(dict.fromkeys(answer.rule for answer in answers)),
        evidence=tuple(evidence.items()),
    )


def enforce(answer: PolicyAnswer, mode: SignatureMode, found: Settings) -> PolicyAnswer:
    """The answer under ``--enforce-container-sigpolicy``."""
    if mode is not SignatureMode.ENFORCE or not answer.accept or answer.cryptographic:
        return answer
    return PolicyAnswer(
        accept=False,
        reason="the policy accepts any image here, and a checked signature is demanded",
        rule=answer.rule,
        hint=f"require a signature in {found.file}, or do without --enforce-container-sigpolicy",
    )


def remembered(
    answer: PolicyAnswer, found: Settings, image: FetchedImage, state: Path
) -> PolicyAnswer:
    """The answer after the memory of versions was asked; blocking.

    Raises:
        StorageError: STATE: the memory is damaged or gone.
    """
    name = memory.key(found.reference)
    if name is None or not answer.cryptographic:
        return answer  # refused already, or nobody vouches for what the image says of itself
    created = image.config.created
    known = memory.compare(memory.load(state), name, image.digest, created)
    policy = found.trust[1] if found.trust else None
    note = ("memory", known.text(created))
    if policy is None or policy.downgrade == "allow":
        return replace(answer, evidence=(*answer.evidence, note))
    file = found.trust[0] if found.trust else ""
    hint = f"to take it once all the same: bootc trust permit-downgrade {found.reference.display()}"
    if memory.too_new(created, found.world.now()) and not known.permitted:
        return PolicyAnswer(
            accept=False,
            reason=f"the image says it was made at {created}, which is in the future; "
            "remembered, it would lock out all later ones",
            rule=f"{file}: downgrade",
            hint=hint,
        )
    if known.kind in {"older", "unknown"} and not known.permitted:
        return PolicyAnswer(
            accept=False,
            reason=f"the image is {known.text(created)}"
            if known.kind == "older"
            else known.text(created),
            rule=f"{file}: downgrade",
            could_check=known.kind == "older",
            hint=hint,
        )
    if known.kind in {"older", "unknown"}:
        note = ("memory", f"permitted downgrade: {known.text(created)}")
    return replace(answer, evidence=(*answer.evidence, note))


def answer_missing(places: tuple[str, ...]) -> PolicyAnswer:
    """The answer where there is no policy at all: refused, never "accept"."""
    return PolicyAnswer(
        accept=False,
        reason="there is no policy.json, so nothing says which images are acceptable",
        could_check=False,
        hint=f"say whose signatures count: bootc trust add REPOSITORY --key FILE; or create {' or '.join(places)}; "
        f"or take the image unchecked with {FLAG}",
    )


async def verify(context: Context, image: FetchedImage) -> PolicyAnswer:
    """The plugin's answer for a transaction; what it is built on is kept for ``bootc trust recheck``."""
    from bootc_signing import evidence

    found = await trio.to_thread.run_sync(settings, Path(context.config_root), image.requested)
    answer, gatherer = await decide(found, image, context.signature)
    state = Path(context.sysroot) / "bootc"
    answer = await trio.to_thread.run_sync(remembered, answer, found, image, state)
    if answer.cryptographic and not context.dry_run and state.is_dir():
        evidence.keep(state, found, image, gatherer, answer, context.signature)
    return answer
