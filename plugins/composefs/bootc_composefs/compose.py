"""What an image comes to, computed from its layers: tree, kernel, command line, EROFS images. Nothing is written here.

    layers ─▶ merged tree ─▶ kernel, kargs.d, os-release
                   └▶ bootable tree ─▶ bootable image, whose digest names the deployment

The image of the tree as it is, with ``/boot`` and without labels, is not made: nothing mounts it (ADR 9).

This is the long computation of a stage; it runs in a thread while the layers' objects are synced and read back.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bootc_composefs import members, sink
from bootc_composefs.cache import Cache
from bootc_composefs.contents import Contents
from bootc_composefs.erofs import write_image
from bootc_composefs.layers import Layer
from bootc_composefs.repository import Repository, layer_entries
from bootc_composefs.state import Slot
from bootc_composefs.transform import boot_transform, oci_transform
from bootc_core import limits, paths
from bootc_core.boot import kargs_d, os_release
from bootc_core.boot.kernel import Kernel, find_kernel
from bootc_core.fs import atomic, verity
from bootc_core.models import kargs
from bootc_core.models.context import Installation
from bootc_core.models.kargs import CommandLine, merge_image_change
from bootc_core.models.tree import Node, resolve
from bootc_core.oci.layers import LayerStats, LayerTree

KERNEL: Final = "vmlinuz"  # names on the boot partition
INITRD: Final = "initrd"


@dataclass(frozen=True, slots=True)
class BootBinary:
    """A file for the boot partition: its name there, its content, and that one's SHA-256 (hex)."""

    name: str
    node: Node
    sha256: str


@dataclass(frozen=True, slots=True)
class Composed:
    """An image, ready to be written.

    Attributes:
        root: the bootable tree.
        deployment_id: hex digest of the bootable image in the repository's default format.
        bootable: EROFS images by format, with their digests.
        kernel: release of the kernel.
        binaries: kernel, and initrd if there is one.
        boot_digest: hex SHA-256 over their contents.
        options: the kernel command line.
        identity: of the operating system.
    """

    root: Node
    deployment_id: str
    bootable: dict[int, tuple[bytes, bytes]]
    kernel: str
    binaries: tuple[BootBinary, ...]
    boot_digest: str
    options: str
    identity: os_release.OsRelease


def compose(
    repository: Repository,
    layers: Sequence[tuple[str, Layer]],
    current: Slot | None,
    settings: Node | None,
    cache: Cache,
    install: Installation | None = None,
) -> Composed:
    """Compute everything about an image.

    Args:
        repository: has the layers' objects, or they are staged for it.
        layers: diffID and layer, lowest first.
        current: the deployment whose command line is followed; None for a first one.
        settings: ``kargs.d`` of that one's image, if it has it.
        cache: has the members of known layers, and gets those that it lacks.
        install: what a first deployment is made with.

    Raises:
        ContentError: the image is damaged, hostile, or cannot be booted.
        StorageError: an object is missing or damaged.
        BootError: the command line is too long.
    """
    contents = Contents(repository)
    tree = LayerTree()
    for number, (diff_id, layer) in enumerate(layers, 1):
        what = f"layer {number} ({diff_id[:19]}…)"
        _apply(repository, tree, layer, what, cache)
    root = tree.root
    kernel = find_kernel(root)
    line = _command_line(root, contents, current, settings, install)
    identity = os_release.parse(_os_release(root, contents))
    binaries, boot_digest = _binaries(repository, kernel, cache)
    oci_transform(root)
    boot_transform(root, contents.read)
    bootable = _images(repository, root)
    deployment_id = bootable[repository.formats[0]][0].hex()
    line = line.with_composefs(deployment_id, optional=not repository.secure).checked()
    return Composed(
        root,
        deployment_id,
        bootable,
        kernel.version,
        binaries,
        boot_digest,
        str(line),
        identity,
    )


