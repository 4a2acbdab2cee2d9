"""``bootc trust add``: the files that make an image's signatures count, as they will be; the caller shows and writes them.

    etc/pki/containers/NAME.pub | .gpg      the key, copied
    etc/bootc/trust.d/NAME.toml             the trust policy: this program
    etc/containers/policy.json              the same demand for podman and skopeo, where they can express it
    etc/containers/registries.d/NAME.yaml   where those look for signatures

NAME is made of the repository. Existing files are changed only where they can be read; what they hold is kept.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import ConfigError, UsageError, printable
from bootc_core.fs.trusted import read_trusted
from bootc_core.models.base import parse_json
from bootc_signing import openpgp, trust
from bootc_signing.claims import CannotCheck
from bootc_signing.keys import parse_public_key
from bootc_signing.policy import PREFIX, parse_policy

_POLICY: Final = "etc/containers/policy.json"
_SHARED: Final = "usr/share/containers/policy.json"


def plan(root: Path, repository: str, options: dict[str, str]) -> list[tuple[Path, bytes]]:
    """Path and whole content of each file.

    Args:
        root: configuration root.
        repository: a repository, a namespace, or a host.
        options: ``key``, ``gpg`` or ``identity`` with ``issuer``; and ``trusted_root``, ``rekor``, ``lookaside``.

    Raises:
        UsageError: not exactly one kind of signer, or no repository.
        ConfigError: a key or an existing file cannot be used.
    """
    if not PREFIX.fullmatch(repository.removeprefix("*.")):
        raise UsageError(
            f"{printable(repository)!r} is not a repository",
            reference="bad-reference",
            expected="a repository, as quay.io/acme/os, or a namespace in a registry, without a tag",
        )
    kinds = [kind for kind in ("key", "gpg", "identity") if options.get(kind)]
    if len(kinds) != 1 or bool(options.get("identity")) != bool(options.get("issuer")):
        raise UsageError(
            "name one signer",
            expected="--key FILE, --gpg FILE, or --identity NAME with --issuer URL",
            found=", ".join(f"--{kind}" for kind in kinds) or "none",
        )
    name = re.sub(r"[^A-Za-z0-9.]+", "-", repository).strip("-.")
    files: list[tuple[Path, bytes]] = []
    signer = {"name": "publisher"}
    kind = kinds[0]
    for option, suffix in (("key", ".pub"), ("gpg", ".gpg"), ("rekor", ".rekor.pub")):
        if options.get(option):
            data = _key(Path(options[option]), option)
            place = f"/etc/pki/containers/{name}{suffix}"
            files.append((root / place[1:], data))
            signer[option] = place
    if options.get("trusted_root"):
        data = _read(Path(options["trusted_root"]))
        parse_json(data, options["trusted_root"], error=ConfigError, catalogue="CFG")
        place = f"/etc/pki/containers/{name}.trusted_root.json"
        files.append((root / place[1:], data))
        signer["trusted_root"] = place
    signer |= {item: options[item] for item in ("identity", "issuer") if options.get(item)}
    text = _toml(repository, signer, options.get("max_age", ""))
    path = root / "etc/bootc/trust.d" / f"{name}.toml"
    trust.parse(text, str(path))
    _check_scope(root, repository, path)
    files.append((path, text))
    if kind != "identity":
        files.append((root / _POLICY, _policy(root, repository, _requirement(kind, signer))))
        files.append(
            (
                root / "etc/containers/registries.d" / f"{name}.yaml",
                _where(repository, options, kind),
            )
        )
    return files


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024 * 1024)
    except OSError as problem:
        raise UsageError(
            f"cannot read {printable(str(path))}", found=printable(problem.strerror or "")
        ) from None


def _key(path: Path, option: str) -> bytes:
    data = _read(path)
    try:
        if option == "gpg":
            openpgp.make_ring([(str(path), data)])
        else:
            parse_public_key(data, printable(str(path)))
    except CannotCheck as problem:
        raise ConfigError(str(problem), reference="bad-key", hint=problem.hint) from None
    return data


def _check_scope(root: Path, repository: str, path: Path) -> None:
    present = trust.load(root).get(repository)
    if present is not None and present[0] != str(path):
        raise ConfigError(
            f"there is a trust policy for {repository} already",
            reference="bad-trust-policy",
            found=present[0],
            hint="change that file, or delete it first",
        )


def _toml(repository: str, signer: dict[str, str], max_age: str) -> bytes:
    lines = [
        f"# Who has to sign {repository}; explained in docs/trust-and-signatures.md",
        f"repository = {json.dumps(repository)}",
        'require = "any"',
        'policy_json = "instead"  # this file decides here; other tools go by policy.json',
        'downgrade = "refuse"',
        *([f"max_age = {json.dumps(max_age)}"] if max_age else []),
        "",
        "[[signer]]",
        *(f"{key} = {json.dumps(value)}" for key, value in signer.items()),
        "",
    ]
    return "\n".join(lines).encode()


def _requirement(kind: str, signer: dict[str, str]) -> dict[str, Any]:
    if kind == "gpg":
        return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": signer["gpg"]}
    rekor = {"rekorPublicKeyPath": signer["rekor"]} if "rekor" in signer else {}
    return {
        "type": "sigstoreSigned",
        "keyPath": signer["key"],
        **rekor,
        # cosign signs the repository's name without a tag
        "signedIdentity": {"type": "matchRepository"},
    }


def _policy(root: Path, repository: str, requirement: dict[str, Any]) -> bytes:
    """policy.json with a rule for the repository; where there is none, everything else is rejected."""
    path = root / _POLICY
    data = read_trusted(path, root=root)
    if data is None:
        data = read_trusted(root / _SHARED, root=root)  # it counts now, and would not any more
    document: dict[str, Any] = {"default": [{"type": "reject"}]}
    if data is not None:
        parse_policy(data, printable(str(path)))
        document = parse_json(data, printable(str(path)), error=ConfigError, catalogue="CFG")
    document.setdefault("transports", {}).setdefault("docker", {})[repository] = [requirement]
    text = (json.dumps(document, indent=4) + "\n").encode()
    parse_policy(text, printable(str(path)))
    return text


def _where(repository: str, options: dict[str, str], kind: str) -> bytes:
    lines = ["docker:", f"  {json.dumps(repository)}:"]
    if kind == "key":
        lines.append("    use-sigstore-attachments: true")
    if options.get("lookaside"):
        lines.append(f"    lookaside: {json.dumps(options['lookaside'])}")
    if len(lines) == 2:
        lines[1] += " {}"
    return ("\n".join(lines) + "\n").encode()
