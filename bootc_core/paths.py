"""Well-known paths, in one place.

System locations are constants (the original's). User locations come from platformdirs and only inside functions, since
importing it costs milliseconds that ``status`` does not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Beneath a sysroot (the physical root)
STATE: Final = "bootc"  # lock, journal/, trust/, cache/, spool/
BOOT: Final = "boot"

# Beneath a configuration root ("/" of the invoking host unless --config-root says otherwise)
CONFIG_DROPINS: Final = ("usr/lib/bootc/config.d", "etc/bootc/config.d")
HOOK_DIRECTORIES: Final = ("usr/lib/bootc/hooks.d", "etc/bootc/hooks.d")
POLICY_FILES: Final = ("etc/containers/policy.json", "usr/share/containers/policy.json")

# Inside an image
IMAGE_HOOKS: Final = "usr/lib/bootc/image-hooks.d"
KARGS_D: Final = "usr/lib/bootc/kargs.d"
MODULES: Final = "usr/lib/modules"
OS_RELEASE: Final = "usr/lib/os-release"

# The running system
LIVE_SYSROOT: Final = Path("/sysroot")
LIVE_STAGED: Final = Path("/run/composefs/staged-deployment")


def user_cache() -> Path:
    """The cache directory of the invoking user (``/var/cache/bootc`` for root)."""
    import os

    if os.geteuid() == 0:
        return Path("/var/cache/bootc")
    import platformdirs

    return Path(platformdirs.user_cache_dir("bootc"))
