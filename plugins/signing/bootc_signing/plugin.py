"""Hook implementations only; what they do is in ``decide`` (the answer), ``memory`` and ``admin`` (``bootc trust``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bootc_core.hooks.markers import hookimpl
from bootc_core.hooks.offers import PolicyOffer, TrustOffer

if TYPE_CHECKING:
    from pathlib import Path

    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage, PolicyAnswer
    from bootc_core.models.reference import ImageReference

BOOTC_API = 1
_FLAG = "--no-signature-verification"


@hookimpl
def bootc_register_policies() -> Sequence[PolicyOffer]:
    """One policy: ``signing``, with all of ``bootc trust``."""
    return (PolicyOffer("signing", TrustOffer(_rules, _evidence, _recheck, _change, _add)),)


@hookimpl
async def bootc_verify(context: Context, image: FetchedImage) -> PolicyAnswer:
    """What policy.json and the trust policies say, by the name that the administrator gave the image."""
    from bootc_core.models.context import SignatureMode
    from bootc_core.models.image import PolicyAnswer

    if context.signature is SignatureMode.INSECURE:
        reason = f"signature verification was switched off ({_FLAG})"
        return PolicyAnswer(accept=True, reason=reason, rule=_FLAG)
    from bootc_signing.decide import verify

    return await verify(context, image)


@hookimpl
async def bootc_after_stage(context: Context) -> None:
    """Remember the version that this host is brought to; images that nobody verified are not remembered."""
    from bootc_core.models.context import SignatureMode

    if context.signature is SignatureMode.INSECURE:
        return
    from bootc_signing.admin import remember

    remember(context)


def _rules(config_root: Path, reference: ImageReference) -> list[tuple[str, str]]:
    from bootc_signing.admin import rules

    return rules(config_root, reference)


def _evidence(state: Path, digest: str) -> list[tuple[str, str]]:
    from bootc_signing.admin import kept

    return kept(state, digest)


async def _recheck(config_root: Path, state: Path, digest: str) -> PolicyAnswer | None:
    from bootc_signing.admin import recheck

    return await recheck(config_root, state, digest)


def _change(state: Path, action: str, reference: ImageReference | None, reason: str) -> str:
    from bootc_signing.admin import change

    return change(state, action, reference, reason)


def _add(config_root: Path, repository: str, options: dict[str, str]) -> list[tuple[Path, bytes]]:
    from bootc_signing.setup import plan

    return plan(config_root, repository, options)
