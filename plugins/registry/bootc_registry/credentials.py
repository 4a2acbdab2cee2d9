"""Credentials from the auth files and credential helpers: who is asked, which file, which entry.

    credential-helpers = ["containers-auth.json", "NAME"]     of registries.conf: who is asked, in order (default: the files)

    {"auths": {"host[:port][/namespace[/repository]]": {"auth": base64("user:password"), "identitytoken": "…"}},
     "credHelpers": {"host": "name"}}

    $REGISTRY_AUTH_FILE                     if set: this file only
    root        /run/ostree, /etc/ostree, /usr/lib/ostree       auth.json; the first that exists is the only one
    others      $XDG_RUNTIME_DIR/ostree, $XDG_CONFIG_HOME/ostree    the same; without one of them
                $XDG_RUNTIME_DIR/containers, $XDG_CONFIG_HOME/containers   auth.json, and Docker's config.json:
                                                                the first with an entry for the name

A ``credHelpers`` entry sends the question to ``docker-credential-NAME`` (`helpers`). Without a file or helper, root is anonymous:
personal log-ins of the user root never count. Secrets are in no ``repr`` and no error.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import ConfigError, printable
from bootc_core.fs.trusted import read_trusted
from bootc_core.models.base import parse_json
from bootc_core.models.reference import RegistryName

_LOG: Final = logging.getLogger(__name__)
_HUB: Final = frozenset({"docker.io", "registry-1.docker.io", "index.docker.io"})
_SYSTEM: Final = ("run/ostree/auth.json", "etc/ostree/auth.json", "usr/lib/ostree/auth.json")
_LINKS: Final = 16
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]*")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with password, or an identity (refresh) token, which then counts alone."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


FILES: Final = "containers-auth.json"
"""The "helper" that stands for the auth files."""


def find_credentials(
    root: Path,
    name: RegistryName,
    environ: Mapping[str, str] = os.environ,
    helpers: Sequence[str] = (FILES,),
) -> Credentials | None:
    """The credentials for ``name`` (of the endpoint that is contacted), or None: be anonymous.

    Args:
        root: configuration root.
        name: repository and host.
        environ: for the places of files and programs.
        helpers: who is asked, in order: ``FILES``, or names of credential helpers.

    Raises:
        ConfigError: a file cannot be read or is malformed, or a helper fails.
    """
    from bootc_registry.helpers import ask_helper

    for helper in helpers:
        found = (
            _from_files(root, name, environ)
            if helper == FILES
            else ask_helper(helper, name.domain, "registries.conf", environ)
        )
        if found:
            return found
    return None


def _from_files(root: Path, name: RegistryName, environ: Mapping[str, str]) -> Credentials | None:
    for path in auth_files(root, environ):
        data = read_trusted(_inside(root, path), root=root)
        if data is None:
            raise ConfigError(
                f"there is no auth file {printable(str(path))}", reference="unreadable"
            )
        _warn_if_readable(_inside(root, path))
        found = parse_auth(data, name, printable(str(path)), environ)
        if found:
            return found
    return None


def describe_auth(
    root: Path, environ: Mapping[str, str] = os.environ
) -> list[tuple[str, str, str]]:
    """What the files that count hold, without any secret: key, kind, file.

    Raises:
        ConfigError: as ``find_credentials``.
    """
    told = []
    for path in auth_files(root, environ):
        data = read_trusted(_inside(root, path), root=root)
        if data is None:
            continue
        source = printable(str(path))
        document = parse_json(data, source, error=ConfigError, catalogue="CFG")
        for key, helper in _table(document, "credHelpers", source).items():
            told.append((key, f"helper docker-credential-{helper}", source))
        for key, entry in _table(document, "auths", source).items():
            fields = entry if isinstance(entry, dict) else {}
            kind = "user and password" if fields.get("auth") else "nothing"
            told.append((key, "identity token" if fields.get("identitytoken") else kind, source))
    return told


def auth_files(root: Path, environ: Mapping[str, str]) -> list[Path]:
    """The files to look into, in order."""
    if explicit := environ.get("REGISTRY_AUTH_FILE"):
        return [Path(explicit)]
    if os.geteuid() == 0:
        places = [root / name for name in _SYSTEM]
        return [path for path in places if _exists(_inside(root, path))][:1]
    home = environ.get("HOME") or "/nonexistent"
    runtime = environ.get("XDG_RUNTIME_DIR")
    settings = Path(environ.get("XDG_CONFIG_HOME") or f"{home}/.config")
    ours = [Path(runtime) / "ostree/auth.json"] if runtime else []
    ours.append(settings / "ostree/auth.json")
    if present := [path for path in ours if _exists(path)]:
        return present[:1]
    theirs = [
        Path(runtime) / "containers/auth.json"
        if runtime
        else Path(f"/run/containers/{os.geteuid()}/auth.json"),
        settings / "containers/auth.json",
        Path(environ.get("DOCKER_CONFIG") or f"{home}/.docker") / "config.json",
    ]
    return [path for path in theirs if _exists(path)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a directory that we may not enter
        return False


def _inside(root: Path, path: Path) -> Path:
    """``path`` with absolute symbolic links taken as beneath ``root``, as they were written in that system."""
    if root == Path("/") or not path.is_relative_to(root):
        return path
    for _ in range(_LINKS):
        if not path.is_symlink():
            return path
        target = path.readlink()
        path = root / str(target).lstrip("/") if target.is_absolute() else path.parent / target
    raise ConfigError(f"too many links at {printable(str(path))}", reference="unreadable")


def _warn_if_readable(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _LOG.warning(
            "%s can be read by others than its owner (mode %04o)",
            printable(str(path)),
            stat.S_IMODE(mode),
        )


def parse_auth(
    data: bytes, name: RegistryName, source: str, environ: Mapping[str, str] = os.environ
) -> Credentials | None:
    """The credentials for ``name`` in an auth file, or None.

    A helper that the file names for the host is asked instead. Otherwise the most specific key counts: repository,
    namespaces, host; then old spellings (a URL, Docker Hub's other names).

    Raises:
        ConfigError: malformed, or the helper fails.
    """
    document = parse_json(data, source, error=ConfigError, catalogue="CFG")
    auths = _table(document, "auths", source)
    helpers = _table(document, "credHelpers", source)
    if (helper := helpers.get(name.domain)) is not None:
        from bootc_registry.helpers import ask_helper

        if not isinstance(helper, str):
            raise _bad(source, f"credHelpers of {name.domain}", "a string")
        return ask_helper(helper, name.domain, source, environ)
    scope = name.repository
    keys = [scope]
    while "/" in scope:
        scope = scope.rpartition("/")[0]
        keys.append(scope)
    entry, key = next(((auths[key], key) for key in keys if key in auths), (None, ""))
    if entry is None:
        folded = _folded(name.domain)
        found = [key for key in auths if isinstance(key, str) and _folded(key) == folded]
        entry, key = (auths[found[0]], found[0]) if found else (None, "")
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise _bad(source, key, "an object")
    return _entry(entry, source, key)


def _table(document: Any, key: str, source: str) -> dict[str, Any]:
    value = document.get(key) if isinstance(document, dict) else document
    if value is None:
        return {}
    if not isinstance(document, dict) or not isinstance(value, dict):
        raise _bad(source, key, "an object")
    return value


def _bad(source: str, key: str, expected: str) -> ConfigError:
    return ConfigError(
        f"{source}: {printable(key, 120)} is wrong", reference="bad-auth-file", expected=expected
    )


def _folded(key: str) -> str:
    """The host that an old spelling of a key means; a key with namespaces stands for these only."""
    bare = key.removeprefix("https://").removeprefix("http://")
    host = bare.partition("/")[0]
    if host in _HUB and (bare != key or bare == host):
        return "index.docker.io"
    return host if bare != key else key


def _entry(entry: Mapping[str, Any], source: str, key: str) -> Credentials | None:
    token, auth = entry.get("identitytoken") or "", entry.get("auth") or ""
    if not isinstance(token, str) or not isinstance(auth, str):
        raise _bad(source, key, "strings")
    if token:
        return Credentials(identity_token=token)
    if not auth:
        return None
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        raise _bad(source, f"auth of {key}", "base64 of user:password") from None
    password = password.rstrip("\0")
    if not colon or not _TEXT.fullmatch(user + password):
        raise _bad(source, f"auth of {key}", "base64 of user:password")
    return Credentials(user, password)
