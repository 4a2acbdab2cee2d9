"""``bootc hooks``: what a site added without a package, and a rehearsal of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bootc_core import paths
from bootc_core.cli import common
from bootc_core.errors import PluginError, UsageError, printable
from bootc_core.hooks.manager import Plugins
from bootc_core.models.context import Context, ImageSummary, Operation, Phase


def _loaded(arguments: argparse.Namespace) -> Plugins:
    _, plugins = common.load(arguments)
    if not plugins.site_hooks:
        raise PluginError(
            "no plugin with site hooks is loaded",
            reference="no-provider",
            hint="see bootc plugins list: is hooks_dir blocked?",
        )
    return plugins


def list_hooks(arguments: argparse.Namespace) -> int:
    """Print which hooks run at which point, what is masked and what is ignored."""
    plugins = _loaded(arguments)
    root = arguments.config_root or Path("/")
    lines = [line for one in plugins.site_hooks.values() for line in one.offer.describe(root)]
    sys.stdout.write("".join(f"{line}\n" for line in lines) or "No site hooks.\n")
    sys.stdout.write(f"hooks of images: {image_hooks(plugins)}\n")
    for line in _of_images(arguments) if arguments.sysroot is not None else ():
        sys.stdout.write(f"{line}\n")
    return 0


def image_hooks(plugins: Plugins) -> str:
    """Whether images have a say, for people."""
    if plugins.image_hooks:
        return "asked before finalize, after all others, in a sandbox; they can refuse or put off"
    return 'not run ([plugins] image-hooks = "no")'


def _of_images(arguments: argparse.Namespace) -> Iterator[str]:
    """The hooks that the deployments of the sysroot brought."""
    _, _, storage = common.existing(arguments)
    extract = storage.backend.offer.extract
    host = storage.read_host(lambda message: None)
    for what, slot in (("staged", host.staged), ("deployed", host.booted)):
        name = slot.deployment_id if slot else None
        if extract is None or name is None:
            continue
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place, "hooks")
            if not extract(storage.sysroot, name, paths.IMAGE_HOOKS, copy):
                continue
            for hook in sorted((copy / "gate").glob("*")):
                yield f"  {what} {name[:12]}: gate/{printable(hook.name)}"


def run_hooks(arguments: argparse.Namespace) -> int:
    """Run the hooks of a point or phase with a context that says ``dry_run``; 1 if one of them would stop a run.

    Raises:
        UsageError: without ``--dry-run``, or no such point.
    """
    if not arguments.dry_run:
        raise UsageError(
            "hooks run needs --dry-run",
            hint="outside of a run there is nothing that hooks could belong to",
        )
    plugins = _loaded(arguments)
    import trio

    worst = 0
    known: list[str] = []
    ran, matched = 0, False
    for offered in plugins.site_hooks.values():
        offer = offered.offer
        known += offer.points
        for point in offer.points:
            if arguments.point not in _names(point):
                continue
            matched = True
            for name, ended, good in trio.run(offer.rehearse, _context(arguments, point), point):
                sys.stdout.write(f"{point}: {name}: {printable(ended)}\n")
                worst = worst or (0 if good else 1)
                ran += 1
    if not matched:
        raise UsageError(
            f"{printable(arguments.point)} is no hook point", expected=", ".join(known)
        )
    if not ran:
        sys.stdout.write(f"Nothing runs at {printable(arguments.point)}.\n")
    return worst


def _names(point: str) -> tuple[str, ...]:
    """What a point is asked for by: itself, and its phase; gates belong to every phase."""
    phase = point.partition("-")[2]
    if point == "gate":
        return (point, *Phase)
    if point == "pre-upgrade":
        return (point, "fetch")
    return (point, phase) if phase in set(Phase) else (point,)


def _context(arguments: argparse.Namespace, point: str) -> Context:
    name = point.partition("-")[2]
    phase = Phase(name) if name in set(Phase) else Phase.FETCH
    return Context(
        transaction="rehearsal",
        operation=Operation.ROLLBACK if phase is Phase.ROLLBACK else Operation.UPGRADE,
        phase=phase,
        sysroot="/",
        live=False,
        config_root=str((arguments.config_root or Path("/")).absolute()),
        to_image=ImageSummary(reference="docker://example.org/rehearsal:latest"),
        started_at=datetime.now(UTC),
        reason="rehearsal",
        dry_run=True,
    )
