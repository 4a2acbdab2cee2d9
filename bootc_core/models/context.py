"""The one context that every hook receives: immutable, serialisable, the same in process, child process and site script."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from bootc_core.models.base import Digest, Model


class Phase(StrEnum):
    """The phases of a transaction, in order; ``rollback`` stands alone."""

    FETCH = "fetch"
    VERIFY = "verify"
    STAGE = "stage"
    FINALIZE = "finalize"
    ROLLBACK = "rollback"


class Operation(StrEnum):
    """The command that started the transaction."""

    SWITCH = "switch"
    UPGRADE = "upgrade"
    ROLLBACK = "rollback"
    FINALIZE = "finalize"
    BOOT = "boot"  # a new deployment calls its boot good
    REPAIR = "repair"
    INSTALL = "install"


class SignatureMode(StrEnum):
    """How an image has to be accepted."""

    POLICY = "policy"  # policy.json decides
    ENFORCE = "enforce"  # policy.json decides, and must not accept just anything
    INSECURE = "insecure"  # --no-signature-verification


class ImageSummary(Model):
    """What a hook needs to know of an image: where from, which bytes, which version."""

    reference: (
        str  # as the administrator wrote it, transport included, e.g. "docker://quay.io/x/y:1"
    )
    digest: Digest | None = None  # of the instance's manifest
    version: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Installation(Model):
    """What the first deployment of a fresh sysroot is made with, beside its image.

    Attributes:
        target: reference that the host will follow; empty: the one that is installed from.
        signature: how updates of the host have to be accepted.
        stateroot: group of deployments that share one ``/var``.
        arguments: kernel arguments before the image's own: where the root is, then the installer's settings.
        removed: kernel arguments to leave out of these and of the image's: ``key=value``, or ``key`` with any value.
        added: kernel arguments at the end.
    """

    target: str = ""
    signature: SignatureMode = SignatureMode.POLICY
    stateroot: str = "default"
    arguments: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


class PriorVerdict(Model):
    """What a gate answered earlier in this transaction: ``proceed``, ``hold`` or ``deny``."""

    plugin: str
    phase: Phase
    verdict: str
    reason: str = ""
    until: datetime | None = None


class Context(Model):
    """One transaction, as hooks see it.

    Attributes:
        transaction: unique identifier, sortable by time.
        operation: the command.
        phase: the phase in which the hook is called.
        sysroot: absolute path of the physical root that is changed.
        live: the sysroot belongs to the running system.
        config_root: where policy, registries and configuration come from.
        from_image: what boots now, if anything does.
        to_image: what shall boot; digest, version and labels are known from the end of ``fetch`` on.
        signature: how the image has to be accepted.
        started_at: start of the transaction, with time zone.
        deadline: when the current phase is given up.
        reason: free text of the administrator or of the timer.
        dry_run: nothing will be changed.
        resumed: an earlier run of the same purpose was interrupted.
        retain: keep what only the reference that was followed before needs (``switch --retain``).
        override: why the administrator overrides holds (``--override-holds``); empty: holds count.
        image_hooks: from the end of staging on, where the hooks of the staged image lie, if it has some and root lets them
            run; empty: no.
        verdicts: what gates answered so far in this transaction, in order.
        install: the sysroot is a new host's; None for a host that is there.
    """

    transaction: str
    operation: Operation
    phase: Phase
    sysroot: str
    live: bool
    config_root: str = "/"
    from_image: ImageSummary | None = None
    to_image: ImageSummary | None = None
    signature: SignatureMode = SignatureMode.POLICY
    started_at: datetime
    deadline: datetime | None = None
    reason: str = ""
    dry_run: bool = False
    resumed: bool = False
    retain: bool = False
    override: str = ""
    image_hooks: str = ""
    verdicts: tuple[PriorVerdict, ...] = ()
    install: Installation | None = None

    @property
    def recorded_signature(self) -> SignatureMode:
        """The mode that is kept with the deployment and counts for its updates."""
        return self.install.signature if self.install is not None else self.signature
