"""What goes to a plugin's child process and comes back: one JSON object a line, the same values that hooks have in process.

    stdin   {"protocol": 1, "plugin": …, "module": …, "path": [...], "hook": "bootc_gate", "arguments": {...},
             "environment": {...}}
            for bootc_on_event further lines follow: {"event": {...}}
    stdout  {"protocol": 1, "answer": …}   or   {"protocol": 1, "error": {"kind": "HookError", "message": …, …}}

``docs/schemas/plugin-child-v1.schema.json`` is the published form; ``schema`` here makes it. Everything that comes back is checked
before it is believed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from bootc_core import errors, limits
from bootc_core.errors import BootcError, HookError, TransportError, printable
from bootc_core.models.base import parse_json
from bootc_core.models.context import Context, Phase
from bootc_core.models.image import Attachment, FetchedImage, PolicyAnswer
from bootc_core.models.oci import Descriptor, RawDocument, parse_config, parse_manifest
from bootc_core.models.reference import ImageReference
from bootc_core.models.verdict import Deny, Hold, Proceed, Verdict, told

PROTOCOL: Final = 1
KINDS: Final = ("cosign", "referrers", "lookaside")  # of attachments that a policy's child is given

_ERRORS: Final = (
    "ConfigError",
    "PluginError",
    "TransportError",
    "Refused",
    "Unverifiable",
    "ContentError",
    "StorageError",
    "HookError",
    "UnsupportedEnvironmentError",
    "BootcError",
)


# --- arguments


async def pack(arguments: Mapping[str, object]) -> dict[str, Any]:
    """A hook's arguments as JSON values; of an image also the attachments that its policies may need."""
    packed: dict[str, Any] = {}
    for name, value in arguments.items():
        match value:
            case Context():
                packed[name] = value.model_dump(mode="json")
            case Phase():
                packed[name] = value.value
            case FetchedImage():
                packed[name] = await _pack_image(value)
            case _:
                raise TypeError(f"{name} cannot go to a child process")
    return packed


def _document(document: RawDocument | None) -> dict[str, str] | None:
    if document is None:
        return None
    return {"mediaType": document.media_type, "raw": base64.b64encode(document.raw).decode()}


async def _pack_image(image: FetchedImage) -> dict[str, Any]:
    attachments: dict[str, Any] = {}
    for kind in KINDS:
        try:
            found = await image.read_attachments(kind)
        except BootcError as problem:
            attachments[kind] = {"error": problem.message}
            continue
        attachments[kind] = [
            {
                "mediaType": one.media_type,
                "payload": base64.b64encode(one.payload).decode(),
                "annotations": dict(one.annotations),
                "origin": one.origin,
            }
            for one in found[: limits.SIGNATURES]
        ]
    return {
        "requested": str(image.requested),
        "resolved": str(image.resolved),
        "digest": image.digest,
        "index": _document(image.index),
        "manifest": _document(image.manifest_document),
        "config": _document(image.config_document),
        "attachments": attachments,
    }


