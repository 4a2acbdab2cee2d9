r"""SELinux labels from an image's own policy, without libselinux: the files are not on a disk when they are labelled.

    /etc/selinux/config                              SELINUXTYPE=targeted
    /etc/selinux/targeted/contexts/files/
        file_contexts, .local, .homedirs             REGEX [-TYPE] CONTEXT
        file_contexts.subs, .subs_dist               ALIAS PATH

An expression is matched against the whole path followed by one letter for the file type; of all lines that match the last one
counts; ``<<none>>`` means no label. A policy has thousands of lines and an image ten thousands of files, so lines are found by the
literal text with which they begin, and compiled when they are first looked at.
"""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, NamedTuple, NoReturn

from bootc_core import limits
from bootc_core.errors import ContentError, printable
from bootc_core.models.tree import Node, Xattrs, lookup

LABEL: Final = b"security.selinux"
_NONE: Final = b"<<none>>"
_LETTERS: Final = {
    stat.S_IFREG: b"-",
    stat.S_IFDIR: b"d",
    stat.S_IFCHR: b"c",
    stat.S_IFBLK: b"b",
    stat.S_IFIFO: b"p",
    stat.S_IFSOCK: b"s",
    stat.S_IFLNK: b"l",
}
_META: Final = frozenset(b".^$*+?{}[]\\|()")
_OPENING: Final = frozenset(b"[({")
_BACKSLASH: Final = 0x5C
_ALTERNATIVE: Final = 0x7C
_CLASSES: Final = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"!-/:-@\[-`{-~",
    b"space": rb"\t-\r ",
    b"upper": rb"A-Z",
    b"word": rb"0-9A-Za-z_",
    b"xdigit": rb"0-9A-Fa-f",
}


@dataclass(slots=True)
class Line:
    """One line of ``file_contexts``."""

    expression: bytes
    letter: bytes  # of the file type; empty: any
    context: bytes
    place: str  # for messages
    number: int = 0
    compiled: re.Pattern[bytes] | None = None

    def matches(self, key: bytes) -> bool:
        """Does it match a path with its letter?

        Raises:
            ContentError: the expression is not valid.
        """
        if self.compiled is None:
            text = b"(?:%b)%b" % (translate(self.expression), re.escape(self.letter) or b".")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore", FutureWarning
                    )  # "--" in a set: as PCRE reads it
                    self.compiled = re.compile(text, re.DOTALL)
            except (re.error, OverflowError, RecursionError) as problem:
                raise ContentError(
                    f"{self.place} of the image's SELinux policy is not a valid expression",
                    reference="bad-selinux-policy",
                    found=f"{printable(self.expression, 80)}: {problem}",
                ) from problem
        return self.compiled.fullmatch(key) is not None


_Candidate = tuple[int, bytes, bytes, Line]  # minus its number, prefix, needle


class Policy:
    """Labels for paths: parsed lines, found by the literal text with which they begin."""

    def __init__(self, lines: list[Line], aliases: dict[bytes, bytes]) -> None:
        self.lines = lines
        self.aliases = aliases
        self._exact: dict[bytes, list[Line]] = {}  # by the only path that matches
        self._by_prefix: dict[bytes, list[_Candidate]] = {}
        self._by_directory: dict[bytes, list[_Candidate]] = {}  # of the prefix
        for number, line in enumerate(lines):
            line.number = number
            found = literals(line.expression)
            if found.whole:
                self._exact.setdefault(found.prefix, []).append(line)
                continue
            candidate = (-number, found.prefix, found.needle, line)
            self._by_prefix.setdefault(found.prefix, []).append(candidate)
            directory = found.prefix[: found.prefix.rfind(b"/") + 1]
            self._by_directory.setdefault(directory, []).append(candidate)
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix})
        self._candidates: dict[bytes, list[_Candidate]] = {}

    def label(self, path: bytes, mode: int) -> bytes | None:
        """The context for a path (absolute) of a file type; ``None``: no label.

        Raises:
            ContentError: an expression that might match is not valid.
        """
        letter = _LETTERS[stat.S_IFMT(mode)]
        key = path + letter
        best: Line | None = None
        for line in self._exact.get(path, ()):
            if line.letter in {b"", letter}:
                best = line  # the last one counts
        limit = -1 if best is None else best.number
        directory = path[: path.rfind(b"/") + 1]
        candidates = self._candidates.get(directory)
        if candidates is None:
            candidates = self._candidates[directory] = self._of_directory(directory)
        for number, prefix, needle, line in candidates:
            if -number < limit:
                break
            if (
                path.startswith(prefix)
                and needle in path
                and line.letter in {b"", letter}
                and line.matches(key)
            ):
                best = line
                break
        if best is None or best.context == _NONE:
            return None
        return best.context

    def _of_directory(self, directory: bytes) -> list[_Candidate]:
        """The lines that may match a name directly in a directory (with its slash), the last one first."""
        found: list[_Candidate] = []
        for length in self._lengths:
            if length > len(directory):
                break
            found += self._by_prefix.get(directory[:length], ())
        found += [
            candidate
            for candidate in self._by_directory.get(directory, ())
            if len(candidate[1]) > len(directory)
        ]
        found.sort(key=itemgetter(0))
        return found


