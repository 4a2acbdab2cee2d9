"""What commands look at before they change anything, or instead of it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from bootc_core.engine.plan import Target
from bootc_core.engine.sysroots import Storage
from bootc_core.engine.transaction import new_transaction_id
from bootc_core.errors import PluginError, printable
from bootc_core.hooks.manager import Plugins
from bootc_core.models.context import Context, ImageSummary, Phase


def checking_context(storage: Storage, target: Target, reason: str) -> Context:
    """The context of ``upgrade --check`` and its kin: a dry run."""
    return Context(
        transaction=new_transaction_id(),
        operation=target.operation,
        phase=Phase.FETCH,
        sysroot=str(storage.sysroot.path),
        live=storage.sysroot.live,
        config_root=str(storage.sysroot.config_root),
        to_image=ImageSummary(reference=str(target.reference)),
        signature=target.signature,
        started_at=datetime.now(UTC),
        reason=reason,
        dry_run=True,
    )


def check_providers(plugins: Plugins) -> None:
    """Refuse to go on without any signature policy or without a plugin that root requires; warn where root wants one.

    Raises:
        PluginError: none is loaded, or a required one is not.
    """
    if not plugins.policies:
        raise PluginError(
            "no signature policy is loaded",
            reference="no-provider",
            hint="unblock the plugin signing, or install another policy plugin",
        )
    for info in plugins.infos:
        name = printable(info.source.name)
        if info.state == "missing" and info.place == "required":
            raise PluginError(
                f"plugin {name} is required on this host, and not loaded",
                reference="plugin-missing",
                hint=f"install it, or unblock it (bootc plugins list), or take {name} out of [plugins] required",
            )
        if info.state == "missing":
            sys.stderr.write(f"warning: plugin {name} is wanted on this host, and not loaded\n")
