"""The kernel command line as data: parse, print, compare, change, follow an image.

    root=UUID=12ab rw console=ttyS0 dyndbg="file a.c +p"
    └─ parameter ─┘  │               └ quotes keep spaces and stay as they were written
                    key without value

Two parameters are equal if their keys are (``-`` and ``_`` are one character there, as for the
kernel) and their values are, quotes aside. Order and duplicates are kept. What could break out of a
boot entry (newline, NUL, any control character, an unbalanced quote) is never part of a command
line. Plain Python, since ``status`` reads entries with it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from bootc_core import limits
from bootc_core.errors import BootcError, BootError, ContentError, printable

PROTECTED: Final = frozenset(
    {
        "composefs",  # which deployment boots: ours to say
        "ostree",
        "root",  # where it is: the installer's and the administrator's
        "init",  # the rest turns a locked machine into an open one
        "rdinit",
        "rd.break",
        "systemd.debug_shell",
        "rd.systemd.debug_shell",
    }
)
"""Keys (with ``_``) that an image's ``kargs.d`` neither adds nor removes; the administrator may."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter, exactly as written; compares as the kernel would."""

    text: str

    @property
    def key(self) -> str:
        """The key, as written."""
        return self._parts()[0]

    @property
    def value(self) -> str | None:
        """The value without its quotes; None if there is no ``=``."""
        return self._parts()[1]

    @property
    def name(self) -> str:
        """The key as it is compared: ``-`` is ``_``."""
        return self.key.replace("-", "_")

    def _parts(self) -> tuple[str, str | None]:
        return _split(self.text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parameter):
            return NotImplemented
        return (self.name, self.value) == (other.name, other.value)

    def __hash__(self) -> int:
        return hash((self.name, self.value))

    def __str__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=1024)
def _split(text: str) -> tuple[str, str | None]:
    if text.startswith('"'):  # the kernel lets a quote around the whole parameter keep spaces, too
        text = text[1:].removesuffix('"')
        key, equals, value = text.partition("=")
        return key, value if equals else None
    key, equals, value = text.partition("=")
    if value.startswith('"'):
        value = value[1:].removesuffix('"')
    return key, value if equals else None


@dataclass(frozen=True, slots=True)
class CommandLine:
    """An immutable kernel command line; every change gives a new one."""

    parameters: tuple[Parameter, ...] = ()

    @classmethod
    def parse(
        cls,
        text: str,
        what: str = "the kernel command line",
        *,
        error: type[BootcError] = BootError,
        catalogue: str = "CON",
    ) -> CommandLine:
        """The parameters in ``text``, separated by blanks outside of quotes.

        The length is not looked at: see ``checked``.

        Args:
            text: a command line, or a part of one.
            what: names the source in an error, e.g. ``usr/lib/bootc/kargs.d/10-x.toml in the
                image``.
            error: the class to raise.
            catalogue: the class of that error in the catalogue of bad inputs.

        Raises:
            BootcError: of class ``error``, for control characters, text that is not UTF-8, and an
                unbalanced quote.
        """
        for char in text:
            if char != "\t" and (
                ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000
            ):
                raise error(
                    f"{what} contains a control character",
                    reference="bad-karg",
                    found=printable(text),
                    hint="kernel arguments are one line of text",
                    catalogue=catalogue,
                )
        parameters, start, quoted = [], 0, False
        for index, char in enumerate(text):
            if char == '"':
                quoted = not quoted
            elif char in " \t" and not quoted:
                if index > start:
                    parameters.append(Parameter(text[start:index]))
                start = index + 1
        if quoted:
            raise error(
                f"{what} has a quote that is never closed",
                reference="bad-karg",
                found=printable(text),
                catalogue=catalogue,
            )
        if start < len(text):
            parameters.append(Parameter(text[start:]))
        return cls(tuple(parameters))

    def checked(self, what: str = "the kernel command line") -> CommandLine:
        """The same, if a kernel takes that much (``limits.KARGS_BYTES``).

        Raises:
            BootError: it is longer.
        """
        size = len(str(self).encode())
        if size > limits.KARGS_BYTES:
            raise BootError(
                f"{what} is too long for the kernel",
                reference="kargs-too-long",
                expected=f"at most {limits.KARGS_BYTES} bytes",
                found=f"{size} bytes",
                hint="remove kernel arguments, on the host or in the image's usr/lib/bootc/kargs.d",
                catalogue="LIM",
            )
        return self

    def __str__(self) -> str:
        return " ".join(parameter.text for parameter in self.parameters)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __contains__(self, parameter: object) -> bool:
        return parameter in self.parameters

    def get(self, key: str) -> str | None:
        """Value of the first parameter ``key=...``; None if there is none, or none with a value."""
        return next((value for value in self.all(key) if value is not None), None)

    def all(self, key: str) -> tuple[str | None, ...]:
        """Values of all parameters with that key, in order; None for one without ``=``."""
        name = key.replace("-", "_")
        return tuple(parameter.value for parameter in self.parameters if parameter.name == name)

    def has(self, key: str) -> bool:
        """Is there a parameter with that key, with or without a value?"""
        return bool(self.all(key))

    def extend(self, more: Iterable[Parameter]) -> CommandLine:
        """With ``more`` at the end, duplicates included."""
        return CommandLine((*self.parameters, *more))

    def add(self, more: Iterable[Parameter]) -> CommandLine:
        """With those of ``more`` at the end that are not there yet."""
        result = list(self.parameters)
        for parameter in more:
            if parameter not in result:
                result.append(parameter)
        return CommandLine(tuple(result))

    def add_or_modify(self, parameter: Parameter) -> CommandLine:
        """With ``parameter`` in place of all of its key: where the first one was, or at the end."""
        result: list[Parameter] = []
        placed = False
        for present in self.parameters:
            if present.name != parameter.name:
                result.append(present)
            elif not placed:
                result.append(parameter)
                placed = True
        return CommandLine(tuple(result) if placed else (*result, parameter))

    def remove(self, parameter: Parameter) -> CommandLine:
        """Without the parameters equal to this one (key and value)."""
        return CommandLine(tuple(present for present in self.parameters if present != parameter))

    def remove_key(self, key: str) -> CommandLine:
        """Without the parameters of that key, whatever their values."""
        name = key.replace("-", "_")
        return CommandLine(tuple(present for present in self.parameters if present.name != name))

    @property
    def deployment(self) -> str | None:
        """What ``composefs=`` names, without the ``?`` of an optional fs-verity check."""
        value = self.get("composefs")
        return value.removeprefix("?") or None if value else None

    def with_composefs(self, deployment_id: str, *, optional: bool) -> CommandLine:
        """With ``composefs=ID``, or ``composefs=?ID`` if fs-verity is ``optional``; place kept."""
        return self.add_or_modify(Parameter(f"composefs={'?' if optional else ''}{deployment_id}"))


