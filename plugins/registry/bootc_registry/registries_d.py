"""registries.d: where signatures of a repository are (containers-registries.d(5)).

    default-docker: {SECTION}
    docker: {"quay.io/acme": {SECTION}, ...}
    SECTION: lookaside: URL, use-sigstore-attachments: BOOL         (old name: sigstore)

Places as for registries.conf, lowest first; a file in a higher place masks its name in lower ones. Scopes are those of policies.
Every key is looked up by itself, from the most specific scope to the default. Without any setting there is the store that other
tools use by default, on this host only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import ConfigError, printable
from bootc_core.fs.trusted import read_trusted
from bootc_core.models.reference import ImageReference, policy_scopes

DEFAULT: Final = ""
_KEYS: Final = {
    "lookaside": str,
    "lookaside-staging": str,
    "sigstore": str,
    "sigstore-staging": str,
    "use-sigstore-attachments": bool,
}


@dataclass(frozen=True, slots=True)
class Section:
    """What holds for one image.

    Attributes:
        lookaside: URL of the store (http, https, file), or None.
        attachments: whether cosign's tags are looked at; None: not said.
    """

    lookaside: str | None = None
    attachments: bool | None = None


def parse(data: bytes, source: str) -> dict[str, dict[str, Any]]:
    """Sections by scope; ``DEFAULT`` for all.

    Raises:
        ConfigError: ``bad-registries-d``, naming file and key.
    """
    import yaml

    def fail(where: str, expected: str) -> ConfigError:
        return ConfigError(
            f"{source}: {printable(where)} is wrong",
            reference="bad-registries-d",
            expected=expected,
        )

    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise ConfigError(
            f"{source} is not valid YAML",
            reference="bad-registries-d",
            found=printable(str(problem)),
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict) or set(document) - {"default-docker", "docker"}:
        raise fail("the document", "default-docker and docker only")
    sections: dict[str, dict[str, Any]] = {}
    if "default-docker" in document:
        sections[DEFAULT] = document["default-docker"] or {}
    scopes = document.get("docker") or {}
    if not isinstance(scopes, dict):
        raise fail("docker", "a section for each scope")
    for scope, section in scopes.items():
        if not isinstance(scope, str) or not scope:
            raise fail("docker", "scopes as in policy.json")
        sections[scope] = section or {}
    for scope, section in sections.items():
        where = f"docker.{scope}" if scope else "default-docker"
        if not isinstance(section, dict):
            raise fail(where, "a section")
        for key, value in section.items():
            if not isinstance(value, _KEYS.get(key, type(None))):
                raise fail(f"{where}.{key}", f"one of {', '.join(_KEYS)}, of the right type")
        url = section.get("lookaside") or section.get("sigstore") or "file:///"
        if url.partition("://")[0] not in {"http", "https", "file"}:
            raise fail(f"{where}.lookaside", "a URL: https, http or file")
    return sections


def load(root: Path, reference: ImageReference, environ: Mapping[str, str] = os.environ) -> Section:
    """What the configuration beneath ``root`` says about an image of a registry.

    Raises:
        ConfigError: a file is malformed or unsafe, or two say something about one scope.
    """
    places = [root / "usr/share/containers", root / "etc/containers"]
    if os.geteuid() != 0 and (home := environ.get("HOME")):
        places.append(Path(environ.get("XDG_CONFIG_HOME") or f"{home}/.config") / "containers")
    files: dict[str, Path] = {}
    for place in places:
        directory = place / "registries.d"
        if directory.is_dir():
            files |= {path.name: path for path in directory.iterdir() if path.suffix == ".yaml"}
    sections: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}
    for name in sorted(files):
        data = read_trusted(files[name], root=root)
        if data is None:
            continue
        source = printable(str(files[name]))
        for scope, section in parse(data, source).items():
            if scope in sections:
                raise ConfigError(
                    f"two files say where signatures of {printable(scope or 'all images')} are",
                    reference="bad-registries-d",
                    found=f"{origin[scope]} and {source}",
                )
            sections[scope], origin[scope] = section, source
    return _choose(sections, root, reference, environ)


def _choose(
    sections: dict[str, dict[str, Any]],
    root: Path,
    reference: ImageReference,
    environ: Mapping[str, str],
) -> Section:
    identity, parents = policy_scopes(reference)
    lookaside: str | None = None
    attachments: bool | None = None
    for scope in (identity, *parents, DEFAULT):
        section = sections.get(scope, {})
        if lookaside is None:
            lookaside = section.get("lookaside") or section.get("sigstore")
        if attachments is None:
            attachments = section.get("use-sigstore-attachments")
    if lookaside is None and root == Path("/"):
        lookaside = "file:///var/lib/containers/sigstore"
        if os.geteuid() != 0:
            lookaside = f"file://{environ.get('HOME', '')}/.local/share/containers/sigstore"
    return Section(lookaside, attachments)
