#!/bin/bash
# Print the path of a program that runs Debian's real cosign, fetching it first if it is not in the cache. Beside it lies a skopeo
# that signs with sigstore keys, which Debian 12 has switched off in its own.
#
# The packages (the programs, their libraries, their own libc) come from Debian's rolling suite on the mirror that apt on this machine uses,
# are checked by apt as always, and are unpacked into a cache, not installed. No root needed. Exit status 3: not possible here
# (no Debian mirror configured, or not reachable); the reason is on stderr.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
cache=${BOOTC_TEST_CACHE:-$repository/.cache}/cosign
suite=sid
mkdir -p "$cache"
cache=$(cd "$cache" && pwd -P) # the programs are called by it, and a link may go
run=$cache/cosign

give_up() { printf 'cosign.sh: %s\n' "$*" >&2; exit 3; }

works() {
    [ -x "$run" ] && [[ $("$run" --help 2>&1 || true) == *Container\ Signing* ]] &&
        [[ $("$cache/skopeo" --version 2>&1 || true) == skopeo\ version* ]]
}

exec 9>"$cache/lock"
flock 9 # two test runs at once
if works; then
    echo "$run"
    exit 0
fi
for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || give_up "there is no $tool"
done
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || give_up "there is no $keyring (package debian-archive-keyring)"
mirror=$({
    awk '/^URIs:/ { for (i = 2; i <= NF; i++) print $i }' /etc/apt/sources.list.d/*.sources
    awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^[a-z]+:\//) { print $i; break } }' \
        /etc/apt/sources.list /etc/apt/sources.list.d/*.list
} 2>/dev/null | grep -E '/debian/?$' | sed -n 1p || true)
[ -n "$mirror" ] || give_up "apt has no Debian mirror in its sources"

work=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work/root"
: >"$work/status"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
# An empty status file makes apt fetch every library. The mirror's index may be older than the clock allows.
options=(
    -qq
    -o "Dir::Etc::SourceList=$work/sources.list"
    -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$work/lists"
    -o "Dir::State::Status=$work/status"
    -o "Dir::Cache=$work"
    -o Acquire::Check-Valid-Until=false
    -o Acquire::Languages=none
    -o Acquire::Retries=2
    -o APT::Sandbox::User=
    -o Debug::NoLocking=1
)
apt-get "${options[@]}" update >&2 || give_up "the mirror's index cannot be fetched"
apt-get "${options[@]}" --yes --no-install-recommends --download-only install cosign skopeo >&2 ||
    give_up "the packages cannot be fetched"
for package in "$work"/archives/*.deb; do
    dpkg -x "$package" "$work/root"
done
loader=$(find "$work/root" -name 'ld-linux*.so.*' | sed -n 1p)
[ -n "$loader" ] || give_up "the packages hold no libc"
libraries=$(find "$work/root" -name 'lib*.so.*' -printf '%h\n' | sort -u | paste -sd:)
for name in skopeo cosign; do
    program=$(find "$work/root" -type f -path "*/bin/$name" | sed -n 1p)
    [ -n "$program" ] || give_up "the packages hold no $name"
    cat >"$work/run" <<END
#!/bin/sh
exec "${loader/#"$work"/$cache}" --library-path "${libraries//"$work"/$cache}" "${program/#"$work"/$cache}" "\$@"
END
    chmod +x "$work/run"
    mv "$work/run" "$cache/$name"
done
rm -rf "$cache/root"
mv "$work/root" "$cache/root"
works || give_up "the fetched programs do not run on this machine"
echo "$run"
