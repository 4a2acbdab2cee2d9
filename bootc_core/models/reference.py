"""What an image is called: transport and name, parsed strictly, kept as the administrator wrote it.

    docker://quay.io/acme/os:9          registry (also ``registry:...``, or the bare name)
    oci:/srv/os:stable                  OCI layout directory, one image of it by name or ``:@index``
    oci-archive:/srv/os.tar:stable      the same as a tar file
    docker-archive:/srv/os.tar:os:9     output of ``docker save``
    dir:/srv/os                         the plain directory form of skopeo
    containers-storage:localhost/os:9   images of podman on this host, or in ``[driver@graphroot]``
    docker-daemon:os:9                  images of a Docker daemon

``ImageReference`` holds the text; ``RegistryName`` is a registry name taken apart and normalised;
``SignedReference`` adds how the image has to be signed, in the form that deployment origins store.
Grammar and normalisation are those of the reference parser that containers tools share
(``distribution/reference``; here: the containers reference, sections 1.1 to 1.6).

Nothing but small standard modules is imported: ``bootc status`` passes here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from bootc_core import limits
from bootc_core.errors import UsageError, printable


class Transport(StrEnum):
    """Where images come from; the value is the name in ``--transport`` and in the host document."""

    REGISTRY = "registry"
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    CONTAINERS_STORAGE = "containers-storage"
    DIR = "dir"
    DOCKER_DAEMON = "docker-daemon"


_T = TypeVar("_T")
_TRANSPORTS: Final = frozenset(transport.value for transport in Transport)
_KNOWN: Final = (
    "docker://, registry:, oci:, oci-archive:, docker-archive:, containers-storage:, dir:, "
    "docker-daemon:"
)
_DEFAULT_STORE: Final = "overlay@/var/lib/containers/storage"

_SCHEMES: Final = {
    "ostree-unverified-registry": None,
    "ostree-unverified-image": None,
    "ostree-image-signed": "containerPolicy",
    "ostree-remote-registry": None,
    "ostree-remote-image": None,
}

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
# A user and password before a host, as in URLs: not part of any reference, so it is not repeated in a message
_PASSWORD = re.compile(r"^((?:[a-z-]+:)?(?://)?[^/@:]+:)[^/@]+@(?![a-z0-9+._-]+:[0-9a-fA-F]{32})")
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:__|[._]|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SELECTOR_PART = r"[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*"
_SELECTOR = re.compile(rf"{_SELECTOR_PART}(?:/{_SELECTOR_PART})*")
_POSITION = re.compile(r"@[0-9]{1,6}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+-]*):(?=/)")
_HEX = re.compile(r"[0-9a-f]+")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_REMOTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DIGEST_DIGITS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}


class _BadError(Exception):
    """Something is wrong at ``offset`` of the text that was passed."""

    def __init__(
        self, offset: int, problem: str, expected: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(problem)
        self.offset, self.problem, self.expected, self.hint = offset, problem, expected, hint

    def usage_error(self, text: str) -> UsageError:
        return UsageError(
            f"{_quoted(text)} is not an image reference",
            reference="bad-reference",
            expected=self.expected,
            found=f"{self.problem} at position {self.offset + 1}",
            hint=self.hint,
        )


def _at(offset: int, check: Callable[[str], _T], text: str) -> _T:
    """``check(text)``, where ``text`` begins at ``offset`` of what the user wrote."""
    try:
        return check(text)
    except _BadError as bad:
        bad.offset += offset
        raise


def _quoted(text: str, limit: int = 120) -> str:
    shown = _PASSWORD.sub(r"\1***@", text[: 4 * limit])
    return f"'{printable(shown, limit)}'"


def _describe(char: str) -> str:
    if char == " ":
        return "a space"
    if not char.isprintable():
        return f"a control or unprintable character ({printable(char)})"
    if char.isupper() and char.isascii():
        return f"the upper-case letter {char!r}"
    return f"{char!r}" if char.isascii() else f"{char!r}, which is not ASCII,"


# --- registry names ------------------------------------------------------------------------------


def _check_digest(digest: str, offset: int) -> None:
    algorithm, colon, digits = digest.partition(":")
    wanted = _DIGEST_DIGITS.get(algorithm)
    expected = "sha256:, sha384: or sha512: and 64, 96 or 128 lower-case hexadecimal digits"
    if wanted is None or not colon:
        raise _BadError(offset, "an unknown digest algorithm", expected)
    match = _HEX.match(digits)
    good = match.end() if match else 0
    start = offset + len(algorithm) + 1
    if good < len(digits):
        raise _BadError(start + good, f"{_describe(digits[good])} in a digest", expected)
    if good != wanted:
        raise _BadError(start, f"a digest of {good} digits", expected)


def _check_tag(tag: str, offset: int) -> None:
    expected = (
        "a tag of at most 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
    )
    if not tag:
        raise _BadError(offset, "an empty tag", expected)
    match = _TAG.match(tag)
    good = match.end() if match else 0
    if good < len(tag):
        what = "a tag that is too long" if good == 128 else f"{_describe(tag[good])} in a tag"
        raise _BadError(offset + good, what, expected)


def _check_domain(domain: str, offset: int) -> None:
    match = (_IPV6 if domain.startswith("[") else _HOST).match(domain)
    good = match.end() if match else 0
    rest = domain[good:]
    if not rest and good:
        return
    if not good or not rest.startswith(":"):
        what = _describe(rest[0]) if rest else "an empty name"
        raise _BadError(
            offset + good,
            f"{what} in a registry's host name",
            "a host name, or an address, and a port",
        )
    port = rest[1:]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise _BadError(
            offset + good + 1, f"the port {printable(port, 20)!r}", "a number from 1 to 65535"
        )


def _check_path(path: str, offset: int) -> None:
    expected = "lower-case letters and digits, joined by '.', '_', '__' or '-', between '/'"
    for component in path.split("/"):
        match = _COMPONENT.match(component)
        good = match.end() if match else 0
        if good < len(component):
            raise _BadError(
                offset + good, f"{_describe(component[good])} in a repository's name", expected
            )
        if not component:
            raise _BadError(offset, "an empty part of a repository's name", expected)
        offset += len(component) + 1


def _check_characters(text: str) -> None:
    if not text:
        raise _BadError(0, "nothing", "a name")
    if text.startswith("-"):
        raise _BadError(
            0, "'-', which begins an option,", hint="a directory of that name is written ./-name"
        )
    for offset, char in enumerate(text[: 4 * limits.REFERENCE_CHARS]):
        if not char.isascii() or not char.isprintable() or char == " ":
            raise _BadError(offset, _describe(char), "printable ASCII characters without spaces")
    # 255 for the repository, 128 for the tag, 136 for the digest
    if len(text) > 3 * limits.REFERENCE_CHARS:
        raise _too_long(0)


def _too_long(offset: int) -> _BadError:
    return _BadError(
        offset + limits.REFERENCE_CHARS,
        "the end of what a name may hold,",
        f"at most {limits.REFERENCE_CHARS} characters of registry and repository",
    )


@dataclass(frozen=True, slots=True)
class RegistryName:
    """A registry name, normalised: ``debian`` is ``docker.io/library/debian:latest``.

    Attributes:
        domain: host and port as configuration files, policies and messages name the registry.
        path: repository beneath it.
        tag: None only if there is a digest.
        digest: it decides where both are given.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, name: str) -> RegistryName:
        """The parts of ``name``.

        Raises:
            UsageError: ``bad-reference``, with the position of the first wrong character.
        """
        try:
            return cls._parse(name)
        except _BadError as bad:
            raise bad.usage_error(name) from None

    @classmethod
    def _parse(cls, name: str) -> RegistryName:
        _check_characters(name)
        if _HEX64.fullmatch(name):
            raise _BadError(0, "an image ID instead of a name", "a repository, as quay.io/acme/os")
        head, at, digest = name.partition("@")
        if at:
            _check_digest(digest, len(head) + 1)
        tag = None
        colon = head.rfind(":")
        if colon > head.rfind("/") and not head.endswith("]"):
            tag = head[colon + 1 :]
            _check_tag(tag, colon + 1)
            head = head[:colon]
        first, slash, remainder = head.partition("/")
        offset = len(first) + 1
        if first.startswith("[") or (
            slash and ("." in first or ":" in first or first == "localhost")
        ):
            _check_domain(first, 0)
            domain = first
            if not slash:
                raise _BadError(len(first), "no repository", "a repository behind the registry")
        else:
            domain, remainder, offset = "docker.io", head, 0
        _check_path(remainder, offset)
        if domain == "index.docker.io":
            domain = "docker.io"
        if domain == "docker.io" and "/" not in remainder:
            remainder = "library/" + remainder
        if len(domain) + 1 + len(remainder) > limits.REFERENCE_CHARS:
            raise _too_long(0)
        return cls(domain, remainder, tag or (None if at else "latest"), digest or None)

    @property
    def host(self) -> str:
        """Host and port to connect to."""
        return "registry-1.docker.io" if self.domain == "docker.io" else self.domain

    @property
    def repository(self) -> str:
        """Registry and repository, e.g. ``docker.io/library/debian``."""
        return f"{self.domain}/{self.path}"

    @property
    def target(self) -> str:
        """What a manifest is asked for by: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def canonical(self) -> RegistryName:
        """The same with exactly one of tag and digest."""
        return RegistryName(self.domain, self.path, None if self.digest else self.tag, self.digest)

    def with_tag(self, tag: str) -> RegistryName:
        """The same repository by ``tag``, without a digest (``tag`` is not checked here)."""
        return RegistryName(self.domain, self.path, tag, None)

    def with_digest(self, digest: str) -> RegistryName:
        """The same repository by ``digest``, without a tag."""
        return RegistryName(self.domain, self.path, None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


# --- names of the other transports ---------------------------------------------------------------


def _check_file_path(path: str, offset: int = 0) -> None:
    if not path:
        raise _BadError(offset, "nothing", "a path")
    if path.startswith("-"):
        raise _BadError(
            offset, "'-', which begins an option,", hint=f"write ./{printable(path, 60)}"
        )
    for position, char in enumerate(path):
        if char == " " and position not in (0, len(path) - 1):
            continue  # paths may have spaces inside; at the ends, origin files would lose them
        if not char.isprintable() or char == " ":
            raise _BadError(offset + position, _describe(char), "a path of printable characters")
    if len(path.encode()) > limits.PATH_BYTES:
        raise _BadError(offset, "a path that is too long", f"at most {limits.PATH_BYTES} bytes")


def _split_path(name: str) -> tuple[str, str | None]:
    path, colon, selector = name.partition(":")
    return path, (selector if colon else None)


def _check_layout(name: str) -> None:
    path, selector = _split_path(name)
    _check_file_path(path)
    if selector is None or _POSITION.fullmatch(selector):
        return
    expected = "the name of one image in it, or @ and a number"
    match = _SELECTOR.match(selector)
    good = match.end() if match else 0
    if good < len(selector) or not selector:
        what = _describe(selector[good]) if selector else "nothing"
        raise _BadError(len(path) + 1 + good, what, expected)
    if len(selector) > limits.REFERENCE_CHARS:
        raise _too_long(len(path) + 1)


def _check_docker_archive(name: str) -> None:
    path, selector = _split_path(name)
    _check_file_path(path)
    if selector is None or _POSITION.fullmatch(selector):
        return
    shift = len(path) + 1
    parsed = _at(shift, RegistryName._parse, selector)
    if parsed.digest:
        raise _BadError(
            shift + selector.index("@"),
            "a digest",
            "a name with a tag; these archives know no digests",
        )


def _split_store(name: str) -> tuple[str, str]:
    """``[driver@root...]`` with its brackets ("" if absent), and what follows it."""
    if not name.startswith("["):
        return "", name
    end = name.find("]")
    if end < 0:
        raise _BadError(0, "'[' without ']'", "[driver@graphroot+runroot:options]name")
    return name[: end + 1], name[end + 1 :]


def _split_image_id(rest: str) -> tuple[str, str | None]:
    """Name ("" if there is none) and image ID of what follows the store."""
    bare = rest.removeprefix("sha256:")
    if _HEX64.fullmatch(bare):
        return "", bare
    name, at, last = rest.rpartition("@")
    if at and _HEX64.fullmatch(last):
        return name, last
    return rest, None


def _check_storage(name: str) -> None:
    store, rest = _split_store(name)
    if store:
        _check_file_path(store[1:-1], 1)
    image, _ = _split_image_id(rest)
    if image or not rest:
        _at(len(store), RegistryName._parse, image)


def _check_daemon(name: str) -> None:
    if name.partition(":")[0] in _DIGEST_DIGITS and "/" not in name:
        _check_digest(name, 0)
    else:
        RegistryName._parse(name)


_CHECKS: Final[dict[Transport, Callable[[str], object]]] = {
    Transport.REGISTRY: RegistryName._parse,
    Transport.OCI: _check_layout,
    Transport.OCI_ARCHIVE: _check_layout,
    Transport.DOCKER_ARCHIVE: _check_docker_archive,
    Transport.CONTAINERS_STORAGE: _check_storage,
    Transport.DIR: _check_file_path,
    Transport.DOCKER_DAEMON: _check_daemon,
}


def _split_transport(text: str) -> tuple[Transport | None, int]:
    """The transport that ``text`` begins with (None: a bare name), and that prefix's length."""
    if text.startswith("docker://"):
        return Transport.REGISTRY, len("docker://")
    prefix, colon, _ = text.partition(":")
    if colon and prefix in _TRANSPORTS:
        return Transport(prefix), len(prefix) + 1
    if colon and prefix == "docker":
        raise _BadError(
            len("docker:"),
            "no '//'",
            "docker://NAME",
            f"an image that is called docker is written docker://{printable(text, 80)}",
        )
    if match := _SCHEME.match(text):
        raise _BadError(
            0, f"the unknown transport {_quoted(match.group(1), 40)}", f"one of {_KNOWN}"
        )
    return None, 0


