"""The few calls of the real libostree that have no command-line form: order of deployments, deploying with an origin.

ctypes on ``libostree-1.so.1`` rather than GObject introspection: the library's ABI is stable, it is there wherever ostree is, and
neither Python bindings of the distribution's interpreter nor typelibs are needed. Calls block; they run on one thread. Objects are
reference-counted by GLib; a ``Sysroot`` keeps what it hands out alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from bootc_core.errors import StorageError, UnsupportedEnvironmentError, printable

OLDEST: Final = (2022, 7)  # Debian 12's
VAR_FROM_COMMIT: Final = (2024, 3)  # from here on a new stateroot's /var comes from the commit

SOFT_REBOOT: Final = (2025, 3)
SOFT_REBOOT_STAGED: Final = (2025, 7)  # from here on also of what is only staged

_REFS_ONLY: Final = 2
_DEPLOY: Final = [c_void_p, c_char_p, c_char_p, *[c_void_p] * 6]


class _GError(ctypes.Structure):
    _fields_ = (("domain", ctypes.c_uint32), ("code", c_int), ("message", c_char_p))


class _GPtrArray(ctypes.Structure):
    _fields_ = (("pdata", POINTER(c_void_p)), ("len", ctypes.c_uint))


class _WriteOptions(ctypes.Structure):
    _fields_ = (
        ("do_postclean", c_int),
        ("unused_bools", c_int * 7),
        ("unused_ints", c_int * 7),
        ("unused_ptrs", c_void_p * 7),
    )


class _PruneOptions(ctypes.Structure):
    _fields_ = (
        ("flags", c_int),
        ("reachable", c_void_p),
        ("unused_bools", c_int * 6),
        ("unused_ints", c_int * 6),
        ("unused_ptrs", c_void_p * 7),
    )


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, ctypes.CDLL, ctypes.CDLL]:
    try:
        ostree = ctypes.CDLL("libostree-1.so.1")
        gio = ctypes.CDLL("libgio-2.0.so.0")
        glib = ctypes.CDLL("libglib-2.0.so.0")
    except OSError as problem:
        raise UnsupportedEnvironmentError(
            "the ostree backend needs libostree",
            reference="no-libostree",
            found=printable(str(problem)),
            hint="install the package ostree (Debian: apt-get install ostree)",
        ) from None
    year, release = OLDEST
    ostree.ostree_check_version.restype = c_int
    if not ostree.ostree_check_version(year, release):
        raise UnsupportedEnvironmentError(
            "this libostree is too old",
            reference="old-libostree",
            expected=f"{year}.{release} or newer",
            hint="update the package ostree",
        )
    for name, result, arguments in (
        ("ostree_sysroot_new", c_void_p, [c_void_p]),
        ("ostree_sysroot_load", c_int, [c_void_p, c_void_p, c_void_p]),
        ("ostree_sysroot_get_deployments", POINTER(_GPtrArray), [c_void_p]),
        ("ostree_sysroot_write_deployments_with_options", c_int, [c_void_p] * 5),
        ("ostree_sysroot_deploy_tree", c_int, _DEPLOY),
        ("ostree_sysroot_stage_tree", c_int, _DEPLOY),
        ("ostree_sysroot_try_lock", c_int, [c_void_p, POINTER(c_int), c_void_p]),
        ("ostree_sysroot_unlock", None, [c_void_p]),
        ("ostree_sysroot_set_mount_namespace_in_use", None, [c_void_p]),
        ("ostree_sysroot_get_booted_deployment", c_void_p, [c_void_p]),
        ("ostree_deployment_is_staged", c_int, [c_void_p]),
        ("ostree_repo_traverse_new_reachable", c_void_p, []),
        ("ostree_sysroot_cleanup_prune_repo", c_int, [c_void_p] * 7),
        ("ostree_sysroot_prepare_cleanup", c_int, [c_void_p, c_void_p, c_void_p]),
        ("ostree_repo_new", c_void_p, [c_void_p]),
        ("ostree_repo_open", c_int, [c_void_p, c_void_p, c_void_p]),
        ("ostree_repo_fsck_object", c_int, [c_void_p, c_int, c_char_p, c_void_p, c_void_p]),
        ("ostree_deployment_get_csum", c_char_p, [c_void_p]),
        ("ostree_deployment_get_osname", c_char_p, [c_void_p]),
        ("ostree_deployment_get_deployserial", c_int, [c_void_p]),
        ("ostree_deployment_is_pinned", c_int, [c_void_p]),
    ):
        function = getattr(ostree, name)
        function.restype, function.argtypes = result, arguments
    gio.g_file_new_for_path.restype, gio.g_file_new_for_path.argtypes = c_void_p, [c_char_p]
    gio.g_object_unref.argtypes = [c_void_p]
    gio.g_object_ref.restype, gio.g_object_ref.argtypes = c_void_p, [c_void_p]
    glib.g_ptr_array_new.restype = POINTER(_GPtrArray)
    glib.g_ptr_array_add.argtypes = [c_void_p, c_void_p]
    glib.g_ptr_array_unref.argtypes = [c_void_p]
    glib.g_hash_table_unref.argtypes = [c_void_p]
    glib.g_error_free.argtypes = [c_void_p]
    glib.g_key_file_new.restype = c_void_p
    glib.g_key_file_load_from_data.argtypes = [c_void_p, c_char_p, c_size_t, c_int, c_void_p]
    glib.g_key_file_unref.argtypes = [c_void_p]
    return ostree, gio, glib


def at_least(year: int, release: int) -> bool:
    """Is the libostree of this host that version or a newer one?

    Raises:
        UnsupportedEnvironmentError: there is none, or it is too old for us.
    """
    return bool(_library()[0].ostree_check_version(year, release))


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment as libostree knows it; ``handle`` is its object, alive as long as the ``Sysroot``."""

    handle: int
    checksum: str
    stateroot: str
    serial: int
    pinned: bool = False
    staged: bool = False
    booted: bool = False

    @property
    def name(self) -> str:
        """``CHECKSUM.SERIAL``, as its directory is called."""
        return f"{self.checksum}.{self.serial}"


