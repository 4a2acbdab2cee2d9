"""``bootc image``: what is deployed, and images on their way from one place to another.

Images are read by our own transports (limits, mirrors, resume, signature policy) into an OCI layout. Where that is what was
asked for, it is the end; any other place is written by the real ``skopeo`` from there.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bootc_core import process
from bootc_core.cli import common, deploy, transfers, trust
from bootc_core.engine import sysroots, transaction
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import (
    BootcError,
    TransportError,
    UnsupportedEnvironmentError,
    UsageError,
    printable,
)
from bootc_core.hooks.calls import Hooks
from bootc_core.models import events
from bootc_core.models.context import Context, Operation, Phase, SignatureMode
from bootc_core.models.host import HostStatus, ImageStatus
from bootc_core.models.image import FetchedImage
from bootc_core.models.oci import Descriptor
from bootc_core.models.reference import ImageReference, Transport
from bootc_core.oci import copying

DEFAULT_TARGET: Final = "localhost/bootc"
_BOUND: Final = "usr/lib/bootc/bound-images.d"
_SKOPEO_S: Final = 3600.0
_PODMAN_S: Final = 60.0
_LOGINS: Final = ("run/ostree/auth.json", "etc/ostree/auth.json", "usr/lib/ostree/auth.json")
_PASSED_ON: Final = ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "CONTAINERS_STORAGE_CONF")
_PASSED_ON_TOO: Final = (
    "STORAGE_DRIVER",
    "TMPDIR",
    "REGISTRY_AUTH_FILE",
    "HTTPS_PROXY",
    "NO_PROXY",
)


# --- list -------------------------------------------------------------------------------------------------------------------


def list_images(arguments: argparse.Namespace) -> int:
    """Print images of deployments (``host``) and those that the running system is bound to (``logical``).

    Raises:
        UsageError: ``host`` asked for, and there is no host.
    """
    rows: list[tuple[str, str]] = []
    if arguments.type in {"all", "host"}:
        rows += [("host", name) for name in _deployed_names(arguments)]
    if arguments.type in {"all", "logical"} and arguments.sysroot is None:
        rows += [("logical", name) for name in bound_images(Path("/"))]
    if arguments.format == "json":
        values = [{"image_type": kind, "image": name} for kind, name in rows]
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return 0
    width = max((len(name) for _, name in rows), default=0)
    width = max(width, len("REPOSITORY"))
    for name, kind in [("REPOSITORY", "TYPE"), *((printable(name), kind) for kind, name in rows)]:
        sys.stdout.write(f"{name.ljust(width)}  {kind}\n")
    return 0


def _deployed_names(arguments: argparse.Namespace) -> list[str]:
    settings, plugins = common.load(arguments)
    try:
        sysroot = common.sysroot_of(arguments)
    except UnsupportedEnvironmentError as problem:
        if arguments.type == "all":
            return []  # in a container: what the image is bound to
        raise UsageError(
            "Listing host images requires a booted bootc system",
            reference="no-host",
            found=problem.message,
            hint="--sysroot DIR lists those of a sysroot",
        ) from problem
    storage = sysroots.open_storage(sysroot, plugins, settings)
    if storage is None:
        return []
    found = _images(storage.read_host(lambda message: None))
    return list(dict.fromkeys(_reference(image).display() for image in found))


def bound_images(root: Path) -> list[str]:
    """Images that the tree beneath ``root`` is bound to: ``Image=`` of the quadlet files that its directory links to."""
    found = []
    for link in sorted((root / _BOUND).glob("*")):
        if link.suffix not in {".image", ".container"}:
            continue
        unit = configparser.RawConfigParser(strict=False, delimiters=("=",), interpolation=None)
        try:
            unit.read_string(link.read_text("utf-8"))
            found.append(unit.get(link.suffix[1:].capitalize(), "Image"))
        except (OSError, ValueError, configparser.Error):
            continue
    return found


def _images(host: HostStatus) -> list[ImageStatus]:
    slots = (host.staged, host.booted, host.rollback, *host.other)
    return [slot.image for slot in slots if slot is not None and slot.image is not None]


def _reference(image: ImageStatus) -> ImageReference:
    return ImageReference.make(image.image.transport, image.image.image)


# --- copy, push, copy-to-storage ----------------------------------------------------------------------------------------------


def copy(arguments: argparse.Namespace) -> int:
    """``bootc image copy SOURCE TARGET``: from any transport to any other.

    Raises:
        BootcError: the source does not deliver, the policy refuses it, or the target cannot be written.
    """
    source = _absolute(ImageReference.parse(arguments.source))
    target = _absolute(ImageReference.parse(arguments.target))
    settings, plugins = common.load(arguments)
    transfers.install(arguments, settings)
    config_root = arguments.config_root or Path("/")
    mode = SignatureMode.INSECURE if arguments.no_signature_verification else SignatureMode.POLICY
    provider = plugins.transport(source.transport.value).plugin
    with ExitStack() as stack:
        work = _workspace(stack)
        context = Context(
            transaction=transaction.new_transaction_id(),
            operation=Operation.SWITCH,
            phase=Phase.FETCH,
            sysroot=str(work),
            live=False,
            config_root=str(config_root),
            signature=mode,
            started_at=datetime.now(UTC),
        )

        async def run() -> None:
            hooks = Hooks(plugins)
            image = await hooks.fetch(provider, context, source)
            verifying = context.model_copy(
                update={"phase": Phase.VERIFY, "to_image": image.summary()}
            )
            if mode is not SignatureMode.INSECURE:
                transaction.judge(verifying, await trust.ask(hooks, verifying, image))
            await _copy(arguments, image, target, config_root, work)

        deploy.run(run)
    return 0


def push(arguments: argparse.Namespace) -> int:
    """``bootc image push TARGET``: a deployed image, to anywhere.

    Raises:
        UsageError: nothing is deployed, or not that image.
        BootcError: as ``copy``.
    """
    return _send(arguments, _absolute(ImageReference.parse(arguments.target)))


def copy_to_storage(arguments: argparse.Namespace) -> int:
    """``bootc image copy-to-storage``: a deployed image, to podman's storage.

    Raises:
        BootcError: as ``push``.
    """
    target = ImageReference.make(Transport.CONTAINERS_STORAGE, arguments.target)
    try:  # podman, not skopeo, makes a fresh storage: it chooses the network's backend, too
        done = process.run_blocking(
            ["podman", "system", "info"], timeout_s=_PODMAN_S, env=_environment(Path("/")), check=False
        )  # fmt: skip
        problem = "" if done.returncode == 0 else done.last_lines(1)
    except UnsupportedEnvironmentError as missing:
        problem = missing.message
    if problem:
        sys.stderr.write(f"warning: podman system info: {printable(problem, 300)}\n")
    return _send(arguments, target)


def _send(arguments: argparse.Namespace, target: ImageReference) -> int:
    settings, plugins = common.load(arguments)
    sysroot = common.sysroot_of(arguments)
    storage = sysroots.open_storage(sysroot, plugins, settings)
    image = _deployed(storage, arguments.source)
    with ExitStack() as stack:
        work = _workspace(stack)
        deploy.run(lambda: _copy(arguments, image, target, sysroot.config_root, work))
    return 0


def _deployed(storage: Storage | None, wanted: str | None) -> FetchedImage:
    """The deployed image of that name, or the one that boots next."""
    found = _images(storage.read_host(lambda message: None)) if storage is not None else []
    if wanted is not None:
        name = _absolute(ImageReference.parse(wanted))
        found = [image for image in found if _reference(image) == name]
    if storage is None or not found:
        raise UsageError(
            f"Image {printable(wanted)} not found" if wanted else "no image is deployed",
            reference="no-source",
            hint="bootc image list --type host shows the deployed ones",
        )
    if wanted is None:
        booted = storage.read_host(lambda message: None).booted
        found = [booted.image] if booted is not None and booted.image is not None else found
    export = storage.backend.offer.export
    if export is None:
        raise UnsupportedEnvironmentError(
            f"the storage backend {storage.backend.offer.name} cannot give images back",
            reference="no-export",
            hint="copy the image from where it came from: bootc image copy",
        )
    return export(storage.sysroot, _reference(found[0]), found[0].image_digest)


def _absolute(reference: ImageReference) -> ImageReference:
    local = {Transport.OCI, Transport.OCI_ARCHIVE, Transport.DOCKER_ARCHIVE, Transport.DIR}
    if reference.transport not in local or reference.name.startswith("/"):
        return reference
    return ImageReference.make(reference.transport, f"{Path.cwd()}/{reference.name}")


def _workspace(stack: ExitStack) -> Path:
    """A directory for this command, on a file system that may take a whole image."""
    place = tempfile.mkdtemp(prefix="bootc-copy-", dir=os.environ.get("TMPDIR", "/var/tmp"))  # noqa: S108 - the place for it
    stack.callback(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


async def _copy(
    arguments: argparse.Namespace,
    image: FetchedImage,
    target: ImageReference,
    config_root: Path,
    work: Path,
) -> None:
    source = image.requested.display()
    sys.stdout.write(f"Copying {source} to {target} ...\n")
    sys.stdout.flush()
    direct = target.transport is Transport.OCI
    if direct:
        directory, _, name = target.name.partition(":")
        layout, tag = Path(directory), name or None
    else:
        layout, tag = work / "layout", None
    progress = _Progress(arguments, image, layout)
    try:
        written = await copying.write_layout(image, layout, tag, progress)
    except BaseException:
        progress.end(complete=False)
        raise
    progress.end(complete=True)
    digest = written.digest
    if not direct:
        digest = await _skopeo(f"oci:{layout}", target, config_root, work)
    sys.stdout.write(f"Pushed: {target} {digest}\n")


class _Progress:
    """Bytes of the copy as the events that an upgrade has."""

    def __init__(self, arguments: argparse.Namespace, image: FetchedImage, layout: Path) -> None:
        self._observers = [observer for _, observer in deploy.observers(arguments)]
        self._transaction = transaction.new_transaction_id()
        missing = copying.missing(image, layout)
        total = {layer.digest: layer.size for layer in image.manifest.layers}
        needed = sum(layer.size for layer in missing)
        self._tell(
            events.LayersPlanned(
                transaction=self._transaction,
                layers_present=len(total) - len(missing),
                layers_needed=len(missing),
                bytes_present=sum(total.values()) - needed,
                bytes_needed=needed,
            )
        )

    def _tell(self, event: events.Event) -> None:
        for observer in self._observers:
            observer(event)

    def end(self, *, complete: bool) -> None:
        """No more bytes will come: whoever shows bars removes them."""
        named = {"phase": Phase.FETCH, "transaction": self._transaction}
        if complete:
            self._tell(
                events.StepProgressed(
                    transaction=self._transaction,
                    step="publishing",
                    description="Writing the index",
                )
            )
        else:
            self._tell(events.PhaseFailed(**named, reference="copy", message="the copy broke off"))

    def __call__(self, layer: Descriptor, done: int) -> None:
        if done < layer.size:
            event: events.Event = events.BlobProgressed(
                transaction=self._transaction,
                digest=layer.digest,
                bytes_done=done,
                bytes_total=layer.size,
            )
        else:
            event = events.BlobCompleted(
                transaction=self._transaction,
                digest=layer.digest,
                bytes_total=layer.size,
                objects_new=0,
                objects_known=0,
            )
        self._tell(event)


def _environment(config_root: Path) -> dict[str, str]:
    """What skopeo and podman find their storage and our log-ins by."""
    extra = {
        name: os.environ[name] for name in (*_PASSED_ON, *_PASSED_ON_TOO) if name in os.environ
    }
    if "REGISTRY_AUTH_FILE" not in extra:
        login = next(
            (config_root / name for name in _LOGINS if (config_root / name).exists()), None
        )
        if login is not None:
            extra["REGISTRY_AUTH_FILE"] = str(login)
    return process.clean_environment(**extra)


async def _skopeo(source: str, target: ImageReference, config_root: Path, work: Path) -> str:
    """Copy with skopeo; the digest that the target has."""
    digest_file = work / "digest"
    # signatures were checked where the image came from; what is copied here is what was checked
    options = ["--insecure-policy", "copy", "--quiet", f"--digestfile={digest_file}"]
    registries = config_root / "etc/containers/registries.conf"
    if config_root != Path("/") and registries.exists():
        options.insert(0, f"--registries-conf={registries}")
    if target.transport is Transport.REGISTRY and config_root != Path("/"):
        certificates = config_root / "etc/containers/certs.d" / target.registry_name().domain
        if certificates.is_dir():
            options.append(f"--dest-cert-dir={certificates}")
    try:
        done = await process.run(
            ["skopeo", *options, source, str(target)],
            timeout_s=_SKOPEO_S,
            env=_environment(config_root),
            check=False,
            label="skopeo",
        )
    except UnsupportedEnvironmentError as problem:
        raise UnsupportedEnvironmentError(
            f"{target.transport} is written by skopeo, which is not there",
            reference="no-skopeo",
            hint="install skopeo, or copy to oci:DIRECTORY, which needs nothing",
        ) from problem
    if done.returncode != 0:
        raise _failed(target, done.last_lines(1))
    return digest_file.read_text().strip()


def _failed(target: ImageReference, said: str) -> BootcError:
    return TransportError(
        f"skopeo cannot write {target}",
        reference="copy-failed",
        found=printable(said, 400),
        hint="check the target's name, its log-in and its space",
    )
