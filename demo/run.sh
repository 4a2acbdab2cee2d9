#!/bin/bash
# The main job on a host in a directory: switch to an image from a registry, upgrade, look, go back.
#
#   demo/run.sh                        a small Debian, built here, served by docker-registry on loopback (needs root)
#   IMAGE=quay.io/... demo/run.sh      the same with an image of yours. NEXT=... is switched to then; without it a next
#                                      version is made: the image with one more layer
#
# HOST_DIR= is where the host lives (default .cache/demo/host; made anew each time), SUITE= the Debian release to build.
# Every command that changes the host is shown with a "+". Exit status 0: everything was as it should be.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=.cache/demo
host=${HOST_DIR:-$cache/host}
failures=0
registry_pid=

say() { printf '\n== %s\n' "$*"; }
bootc() {
    printf '+ bootc %s\n' "$*"
    .venv/bin/bootc "$@"
}
status() { # for people, also where this is logged
    if [ -t 1 ]; then bootc status --sysroot "$host"; else bootc status --sysroot "$host" --format humanreadable; fi
}
check() { # check WHAT COMMAND...
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then
        printf '   ok: %s\n' "$what"
    else
        printf '   NOT SO: %s\n' "$what"
        failures=$((failures + 1))
    fi
}
contains() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
absent() { [ ! -e "$1" ] && [ ! -L "$1" ]; }

# A field of `bootc status --json`: field booted.image.version
field() {
    .venv/bin/bootc status --sysroot "$host" --json | .venv/bin/python -I -c '
import json, sys
value = json.load(sys.stdin)["status"]
for key in sys.argv[1].split("."):
    value = value[key] if value is not None else None
print("" if value is None else value)' "$1"
}
is() { [ "$(field "$1")" = "$2" ]; }
etc() { printf '%s/state/deploy/%s/etc' "$host" "$(field "$1.composefs.verity")"; }

stop_registry() {
    [ -z "$registry_pid" ] || kill "$registry_pid" 2>/dev/null || true
    registry_pid=
}
trap stop_registry EXIT
trap 'exit 130' INT TERM

start_registry() {
    # A free port of the kernel's choice; the registry must then be the one that answers there.
    port=$(.venv/bin/python -I -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    rm -rf "$cache/registry"
    mkdir -p "$cache/registry"
    cat >"$cache/registry.yml" <<EOF
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $PWD/$cache/registry}}
http: {addr: "127.0.0.1:$port"}
EOF
    docker-registry serve "$cache/registry.yml" >"$cache/registry.log" 2>&1 </dev/null &
    registry_pid=$!
    for _ in $(seq 100); do
        kill -0 "$registry_pid" 2>/dev/null || break
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "docker-registry answers on 127.0.0.1:$port (log: $cache/registry.log)"
            return
        fi
        sleep 0.1
    done
    echo "docker-registry did not start:" >&2
    tail -n 5 "$cache/registry.log" >&2
    exit 1
}
push() { # push NAME TAG: an image of the layout into the registry
    skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$layout:$1" "docker://$2"
}

# --- what is needed --------------------------------------------------------------------------------------------------
if [ -z "${IMAGE:-}" ] && [ "$(id -u)" != 0 ]; then
    cat >&2 <<EOF
The demonstration builds a Debian image with its owners and devices, which needs root: run it as root (in a scratch
machine or container, if you like), or give it an image that exists: IMAGE=quay.io/... $0
EOF
    exit 2
fi
if [ -z "${IMAGE:-}" ] && ! command -v apt-get >/dev/null; then
    cat >&2 <<EOF
The demonstration builds a Debian image from the machine's own apt sources, so it needs Debian 12 or newer (apt-get,
mmdebstrap, skopeo, docker-registry). On another system give it an image that exists: IMAGE=quay.io/... $0
EOF
    exit 2
fi
say "Setting up"
if [ -z "${IMAGE:-}" ]; then
    scripts/setup.sh demo
elif [ -n "${NEXT:-}" ] || ! scripts/setup.sh serve; then
    scripts/setup.sh run
    served=
else
    served=yes
fi

# --- images and registry ---------------------------------------------------------------------------------------------
if [ -z "${IMAGE:-}" ]; then
    say "Two versions of a small Debian with kernel (built once, then cached)"
    layout=$(python3 demo/build_images.py "$cache" ${SUITE:+"$SUITE"})
    say "A registry"
    start_registry
    image=127.0.0.1:$port/os/debian:stable
    push v1 "$image"
    echo "version 1 is published as $image"
else
    image=$IMAGE
fi

