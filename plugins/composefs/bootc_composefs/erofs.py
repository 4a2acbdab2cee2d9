"""EROFS metadata images of versions 0 and 1, bit for bit as ``mkcomposefs`` makes them (version 2: ``erofs_v2``).

The steps, and the functions that do them:

    A  rewrite the tree: whiteouts become marked files, the root gets its stubs      ``_number``
    B  number the inodes breadth first, names in byte order                           ``_number``
    C  share attributes that occur twice                                              ``_share``
    D  sizes and places                                                               ``_place``
    E  write                                                                          ``_emit``

The order of everything decides the digest of the image, and so the identity of a deployment: no step may depend on the order
of a dictionary. 50,000 inodes must take less than half a second; that is why the loops are long and plain. The input
tree is not modified. Format: ``erofs_format``; vectors made by the real programs are in the tests.
"""

from __future__ import annotations

import io
import stat
import struct
from array import array
from itertools import accumulate
from typing import Final

from bootc_composefs import erofs_format as form
from bootc_composefs.erofs_format import BLOCK, METACOPY, OPAQUE, REDIRECT, SLOT, Overrides
from bootc_composefs.erofs_tree import (
    DOT,
    DOT_DOT,
    Directory,
    Pair,
    backing_pairs,
    check_file_type,
    check_target,
    metacopy_value,
    survey,
    xattr_count,
)
from bootc_core.errors import ContentError, StorageError
from bootc_core.fs.verity import ALGORITHMS, Algorithm
from bootc_core.models.tree import Node, Xattrs

_DEVICES: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK})
_ONE_CHUNK: Final = 1 << form.CHUNK_BITS_MAX
_ZEROS: Final = bytes(BLOCK)
_FORMAT: Final = 0o170000
_STUB_NAMES: Final = tuple(b"%02x" % number for number in range(256))


def write_image(
    root: Node,
    *,
    version: int = 1,
    algorithm: str = "sha512",
    overrides: Overrides | None = None,
) -> bytes:
    """The metadata image of a tree; its fs-verity digest names the deployment.

    Args:
        root: a directory. Objects are raw fs-verity digests of ``algorithm``. A node under several names is a hard link.
        version: 1 for new repositories; 0 (becomes 1 where there are whiteouts, as in ``mkcomposefs``); 2 for older ones.
        algorithm: of the objects.
        overrides: only to repeat an image from a dump.

    Raises:
        ContentError: the tree does not fit in the format (lengths, numbers beyond 32 bits, a directory in two places).
        StorageError: a file has no object, or one of another algorithm; an unknown version.
    """
    if root.children is None:
        raise ContentError("the root of an image must be a directory", reference="bad-tree")
    if version not in {0, 1, 2} or algorithm not in ALGORITHMS:
        raise StorageError(
            "this image format is not supported",
            reference="unknown-image-format",
            expected="version 0, 1 or 2 with sha256 or sha512",
            found=f"version {version} with {algorithm}",
            catalogue="STATE",
        )
    try:
        if version == 2:
            from bootc_composefs.erofs_v2 import write_v2

            return write_v2(root, ALGORITHMS[algorithm], overrides or Overrides())
        return _Image(root, version, ALGORITHMS[algorithm], overrides or Overrides()).write()
    except (struct.error, OverflowError) as problem:
        raise ContentError(
            "a number in the image's metadata does not fit (owner, size, time or device number)",
            reference="bad-metadata",
            found=str(problem),
        ) from problem


# Attributes ---------------------------------------------------------------------------------------------------------


class _Plan:
    """What all inodes with equal attributes have in common; for external files without the two that differ."""

    __slots__ = ("area", "external", "pairs", "pieces", "size", "uses")

    def __init__(self, pairs: Xattrs, *, external: bool) -> None:
        self.pairs = pairs  # escaped and sorted
        self.external = external
        self.uses = 0
        self.size = 0  # of the attribute area, for external files with an unshared object
        self.area = b""  # the area itself
        # around digest and path of external files
        self.pieces: tuple[bytes, bytes, bytes] | None = None


