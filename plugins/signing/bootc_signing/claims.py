"""What a signature says, once it is verified: pure values, strict parsers, and the identity rules of policy.json.

    simple signing payload   digest + docker-reference      OpenPGP, and cosign's classic layout
    in-toto statement        digest(s) + predicate type     bundles and attestations; names no repository

A verifier returns a ``Claim`` whose digest comes from inside the signed bytes; nobody takes it from the envelope.
Two exceptions never leave this plugin: ``Rejected`` (checked, not acceptable) and ``CannotCheck`` (a key, program or
package is missing, or cannot be used). Both fail closed; the answer tells them apart.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from bootc_core import limits
from bootc_core.errors import ContentError, UsageError, printable
from bootc_core.models.base import Digest, TrustModel, WireModel, parse_json, validate
from bootc_core.models.reference import ImageReference, RegistryName, Transport
from bootc_signing.policy import (
    ExactReference,
    ExactRepository,
    Identity,
    MatchExact,
    MatchRepository,
    RemapIdentity,
)

OPENPGP_TYPE: Final = "atomic container signature"
COSIGN_TYPE: Final = "cosign container image signature"
STATEMENTS: Final = frozenset(
    {"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"}
)
SIGN_PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"  # cosign's plain signature


class Rejected(Exception):
    """Checked, and not acceptable. ``code`` is a stable name of the reason, the text explains it."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class CannotCheck(Exception):
    """A key, program or package that the check needs is missing or unusable."""

    def __init__(self, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Claim:
    """What a verified signature says, and who says it.

    Attributes:
        digest: of the manifest that was signed.
        principal: who signed, unique: a key's or identity's name; two signatures of one principal count once.
        reference: the name in the payload; None where the format has none.
        predicate: an in-toto statement's type; None for simple signing payloads.
        time: seconds since 1970, by a log or timestamp that was verified; None if nobody vouches for one.
        facts: for people: key, identity, issuer, log entry.
    """

    digest: str
    principal: str
    reference: str | None = None
    predicate: str | None = None
    time: int | None = None
    facts: tuple[tuple[str, str], ...] = ()


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of canonical base64: one text for one value, or a changed signature could still be one.

    Raises:
        Rejected: ``bad-base64``.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected("bad-base64", f"{what} is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise Rejected("bad-base64", f"{what} is not canonical base64")
    return data


def unwrap_base64(text: str) -> str:
    """``text`` on one line, if it was wrapped as ``base64`` and ``openssl`` wrap it; anything else as it is."""
    lines = text.removesuffix("\n").split("\n")
    widths = {len(line) for line in lines[:-1]}
    if len(lines) > 1 and widths in ({64}, {76}) and 0 < len(lines[-1]) <= max(widths):
        return "".join(lines)
    return text


def strict_json(data: bytes, what: str) -> Any:
    """The value of a strict JSON document.

    Raises:
        Rejected: ``bad-json``.
    """
    try:
        return parse_json(data, what)
    except ContentError as problem:
        raise Rejected("bad-json", f"{what} is not valid JSON: {problem.found}") from None


def checked(model: type[Any], value: Any, what: str) -> Any:
    """``value`` as ``model``.

    Raises:
        Rejected: ``bad-document``.
    """
    try:
        return validate(model, value, what)
    except ContentError as problem:
        raise Rejected("bad-document", f"{problem.message}: {problem.found}") from None


# --- simple signing payloads ----------------------------------------------------------------------


class _Image(TrustModel):
    digest: Digest = Field(alias="docker-manifest-digest")


class _Named(TrustModel):
    reference: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        alias="docker-reference"
    )


class _Critical(TrustModel):
    type: str
    image: _Image
    identity: _Named


class _Optional(WireModel):
    creator: str | None = None
    timestamp: int | None = None


class _Payload(TrustModel):
    critical: _Critical
    optional: dict[str, Any] | None = None


def parse_payload(data: bytes, wanted: Literal["openpgp", "cosign"]) -> tuple[str, str]:
    """Digest and docker-reference of a signed payload (containers reference, sections 5.1 and 5.2).

    Raises:
        Rejected: malformed, unknown members, or a payload of the other kind.
    """
    what = "the signed payload"
    payload: _Payload = checked(_Payload, strict_json(data, what), what)
    checked(_Optional, payload.optional or {}, "optional in the signed payload")
    kind = OPENPGP_TYPE if wanted == "openpgp" else COSIGN_TYPE
    if payload.critical.type != kind:
        raise Rejected(
            "wrong-type", f"the payload is of type {printable(payload.critical.type, 60)!r}"
        )
    return payload.critical.image.digest, payload.critical.identity.reference


# --- statements -----------------------------------------------------------------------------------


class _Subject(WireModel):
    digest: dict[str, str] = Field(max_length=16)


class _Statement(WireModel):
    type: str = Field(alias="_type")
    subject: tuple[_Subject, ...] = Field(strict=False, min_length=1, max_length=1000)
    predicate_type: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        alias="predicateType"
    )


