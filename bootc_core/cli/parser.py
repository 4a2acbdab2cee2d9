"""The argument parser: every command, flag and conflict, as the original has them; completion scripts are made from it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bootc_core.models.install import CommandOffer

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


class Parser(argparse.ArgumentParser):
    """Names the nearest command or flag when one is mistyped; exit status 2."""

    def error(self, message: str) -> Any:
        """Print ``message`` with a suggestion and exit with status 2."""
        import difflib

        if "invalid choice" in message or "unrecognized arguments" in message:
            words = message.replace("'", " ").replace(",", " ").split()
            typed = words[words.index("choice:") + 1] if "choice:" in words else words[-1]
            if near := difflib.get_close_matches(typed, _known(self), 1):
                message += f"; did you mean {near[0]}?"
        super().error(message)


def _known(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag and choice of the parser and its commands."""
    found: list[str] = []
    for action in parser._actions:
        found += [*action.option_strings, *map(str, action.choices or ())]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _known(command)
    return found


def _sysroot(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("where")
    group.add_argument(
        "--sysroot",
        metavar="DIR",
        type=Path,
        help="physical root to work on instead of the booted host",
    )
    group.add_argument(
        "--boot-dir", metavar="DIR", type=Path, help="ESP or boot partition (default: DIR/boot)"
    )
    group.add_argument(
        "--config-root",
        metavar="DIR",
        type=Path,
        help="take policy, registries, hooks and settings from DIR (default: /)",
    )
    _selecting(command)


def _selecting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-plugin",
        action="append",
        metavar="NAME",
        help="leave this plugin out, once (for good: [plugins] blocked)",
    )
    command.add_argument(
        "--safe-mode",
        action="store_true",
        help="built-in plugins only, no site hooks, no settings files",
    )


def _deploying(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--override-holds", default="", metavar="REASON", help="go on although gates ask to wait"
    )
    command.add_argument("--reason", default="", help="free text that hooks and the journal see")
    _showing(command)
    _fetching(command)


def _showing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="hide progress bars")
    command.add_argument(
        "--progress-fd", type=int, metavar="FD", help="write progress as JSON lines to this pipe"
    )


def _fetching(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-rate", metavar="RATE", help="bytes a second of all downloads together, e.g. 5M"
    )
    command.add_argument(
        "--max-bytes",
        metavar="SIZE",
        help="fetch at most so much, e.g. 500M; the next run goes on from there",
    )
    command.add_argument(
        "--allow-metered",
        action="store_true",
        help="fetch even where the settings refuse it on a metered line",
    )


def _soft_reboot(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--soft-reboot",
        choices=("required", "auto"),
        default=None,
        metavar="MODE",
        help="restart userspace only: required, or auto (where that is possible)",
    )


def _upgrade(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--check", action="store_true", help="only tell whether there is an update"
    )
    command.add_argument(
        "--apply", action="store_true", help="reboot into the update (a running host only)"
    )
    _soft_reboot(command)
    command.add_argument(
        "--download-only", action="store_true", help="stage the update without making it boot"
    )
    command.add_argument(
        "--from-downloaded",
        action="store_true",
        help="make what is staged boot next, without network access",
    )
    command.add_argument("--tag", metavar="TAG", help="follow another tag of the same repository")
    command.add_argument(
        "--retry-failed",
        action="store_true",
        help="take the newest image although it failed on this host before",
    )
    _deploying(command)
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.deploy:upgrade", command="upgrade")


def _switch(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "target", metavar="TARGET", help="image reference, e.g. quay.io/examplecorp/custom:latest"
    )
    command.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="registry",
        metavar="TRANSPORT",
        help="where TARGET is: " + ", ".join(TRANSPORTS) + " (default: registry)",
    )
    signed = command.add_mutually_exclusive_group()
    signed.add_argument(
        "--no-signature-verification",
        action="store_true",
        help="accept the image unsigned, now and at upgrades",
    )
    signed.add_argument(
        "--enforce-container-sigpolicy",
        action="store_true",
        help="demand a verified signature by policy.json",
    )
    command.add_argument(
        "--retain", action="store_true", help="keep the reference that was followed before"
    )
    command.add_argument(
        "--apply", action="store_true", help="reboot into it (a running host only)"
    )
    _soft_reboot(command)
    command.add_argument(
        "--backend", metavar="NAME", help="storage backend of a new sysroot (default: composefs)"
    )
    command.add_argument(
        "--bootloader", metavar="NAME", help="bootloader of a new sysroot (default: systemd-boot)"
    )
    _deploying(command)
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.deploy:switch", command="switch")


