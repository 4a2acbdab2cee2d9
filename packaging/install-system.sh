#!/bin/sh
# Install what belongs to the program in an image besides its Python packages: units, generator, initramfs modules, tmpfiles.
# Usage: packaging/install-system.sh DESTDIR        (the root of an image's tree; / on a system)
set -eu
mkdir -p "${1:?usage: $0 DESTDIR}"
dest=$(cd "$1" && pwd)
dest=${dest%/}
cd "$(dirname "$0")"
put() { # put MODE FILE DIRECTORY
    mkdir -p "$dest$3"
    install -m "$1" "$2" "$dest$3/"
}
for unit in systemd/*.service systemd/*.timer systemd/*.path systemd/*.target; do
    [ ! -e "$unit" ] || put 644 "$unit" /usr/lib/systemd/system
done
for generator in systemd/*-generator; do
    [ ! -e "$generator" ] || put 755 "$generator" /usr/lib/systemd/system-generators
done
for conf in tmpfiles.d/*.conf; do
    [ ! -e "$conf" ] || put 644 "$conf" /usr/lib/tmpfiles.d
done
# Tells that boots of this image may be counted: it calls them good or bad itself.
mkdir -p "$dest/usr/lib/systemd/system/boot-complete.target.requires"
ln -sf ../bootc-boot-complete.service "$dest/usr/lib/systemd/system/boot-complete.target.requires/"
put 755 initramfs-setup /usr/lib/bootc
put 755 dracut/51bootc/module-setup.sh /usr/lib/dracut/modules.d/51bootc
for directory in bound-images.d kargs.d install hooks.d health.d config.d; do
    mkdir -p "$dest/usr/lib/bootc/$directory"
done
# What does nothing but where it is needed is enabled for everybody
mkdir -p "$dest/usr/lib/systemd/system/multi-user.target.wants"
ln -sf ../bootc-boot-menu.service "$dest/usr/lib/systemd/system/multi-user.target.wants/"
put 755 initramfs-tools/hooks/bootc /usr/share/initramfs-tools/hooks
put 755 initramfs-tools/scripts/local-bottom/bootc /usr/share/initramfs-tools/scripts/local-bottom
