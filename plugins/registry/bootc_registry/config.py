"""Where a name is really fetched from: registries.conf (version 2) and certs.d of the containers tools.

    name ──longest matching [[registry]]──▶ mirrors in order, then the primary ──▶ Endpoint(s)

    main file       first of  ~/.config/containers (not for root), /etc/containers, /usr/share/containers
    drop-ins        registries.conf.d/*.conf of the same places, and of the two system places registries.rootful.conf.d (root)
                    or registries.rootless.conf.d and its UID/ (others); a file in a higher place masks its name
    environment     $CONTAINERS_REGISTRIES_CONF (older: $REGISTRIES_CONFIG_PATH) instead of all of them,
                    $CONTAINERS_REGISTRIES_CONF_OVERRIDE after all of them
    certs.d/HOST/   *.crt more authorities; NAME.cert with NAME.key the client's pair; certs.rootful.d, certs.rootless.d too

Paths are beneath the configuration root. The logical name stays what policies and users see; endpoints are physical.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import ConfigError, UsageError, printable
from bootc_core.fs.trusted import read_trusted
from bootc_core.models.reference import RegistryName
from bootc_registry.credentials import FILES

_PULLS: Final = ("all", "digest-only", "tag-only")
_MODES: Final = ("enforcing", "permissive", "disabled")


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
    credential_helpers: tuple[str, ...] = (FILES,)
    aliases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    values: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def refuse_alias(self, written: str) -> None:
        """A host's system must not come from whatever an alias means today: the full name has to be written.

        Raises:
            ConfigError: ``short-name``: ``written`` is a name for which there is an alias.
        """
        bare = written.partition("@")[0]
        head, slash, last = bare.rpartition("/")
        bare = f"{head}{slash}{last.partition(':')[0]}"
        first = bare.partition("/")[0]
        if ("/" in bare and ("." in first or ":" in first or first == "localhost")) or (
            bare not in self.aliases
        ):
            return
        full, source = self.aliases[bare]
        if _same(bare, full):
            return
        raise ConfigError(
            f"{printable(bare)} is a short name, for which an operating system is not looked up",
            reference="short-name",
            found=f"{source} has it as an alias of {printable(full)}",
            hint=f"write the full name: {printable(full)}{printable(written[len(bare) :])}",
        )

    def describe(self) -> list[tuple[str, str, str]]:
        """Every value in force: key, value, the file it came from (empty: the default)."""
        told = [(key, *value) for key, value in self.values.items()]
        if "credential-helpers" not in self.values:
            told.append(("credential-helpers", ", ".join(self.credential_helpers), ""))
        told += [(f"alias {name}", *value) for name, value in sorted(self.aliases.items())]
        for prefix, entry in sorted(self.entries.items()):
            words = [entry.location or "(the host itself)"]
            words += ["insecure"] * entry.insecure + ["blocked"] * entry.blocked
            told.append((f"registry {prefix}", ", ".join(words), entry.source))
            for number, mirror in enumerate(entry.mirrors, 1):
                words = [mirror.location, *["insecure"] * mirror.insecure]
                words += [f"for {mirror.pull}"] * (mirror.pull != "all")
                told.append((f"registry {prefix} mirror {number}", ", ".join(words), entry.source))
        return told

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


def _same(written: str, full: str) -> bool:
    """Whether an alias means what the name means without it (``docker.io``)."""
    try:
        one, other = RegistryName.parse(written), RegistryName.parse(full)
    except UsageError:
        return False
    return one.repository == other.repository


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


def parse_registries(data: bytes, source: str) -> Registries:
    """What one file says.

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
    values: dict[str, tuple[str, str]] = {}
    helpers: tuple[str, ...] = (FILES,)
    for key in ("credential-helpers", "unqualified-search-registries"):
        if key in document:
            items = tuple(map(str, file.get(document, key, list, [])))
            values[key] = (", ".join(map(printable, items)) or "(none)", source)
            helpers = items if key == "credential-helpers" else helpers
    if "short-name-mode" in document:
        mode = file.get(document, "short-name-mode", str, "")
        if mode not in _MODES:
            raise file.fail("short-name-mode", " or ".join(_MODES), mode)
        values["short-name-mode"] = (mode, source)
    aliases = {}
    for name, full in file.get(document, "aliases", dict, {}).items():
        if not isinstance(full, str):
            raise file.fail(f"aliases: {name}", "a string", full)
        aliases[name] = (full, source)
    return Registries(entries, helpers, aliases, values)


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


def _own(kind: str, directory: Path) -> list[Path]:
    """The directories for ``kind`` (``registries.conf``, ``certs``) in one of the system's places, lowest first."""
    suffix = ".d"
    plain = directory / f"{kind}{suffix}"
    stem, _, extension = kind.partition(".")
    rest = f".{extension}{suffix}" if extension else suffix
    if os.geteuid() == 0:
        return [plain, directory / f"{stem}.rootful{rest}"]
    rootless = directory / f"{stem}.rootless{rest}"
    return [plain, rootless, rootless / str(os.geteuid())]


def registry_files(root: Path, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The files that count, lowest first.

    Raises:
        ConfigError: a variable names one that is not there.
    """
    explicit = environ.get("CONTAINERS_REGISTRIES_CONF") or environ.get("REGISTRIES_CONFIG_PATH")
    override = environ.get("CONTAINERS_REGISTRIES_CONF_OVERRIDE")
    for name in (explicit, override):
        if name and not Path(name).exists():
            raise ConfigError(
                f"the environment names {printable(name)}, which is not there",
                reference="unreadable",
            )
    if explicit:
        files = [Path(explicit)]
    else:
        places = _places(root, environ)
        mains = [place / "registries.conf" for place in places]
        files = [path for path in mains if path.exists()][:1]
        dropins: dict[str, Path] = {}
        for place in reversed(places):
            system = place.is_relative_to(root / "usr") or place.is_relative_to(root / "etc")
            for directory in (
                _own("registries.conf", place) if system else [place / "registries.conf.d"]
            ):
                if directory.is_dir():
                    dropins |= {
                        path.name: path for path in directory.iterdir() if path.suffix == ".conf"
                    }
        files += [dropins[name] for name in sorted(dropins)]
    return files + ([Path(override)] if override else [])


def load_registries(root: Path, environ: Mapping[str, str] = os.environ) -> Registries:
    """The configuration beneath ``root``, merged: values override, lists replace, aliases and registries merge by name.

    Raises:
        ConfigError: a file cannot be read or is wrong.
    """
    entries: dict[str, _Registry] = {}
    aliases: dict[str, tuple[str, str]] = {}
    values: dict[str, tuple[str, str]] = {}
    helpers: tuple[str, ...] = (FILES,)
    for path in registry_files(root, environ):
        data = read_trusted(path, root=root)
        if data is None:
            continue
        found = parse_registries(data, printable(str(path)))
        entries |= found.entries
        aliases |= found.aliases
        values |= found.values
        if "credential-helpers" in found.values:
            helpers = found.credential_helpers
    kept = {name: alias for name, alias in aliases.items() if alias[0]}  # an empty one erases
    return Registries(entries, helpers, kept, values)


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
    places: list[Path] = []
    for place in _places(root, environ):
        system = place.is_relative_to(root / "usr") or place.is_relative_to(root / "etc")
        places += reversed(_own("certs", place)[:2]) if system else [place / "certs.d"]
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
