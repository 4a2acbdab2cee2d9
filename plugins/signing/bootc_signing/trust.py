"""Policy beyond policy.json: one readable TOML file per repository, who has to sign what.

    # /etc/bootc/trust.d/acme.toml            (usr/lib/bootc/trust.d below it; a file of the same name in /etc replaces it)
    repository = "quay.io/acme/os"            # or a namespace, a host, "*.example.com", "oci:/srv/images"
    require = "any"                           # "any", "all", a number, or {at_least = 2, of = ["a", "b", {any = [...]}]}
    signed = "either"                         # what has to be signed: either, index, image, both
    policy_json = "also"                      # policy.json has to accept too; "instead": this file decides
    downgrade = "refuse"                      # an image older than the one before; "allow"
    max_age = "30d"                           # of signature (or image); older ones are not deployed

    [[signer]]
    name = "release"
    key = "/etc/pki/containers/acme.pub"      # cosign, both layouts
    rekor = "/etc/pki/containers/rekor.pub"   # and recorded in this log

    [[signer]]
    name = "ci"
    identity = "https://github.com/acme/os/.github/workflows/build.yml@refs/heads/main"
    issuer = "https://token.actions.githubusercontent.com"
    trusted_root = "/etc/bootc/trusted_root.json"

    [[signer]]
    name = "old"
    gpg = "/etc/pki/rpm-gpg/acme.gpg"         # simple signing

    [[attestation]]
    predicate = "https://slsa.dev/provenance/v1"
    signers = ["ci"]                          # any of these; default: any signer

The most specific file counts alone, as in policy.json. A ``*`` in an identity stands for characters other than ``/`` and
``@``, and the whole identity has to match. Signers that turn out to be one key or identity count once.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, model_validator

from bootc_core.errors import ConfigError, printable
from bootc_core.fs.trusted import read_trusted
from bootc_core.models.base import TrustModel, validate
from bootc_core.models.reference import ImageReference, Transport, policy_scopes
from bootc_signing.policy import PREFIX

DIRECTORIES: Final = ("usr/lib/bootc/trust.d", "etc/bootc/trust.d")
TRUSTED_ROOT: Final = "/etc/bootc/trusted_root.json"
_FILES: Final = 1000
_NESTING: Final = 8
_AGE: Final = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNITS: Final = {"h": 3600, "d": 86400, "w": 7 * 86400}
_LOCAL: Final = "oci:", "oci-archive:", "docker-archive:", "dir:", "containers-storage:"
_SIGNER_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=2000)]
Name: TypeAlias = Annotated[str, Field(pattern=_SIGNER_NAME)]


class Signer(TrustModel):
    """Somebody who may sign: a key, an identity, or an OpenPGP ring."""

    name: Name
    key: Text | None = None
    gpg: Text | None = None
    identity: Text | None = None
    issuer: Text | None = None
    trusted_root: Text | None = None
    rekor: Text | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Signer:
        kinds = [kind for kind in ("key", "gpg", "identity") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"needs one of key, gpg, identity; has {', '.join(kinds) or 'none'}")
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("identity and issuer belong together")
        if self.trusted_root is not None and self.identity is None:
            raise ValueError("trusted_root is for an identity")
        if self.rekor is not None and self.key is None:
            raise ValueError("rekor is for a key; a trusted root names its own logs")
        if self.identity is not None and self.identity.strip("*@/.:") == "":
            raise ValueError("an identity that everybody has is none")
        return self

    def describe(self) -> str:
        """For people."""
        if self.identity is not None:
            return f"{self.name}: {self.identity} ({self.issuer})"
        return f"{self.name}: {self.key or f'OpenPGP {self.gpg}'}"


class Attestation(TrustModel):
    """A signed statement that has to be there."""

    predicate: Text
    signers: tuple[Name, ...] | None = Field(strict=False, default=None, min_length=1)


class TrustPolicy(TrustModel):
    """One file."""

    repository: Text
    require: Literal["any", "all"] | int | dict[str, Any] = "any"
    signed: Literal["either", "index", "image", "both"] = "either"
    policy_json: Literal["also", "instead"] = "also"
    downgrade: Literal["refuse", "allow"] = "refuse"
    max_age: Annotated[str, Field(pattern=_AGE.pattern)] | None = None
    signer: tuple[Signer, ...] = Field(strict=False, min_length=1, max_length=64)
    attestation: tuple[Attestation, ...] = Field(strict=False, default=(), max_length=64)

    @model_validator(mode="after")
    def _consistent(self) -> TrustPolicy:
        if not PREFIX.fullmatch(self.repository.removeprefix("*.")) and not (
            self.repository.startswith(_LOCAL)
        ):
            raise ValueError("repository is not a registry, a namespace, or a repository")
        names = [signer.name for signer in self.signer]
        if len(set(names)) != len(names):
            raise ValueError("two signers have one name")
        if self.max_age is not None and not _AGE.fullmatch(self.max_age):
            raise ValueError("max_age is a number and h, d or w")
        used = set(names_in(self.expression()))
        for attestation in self.attestation:
            used |= set(attestation.signers or ())
        if unknown := used - set(names):
            raise ValueError(f"there is no signer named {', '.join(sorted(unknown))}")
        return self

    def expression(self) -> Group:
        """``require`` in its full form."""
        names = tuple(signer.name for signer in self.signer)
        if self.require == "any":
            return Group(1, names)
        if self.require == "all":
            return Group(len(names), names)
        if isinstance(self.require, int):
            return _group({"at_least": self.require, "of": list(names)}, 0)
        return _group(self.require, 0)

    def age_s(self) -> int | None:
        """``max_age`` in seconds."""
        if self.max_age is None:
            return None
        match = _AGE.fullmatch(self.max_age)
        assert match is not None  # noqa: S101 - the model checked
        return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Group:
    """``at_least`` of the members: signers' names, and groups."""

    at_least: int
    members: tuple[str | Group, ...]

    def describe(self) -> str:
        """For people: ``2 of (a, b, c)``."""
        names = ", ".join(
            item if isinstance(item, str) else item.describe() for item in self.members
        )
        if len(self.members) == 1:
            return names
        return f"{self.at_least} of ({names})"

    def fulfilled(self, principals: Mapping[str, str]) -> bool:
        """Whether enough members signed.

        Args:
            principals: who signed (key or identity), by name of the signer. One principal counts once.
        """
        who = {
            principals[item]
            for item in self.members
            if isinstance(item, str) and item in principals
        }
        groups = sum(item.fulfilled(principals) for item in self.members if isinstance(item, Group))
        return len(who) + groups >= self.at_least


