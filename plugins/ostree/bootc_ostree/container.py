"""``ostree container image …``: images in an ostree repository, for scripts that ask ostree for them.

The ostree program runs ``ostree-container`` with its own arguments, from /usr/libexec/libostree/ext/ or the path. What deploys
or converts images is ``bootc``'s (``switch --sysroot``, ``image``); asked for that here, it says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bootc_core.errors import BootcError, StorageError, UsageError, printable
from bootc_core.models.reference import ImageReference
from bootc_core.oci import origin as origins
from bootc_ostree import layers, objects
from bootc_ostree.repo import BLOBS, IMAGES, Repo
from bootc_ostree.state import CACHED_KEYS

_ELSEWHERE = {
    "pull": "bootc switch --sysroot DIR --backend ostree IMAGE",
    "deploy": "bootc switch --sysroot DIR --backend ostree IMAGE",
    "copy": "bootc image, or skopeo copy",
    "reexport": "bootc image, or skopeo copy",
}


def _ref(text: str) -> str:
    return f"{IMAGES}/{objects.escape_ref(str(ImageReference.parse(text)))}"


def _metadata(repo: Repo, text: str) -> tuple[str, dict[str, Any]]:
    """The merged commit of an image, and its metadata.

    Raises:
        StorageError: no such image.
    """
    commit = repo.read_ref(_ref(text))
    if commit is None:
        raise StorageError(
            f"no image {printable(text)} in {repo.path}",
            reference="no-image",
            hint="ostree container image list --repo=DIR shows those that are there",
            catalogue="STATE",
        )
    return commit, repo.read_commit(commit)["metadata"]


def _list(repo: Repo, arguments: argparse.Namespace) -> list[str]:
    del arguments
    return sorted(objects.unescape_ref(ref.removeprefix(f"{IMAGES}/")) for ref in repo.refs(IMAGES))


def _show(repo: Repo, arguments: argparse.Namespace) -> list[str]:
    _, metadata = _metadata(repo, arguments.image)
    key = "ostree.container.image-config" if arguments.config else "ostree.manifest"
    document = json.loads(str(metadata.get(key, "null")))
    return [json.dumps(document, sort_keys=True, separators=(",", ":"))]


def _history(repo: Repo, arguments: argparse.Namespace) -> list[str]:
    _, metadata = _metadata(repo, arguments.image)
    manifest = origins.document(str(metadata["ostree.manifest"]).encode())
    config = origins.document(str(metadata["ostree.container.image-config"]).encode())
    made = [one for one in config.get("history") or () if not one.get("empty_layer")]
    lines = [f"{'ID':<20}{'SIZE':>12}  CREATED BY"]
    for number, layer in enumerate(manifest["layers"]):
        by = str(made[number].get("created_by", "")) if number < len(made) else ""
        digest = str(layer["digest"]).rpartition(":")[2][:18]
        lines.append(f"{digest:<20}{layer['size']:>12}  {printable(by, 80)}".rstrip())
    return lines


def _clear(repo: Repo, arguments: argparse.Namespace) -> list[str]:
    commit, _ = _metadata(repo, arguments.image)
    kept = repo.read_detached(commit)
    if kept is not None and set(CACHED_KEYS) & set(kept):
        rest = {key: value for key, value in kept.items() if key not in CACHED_KEYS}
        repo.write_detached(commit, rest)
    return []


def _remove(repo: Repo, arguments: argparse.Namespace) -> list[str]:
    for image in arguments.images:
        _metadata(repo, image)
    for image in arguments.images:
        repo.remove_ref(_ref(image))
    told = [f"Removed images: {len(arguments.images)}"]
    return told if arguments.skip_gc else [*told, *_prune_layers(repo, arguments)]


def _prune_layers(repo: Repo, arguments: argparse.Namespace) -> list[str]:
    """Layers that neither an image nor a deployment needs lose their refs; ``ostree prune`` then frees their space."""
    del arguments
    kept = {commit for ref, commit in repo.refs("").items() if not ref.startswith(f"{BLOBS}/")}
    wanted, _ = layers.needed(repo, kept)
    unneeded = [ref for ref in repo.refs(BLOBS) if ref not in wanted]
    for ref in unneeded:
        repo.remove_ref(ref)
    return [f"Removed layers: {len(unneeded)}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ostree container", description="Images in an ostree repository."
    )
    groups = parser.add_subparsers(metavar="image", required=True)
    image = groups.add_parser("image", help="images in a repository")
    actions = image.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, text: str, run: Any, argument: str | None = None) -> Any:
        made = actions.add_parser(name, help=text, description=text)
        made.add_argument("--repo", type=Path, required=True, help="the repository")
        if argument is not None:
            many = argument == "images"
            made.add_argument(argument, metavar="IMAGE", nargs="+" if many else None)
        made.set_defaults(run=run)
        return made

    action("list", "Print the images.", _list)
    shown = action("metadata", "Print an image's manifest.", _show, "image")
    shown.add_argument("--config", action="store_true", help="its configuration instead")
    action("history", "Print how an image's layers were made.", _history, "image")
    action("clear-cached-update", "Forget the newest image that was seen.", _clear, "image")
    gone = action("remove", "Remove images, and layers that nothing needs.", _remove, "images")
    gone.add_argument("--skip-gc", action="store_true", help="keep all layers")
    action("prune-layers", "Remove layers that nothing needs.", _prune_layers)
    return parser


def _refuse_what_is_elsewhere(words: Sequence[str]) -> None:
    if len(words) > 1 and words[0] == "image" and words[1] in _ELSEWHERE:
        raise UsageError(
            f"ostree container image {words[1]} is not part of this program",
            hint=_ELSEWHERE[words[1]],
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, or 1 with a message."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["container"]:
        del words[0]  # ostree passes its own
    try:
        _refuse_what_is_elsewhere(words)
        arguments = _parser().parse_args(words)
        path = arguments.repo.resolve()
        if not (path / "config").is_file():
            raise StorageError(
                f"{arguments.repo} is not an ostree repository", reference="no-repository"
            )
        for line in arguments.run(Repo(path.parent.parent, path), arguments):
            print(line)
    except BootcError as problem:
        hint = f"\nhint: {problem.hint}" if problem.hint else ""
        print(f"error: {problem}{hint}", file=sys.stderr)
        return 1
    return 0