def _own_mounts() -> bool:
    """Do changes of our mounts stay with this process? Then libostree may remount what is read-only."""
    try:
        return Path("/proc/self/ns/mnt").readlink() != Path("/proc/1/ns/mnt").readlink()
    except OSError:
        return False


def _taken(ostree: ctypes.CDLL, glib: ctypes.CDLL, name: str, *arguments: Any) -> str | None:
    """Call a function that fails by its last argument; what it says, or None."""
    problem = POINTER(_GError)()
    if getattr(ostree, name)(*arguments, None, byref(problem)):
        return None
    if not problem:
        return "no reason given"
    text: str = problem.contents.message.decode("utf-8", "replace")
    glib.g_error_free(problem)
    return text


class ObjectChecker:
    """libostree's own check of single objects; use as a context manager.

    Raises:
        UnsupportedEnvironmentError: no libostree, or an old one.
        StorageError: the repository cannot be opened.
    """

    KINDS: Final = {"file": 1, "dirtree": 2, "dirmeta": 3, "commit": 4}

    def __init__(self, path: Path) -> None:
        self._ostree, gio, self._glib = _library()
        self._gio = gio
        file = gio.g_file_new_for_path(str(path).encode())
        self._self = self._ostree.ostree_repo_new(file)
        gio.g_object_unref(file)
        if said := _taken(self._ostree, self._glib, "ostree_repo_open", self._self):
            gio.g_object_unref(self._self)
            raise StorageError(
                f"libostree cannot open {path}", reference="libostree", found=printable(said, 600)
            )

    def __enter__(self) -> ObjectChecker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._gio.g_object_unref(self._self)

    def problem(self, checksum: str, kind: str) -> str | None:
        """What is wrong with an object, in libostree's words; None: nothing."""
        number = self.KINDS[kind]
        return _taken(
            self._ostree,
            self._glib,
            "ostree_repo_fsck_object",
            self._self,
            number,
            checksum.encode(),
        )


