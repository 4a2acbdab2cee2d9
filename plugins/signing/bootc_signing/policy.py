"""policy.json: parsed strictly, the rule for a reference, and what that rule answers.

    {"default": [REQUIREMENT, ...],
     "transports": {"docker": {"quay.io/acme": [REQUIREMENT, ...], "": [...]}, "oci": {...}}}

The most specific list counts alone, lists are never merged: identity, parent namespaces, wildcards,
the transport's ``""``, ``default``. Every requirement of that list has to pass. Whatever is unknown
in the file (a key, a type) makes all of it invalid: a typing error must not accept anything
(containers-policy.json(5); containers reference, section 4.5).

No I/O here: ``load`` reads the file, ``requirements`` checks signatures.
"""

from __future__ import annotations

import base64
import binascii
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from bootc_core.errors import ConfigError, UsageError, printable
from bootc_core.models.base import TrustModel, parse_json, validate
from bootc_core.models.reference import ImageReference, RegistryName, Transport, policy_scopes

FLAG: Final = "--no-signature-verification"

# policy.json says "docker" where we say "registry"
_NAMES: Final = {transport: transport.value for transport in Transport} | {
    Transport.REGISTRY: "docker"
}
_PATHS: Final = frozenset({"oci", "oci-archive", "dir"})
PREFIX: Final = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?"
    r"(?:/[a-z0-9]+(?:(?:__|[._]|-+)[a-z0-9]+)*)*"
)


def _check_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    return text


def _check_full_reference(text: str) -> str:
    """A name with tag or digest, written out."""
    name = _check_name(text)
    if name.canonical() != name or ("@" not in text and not text.endswith(f":{name.tag}")):
        raise ValueError("needs a tag or a digest")
    return text


def _check_repository(text: str) -> str:
    _check_name(text)
    return text


def _check_name(text: str) -> RegistryName:
    try:
        return RegistryName.parse(text)
    except UsageError as problem:
        raise ValueError(f"not an image name: {problem.found}") from None


def _check_prefix(text: str) -> str:
    if not PREFIX.fullmatch(text):
        raise ValueError("not a registry or a namespace in one")
    return text


Text: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
Data: TypeAlias = Annotated[Text, AfterValidator(_check_base64)]
Datas: TypeAlias = Annotated[tuple[Data, ...], Field(strict=False, min_length=1)]


def _count(given: dict[str, object], *, at_least: int, at_most: int) -> None:
    """Check how many of several fields are set."""
    present = [name for name, value in given.items() if value is not None]
    if not at_least <= len(present) <= at_most:
        amount = {(1, 1): "exactly one", (0, 1): "at most one"}.get((at_least, at_most), "some")
        raise ValueError(
            f"needs {amount} of {', '.join(given)}; has {', '.join(present) or 'none'}"
        )


# --- signed identities ----------------------------------------------------------------------------


class MatchExact(TrustModel):
    """The signed name equals the image's, tag or digest included."""

    type: Literal["matchExact"]


class MatchRepoDigestOrExact(TrustModel):
    """By tag: the signed name equals the image's. By digest: the repository does."""

    type: Literal["matchRepoDigestOrExact"]


class MatchRepository(TrustModel):
    """The signed name is of the same repository."""

    type: Literal["matchRepository"]


class ExactReference(TrustModel):
    """The signed name equals this one."""

    type: Literal["exactReference"]
    docker_reference: Annotated[str, AfterValidator(_check_full_reference)] = Field(
        alias="dockerReference"
    )


class ExactRepository(TrustModel):
    """The signed name is of this repository."""

    type: Literal["exactRepository"]
    docker_repository: Annotated[str, AfterValidator(_check_repository)] = Field(
        alias="dockerRepository"
    )


class RemapIdentity(TrustModel):
    """As ``MatchRepoDigestOrExact``, with ``prefix`` of the image's name replaced first."""

    type: Literal["remapIdentity"]
    prefix: Annotated[str, AfterValidator(_check_prefix)]
    signed_prefix: Annotated[str, AfterValidator(_check_prefix)] = Field(alias="signedPrefix")


Identity: TypeAlias = Annotated[
    MatchExact
    | MatchRepoDigestOrExact
    | MatchRepository
    | ExactReference
    | ExactRepository
    | RemapIdentity,
    Field(discriminator="type"),
]