def _apply(repository: Repository, tree: LayerTree, layer: Layer, what: str, cache: Cache) -> None:
    """Merge a layer: by its members if they are at hand, else from its splitstream, noting them for the next time."""
    data = cache.members(layer.digest)
    if layer.staged:
        try:
            data = (layer.staged / sink.MEMBERS).read_bytes()
        except OSError:
            data = b""
    found = members.load(data, layer.stream.object_refs, tree.interned)
    if found is not None:
        whiteouts, nodes, entries, dropped = found
        tree.apply_members(whiteouts, nodes, LayerStats(entries=entries, dropped=dropped), what)
        return
    writer = members.Writer()
    objects = {digest: number for number, digest in enumerate(layer.stream.object_refs)}
    entries_ = layer_entries(repository, layer.stream, what, layer.staged)
    tree.apply(members.noted(entries_, objects, writer), what)
    if not layer.staged and not writer.too_many:
        cache.keep_layer(layer.digest, writer.pieces())


def _images(repository: Repository, root: Node) -> dict[int, tuple[bytes, bytes]]:
    found = {}
    for version in repository.formats:
        image = write_image(root, version=version, algorithm=repository.algorithm)
        found[version] = (verity.digest(image, repository.algorithm), image)
    return found


def _os_release(root: Node, contents: Contents) -> bytes:
    for path in (paths.OS_RELEASE, "etc/os-release"):
        node = resolve(root, path.encode())
        if node is not None and stat.S_ISREG(node.mode) and node.size <= limits.SETTINGS_FILE_BYTES:
            return contents.read(node)
    return b""


def _command_line(
    root: Node,
    contents: Contents,
    current: Slot | None,
    settings: Node | None,
    install: Installation | None,
) -> CommandLine:
    """The new command line, ``composefs=`` still the old one: present arguments with the change between both images' kargs.d."""
    new = CommandLine.parse(" ".join(kargs_d.read_tree(root, contents.read)))
    if install is not None:
        return kargs.installed(install.arguments, new, install.removed, install.added)
    if current is None:
        return new.checked()
    options = CommandLine.parse(
        " ".join(current.entry.all("options")), f"the boot entry {current.entry.file}"
    )
    old = CommandLine()
    if settings is not None:
        old = CommandLine.parse(
            " ".join(kargs_d.read_tree(_rooted(settings, paths.KARGS_D), contents.read))
        )
    return merge_image_change(options, old, new)


def _rooted(node: Node, path: str) -> Node:
    """A tree with nothing but ``node`` at ``path``."""
    for name in reversed(path.encode().split(b"/")):
        parent = Node(stat.S_IFDIR | 0o755)
        if parent.children is not None:
            parent.children[name] = node
        node = parent
    return node


def _binaries(
    repository: Repository, kernel: Kernel, cache: Cache
) -> tuple[tuple[BootBinary, ...], str]:
    """Kernel and initrd with the digests of each and of both; hashed once for each content, then remembered by its name.

    Whoever copies them compares what was copied with these digests.
    """
    nodes = [node for node in (kernel.vmlinuz, kernel.initrd) if node is not None]
    objects = [node.object for node in nodes if node.object is not None]
    known = cache.kernel(objects) if len(objects) == len(nodes) else None
    if known is None:
        known = _hashed(repository, nodes)
        if len(objects) == len(nodes):
            cache.keep_kernel(objects, *known)
    own, overall = known
    found = tuple(
        BootBinary(name, node, digest)
        for name, node, digest in zip((KERNEL, INITRD), nodes, own, strict=False)
    )
    return found, overall


def _hashed(repository: Repository, nodes: Sequence[Node]) -> tuple[list[str], str]:
    """SHA-256 (hex) of each, and of all in a row; each is checked against its name on the way."""
    overall = hashlib.sha256()
    found = []
    for number, node in enumerate(nodes):
        first = number == 0  # the beginning of all in a row: hashed once
        own = overall if first else hashlib.sha256()
        if node.object is None:
            own.update(node.inline or b"")
            if not first:
                overall.update(node.inline or b"")
        else:
            check = verity.Hasher(repository.algorithm)
            descriptor = repository.open_object(node.object)
            try:
                with atomic.mapped("read", repository.object_path(node.object)):
                    while piece := os.read(descriptor, limits.MIB):
                        own.update(piece)
                        if not first:
                            overall.update(piece)
                        if not repository.secure:
                            check.update(piece)
            finally:
                os.close(descriptor)
            if not repository.secure and check.digest() != node.object:
                repository.read(node.object)  # raises with the details
        found.append(own.copy().hexdigest())
    return found, overall.hexdigest()
