"""The origin of a deployment: where its image came from and how it was accepted, as storage backends keep it beside the deployment.

    [origin]
    container-image-reference=ostree-unverified-registry:quay.io/acme/os:9
    [boot]                         composefs only
    boot_type=bls
    digest=SHA-256 over kernel, then initrd
    [image]                        composefs only
    manifest_digest=sha256:...
    [bootc-python]                 ours; other programs skip it
    tag_digest=sha256:...          what the reference named then (the index, where there is one)
    signature=policy               policy, enforce or insecure
    accepted=[{...}]               the policies' answers

An INI file as GLib's key files are; sections and keys of others are kept out of our way by ignoring them. ``bootc status`` passes
here: nothing heavy is imported.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from bootc_core.errors import BootcError, StorageError, printable
from bootc_core.models.host import HostImage, ImageStatus
from bootc_core.models.reference import ImageReference, SignedReference

if TYPE_CHECKING:
    from bootc_core.models.context import Context
    from bootc_core.models.image import FetchedImage

SECTION: Final = "bootc-python"
# Sections that rpm-ostree writes for locally layered packages: such a deployment is not an image any more.
LAYERED: Final = frozenset({"rpmostree", "packages", "overrides", "modules"})
_DIGEST: Final = re.compile(r"sha(?:256:[0-9a-f]{64}|384:[0-9a-f]{96}|512:[0-9a-f]{128})")


def followed(context: Context, image: FetchedImage) -> ImageReference:
    """The reference that a deployment follows: where its image came from, or what a new host was told to follow."""
    target = context.install.target if context.install is not None else ""
    return ImageReference.parse(target) if target else image.requested


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a deployment's image came from and how it was accepted.

    Attributes:
        reference: with the signature that it demands; None for a deployment that is not from an image.
        manifest_digest: of the image for this machine, where the backend records it here.
        boot_digest: hex SHA-256 over kernel and initrd.
        boot_type: ``bls`` or ``uki``; None where the backend does not record it.
        tag_digest: what the reference named when it was fetched; None for deployments of others.
        signature: ``policy``, ``enforce`` or ``insecure``; None for deployments of others.
        accepted: the policies' answers.
        incompatible: packages were layered on top of the image.
    """

    reference: SignedReference | None
    manifest_digest: str | None = None
    boot_digest: str | None = None
    boot_type: str | None = None
    tag_digest: str | None = None
    signature: str | None = None
    accepted: tuple[dict[str, Any], ...] = ()
    incompatible: bool = False

    def to_bytes(self, *, long_form: bool = False) -> bytes:
        """The text of the origin file.

        Args:
            long_form: write ``ostree-unverified-image:docker://NAME`` where ``ostree-unverified-registry:NAME`` would
                do, as the original's composefs backend does.
        """
        reference = str(self.reference) if self.reference else None
        if long_form and self.reference is not None and self.reference.signature is None:
            reference = f"ostree-unverified-image:{self.reference.image}"
        sections = {
            "origin": {"container-image-reference": reference},
            "boot": {"boot_type": self.boot_type, "digest": self.boot_digest},
            "image": {"manifest_digest": self.manifest_digest},
            SECTION: {
                "tag_digest": self.tag_digest,
                "signature": self.signature,
                "accepted": json.dumps(self.accepted, sort_keys=True) if self.accepted else None,
            },
        }
        lines = []
        for section, values in sections.items():
            present = {key: value for key, value in values.items() if value is not None}
            if present:
                lines += [f"[{section}]", *(f"{key}={value}" for key, value in present.items()), ""]
        return "\n".join(lines).encode()

    @property
    def acceptance(self) -> str | None:
        """One line for people: who accepted the image and by which rule."""
        lines = [
            printable(f"{answer.get('policy')}: {answer.get('reason')}", 200) + _rule(answer)
            for answer in self.accepted
            if answer.get("accept")
        ]
        return "; ".join(lines) or None

    @property
    def evidence(self) -> tuple[tuple[str, str], ...]:
        """What the acceptance was built on, for people: who signed, which key, when."""
        rows = []
        for answer in self.accepted:
            found = answer.get("evidence")
            if answer.get("accept") and isinstance(found, dict):
                rows += [(printable(str(k), 100), printable(str(v), 400)) for k, v in found.items()]
        return tuple(rows)


def _rule(answer: dict[str, Any]) -> str:
    rule = str(answer.get("rule") or "")
    return "" if not rule or rule in str(answer.get("reason")) else f" ({printable(rule, 200)})"


def _bad(found: str) -> StorageError:
    return StorageError(
        "the origin of a deployment is damaged",
        reference="bad-origin",
        found=found,
        catalogue="STATE",
    )


def parse(data: bytes) -> Origin:
    """The origin in the bytes of its file.

    Raises:
        StorageError: ``bad-origin``.
    """
    values: dict[tuple[str, str], str] = {}
    sections: set[str] = set()
    section = ""
    for line in data.decode("utf-8", "replace").split("\n"):
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1]
            sections.add(section)
        elif "=" in text and not text.startswith(("#", ";")):
            key, _, value = text.partition("=")
            values[section, key.strip()] = value.strip()

    def digest(section: str, key: str) -> str | None:
        value = values.get((section, key))
        if value is not None and not _DIGEST.fullmatch(value):
            raise _bad(f"{key}: {printable(value, 80)}")
        return value

    text = values.get(("origin", "container-image-reference"), "")
    incompatible = bool(sections & LAYERED)
    if not text and not incompatible and ("origin", "refspec") not in values:
        raise _bad("no container-image-reference")
    try:
        reference = SignedReference.parse(text) if text else None
        accepted = json.loads(values.get((SECTION, "accepted"), "[]"))
    except (BootcError, ValueError, RecursionError) as problem:
        raise _bad(printable(str(problem))) from None
    if not isinstance(accepted, list) or not all(isinstance(answer, dict) for answer in accepted):
        accepted = []
    return Origin(
        reference,
        digest("image", "manifest_digest"),
        values.get(("boot", "digest")),
        values.get(("boot", "boot_type")),
        digest(SECTION, "tag_digest"),
        values.get((SECTION, "signature")),
        tuple(accepted),
        incompatible,
    )


def timestamp(text: object) -> str | None:
    """RFC 3339 in UTC without fractions, or None for what is no time."""
    if not isinstance(text, str):
        return None
    try:
        # Container tools write nanoseconds, Python reads six digits.
        moment = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text))
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return moment.replace(microsecond=0).isoformat().replace("+00:00", "Z")


def document(data: bytes) -> dict[str, Any]:
    """A JSON object that this host stored.

    Raises:
        StorageError: it is damaged.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise StorageError(
            "an image's stored document is no JSON object",
            reference="bad-document",
            catalogue="INT",
        )
    return value


def image_status(
    reference: SignedReference,
    manifest_digest: str,
    manifest: dict[str, Any],
    config: dict[str, Any],
) -> ImageStatus:
    """What ``status`` shows of a deployed image, from its stored documents."""
    labels = (config.get("config") or {}).get("Labels") or {}
    annotations = manifest.get("annotations") or {}
    image = reference.image
    return ImageStatus(
        image=HostImage(image.name, image.transport.value, reference.signature),
        image_digest=manifest_digest,
        architecture=str(config.get("architecture")),
        version=labels.get("org.opencontainers.image.version")
        or labels.get("version")
        or annotations.get("org.opencontainers.image.version"),
        timestamp=timestamp(
            labels.get("org.opencontainers.image.created") or config.get("created")
        ),
    )
