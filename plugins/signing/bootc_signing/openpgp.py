"""OpenPGP signatures by the real ``gpgv``: one signed message in, the payload and the signer's key out.

    signed message   literal data with one signature, binary (never cleartext, never detached)
    keyring          binary; armoured files are read too; several files make one ring

``gpgv`` writes the content before it knows the verdict, and takes cleartext, several signatures and expired keys without
a word. So its output counts only after its exit status and its status lines were read strictly: exactly one signature,
exactly one VALIDSIG of class 00 by a hash that is still good, and none of the lines that take it back.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from bootc_core import limits, process
from bootc_core.errors import BootcError, UnsupportedEnvironmentError, printable
from bootc_core.oci.signatures import is_openpgp
from bootc_signing.claims import CannotCheck, Claim, Rejected, parse_payload

_TIMEOUT_S: Final = 20.0
_FUTURE_S: Final = 24 * 3600  # clocks of people who sign are not always right
_STATUS: Final = re.compile(rb"^\[GNUPG:\] ([A-Z_0-9]+) ?(.*)$", re.MULTILINE)
_FPR: Final = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
_WEAK_HASHES: Final = {"1": "MD5", "2": "SHA-1", "3": "RIPEMD-160"}
_RSA: Final = frozenset({1, 3})
_BITS: Final = 2048
# status lines that take a valid signature back, with the reason
_BAD: Final = {
    "EXPKEYSIG": ("expired-key", "the key that signed has expired"),
    "EXPSIG": ("expired-signature", "the signature has expired"),
    "REVKEYSIG": ("revoked-key", "the key that signed is revoked"),
    "BADSIG": ("bad-signature", "the signature is not valid for its content"),
}


@dataclass(frozen=True, slots=True)
class Key:
    """A public key or subkey of a ring: what is needed to judge its strength."""

    fingerprint: str
    algorithm: int
    bits: int


def dearmour(data: bytes, what: str) -> bytes:
    """A binary keyring from a file that may be armoured (all blocks, one after another).

    Raises:
        CannotCheck: damaged.
    """
    if not data.lstrip().startswith(b"-----BEGIN PGP"):
        return data
    rings = []
    for block in re.findall(
        rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----",
        data,
        re.DOTALL,
    ):
        lines = [line.strip() for line in block.split(b"\n")]
        body = lines[lines.index(b"") + 1 :] if b"" in lines else lines
        text = b"".join(line for line in body if line and not line.startswith(b"="))
        try:
            rings.append(base64.b64decode(text, validate=True))
        except ValueError:
            raise CannotCheck(f"{what} is damaged: its armour is not base64") from None
    if not rings:
        raise CannotCheck(f"{what} holds no OpenPGP public key")
    return b"".join(rings)


def _packets(ring: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and body of each packet (RFC 4880, section 4.2); ends silently where the data stops making sense."""
    position = 0
    while position < len(ring):
        head = ring[position]
        position += 1
        if not head & 0x80 or position >= len(ring):
            return
        if head & 0x40:
            tag, first = head & 0x3F, ring[position]
            position += 1
            if first < 192:
                size = first
            elif first < 224 and position < len(ring):
                size = ((first - 192) << 8) + ring[position] + 192
                position += 1
            elif first == 255:
                size = int.from_bytes(ring[position : position + 4], "big")
                position += 4
            else:
                return
        else:
            tag, kind = (head >> 2) & 0x0F, head & 3
            if kind == 3:
                return
            width = 1 << kind
            size = int.from_bytes(ring[position : position + width], "big")
            position += width
        yield tag, ring[position : position + size]
        position += size


def ring_keys(ring: bytes) -> dict[str, Key]:
    """Keys and subkeys of a binary keyring by fingerprint (version 4)."""
    keys = {}
    for tag, body in _packets(ring):
        if tag in {6, 14} and len(body) > 8 and body[0] == 4:
            digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body)  # noqa: S324 - the format's
            bits = int.from_bytes(body[6:8], "big")  # of RSA's modulus; other kinds: meaningless
            name = digest.hexdigest().upper()
            keys[name] = Key(name, body[5], bits)
    return keys


def make_ring(files: list[tuple[str, bytes]]) -> bytes:
    """One binary keyring of all files (name, content).

    Raises:
        CannotCheck: a file holds no key.
    """
    rings = []
    for what, data in files:
        ring = dearmour(data, what)
        if not any(tag == 6 for tag, _ in _packets(ring)):
            raise CannotCheck(f"{what} holds no OpenPGP public key")
        rings.append(ring)
    return b"".join(rings)