# --- requirements ---------------------------------------------------------------------------------


class InsecureAcceptAnything(TrustModel):
    """Always passes."""

    type: Literal["insecureAcceptAnything"]


class Reject(TrustModel):
    """Never passes."""

    type: Literal["reject"]


class SignedBy(TrustModel):
    """One simple-signing signature is valid by an OpenPGP key of the ring, identity included."""

    type: Literal["signedBy"]
    # the format knows the others, and no tool has ever implemented them: such a requirement never passes
    key_type: Literal["GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"] = Field(
        alias="keyType"
    )
    key_path: Text | None = Field(alias="keyPath", default=None)
    key_paths: Texts | None = Field(alias="keyPaths", default=None)
    key_data: Data | None = Field(alias="keyData", default=None)
    signed_identity: Identity | None = Field(alias="signedIdentity", default=None)

    @model_validator(mode="after")
    def _one_key(self) -> SignedBy:
        keys = {"keyPath": self.key_path, "keyPaths": self.key_paths, "keyData": self.key_data}
        _count(dict(keys), at_least=1, at_most=1)
        return self


class Fulcio(TrustModel):
    """A certificate that this authority issued to this address."""

    ca_path: Text | None = Field(alias="caPath", default=None)
    ca_data: Data | None = Field(alias="caData", default=None)
    oidc_issuer: Text = Field(alias="oidcIssuer")
    subject_email: Text = Field(alias="subjectEmail")

    @model_validator(mode="after")
    def _one_authority(self) -> Fulcio:
        _count({"caPath": self.ca_path, "caData": self.ca_data}, at_least=1, at_most=1)
        return self


