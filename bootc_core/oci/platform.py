"""Which of an index's images is for this machine: one rule for registries, layouts and archives.

    uname -m ──▶ Platform(linux, arm64, v8) ──▶ wanted variants, best first ──▶ one descriptor of the index

Architectures have Go's names. A variant of the machine is met by itself and by lower ones, then by an
entry without a variant; with no variant wanted, an entry without one comes first (containers
reference, section 2.9). Attestation entries are never chosen, entries without a platform last.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Final

from bootc_core import limits
from bootc_core.errors import ContentError, printable
from bootc_core.models.oci import Descriptor, ImageConfig, Index, Platform

# uname -m -> architecture, variant
_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i586": ("386", ""),
    "i386": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_VARIANTS: Final = {"arm": ("v8", "v7", "v6", "v5"), "arm64": ("v8",)}
_ATTESTATION: Final = ("vnd.docker.reference.type", "vnd.docker.reference.digest")
_ZSTD: Final = "io.github.containers.compression.zstd"
_LISTED: Final = 20  # of an index's platforms, in an error


def machine_platform(machine: str) -> Platform:
    """The platform of what ``uname -m`` calls ``machine``; unknown names are Go's own already."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


@functools.cache
def host_platform() -> Platform:
    """The platform of the running machine."""
    return machine_platform(os.uname().machine)


def describe(platform: Platform | None) -> str:
    """``linux/arm64/v8``, as people write platforms; safe for a terminal."""
    if platform is None:
        return "no platform"
    parts = (platform.os or "?", platform.architecture or "?", platform.variant)
    return printable("/".join(part for part in parts if part), 60)


def _wanted_variants(wanted: Platform) -> Sequence[str]:
    """Variants that fit, best first."""
    known = _VARIANTS.get(wanted.architecture, ())
    if wanted.variant in known:
        return (*known[known.index(wanted.variant) :], "")
    if wanted.variant:
        return (wanted.variant, "")
    return ("", *known)


def _is_attestation(entry: Descriptor) -> bool:
    if entry.annotations and any(name in entry.annotations for name in _ATTESTATION):
        return True
    platform = entry.platform
    return platform is not None and (platform.os, platform.architecture) == ("unknown", "unknown")


def _rank(entry: Descriptor, wanted: Platform, variants: Sequence[str]) -> tuple[int, int] | None:
    """How well an entry fits, lower is better; None: not at all."""
    platform = entry.platform
    if platform is None or not (platform.os or platform.architecture):
        return len(
            variants
        ), 0  # says nothing: taken if nothing else fits, and its config is checked
    if (platform.os, platform.architecture) != (wanted.os, wanted.architecture):
        return None
    if platform.variant not in variants:
        return None
    plain = (entry.annotations or {}).get(_ZSTD) != "true"
    return variants.index(platform.variant), int(plain)


def select(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The entry of ``index`` for ``wanted``; it may be an index again (see ``check_depth``).

    Among equal entries one whose layers are compressed with zstd is taken; two entries of equal
    rank with different digests are refused, since the order in a document is no decision.

    Args:
        index: the parsed index.
        wanted: usually ``host_platform()``.
        what: names the image in errors.

    Raises:
        ContentError: nothing fits (``no-platform``, lists what there is), or two entries fit
            equally well (``ambiguous-platform``).
    """
    variants = _wanted_variants(wanted)
    images = [entry for entry in index.manifests if not _is_attestation(entry)]
    ranked = [(rank, entry) for entry in images if (rank := _rank(entry, wanted, variants))]
    if not ranked:
        found = sorted({describe(entry.platform) for entry in images})
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise ContentError(
            f"{what} has no image for this machine",
            reference="no-platform",
            expected=describe(wanted),
            found=(", ".join(found[:_LISTED]) or "no images at all") + more,
            hint="build and push the image for this architecture too",
            catalogue="NOTFOUND",
        )
    best = min(rank for rank, _ in ranked)
    chosen = [entry for rank, entry in ranked if rank == best]
    if len({entry.digest for entry in chosen}) > 1:
        raise ContentError(
            f"{what} has {len(chosen)} images that fit this machine equally well",
            reference="ambiguous-platform",
            expected=f"one image for {describe(wanted)}",
            found=", ".join(entry.digest for entry in chosen[:_LISTED]),
            hint="name the wanted one by its digest",
            catalogue="NOTFOUND",
        )
    return chosen[0]


def check_depth(depth: int, what: str) -> None:
    """Refuse the ``depth``-th index on the way down (the first one has depth 1).

    Raises:
        ContentError: deeper than ``limits.INDEX_DEPTH`` (``index-depth``).
    """
    if depth > limits.INDEX_DEPTH:
        raise ContentError(
            f"{what} has an index in an index in an index",
            reference="index-depth",
            expected=f"at most {limits.INDEX_DEPTH} levels",
            catalogue="LIM",
        )


def check_config(config: ImageConfig, wanted: Platform, what: str) -> None:
    """Compare the image's own claim with the machine: a single manifest has no platform entry.

    Variants are compared where the machine's is known (the ARM family); ``amd64`` images with a
    micro-architecture variant are taken, as other tools take them.

    Raises:
        ContentError: another architecture or operating system (``wrong-platform``).
    """
    claimed = Platform(os=config.os, architecture=config.architecture, variant=config.variant or "")
    same = (claimed.os, claimed.architecture) == (wanted.os, wanted.architecture)
    runs = not wanted.variant or claimed.variant in _wanted_variants(wanted)
    if not (same and runs):
        raise ContentError(
            f"{what} is for another machine",
            reference="wrong-platform",
            expected=describe(wanted),
            found=describe(claimed),
            hint="the index may be wrong; build the image for this architecture",
        )
