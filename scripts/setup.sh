#!/bin/bash
# Install what a purpose needs: Debian packages (as root, only missing ones) and the project's environment in .venv.
# Usage: setup.sh run|serve|demo|test|vm|bench
#   run    the program alone: python3 with venv         serve  also a registry and skopeo
#   demo   also what builds an image
#   test   also the real components that tests drive    bench  also what makes file systems and peers
#   vm     also firmware for virtual machines
# Without root, or where there is no apt-get, it says what is missing and how to get it (exit status 2).
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck disable=SC2034 # chosen by name below
{
run="python3 python3-venv ca-certificates"
serve="$run skopeo docker-registry"
demo="$run mmdebstrap skopeo docker-registry zstd"
test="$demo ostree fsverity busybox-static podman buildah umoci erofs-utils e2fsprogs dosfstools mtools fdisk xfsprogs btrfs-progs grub-common gnupg strace git attr libcap2-bin make systemd dbus etcd-server golang-docker-credential-helpers pass libarchive-tools spin gcc libc6-dev qemu-system-common user-mode-linux"
vm="$test ovmf"
bench="$demo e2fsprogs"
}
case ${1:-run} in
run | serve | demo | test | vm | bench) purpose=${1:-run}; packages=${!purpose} ;;
*) echo "usage: $0 run|serve|demo|test|vm|bench" >&2; exit 2 ;;
esac

# --- Debian packages -------------------------------------------------------------------------------------------------
if command -v dpkg-query >/dev/null; then
    missing=()
    for package in $packages; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" != 0 ]; then
            echo "Needed and not installed: ${missing[*]}" >&2
            echo "As root:  apt-get update && apt-get install ${missing[*]}" >&2
            exit 2
        fi
        echo "+ apt-get install ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        quiet=(-qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
        log=$(mktemp)
        # Services must not start by being installed: the registry is run by whoever needs it, on a port of its own.
        policy=
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            policy=/usr/sbin/policy-rc.d
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        trap 'rm -f "$log" $policy' EXIT
        { apt-get "${quiet[@]}" update &&
            apt-get "${quiet[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null ||
            { tail -n 20 "$log" >&2; echo "apt-get failed; is the network there?" >&2; exit 1; }
        rm -f "$log" $policy
        trap - EXIT
    fi
else
    # Another distribution, where packages have other names: look for the programs.
    declare -A program=([python3]=python3 [mmdebstrap]=mmdebstrap [skopeo]=skopeo [docker-registry]=docker-registry
        [zstd]=zstd [ostree]=ostree [podman]=podman [buildah]=buildah [umoci]=umoci [erofs-utils]=mkfs.erofs [e2fsprogs]=mkfs.ext4
        [dosfstools]=mkfs.vfat [mtools]=mcopy [gnupg]=gpg [strace]=strace [git]=git [make]=make
        [libarchive-tools]=bsdtar [spin]=spin [gcc]=gcc)
    missing=()
    for package in $packages; do
        name=${program[$package]:-}
        [ -z "$name" ] || command -v "$name" >/dev/null || missing+=("$name")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        echo "Needed and not found: ${missing[*]}" >&2
        echo "Install them with this system's package manager, or use Debian 12 or newer, where this script does it." >&2
        exit 2
    fi
fi

# --- the environment -------------------------------------------------------------------------------------------------
# The interpreter is the system's, as a distribution would ship it; PYTHON= chooses another.
python=${PYTHON:-/usr/bin/python3}
[ -x "$python" ] || python=$(command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "Python 3.11 or newer is needed, $("$python" --version) is what $python is." >&2; exit 2; }
extra=
case $purpose in test | vm) extra='[dev]' ;; esac
# What matters to pip is above the settings of the tools
wanted=$(sed '/^\[tool\./,$d' pyproject.toml | sha256sum | cut -c1-16)
ready() {
    .venv/bin/python -c 'import bootc_core' 2>/dev/null || return 1
    [ -e ".venv/ready-dev-$wanted" ] || { [ -z "$extra" ] && [ -e ".venv/ready-$wanted" ]; }
}
if ! ready; then
    [ -x .venv/bin/pip ] || "$python" -m venv .venv
    echo "+ .venv/bin/pip install -e .$extra"
    .venv/bin/pip install --quiet --disable-pip-version-check --no-input -e ".$extra" </dev/null
    touch ".venv/ready-${extra:+dev-}$wanted"
fi
# Byte code for what was checked out: an editable installation compiles nothing, and each start of the program would.
.venv/bin/python -m compileall -q -j 0 bootc_core plugins