def _meant_another(name: str) -> _BadError | None:
    """What is wrong with a registry name that was written with a transport in front."""
    try:
        found, skip = _split_transport(name)
    except _BadError as bad:
        return bad
    if found is None:
        return None
    rest = printable(name[skip:], 100)
    option = "" if found is Transport.REGISTRY else f"--transport {found} "
    hint = f"write {option}{rest}"
    return _BadError(0, "a transport inside the name", "the name alone", hint)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A transport and a name, the name verbatim as it was written (without the transport's prefix).

    Construction validates, so that a value is always well-formed.

    Raises:
        UsageError: ``bad-reference``, with the position of the first wrong character.
    """

    transport: Transport
    name: str

    def __post_init__(self) -> None:
        try:
            _CHECKS[self.transport](self.name)
        except _BadError as bad:
            if self.transport is Transport.REGISTRY:
                bad = _meant_another(self.name) or bad
            raise bad.usage_error(self.name) from None

    @classmethod
    def make(cls, transport: str, name: str) -> ImageReference:
        """The reference that ``--transport TRANSPORT NAME`` means (``docker`` is ``registry``).

        Raises:
            UsageError: unknown transport (``unknown-transport``), or ``bad-reference``.
        """
        if transport == "docker":
            transport = Transport.REGISTRY
        if transport not in _TRANSPORTS:
            raise UsageError(
                f"there is no transport {_quoted(transport, 40)}",
                reference="unknown-transport",
                expected="one of " + ", ".join(Transport),
                found=printable(transport, 40) or "nothing",
            )
        return cls(Transport(transport), name)

    @classmethod
    def parse(cls, text: str, default: Transport = Transport.REGISTRY) -> ImageReference:
        """The reference in ``text``: ``TRANSPORT:NAME``, ``docker://NAME``, or a bare name.

        A bare name is of transport ``default``. One that begins like a transport has to be
        written with its prefix: ``docker://registry:2``.

        Raises:
            UsageError: ``bad-reference``, with the position of the first wrong character.
        """
        try:
            found, shift = _split_transport(text)
            transport = found or default
            _at(shift, _CHECKS[transport], text[shift:])
        except _BadError as bad:
            raise bad.usage_error(text) from None
        return cls(transport, text[shift:])

    def __str__(self) -> str:
        if self.transport is Transport.REGISTRY:
            return f"docker://{self.name}"
        return f"{self.transport}:{self.name}"

    def display(self) -> str:
        """The form for people: the bare name from a registry, else as ``str``."""
        return self.name if self.transport is Transport.REGISTRY else str(self)

    def registry_name(self) -> RegistryName:
        """The name taken apart.

        Raises:
            UsageError: the transport is not ``registry``.
        """
        if self.transport is not Transport.REGISTRY:
            raise UsageError(
                f"{printable(str(self))} is not in a registry", reference="bad-reference"
            )
        return RegistryName.parse(self.name)

    def path_and_selector(self) -> tuple[str, str | None]:
        """Path, and which image in it (a name, or ``@`` and its number; None if not said).

        Raises:
            UsageError: the transport is none of ``oci``, ``oci-archive``, ``docker-archive``, ``dir``.
        """
        if self.transport is Transport.DIR:
            return self.name, None
        if self.transport in (Transport.OCI, Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE):
            return _split_path(self.name)
        raise UsageError(f"{printable(str(self))} is not a file", reference="bad-reference")

    def canonical(self) -> ImageReference:
        """What is pulled: a registry name with tag and digest loses the tag, others stay."""
        if self.transport is not Transport.REGISTRY:
            return self
        name = RegistryName.parse(self.name)
        if not (name.tag and name.digest):
            return self
        head, _, digest = self.name.partition("@")
        return ImageReference(self.transport, f"{head[: -len(name.tag) - 1]}@{digest}")

    def with_tag(self, tag: str) -> ImageReference:
        """The reference with another tag and no digest (``upgrade --tag``).

        Registry names come out normalised (``debian`` becomes ``docker.io/library/debian:TAG``),
        as the original has it.

        Raises:
            UsageError: not a tag (``bad-tag``), or the reference has no place for one (``no-tag``).
        """
        try:
            _check_tag(tag, 0)
        except _BadError as bad:
            error = bad.usage_error(tag)
            raise UsageError(
                f"{_quoted(tag)} is not a tag",
                reference="bad-tag",
                expected=error.expected,
                found=error.found,
            ) from None
        if self.transport is Transport.REGISTRY:
            return ImageReference(self.transport, str(RegistryName.parse(self.name).with_tag(tag)))
        if self.transport in (Transport.OCI, Transport.OCI_ARCHIVE):
            path, selector = _split_path(self.name)
            head, colon, _ = (selector or "").partition("@")[0].rpartition(":")
            return ImageReference(self.transport, f"{path}:{head}{colon}{tag}")
        store, rest, between = "", self.name, ""
        if self.transport is Transport.CONTAINERS_STORAGE:
            store, rest = _split_store(self.name)
            rest, _ = _split_image_id(rest)
        elif self.transport is Transport.DOCKER_ARCHIVE:
            path, selector = _split_path(self.name)
            store, between = path, ":"
            rest = "" if selector is None or selector.startswith("@") else selector
        if self.transport is Transport.DIR or not rest or rest.partition(":")[0] in _DIGEST_DIGITS:
            raise UsageError(
                f"{printable(str(self))} has no tag that could be replaced",
                reference="no-tag",
                hint="switch to the image by its new name",
            )
        return ImageReference(
            self.transport, f"{store}{between}{RegistryName.parse(rest).with_tag(tag)}"
        )


# --- how an image has to be signed ---------------------------------------------------------------


def _parse_signed(text: str) -> tuple[Transport, str, str | tuple[str, str] | None]:
    scheme, colon, rest = text.partition(":")
    if not colon:
        raise _BadError(len(text), "the end", "SCHEME:TRANSPORT:NAME")
    if scheme not in _SCHEMES:
        problem = f"the unknown scheme {_quoted(scheme, 40)}"
        raise _BadError(0, problem, "one of " + ", ".join(_SCHEMES))
    signature: str | tuple[str, str] | None = _SCHEMES[scheme]
    offset = len(scheme) + 1
    if scheme.startswith("ostree-remote-"):
        remote, colon, rest = rest.partition(":")
        if not colon or not _REMOTE.fullmatch(remote):
            expected = "letters, digits, '_', '.' and '-', then ':'"
            raise _BadError(offset, "no name of an ostree remote", expected)
        signature = ("ostreeRemote", remote)
        offset += len(remote) + 1
    if scheme.endswith("-registry"):
        found, skip = Transport.REGISTRY, 0
        if rest.startswith("docker://"):
            skip = len("docker://")  # written by early versions
    else:
        transport, skip = _at(offset, _split_transport, rest)
        if transport is None:
            raise _BadError(offset, "no transport", f"one of {_KNOWN}")
        found = transport
    _at(offset + skip, _CHECKS[found], rest[skip:])
    return found, rest[skip:], signature


@dataclass(frozen=True, slots=True)
class SignedReference:
    """A reference with how its image has to be signed, as deployment origins store it.

        ostree-unverified-registry:quay.io/acme/os:9
        ostree-unverified-image:oci:/srv/os
        ostree-image-signed:docker://quay.io/acme/os:9
        ostree-remote-image:REMOTE:docker://quay.io/acme/os:9

    Attributes:
        image: the reference.
        signature: None (nothing demanded), ``"containerPolicy"``, or ``("ostreeRemote", name)``.
    """

    image: ImageReference
    signature: str | tuple[str, str] | None = None

    @classmethod
    def parse(cls, text: str) -> SignedReference:
        """The value that ``text`` stores; ``docker://`` and ``registry:`` are both read.

        Raises:
            UsageError: ``bad-reference``, with the position of the first wrong character.
        """
        try:
            transport, name, signature = _parse_signed(text)
        except _BadError as bad:
            raise bad.usage_error(text) from None
        return cls(ImageReference(transport, name), signature)

    def __str__(self) -> str:
        if isinstance(self.signature, tuple):
            return f"ostree-remote-image:{self.signature[1]}:{self.image}"
        if self.signature is not None:
            return f"ostree-image-signed:{self.image}"
        if self.image.transport is Transport.REGISTRY:
            return f"ostree-unverified-registry:{self.image.name}"
        return f"ostree-unverified-image:{self.image}"

    def display(self) -> str:
        """The form for people; not to be stored, since ``parse`` does not read all of them."""
        if self.signature is None and self.image.transport is Transport.REGISTRY:
            return self.image.name
        return str(self)


# --- where policies look -------------------------------------------------------------------------


def _registry_parents(repository: str) -> list[str]:
    scopes = [repository]
    while "/" in repository:
        repository = repository.rpartition("/")[0]
        scopes.append(repository)
    domain = repository.partition(":")[0]
    while "." in domain:
        domain = domain.partition(".")[2]
        scopes.append(f"*.{domain}")
    return scopes


def _directories(path: str) -> list[str]:
    scopes = []
    while len(path) > 1:
        scopes.append(path)
        path = path.rpartition("/")[0]
    return scopes


def _storage_scopes(name: str, default_store: str) -> tuple[str, tuple[str, ...]]:
    brackets, rest = _split_store(name)
    store = (brackets[1:-1] or default_store).partition("+")[0]
    driver, at, root = store.rpartition("@")
    root = root.partition(":")[
        0
    ]  # options follow the run root, or the graph root where there is none
    prefix = f"[{driver}{at}{root}]"
    image, image_id = _split_image_id(rest)
    last = (prefix, f"[{root}]") if at else (prefix,)
    if not image:
        return f"{prefix}@{image_id}", last
    named = RegistryName.parse(image)
    scopes = [f"{prefix}{named}"] if image_id else []
    if named.tag and named.digest:
        scopes.append(f"{prefix}{named.repository}:{named.tag}")
    scopes += [prefix + scope for scope in _registry_parents(named.repository) if "*" not in scope]
    return f"{prefix}{named}" + (f"@{image_id}" if image_id else ""), (*scopes, *last)


def policy_scopes(
    reference: ImageReference,
    resolve: Callable[[str], str] = posixpath.abspath,
    default_store: str = _DEFAULT_STORE,
) -> tuple[str, tuple[str, ...]]:
    """Identity and parent scopes of a reference in policy.json, most specific first.

    Both are empty where only the transport's default scope ``""`` applies (containers reference,
    section 1.4).

    Args:
        reference: whose scopes.
        resolve: makes a path absolute and free of symbolic links; who decides about trust passes
            ``os.path.realpath``, since a policy names real paths (this module reads no files).
        default_store: driver and graph root of containers-storage names that have none.
    """
    transport = reference.transport
    if transport in (Transport.OCI, Transport.OCI_ARCHIVE, Transport.DIR):
        path = resolve(reference.path_and_selector()[0])
        scopes = tuple(_directories(path))
        return path, scopes if transport is not Transport.DIR else scopes[1:]
    if transport is Transport.DOCKER_ARCHIVE:
        return "", ()
    if transport is Transport.CONTAINERS_STORAGE:
        return _storage_scopes(reference.name, default_store)
    if transport is Transport.DOCKER_DAEMON and reference.name.partition(":")[0] in _DIGEST_DIGITS:
        return "", ()
    name = RegistryName.parse(reference.name).canonical()
    return str(name), tuple(_registry_parents(name.repository))
