"""``bootc plan``: what an upgrade or switch would do, from metadata only."""

from __future__ import annotations

import argparse
import json
import sys

from bootc_core.cli import common, deploy, forecast
from bootc_core.cli.checking import checking_context
from bootc_core.cli.forecast import Forecast
from bootc_core.engine import plan
from bootc_core.engine.plan import Target
from bootc_core.engine.sysroots import Storage
from bootc_core.errors import printable
from bootc_core.hooks.calls import Hooks
from bootc_core.hooks.manager import Plugins
from bootc_core.models.context import Operation, SignatureMode
from bootc_core.models.reference import ImageReference, Transport
from bootc_core.render.units import size


def show(arguments: argparse.Namespace) -> int:
    """Print the plan; exit status 0 whether there is something to do or not.

    Raises:
        UsageError: nothing is deployed, or nothing is followed and no image named.
        TransportError, ContentError: as for an upgrade.
    """
    _, plugins, storage = common.existing(arguments)
    found = deploy.run(lambda: _make(arguments, plugins, storage))
    if arguments.json:
        sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n")
    else:
        sys.stdout.write(to_text(found))
    return 0


async def _make(arguments: argparse.Namespace, plugins: Plugins, storage: Storage) -> Forecast:
    host = storage.read_host(lambda message: None)
    if arguments.target:
        transport = (
            Transport.REGISTRY
            if arguments.transport == "docker"
            else Transport(arguments.transport)
        )
        reference = ImageReference.make(transport, arguments.target)
        target = Target(Operation.SWITCH, reference, SignatureMode.POLICY)
    else:
        target = plan.plan_upgrade(host, None, arguments.tag)
    context = checking_context(storage, target, "")
    provider = plugins.transport(target.reference.transport.value).plugin
    image = await Hooks(plugins).fetch(provider, context, target.reference)
    return forecast.make(storage, host, target, image)


def to_text(found: Forecast) -> str:
    """The plan for people."""
    lines = [f"Image:    {printable(found.reference)}", f"Digest:   {found.digest}"]
    if found.version:
        before = found.version_now if found.version_now != found.version else None
        was = f" (now {printable(before)})" if before else ""
        lines.append(f"Version:  {printable(found.version)}{was}")
    if not found.changed:
        lines.append("Nothing to do: this image boots already, or is staged.")
        return "\n".join(lines) + "\n"
    lines.append(
        f"Layers:   {len(found.layers)}, to fetch {len(found.missing)}, no longer needed {len(found.removed)}"
    )
    amount = size(found.bytes_plain)
    if found.by_file:
        amount = f"{size(found.bytes_least)} to {amount} ({len(found.by_file)} layers file by file)"
    lines.append(f"Download: {amount}")
    for space in found.spaces:
        verdict = "" if space.enough else "  NOT ENOUGH"
        lines.append(
            f"Space:    {space.what} ({printable(space.path)}): at most {size(space.needed)} of {size(space.free)} free{verdict}"
        )
    lines.append(f"Kernel:   {_kernel(found)}")
    words = {None: "unknown before the layers are fetched", False: "no change", True: "change"}
    lines.append(f"Kernel arguments: {words[found.arguments_change]}")
    return "\n".join(lines) + "\n"


def _kernel(found: Forecast) -> str:
    if found.kernel_changes is False:
        return f"no change{f' ({printable(found.kernel_now)})' if found.kernel_now else ''}"
    if found.kernel_changes:
        return f"{printable(found.kernel_now or '?')} -> {printable(found.kernel or '?')}"
    known = f" (now {printable(found.kernel_now)})" if found.kernel_now else ""
    return f"unknown before the layers are fetched: the image has no label for it{known}"
