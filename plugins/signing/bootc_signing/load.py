"""Which policy.json counts, and reading it: who could change the file decides what boots.

    $CONTAINERS_POLICY_JSON                        alone, if set (this host's configuration only)
    ~/.config/containers/policy.json               ordinary users (this host's configuration only)
    CONFIG_ROOT/etc/containers/policy.json
    CONFIG_ROOT/usr/share/containers/policy.json

The first that exists counts, the others are ignored. None: refuse.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bootc_core import paths
from bootc_core.errors import ConfigError, printable
from bootc_core.fs.trusted import check_owner, read_trusted
from bootc_signing.policy import Policy, parse_policy

VARIABLE = "CONTAINERS_POLICY_JSON"


def candidates(config_root: Path) -> tuple[Path, ...]:
    """Where policy.json may be, first one first; only one file if the environment names it."""
    system = tuple(config_root / name for name in paths.POLICY_FILES)
    if config_root != Path("/"):
        return system  # another system's configuration; neither our environment nor our home
    if named := os.environ.get(VARIABLE):
        return (Path(named),)
    if os.geteuid() == 0:
        return system
    import platformdirs

    return (platformdirs.user_config_path("containers") / "policy.json", *system)


def read_policy(path: Path, config_root: Path) -> bytes | None:
    """The content of a policy file, or None if there is none at ``path``.

    Raises:
        ConfigError: unreadable, not a regular file, too large, leads out of the configuration root,
            goes nowhere, or (for root) somebody else could change it or a directory above it.
    """
    real = Path(os.path.realpath(path))
    root = Path(os.path.realpath(config_root))
    if not real.is_relative_to(root):
        raise ConfigError(
            f"{printable(str(path))} leads out of the configuration root",
            reference="unsafe-link",
            expected=f"a file beneath {printable(str(root))}",
            found=printable(str(real)),
        )
    if real != path and real.is_file():
        check_owner(real, real.stat(), root)  # of a link, both ends count
    data = read_trusted(path, root=config_root)
    if data is None and os.path.lexists(path):
        # falling through to a less strict file would be a way to switch a policy off unseen
        raise ConfigError(
            f"{printable(str(path))} is a symbolic link to no policy",
            reference="unreadable",
            found=printable(str(real)),
            hint="delete it if another policy.json shall count",
        )
    return data


@dataclass(frozen=True, slots=True)
class Loaded:
    """The policy.json that counts.

    Attributes:
        policy: its content; None: there is none anywhere.
        file: its path.
        places: where it may be.
    """

    policy: Policy | None
    file: str | None
    places: tuple[str, ...]


def load_policy(config_root: Path) -> Loaded:
    """The policy.json of the configuration beneath ``config_root``; blocking.

    Raises:
        ConfigError: it cannot be used, which blocks every image.
    """
    places = candidates(config_root)
    names = tuple(printable(str(path)) for path in places)
    for path, name in zip(places, names, strict=True):
        if (data := read_policy(path, config_root)) is not None:
            return Loaded(parse_policy(data, name), name, names)
    if os.environ.get(VARIABLE) and len(places) == 1:
        raise ConfigError(
            f"there is no file {names[0]}",
            reference="unreadable",
            hint=f"it is named by the environment variable {VARIABLE}",
        )
    return Loaded(None, None, names)
