"""Whether an image fulfils one requirement of policy.json, given the signatures that were found beside it.

One good signature is enough among many bad ones; every reason is kept for the answer. No transport here: signatures
come in as bytes, keys from files of the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bootc_core.errors import BootcError
from bootc_core.models.image import Attachment
from bootc_core.models.reference import ImageReference
from bootc_core.oci.signatures import OPENPGP
from bootc_signing import bundle, certificates, cosign, openpgp
from bootc_signing.claims import (
    CannotCheck,
    Claim,
    Rejected,
    bounded,
    check_digest,
    check_identity,
)
from bootc_signing.keys import PublicKey, parse_public_key
from bootc_signing.policy import (
    InsecureAcceptAnything,
    Reject,
    Requirement,
    SignedBy,
    SigstoreSigned,
)
from bootc_signing.world import World

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_SHOWN: Final = 3  # reasons in one sentence


@dataclass(frozen=True, slots=True)
class Found:
    """What was found beside one manifest, by the kinds that transports know."""

    subject: bundle.Subject
    what: str  # "image" or "index", for people
    attachments: Mapping[str, Sequence[Attachment]] = field(default_factory=dict)

    def all(self, *kinds: str) -> list[Attachment]:
        """Everything of these kinds."""
        return [item for kind in kinds for item in self.attachments.get(kind, ())]


@dataclass(frozen=True, slots=True)
class Result:
    """How a requirement or a signer fared.

    Attributes:
        claim: the first good one; None: refused, or fulfilled without a signature (``accepted``).
        accepted: the requirement is fulfilled.
        reasons: why not, one for each signature that was looked at.
        could_check: False if something that the check needs is missing.
        hint: what settles it.
        used: the attachment behind the claim.
    """

    accepted: bool
    claim: Claim | None = None
    reasons: tuple[str, ...] = ()
    could_check: bool = True
    hint: str | None = None
    used: Attachment | None = None

    def reason(self) -> str:
        """The reasons in one sentence."""
        distinct = list(dict.fromkeys(self.reasons))
        more = len(distinct) - _SHOWN
        return "; ".join(distinct[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def first_good(
    attachments: Iterable[Attachment], check: Callable[[Attachment], Claim], nothing: str
) -> Result:
    """The first signature that passes ``check``; ``nothing`` is the reason where there is none at all."""
    reasons: list[str] = []
    cannot: CannotCheck | None = None
    items = list(attachments)
    try:
        bounded(len(items), "signatures")
    except Rejected as problem:
        return Result(False, reasons=(str(problem),))
    for item in items:
        try:
            return Result(True, check(item), tuple(reasons), used=item)
        except Rejected as problem:
            reasons.append(str(problem))
        except CannotCheck as problem:
            cannot = cannot or problem
        except BootcError:
            raise
        except Exception as problem:  # one hostile signature must not hide a good one
            reasons.append(f"it is malformed ({type(problem).__name__})")
    if cannot is not None:
        return Result(False, reasons=(str(cannot),), could_check=False, hint=cannot.hint)
    return Result(False, reasons=tuple(reasons) or (nothing,))


def fulfils(
    requirement: Requirement, found: Found, reference: ImageReference, world: World
) -> Result:
    """Whether the manifest in ``found`` fulfils ``requirement``.

    Raises:
        ConfigError: a file of the policy is unsafe or unreadable.
    """
    if isinstance(requirement, InsecureAcceptAnything):
        return Result(True)
    if isinstance(requirement, Reject):
        return Result(False, reasons=("the policy rejects this image",))
    try:
        if isinstance(requirement, SignedBy):
            return _signed_by(requirement, found, reference, world)
        if isinstance(requirement, SigstoreSigned):
            return _sigstore_signed(requirement, found, reference, world)
    except CannotCheck as problem:
        return Result(False, reasons=(str(problem),), could_check=False, hint=problem.hint)
    return Result(False, reasons=("signedBaseLayer is reserved by the format and never passes",))


def _signed_by(
    requirement: SignedBy, found: Found, reference: ImageReference, world: World
) -> Result:
    if requirement.key_type != "GPGKeys":
        raise CannotCheck(f"keys of type {requirement.key_type} are not implemented by any tool")
    paths = [requirement.key_path, *(requirement.key_paths or ())]
    ring = openpgp.make_ring(world.sources(paths, [requirement.key_data]))

    def check(item: Attachment) -> Claim:
        claim = check_digest(openpgp.verify(item.payload, ring, world.now()), found.subject.digest)
        check_identity(claim.reference, requirement.signed_identity, reference)
        return claim

    items = [item for item in found.all("lookaside") if item.media_type == OPENPGP]
    return first_good(items, check, f"the {found.what} carries no OpenPGP signature")


def log_keys(requirement: SigstoreSigned, world: World) -> list[PublicKey]:
    """The log's keys that a requirement names."""
    paths = [requirement.rekor_path, *(requirement.rekor_paths or ())]
    datas = [requirement.rekor_data, *(requirement.rekor_datas or ())]
    keys = [parse_public_key(data, name) for name, data in world.sources(paths, datas, "log key")]
    for key in keys:
        if key.kind != "ecdsa":
            raise CannotCheck(f"a log key is not an ECDSA key: {key.fingerprint}")
    return keys


def _sigstore_signed(
    requirement: SigstoreSigned, found: Found, reference: ImageReference, world: World
) -> Result:
    logs = log_keys(requirement, world)
    check: Callable[[Attachment], Claim]
    if requirement.fulcio is not None or requirement.pki is not None:
        authority = _authority(requirement, world)

        def check(item: Attachment) -> Claim:
            return cosign.by_certificate(item, authority, logs, world.now())
    else:
        paths = [requirement.key_path, *(requirement.key_paths or ())]
        datas = [requirement.key_data, *(requirement.key_datas or ())]
        keys = [parse_public_key(data, name) for name, data in world.sources(paths, datas)]

        def check(item: Attachment) -> Claim:
            return cosign.by_key(item, keys, logs, world.now())

    def whole(item: Attachment) -> Claim:
        claim = check_digest(check(item), found.subject.digest)
        check_identity(claim.reference, requirement.signed_identity, reference)
        return claim

    items = [
        item for item in found.all("cosign", "lookaside") if item.media_type == cosign.MEDIA_TYPE
    ]
    return first_good(items, whole, f"the {found.what} carries no sigstore signature")


def _authority(requirement: SigstoreSigned, world: World) -> cosign.Authority:
    def load(path: str | None, data: str | None) -> tuple[Certificate, ...]:
        sources = world.sources([path], [data], "certificate")
        return tuple(item for name, pem in sources for item in certificates.load(pem, name))

    if (fulcio := requirement.fulcio) is not None:
        return cosign.Authority(
            load(fulcio.ca_path, fulcio.ca_data),
            issuer=fulcio.oidc_issuer,
            email=fulcio.subject_email,
        )
    pki = requirement.pki
    assert pki is not None  # noqa: S101 - the caller looked
    return cosign.Authority(
        load(pki.roots_path, pki.roots_data),
        load(pki.intermediates_path, pki.intermediates_data),
        email=pki.subject_email,
        host=pki.subject_hostname,
    )
