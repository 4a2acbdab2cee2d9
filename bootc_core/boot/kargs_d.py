"""An image's kernel arguments: ``usr/lib/bootc/kargs.d/*.toml``.

    kargs = ["mitigations=auto,nosmt", "console=ttyS0"]
    match-architectures = ["x86_64"]   # optional

Files are taken in order of their names; an element may hold several arguments, quotes keep spaces;
another key, another type or another architecture name is an error that names the file. No directory
is no arguments.
"""

from __future__ import annotations

import platform
import stat
import tomllib
from collections.abc import Callable
from typing import Final

from bootc_core import limits, paths
from bootc_core.errors import ContentError, printable
from bootc_core.models.kargs import CommandLine, refuse_protected
from bootc_core.models.tree import Node, resolve

ARCHITECTURES: Final = frozenset(
    {
        "aarch64", "arm", "loongarch64", "m68k", "mips", "mips64", "powerpc", "powerpc64",
        "riscv32", "riscv64", "s390x", "sparc64", "x86", "x86_64",
    }
)  # fmt: skip
"""Architectures in ``match-architectures``: the names that Rust, so the original, has for them."""

_MACHINE: Final = {
    "arm64": "aarch64",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
    "amd64": "x86_64",
    "i386": "x86",
    "i586": "x86",
    "i686": "x86",
    "ppc": "powerpc",
    "ppc64": "powerpc64",
    "ppc64le": "powerpc64",
}


def architecture() -> str:
    """This machine's name in ``match-architectures``."""
    machine = platform.machine()
    return _MACHINE.get(machine, machine)


def parse(name: str, data: bytes, arch: str, *, deployed: bool = False) -> tuple[str, ...]:
    """The arguments of one file for architecture ``arch``; empty if the file is for others.

    Args:
        name: path of the file inside the image, for errors.
        data: its content.
        arch: e.g. ``x86_64``, see ``ARCHITECTURES``.
        deployed: the image is on the host already; protected arguments are not refused.

    Raises:
        ContentError: not TOML, unknown keys, wrong types, characters or arguments an image may not
            use.
    """
    what = f"{printable(name)} in the image"

    def bad(found: str, expected: str | None = None) -> ContentError:
        return ContentError(
            f"{what} is not a valid kargs.d file",
            reference="bad-kargs-d",
            expected=expected,
            found=printable(found),
            hint="correct the file and build the image again",
        )

    if len(data) > limits.SETTINGS_FILE_BYTES:
        raise ContentError(
            f"{what} is too large",
            reference="bad-kargs-d",
            expected=f"at most {limits.SETTINGS_FILE_BYTES} bytes",
            found=f"{len(data)} bytes",
            catalogue="LIM",
        )
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise bad(str(problem)) from None
    for key in document:
        if key not in {"kargs", "match-architectures"}:
            raise bad(f"unknown key {key}", "kargs, match-architectures")
    for key, needed in (("kargs", True), ("match-architectures", False)):
        value = document.get(key)
        if value is None and not needed:
            continue
        if value is None:
            raise bad("no key kargs")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise bad(f"{key} is something else", f"{key} is an array of strings")
    matches = document.get("match-architectures")
    for item in matches or ():
        if item not in ARCHITECTURES:
            raise bad(f"unknown architecture {item}", ", ".join(sorted(ARCHITECTURES)))
    # All checks first, architecture second: a mistake shows on every machine, not on the rare one.
    line = CommandLine.parse(" ".join(document["kargs"]), what, error=ContentError)
    if not deployed:
        refuse_protected(line, what)
    if matches is not None and arch not in matches:
        return ()
    return tuple(parameter.text for parameter in line)


def read_tree(
    root: Node,
    read_file: Callable[[Node], bytes],
    arch: str | None = None,
    *,
    deployed: bool = False,
) -> tuple[str, ...]:
    """All arguments of the image ``root``, in order of file names.

    Args:
        root: the image's tree.
        read_file: content of a regular file of that tree.
        arch: see ``parse``; default: this machine.
        deployed: the image is on the host already, and only the difference to it is wanted: files and
            arguments that a new image may not have are passed over, so that they hold up no upgrade.

    Raises:
        ContentError: see ``parse``; also if a ``.toml`` there is no regular file.
    """
    directory = resolve(root, paths.KARGS_D.encode())
    if directory is None or directory.children is None:
        return ()
    result: list[str] = []
    for name in sorted(directory.children):
        if not name.endswith(b".toml"):
            continue
        try:
            result += _read(root, name, read_file, arch or architecture(), deployed)
        except ContentError:
            if not deployed:
                raise
    return tuple(result)


def _read(
    root: Node, name: bytes, read_file: Callable[[Node], bytes], arch: str, deployed: bool
) -> tuple[str, ...]:
    path = f"{paths.KARGS_D}/{printable(name)}"
    node = resolve(root, paths.KARGS_D.encode() + b"/" + name)
    if node is None or not stat.S_ISREG(node.mode):
        raise ContentError(
            f"{path} in the image is not a file",
            reference="bad-kargs-d",
            hint="correct the file and build the image again",
        )
    if node.size > limits.SETTINGS_FILE_BYTES:
        raise ContentError(
            f"{path} in the image is too large",
            reference="bad-kargs-d",
            expected=f"at most {limits.SETTINGS_FILE_BYTES} bytes",
            found=f"{node.size} bytes",
            catalogue="LIM",
        )
    return parse(path, read_file(node), arch, deployed=deployed)