def unpack(packed: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in the child, from what ``pack`` made."""
    arguments: dict[str, Any] = {}
    for name, value in packed.items():
        if name == "context":
            arguments[name] = Context.model_validate_json(json.dumps(value))
        elif name == "phase":
            arguments[name] = Phase(value)
        elif name == "image":
            arguments[name] = _unpack_image(value)
    return arguments


def _read(value: Mapping[str, str]) -> RawDocument:
    return RawDocument(value["mediaType"], base64.b64decode(value["raw"]))


def _unpack_image(value: Mapping[str, Any]) -> FetchedImage:
    manifest_document, config_document = _read(value["manifest"]), _read(value["config"])
    manifest = parse_manifest(manifest_document, "the manifest")
    attachments = value["attachments"]

    async def read(kind: str) -> tuple[Attachment, ...]:
        found = attachments.get(kind.partition("@")[0])
        if isinstance(found, list):
            return tuple(
                Attachment(
                    one["mediaType"],
                    base64.b64decode(one["payload"]),
                    one["annotations"],
                    one["origin"],
                )
                for one in found
            )
        said = found["error"] if found else f"{kind} is not handed to a child process"
        raise TransportError(said, reference="no-attachments")

    async def no_blobs(descriptor: Descriptor) -> Any:
        raise TransportError(f"layer {descriptor.digest} is not handed to a child process")

    return FetchedImage(
        ImageReference.parse(value["requested"]),
        ImageReference.parse(value["resolved"]),
        _read(value["index"]) if value["index"] else None,
        manifest_document,
        manifest,
        config_document,
        parse_config(config_document, manifest, "the configuration"),
        no_blobs,
        read,
    )


# --- answers


def pack_answer(hook: str, value: object) -> Any:
    """An answer as JSON; what the hook cannot answer is told by its type."""
    match value:
        case None:
            return None
        case Proceed() | Hold() | Deny() if hook == "bootc_gate":
            said = told(value)
            if isinstance(value, Hold):
                if not isinstance(value.until, datetime) or value.until.tzinfo is None:
                    raise HookError("a hold needs a time with time zone", found=repr(value.until))
                said["until"] = value.until.isoformat()
            return said
        case PolicyAnswer() if hook == "bootc_verify":
            return {**asdict(value), "evidence": [list(pair) for pair in value.evidence]}
    if hook.startswith(("bootc_before", "bootc_after")):
        return None  # as in process: what a participant returns means nothing
    raise HookError(
        f"{hook} answered with something else", reference="bad-answer", found=type(value).__name__
    )


def pack_error(problem: BaseException) -> dict[str, str]:
    """An error for the parent: ours with all its parts, others by type and text."""
    if isinstance(problem, BootcError):
        fields = {
            "kind": type(problem).__name__,
            "message": problem.message,
            "reference": problem.reference,
            "expected": problem.expected,
            "found": problem.found,
            "hint": problem.hint,
        }
        return {key: value for key, value in fields.items() if value}
    return {"kind": "Exception", "message": printable(f"{type(problem).__name__}: {problem}", 600)}


def _bad(plugin: str, hook: str, found: str) -> HookError:
    return HookError(
        f"plugin {plugin} answered {hook} with something else",
        reference="bad-answer",
        expected="one JSON object as docs/schemas/plugin-child-v1.schema.json says",
        found=found,
    )


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= limits.HOOK_OUTPUT_BYTES


def parse_answer(plugin: str, hook: str, line: bytes) -> Any:
    """The answer in a line of the child; raises the error in it.

    Raises:
        HookError: it is no answer to that hook.
        BootcError: what the plugin raised.
    """
    if not line.strip():
        raise _bad(plugin, hook, "nothing")
    value = parse_json(line, f"the answer of plugin {plugin}", error=HookError, catalogue="HOOK")
    if not isinstance(value, dict) or value.get("protocol") != PROTOCOL:
        raise _bad(plugin, hook, printable(line, 80))
    if "error" in value:
        raise parse_error(plugin, hook, value["error"])
    if "answer" not in value:
        raise _bad(plugin, hook, printable(line, 80))
    said = value["answer"]
    if said is None:
        return None
    if not isinstance(said, dict):
        raise _bad(plugin, hook, printable(line, 80))
    if hook == "bootc_gate":
        return _verdict(plugin, said)
    if hook == "bootc_verify":
        return _policy_answer(plugin, said)
    raise _bad(plugin, hook, printable(line, 80))


def _verdict(plugin: str, said: dict[str, Any]) -> Verdict:
    reason = said.get("reason", "")
    if _text(reason) and not set(said) - {"verdict", "reason", "until"}:
        match said.get("verdict"):
            case "proceed":
                return Proceed(printable(reason) or None)
            case "deny":
                return Deny(printable(reason))
            case "hold":
                try:
                    until = datetime.fromisoformat(said.get("until", ""))
                except (ValueError, TypeError):
                    until = None
                if until is not None and until.tzinfo is not None:
                    return Hold(until, printable(reason))
            case _:
                pass
    raise _bad(plugin, "bootc_gate", printable(json.dumps(said), 80))


def _policy_answer(plugin: str, said: dict[str, Any]) -> PolicyAnswer:
    evidence = said.get("evidence", [])
    good = (
        "accept" in said
        and said["accept"] in (True, False, None)
        and not isinstance(said.get("accept"), int | float) ^ isinstance(said.get("accept"), bool)
        and all(_text(said.get(key, "")) for key in ("reason", "rule"))
        and all(isinstance(said.get(key, True), bool) for key in ("cryptographic", "could_check"))
        and isinstance(evidence, list)
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_text, pair)) for pair in evidence
        )
        and (said.get("hint") is None or _text(said["hint"]))
        and not set(said)
        - {"accept", "reason", "rule", "cryptographic", "could_check", "evidence", "hint"}
    )
    if not good:
        raise _bad(plugin, "bootc_verify", printable(json.dumps(said), 80))
    return PolicyAnswer(
        said.get("accept"),
        printable(said.get("reason", "")),
        printable(said.get("rule", "")),
        said.get("cryptographic", False),
        said.get("could_check", True),
        tuple((printable(one), printable(two)) for one, two in evidence),
        printable(said["hint"]) if said.get("hint") else None,
    )


def schema() -> dict[str, Any]:
    """The JSON schema of both directions, as ``docs/schemas`` has it."""
    text = {"type": "string"}
    document = {
        "type": "object",
        "required": ["mediaType", "raw"],
        "properties": {
            "mediaType": text,
            "raw": {"type": "string", "contentEncoding": "base64", "description": "exact bytes"},
        },
    }
    attachment = {
        "type": "object",
        "required": ["mediaType", "payload", "annotations", "origin"],
        "properties": {
            "mediaType": text,
            "payload": {"type": "string", "contentEncoding": "base64"},
            "annotations": {"type": "object", "additionalProperties": text},
            "origin": text,
        },
    }
    failed = {"type": "object", "required": ["error"], "properties": {"error": text}}
    kinds = {
        kind: {"oneOf": [{"type": "array", "items": {"$ref": "#/$defs/Attachment"}}, failed]}
        for kind in KINDS
    }
    image = {
        "type": "object",
        "required": ["requested", "resolved", "digest", "manifest", "config", "attachments"],
        "properties": {
            "requested": text,
            "resolved": text,
            "digest": text,
            "index": {"oneOf": [{"$ref": "#/$defs/Document"}, {"type": "null"}]},
            "manifest": {"$ref": "#/$defs/Document"},
            "config": {"$ref": "#/$defs/Document"},
            "attachments": {"type": "object", "properties": kinds},
        },
    }
    context = Context.model_json_schema(ref_template="#/$defs/{model}")
    parts = context.pop("$defs", {})
    request = {
        "description": "The first line on standard input.",
        "type": "object",
        "required": ["protocol", "plugin", "module", "path", "hook", "arguments", "environment"],
        "properties": {
            "protocol": {"const": PROTOCOL},
            "plugin": text,
            "module": text,
            "path": {"type": "array", "items": text},
            "hook": text,
            "environment": {
                "description": "Added to that of the child: what must not be seen as a service's.",
                "type": "object",
                "additionalProperties": text,
            },
            "arguments": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "context": {"$ref": "#/$defs/Context"},
                    "phase": {"$ref": "#/$defs/Phase"},
                    "image": {"$ref": "#/$defs/Image"},
                },
            },
        },
        "additionalProperties": False,
    }
    event = {
        "description": "A further line on standard input, for bootc_on_event only.",
        "type": "object",
        "required": ["event"],
        "properties": {"event": {"type": "object", "required": ["event", "transaction"]}},
        "additionalProperties": False,
    }
    verdict = {
        "description": "The answer of bootc_gate.",
        "type": "object",
        "required": ["verdict"],
        "properties": {
            "verdict": {"enum": ["proceed", "hold", "deny"]},
            "reason": text,
            "until": {"type": "string", "format": "date-time"},
        },
        "additionalProperties": False,
    }
    policy = {
        "description": "The answer of bootc_verify.",
        "type": "object",
        "required": ["accept"],
        "properties": {
            "accept": {"type": ["boolean", "null"]},
            "reason": text,
            "rule": text,
            "cryptographic": {"type": "boolean"},
            "could_check": {"type": "boolean"},
            "evidence": {
                "type": "array",
                "items": {"type": "array", "items": text, "minItems": 2, "maxItems": 2},
            },
            "hint": {"type": ["string", "null"]},
        },
        "additionalProperties": False,
    }
    error = {
        "type": "object",
        "required": ["kind", "message"],
        "properties": {
            "kind": {"type": "string", "description": "of: " + ", ".join(_ERRORS)},
            **dict.fromkeys(("message", "reference", "expected", "found", "hint"), text),
        },
        "additionalProperties": False,
    }
    answer = {
        "description": "The one line on standard output.",
        "type": "object",
        "required": ["protocol"],
        "properties": {
            "protocol": {"const": PROTOCOL},
            "answer": {
                "oneOf": [
                    {"type": "null"},
                    {"$ref": "#/$defs/Verdict"},
                    {"$ref": "#/$defs/PolicyAnswer"},
                ]
            },
            "error": {"$ref": "#/$defs/Error"},
        },
        "oneOf": [{"required": ["answer"]}, {"required": ["error"]}],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages between bootc and a plugin in a child process, protocol 1",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in ("Request", "EventLine", "Answer")],
        "$defs": {
            "Request": request,
            "EventLine": event,
            "Answer": answer,
            "Context": context,
            **parts,
            "Image": image,
            "Document": document,
            "Attachment": attachment,
            "Verdict": verdict,
            "PolicyAnswer": policy,
            "Error": error,
        },
    }


def parse_error(plugin: str, hook: str, said: Any) -> BootcError:
    """The error that a child reports, with its text made safe."""
    if not isinstance(said, dict) or not _text(said.get("message")):
        return _bad(plugin, hook, "an error without message")
    kind = said.get("kind")
    if kind not in _ERRORS:
        return errors.PluginError(
            f"plugin {plugin} broke in {hook}",
            reference="plugin-broken",
            found=printable(said["message"], 600),
        )
    extra = {
        key: printable(said[key], 600)
        for key in ("reference", "expected", "found", "hint")
        if _text(said.get(key))
    }
    made: BootcError = getattr(errors, kind)(printable(said["message"], 600), **extra)
    made.add_note(f"in {hook} of plugin {plugin}")
    return made