class Sysroot:
    """An ostree sysroot, locked (``ostree/lock``, as other programs take it) and loaded; use as a context manager.

    Args:
        path: the physical root; for the running host ``/``, or libostree does not see what is booted and staged.

    Raises:
        UnsupportedEnvironmentError: no libostree, or an old one.
        StorageError: ``locked``, or what libostree says.
    """

    def __init__(self, path: Path) -> None:
        self._ostree, self._gio, self._glib = _library()
        self._path = path
        file = self._gio.g_file_new_for_path(str(path).encode())
        self._self = self._ostree.ostree_sysroot_new(file)
        self._gio.g_object_unref(file)
        self._kept: list[Any] = []
        self._locked = False
        if path == Path("/") and _own_mounts():
            self._ostree.ostree_sysroot_set_mount_namespace_in_use(self._self)

    def __enter__(self) -> Sysroot:
        try:
            self._lock()
            self.load()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for array in self._kept:
            self._glib.g_ptr_array_unref(array)
        self._kept.clear()
        if self._locked:
            self._ostree.ostree_sysroot_unlock(self._self)
        self._gio.g_object_unref(self._self)

    def _lock(self) -> None:
        taken, problem = c_int(), POINTER(_GError)()
        done = self._ostree.ostree_sysroot_try_lock(self._self, byref(taken), byref(problem))
        if not done:
            raise self._error("lock the deployments", problem)
        if not taken.value:
            raise StorageError(
                f"another program is changing the deployments in {self._path}",
                reference="locked",
                found=f"{self._path / 'ostree/lock'} is taken",
                hint="wait until it has ended (ostree admin, rpm-ostree); status works meanwhile",
                catalogue="BUSY",
            )
        self._locked = True

    def _call(self, doing: str, name: str, *arguments: Any) -> None:
        problem = POINTER(_GError)()
        if not getattr(self._ostree, name)(*arguments, None, byref(problem)):
            raise self._error(doing, problem)

    def _error(self, doing: str, problem: Any) -> StorageError:
        text = "no reason given"
        if problem:
            text = problem.contents.message.decode("utf-8", "replace")
            self._glib.g_error_free(problem)
        return StorageError(
            f"libostree cannot {doing} in {self._path}",
            reference="libostree",
            found=printable(text, 600),
        )

    def load(self) -> None:
        """Read the deployments again."""
        self._call("read the deployments", "ostree_sysroot_load", self._self)

    def deployments(self) -> list[Deployed]:
        """In boot order, first boots next; what is staged on the running host comes before all."""
        booted = self._ostree.ostree_sysroot_get_booted_deployment(self._self)
        array = self._ostree.ostree_sysroot_get_deployments(self._self)
        self._kept.append(array)
        found = []
        for index in range(array.contents.len):
            handle = array.contents.pdata[index]
            found.append(
                Deployed(
                    handle,
                    self._ostree.ostree_deployment_get_csum(handle).decode(),
                    self._ostree.ostree_deployment_get_osname(handle).decode(),
                    self._ostree.ostree_deployment_get_deployserial(handle),
                    pinned=bool(self._ostree.ostree_deployment_is_pinned(handle)),
                    staged=bool(self._ostree.ostree_deployment_is_staged(handle)),
                    booted=handle == booted,
                )
            )
        return found

    def deploy(
        self,
        stateroot: str,
        commit: str,
        origin: str,
        options: Sequence[str],
        merge: Deployed | None,
        *,
        staged: bool = False,
    ) -> Deployed:
        """Check ``commit`` out as a new deployment and merge ``/etc`` from ``merge`` into it; it does not boot yet.

        Args:
            stateroot: its group of deployments.
            commit: checksum of a commit in the repository.
            origin: text of the origin file.
            options: the kernel command line without ``ostree=``.
            merge: whose ``/etc`` is carried over; None for the image's own.
            staged: on the running host: ``/etc`` is merged at shutdown, and then it boots (ostree-finalize-staged.service).
        """
        key_file = self._glib.g_key_file_new()
        problem = POINTER(_GError)()
        data = origin.encode()
        if not self._glib.g_key_file_load_from_data(key_file, data, len(data), 0, byref(problem)):
            raise ValueError("the origin is not a key file")
        arguments = (c_char_p * (len(options) + 1))(*[option.encode() for option in options], None)
        made = c_void_p()
        try:
            self._call(
                "deploy the image",
                "ostree_sysroot_stage_tree" if staged else "ostree_sysroot_deploy_tree",
                self._self,
                stateroot.encode(),
                commit.encode(),
                key_file,
                merge.handle if merge else None,
                arguments,
                byref(made),
            )
        finally:
            self._glib.g_key_file_unref(key_file)
        handle = made.value or 0
        return Deployed(
            handle,
            commit,
            stateroot,
            self._ostree.ostree_deployment_get_deployserial(handle),
            staged=staged,
        )

    def write_order(self, order: Sequence[Deployed]) -> None:
        """Make exactly these deployments boot, in this order: libostree's atomic switch, synced. What is staged goes."""
        array = self._glib.g_ptr_array_new()
        try:
            for deployed in order:
                self._glib.g_ptr_array_add(array, deployed.handle)
            # cleaning up takes longer, and its time is after the switch
            options = _WriteOptions(do_postclean=0)
            self._call(
                "write the boot entries",
                "ostree_sysroot_write_deployments_with_options",
                self._self,
                array,
                byref(options),
            )
        finally:
            self._glib.g_ptr_array_unref(array)

    def cleanup(self, *, prune: bool = True) -> None:
        """Delete deployments that are not listed; with ``prune`` also objects that nothing refers to."""
        self._call("clean up", "ostree_sysroot_prepare_cleanup", self._self)
        if not prune:
            return
        # ostree_sysroot_cleanup does the same, and prints to our standard output
        reachable = self._ostree.ostree_repo_traverse_new_reachable()
        try:
            options = _PruneOptions(flags=_REFS_ONLY, reachable=reachable)
            counts = c_int(), c_int(), ctypes.c_uint64()
            self._call(
                "prune",
                "ostree_sysroot_cleanup_prune_repo",
                self._self,
                byref(options),
                *map(byref, counts),
            )
        finally:
            self._glib.g_hash_table_unref(reachable)
