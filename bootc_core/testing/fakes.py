"""Fake plugins: transport, signature policy, storage backend and bootloader, small and honest.

They are ordinary plugins (objects with hook implementations) and pass the contract suite that real
ones pass: digests are checked, steps are durable and in the right order, a killed run converges.
Each can write what it was asked to do into a shared list (``calls``), as the recorder does.

    SYSROOT/fake/layers/<diffID>           verified, uncompressed layers
    SYSROOT/fake/deploy/<id>/state.json    image, manifest, boot entry
                            /etc/          merged; etc.json: what the image brought
                            /root/         the image's other files
    SYSROOT/fake/var/
    BOOT/loader -> loader.<token>          the switch is this link
    BOOT/loader.<token>/entries/*.conf     Boot Loader Specification, type 1
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bootc_core.boot import bls, os_release
from bootc_core.errors import (
    BootError,
    ContentError,
    StorageError,
    TransportError,
    UnsupportedEnvironmentError,
)
from bootc_core.fs import atomic
from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import BackendOffer, BootloaderOffer, PolicyOffer, TransportOffer
from bootc_core.models.boot import BootEntry, BootFile, BootPlan, PresentEntry
from bootc_core.models.context import Context
from bootc_core.models.events import BlobCompleted, Event, LayersPlanned
from bootc_core.models.host import (
    ComposefsInfo,
    Deployment,
    HostImage,
    HostStatus,
    ImageStatus,
)
from bootc_core.models.image import (
    BlobSource,
    FetchedImage,
    FileSource,
    PipeSource,
    PolicyAnswer,
    StagedDeployment,
    VerifiedImage,
)
from bootc_core.models.oci import Descriptor, parse_config, parse_manifest
from bootc_core.models.reference import ImageReference
from bootc_core.models.sysroot import Sysroot
from bootc_core.testing.images import KERNEL, FakeImage

Calls = list[tuple[str, str]]


@dataclass
class FakeTransport:
    """An in-memory registry that tests change while they run.

    Attributes:
        images: by reference as ``str(ImageReference)`` or ``display()`` prints it.
        transports: what it serves.
        opened: digest of every layer whose bytes were asked for, in order.
        calls: gets (hook, phase).
    """

    images: dict[str, FakeImage] = field(default_factory=dict)
    transports: tuple[str, ...] = ("registry",)
    opened: list[str] = field(default_factory=list)
    calls: Calls = field(default_factory=list)

    def image(self, reference: ImageReference) -> FakeImage:
        """The image that ``reference`` names now.

        Raises:
            TransportError: none.
        """
        for name in (str(reference), reference.display()):
            if name in self.images:
                return self.images[name]
        raise TransportError(
            f"{reference.display()} does not exist",
            reference="image-not-found",
            catalogue="NOTFOUND",
        )

    @hookimpl
    def bootc_register_transports(self) -> Sequence[TransportOffer]:
        """One transport."""
        return [TransportOffer("fake", self.transports)]

    @hookimpl
    async def bootc_resolve(self, context: Context, reference: ImageReference) -> str | None:
        """The digest, at no cost."""
        self.calls.append(("bootc_resolve", context.phase))
        return self.image(reference).digest

    @hookimpl
    async def bootc_fetch(self, context: Context, reference: ImageReference) -> FetchedImage | None:
        """The documents; layers come through pipes."""
        self.calls.append(("bootc_fetch", context.phase))
        image = self.image(reference)
        manifest = parse_manifest(image.manifest, f"manifest of {reference.display()}")
        config = parse_config(image.config, manifest, f"configuration of {reference.display()}")

        async def source(descriptor: Descriptor) -> BlobSource:
            async def chunks() -> AsyncIterator[bytes]:
                self.opened.append(descriptor.digest)
                blob = image.blob(descriptor.digest)
                for start in range(0, len(blob), 65536):
                    yield blob[start : start + 65536]

            return PipeSource(chunks)

        return FetchedImage(
            requested=reference,
            resolved=reference,
            index=None,
            manifest_document=image.manifest,
            manifest=manifest,
            config_document=image.config,
            config=config,
            blob_source=source,
        )


@dataclass
class FakePolicy:
    """A signature policy that gives the same answer to every image."""

    answer: PolicyAnswer | None = field(
        default_factory=lambda: PolicyAnswer(True, "the test says so", rule="fake")
    )
    name: str = "fake"
    calls: Calls = field(default_factory=list)

    @hookimpl
    def bootc_register_policies(self) -> Sequence[PolicyOffer]:
        """One policy."""
        return [PolicyOffer(self.name)]

    @hookimpl
    async def bootc_verify(self, context: Context) -> PolicyAnswer | None:
        """The prepared answer."""
        self.calls.append(("bootc_verify", context.phase))
        return self.answer


# --- bootloader ----------------------------------------------------------------------------------


@dataclass
class FakeBootloader:
    """A bootloader for a file system with atomic rename: the menu is a directory behind one link."""

    name: str = "fake-boot"
    calls: Calls = field(default_factory=list)

    @hookimpl
    def bootc_register_bootloaders(self) -> Sequence[BootloaderOffer]:
        """One bootloader."""
        return [BootloaderOffer(self.name, self.read_entries, self.preflight)]

    @staticmethod
    def read_entries(sysroot: Sysroot, warn: Callable[[str], None]) -> Sequence[PresentEntry]:
        """The menu."""
        return bls.read_entries(sysroot.boot_dir, warn)

    @staticmethod
    def preflight(sysroot: Sysroot, plan: BootPlan) -> None:
        """Refuse files that do not exist or are not what the plan says."""
        del sysroot
        for entry in plan.entries:
            for file in () if isinstance(entry, str) else entry.files:
                _checked(file)

    @hookimpl
    async def bootc_switch_boot(
        self, context: Context, sysroot: Sysroot, plan: BootPlan
    ) -> bool | None:
        """Write files and a new menu, turn the link, delete what nobody needs."""
        self.calls.append(("bootc_switch_boot", context.phase))
        if plan.effective:
            return True
        boot = sysroot.boot_dir
        present = bls.read_entries(boot)
        ours = {name: entry for entry in present if (name := bls.deployment_of(entry))}
        wanted: list[str] = []
        texts: dict[str, bytes] = {}
        for order, entry in enumerate(plan.entries):
            if isinstance(entry, BootEntry):
                self._write_files(boot, entry)
                texts[f"{entry.deployment_id}.conf"] = bls.entry_text(entry, order)
                wanted.append(entry.deployment_id)
            else:
                texts[f"{entry}.conf"] = _moved(ours[entry], order)
                wanted.append(entry)
        for other in present:  # not ours: as they are
            if bls.deployment_of(other) is None:
                texts[other.file.rsplit("/", 1)[1]] = (boot / other.file).read_bytes()
        if [bls.deployment_of(entry) for entry in present if bls.deployment_of(entry)] != wanted:
            self._turn(boot, texts)
        self._clean(boot)
        return True

    @staticmethod
    def _write_files(boot: Path, entry: BootEntry) -> None:
        for file in entry.files:
            target = boot / file.path
            for directory in reversed(target.relative_to(boot).parents[:-1]):
                atomic.mkdir(boot / directory)
            data = _checked(file)
            if not target.exists() or target.read_bytes() != data:
                atomic.write_file(target, data)

    @staticmethod
    def _turn(boot: Path, texts: Mapping[str, bytes]) -> None:
        menu = boot / f"loader.{secrets.token_hex(4)}"
        atomic.mkdir(menu)
        atomic.mkdir(menu / "entries")
        for name, text in texts.items():
            atomic.write_file(menu / "entries" / name, text, sync=False)
        atomic.syncfs(boot)
        atomic.symlink(menu.name, boot / "loader", sync=True)

    @staticmethod
    def _clean(boot: Path) -> None:
        live = (boot / "loader").readlink().name if (boot / "loader").is_symlink() else ""
        for name in sorted(os.listdir(boot)):
            if name.startswith(("loader.", ".bootc-tmp-")) and name != live:
                atomic.rmtree(boot / name)
        used = {
            value.lstrip("/").split("/")[1]
            for entry in bls.read_entries(boot)
            for key, value in entry.keys
            if key in {"linux", "initrd"} and value.count("/") > 1
        }
        place = boot / "fake"
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            if name not in used:
                atomic.rmtree(place / name)
                continue
            for half in sorted((place / name).glob(".bootc-tmp-*")):
                atomic.unlink(half)


def _checked(file: BootFile) -> bytes:
    try:
        data = file.source.read_bytes()
    except OSError as problem:
        raise atomic.storage_error(problem, "read", file.source) from problem
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise BootError(f"{file.source} is not what the plan says", catalogue="INT")
    return data


def _moved(entry: PresentEntry, order: int) -> bytes:
    place = bls.order_of(entry)
    prefix = place[0] if place else "bootc-linux"
    pairs = [(key, value) for key, value in entry.keys if key != "sort-key"]
    return bls.print_entry([*pairs, ("sort-key", f"{prefix}-{order}")])


# --- backend -------------------------------------------------------------------------------------


def _state(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads((path / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    return value


async def read_source(source: BlobSource) -> bytes:
    """All bytes of a blob in memory; for images of tests."""
    if isinstance(source, PipeSource):
        return b"".join([chunk async for chunk in source.open()])
    if isinstance(source, FileSource):
        data = source.path.read_bytes()[source.offset :]
        return data if source.length is None else data[: source.length]
    raise UnsupportedEnvironmentError("the fake backend has no network")


@dataclass
class FakeBackend:
    """A whole storage backend in a few hundred lines.

    Subclasses break it in one place to show that the contract suite notices.
    """

    name: str = "fake"
    bootloader: str = "fake-boot"
    calls: Calls = field(default_factory=list)

    _TOP: Final = "fake"

    @hookimpl
    def bootc_register_backends(self) -> Sequence[BackendOffer]:
        """One backend."""
        return [
            BackendOffer(
                name=self.name,
                claims=self.claims,
                read_host=self.read_host,
                tracked=self.tracked,
                bootloader=lambda sysroot: self.bootloader if self.claims(sysroot) else None,
                manifest=self.manifest,
            )
        ]

    # what is there

    def top(self, sysroot: Sysroot) -> Path:
        """Where everything of ours is."""
        return sysroot.path / self._TOP

    def deployment(self, sysroot: Sysroot, name: str) -> Path:
        """The directory of a deployment."""
        return self.top(sysroot) / "deploy" / name

    def claims(self, sysroot: Sysroot) -> bool:
        """Does our marker exist?"""
        return self.top(sysroot).is_dir()

    def booting(self, sysroot: Sysroot) -> list[str]:
        """Deployments on the boot menu, first boots next; entries without one are left out."""
        names = [bls.deployment_of(entry) for entry in bls.read_entries(sysroot.boot_dir)]
        return [name for name in names if name and _state(self.deployment(sysroot, name))]

    def _slot(
        self, sysroot: Sysroot, name: str | None, *, locked: bool = False
    ) -> Deployment | None:
        state = _state(self.deployment(sysroot, name)) if name else None
        if state is None or name is None:
            return None
        image = ImageStatus(
            HostImage(state["image"], state["transport"]),
            state["digest"],
            state["architecture"],
            state["version"],
            state["timestamp"],
        )
        return Deployment(
            image,
            download_only=locked,
            composefs=ComposefsInfo(verity=name, bootloader=self.bootloader),
            accepted=state["accepted"],
            signature_mode=state["mode"],
        )

    def read_host(self, sysroot: Sysroot, entries: Sequence[PresentEntry]) -> HostStatus:
        """The host by its boot menu."""
        names = [name for entry in entries if (name := bls.deployment_of(entry))]
        there = [name for name in names if _state(self.deployment(sysroot, name))]
        slots = [self._slot(sysroot, name) for name in there]
        staged, locked = self._staged(sysroot)
        return HostStatus(
            staged=self._slot(sysroot, staged, locked=locked) if staged not in there else None,
            booted=slots[0] if slots else None,
            rollback=slots[1] if len(slots) > 1 else None,
            other=tuple(slot for slot in slots[2:] if slot),
            notes=tuple(
                f"the boot entry of {name} has no deployment" for name in names if name not in there
            ),
        )

    @staticmethod
    def _staged(sysroot: Sysroot) -> tuple[str | None, bool]:
        try:
            value = json.loads(sysroot.staged_file.read_bytes())
            return value["depl_id"], value["finalization_locked"]
        except (OSError, ValueError, KeyError, TypeError):
            return None, False

    def tracked(self, sysroot: Sysroot, reference: ImageReference) -> str | None:
        """Digest of the tag when what boots next was fetched."""
        booting = self.booting(sysroot)
        state = _state(self.deployment(sysroot, booting[0])) if booting else None
        if state is None or state["reference"] != str(reference):
            return None
        tag: str = state["tag_digest"]
        return tag

    def manifest(self, sysroot: Sysroot, digest: str) -> bytes | None:
        """The manifest kept with a deployment."""
        place = self.top(sysroot) / "deploy"
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            state = _state(place / name)
            if state is not None and state["digest"] == digest:
                text: str = state["manifest"]
                return text.encode()
        return None

    # stage

    @hookimpl
    async def bootc_stage(
        self,
        context: Context,
        image: VerifiedImage,
        sysroot: Sysroot,
        emit: Callable[[Event], None],
    ) -> StagedDeployment | None:
        """Verify and keep the layers, lay out a deployment, sync it, name it."""
        self.calls.append(("bootc_stage", context.phase))
        fetched = image.image
        for directory in (
            self.top(sysroot),
            *(self.top(sysroot) / n for n in ("deploy", "layers")),
        ):
            atomic.mkdir(directory)
        self._sweep(sysroot)
        files, new = await self._import(context, fetched, sysroot, emit)
        name = f"{fetched.digest.split(':')[1][:24]}.{self._serial(sysroot)}"
        place = self.deployment(sysroot, f".tmp-{name}")
        kernel = f"usr/lib/modules/{KERNEL}"
        if f"{kernel}/vmlinuz" not in files:
            raise ContentError("the image has no kernel", reference="no-kernel")
        etc = {path: data for path, data in files.items() if path.startswith("etc/")}
        self._lay_out(place / "root", {p: d for p, d in files.items() if p not in etc})
        _write(place / "etc.json", json.dumps({p: d.hex() for p, d in etc.items()}).encode())
        release = os_release.parse(files.get("usr/lib/os-release", b""))
        final = self.deployment(sysroot, name)
        entry = BootEntry(
            deployment_id=name,
            os_id=release.id,
            title=release.pretty_name,
            version=release.version or "",
            options="rw",
            linux=_boot_file(final / "root" / kernel / "vmlinuz", files[f"{kernel}/vmlinuz"], name),
            initrd=(
                _boot_file(
                    final / "root" / kernel / "initramfs.img",
                    files[f"{kernel}/initramfs.img"],
                    name,
                ),
            ),
        )
        accepted = next(
            (f"{plugin}: {said.reason}" for plugin, said in image.answers if said.accept), ""
        )
        state = {
            "reference": str(fetched.requested),
            "transport": fetched.requested.transport.value,
            "image": fetched.requested.name,
            "digest": fetched.digest,
            "tag_digest": fetched.tag_digest,
            "architecture": fetched.config.architecture,
            "version": fetched.config.version,
            "timestamp": fetched.config.timestamp,
            "manifest": fetched.manifest_document.raw.decode(),
            "layers": list(fetched.config.rootfs.diff_ids),
            "accepted": accepted,
            "mode": context.signature.value,
        }
        _write(place / "state.json", json.dumps(state).encode())
        self.sync(sysroot)
        atomic.rename(place, final)
        atomic.fsync(final.parent)
        return StagedDeployment(self.name, name, entry, {"digest": fetched.digest}, new)

    def sync(self, sysroot: Sysroot) -> None:
        """Bring what was laid out to the medium, before it gets its name."""
        atomic.syncfs(sysroot.path)

    def check(self, data: bytes, digest: str, what: str) -> None:
        """Compare bytes with their digest.

        Raises:
            ContentError: they differ.
        """
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            raise ContentError(
                f"{what} is not what the manifest promised",
                reference="digest-mismatch",
                expected=digest,
                found=found,
                catalogue="INT",
            )

    def _serial(self, sysroot: Sysroot) -> int:
        names = os.listdir(self.top(sysroot) / "deploy")
        return 1 + max((int(name.rsplit(".", 1)[1]) for name in names), default=-1)

    def _sweep(self, sysroot: Sysroot) -> None:
        place = self.top(sysroot) / "deploy"
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            if name.startswith("."):
                atomic.rmtree(place / name)

    async def _import(
        self,
        context: Context,
        fetched: FetchedImage,
        sysroot: Sysroot,
        emit: Callable[[Event], None],
    ) -> tuple[dict[str, bytes], int]:
        layers = self.top(sysroot) / "layers"
        pairs = list(zip(fetched.manifest.layers, fetched.config.rootfs.diff_ids, strict=True))
        missing = [pair for pair in pairs if not (layers / pair[1].split(":")[1]).exists()]
        sizes = [sum(d.size for d, _ in group) for group in (pairs, missing)]
        emit(
            LayersPlanned(
                context.transaction,
                len(pairs) - len(missing),
                len(missing),
                sizes[0] - sizes[1],
                sizes[1],
            )
        )
        new = 0
        for descriptor, diff_id in missing:
            blob = await read_source(await fetched.blob_source(descriptor))
            self.check(blob, descriptor.digest, f"layer {descriptor.digest}")
            try:
                tar = gzip.decompress(blob) if descriptor.media_type.endswith("gzip") else blob
            except (OSError, EOFError) as problem:
                raise ContentError("a layer is no gzip file", catalogue="INT") from problem
            self.check(tar, diff_id, f"content of layer {descriptor.digest}")
            atomic.write_file(layers / diff_id.split(":")[1], tar)
            new += len(tar)
            emit(BlobCompleted(context.transaction, descriptor.digest, descriptor.size, 1, 0))
        files: dict[str, bytes] = {}
        for _, diff_id in pairs:
            _apply(files, (layers / diff_id.split(":")[1]).read_bytes())
        return files, new

    @staticmethod
    def _lay_out(place: Path, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            _write(place / path, data)

    # finalize, rollback, discard, prune

    @hookimpl
    async def bootc_finalize(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment
    ) -> BootPlan | None:
        """Merge ``/etc``, seed ``/var``; the new one first, then what boots now."""
        self.calls.append(("bootc_finalize", context.phase))
        place = self.deployment(sysroot, staged.deployment_id)
        booting = [name for name in self.booting(sysroot) if name != staged.deployment_id]
        merged = _etc_of(place)
        if booting:
            merged = _merge(self.deployment(sysroot, booting[0]), merged)
        atomic.rmtree(place / "etc")
        self._lay_out(place, merged)
        var = self.top(sysroot) / "var"
        if not var.exists():
            seed = self.top(sysroot) / ".var"
            atomic.rmtree(seed)
            _write(seed / ".seeded", b"")
            for path in sorted((place / "root/var").rglob("*")):
                if path.is_file():
                    _write(seed / path.relative_to(place / "root/var"), path.read_bytes())
            atomic.syncfs(sysroot.path)
            atomic.rename(seed, var)
        atomic.syncfs(sysroot.path)
        return BootPlan((staged.entry or staged.deployment_id, *booting[:1]))

    @hookimpl
    async def bootc_rollback(self, context: Context, sysroot: Sysroot) -> BootPlan | None:
        """The two that are on the menu, the other way round."""
        self.calls.append(("bootc_rollback", context.phase))
        booting = self.booting(sysroot)
        if len(booting) < 2:
            raise StorageError(
                "there is no deployment to go back to", reference="no-rollback", catalogue="STATE"
            )
        return BootPlan((booting[1], booting[0]))

    @hookimpl
    async def bootc_discard(
        self, context: Context, sysroot: Sysroot, staged: StagedDeployment | None
    ) -> BootPlan | None:
        """Drop the staged one unless it boots, and everything half-made."""
        self.calls.append(("bootc_discard", context.phase))
        self._sweep(sysroot)
        booting = self.booting(sysroot)
        if staged is not None and staged.deployment_id not in booting:
            atomic.rmtree(self.deployment(sysroot, staged.deployment_id))
        elif staged is None:
            self._drop_others(sysroot, keep=booting)
        return BootPlan(tuple(booting)) if booting else None

    @hookimpl
    async def bootc_prune(self, context: Context, sysroot: Sysroot) -> bool | None:
        """Delete deployments that are not on the menu, then layers that no deployment has."""
        self.calls.append(("bootc_prune", context.phase))
        self._drop_others(sysroot, keep=self.booting(sysroot))
        self._drop_layers(sysroot)
        return True

    def _drop_others(self, sysroot: Sysroot, keep: Sequence[str]) -> None:
        kept = {*keep, self._staged(sysroot)[0]}
        place = self.top(sysroot) / "deploy"
        for name in sorted(os.listdir(place)) if place.is_dir() else ():
            if name not in kept:
                atomic.rmtree(place / name)

    def _drop_layers(self, sysroot: Sysroot) -> None:
        place = self.top(sysroot) / "deploy"
        needed = {
            diff_id.split(":")[1]
            for name in os.listdir(place)
            for diff_id in (_state(place / name) or {}).get("layers", ())
        }
        for name in sorted(os.listdir(self.top(sysroot) / "layers")):
            if name not in needed:
                atomic.unlink(self.top(sysroot) / "layers" / name)


def _write(path: Path, data: bytes) -> None:
    """Content that a later sync brings to the medium."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _boot_file(source: Path, data: bytes, name: str) -> BootFile:
    return BootFile(
        f"fake/{name}/{source.name}", source, len(data), hashlib.sha256(data).hexdigest()
    )


def _apply(files: dict[str, bytes], tar: bytes) -> None:
    """A layer's regular files over those below; links and directories mean nothing to the fake."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            directory, _, name = member.name.rpartition("/")
            if name.startswith(".wh."):
                gone = f"{directory}/{name[4:]}".lstrip("/")
                for path in [p for p in files if p == gone or p.startswith(f"{gone}/")]:
                    del files[path]
            elif member.isreg():
                content = archive.extractfile(member)
                files[member.name] = content.read() if content else b""


def _etc_of(place: Path) -> dict[str, bytes]:
    """What the deployment's image brought."""
    pristine = json.loads((place / "etc.json").read_bytes())
    return {path: bytes.fromhex(data) for path, data in pristine.items()}


def _merge(current: Path, new: dict[str, bytes]) -> dict[str, bytes]:
    """Three ways: what the site changed against ``current``'s image goes over ``new``."""
    pristine = _etc_of(current)
    here = {
        str(path.relative_to(current)): path.read_bytes()
        for path in (current / "etc").rglob("*")
        if path.is_file()
    }
    changed = {path: data for path, data in here.items() if pristine.get(path) != data}
    gone = set(pristine) - set(here)
    return {path: data for path, data in new.items() if path not in gone} | changed
