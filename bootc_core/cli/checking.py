"""What commands look at before they change anything, or instead of it."""

from __future__ import annotations

from datetime import UTC, datetime

from bootc_core.engine.plan import Target
from bootc_core.engine.sysroots import Storage
from bootc_core.engine.transaction import new_transaction_id
from bootc_core.errors import PluginError
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
    """Refuse to go on without any signature policy: a missing verifier means refuse.

    Raises:
        PluginError: none is loaded.
    """
    if not plugins.policies:
        raise PluginError(
            "no signature policy is loaded",
            reference="no-provider",
            hint="unblock the plugin signing, or install another policy plugin",
        )
