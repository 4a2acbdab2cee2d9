"""An encrypted root that the machine's TPM opens: LUKS2, by ``cryptsetup`` and ``systemd-cryptenroll``."""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bootc_core.errors import UnsupportedEnvironmentError
from bootc_install.devices import run

_TPM: Final = Path("/dev/tpmrm0")
_NAME: Final = "bootc-install-root"
_KEY_BYTES: Final = 64


def require() -> None:
    """Refuse before anything is destroyed where the root could not be made.

    Raises:
        UnsupportedEnvironmentError: no TPM, or no device mapper.
    """
    for path, what in ((_TPM, "a TPM 2.0"), (Path("/dev/mapper/control"), "the device mapper")):
        if not path.exists():
            raise UnsupportedEnvironmentError(
                "the block setup tpm2-luks is not possible here",
                reference="no-tpm",
                expected=f"{what} ({path})",
                hint="--block-setup direct",
            )


def encrypt(node: str, scratch: Path, stack: ExitStack) -> tuple[str, list[str]]:
    """Encrypt a partition, open it until the stack ends; the opened device and the kernel arguments that open it at boot.

    The key that it is made with is thrown away: only the TPM opens it then.

    Raises:
        StorageError: what the programs say.
    """
    identifier = str(uuid.uuid4())
    key = scratch / "key"
    descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(_KEY_BYTES).hex().encode())
    try:
        by_key = f"--key-file={key}"
        run(["cryptsetup", "luksFormat", "--batch-mode", "--uuid", identifier, by_key, node])
        run(["cryptsetup", "luksOpen", by_key, node, _NAME])
        stack.callback(run, ["cryptsetup", "luksClose", _NAME], check=False)
        run(
            [
                "systemd-cryptenroll",
                "--wipe-slot=all",
                "--tpm2-device=auto",
                f"--unlock-key-file={key}",
                node,
            ]
        )
    finally:
        key.unlink()
    arguments = [f"luks.uuid={identifier}", "luks.options=tpm2-device=auto,headless=true"]
    return f"/dev/mapper/{_NAME}", arguments
