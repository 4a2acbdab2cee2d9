#!/bin/bash
# dracut module: mount the root of a composefs deployment, chosen by the kernel argument composefs=ID.
# Opt-in: dracut --add bootc, or add_dracutmodules+=" bootc ".

check() {
    require_binaries fsverity mount umount || return 1
    return 255
}

depends() {
    echo systemd
}

installkernel() {
    hostonly='' instmods erofs overlay loop
}

install() {
    inst_multiple mount umount mkdir mv cat fsverity
    inst_script /usr/lib/bootc/initramfs-setup /usr/lib/bootc/initramfs-setup
    inst_simple "$systemdsystemunitdir/bootc-root-setup.service"
    if [ -e "${dracutsysrootdir-}/usr/lib/composefs/setup-root-conf.toml" ]; then
        inst_simple /usr/lib/composefs/setup-root-conf.toml
    fi
    $SYSTEMCTL -q --root "$initdir" add-wants initrd-root-fs.target bootc-root-setup.service
}
