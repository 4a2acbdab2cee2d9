"""Credential helpers of Docker and podman: ``docker-credential-NAME get``, the server on standard input.

    ▶ registry.example:5000
    ◀ {"ServerURL": …, "Username": "reader", "Secret": "…"}        Username "<token>": Secret is an identity token
    ◀ exit status 1, "credentials not found in native keychain"     this helper has none

The secret is in no error, log or representation.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import Final

from bootc_core import limits, process
from bootc_core.errors import ConfigError, printable
from bootc_core.models.base import parse_json
from bootc_registry.credentials import Credentials

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOT_FOUND: Final = "credentials not found in native keychain"
_TIMEOUT_S: Final = 30.0
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]*")
_PASSED_ON: Final = (
    *("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DBUS_SESSION_BUS_ADDRESS"),
    *("GNUPGHOME", "PASSWORD_STORE_DIR"),
)


def ask_helper(
    name: str, server: str, source: str, environ: Mapping[str, str] = os.environ
) -> Credentials | None:
    """What the helper ``name`` knows about ``server`` (host and port), or None.

    Args:
        name: without ``docker-credential-``.
        server: as the configuration writes it.
        source: the file that names the helper, for errors.
        environ: where programs are looked for (``PATH``).

    Raises:
        ConfigError: ``credential-helper``: there is no such program, it fails, or answers something else.
    """
    program = f"docker-credential-{name}"
    if not _NAME.fullmatch(name):
        raise _broken(printable(program, 80), source, "that is no name of a helper")
    found = shutil.which(program, path=environ.get("PATH") or process.SEARCH_PATH)
    if found is None:
        raise _broken(
            program, source, "there is no such program", "install it, or correct the file"
        )
    extra = {key: environ[key] for key in _PASSED_ON if environ.get(key)}
    done = process.run_blocking(
        [found, "get"],
        stdin=server.encode(),
        timeout_s=_TIMEOUT_S,
        env=process.clean_environment(**extra),
        output_limit=limits.TOKEN_BYTES,
        check=False,
        error=ConfigError,
        label=program,
    )
    if done.timed_out:
        raise _broken(program, source, f"no answer in {_TIMEOUT_S:.0f} seconds")
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip()
        if _NOT_FOUND in said:
            return None
        raise _broken(program, source, printable(said or done.ending(), 160))
    try:
        value = parse_json(done.stdout, program, error=ConfigError, catalogue="CFG")
    except ConfigError:  # its text would quote the answer
        raise _broken(program, source, "the answer is not JSON") from None
    fields = value if isinstance(value, dict) else {}
    user, secret = fields.get("Username"), fields.get("Secret")
    if (
        not isinstance(user, str)
        or not isinstance(secret, str)
        or not _TEXT.fullmatch(user + secret)
    ):
        raise _broken(program, source, "the answer has no usable Username and Secret")
    if not secret:
        return None
    if user == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(user, secret)


def _broken(program: str, source: str, found: str, hint: str | None = None) -> ConfigError:
    return ConfigError(
        f"the credential helper {program}, which {source} names, gives no credentials",
        reference="credential-helper",
        found=found,
        hint=hint or f"try it: echo HOST | {program} get",
    )
