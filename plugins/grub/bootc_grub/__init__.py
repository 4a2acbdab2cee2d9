"""GRUB: boot entries on the boot file system, and a static menu made of them."""
