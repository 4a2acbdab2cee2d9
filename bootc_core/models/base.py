"""Base classes of typed documents, digests, and strict JSON.

``Model`` is ours: unknown keys are errors. ``WireModel`` is a foreign format that may grow: unknown keys are ignored, and the
raw bytes are kept beside the value because digests are over bytes. ``TrustModel`` decides about trust.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from bootc_core import limits
from bootc_core.errors import BootcError, ContentError, printable

_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")


def check_digest(text: str) -> str:
    """The digest itself if it is ``sha256:``, ``sha384:`` or ``sha512:`` with lower-case hex of the right length.

    Raises:
        ValueError: anything else (OCI image specification, "Digests"); also what would be a path.
    """
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"not a digest: {printable(text, 100)}")
    return text


Digest = Annotated[str, AfterValidator(check_digest)]


class Model(BaseModel):
    """A document of our own: immutable, strict, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class WireModel(BaseModel):
    """A document of a foreign format: immutable, strictly typed, unknown keys ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, defer_build=True)


class TrustModel(Model):
    """A document that decides about trust: as ``Model``; parse it with ``parse_json``, which rejects duplicate keys."""


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int:
    if len(text) > limits.JSON_DIGITS + 1:
        raise ValueError("an integer of more than 64 bits")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {printable(key, 60)!r} appears twice")
            seen.add(key)
    return value


class _TooDeepError(ValueError):
    """A bound was hit, which is another class of error than damage."""


def _check_depth(data: bytes) -> None:
    """Bound the nesting before a recursive parser sees the text (brackets inside strings do not count)."""
    depth, in_string, escaped = 0, False, False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > limits.JSON_DEPTH:
                raise _TooDeepError(f"nested deeper than {limits.JSON_DEPTH} levels")
        elif byte in b"]}":
            depth -= 1


def parse_json(
    data: bytes, what: str, *, error: type[BootcError] = ContentError, catalogue: str = "INT"
) -> Any:
    """The value of a strict JSON document.

    Refused: duplicate keys, ``NaN`` and ``Infinity``, integers beyond 64 bits, a byte order mark, text that is not
    UTF-8, unpaired surrogates, trailing bytes, and nesting beyond ``limits.JSON_DEPTH``.

    Args:
        data: the raw bytes; the caller has bounded their number.
        what: names the document in the error, e.g. ``manifest of quay.io/x/y:1``.
        error: the class to raise.
        catalogue: the catalogue class of that error.

    Raises:
        BootcError: of class ``error``, naming ``what`` and the reason.
    """
    try:
        if data.count(b"[") + data.count(b"{") > limits.JSON_DEPTH:
            _check_depth(data)
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_reject_constant,
            parse_int=_integer,
        )
        if b"\\u" in data or b"\\U" in data:
            json.dumps(value, ensure_ascii=False).encode(
                "utf-8"
            )  # an unpaired surrogate fails here
    except (ValueError, RecursionError) as problem:
        deep = isinstance(problem, _TooDeepError | RecursionError)
        raise error(
            f"{what} is not valid JSON",
            reference="bad-json",
            found=printable(str(problem)),
            catalogue="LIM" if deep and catalogue == "INT" else catalogue,
        ) from None
    return value


M = TypeVar("M", bound=BaseModel)


def validate(
    model: type[M],
    value: Any,
    what: str,
    *,
    error: type[BootcError] = ContentError,
    catalogue: str = "INT",
) -> M:
    """``value`` as ``model``, or our error with the path of the first problem and the number of the others.

    Raises:
        BootcError: of class ``error``.
    """
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        errors = problem.errors(include_url=False, include_context=False, include_input=False)
        first = errors[0]
        path = ".".join(str(part) for part in first["loc"]) or "the document"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise error(
            f"{what}: {printable(path)} is wrong",
            reference="bad-document",
            found=printable(first["msg"].removeprefix("Value error, ")) + more,
            catalogue="LIM" if first["type"] == "too_long" and catalogue == "INT" else catalogue,
        ) from None
