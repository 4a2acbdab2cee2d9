#!/bin/bash
# Put bootc into the root file system of an image: program with its Python packages, units, dracut module.
# Usage: install-program.sh ROOT [EXTRA]      ROOT is / inside a container build; EXTRA: optional Python dependencies, e.g. signing
#
#   /usr/lib/bootc/python/     an environment of its own on the image's python3, compiled
#   /usr/bin/bootc             starts it isolated (-I): nothing in the environment or the working directory changes what runs
#
# Needs python3 (3.11 or newer) with venv in ROOT, and pip with network where this runs.
set -euo pipefail
trap 'echo "$0: line $LINENO failed: $BASH_COMMAND" >&2' ERR
source=$(cd "$(dirname "$0")/.." && pwd)
root=${1:?usage: install-program.sh ROOT [EXTRA]}
extra=${2:-}
root=$(cd "$root" && pwd)
inside() { if [ "$root" = / ]; then "$@"; else chroot "$root" "$@"; fi; }

version=$(inside /usr/bin/python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
home=/usr/lib/bootc/python
site=${root%/}$home/lib/python$version/site-packages
rm -rf "${root%/}$home"
mkdir -p "${root%/}$home/bin" "$site"
ln -s /usr/bin/python3 "${root%/}$home/bin/python3"
cat >"${root%/}$home/pyvenv.cfg" <<EOF
home = /usr/bin
include-system-site-packages = false
version = $version
EOF

# Wheels alone, for the image's Python, whatever the one here is.
pip=${PIP:-pip3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
$pip wheel --quiet --disable-pip-version-check --no-input --no-deps --wheel-dir "$work" "$source"
wheel=$(echo "$work"/bootc-*.whl)
$pip install --quiet --disable-pip-version-check --no-input --no-compile --root-user-action ignore \
    --target "$site" --python-version "$version" --only-binary=:all: --upgrade "$wheel${extra:+[$extra]}"
rm -rf "$site/bin" "$site"/*/tests
# By hash and unchecked: ostree sets all times to zero, and /usr is read-only, so nothing could compile again.
inside "$home/bin/python3" -I -m compileall -q --invalidation-mode unchecked-hash "${site#"${root%/}"}"

mkdir -p "${root%/}/usr/bin" "${root%/}"/usr/lib/bootc/{bound-images.d,kargs.d,install}
cat >"${root%/}/usr/bin/bootc" <<EOF
#!$home/bin/python3 -I
from bootc_core.cli.main import entry

entry()
EOF
chmod 755 "${root%/}/usr/bin/bootc"

"$source/packaging/install-system.sh" "$root"