def _group(value: dict[str, Any], depth: int) -> Group:
    if depth > _NESTING:
        raise ValueError("require is nested too deeply")
    if set(value) == {"any"}:
        items, least = value["any"], 1
    elif set(value) == {"all"}:
        items, least = value["all"], None
    elif set(value) == {"at_least", "of"}:
        items, least = value["of"], value["at_least"]
    else:
        raise ValueError("require is {any = [...]}, {all = [...]} or {at_least = N, of = [...]}")
    if not isinstance(items, list) or not 0 < len(items) <= 64:
        raise ValueError("require needs a list of signers")
    members: list[str | Group] = []
    for item in items:
        if isinstance(item, str):
            members.append(item)
        elif isinstance(item, dict):
            members.append(_group(item, depth + 1))
        else:
            raise ValueError("require lists names of signers, and tables like itself")  # noqa: TRY004
    if len({item for item in members if isinstance(item, str)}) != sum(
        isinstance(item, str) for item in members
    ):
        raise ValueError("require names a signer twice in one list")
    count = len(members) if least is None else least
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= len(members):
        raise ValueError(f"require wants {count} of {len(members)}")
    return Group(count, tuple(members))


def names_in(group: Group) -> Iterator[str]:
    """All names of signers in a group and those within."""
    for item in group.members:
        if isinstance(item, str):
            yield item
        else:
            yield from names_in(item)


def parse(data: bytes, what: str) -> TrustPolicy:
    """The policy in a file.

    Raises:
        ConfigError: ``bad-trust-policy``, naming file and key.
    """
    try:
        value = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as problem:
        raise ConfigError(
            f"{what} is not valid TOML",
            reference="bad-trust-policy",
            found=printable(str(problem)),
        ) from None
    return validate(TrustPolicy, value, what, error=ConfigError, catalogue="CFG")


def load(root: Path) -> dict[str, tuple[str, TrustPolicy]]:
    """File and policy by scope.

    Raises:
        ConfigError: any file is malformed or unsafe, or two are about one scope: nothing is guessed.
    """
    files: dict[str, Path] = {}
    for directory in DIRECTORIES:
        place = root / directory
        if place.is_dir():
            files |= {path.name: path for path in place.iterdir() if path.suffix == ".toml"}
    if len(files) > _FILES:
        raise ConfigError(f"there are more than {_FILES} trust policies", reference="too-many")
    policies: dict[str, tuple[str, TrustPolicy]] = {}
    for name in sorted(files):
        data = read_trusted(files[name], root=root)
        if data is None:
            continue
        what = printable(str(files[name]))
        policy = parse(data, what)
        if policy.repository in policies:
            other = policies[policy.repository][0]
            raise ConfigError(
                f"two trust policies are about {policy.repository}",
                reference="bad-trust-policy",
                found=f"{other} and {what}",
                hint="keep one of them",
            )
        policies[policy.repository] = (what, policy)
    return policies


def scopes(
    reference: ImageReference, resolve: Callable[[str], str] = os.path.realpath
) -> tuple[str, ...]:
    """Scopes for ``reference`` as trust policies write them, most specific first."""
    identity, parents = policy_scopes(reference, resolve)
    if reference.transport is Transport.REGISTRY:
        return (identity, *parents)
    prefix = reference.transport.value
    return tuple(f"{prefix}:{scope}" for scope in (identity, *parents) if scope)


def policy_for(
    policies: Mapping[str, tuple[str, TrustPolicy]], reference: ImageReference
) -> tuple[str, TrustPolicy] | None:
    """The most specific policy for ``reference``, with its file."""
    for scope in scopes(reference):
        if scope in policies:
            return policies[scope]
    return None


def matches(pattern: str, identity: str) -> bool:
    """Whether the whole identity is what the policy names; ``*``: characters other than ``/`` and ``@``."""
    parts = (re.escape(part) for part in pattern.split("*"))
    return re.fullmatch("[^/@]*".join(parts), identity) is not None
