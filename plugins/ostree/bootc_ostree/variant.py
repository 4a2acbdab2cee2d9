"""GVariant serialisation, the part that ostree objects need (GVariant specification 1.0, "serialisation format"; normal form).

    basic       y u t s and the others, little-endian, aligned to their size (s: bytes and a NUL); ints for all numbers, whatever
                their type, so that what others wrote is written back as it was
    array       fixed-size elements back to back; others aligned and followed by one end offset an element
    tuple       members aligned; end offsets of variable-size members but the last, in reverse, at the end
    variant     value, NUL, type string; aligned to 8

Offsets take 1, 2, 4 or 8 bytes, as few as the whole container allows. ostree keeps numbers inside in big-endian order:
``swap32`` and ``swap64``. Strings are ``str``, ``ay`` is ``bytes``, other arrays are lists, ``a{sv}`` is a list of pairs
whose second member is a ``(type, value)`` pair.
"""

from __future__ import annotations

from typing import Any, Final

_FIXED: Final = {"y": 1, "b": 1, "n": 2, "q": 2, "i": 4, "u": 4, "h": 4, "x": 8, "t": 8, "d": 8}
_TEXTS: Final = frozenset("sog")
_TYPES: Final = frozenset("yutsvabnqixdhog(){}")
_DEPTH: Final = 16


def swap32(number: int) -> int:
    """``number`` with its four bytes reversed."""
    return int.from_bytes(number.to_bytes(4, "big"), "little")


def swap64(number: int) -> int:
    """``number`` with its eight bytes reversed."""
    return int.from_bytes(number.to_bytes(8, "big"), "little")


def split(signature: str) -> list[str]:
    """The complete types that ``signature`` consists of, e.g. ``a(say)u`` to ``["a(say)", "u"]``."""
    found, position = [], 0
    while position < len(signature):
        start = position
        while signature[position] == "a":
            position += 1
        if signature[position] in "({":
            depth = 0
            while True:
                depth += signature[position] in "({"
                depth -= signature[position] in ")}"
                position += 1
                if not depth:
                    break
        else:
            position += 1
        found.append(signature[start:position])
    return found


def alignment(signature: str) -> int:
    """Alignment in bytes of a type."""
    if signature[0] in _FIXED:
        return _FIXED[signature[0]]
    if signature[0] in _TEXTS:
        return 1
    if signature[0] == "v":
        return 8
    if signature[0] == "a":
        return alignment(signature[1:])
    return max((alignment(member) for member in split(signature[1:-1])), default=1)