def parse_statement(data: bytes, payload_type: str, digest: str) -> str:
    """The predicate type of an in-toto statement that is about the manifest ``digest``.

    Raises:
        Rejected: malformed, or about something else (both digests are named).
    """
    if payload_type != "application/vnd.in-toto+json":
        raise Rejected("wrong-type", f"the envelope holds {printable(payload_type, 80)!r}")
    what = "the signed statement"
    statement: _Statement = checked(_Statement, strict_json(data, what), what)
    if statement.type not in STATEMENTS:
        raise Rejected("wrong-type", f"the statement is of type {printable(statement.type, 80)!r}")
    algorithm, _, digits = digest.partition(":")
    found = [subject.digest.get(algorithm, "") for subject in statement.subject]
    if digits not in found:
        named = printable(f"{algorithm}:{found[0]}", 100) if found else "nothing"
        raise Rejected("wrong-digest", f"it is about {named}, the image is {digest}")
    return statement.predicate_type


# --- does the claim fit the image -----------------------------------------------------------------


def check_digest(claim: Claim, digest: str) -> Claim:
    """The claim, if it is about ``digest``.

    Raises:
        Rejected: ``wrong-digest``, naming both.
    """
    if claim.digest != digest:
        raise Rejected("wrong-digest", f"it is about {claim.digest}, the image is {digest}")
    return claim


def _named(text: str) -> RegistryName:
    """A claimed name. Stricter than other tools: it has to be written out, as signers write it."""
    try:
        name = RegistryName.parse(text)
    except UsageError as problem:
        raise Rejected(
            "bad-identity", f"it names {printable(text, 100)!r}, which is no image: {problem.found}"
        ) from None
    explicit = name.digest is not None or text.endswith(f":{name.tag}")
    return name if explicit else replace(name, tag=None)


def _image_name(reference: ImageReference) -> RegistryName:
    if reference.transport not in {Transport.REGISTRY, Transport.DOCKER_DAEMON}:
        raise Rejected(
            "no-identity",
            f"{reference.transport.value}: images have no name to compare; "
            "exactReference or exactRepository name one",
        )
    return reference.registry_name().canonical()


def check_identity(
    claimed: str | None, identity: Identity | None, reference: ImageReference
) -> None:
    """Whether the name in the signature is that of the image, by a rule of policy.json (None: the default one).

    Raises:
        Rejected: ``wrong-identity``, naming both; or the signature names nothing.
    """
    if claimed is None:
        raise Rejected("no-identity", "it names no repository, and policy.json compares names")
    claim = _named(claimed)
    if isinstance(identity, ExactReference):
        wanted = RegistryName.parse(identity.docker_reference)
        ok = claim == wanted
    elif isinstance(identity, ExactRepository):
        wanted = RegistryName.parse(identity.docker_repository)
        ok = claim.repository == wanted.repository
    elif isinstance(identity, MatchRepository):
        wanted = _image_name(reference)
        ok = claim.repository == wanted.repository
    elif isinstance(identity, MatchExact):
        wanted = _image_name(reference)
        ok = claim == wanted
    else:
        wanted = _image_name(reference)
        if isinstance(identity, RemapIdentity):
            wanted = _remapped(wanted, identity)
        ok = claim == wanted
        if wanted.digest:  # a tag cannot be compared with a digest: the repository is
            ok = claim.repository == wanted.repository and bool(claim.tag or claim.digest)
    if not ok:
        raise Rejected(
            "wrong-identity", f"it is for {printable(claimed, 200)}, the image is {wanted}"
        )


def _remapped(name: RegistryName, identity: RemapIdentity) -> RegistryName:
    repository = name.repository
    if repository == identity.prefix or repository.startswith(identity.prefix + "/"):
        text = identity.signed_prefix + repository[len(identity.prefix) :]
        try:
            renamed = RegistryName.parse(text)
        except UsageError as problem:
            raise Rejected("bad-identity", f"remapped to {text}: {problem.found}") from None
        return replace(renamed, tag=name.tag, digest=name.digest)
    return name


def bounded(count: int, what: str) -> None:
    """Refuse more signatures than anybody needs.

    Raises:
        Rejected: ``too-many``.
    """
    if count > limits.SIGNATURES:
        raise Rejected("too-many", f"{what}: {count}, at most {limits.SIGNATURES} are looked at")