class Literals(NamedTuple):
    """Text that whatever an expression matches must contain."""

    prefix: bytes  # at its beginning
    whole: bool  # the prefix is all of it
    needle: bytes  # somewhere after the prefix


def literals(expression: bytes) -> Literals:
    """The literal text of an expression; less than there is where it is complicated."""
    runs = [bytearray()]  # the first one from the beginning
    position = 0
    plain = True
    while position < len(expression):
        byte = expression[position]
        end = position + 1
        literal = byte not in _META
        if byte == _BACKSLASH:
            following = expression[end : end + 1]
            if not following or following.isalnum() or following == b"_":
                plain = False  # a class, an assertion, a number: what follows may not be text
                break
            byte, end, literal = following[0], end + 1, True
        elif byte == _ALTERNATIVE:
            return Literals(b"", False, b"")
        elif byte in _OPENING:
            end = _closing(expression, position)
        if not literal or expression[end : end + 1] in {b"*", b"?", b"{"}:
            plain = False
            runs.append(bytearray())
        else:
            runs[-1].append(byte)
            if expression[end : end + 1] == b"+":
                plain = False
                runs.append(bytearray())
        position = end
    needle = max(runs[1:], key=len, default=b"") if b"(?" not in expression else b""
    return Literals(bytes(runs[0]), plain, bytes(needle))


def _closing(expression: bytes, position: int) -> int:
    """The position after the set, group or repetition that begins here."""
    depth = 0
    while position < len(expression):
        byte = expression[position : position + 1]
        if byte == b"\\":
            position += 1
        elif byte == b"[":
            position += 2 if expression[position + 1 : position + 2] == b"^" else 1
            position = expression.find(b"]", position + 1)  # a first "]" is a member
            if position < 0:
                break  # not valid; said when it is compiled
        elif byte in {b"(", b"{"}:
            depth += 1
        elif byte in {b")", b"}"}:
            depth -= 1
        position += 1
        if depth <= 0:
            return position
    return len(expression)


def translate(expression: bytes) -> bytes:
    """A PCRE expression as Python's ``re`` reads it: POSIX classes, and brackets within a set, which PCRE takes literally."""
    if b"[" not in expression and b"(?<" not in expression:
        return expression
    out = bytearray()
    position = 0
    inside = False
    start = 0  # of the set's content
    while position < len(expression):
        byte = expression[position : position + 1]
        if byte == b"\\":
            out += expression[position : position + 2]
            position += 2
            continue
        if not inside:
            if byte == b"[":
                inside = True
                start = (
                    position + 2
                    if expression[position + 1 : position + 2] == b"^"
                    else position + 1
                )
                out += expression[position:start]
                position = start
                continue
            if re.match(rb"\(\?<[A-Za-z_]", expression[position : position + 4]):
                out += b"(?P<"
                position += 3
                continue
        elif byte == b"]" and position > start:
            inside = False
        elif byte in {b"[", b"]"}:
            match = re.match(rb"\[:([a-z]+):\]", expression[position:])
            if match is not None and match[1] in _CLASSES:
                out += _CLASSES[match[1]]
                position += match.end()
                continue
            byte = b"\\" + byte
            out += byte
            position += 1
            continue
        elif byte in {b"&", b"~", b"|"}:
            byte = b"\\" + byte
            out += byte
            position += 1
            continue
        out += byte
        position += 1
    return bytes(out)


# Files --------------------------------------------------------------------------------------------------------------


def parse_contexts(data: bytes, name: str) -> list[Line]:
    """The lines of a ``file_contexts`` file.

    Raises:
        ContentError: naming the line.
    """
    lines = []
    for number, fields in _fields(data):
        place = f"{name}, line {number}"
        letter = b""
        if len(fields) > 1 and fields[1].startswith(b"-"):
            letter = fields[1][1:]
            if letter not in _LETTERS.values():
                _bad(place, fields)
            del fields[1]
        if len(fields) != 2:
            _bad(place, fields)
        lines.append(Line(fields[0], letter, fields[1], place))
    return lines


def parse_aliases(data: bytes, name: str) -> dict[bytes, bytes]:
    """The aliases of a ``file_contexts.subs`` file; of a path that is there twice, the last.

    Raises:
        ContentError: naming the line.
    """
    aliases = {}
    for number, fields in _fields(data):
        if len(fields) != 2:
            _bad(f"{name}, line {number}", fields)
        aliases[fields[0]] = fields[1]
    return aliases


def _fields(data: bytes) -> list[tuple[int, list[bytes]]]:
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        fields = line.split()
        if fields and not fields[0].startswith(b"#"):
            found.append((number, fields))
    return found


