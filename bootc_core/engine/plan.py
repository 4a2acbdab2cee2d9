"""From the host's status and a request to what shall be done: pure, so that every case is a line of a table."""

from __future__ import annotations

from dataclasses import dataclass

from bootc_core.errors import UsageError
from bootc_core.models.context import Operation, SignatureMode
from bootc_core.models.host import HostImage, HostStatus
from bootc_core.models.reference import ImageReference, Transport


@dataclass(frozen=True, slots=True)
class Target:
    """The image to follow from now on, and how it has to be accepted."""

    operation: Operation
    reference: ImageReference
    signature: SignatureMode


def reference_of(image: HostImage) -> ImageReference:
    """The reference in a status document."""
    return ImageReference.make(Transport(image.transport), image.image)


def repository_of(reference: ImageReference) -> tuple[Transport, str]:
    """What a switched-off signature check is remembered for: the repository, tag and digest aside."""
    name = reference.canonical().name
    if reference.transport is Transport.REGISTRY:
        from bootc_core.models.reference import RegistryName

        parsed = RegistryName.parse(name)
        return reference.transport, f"{parsed.domain}/{parsed.path}"
    return reference.transport, name


def plan_switch(
    reference: ImageReference,
    host: HostStatus,
    current: SignatureMode | None,
    *,
    insecure: bool,
    enforce: bool,
) -> Target | None:
    """The target of ``bootc switch``; None if the host follows exactly this already.

    Args:
        reference: where to.
        host: status of the sysroot.
        current: how the deployment that boots next had to be accepted; None without one.
        insecure: ``--no-signature-verification``.
        enforce: ``--enforce-container-sigpolicy``.

    Raises:
        UsageError: both flags.
    """
    if insecure and enforce:
        raise UsageError(
            "--no-signature-verification and --enforce-container-sigpolicy contradict each other",
            hint="give one of them",
        )
    mode = (
        SignatureMode.INSECURE
        if insecure
        else SignatureMode.ENFORCE
        if enforce
        else SignatureMode.POLICY
    )
    image = host.spec_image
    if image is not None and reference_of(image) == reference and mode is current:
        return None
    return Target(Operation.SWITCH, reference, mode)


def plan_upgrade(host: HostStatus, current: SignatureMode | None, tag: str | None) -> Target:
    """The target of ``bootc upgrade``: what the host follows, with another tag if one is given.

    Raises:
        UsageError: there is nothing to follow; the messages are the original's.
    """
    image = host.spec_image
    if image is None:
        if tag:
            raise UsageError(
                "--tag requires a booted image with a specified source", reference="no-source"
            )
        if any(slot and slot.incompatible for slot in (host.staged, host.booted)):
            raise UsageError(
                "local rpm-ostree modifications prevent upgrading",
                reference="incompatible",
                hint="rpm-ostree reset removes them",
            )
        raise UsageError(
            "No image source specified",
            reference="no-source",
            hint="bootc switch [--sysroot DIR] IMAGE deploys the first image",
        )
    reference = reference_of(image)
    if tag:
        reference = reference.with_tag(tag)
    return Target(Operation.UPGRADE, reference, current or SignatureMode.POLICY)
