"""The kernel of an image: ``vmlinuz`` and ``initramfs.img`` in ``usr/lib/modules/<version>/``.

There is exactly one. The version ends up in names and in the boot menu, so it is a plain word or
the image is refused. Links are followed inside the image only.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import Final

from bootc_core import limits, paths
from bootc_core.errors import ContentError, printable
from bootc_core.models.tree import Node, lookup, resolve

_VERSION: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel: release, image, and initial RAM disk (None: the image has none)."""

    version: str
    vmlinuz: Node
    initrd: Node | None


def find_kernel(root: Node) -> Kernel:
    """The one kernel of the image ``root``.

    Raises:
        ContentError: none, several (all named), a release that is no plain word, or a file that is
            none or is too large.
    """
    modules = resolve(root, paths.MODULES.encode())
    found: list[tuple[bytes, Node | None]] = []
    if modules is not None and modules.children is not None:
        for name, child in sorted(modules.children.items()):
            if child.is_dir and lookup(child, b"vmlinuz") is not None:
                found.append((name, child))
    if not found:
        directories = (
            ", ".join(
                printable(name)
                for name, child in sorted((modules.children or {}).items())
                if child.is_dir
            )
            if modules is not None
            else ""
        )
        raise ContentError(
            "the image has no kernel",
            reference="no-kernel",
            expected=f"{paths.MODULES}/<version>/vmlinuz",
            found=f"{paths.MODULES}: {directories}"
            if directories
            else f"nothing in {paths.MODULES}",
            hint="this is an application image, or its kernel is in /boot only: copy it to "
            f"{paths.MODULES}/<version>/vmlinuz, beside initramfs.img, when building the image",
        )
    for name, _ in found:
        if not _VERSION.fullmatch(name) or b".." in name:
            raise ContentError(
                "the kernel's directory has an unusable name",
                reference="bad-kernel-name",
                expected="letters, digits and . _ + ~ -",
                found=f"{paths.MODULES}/{printable(name)}",
                hint="rename the directory as `uname -r` would print it",
            )
    if len(found) > 1:
        raise ContentError(
            "the image has more than one kernel",
            reference="several-kernels",
            expected="exactly one",
            found=", ".join(f"{paths.MODULES}/{printable(name)}" for name, _ in found),
            hint="remove the kernels that are not wanted when building the image",
        )
    version = found[0][0]
    prefix = paths.MODULES.encode() + b"/" + version
    vmlinuz = _file(root, prefix + b"/vmlinuz")
    initrd = None
    if lookup(found[0][1] or root, b"initramfs.img") is not None:
        initrd = _file(root, prefix + b"/initramfs.img")
    return Kernel(version.decode("ascii"), vmlinuz, initrd)


def _file(root: Node, path: bytes) -> Node:
    node = resolve(root, path)
    if node is None or not stat.S_ISREG(node.mode):
        raise ContentError(
            f"{printable(path)} in the image is not a file",
            reference="bad-kernel",
            expected="a regular file, or a link to one inside the image",
            found="a link that leads nowhere" if node is None else stat.filemode(node.mode),
        )
    if not 0 < node.size <= limits.KERNEL_BYTES:
        raise ContentError(
            f"{printable(path)} in the image has an impossible size",
            reference="bad-kernel",
            expected=f"1 to {limits.KERNEL_BYTES} bytes",
            found=f"{node.size} bytes",
            catalogue="LIM" if node.size else "CON",
        )
    return node