def installed(
    before: Iterable[str], image: Iterable[Parameter], removed: Iterable[str], added: Iterable[str]
) -> CommandLine:
    """The command line of a new host: ``before``, the image's, without ``removed``, then ``added``.

    ``removed`` names a parameter with its value, or a key whatever the value.

    Raises:
        BootError: something in it that a command line cannot hold, or too much of it.
    """
    line = CommandLine.parse(" ".join(before)).extend(image)
    for parameter in CommandLine.parse(" ".join(removed)):
        exact = parameter.value is not None
        line = line.remove(parameter) if exact else line.remove_key(parameter.key)
    return line.extend(CommandLine.parse(" ".join(added))).checked()


def merge_image_change(
    current: CommandLine, old: Iterable[Parameter], new: Iterable[Parameter]
) -> CommandLine:
    """``current`` with the difference between two images' ``kargs.d`` applied.

    What ``new`` no longer has is removed where it stands exactly so, what it has in addition is
    added unless present; everything else, so each local argument and each local removal, stays. An
    image without ``kargs.d`` has an empty one (the original duplicates the old arguments then).
    ``PROTECTED`` keys are never touched.

    Raises:
        BootError: the result is too long for a kernel.
    """
    before, after = tuple(old), tuple(new)
    result = current
    for parameter in before:
        if parameter not in after and parameter.name not in PROTECTED:
            result = result.remove(parameter)
    return result.add(
        parameter
        for parameter in after
        if parameter not in before and parameter.name not in PROTECTED
    ).checked()


def refuse_protected(parameters: Iterable[Parameter], what: str) -> None:
    """Refuse what an image may not say on the kernel command line; ``what`` names the file.

    Raises:
        ContentError: the first such parameter, by name.
    """
    for parameter in parameters:
        if parameter.name in PROTECTED:
            raise ContentError(
                f"{what} sets the protected kernel argument {printable(parameter.key)}",
                reference="protected-karg",
                found=printable(parameter.text),
                hint="images may not choose what boots or open a shell; set it on the host instead",
                catalogue="POL",
            )
        if "{" in parameter.text or "}" in parameter.text:
            raise ContentError(
                f"{what} has a brace in a kernel argument",
                reference="bad-karg",
                found=printable(parameter.text),
                hint="braces end menu entries of some boot loaders",
                catalogue="CON",
            )
