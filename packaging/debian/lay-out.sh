#!/bin/bash
# Give a Debian root file system the layout of a bootc image. The last step of an image's build; to be repeated after changes.
# Usage: lay-out.sh [ROOT]      ROOT: a tree, default / inside a container build
#
#   /usr/lib/modules/VERSION/{vmlinuz,initramfs.img}     /boot is empty
#   /home /root /srv /mnt /opt /usr/local -> /var        what is in /var in an image is only for a host's first boot
#   /usr/lib/sysimage/dpkg                               the package database belongs to the image
set -euo pipefail
trap 'echo "$0: line $LINENO failed: $BASH_COMMAND" >&2' ERR
root=${1:-/}
root=${root%/}
here=$(cd "$(dirname "$0")" && pwd)
inside() { if [ -z "$root" ]; then "$@"; else chroot "$root" "$@"; fi; }

# --- the kernel, and an initramfs for any machine that mounts both kinds of roots --------------------------------------
for vmlinuz in "$root"/boot/vmlinuz-*; do
    [ -e "$vmlinuz" ] || continue
    mv "$vmlinuz" "$root/usr/lib/modules/${vmlinuz##*/vmlinuz-}/vmlinuz"
done
for directory in "$root"/usr/lib/modules/*/; do
    version=$(basename "$directory")
    [ -e "$directory/vmlinuz" ] || { rm -rf "$directory"; continue; }
    inside dracut --force --quiet --no-hostonly --no-hostonly-cmdline --reproducible \
        --add "ostree bootc" --add-drivers "ext4 xfs btrfs overlay erofs loop vfat nls_ascii nls_cp437" \
        --kver "$version" "/usr/lib/modules/$version/initramfs.img"
done
rm -rf "$root"/boot/* "$root"/vmlinuz* "$root"/initrd*

# --- places ------------------------------------------------------------------------------------------------------------
mkdir -p "$root/usr/lib/sysimage" "$root/sysroot" "$root/usr/lib/tmpfiles.d" "$root/usr/lib/ostree" "$root/usr/lib/bootc/debian"
if [ -d "$root/var/lib/dpkg" ] && [ ! -L "$root/var/lib/dpkg" ]; then
    rm -rf "$root/usr/lib/sysimage/dpkg"
    mv "$root/var/lib/dpkg" "$root/usr/lib/sysimage/dpkg"
fi
[ -L "$root/ostree" ] || ln -s sysroot/ostree "$root/ostree"
link() { # link PATH TARGET: a directory becomes a link; what is in it in the image is lost
    if [ ! -L "$root/$1" ]; then
        rm -rf "$root/${1:?}" 2>/dev/null || true
        [ -e "$root/$1" ] || ln -s "$2" "$root/$1"
    fi
}
link home var/home
link root var/roothome
link srv var/srv
link mnt var/mnt
link opt var/opt
link media run/media
link usr/local ../var/usrlocal
find "$root/var" "$root/tmp" "$root/run" -xdev -mindepth 1 -depth \( -type d -empty -o ! -type d \) -delete 2>/dev/null || true
install -d -m 1777 "$root/var/tmp"
install -d "$root/var/lib" "$root/var/roothome"
ln -sfn ../../usr/lib/sysimage/dpkg "$root/var/lib/dpkg"
[ "$here" = "$root/usr/lib/bootc/debian" ] || install -m 755 "$here/lay-out.sh" "$root/usr/lib/bootc/debian/"
cat >"$root/usr/lib/tmpfiles.d/bootc-debian.conf" <<'EOF'
d /var/home 0755 - - -
d /var/roothome 0700 - - -
d /var/srv 0755 - - -
d /var/mnt 0755 - - -
d /var/opt 0755 - - -
d /var/usrlocal 0755 - - -
d /run/media 0755 - - -
d /var/lib 0755 - - -
L /var/lib/dpkg - - - - ../../usr/lib/sysimage/dpkg
EOF
# Debian's ostree is built without composefs
printf '[sysroot]\nreadonly=true\n[composefs]\nenabled=no\n' >"$root/usr/lib/ostree/prepare-root.conf"
: >"$root/etc/machine-id"
