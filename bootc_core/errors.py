"""Every error that this program raises on purpose.

    BootcError
    ├── UsageError           the request makes no sense (exit status 2)
    ├── ConfigError          a file of the administrator: names file, key, line
    ├── PluginError          loading, conflicts, no provider
    ├── TransportError       network and archives; ``retryable`` says whether trying again can help
    ├── VerificationError
    │   ├── Refused          checked, and unacceptable
    │   └── Unverifiable     could not be checked; refused all the same
    ├── ContentError         hostile, damaged or unsupported image content
    ├── StorageError         space, corruption, file system features
    ├── BootError            boot entries, boot partition, kernel arguments
    ├── HookError            a gate, policy or site script broke
    ├── UnsupportedEnvironmentError   this machine or user cannot do that
    └── TransactionError     locked, journal damaged, recovery needed
    Held, Denied             not failures: a gate asked to wait or to stop (raised by the engine only)

An error says what happened (``message``), what was ``expected`` and ``found``, and what to do (``hint``). ``reference`` is a
stable kebab-case name that documentation explains; ``catalogue`` is the class of the catalogue of bad inputs and appears
in the JSON form. This module imports nothing of ours.
"""

from __future__ import annotations

from typing import ClassVar


def printable(text: str | bytes, limit: int = 240) -> str:
    r"""Foreign text, safe for a terminal: control characters and non-UTF-8 bytes escaped, cut at ``limit`` characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    out = []
    for char in text[: limit + 1]:
        if char.isprintable():
            out.append(char)
        elif 0xDC80 <= ord(char) <= 0xDCFF:
            out.append(f"\\x{ord(char) - 0xDC00:02x}")
        else:
            out.append(char.encode("unicode_escape", "backslashreplace").decode())
    return "".join(out[:limit]) + ("…" if len(out) > limit else "")


class BootcError(Exception):
    """Base of all errors that are shown to a person as one line, an optional detail line and a hint."""

    default_reference: ClassVar[str] = "failed"
    default_catalogue: ClassVar[str] = "BUG"

    def __init__(
        self,
        message: str,
        *,
        reference: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
        catalogue: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reference = reference or self.default_reference
        self.expected = expected
        self.found = found
        self.hint = hint
        self.catalogue = catalogue or self.default_catalogue

    def to_json(self) -> dict[str, str]:
        """The machine form: only fields that are set."""
        fields = {
            "reference": self.reference,
            "class": self.catalogue,
            "message": self.message,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }
        return {key: value for key, value in fields.items() if value}


class UsageError(BootcError):
    """The command line or a request is wrong; nothing was tried."""

    default_reference = "usage"
    default_catalogue = "USE"


class ConfigError(BootcError):
    """A configuration or policy file cannot be used; names the file and the key or line."""

    default_reference = "config"
    default_catalogue = "CFG"


class PluginError(BootcError):
    """A plugin cannot be loaded, conflicts with another one, or nobody provides what is needed."""

    default_reference = "plugin"
    default_catalogue = "PLUG"


class TransportError(BootcError):
    """A registry or an archive did not deliver. ``retryable``: the same request may succeed later."""

    default_reference = "transport"
    default_catalogue = "NET"

    def __init__(
        self,
        message: str,
        *,
        reference: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
        catalogue: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(
            message,
            reference=reference,
            expected=expected,
            found=found,
            hint=hint,
            catalogue=catalogue,
        )
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class VerificationError(BootcError):
    """Base of the two ways in which a policy does not accept an image; both fail closed."""

    default_reference = "not-accepted"
    default_catalogue = "POL"


class Refused(VerificationError):
    """Checked, and not acceptable."""

    default_reference = "refused"


class Unverifiable(VerificationError):
    """Could not be checked (missing policy, key, verifier); treated as refused."""

    default_reference = "unverifiable"


class ContentError(BootcError):
    """The image's bytes are damaged (INT), hostile or unsupported (CON), or beyond a bound (LIM)."""

    default_reference = "bad-content"
    default_catalogue = "CON"


class StorageError(BootcError):
    """The sysroot's file system or repository cannot do it: space (SPC), I/O (IO), read-only (RO), state (STATE)."""

    default_reference = "storage"
    default_catalogue = "IO"


class BootError(BootcError):
    """Boot entries, the boot partition, or kernel arguments."""

    default_reference = "boot"
    default_catalogue = "STATE"


class HookError(BootcError):
    """A gate, participant or site script broke (which is neither "wait" nor "stop")."""

    default_reference = "hook-failed"
    default_catalogue = "HOOK"


class UnsupportedEnvironmentError(BootcError):
    """This machine, container or user cannot run the command."""

    default_reference = "environment"
    default_catalogue = "ENV"


class TransactionError(BootcError):
    """Another run holds the lock, or the recorded state needs attention."""

    default_reference = "transaction"
    default_catalogue = "STATE"


class Denied(BootcError):
    """A gate said no. Raised by the engine only."""

    default_reference = "denied"
    default_catalogue = "HOOK"


class Held(BootcError):
    """A gate asked to wait. Raised by the engine only; ``until`` is an RFC 3339 time."""

    default_reference = "held"
    default_catalogue = "HOOK"

    def __init__(self, message: str, *, until: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.until = until