def verify(message: bytes, ring: bytes, now: datetime) -> Claim:
    """What a signed message says, valid by a key of ``ring``.

    Args:
        message: the signature.
        ring: binary keyring.
        now: this host's time; signatures of the future do not count.

    Raises:
        Rejected: not acceptable.
        CannotCheck: ``gpgv`` is missing or does not end.
    """
    if not is_openpgp(message):
        raise Rejected("bad-format", "it is not an OpenPGP message in binary form")
    if len(message) > limits.SIGNATURE_BYTES:
        raise Rejected("too-large", f"it has {len(message)} bytes")
    with tempfile.TemporaryDirectory(prefix="bootc-gpgv-") as name:
        place = Path(name)
        (place / "ring.gpg").write_bytes(ring)
        (place / "message").write_bytes(message)
        argv = ["gpgv", "--homedir", name, "--keyring", str(place / "ring.gpg")]
        argv += ["--status-fd", "2", "--output", str(place / "payload"), str(place / "message")]
        try:
            done = process.run_blocking(
                argv, timeout_s=_TIMEOUT_S, check=False, output_limit=limits.HOOK_OUTPUT_BYTES
            )
        except UnsupportedEnvironmentError as problem:
            raise CannotCheck(problem.message, problem.hint) from None
        except BootcError as problem:
            raise CannotCheck(problem.message, problem.hint) from None
        if done.timed_out:
            raise CannotCheck("gpgv did not end in time")
        payload = b""
        if (place / "payload").exists():
            payload = (place / "payload").read_bytes()[: limits.SIGNATURE_BYTES + 1]
    fingerprint, primary, made = parse_status(done.stderr, done.returncode, ring_keys(ring))
    if made > now.timestamp() + _FUTURE_S:
        raise Rejected(
            "future-time",
            f"it says it was made at {made}, which is in the future (seconds since 1970)",
        )
    digest, reference = parse_payload(payload, "openpgp")
    return Claim(
        digest=digest,
        principal=f"openpgp {primary}",
        reference=reference,
        facts=(
            ("key", f"OpenPGP {primary}"),
            *((("subkey", fingerprint),) if fingerprint != primary else ()),
            ("signed", str(made)),
        ),
    )


def parse_status(output: bytes, returncode: int, keys: dict[str, Key]) -> tuple[str, str, int]:
    """Fingerprint of the key that signed, of its primary key, and the time in the signature.

    Args:
        output: status lines of ``gpgv``, its messages among them.
        returncode: its exit status.
        keys: of the ring.

    Raises:
        Rejected: anything but exactly one good signature.
    """
    lines = [
        (match[1].decode(), match[2].decode("utf-8", "replace"))
        for match in _STATUS.finditer(output)
    ]
    words = [word for word, _ in lines]
    for word, (code, text) in _BAD.items():
        if word in words:
            raise Rejected(code, text)
    for word, rest in lines:
        if word in {"ERRSIG", "NO_PUBKEY"}:
            other = printable(rest.split(" ")[0], 64)
            raise Rejected(
                "wrong-key", f"it is signed by key {other}, which the policy does not name"
            )
        if word in {"NODATA", "UNEXPECTED", "BADARMOR"}:
            raise Rejected("bad-format", "it holds no OpenPGP signature")
    if words.count("NEWSIG") != 1:
        raise Rejected(
            "several-signatures", f"it holds {words.count('NEWSIG')} signatures, not one"
        )
    valid = [rest.split(" ") for word, rest in lines if word == "VALIDSIG"]
    if returncode != 0 or len(valid) != 1 or words.count("GOODSIG") != 1:
        raise Rejected("bad-signature", f"gpgv does not call it good (exit status {returncode})")
    fields = valid[0]
    if len(fields) < 10 or not _FPR.fullmatch(fields[0]) or not _FPR.fullmatch(fields[9]):
        raise Rejected("bad-format", "gpgv's answer is malformed")
    if fields[8] != "00":
        raise Rejected(
            "wrong-class", f"the signature is of class {printable(fields[8], 8)}, not 00"
        )
    if weak := _WEAK_HASHES.get(fields[7]):
        raise Rejected("weak-hash", f"the signature uses {weak}")
    key = keys.get(fields[0])
    if key is not None and key.algorithm in _RSA and key.bits < _BITS:
        raise Rejected("weak-key", f"key {fields[0]} has {key.bits} bits; at least {_BITS} count")
    if key is not None and key.algorithm == 17:
        raise Rejected("weak-key", f"key {fields[0]} is a DSA key")
    return fields[0], fields[9], int(fields[2]) if fields[2].isdigit() else 0