class Pki(TrustModel):
    """A certificate beneath these roots for this subject."""

    roots_path: Text | None = Field(alias="caRootsPath", default=None)
    roots_data: Data | None = Field(alias="caRootsData", default=None)
    intermediates_path: Text | None = Field(alias="caIntermediatesPath", default=None)
    intermediates_data: Data | None = Field(alias="caIntermediatesData", default=None)
    subject_email: Text | None = Field(alias="subjectEmail", default=None)
    subject_hostname: Text | None = Field(alias="subjectHostname", default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Pki:
        roots = {"caRootsPath": self.roots_path, "caRootsData": self.roots_data}
        _count(dict(roots), at_least=1, at_most=1)
        intermediates = {
            "caIntermediatesPath": self.intermediates_path,
            "caIntermediatesData": self.intermediates_data,
        }
        _count(dict(intermediates), at_least=0, at_most=1)
        subjects = {"subjectEmail": self.subject_email, "subjectHostname": self.subject_hostname}
        _count(dict(subjects), at_least=1, at_most=2)
        return self


class SigstoreSigned(TrustModel):
    """One sigstore signature is valid by a key or certificate, identity included."""

    type: Literal["sigstoreSigned"]
    key_path: Text | None = Field(alias="keyPath", default=None)
    key_paths: Texts | None = Field(alias="keyPaths", default=None)
    key_data: Data | None = Field(alias="keyData", default=None)
    key_datas: Datas | None = Field(alias="keyDatas", default=None)
    fulcio: Fulcio | None = None
    pki: Pki | None = None
    rekor_path: Text | None = Field(alias="rekorPublicKeyPath", default=None)
    rekor_paths: Texts | None = Field(alias="rekorPublicKeyPaths", default=None)
    rekor_data: Data | None = Field(alias="rekorPublicKeyData", default=None)
    rekor_datas: Datas | None = Field(alias="rekorPublicKeyDatas", default=None)
    signed_identity: Identity | None = Field(alias="signedIdentity", default=None)

    @model_validator(mode="after")
    def _consistent(self) -> SigstoreSigned:
        keys = {
            "keyPath": self.key_path,
            "keyPaths": self.key_paths,
            "keyData": self.key_data,
            "keyDatas": self.key_datas,
            "fulcio": self.fulcio,
            "pki": self.pki,
        }
        _count(dict(keys), at_least=1, at_most=1)
        logs = {
            "rekorPublicKeyPath": self.rekor_path,
            "rekorPublicKeyPaths": self.rekor_paths,
            "rekorPublicKeyData": self.rekor_data,
            "rekorPublicKeyDatas": self.rekor_datas,
        }
        _count(dict(logs), at_least=0, at_most=1)
        logged = any(value is not None for value in logs.values())
        if self.fulcio is not None and not logged:
            raise ValueError("fulcio needs a Rekor key, for the time of the signature")
        if self.pki is not None and logged:
            raise ValueError("pki takes no Rekor key")
        return self


class SignedBaseLayer(TrustModel):
    """Reserved by the format; never passes, here as elsewhere."""

    type: Literal["signedBaseLayer"]
    base_layer_identity: Identity = Field(alias="baseLayerIdentity")


Requirement: TypeAlias = Annotated[
    InsecureAcceptAnything | Reject | SignedBy | SigstoreSigned | SignedBaseLayer,
    Field(discriminator="type"),
]
Requirements: TypeAlias = Annotated[
    tuple[Requirement, ...], Field(strict=False, min_length=1, max_length=100)
]


class Policy(TrustModel):
    """The document."""

    default: Requirements
    transports: dict[str, dict[str, Requirements]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _scopes(self) -> Policy:
        for transport, scopes in self.transports.items():
            for scope in scopes:
                if scope and (problem := _scope_problem(transport, scope)):
                    place = f"transports.{printable(transport, 40)}"
                    raise ValueError(f'{place}["{printable(scope, 100)}"] {problem}')
        return self


def _scope_problem(transport: str, scope: str) -> str | None:
    """Why a scope could never match, which its author cannot have meant."""
    if transport in _PATHS:
        if not scope.startswith("/"):
            return "is not an absolute path"
        if scope == "/":
            return 'is not allowed; the whole transport is written ""'
        if scope.startswith("//") or posixpath.normpath(scope) != scope:
            return "is not the plain form of a path (no '//', '.', '..' or '/' at the end)"
    if transport == "docker-archive":
        return 'cannot match: archives of this kind have only the scope ""'
    if transport == "containers-storage" and not scope.startswith("["):
        return "does not begin with [driver@graphroot] or [graphroot]"
    return None


def parse_policy(data: bytes, what: str) -> Policy:
    """The policy in ``data``.

    Args:
        data: the file's content.
        what: its path, for errors.

    Raises:
        ConfigError: not strict JSON (``bad-json``), or unknown, missing or contradicting fields
            (``bad-document``, with their JSON path).
    """
    value = parse_json(data, what, error=ConfigError, catalogue="CFG")
    return validate(Policy, value, what, error=ConfigError, catalogue="CFG")


# --- decision -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """The one list of requirements that counts for a reference, and where it stands in the file."""

    place: str  # e.g. transports.docker["quay.io/acme"]
    requirements: tuple[Requirement, ...]


def rule_for(
    policy: Policy, reference: ImageReference, resolve: Callable[[str], str] = os.path.realpath
) -> Rule:
    """The most specific rule for ``reference``.

    Args:
        policy: the document.
        reference: as the administrator named the image; a mirror or digest found later is not asked.
        resolve: makes paths of local transports absolute and free of symbolic links.
    """
    transport = _NAMES[reference.transport]
    scopes = policy.transports.get(transport)
    if scopes is not None:
        identity, parents = policy_scopes(reference, resolve)
        for scope in (identity, *parents, ""):
            if scope in scopes:
                return Rule(f'transports.{transport}["{printable(scope)}"]', scopes[scope])
    return Rule("default", policy.default)


def describe(requirement: Requirement) -> str:
    """A requirement in the words of its author, e.g. ``signedBy with /etc/pki/key.gpg``."""
    source = ""
    if isinstance(requirement, SignedBy | SigstoreSigned):
        source = requirement.key_path or ", ".join(requirement.key_paths or ())
    if isinstance(requirement, SigstoreSigned) and requirement.fulcio is not None:
        source = f"{requirement.fulcio.subject_email} ({requirement.fulcio.oidc_issuer})"
    if isinstance(requirement, SigstoreSigned) and requirement.pki is not None:
        source = requirement.pki.subject_email or requirement.pki.subject_hostname or ""
    return requirement.type + (f" with {printable(source, 100)}" if source else "")