# --- the story -------------------------------------------------------------------------------------------------------
say "An empty directory becomes a host that will boot $image"
mkdir -p "$cache"
rm -rf "$host"
bootc switch --sysroot "$host" --no-signature-verification "$image"
status
first=$(field booted.image.imageDigest)
check "the image boots next" test -n "$first"

say "Life on that host: a setting edited, one deleted, one added, data in /var"
here=$(etc booted)
if [ -z "${IMAGE:-}" ]; then
    echo "edited on this host" >"$here/demo/edited"
    rm "$here/demo/deleted"
fi
echo "made on this host" >"$here/local-setting"
echo "data of this host" >"$host/state/os/default/var/data"
echo "in $here and $host/state/os/default/var"

if [ -z "${IMAGE:-}" ]; then
    say "Version 2 is published under the same tag"
    push v2 "$image"
    bootc upgrade --check --sysroot "$host" | tee "$cache/check.txt"
    check "the update was announced" grep -q "^Update available" "$cache/check.txt"
    check "and nothing has changed yet" is booted.image.imageDigest "$first"

    say "The upgrade"
    bootc upgrade --sysroot "$host"
elif [ -n "${NEXT:-}" ]; then
    say "On to $NEXT"
    bootc upgrade --check --sysroot "$host"
    bootc switch --sysroot "$host" --no-signature-verification "$NEXT"
else
    say "The upgrade (there is one only if somebody published it just now)"
    bootc upgrade --check --sysroot "$host"
    bootc upgrade --sysroot "$host"
    if [ -n "$served" ]; then
        say "So a next version is made: the same image with one more layer, in a registry of its own"
        layout=$cache/given
        rm -rf "$layout"
        case $image in oci:* | oci-archive:* | dir:* | docker-archive:* | docker://*) from=$image ;; *) from=docker://$image ;; esac
        plain=
        case $image in 127.0.0.1* | localhost*) plain=--src-tls-verify=false ;; esac
        skopeo --insecure-policy copy --quiet $plain "$from" "oci:$layout:given"
        python3 demo/derive.py "$layout" given derived
        start_registry
        push derived "127.0.0.1:$port/os/derived:latest"
        bootc switch --sysroot "$host" --no-signature-verification "127.0.0.1:$port/os/derived:latest"
    fi
fi
status
second=$(field booted.image.imageDigest)
now=$(etc booted)
check "local setting survived" contains "$now/local-setting" "made on this host"
check "data in /var survived" contains "$host/state/os/default/var/data" "data of this host"
if [ -z "${IMAGE:-}" ]; then
    check "version 2 boots next" is booted.image.version 2
    check "version 1 is kept to go back to" is rollback.image.version 1
    check "edited setting survived" contains "$now/demo/edited" "edited on this host"
    check "deleted setting stayed deleted" absent "$now/demo/deleted"
    check "untouched setting has the new default" contains "$now/demo/untouched" "default of version 2"
    check "new setting arrived" contains "$now/demo/new" "new in version 2"
    check "/var was left alone by version 2" \
        contains "$host/state/os/default/var/lib/demo/seed" "put here when the host was made"
    check "the boot entry has the new kernel argument" grep -rqw "demo.version=2" "$host/boot/loader/entries"
fi

if [ "$first" != "$second" ]; then
    say "And back"
    bootc rollback --sysroot "$host"
    status
    check "the first image boots next again" is booted.image.imageDigest "$first"
    check "the second is kept" is rollback.image.imageDigest "$second"
    check "its settings are as they were left" contains "$(etc booted)/local-setting" "made on this host"
    check "data in /var is still there" contains "$host/state/os/default/var/data" "data of this host"
else
    say "No second image, so there is nothing to go back to (NEXT=... switches to one)"
fi

# --- where to look ---------------------------------------------------------------------------------------------------
boots=$(field booted.composefs.verity)
say "Where to look"
cat <<EOF
the boot menu             $host/boot/loader/entries/
/etc of each deployment   $host/state/deploy/*/etc/
/var                      $host/state/os/default/var/
files by their digest     $host/composefs/objects/
what the registry saw     $cache/registry.log

The system that boots next, mounted (as root, Linux 6.5 or newer):
  mkdir -p /tmp/meta /tmp/root
  mount -t erofs -o ro,loop $host/composefs/images/${boots:0:12}* /tmp/meta
  mount -t overlay -o ro,metacopy=on,redirect_dir=on,lowerdir=/tmp/meta::$host/composefs/objects bootc /tmp/root
EOF
if [ "$failures" -gt 0 ]; then
    say "$failures of the checks above failed"
    exit 1
fi
say "All as it should be"