def _plan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "target", nargs="?", metavar="TARGET", help="another image (default: the followed one)"
    )
    command.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="registry",
        metavar="TRANSPORT",
        help="where TARGET is (default: registry)",
    )
    command.add_argument("--tag", metavar="TAG", help="another tag of the followed repository")
    command.add_argument("--json", action="store_true", help="machine form")
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.plan:show", command="plan")


def _rollback(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--apply", action="store_true", help="reboot into it (a running host only)"
    )
    _soft_reboot(command)
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.deploy:rollback", command="rollback")


def _status(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format",
        choices=("humanreadable", "yaml", "json"),
        default=None,
        help="default: humanreadable on a terminal, yaml otherwise",
    )
    command.add_argument("--json", action="store_true", help="the same as --format json")
    command.add_argument(
        "--format-version", metavar="N", default="0", help="version of the machine formats: 0 or 1"
    )
    command.add_argument(
        "--booted", action="store_true", help="leave the staged and rollback deployments out"
    )
    command.add_argument(
        "-v", "--verbose", action="store_true", help="more rows in humanreadable output"
    )
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.status:status", command="status")


def _fsck(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--repair",
        action="store_true",
        help="put back what can be: content from where the images came, records of this program",
    )
    command.add_argument("--json", action="store_true", help="machine form")
    command.add_argument("--quiet", action="store_true", help="hide progress bars")
    command.add_argument("--reason", default="", help="free text that hooks and the journal see")
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.fsck:fsck", command="fsck")


