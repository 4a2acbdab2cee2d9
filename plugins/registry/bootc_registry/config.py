"""Where a name is really fetched from: registries.conf (version 2) and certs.d of the containers tools.

    name ──longest matching [[registry]]──▶ mirrors in order, then the primary ──▶ Endpoint(s)

    main file       first of  ~/.config/containers (not for root), /etc/containers, /usr/share/containers
    drop-ins        registries.conf.d/*.conf of the same places, lowest first; a file in a higher place masks its name
    certs.d/HOST/   *.crt more authorities; NAME.cert with NAME.key the client's pair

Paths are beneath the configuration root. The logical name stays what policies and users see; endpoints are physical.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import ConfigError, UsageError, printable
from bootc_core.fs.trusted import read_trusted
from bootc_core.models.reference import RegistryName

_FILE_LOGIC: Final = "containers-auth.json"  # the "helper" that stands for auth files
_PULLS: Final = ("all", "digest-only", "tag-only")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to fetch a name from.

    Attributes:
        name: as the endpoint knows it.
        insecure: certificates are not checked there, and plain HTTP will do.
        mirror: not the primary.
        blocked: the file that forbids to contact it, or empty.
    """

    name: RegistryName
    insecure: bool = False
    mirror: bool = False
    blocked: str = ""


@dataclass(frozen=True, slots=True)
class _Mirror:
    location: str
    insecure: bool
    pull: str