def fixed_size(signature: str) -> int | None:
    """Size in bytes if all values of the type have one size, else None."""
    if signature[0] in _FIXED:
        return _FIXED[signature[0]]
    if signature[0] in "sogva":
        return None
    position = 0
    for member in split(signature[1:-1]):
        size = fixed_size(member)
        if size is None:
            return None
        step = alignment(member)
        position = -(-position // step) * step + size
    step = alignment(signature)
    return max(-(-position // step) * step, 1)


def _offset_size(body: int, count: int) -> int:
    for size in (1, 2, 4):
        if body + count * size < 1 << (8 * size):
            return size
    return 8


def encode(signature: str, value: Any) -> bytes:
    """``value`` serialised as ``signature``."""
    kind = signature[0]
    if kind in _FIXED:
        return int(value).to_bytes(_FIXED[kind], "little")
    if kind in _TEXTS:
        return str(value).encode("utf-8", "surrogateescape") + b"\0"
    if kind == "v":
        inner, content = value
        return encode(inner, content) + b"\0" + str(inner).encode()
    if kind == "a":
        return _encode_array(signature[1:], value)
    return _encode_tuple(signature, value)


def _encode_array(member: str, value: Any) -> bytes:
    if member == "y":
        return bytes(value)
    out, ends = bytearray(), []
    step, fixed = alignment(member), fixed_size(member)
    for item in value:
        out += bytes(-len(out) % step)
        out += encode(member, item)
        ends.append(len(out))
    if fixed is None and ends:
        size = _offset_size(len(out), len(ends))
        out += b"".join(end.to_bytes(size, "little") for end in ends)
    return bytes(out)


def _encode_tuple(signature: str, value: Any) -> bytes:
    members = split(signature[1:-1])
    out, ends = bytearray(), []
    for index, (member, item) in enumerate(zip(members, value, strict=True)):
        out += bytes(-len(out) % alignment(member))
        out += encode(member, item)
        if fixed_size(member) is None and index != len(members) - 1:
            ends.append(len(out))
    if fixed_size(signature) is not None:
        out += bytes(-len(out) % alignment(signature))
    if ends:
        size = _offset_size(len(out), len(ends))
        out += b"".join(end.to_bytes(size, "little") for end in reversed(ends))
    return bytes(out)


def decode(signature: str, data: bytes, depth: int = 0) -> Any:
    """The value that ``data`` holds as ``signature``.

    Raises:
        ValueError: not a serialised value of that type (bounds, order, missing terminators, nesting).
    """
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    kind = signature[0]
    if kind in _FIXED:
        if len(data) != _FIXED[kind]:
            raise ValueError(f"{kind} of {len(data)} bytes")
        return int.from_bytes(data, "little")
    if kind in _TEXTS:
        if data[-1:] != b"\0" or b"\0" in data[:-1]:
            raise ValueError("a string without its end")
        return data[:-1].decode("utf-8", "surrogateescape")
    if kind == "v":
        position = data.rfind(b"\0")
        inner = data[position + 1 :].decode("ascii", "strict") if position >= 0 else ""
        if not inner or len(inner) > 64 or set(inner) - _TYPES or split_checked(inner) != [inner]:
            raise ValueError("a variant without its type")
        return inner, decode(inner, data[:position], depth + 1)
    if kind == "a":
        return _decode_array(signature[1:], data, depth)
    return _decode_tuple(signature, data, depth)


def split_checked(signature: str) -> list[str]:
    """As ``split``, for foreign signatures.

    Raises:
        ValueError: malformed.
    """
    try:
        return split(signature)
    except IndexError:
        raise ValueError("a malformed type") from None


def _width(size: int) -> int:
    return 1 if size < 1 << 8 else 2 if size < 1 << 16 else 4 if size < 1 << 32 else 8


def _decode_array(member: str, data: bytes, depth: int) -> Any:
    if member == "y":
        return data
    if not data:
        return []
    fixed, step = fixed_size(member), alignment(member)
    if fixed is not None:
        if len(data) % fixed:
            raise ValueError("an array with a rest")
        return [
            decode(member, data[at : at + fixed], depth + 1) for at in range(0, len(data), fixed)
        ]
    width = _width(len(data))
    last = int.from_bytes(data[-width:], "little")
    if last > len(data) - width or (len(data) - last) % width:
        raise ValueError("an array with wrong offsets")
    ends = [int.from_bytes(data[at : at + width], "little") for at in range(last, len(data), width)]
    values, position = [], 0
    for end in ends:
        position = -(-position // step) * step
        if end < position or end > last:
            raise ValueError("an array with wrong offsets")
        values.append(decode(member, data[position:end], depth + 1))
        position = end
    return values


def _decode_tuple(signature: str, data: bytes, depth: int) -> tuple[Any, ...]:
    members = split(signature[1:-1])
    variable = sum(fixed_size(member) is None for member in members[:-1])
    width = _width(len(data))
    limit = len(data) - variable * width
    values, position, seen = [], 0, 0
    for index, member in enumerate(members):
        position = -(-position // alignment(member)) * alignment(member)
        size = fixed_size(member)
        if size is not None:
            end = position + size
        elif index == len(members) - 1:
            end = limit
        else:
            seen += 1
            place = len(data) - seen * width
            end = int.from_bytes(data[place : place + width], "little")
        if end < position or end > limit:
            raise ValueError("a tuple with wrong offsets")
        values.append(decode(member, data[position:end], depth + 1))
        position = end
    return tuple(values)
