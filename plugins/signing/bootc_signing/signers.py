"""Who signed, for a trust policy: every signer is looked for in everything that was found, until the policy has enough.

A signature counts for a signer if it is his, about a subject that the policy wants signed, and a plain signature: an attestation
says something about an image, it does not approve of it. One key or identity counts once, however many names it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bootc_core.models.image import Attachment, PolicyAnswer
from bootc_core.oci.signatures import OPENPGP
from bootc_signing import bundle, cosign, keyless, memory, openpgp
from bootc_signing.bundle import Subject
from bootc_signing.claims import SIGN_PREDICATE, CannotCheck, Claim, Rejected, check_digest
from bootc_signing.keys import PublicKey, parse_public_key
from bootc_signing.requirements import Found, Result, first_good
from bootc_signing.trust import TRUSTED_ROOT, Attestation, Signer, TrustPolicy
from bootc_signing.world import World

_BUNDLES: Final = frozenset({bundle.V3, *bundle.OLD})


def facts(result: Result, prefix: str = "") -> dict[str, str]:
    """Evidence of one good signature."""
    claim = result.claim
    assert claim is not None  # noqa: S101 - a good one
    found = {prefix + name: value for name, value in claim.facts}
    if claim.reference is not None:
        found[prefix + "signed for"] = claim.reference
    if result.used is not None and result.used.origin:
        found[prefix + "found at"] = result.used.origin
    return found


def kinds(policy: TrustPolicy) -> list[str]:
    """Kinds of attachments that the policy may need, the likely ones first."""
    found: list[str] = []
    for signer in policy.signer:
        if signer.gpg is not None:
            found.append("lookaside")
        else:
            found += ["cosign", "referrers"]
    if policy.attestation:
        found += ["referrers", "attestations"]
    return list(dict.fromkeys(found))


@dataclass(slots=True)
class State:
    """What a trust policy has found so far.

    Attributes:
        policy: the policy.
        world: files and time.
        results: by signer and digest of the subject.
        statements: by number of the attestation.
    """

    policy: TrustPolicy
    world: World
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    statements: dict[int, Result] = field(default_factory=dict)
    whats: dict[str, str] = field(default_factory=dict)

    def look(self, found: Found) -> None:
        """Look for all signers and attestations in what was found beside one manifest."""
        digest = found.subject.digest
        self.whats[digest] = found.what
        for signer in self.policy.signer:
            known = self.results.get((signer.name, digest))
            if known is None or not known.accepted:
                self.results[signer.name, digest] = self._signed(signer, found)
        for number, wanted in enumerate(self.policy.attestation):
            known = self.statements.get(number)
            if known is None or not known.accepted:
                result = self._attested(wanted, found)
                if known is None or result.accepted or not result.could_check:
                    self.statements[number] = result

    # --- signatures

    def _signed(self, signer: Signer, found: Found) -> Result:
        what = found.what
        if signer.gpg is not None:
            items = [item for item in found.all("lookaside") if item.media_type == OPENPGP]
            nothing = f"the {what} carries no OpenPGP signature"
        else:
            items = [
                item
                for item in found.all("cosign", "referrers")
                if item.media_type == cosign.MEDIA_TYPE or item.media_type in _BUNDLES
            ]
            nothing = f"the {what} carries no sigstore signature"

        def check(item: Attachment) -> Claim:
            claim = check_digest(self._claim(signer, item, found.subject), found.subject.digest)
            if claim.predicate not in {None, SIGN_PREDICATE}:
                raise Rejected("wrong-predicate", f"it is an attestation ({claim.predicate})")
            return claim

        return first_good(items, check, nothing)

    def _attested(self, wanted: Attestation, found: Found) -> Result:
        names = wanted.signers or tuple(signer.name for signer in self.policy.signer)
        chosen = [signer for signer in self.policy.signer if signer.name in names]
        items = [
            item
            for item in found.all("referrers", "attestations")
            if item.media_type in _BUNDLES or item.media_type == bundle.ENVELOPE
        ]

        def check(item: Attachment) -> Claim:
            problem: Exception | None = None
            for signer in chosen:
                try:
                    claim = self._claim(signer, item, found.subject)
                except (Rejected, CannotCheck) as other:
                    problem = problem or other
                    continue
                if claim.predicate == wanted.predicate:
                    return claim
                problem = Rejected("wrong-predicate", f"it is {claim.predicate}")
            raise problem or Rejected("wrong-key", "no signer may attest this")

        nothing = f"the {found.what} carries no attestation"
        return first_good(items, check, nothing)

    def _claim(self, signer: Signer, item: Attachment, subject: Subject) -> Claim:
        if signer.gpg is not None:
            if item.media_type != OPENPGP:
                raise Rejected("wrong-key", "it is no OpenPGP signature")
            ring = self.world.cached(
                f"gpg {signer.gpg}",
                lambda: openpgp.make_ring(self.world.sources([signer.gpg])),
            )
            return openpgp.verify(item.payload, ring, self.world.now())
        if signer.key is not None:
            return self._by_key(signer, item, subject)
        return self._by_identity(signer, item, subject)

    def _key(self, path: str) -> PublicKey:
        key: PublicKey = self.world.cached(
            f"key {path}", lambda: parse_public_key(self.world.read(path), path)
        )
        return key

    def _by_key(self, signer: Signer, item: Attachment, subject: Subject) -> Claim:
        keys = [self._key(signer.key or "")]
        logs = [self._key(signer.rekor)] if signer.rekor else []
        now = self.world.now()
        if item.media_type == cosign.MEDIA_TYPE:
            return cosign.by_key(item, keys, logs, now)
        if item.media_type == bundle.ENVELOPE:
            if logs:
                raise Rejected("no-promise", "the policy wants a log entry, and it carries none")
            return bundle.envelope_by_key(item.payload, subject, keys)
        return bundle.by_key(item.payload, subject, keys, logs, now)

    def _by_identity(self, signer: Signer, item: Attachment, subject: Subject) -> Claim:
        identity, issuer = signer.identity or "", signer.issuer or ""
        path = signer.trusted_root or TRUSTED_ROOT
        if item.media_type == cosign.MEDIA_TYPE:
            made: tuple[cosign.Authority, list[PublicKey]] = self.world.cached(
                f"authority {path} {identity} {issuer}",
                lambda: keyless.authority(self.world.read(path), path, identity, issuer),
            )
            return cosign.by_certificate(item, made[0], made[1], self.world.now())
        if item.media_type == bundle.ENVELOPE:
            raise Rejected("no-certificate", "a bare envelope names no identity")
        root: Any = self.world.cached(
            f"root {path}", lambda: keyless.load_trusted_root(self.world.read(path), path)
        )
        return keyless.by_identity(item.payload, subject, root, identity, issuer, self.world.now())

    # --- enough?

    def _principals(self, digests: Sequence[str]) -> dict[str, str]:
        found = {}
        for (name, digest), result in self.results.items():
            if digest in digests and result.claim is not None:
                found[name] = result.claim.principal
        return found

    def _signed_enough(self, subjects: Sequence[tuple[str, Subject]]) -> bool:
        digests = [subject.digest for _, subject in subjects]
        group = self.policy.expression()
        if self.policy.signed == "both":
            return all(group.fulfilled(self._principals([digest])) for digest in digests)
        return group.fulfilled(self._principals(digests))

    def enough(self, subjects: Sequence[tuple[str, Subject]]) -> bool:
        """Whether nothing more has to be read."""
        attested = all(
            (result := self.statements.get(number)) is not None and result.accepted
            for number in range(len(self.policy.attestation))
        )
        return attested and self._signed_enough(subjects)

    def answer(
        self, file: str, subjects: Sequence[tuple[str, Subject]], created: str | None
    ) -> PolicyAnswer:
        """The answer, with the reasons of all that did not count."""
        if not self._signed_enough(subjects):
            return self._not_signed(file, subjects)
        for number, wanted in enumerate(self.policy.attestation):
            result = self.statements.get(number)
            if result is None or not result.accepted:
                return PolicyAnswer(
                    accept=False,
                    reason=f"the attestation {wanted.predicate} is missing: "
                    + (result.reason() if result else "nothing was found"),
                    rule=f"{file}: attestation",
                    could_check=result is None or result.could_check,
                    hint=result.hint if result else None,
                )
        if (refusal := self._too_old(file, created)) is not None:
            return refusal
        return self._accepted(file, subjects)

    def _good(self, subjects: Sequence[tuple[str, Subject]]) -> list[tuple[str, str, Result]]:
        digests = {subject.digest for _, subject in subjects}
        return [
            (name, digest, result)
            for (name, digest), result in self.results.items()
            if result.accepted and digest in digests
        ]

    def _not_signed(self, file: str, subjects: Sequence[tuple[str, Subject]]) -> PolicyAnswer:
        good = self._good(subjects)
        signed = {name for name, _, _ in good}
        texts, cannot = [], None
        for (name, digest), result in self.results.items():
            if result.accepted or (name in signed and self.policy.signed != "both"):
                continue
            where = f"{self.whats[digest]}, " if len(subjects) > 1 else ""
            texts.append(f"{where}{name}: {result.reason()}")
            if not result.could_check:
                cannot = cannot or result
        group = self.policy.expression()
        have = f"signed by {', '.join(sorted(signed))}" if signed else "no signature counts"
        if signed and not texts:
            have += ", which are one key or identity"
        reason = f"needs {group.describe()}; {have}"
        return PolicyAnswer(
            accept=False,
            reason=reason + ("; " + "; ".join(dict.fromkeys(texts)) if texts else ""),
            rule=f"{file}: require",
            could_check=cannot is None,
            hint=cannot.hint if cannot else "bootc trust explain IMAGE says more",
        )

    def _too_old(self, file: str, created: str | None) -> PolicyAnswer | None:
        allowed = self.policy.age_s()
        if allowed is None:
            return None
        times = [
            result.claim.time
            for result in self.results.values()
            if result.claim is not None and result.claim.time is not None
        ]
        made = memory.instant(created)
        when = max(times) if times else (made.timestamp() if made else None)
        what = "signed" if times else "made"
        if when is None:
            return PolicyAnswer(
                accept=False,
                reason="it cannot be told how old the image is: no log vouches for a time, "
                "and it has no date of its own",
                rule=f"{file}: max_age",
                could_check=False,
            )
        age = self.world.now().timestamp() - when
        if age <= allowed:
            return None
        return PolicyAnswer(
            accept=False,
            reason=f"it was {what} {age / 86400:.1f} days ago, and max_age is {self.policy.max_age}"
            + (", by this host's clock, which is wrong" if self.world.clock_is_wrong() else ""),
            rule=f"{file}: max_age",
            hint="the running system is not affected; the publisher has to sign a newer image",
        )

    def _accepted(self, file: str, subjects: Sequence[tuple[str, Subject]]) -> PolicyAnswer:
        good = self._good(subjects)
        evidence: dict[str, str] = {}
        digests = dict.fromkeys(digest for _, digest, _ in good)
        evidence["signed"] = ", ".join(f"{self.whats[digest]} {digest}" for digest in digests)
        several = len(self.policy.signer) > 1
        for name, _, result in good:
            prefix = f"{name}: " if several else ""
            evidence |= facts(result, prefix)
        for number, wanted in enumerate(self.policy.attestation):
            claim = self.statements[number].claim
            evidence[f"attested {wanted.predicate}"] = claim.principal if claim else ""
        evidence["checked"] = memory.stamp()
        names = ", ".join(dict.fromkeys(name for name, _, _ in good))
        return PolicyAnswer(
            accept=True,
            reason=f"signed by {names}",
            rule=f"{file}: {self.policy.repository}",
            cryptographic=True,
            evidence=tuple(evidence.items()),
        )