def _bad(place: str, fields: list[bytes]) -> NoReturn:
    raise ContentError(
        f"{place} of the image's SELinux policy cannot be read",
        reference="bad-selinux-policy",
        expected="an expression, perhaps a file type, and a context (or, in subs files, two paths)",
        found=printable(b" ".join(fields), 120),
    )


def policy_type(config: bytes) -> bytes | None:
    """The value of ``SELINUXTYPE`` in ``/etc/selinux/config``; ``None`` if it is not set."""
    for line in config.split(b"\n"):
        key, equals, value = line.partition(b"=")
        if equals and key.strip().lower() == b"selinuxtype":
            return value.strip()
    return None


def load_policy(root: Node, read_file: Callable[[Node], bytes]) -> Policy | None:
    """The policy of an image, or ``None`` if it has none.

    Raises:
        ContentError: it is announced, and missing or not valid.
    """
    config = lookup(root, b"etc/selinux/config")
    if config is None:
        return None
    kind = policy_type(_content(config, "/etc/selinux/config", read_file))
    if kind is None:
        return None
    base = b"etc/selinux/" + kind + b"/contexts/files"
    directory = None if kind in {b"", b".", b".."} or b"/" in kind else lookup(root, base)
    if (
        directory is None
        or directory.children is None
        or b"file_contexts" not in directory.children
    ):
        raise ContentError(
            f"the image's SELinux policy {printable(kind, 80)!r} is not in it",
            reference="bad-selinux-policy",
            expected=f"/{printable(base)}/file_contexts, as /etc/selinux/config says",
            hint="install the policy package in the image, or remove /etc/selinux/config from it",
        )
    lines: list[Line] = []
    aliases: dict[bytes, bytes] = {}
    for name in (b"file_contexts", b"file_contexts.local", b"file_contexts.homedirs"):
        if (node := directory.children.get(name)) is not None:
            lines += parse_contexts(_content(node, name.decode(), read_file), name.decode())
    for name in (b"file_contexts.subs", b"file_contexts.subs_dist"):
        if (node := directory.children.get(name)) is not None:
            aliases |= parse_aliases(_content(node, name.decode(), read_file), name.decode())
    return Policy(lines, aliases)


def _content(node: Node, name: str, read_file: Callable[[Node], bytes]) -> bytes:
    if not stat.S_ISREG(node.mode) or node.size > limits.SELINUX_CONTEXTS_BYTES:
        raise ContentError(
            f"the image's SELinux policy file {name} cannot be used",
            reference="bad-selinux-policy",
            expected=f"a file of {limits.SELINUX_CONTEXTS_BYTES} bytes at most",
            found=f"{stat.filemode(node.mode)}, {node.size} bytes",
        )
    return node.inline if node.inline is not None else read_file(node)


# Labelling ----------------------------------------------------------------------------------------------------------


def strip_labels(root: Node) -> None:
    """Remove every label: those of a build host mean nothing on a host without policy."""
    stack = [root]
    while stack:
        node = stack.pop()
        node.xattrs = tuple(pair for pair in node.xattrs if pair[0] != LABEL)
        if node.children:
            stack += node.children.values()


def label(root: Node, policy: Policy) -> None:
    """Set or remove every label, in place.

    A hard-linked file gets the label of its first name; a later name that calls for another one becomes a file of its own.

    Raises:
        ContentError: an expression of the policy is not valid.
    """
    known: dict[tuple[Xattrs, bytes | None], Xattrs] = {}

    def labelled(xattrs: Xattrs, context: bytes | None) -> Xattrs:
        found = known.get((xattrs, context))
        if found is None:
            others = [pair for pair in xattrs if pair[0] != LABEL]
            if context is not None:
                others.append((LABEL, context))
            found = known[xattrs, context] = tuple(sorted(others))
        return found

    seen: dict[Node, bytes | None] = {}
    root.xattrs = labelled(root.xattrs, policy.label(b"/", root.mode))
    stack: list[tuple[Node, list[bytes], bytes]] = [
        (root, sorted(root.children or {}, reverse=True), b"/")
    ]
    while stack:
        directory, names, prefix = stack[-1]
        if not names:
            stack.pop()
            continue
        name = names.pop()
        children = directory.children or {}
        node = children[name]
        path = prefix + name
        path = policy.aliases.get(path, path)
        context = policy.label(path, node.mode)
        if node.children is not None:
            node.xattrs = labelled(node.xattrs, context)
            below = path if path.endswith(b"/") else path + b"/"
            stack.append((node, sorted(node.children, reverse=True), below))
        elif node not in seen:
            seen[node] = context
            node.xattrs = labelled(node.xattrs, context)
        elif seen[node] != context:
            copy = _copy(node)
            copy.xattrs = labelled(node.xattrs, context)
            children[name] = copy


def _copy(node: Node) -> Node:
    return Node(
        node.mode,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_ns,
        size=node.size,
        inline=node.inline,
        object=node.object,
        rdev=node.rdev,
    )