def _plugins(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser(
        "list", help="what is loaded, from where", description="List all plugins."
    )
    listing.add_argument("--json", action="store_true", help="machine form")
    listing.add_argument(
        "--config-root", metavar="DIR", type=Path, help="take settings from DIR (default: /)"
    )
    listing.add_argument(
        "--order", action="store_true", help="per hook: who is called when, and why"
    )
    _selecting(listing)
    listing.set_defaults(run="bootc_core.cli.plugins:list_plugins", command="plugins list")
    new = actions.add_parser(
        "new", help="begin a plugin package", description="Write a plugin package with tests."
    )
    new.add_argument("name", metavar="NAME", help="of the plugin: lower-case letters, digits, _")
    new.add_argument("--directory", metavar="DIR", type=Path, help="where to (default: ./NAME)")
    new.set_defaults(run="bootc_core.testing.authors:new", command="plugins new")
    check = actions.add_parser(
        "check",
        help="prove a plugin package",
        description="Run the contract suites on a package and print a certificate (JSON).",
    )
    check.add_argument("package", metavar="PACKAGE", type=Path, help="directory with its project")
    check.set_defaults(run="bootc_core.testing.authors:check", command="plugins check")


def _hooks(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser(
        "list", help="which run, in which order", description="List the hooks of this site."
    )
    running = actions.add_parser(
        "run", help="rehearse them", description="Run hooks outside of a run."
    )
    running.add_argument("point", metavar="PHASE", help="a phase, or a point such as gate")
    running.add_argument("--dry-run", action="store_true", help="with a context that says so")
    _sysroot(listing)
    running.add_argument(
        "--config-root", metavar="DIR", type=Path, help="take hooks from DIR (default: /)"
    )
    _selecting(running)
    for one, function in ((listing, "list_hooks"), (running, "run_hooks")):
        one.set_defaults(run=f"bootc_core.cli.hooks:{function}", command="hooks")


def _why_not(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="machine form")
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.blockers:show", command="why-not")


def _config(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    showing = actions.add_parser(
        "show",
        help="what is in force, from which file",
        description="Print the merged settings, registries and log-ins (no secrets) with the file each came from.",
    )
    showing.add_argument("--json", action="store_true", help="machine form")
    showing.add_argument(
        "--config-root", metavar="DIR", type=Path, help="take settings from DIR (default: /)"
    )
    showing.set_defaults(run="bootc_core.cli.config:show", command="config show")


def _trust(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)

    def action(name: str, text: str, help_: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(name, help=help_, description=text)
        run = f"bootc_core.cli.trust:{name.replace('-', '_')}"
        made.set_defaults(run=run, command=f"trust {name}")
        return made

    adding = action(
        "add",
        "Make signatures of a repository count: show the files that do it, then write them.",
        "demand signatures of a repository",
    )
    adding.add_argument("repository", metavar="REPOSITORY", help="e.g. quay.io/acme/os")
    who = adding.add_argument_group("who signs (one of)")
    who.add_argument("--key", metavar="FILE", help="public key of cosign, PEM")
    who.add_argument("--gpg", metavar="FILE", help="OpenPGP public key")
    who.add_argument("--identity", metavar="NAME", help="e-mail address or URI; * within a part")
    adding.add_argument("--issuer", metavar="URL", help="who vouches for the identity")
    adding.add_argument("--trusted-root", metavar="FILE", help="sigstore trusted root, JSON")
    adding.add_argument("--rekor", metavar="FILE", help="log key; signatures by key must be logged")
    adding.add_argument("--lookaside", metavar="URL", help="where OpenPGP signatures are")
    adding.add_argument("--max-age", metavar="AGE", help="refuse older signatures, e.g. 30d")
    adding.add_argument("--yes", action="store_true", help="write without asking")
    adding.add_argument("--dry-run", action="store_true", help="only show the files")
    adding.add_argument("--config-root", metavar="DIR", type=Path, help="write beneath DIR")
    showing = action(
        "show",
        "Show who signed each deployed image, and which rule accepted it.",
        "why images were accepted",
    )
    showing.add_argument("--json", action="store_true", help="machine form")
    _sysroot(showing)
    again = action(
        "recheck",
        "Check the kept signatures of each deployed image again, without network.",
        "check what is deployed again, offline",
    )
    again.add_argument(
        "--strict", action="store_true", help="an image without kept signatures fails too"
    )
    _sysroot(again)
    why = action(
        "explain",
        "Say which rules count for an image, and what they say of it now.",
        "what the policy says of an image, and why",
    )
    why.add_argument("image", metavar="IMAGE", help="image reference")
    why.add_argument(
        "--offline", action="store_true", help="only the rules; do not look at the image"
    )
    why.add_argument(
        "--enforce", action="store_true", help="as under --enforce-container-sigpolicy"
    )
    _sysroot(why)
    down = action(
        "permit-downgrade",
        "Let the next image of a name be older than the one before, once.",
        "take one older image",
    )
    down.add_argument("image", metavar="IMAGE", help="image reference by tag")
    down.add_argument("--reason", default="", help="kept in the log of downgrades")
    _sysroot(down)
    anew = action(
        "pin",
        "Begin the memory of versions anew where it was lost; check first what the host runs.",
        "begin the memory of versions anew",
    )
    anew.add_argument("--reason", default="", help="free text")
    _sysroot(anew)


def _finalize_staged(command: argparse.ArgumentParser) -> None:
    _sysroot(command)
    command.set_defaults(
        run="bootc_core.cli.host:finalize_staged", command="composefs-finalize-staged"
    )


def _image(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser(
        "list", help="what is deployed", description="List images of deployments and bound ones."
    )
    listing.add_argument(
        "--type", choices=("all", "logical", "host"), default="all", help="default: all"
    )
    listing.add_argument(
        "--format", choices=("table", "json"), default="table", help="default: table"
    )
    _sysroot(listing)
    listing.set_defaults(run="bootc_core.cli.image:list_images", command="image list")
    storing = actions.add_parser(
        "copy-to-storage",
        help="a deployed image, to podman's storage",
        description="Copy a deployed image to podman's storage, to run it or to build upon it.",
    )
    storing.add_argument(
        "--target", metavar="NAME", default="localhost/bootc", help="default: localhost/bootc"
    )
    pushing = actions.add_parser(
        "push",
        help="a deployed image, to anywhere",
        description="Copy a deployed image to a registry, an archive, a directory or podman's storage.",
    )
    pushing.add_argument(
        "target", metavar="TARGET", help="e.g. docker://quay.io/acme/os:1, oci-archive:os.tar"
    )
    for one, function in ((storing, "copy_to_storage"), (pushing, "push")):
        one.add_argument(
            "--source", metavar="IMAGE", help="another deployed image (default: the booted one)"
        )
        _showing(one)
        _sysroot(one)
        one.set_defaults(run=f"bootc_core.cli.image:{function}", command="image")
    copying = actions.add_parser(
        "copy",
        help="any image, from anywhere to anywhere",
        description="Copy an image, e.g. to a USB stick: bootc image copy quay.io/acme/os:1 oci:/mnt/os",
    )
    copying.add_argument("source", metavar="SOURCE", help="e.g. quay.io/acme/os:1")
    copying.add_argument("target", metavar="TARGET", help="e.g. oci:/mnt/os, oci-archive:os.tar")
    copying.add_argument(
        "--no-signature-verification", action="store_true", help="copy it unsigned, too"
    )
    copying.add_argument(
        "--config-root",
        metavar="DIR",
        type=Path,
        help="take policy, registries and settings from DIR (default: /)",
    )
    _showing(copying)
    _fetching(copying)
    _selecting(copying)
    copying.set_defaults(run="bootc_core.cli.image:copy", command="image copy")


def _usr_overlay(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--read-only",
        action="store_true",
        help="read-only for the host; who has a mount namespace of his own can remount it",
    )
    command.set_defaults(run="bootc_core.cli.overlay:usr_overlay", command="usr-overlay")


def _edit(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-f", "--filename", metavar="FILE", type=Path, help="take the document from FILE"
    )
    _deploying(command)
    _sysroot(command)
    command.set_defaults(run="bootc_core.cli.edit:edit", command="edit")


def _internals(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    boot = actions.add_parser(
        "boot-complete",
        help="call this boot good or bad",
        description="After boot: run the health checks of a new deployment, and act on them.",
    )
    _sysroot(boot)
    boot.set_defaults(run="bootc_core.cli.host:boot_complete", command="internals boot-complete")
    deadline = actions.add_parser(
        "boot-deadline",
        help="give this boot up",
        description="When a new deployment was not found healthy in time: back to the one before.",
    )
    _sysroot(deadline)
    deadline.set_defaults(
        run="bootc_core.cli.host:boot_deadline", command="internals boot-deadline"
    )
    fstab = actions.add_parser(
        "fixup-etc-fstab",
        help="mark / read-only in /etc/fstab",
        description="Add ro to the line of / in /etc/fstab.",
    )
    fstab.set_defaults(run="bootc_core.host.fstab:fix", command="internals fixup-etc-fstab")


def _completion(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=("bash", "elvish", "fish", "powershell", "zsh"))
    command.set_defaults(run="bootc_core.cli.completion:completion", command="completion")


_COMMANDS = (
    (
        "upgrade",
        ("update",),
        "Fetch the newest image of the followed reference and make it boot next.",
        _upgrade,
    ),
    ("switch", (), "Follow another image: deploy it and make it boot next.", _switch),
    ("plan", (), "Show what an upgrade or switch would fetch, need and change.", _plan),
    ("rollback", (), "Make the previous deployment boot next; again: back.", _rollback),
    (
        "edit",
        (),
        "Change the host's specification in an editor: another image, or a rollback.",
        _edit,
    ),
    (
        "usr-overlay",
        ("usroverlay",),
        "Make /usr writable until the next reboot (a running host only).",
        _usr_overlay,
    ),
    ("status", (), "Show what is staged, booted, and kept for rollback.", _status),
    ("fsck", (), "Check everything that is stored, and put back what is damaged.", _fsck),
    ("image", (), "List deployed images, and copy images between places.", _image),
    ("trust", (), "Say whose signatures count, and why images were accepted.", _trust),
    ("config", (), "Show the settings in force.", _config),
    ("why-not", (), "Show everything that stands against an update now.", _why_not),
    ("plugins", (), "Show, begin and prove plugins.", _plugins),
    ("hooks", (), "Show and rehearse the hooks of this site.", _hooks),
    (
        "composefs-finalize-staged",
        (),
        "At shutdown: make what is staged boot next (called by a unit).",
        _finalize_staged,
    ),
    ("internals", (), "What units of this program call.", _internals),
    ("completion", (), "Print a completion script for a shell.", _completion),
)


def names() -> frozenset[str]:
    """The built-in commands."""
    return frozenset(name for name, aliases, *_ in _COMMANDS for name in (name, *aliases))


def build(version: str, more: Sequence[CommandOffer] = ()) -> Parser:
    """The whole parser, with ``more`` commands of plugins."""
    parser = Parser(
        prog="bootc",
        description="Boot and upgrade Linux hosts from container images, transactionally and in place.",
        epilog="Every change is a new deployment beside the old one; `bootc rollback` returns to it.",
    )
    parser.add_argument("--version", action="version", version=f"bootc {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, aliases, text, fill in _COMMANDS:
        fill(commands.add_parser(name, aliases=aliases, help=text, description=text))
    for offer in more:
        command = commands.add_parser(offer.name, help=offer.help, description=offer.help)
        offer.fill(command)
        command.set_defaults(run="bootc_core.cli.commands:run", command=offer.name, offer=offer)
    return parser
