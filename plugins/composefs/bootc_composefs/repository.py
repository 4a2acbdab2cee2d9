"""The composefs repository of a sysroot: objects named by fs-verity digest, and links that say what they are.

    composefs/                     0700; flock: shared while open, exclusive while pruning
        meta.json                  version, hash algorithm, features, image formats
        objects/XX/REST            every content: files, EROFS images, splitstreams, JSON documents
        images/HEX                 -> ../objects/XX/REST      an image that was made here
        images/refs/...            -> images/HEX
        streams/ID                 -> ../objects/XX/REST      oci-layer-DIFFID, oci-config-DIGEST, oci-manifest-DIGEST
        streams/refs/oci/TAG       -> ../../ID                roots of the garbage collection

Invariants: an object's name is the digest of its content, for ever. Content reaches the medium before a link names it. Links are
replaced atomically, with the shortest relative path. A repository is *secure* if ``meta.json`` itself has fs-verity: then every
object has it and the kernel checks each read; otherwise objects are checked here when they are read as a whole. The format is
shared with the reference tools of composefs (composefs formats, sections 5 to 8).

Nothing heavy is imported: ``bootc status`` reads configurations through this module.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bootc_composefs import meta
from bootc_core import limits
from bootc_core.errors import StorageError, printable
from bootc_core.fs import atomic, verity

if TYPE_CHECKING:
    from bootc_composefs.splitstream import Splitstream
    from bootc_core.oci.tar import Merged

OBJECT_MODE: Final = 0o644
OBJECT_BYTES: Final = (
    1 * limits.GIB
)  # of an object that is read as a whole; images and splitstreams are a few percent of it
TEMPORARY: Final = ".tmp-object-"
LINK: Final = ".symlink-"
_PARTS: Final = ("objects", "images", "streams")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._%+-]{0,254}")
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Repository:
    """An open repository. Close it, or use it in ``with``; a second open handle in one process blocks pruning.

    Attributes:
        path: its directory.
        algorithm: ``sha256`` or ``sha512``.
        formats: versions of EROFS images, the default one first.
        secure: fs-verity is required of every object.
        writable: False when it has features that only newer programs may write.
        staged: directories of objects (named by digest, flat) that are about to be published, read if need be.
    """

    def __init__(self, path: Path, found: meta.Meta, lock: int) -> None:
        """See ``open`` and ``create``."""
        self.path = path
        self.algorithm = found.algorithm
        self.formats = found.formats
        self.secure = found.secure
        self.writable = found.writable
        self.staged: tuple[str, ...] = ()
        self._lock = lock
        self._objects = str(path / "objects")
        self._folders: set[str] = set()

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- opening --------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, *, lock: bool = True) -> Repository:
        """The repository at ``path``; with ``lock`` for a run that writes or needs it unchanged.

        A repository from before ``meta.json`` is understood from its objects' names and, with ``lock``, gets one.

        Raises:
            StorageError: none there, damaged, newer, or its objects could be changed by others (``unsafe-repository``).
        """
        descriptor = -1
        if lock:
            _check_owner(path)
            with atomic.mapped("open", path):
                descriptor = os.open(
                    path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
                )
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            found = meta.load(path)
            if found is None:
                found = meta.infer(path)
                if lock:
                    meta.write(path, found.algorithm, secure=found.secure)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise
        return cls(path, found, descriptor)

    @classmethod
    def create(cls, path: Path, *, algorithm: str = "sha512") -> Repository:
        """The repository at ``path``, made if there is none; secure where the file system has fs-verity. Idempotent.

        Raises:
            StorageError: it cannot be made, or cannot be opened.
        """
        if not exists(path):
            atomic.mkdir(path, 0o700)
            for name in _PARTS:
                atomic.mkdir(path / name)
            _check_owner(path)
            secure = verity.supported(path / "objects", algorithm)
            meta.write(path, algorithm, secure=secure)
        elif stat.S_IMODE(path.stat().st_mode) != 0o700:
            with atomic.mapped("protect", path):
                path.chmod(0o700)
        return cls.open(path)

    # --- objects --------------------------------------------------------------------------------------------------

    @property
    def digest_bytes(self) -> int:
        """Length of a digest."""
        return verity.ALGORITHMS[self.algorithm].length

    def digest(self, hexed: str) -> bytes | None:
        """The digest in ``hexed`` if it could be one of this repository."""
        if len(hexed) != 2 * self.digest_bytes or not re.fullmatch("[0-9a-f]*", hexed):
            return None
        return bytes.fromhex(hexed)

    def object_path(self, digest: bytes) -> Path:
        """Where the object is, or would be."""
        return Path(self._object(digest.hex()))

    def _object(self, hexed: str) -> str:
        return f"{self._objects}/{hexed[:2]}/{hexed[2:]}"

    def size(self, digest: bytes) -> int | None:
        """Bytes of the object, or None if it is missing."""
        try:
            found = os.lstat(self._object(digest.hex()))
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def names(self) -> set[str]:
        """Digests in hex of all objects: one pass over the directories, cheaper than asking for each.

        A name says that the content is there: it is given after the content has reached the medium.
        """
        found: set[str] = set()
        with atomic.mapped("read", self._objects):
            for folder in os.listdir(self._objects):
                if len(folder) == 2:
                    found.update(
                        [folder + name for name in os.listdir(f"{self._objects}/{folder}")]
                    )
        return found

    def open_object(self, digest: bytes) -> int:
        """A descriptor of the object; in a secure repository the kernel has confirmed its digest.

        Raises:
            StorageError: missing, or another content.
        """
        hexed = digest.hex()
        descriptor = -1
        for path in (self._object(hexed), *(f"{place}/{hexed}" for place in self.staged)):
            try:
                descriptor = os.open(path, _OPEN)
            except FileNotFoundError:
                continue
            except OSError as problem:
                raise atomic.storage_error(problem, "read", path) from problem
            break
        if descriptor < 0:
            raise missing_object(digest)
        if self.secure:
            try:
                measured = verity.measure(descriptor)
                if measured != digest:
                    raise _wrong_object(digest, measured)  # noqa: TRY301 - closes the descriptor
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def read(self, digest: bytes, limit: int = OBJECT_BYTES) -> bytes:
        """The content of an object, checked against its name.

        Raises:
            StorageError: missing, damaged, or larger than ``limit`` bytes.
        """
        descriptor = self.open_object(digest)
        with (
            os.fdopen(descriptor, "rb", buffering=0) as file,
            atomic.mapped("read", self._object(digest.hex())),
        ):
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise StorageError(
                    "an object of the composefs repository is larger than it may be",
                    reference="too-large",
                    expected=f"at most {limit} bytes",
                    found=f"{size} bytes",
                    catalogue="LIM",
                )
            pieces = []
            at_once = min(size + 1, limits.GIB)  # memory for all of it is asked for at once
            while piece := file.read(at_once):
                pieces.append(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if not self.secure and (found := verity.digest(data, self.algorithm)) != digest:
            raise _wrong_object(digest, found)
        return data

    def _folder(self, hexed: str) -> None:
        name = hexed[:2]
        if name not in self._folders:
            atomic.mkdir(f"{self._objects}/{name}")
            self._folders.add(name)

    def put(self, data: bytes, digest: bytes | None = None) -> bytes:
        """Make ``data`` an object; returns its digest. Not synced: sync the file system before naming it in a link.

        One that is there already is compared, since a power cut may have left its name with another content.

        Args:
            data: the content.
            digest: its digest, where it was computed already.

        Raises:
            StorageError: it cannot be written.
        """
        digest = verity.digest(data, self.algorithm) if digest is None else digest
        hexed = digest.hex()
        target = self._object(hexed)
        if self.size(digest) == len(data):
            try:
                self.read(digest, len(data))
            except StorageError as problem:
                if problem.catalogue != "INT":
                    raise
            else:
                return digest
        self._folder(hexed)
        temporary = f"{self._objects}/{TEMPORARY}{os.urandom(8).hex()}"
        atomic.announce("write", target)
        try:
            with atomic.mapped("write", target):
                descriptor = os.open(
                    temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                )
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(descriptor, view) :]
                    os.fchmod(descriptor, OBJECT_MODE)
                finally:
                    os.close(descriptor)
            if self.secure:
                self._enable(temporary)
            self.publish(temporary, hexed, replace=True)
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)  # noqa: PTH108
        return digest

    def _enable(self, path: str) -> None:
        descriptor = os.open(path, _OPEN)
        try:
            if not verity.enable(descriptor, self.algorithm):
                raise StorageError(
                    "the file system refuses fs-verity, which this repository requires",
                    reference="no-verity",
                    hint="turn the feature on again (ext4: tune2fs -O verity) and run again",
                    catalogue="ENV",
                )
        finally:
            os.close(descriptor)

    def publish(self, staged: str, hexed: str, *, replace: bool = False) -> bool:
        """Give a staged file its name as an object; False if the object is there already (the file stays).

        An object of that name but another size is damaged, and replaced; with ``replace``, any object is.

        Raises:
            StorageError: the name did not take effect.
        """
        self._folder(hexed)
        target = self._object(hexed)
        if atomic.rename_new(staged, target):
            return True
        with atomic.mapped("look at", target):
            damaged = os.lstat(target).st_size != os.lstat(staged).st_size
        if damaged or replace:
            atomic.rename(staged, target)
        return damaged or replace

    # --- links ----------------------------------------------------------------------------------------------------

    def _link(self, name: str, target: str) -> None:
        """``name`` and ``target`` are relative to the repository; the link gets the shortest relative path."""
        path = self.path / name
        place = path.parent
        for directory in reversed((place, *place.parents)):
            if directory.is_relative_to(self.path) and directory != self.path:
                atomic.mkdir(directory)
        text = os.path.relpath(self.path / target, place)
        try:
            if os.readlink(path) == text:  # noqa: PTH115 - the text is compared, not the path
                return
        except OSError:
            pass
        temporary = self.path / f"{LINK}{os.urandom(8).hex()}"
        atomic.announce("symlink", path)
        with atomic.mapped("link", path):
            temporary.symlink_to(text)
        try:
            atomic.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _object_link(self, name: str, digest: bytes) -> None:
        hexed = digest.hex()
        self._link(name, f"objects/{hexed[:2]}/{hexed[2:]}")

    def link_image(self, digest: bytes) -> None:
        """Say that the object is an image made here."""
        self._object_link(f"images/{digest.hex()}", digest)

    def link_stream(self, name: str, digest: bytes) -> None:
        """Name a splitstream. Its content and all that it refers to must be on the medium."""
        self._object_link(f"streams/{_checked(name)}", digest)

    def tag(self, tag: str, stream: str) -> None:
        """Make ``stream`` a root under ``tag`` (any text; percent-encoded)."""
        self._link(f"streams/refs/oci/{quote_tag(tag)}", f"streams/{_checked(stream)}")

    def untag(self, tag: str) -> None:
        """Drop a tag; missing is fine."""
        atomic.unlink(self.path / "streams/refs/oci" / quote_tag(tag))

    def tags(self) -> dict[str, str]:
        """Tags with the stream that each names."""
        found = {}
        for name, target in links(self.path / "streams/refs/oci"):
            found[name.replace("%2F", "/").replace("%25", "%")] = target.rsplit("/", 1)[-1]
        return found

    def resolve(self, name: str) -> bytes | None:
        """Digest of the object that the link ``streams/ID`` or ``images/HEX`` names; None if there is no such link."""
        try:
            target = os.readlink(self.path / name)  # noqa: PTH115 - only the text is looked at
        except OSError:
            return None
        return self.target(target)

    def target(self, text: str) -> bytes | None:
        """The digest in the text of a link to an object."""
        parts = text.rsplit("/", 3)
        if len(parts) < 3 or parts[-3] != "objects" or len(parts[-2]) != 2:
            return None
        return self.digest(parts[-2] + parts[-1])

    def is_empty(self) -> bool:
        """Is there no object, not even one that nothing refers to?"""
        with atomic.mapped("read", self._objects):
            return not os.listdir(self._objects)

    def has_streams(self) -> bool:
        """Is anything in the repository that a new image could share?"""
        return bool(links(self.path / "streams"))

    def layers(self) -> list[str]:
        """DiffIDs of all layers that have a name."""
        prefix = "oci-layer-"
        names = [name for name, _ in links(self.path / "streams")]
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def stream(self, name: str) -> Splitstream | None:
        """The splitstream that ``streams/NAME`` names, checked against its digest; None if there is no such link.

        Raises:
            StorageError, ContentError: missing or damaged.
        """
        digest = self.resolve(f"streams/{_checked(name)}")
        if digest is None:
            return None
        from bootc_composefs import splitstream

        return splitstream.parse(self.read(digest), self.algorithm)

    # --- locking --------------------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the repository alone, for pruning; afterwards shared again.

        Raises:
            StorageError: ``repository-busy``: somebody reads it (never waits, so that nobody is held up).
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            raise StorageError(
                "another program is using the composefs repository",
                reference="repository-busy",
                hint="nothing was deleted; the next run does it",
                catalogue="STATE",
            ) from None
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def require_writable(self) -> None:
        """Before anything is written.

        Raises:
            StorageError: only newer programs may write here.
        """
        if not self.writable:
            raise meta.state_error(
                "the composefs repository may only be read by this version",
                "unknown features",
                "use a newer release",
            )


def _staged_size(staged: Path, digest: bytes) -> int | None:
    try:
        return os.lstat(f"{staged}/objects/{digest.hex()}").st_size
    except FileNotFoundError:
        return None


def missing_object(digest: bytes) -> StorageError:
    """The error for an object that should be there."""
    return StorageError(
        "an object of the composefs repository is missing",
        reference="missing-object",
        found=digest.hex()[:16] + "…",
        hint="run the same switch or upgrade again: what is missing is fetched",
        catalogue="INT",
    )


def _wrong_object(digest: bytes, found: bytes | None) -> StorageError:
    return StorageError(
        "an object of the composefs repository is damaged",
        reference="damaged-object",
        expected=digest.hex()[:32] + "…",
        found=(found.hex()[:32] + "…") if found else "no fs-verity",
        hint="delete it and run the same switch or upgrade again: what is missing is fetched",
        catalogue="INT",
    )


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise meta.state_error("not a stream of the composefs repository", printable(name))
    return name


def quote_tag(tag: str) -> str:
    """A tag as a file name."""
    return tag.replace("%", "%25").replace("/", "%2F")


def links(directory: Path) -> list[tuple[str, str]]:
    """Names and texts of the links in a directory, sorted; a missing directory has none."""
    try:
        with os.scandir(directory) as listing:
            return sorted(
                (entry.name, os.readlink(entry.path))  # noqa: PTH115 - only the text is looked at
                for entry in listing
                if entry.is_symlink()
            )
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise atomic.storage_error(problem, "read", directory) from problem


def exists(path: Path) -> bool:
    """Is there a repository at ``path``? One without ``meta.json`` has objects."""
    if (path / meta.NAME).is_file():
        return True
    try:
        with os.scandir(path / "objects") as listing:
            return any(entry.is_dir(follow_symlinks=False) for entry in listing)
    except OSError:
        return False


def is_unfinished(path: Path) -> bool:
    """Is there nothing but what ``create`` makes before ``meta.json``?

    Raises:
        OSError: it cannot be read.
    """
    names = set(os.listdir(path))
    return all(name in _PARTS or name.startswith(".bootc-tmp-") for name in names)


def _check_owner(path: Path) -> None:
    """Nobody else may replace what objects are: no links, no foreign owner, not writable by the world."""
    for place in (path, path / "objects"):
        try:
            found = place.lstat()
        except FileNotFoundError:
            raise meta.state_error("there is no composefs repository", str(place)) from None
        except OSError as problem:
            raise atomic.storage_error(problem, "open", place) from problem
        wrong = None
        if not stat.S_ISDIR(found.st_mode):
            wrong = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no directory"
        elif found.st_uid not in {0, os.geteuid()}:
            wrong = f"owned by user {found.st_uid}"
        elif found.st_mode & stat.S_IWOTH:
            wrong = f"writable by everybody (mode {stat.S_IMODE(found.st_mode):04o})"
        if wrong:
            raise StorageError(
                f"{place} is not safe to use",
                reference="unsafe-repository",
                expected="a directory that only its owner can change",
                found=wrong,
                hint="check who changed it; then correct owner and mode",
                catalogue="STATE",
            )


def layer_entries(
    repository: Repository, stream: Splitstream, what: str, staged: Path | None = None
) -> Iterator[Merged]:
    """The members of a layer, from its splitstream: what the merge of layers takes (see ``bootc_core.oci.tar``).

    Args:
        repository: where the objects are; their sizes are compared with the headers.
        stream: the layer's.
        what: names the layer in errors.
        staged: the layer's staging directory, if its objects may still be there.

    Raises:
        ContentError: the layer is damaged.
        StorageError: an object is missing.
    """
    from bootc_core.oci import tar

    references: list[tuple[bytes, int] | None] = [None] * len(stream.object_refs)

    def parts() -> Iterator[bytes | tuple[bytes, int]]:
        for chunk in stream.chunks():
            if isinstance(chunk, bytes):
                yield chunk
                continue
            reference = references[chunk]
            if reference is None:
                digest = stream.object_refs[chunk]
                size = _staged_size(staged, digest) if staged else None
                if size is None:
                    size = repository.size(digest)
                if size is None:
                    raise missing_object(digest)
                reference = references[chunk] = (digest, size)
            yield reference

    return tar.iter_entries(parts(), what)


def file_digest(repository: Repository, digest: bytes) -> bytes:
    """The digest that the content of an object has now, whatever its size, in little memory.

    Raises:
        StorageError: it cannot be read.
    """
    descriptor = repository.open_object(digest)
    try:
        hasher = verity.Hasher(repository.algorithm)
        with atomic.mapped("read", repository.object_path(digest)):
            while piece := os.read(descriptor, limits.MIB):
                hasher.update(piece)
        return hasher.digest()
    finally:
        os.close(descriptor)


def all_refs(directory: Path) -> Iterator[tuple[Path, str]]:
    """Every link below ``directory`` with its text."""
    for name, text in links(directory):
        yield directory / name, text
    try:
        with os.scandir(directory) as listing:
            below = sorted(entry.name for entry in listing if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    for name in below:
        yield from all_refs(directory / name)
