"""``bootc edit``: change the specification in the host document, and have that done: another image, or a rollback."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bootc_core import limits
from bootc_core.cli import common, deploy
from bootc_core.errors import UsageError, printable
from bootc_core.models.host import HostImage
from bootc_core.render.status import to_yaml

_EDITORS: Final = ("nano", "vim", "vi")
_VERSIONS: Final = ("org.containers.bootc/v1", "org.containers.bootc/v1alpha1")


@dataclass(frozen=True, slots=True)
class Spec:
    """What can be changed: the image (None: not given) and which deployment boots next."""

    image: HostImage | None
    order: str


def parse(data: bytes) -> Spec:
    """The specification in a host document, YAML or JSON; what we do not know is ignored.

    Raises:
        UsageError: it is no such document.
    """
    import yaml

    def bad(found: str) -> UsageError:
        return UsageError(
            "not a host document",
            reference="bad-host-document",
            expected="what bootc status --format yaml prints",
            found=printable(found),
        )

    if len(data) > limits.SETTINGS_FILE_BYTES:
        raise bad("a file that is too large")
    try:
        value = yaml.safe_load(data)
    except yaml.YAMLError as problem:
        raise bad(str(problem).splitlines()[0]) from None
    if not isinstance(value, dict) or value.get("apiVersion") not in _VERSIONS:
        raise bad("another apiVersion" if isinstance(value, dict) else "no object")
    spec = value.get("spec") or {}
    if not isinstance(spec, dict):
        raise bad("a spec that is no object")
    order = spec.get("bootOrder") or "default"
    if order not in {"default", "rollback"}:
        raise bad(f"bootOrder {order}")
    return Spec(_image(spec.get("image"), bad), order)


def _image(value: Any, bad: Any) -> HostImage | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("image"), str):
        raise bad("a spec.image without a name")
    signature = value.get("signature")
    if signature not in {None, "insecure", "containerPolicy"}:
        raise bad("a signature that only ostree remotes have")
    return HostImage(value["image"], str(value.get("transport") or "registry"), signature)


def edited(document: str) -> bytes:
    """The document after the administrator's editor has been over it.

    Raises:
        UsageError: there is no editor, or it failed.
    """
    with tempfile.NamedTemporaryFile(
        "w", suffix=".yaml", prefix="bootc-", encoding="utf-8"
    ) as file:
        file.write(document)
        file.flush()
        command = [*_editor(os.environ.get("EDITOR"), Path("/usr/bin")), file.name]
        try:
            status = subprocess.run(command, check=False).returncode
        except OSError as problem:
            raise UsageError(
                f"cannot start the editor {printable(command[0])}",
                reference="no-editor",
                found=problem.strerror,
            ) from None
        if status:
            raise UsageError(
                "the editor failed", reference="no-editor", found=f"exit status {status}"
            )
        return Path(file.name).read_bytes()  # by name: editors replace files


def _editor(chosen: str | None, programs: Path) -> Sequence[str]:
    if chosen:
        return shlex.split(chosen)
    found = next((name for name in _EDITORS if (programs / name).exists()), None)
    if found is None:
        raise UsageError("$EDITOR is unset, and no backup editor found", reference="no-editor")
    return [str(programs / found)]


def edit(arguments: argparse.Namespace) -> int:
    """``bootc edit``.

    Raises:
        UsageError: a document or a change that makes no sense.
    """
    storage = common.existing(arguments)[2]
    host = storage.read_host(lambda message: None)
    if arguments.filename is not None:
        try:
            data = Path(arguments.filename).read_bytes()
        except OSError as problem:
            raise UsageError(
                f"cannot read {printable(str(arguments.filename))}",
                reference="bad-host-document",
                found=problem.strerror,
            ) from None
    else:
        data = edited(to_yaml(host))
    now, wanted = parse(to_yaml(host).encode()), parse(data)
    if now == wanted:
        sys.stdout.write("Edit cancelled, no changes made.\n")
        return 0
    if now.image != wanted.image and now.order != wanted.order:
        raise UsageError(
            "Invalid state transition: rollback and image change", reference="bad-transition"
        )
    arguments.apply, arguments.soft_reboot = False, None
    if now.order != wanted.order:
        return deploy.rollback(arguments)
    if wanted.image is None:
        raise UsageError("Missing image in specification", reference="bad-transition")
    arguments.target, arguments.transport = wanted.image.image, wanted.image.transport
    arguments.no_signature_verification = wanted.image.signature == "insecure"
    arguments.enforce_container_sigpolicy = wanted.image.signature == "containerPolicy"
    arguments.backend = arguments.bootloader = None
    arguments.retain = False
    return deploy.switch(arguments)