class _Image:
    """One image being made; the steps fill it from top to bottom."""

    def __init__(
        self, root: Node, version: int, algorithm: Algorithm, overrides: Overrides
    ) -> None:
        self.root = root
        self.algorithm = algorithm
        self.overrides = overrides
        self.counts, self.homes, whiteouts = survey(root)
        self.homes.update(overrides.homes)
        self.version = 1 if whiteouts else version
        self.inodes: list[Node] = []
        self.directories: dict[int, Directory] = {}
        self.links: dict[int, int] = {}  # link counts other than 1, by inode number
        self.sizes: dict[int, int] = {}  # recorded sizes of what is not a regular file
        self.plans: list[_Plan] = []
        # all pairs of external files that do not fit the template of their plan
        self.singular: dict[int, Xattrs] = {}
        self.shared: dict[Pair, int] = {}  # offset in the table
        self.table = b""
        self.bits: dict[bytes, int] = {}

    def write(self) -> bytes:
        self._number()
        self._share()
        self._place()
        return self._emit()

    # A, B

    def _root(self) -> tuple[Node, dict[bytes, Node], set[Node]]:
        """The root with its stubs: whiteouts named as the folders of the object directory, to hide those in a mounted root."""
        root = self.root
        label = tuple(pair for pair in root.xattrs if pair[0] == b"security.selinux")
        children = dict(root.children or {})
        stubs = set()
        for name in _STUB_NAMES:
            if name not in children:
                children[name] = stub = Node(
                    stat.S_IFCHR | 0o644,
                    root.uid,
                    root.gid,
                    root.mtime,
                    root.mtime_ns,
                    xattrs=label,
                )
                stubs.add(stub)
        return root, children, stubs

    def _number(self) -> None:
        homes, overrides = self.homes, self.overrides
        root, root_children, stubs = self._root()
        inodes = self.inodes
        inodes.append(root)
        parents = [0]  # by inode number; only looked up for directories
        numbers: dict[Node, int] = {}  # of hard-linked files
        later: list[tuple[list[int], int, Node]] = []
        for number, node in enumerate(inodes):
            children = node.children
            if children is None:
                continue
            if number == 0:
                children = root_children
            directory = self.directories[number] = Directory(sorted(children))
            targets = directory.targets
            subdirectories = 0
            marked = False
            for name in directory.names:
                if name is DOT:
                    targets.append(number)
                    continue
                if name is DOT_DOT:
                    targets.append(parents[number])
                    continue
                child = children[name]
                target = len(inodes)
                if child in homes:
                    if homes[child] != (node, name):
                        later.append((targets, len(targets), child))
                        targets.append(0)
                        continue
                    numbers[child] = target
                    self.links[target] = self.counts.get(child, 1)
                if child.children is not None:
                    subdirectories += 1
                elif child.mode & _FORMAT == stat.S_IFCHR and not child.rdev and child not in stubs:
                    marked = True
                    if child in overrides.links:
                        self.links[target] = overrides.links[child]
                    child = _marked_file(child)
                targets.append(target)
                inodes.append(child)
                parents.append(number)
            self.links[number] = 2 + subdirectories
            if marked:
                inodes[number] = _marked_directory(node, self.version)
        for targets, index, node in later:
            targets[index] = numbers[node]
        if overrides.links or overrides.sizes:
            for number, node in enumerate(inodes):
                if node in overrides.links and node.children is None:
                    self.links[number] = overrides.links[node]
                if node in overrides.sizes and node.children is None:
                    self.sizes[number] = overrides.sizes[node]

    # C

    def _share(self) -> None:
        raw: dict[Xattrs, _Plan] = {}
        raw_external: dict[Xattrs, _Plan] = {}
        final: dict[tuple[Xattrs, bool], _Plan] = {}
        once: set[bytes] = set()
        twice: set[bytes] = set()
        loose: dict[Pair, int] = {}  # of external files with a path of their own
        by_template = not self.overrides.paths
        length = self.algorithm.length
        plans = self.plans
        for number, node in enumerate(self.inodes):
            external = node.size > 0 and node.inline is None and node.mode & _FORMAT == stat.S_IFREG
            known = raw_external if external else raw
            plan = known.get(node.xattrs) if number else None
            if plan is None:
                pairs = form.escape(node.xattrs)
                if number == 0:  # after escaping, so that the mark is the overlay's own
                    pairs = tuple(sorted((dict(pairs) | {OPAQUE: b"y"}).items()))
                plan = final.get((pairs, external))
                if plan is None:
                    plan = final[pairs, external] = _Plan(pairs, external=external)
                if number:
                    known[node.xattrs] = plan
            plan.uses += 1
            plans.append(plan)
            if external:
                name = node.object
                if by_template and name is not None and len(name) == length:
                    if name in once:
                        twice.add(name)
                    else:
                        once.add(name)
                else:
                    own = backing_pairs(node, self.algorithm, self.overrides)
                    self.singular[number] = tuple(sorted(plan.pairs + own))
                    for pair in own:
                        loose[pair] = loose.get(pair, 0) + 1
        uses = loose
        for plan in final.values():
            for pair in plan.pairs:
                uses[pair] = uses.get(pair, 0) + plan.uses
        shared = [pair for pair, count in uses.items() if count > 1]
        for name in twice:
            shared.append((METACOPY, metacopy_value(name, self.algorithm)))
            shared.append((REDIRECT, b"/" + form.backing_path(name)))
        shared.sort(key=lambda pair: (pair[0], len(pair[1]), pair[1]), reverse=True)
        entries = [form.xattr_entry(name, value, self.version) for name, value in shared]
        self.shared = dict(zip(shared, accumulate(map(len, entries), initial=0), strict=False))
        self.table = b"".join(entries)
        # What is in the plans is now complete; external files that share their object go one by one.
        if twice:
            for number, node in enumerate(self.inodes):
                if node.object in twice and plans[number].external:
                    own = backing_pairs(node, self.algorithm, self.overrides)
                    self.singular[number] = tuple(sorted(plans[number].pairs + own))
        for plan in final.values():
            plan.size = self._size(plan.pairs)
            if plan.external:
                plan.size = (plan.size or 12) + sum(
                    len(form.xattr_entry(*pair, self.version))
                    for pair in (
                        (METACOPY, bytes(4 + length)),
                        (REDIRECT, bytes(2 + 2 * length)),
                    )
                )

    def _split(self, pairs: Xattrs) -> tuple[list[int], list[tuple[bytes, bytes]]]:
        """Offsets in the table, and (name, entry) of what is stored in the inode itself; both in the order of ``pairs``."""
        references: list[int] = []
        entries: list[tuple[bytes, bytes]] = []
        for pair in pairs:
            offset = self.shared.get(pair)
            if offset is not None and len(references) < form.SHARED_MAX:
                references.append(offset)
            else:
                entries.append((pair[0], form.xattr_entry(*pair, self.version)))
        return references, entries

    def _size(self, pairs: Xattrs) -> int:
        """Bytes of the attribute area."""
        if not pairs:
            return 0
        references, entries = self._split(pairs)
        return 12 + 4 * len(references) + sum(len(entry) for _, entry in entries)

    def _head(self, names: list[bytes], references: list[int]) -> bytes:
        """The header of an attribute area with its references."""
        base = self.inodes_end % BLOCK
        found = 0
        for name in names:
            bit = self.bits.get(name)
            if bit is None:
                bit = self.bits[name] = form.filter_bit(name, self.version)
            found |= bit
        return form.XATTR_HEADER.pack(~found & 0xFFFFFFFF, len(references)) + struct.pack(
            f"<{len(references)}I", *((base + offset) // 4 for offset in references)
        )

    def _area(self, pairs: Xattrs) -> bytes:
        if not pairs:
            return b""
        references, entries = self._split(pairs)
        head = self._head([name for name, _ in pairs], references)
        return head + b"".join([entry for _, entry in entries])

    def _pieces(self, pairs: Xattrs) -> tuple[bytes, bytes, bytes]:
        """The area of an external file with an object of its own, cut around the digest and around the path that follows.

        Neither attribute is shared then, and no input attribute has their names (those are escaped).
        """
        length = self.algorithm.length
        references, entries = self._split(pairs)
        names = [name for name, _ in pairs]
        head = self._head([*names, METACOPY, REDIRECT], references)
        before = [entry for name, entry in entries if name < METACOPY]
        between = [entry for name, entry in entries if METACOPY < name < REDIRECT]
        after = [entry for name, entry in entries if name > REDIRECT]
        digest = metacopy_value(bytes(length), self.algorithm)
        metacopy = form.xattr_entry(METACOPY, digest, self.version)
        cut = form.XATTR_ENTRY.size + len(METACOPY) - len(b"trusted.") + len(digest)
        path = b"/" + form.backing_path(bytes(length))
        redirect = form.xattr_entry(REDIRECT, path, self.version)
        start = form.XATTR_ENTRY.size + len(REDIRECT) - len(b"trusted.")
        return (
            b"".join((head, *before, metacopy[: cut - length])),
            b"".join((metacopy[cut:], *between, redirect[: start + 1])),
            b"".join((redirect[start + len(path) :], *after)),
        )

    # D

    def _place(self) -> None:
        inodes, plans, directories = self.inodes, self.plans, self.directories
        links, sizes, singular = self.links, self.sizes, self.singular
        self.lowest = lowest = min((node.mtime, node.mtime_ns) for node in inodes)
        low_s, low_ns = lowest
        self.nids = nids = array("I")
        self.types = types = bytearray()
        self.extended = extended = bytearray()
        self.tails = tails = array("H")
        blocks: dict[int, int] = {}
        self.blocks = blocks  # by inode number, where there are any
        position = form.INODES_OFFSET
        for number, node in enumerate(inodes):
            kind = node.mode & _FORMAT
            types.append(check_file_type(node))
            count = tail = 0
            size = node.size
            if kind == stat.S_IFREG:
                if node.inline is not None:
                    size = len(node.inline)
                    count, tail = divmod(size, BLOCK)
                    if tail > form.TAIL_MAX:
                        count, tail = count + 1, 0
                elif size > 0:
                    tail = 4 if size <= _ONE_CHUNK else _chunk_array(size)
            elif kind == stat.S_IFDIR:
                count, tail = directories[number].layout()
                size = count * BLOCK + tail
            elif kind == stat.S_IFLNK:
                tail = size = len(check_target(node))
            else:
                size = sizes.get(number, 0)
            wide = (
                node.mtime != low_s
                or node.mtime_ns != low_ns
                or node.uid > 65535
                or node.gid > 65535
                or size > 0xFFFFFFFF
                or (number in links and links[number] > 65535)
            )
            extended.append(wide)
            head = 64 if wide else 32
            head += self._size(singular[number]) if number in singular else plans[number].size
            position = (position + 31) & -SLOT
            if kind == stat.S_IFLNK:
                whole = head + tail
                if position // BLOCK != (position + whole - 1) // BLOCK:
                    position = (position + BLOCK - 1) & -BLOCK
                if whole >= BLOCK:
                    count, tail = 1, 0
            elif tail:
                room = BLOCK - (position + head) % BLOCK
                if room < tail:
                    extra = (room + 31) & -SLOT
                    if tail <= BLOCK - (position + head + extra) % BLOCK:
                        position += extra
                    else:
                        count, tail = count + 1, 0
                        position = (position + BLOCK - 1) & -BLOCK
            nids.append(position // SLOT)
            tails.append(tail)
            if count:
                blocks[number] = count
            position += head + tail
        self.inodes_end = (position + 31) & -SLOT
        self.data_start = (self.inodes_end + len(self.table) + BLOCK - 1) & -BLOCK

    # E

    def _emit(self) -> bytes:
        plans, nids = self.plans, self.nids
        extended, tails, blocks, links = self.extended, self.tails, self.blocks, self.links
        for plan in {id(plan): plan for plan in plans}.values():
            if plan.external:
                plan.pieces = self._pieces(plan.pairs)
            else:
                plan.area = self._area(plan.pairs)
        pack_compact, pack_extended = form.COMPACT.pack, form.EXTENDED.pack
        store = io.BytesIO()
        write = store.write
        write(self._header())
        data: list[bytes] = []  # the blocks, of one size, as pieces
        block = self.data_start // BLOCK
        position = form.INODES_OFFSET
        for number, node in enumerate(self.inodes):
            plan = plans[number]
            first = block if number in blocks else 0
            block += blocks.get(number, 0)
            if plan.external:
                size = node.size
                layout = form.CHUNKED
                union = (_chunk_bits(size) - 12) | (first & 0xFFFF0000)
                tail = b"\xff" * tails[number]
                if first:  # the array did not fit behind its inode
                    data.append(b"\xff" * BLOCK)
                area = self._external_area(number, node.object or b"", plan)
            else:
                layout = form.INLINE if tails[number] else form.PLAIN
                size, tail = self._content(number, node, data)
                union = first or (node.rdev if node.mode & _FORMAT in _DEVICES else 0)
                area = plan.area
            count = xattr_count(len(area))
            if extended[number]:
                head = pack_extended(
                    layout << 1 | 1,
                    count,
                    node.mode,
                    0,
                    size,
                    union,
                    number,
                    node.uid,
                    node.gid,
                    node.mtime,
                    node.mtime_ns,
                    links.get(number, 1),
                )
            else:
                head = pack_compact(
                    layout << 1,
                    count,
                    node.mode,
                    links.get(number, 1),
                    size,
                    0,
                    union,
                    number,
                    node.uid,
                    node.gid,
                    0,
                )
            start = nids[number] * SLOT
            write(_ZEROS[: start - position])
            write(head)
            write(area)
            write(tail)
            position = start + len(head) + len(area) + len(tail)
        write(_ZEROS[: self.inodes_end - position])
        write(self.table)
        write(_ZEROS[: self.data_start - self.inodes_end - len(self.table)])
        store.writelines(data)
        self._superblock(store)
        return store.getvalue()

    def _external_area(self, number: int, name: bytes, plan: _Plan) -> bytes:
        if plan.pieces is None or number in self.singular:
            return self._area(self.singular[number])
        front, middle, end = plan.pieces
        text = name.hex().encode()
        return b"".join((front, name, middle, text[:2], b"/", text[2:], end))

    def _content(self, number: int, node: Node, data: list[bytes]) -> tuple[int, bytes]:
        """Size and inline tail of what is stored in the image itself; whole blocks go to ``data``."""
        count = self.blocks.get(number, 0)
        directory = self.directories.get(number)
        if directory is not None:
            for index in range(count):
                data.append(directory.part(index, self.nids, self.types).ljust(BLOCK, b"\0"))
            tail = directory.part(count, self.nids, self.types) if self.tails[number] else b""
            return count * BLOCK + len(tail), tail
        content = node.inline
        if not content:
            return 0, b""
        if not count:
            return len(content), content
        whole = len(content) - self.tails[number]
        data.append(content[:whole].ljust(count * BLOCK, b"\0"))
        return len(content), content[whole:]

    def _superblock(self, store: io.BytesIO) -> None:
        size = store.tell()
        with store.getbuffer() as view:
            form.SUPERBLOCK.pack_into(
                view,
                form.SUPERBLOCK_OFFSET,
                form.EROFS_MAGIC,
                0,
                form.FEATURE_COMPAT,
                12,
                0,
                self.nids[0],
                len(self.inodes),
                *self.lowest,
                size // BLOCK,
                0,
                self.inodes_end // BLOCK,
                0,
            )

    def _header(self) -> bytes:
        """The composefs header, and room for the superblock, which knows the size."""
        acl = any(
            name in form.ACL_NAMES
            for plan in {id(plan): plan for plan in self.plans}.values()
            for name, _ in plan.pairs
        )
        header = form.HEADER.pack(
            form.COMPOSEFS_MAGIC,
            form.HEADER_VERSION,
            form.FLAG_HAS_ACL if acl else 0,
            self.version,
        )
        return header.ljust(form.INODES_OFFSET, b"\0")


def _chunk_bits(size: int) -> int:
    """Chunk size of an external file, as a power of two."""
    return min(max(12, (size - 1).bit_length()), form.CHUNK_BITS_MAX)


def _chunk_array(size: int) -> int:
    """Bytes of the (empty) chunk array of an external file."""
    bits = _chunk_bits(size)
    count = (size + (1 << bits) - 1) >> bits
    if count > form.CHUNKS_MAX:
        raise ContentError(
            "a file is too large for an image",
            reference="file-too-large",
            expected=f"{form.CHUNKS_MAX << form.CHUNK_BITS_MAX} bytes at most",
            found=f"{size} bytes",
            catalogue="LIM",
        )
    return 4 * count


def _marked_file(node: Node) -> Node:
    """The file that stands for a whiteout, so that the overlay that shows the image does not take it for its own."""
    return Node(
        stat.S_IFREG | stat.S_IMODE(node.mode),
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_ns,
        inline=b"",
        xattrs=_with(
            node.xattrs, {b"trusted.overlay.whiteout": b"", b"user.overlay.whiteout": b""}
        ),
    )


def _marked_directory(node: Node, version: int) -> Node:
    """A directory with whiteouts; its children stay those of ``node``."""
    marks = {b"trusted.overlay.whiteouts": b"", b"user.overlay.whiteouts": b""}
    if version >= 1:
        marks |= {OPAQUE: b"x", b"user.overlay.opaque": b"x"}
    return Node(
        node.mode,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_ns,
        xattrs=_with(node.xattrs, marks),
    )


def _with(xattrs: Xattrs, more: dict[bytes, bytes]) -> Xattrs:
    """Attributes with others set; escaping comes later and gives ``trusted.overlay.`` names their final form."""
    return tuple(sorted((dict(xattrs) | more).items()))