@dataclass(frozen=True, slots=True)
class _Registry:
    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[_Mirror, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Registries:
    """What registries.conf and its drop-ins say; without files: every name is fetched from where it says."""

    entries: Mapping[str, _Registry]
    credential_helpers: tuple[str, ...] = (_FILE_LOGIC,)

    @property
    def foreign_helpers(self) -> tuple[str, ...]:
        """Configured credential helpers, which this program does not ask."""
        return tuple(name for name in self.credential_helpers if name != _FILE_LOGIC)

    def endpoints(self, name: RegistryName) -> list[Endpoint]:
        """Endpoints for ``name`` in the order in which they are tried; the primary is last.

        Raises:
            ConfigError: a location in the file makes no usable name.
        """
        text = str(name.canonical())
        matches = [entry for entry in self.entries.values() if _matched(entry.prefix, name)]
        if not matches:
            return [Endpoint(name)]
        entry = max(matches, key=lambda item: len(item.prefix))
        rest = text[len(_matched(entry.prefix, name)) :]
        kind = "digest-only" if name.digest else "tag-only"
        found = [
            Endpoint(_rewritten(mirror.location + rest, entry), mirror.insecure, mirror=True)
            for mirror in entry.mirrors
            if mirror.pull in {"all", kind}
        ]
        primary = _rewritten(entry.location + rest, entry) if entry.location else name
        found.append(
            Endpoint(primary, entry.insecure, blocked=entry.source if entry.blocked else "")
        )
        return found


def _matched(prefix: str, name: RegistryName) -> str:
    """The front of the name that ``prefix`` stands for; empty: no match."""
    text = str(name.canonical())
    if prefix.startswith("*."):
        host = name.domain.partition(":")[0]
        return host if host.endswith(prefix[1:]) else ""
    if text.startswith(prefix) and text[len(prefix) : len(prefix) + 1] in {"", "/", ":", "@"}:
        return prefix
    return ""


def _rewritten(text: str, entry: _Registry) -> RegistryName:
    try:
        name = RegistryName.parse(text)
    except UsageError as problem:
        raise ConfigError(
            f"{entry.source}: a location of the registry {printable(entry.prefix)!r} makes no name",
            reference="bad-registries-conf",
            found=f"{printable(text)}: {problem.found}",
        ) from None
    if name.domain != text.partition("/")[0]:  # it was taken for a Docker Hub name
        raise ConfigError(
            f"{entry.source}: a location of the registry {printable(entry.prefix)!r} names no host",
            reference="bad-registries-conf",
            expected="host/path, the host with a dot or a port",
            found=printable(text),
        )
    return name


class _File:
    """One file's table, with errors that name file and key."""

    def __init__(self, source: str, table: Mapping[str, Any]) -> None:
        self.source = source
        self.table = table

    def fail(self, key: str, expected: str, found: object = None) -> ConfigError:
        return ConfigError(
            f"{self.source}: {printable(key)} is wrong",
            reference="bad-registries-conf",
            expected=expected,
            found=None if found is None else printable(repr(found), 80),
        )

    def get(
        self, table: Mapping[str, Any], key: str, kind: type, default: Any, where: str = ""
    ) -> Any:
        value = table.get(key, default)
        if not isinstance(value, kind):
            words = {str: "a string", bool: "true or false", list: "a list", dict: "a table"}
            raise self.fail(where + key, words[kind], value)
        return value

    def location(self, table: Mapping[str, Any], key: str, where: str) -> str:
        text = str(self.get(table, key, str, "", where)).rstrip("/")
        if "://" in text or any(not char.isprintable() or char == " " for char in text):
            raise self.fail(where + key, "host[:port][/path], without http:// or https://", text)
        return text


def parse_registries(
    data: bytes, source: str
) -> tuple[dict[str, _Registry], tuple[str, ...] | None]:
    """Registries by prefix, and credential helpers (None: not said), of one file.

    Raises:
        ConfigError: ``bad-registries-conf``, naming file and key.
    """
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ConfigError(
            f"{source} is not valid TOML",
            reference="bad-registries-conf",
            found=printable(str(problem)),
        ) from None
    file = _File(source, document)
    if "registries" in document:
        raise file.fail("[registries]", "version 2 of this format: [[registry]] tables")
    entries: dict[str, _Registry] = {}
    for number, table in enumerate(file.get(document, "registry", list, []), 1):
        where = f"registry {number}: "
        if not isinstance(table, dict):
            raise file.fail(where, "a table", table)
        entry = _entry(file, table, where)
        entries.setdefault(entry.prefix, entry)  # the first of a file counts
    helpers = None
    if "credential-helpers" in document:
        helpers = tuple(map(str, file.get(document, "credential-helpers", list, [])))
    return entries, helpers


def _entry(file: _File, table: Mapping[str, Any], where: str) -> _Registry:
    location = file.location(table, "location", where)
    prefix = file.location(table, "prefix", where) or location
    if not prefix:
        raise file.fail(where + "location", "a location or a prefix")
    if "*" in prefix and not (prefix.startswith("*.") and set("/@:*").isdisjoint(prefix[2:])):
        raise file.fail(where + "prefix", "a wildcard of the form *.example.com", prefix)
    if not location and not prefix.startswith("*."):
        raise file.fail(where + "location", "a location")
    only_digests = file.get(table, "mirror-by-digest-only", bool, False, where)
    mirrors = []
    for place, item in enumerate(file.get(table, "mirror", list, [], where), 1):
        at = f"{where}mirror {place}: "
        if not isinstance(item, dict):
            raise file.fail(at, "a table", item)
        pull = file.get(item, "pull-from-mirror", str, "digest-only" if only_digests else "all", at)
        if pull not in _PULLS or (only_digests and "pull-from-mirror" in item):
            raise file.fail(at + "pull-from-mirror", " or ".join(_PULLS) + ", on its own", pull)
        mirror = file.location(item, "location", at)
        if not mirror:
            raise file.fail(at + "location", "a location")
        mirrors.append(_Mirror(mirror, file.get(item, "insecure", bool, False, at), pull))
    return _Registry(
        prefix=prefix,
        location=location,
        insecure=file.get(table, "insecure", bool, False, where),
        blocked=file.get(table, "blocked", bool, False, where),
        mirrors=tuple(mirrors),
        source=file.source,
    )


def _places(root: Path, environ: Mapping[str, str]) -> list[Path]:
    """Directories of the containers tools' configuration, highest first."""
    places = [root / "etc/containers", root / "usr/share/containers"]
    if os.geteuid() != 0 and (home := environ.get("HOME")):
        places.insert(0, Path(environ.get("XDG_CONFIG_HOME") or f"{home}/.config") / "containers")
    return places


def load_registries(root: Path, environ: Mapping[str, str] = os.environ) -> Registries:
    """The configuration beneath ``root``; ``$CONTAINERS_REGISTRIES_CONF`` replaces all of it.

    Raises:
        ConfigError: a file cannot be read or is wrong.
    """
    files: list[Path] = []
    if explicit := environ.get("CONTAINERS_REGISTRIES_CONF"):
        if not Path(explicit).exists():
            raise ConfigError(
                f"$CONTAINERS_REGISTRIES_CONF names {printable(explicit)}, which is not there",
                reference="unreadable",
            )
        files = [Path(explicit)]
    else:
        places = _places(root, environ)
        mains = [place / "registries.conf" for place in places]
        files = [path for path in mains if path.exists()][:1]
        dropins: dict[str, Path] = {}
        for place in reversed(places):
            directory = place / "registries.conf.d"
            if directory.is_dir():
                dropins |= {
                    path.name: path for path in directory.iterdir() if path.suffix == ".conf"
                }
        files += [dropins[name] for name in sorted(dropins)]
    entries: dict[str, _Registry] = {}
    helpers: tuple[str, ...] = (_FILE_LOGIC,)
    for path in files:
        data = read_trusted(path, root=root)
        if data is None:
            continue
        found, named = parse_registries(data, printable(str(path)))
        entries |= found
        helpers = helpers if named is None else named
    return Registries(entries, helpers)


@dataclass(frozen=True, slots=True)
class Certificates:
    """What certs.d holds for a host. ``configured``: there is a directory, so TLS is meant."""

    ca_files: tuple[str, ...] = ()
    client_cert: str | None = None
    client_key: str | None = None
    configured: bool = False


def load_certificates(
    root: Path, host: str, environ: Mapping[str, str] = os.environ
) -> Certificates:
    """The certificates for ``host`` (with port, as the reference has it) of the first directory that there is.

    Raises:
        ConfigError: half of a client's pair is missing.
    """
    places = [place / "certs.d" for place in _places(root, environ)]
    for place in [*places, root / "etc/docker/certs.d"]:
        directory = place / host
        if directory.is_dir():
            return _certificates(directory)
    return Certificates()


def _certificates(directory: Path) -> Certificates:
    names = sorted(path.name for path in directory.iterdir())
    pairs = [name.removesuffix(".cert") for name in names if name.endswith(".cert")]
    keys = [name.removesuffix(".key") for name in names if name.endswith(".key")]
    if odd := sorted(set(pairs) ^ set(keys)):
        half = "key" if odd[0] in pairs else "cert"
        raise ConfigError(
            f"{printable(str(directory))}: a client certificate needs both files",
            reference="bad-certificate-file",
            expected=f"{printable(odd[0])}.{half}",
            found=f"only {printable(odd[0])}.{'cert' if half == 'key' else 'key'}",
        )
    pair = directory / pairs[0] if pairs else None
    return Certificates(
        ca_files=tuple(str(directory / name) for name in names if name.endswith(".crt")),
        client_cert=f"{pair}.cert" if pair else None,
        client_key=f"{pair}.key" if pair else None,
        configured=True,
    )
