"""The host as text: for people, as YAML, as canonical JSON. Pure functions."""

from __future__ import annotations

import json
import re
from typing import Any

from bootc_core.errors import printable
from bootc_core.models.host import Deployment, HostImage, HostStatus, ImageStatus

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.:@+-]*")
_YAML_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def to_json(host: HostStatus) -> str:
    """Canonical JSON: sorted keys, no white space, no final newline."""
    return json.dumps(host.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS and not value.endswith(":"):
        return str(value)
    return json.dumps(value)  # a JSON string is a YAML string


def _yaml(value: Any, indent: int) -> list[str]:
    pad = "  " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                lines += [f"{pad}{key}:", *_yaml(item, indent + (not isinstance(item, list)))]
            else:
                lines.append(
                    f"{pad}{key}: {'{}' if item == {} else '[]' if item == [] else _scalar(item)}"
                )
        return lines
    for item in value:
        body = _yaml(item, indent + 1)
        lines += [f"{pad}- {body[0].lstrip()}", *body[1:]]
    return lines


def to_yaml(host: HostStatus) -> str:
    """YAML with explicit nulls, as the original prints it when output is no terminal."""
    return "\n".join(_yaml(host.to_json(), 0)) + "\n"


def _name(image: HostImage) -> str:
    if image.transport == "registry":
        return printable(image.image)
    return f"{image.transport}:{printable(image.image)}"


def _signature(image: HostImage) -> str | None:
    if image.signature is None:
        return None
    if isinstance(image.signature, tuple):
        return f"ostree-remote:{printable(image.signature[1])}"
    return (
        "container-policy" if image.signature == "containerPolicy" else printable(image.signature)
    )


def _version(image: ImageStatus, version: str, timestamp: str) -> tuple[str, str] | None:
    when = image.timestamp
    if image.version is not None:
        return version, printable(image.version) + (f" ({when})" if when else "")
    return (timestamp, when) if when else None


def _rows(
    entry: Deployment, slot: str, host: HostStatus, *, verbose: bool
) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    image = entry.image
    if image is not None:
        rows.append(("Digest", f"{image.image_digest} ({image.architecture})"))
    if image is not None and entry.composefs is not None:
        rows.append(("Verity", entry.composefs.verity))
    if image is not None and (row := _version(image, "Version", "Timestamp")) is not None:
        rows.append(row)
    if image is None and entry.ostree is not None:
        rows.append(("Commit", entry.ostree.checksum))
    elif image is None and entry.composefs is not None:
        rows.append(("Commit", entry.composefs.verity))
    if entry.accepted:
        rows.append(("Accepted", printable(entry.accepted)))
    if entry.pinned:
        rows.append(("Pinned", "yes"))
    update = entry.cached_update
    if update is not None and (image is None or update.image_digest != image.image_digest):
        rows.append(_version(update, "UpdateVersion", "UpdateTimestamp") or ("Update", "Available"))
        rows.append(("UpdateDigest", update.image_digest))
    if slot == "booted" and host.usr_overlay:
        access = "read/write" if host.usr_overlay[0] == "readWrite" else "read-only"
        rows.append(("/usr overlay", f"{host.usr_overlay[1]}, {access}"))
    if verbose:
        rows += _verbose_rows(entry, slot)
    return rows


def _verbose_rows(entry: Deployment, slot: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if entry.ostree is not None:
        rows += [
            ("StateRoot", entry.ostree.stateroot),
            ("Deploy serial", str(entry.ostree.deploy_serial)),
        ]
    rows.append(("Staged", "yes" if slot == "staged" else "no"))
    if entry.ostree is not None and entry.image is not None:
        rows.append(("Commit", entry.ostree.checksum))
    if entry.image is not None and (signature := _signature(entry.image.image)) is not None:
        rows.append(("Signature", signature))
    rows += [(f"Signed ({label})", printable(value, 400)) for label, value in entry.evidence]
    rows.append(("Soft-reboot", "yes" if entry.soft_reboot_capable else "no"))
    if entry.composefs is not None:
        enforced = not entry.composefs.missing_verity_allowed
        rows.append(("FsVerity", "Enforced" if enforced else "Not Enforced"))
    if slot == "staged":
        rows.append(("Download-only", "yes" if entry.download_only else "no"))
    return rows


_TITLES = {
    "staged": ("  Staged image", "  Staged ostree", "  Staged composefs"),
    "booted": ("● Booted image", "● Booted ostree", "● Booted composefs"),
    "rollback": ("  Rollback image", "  Rollback ostree", "  Rollback composefs"),
    "other": ("  Other image", "  Other ostree", "  Other composefs"),
}


def _entry(entry: Deployment, slot: str, host: HostStatus, *, verbose: bool) -> str:
    with_image, ostree, composefs = _TITLES[slot]
    if entry.image is not None:
        title, first = with_image, f"{with_image}: {_name(entry.image.image)}"
    elif entry.ostree is not None or entry.composefs is not None:
        title = first = ostree if entry.ostree is not None else composefs
    else:
        return f"  Current {slot} state is unknown"
    lines = [first]
    for label, value in _rows(entry, slot, host, verbose=verbose):
        lines.append(f"{label:>{len(title)}}: {value}")
    return "\n".join(lines)


def to_text(host: HostStatus, *, verbose: bool = False) -> str:
    """For people: staged, booted, rollback, others, an empty line between them."""
    if host.booted is None:
        return "System is not deployed via bootc.\n"
    slots = [("staged", host.staged), ("booted", host.booted), ("rollback", host.rollback)]
    slots += [("other", entry) for entry in host.other]
    shown = [
        _entry(entry, slot, host, verbose=verbose) for slot, entry in slots if entry is not None
    ]
    if host.failed_update is not None:
        shown.append(f"  Failed {printable(host.failed_update, 1000)}")
    return "\n\n".join(shown) + "\n"
