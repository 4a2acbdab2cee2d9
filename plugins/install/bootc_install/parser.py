"""Options of ``bootc install``, as the original has them."""

from __future__ import annotations

import argparse
from pathlib import Path

FILESYSTEMS = ("xfs", "ext4", "btrfs")
BLOCK_SETUPS = ("direct", "tpm2-luks")
BOOTLOADERS = ("grub", "grub-cc", "systemd", "none")
TRANSPORTS = (
    "registry",
    "docker",
    "oci",
    "oci-archive",
    "docker-archive",
    "containers-storage",
    "dir",
    "docker-daemon",
)


def fill(parser: argparse.ArgumentParser) -> None:
    """Add the actions to the command's parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=type(parser))

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        made.set_defaults(action=name)
        return made

    disk = action("to-disk", "Partition a disk, or a file, and install to it.")
    disk.add_argument("device", metavar="DEVICE", type=Path, help="block device, or a file")
    disk.add_argument("--wipe", action="store_true", help="destroy what is on the disk")
    disk.add_argument("--block-setup", choices=BLOCK_SETUPS, help="how the root is stored")
    disk.add_argument("--filesystem", choices=FILESYSTEMS, help="of the root")
    disk.add_argument(
        "--root-size", metavar="SIZE", help="of the root partition: MiB, or with suffix M, G, T"
    )
    disk.add_argument(
        "--via-loopback", action="store_true", help="DEVICE is a regular file; for any machine"
    )
    _common(disk)
    mounted = action("to-filesystem", "Install to a mounted, empty file system.")
    mounted.add_argument("root", metavar="ROOT", type=Path, help="its mount point")
    _mounted(mounted)
    mounted.add_argument("--replace", choices=("wipe", "alongside"), help="what to do with content")
    mounted.add_argument(
        "--skip-finalize", action="store_true", help="neither trim nor freeze at the end"
    )
    _common(mounted)
    existing = action("to-existing-root", "Install beside the system that is running.")
    existing.add_argument(
        "root", nargs="?", metavar="ROOT", type=Path, default=Path("/target"), help="its root"
    )
    _mounted(existing)
    existing.add_argument(
        "--replace", choices=("wipe", "alongside"), default="alongside", help=argparse.SUPPRESS
    )
    existing.add_argument(
        "--cleanup", action="store_true", help="remove the old system at the first boot"
    )
    _common(existing)
    action("finalize", "Check an installed root that something else has changed.").add_argument(
        "root", metavar="ROOT", type=Path
    )
    action("ensure-completion", "Complete an installation that another installer made.")
    shown = action("print-configuration", "Print the merged installation settings as JSON.")
    shown.add_argument(
        "--all", action="store_true", help="with what external installers should not handle"
    )


def _mounted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root-mount-spec", metavar="SPEC", help="root=; empty: none")
    parser.add_argument("--boot-mount-spec", metavar="SPEC", help="source of /boot; empty: none")
    parser.add_argument(
        "--acknowledge-destructive", action="store_true", help="do not wait before overwriting"
    )


def _common(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("what is installed")
    source.add_argument(
        "--source-imgref",
        metavar="REF",
        help="image with its transport, e.g. oci:/p, docker://quay.io/x (default: the image of this container)",
    )
    source.add_argument("--target-imgref", metavar="NAME", help="image to follow (default: source)")
    source.add_argument(
        "--target-transport", choices=TRANSPORTS, default="registry", metavar="TRANSPORT"
    )
    source.add_argument(
        "--target-no-signature-verification",
        action="store_true",
        help="accept the image and its updates unsigned",
    )
    source.add_argument(
        "--enforce-container-sigpolicy",
        action="store_true",
        help="demand verified signatures of updates",
    )
    source.add_argument(
        "--run-fetch-check", action="store_true", help="see first whether the target can be fetched"
    )
    source.add_argument("--skip-fetch-check", action="store_true", help=argparse.SUPPRESS)
    source.add_argument(
        "--config-root",
        metavar="DIR",
        type=Path,
        help="take policy, registries and settings from DIR (default: /)",
    )
    system = parser.add_argument_group("how")
    system.add_argument("--disable-selinux", action="store_true", help="boot without SELinux")
    system.add_argument("--karg", action="append", default=[], metavar="ARG")
    system.add_argument("--karg-delete", action="append", default=[], metavar="ARG")
    system.add_argument(
        "--root-ssh-authorized-keys", metavar="FILE", type=Path, help="who may log in as root"
    )
    system.add_argument(
        "--generic-image", action="store_true", help="for any machine; leave firmware alone"
    )
    system.add_argument(
        "--bound-images",
        choices=("stored", "pull", "skip"),
        default="stored",
        help="where application images come from",
    )
    system.add_argument("--stateroot", metavar="NAME", help="default: settings, then default")
    system.add_argument("--bootupd-skip-boot-uuid", action="store_true", help=argparse.SUPPRESS)
    system.add_argument("--bootloader", choices=BOOTLOADERS)
    system.add_argument(
        "--composefs-backend", action="store_true", help="store as composefs, not ostree"
    )
    system.add_argument(
        "--backend", metavar="NAME", help="storage backend (default: settings, then composefs)"
    )
    system.add_argument(
        "--allow-missing-verity", action="store_true", help="boot where fs-verity is missing"
    )
    system.add_argument("--uki-addon", action="append", default=[], metavar="NAME")
    system.add_argument("--quiet", action="store_true", help="hide progress bars")
