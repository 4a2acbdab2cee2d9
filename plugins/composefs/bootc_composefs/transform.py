"""From the merged layers to the tree that is imaged: what every image loses, and what a bootable one loses and gains.

Layers carry what a container build left behind: modes of the root that no layer set, files in ``/run``, attributes of the build
host. ``oci_transform`` gives all images of one content the same tree, ``boot_transform`` empties ``/boot`` and ``/sysroot``
(their content is provided at run time) and labels every file by the image's own SELinux policy (``selinux``). The digest of the
result is the identity of the deployment, so every detail here is as the original's composefs backend does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bootc_core.errors import ContentError
from bootc_core.models.tree import Node, Xattrs, walk
from bootc_core.oci import selinux

_KEPT: Final = b"security.capability"


def oci_transform(root: Node, *, keep_user_xattrs: bool = False) -> None:
    """Change a merged tree in place into that of its plain image. Doing it twice is the same as once.

    1. The root takes ``/usr``'s mode, owner, time and attributes.
    2. ``/run`` is emptied and takes ``/usr``'s time.
    3. Attributes but ``security.capability`` (and ``user.*`` if asked for) are dropped.

    Raises:
        ContentError: there is no ``/usr``.
    """
    usr = _directory(root, b"usr")
    root.mode, root.uid, root.gid = usr.mode, usr.uid, usr.gid
    root.mtime, root.mtime_ns, root.xattrs = usr.mtime, usr.mtime_ns, usr.xattrs
    run = (root.children or {}).get(b"run")
    if run is not None and run.children is not None:
        run.children.clear()
        run.mtime, run.mtime_ns = usr.mtime, usr.mtime_ns
    known: dict[Xattrs, Xattrs] = {(): ()}
    for _, node in walk(root):
        kept = known.get(node.xattrs)
        if kept is None:
            kept = known[node.xattrs] = tuple(
                (name, value)
                for name, value in node.xattrs
                if name == _KEPT or (keep_user_xattrs and name.startswith(b"user."))
            )
        node.xattrs = kept


def boot_transform(root: Node, read_file: Callable[[Node], bytes]) -> None:
    """Change the tree of a plain image in place into that of its bootable image.

    Boot entries are to be collected before: ``/boot`` is empty afterwards.

    Args:
        root: after ``oci_transform``.
        read_file: gives the content of a regular file with an object (the SELinux policy's); its errors pass through.

    Raises:
        ContentError: ``/usr``, ``/boot`` or ``/sysroot`` is missing, or the SELinux policy cannot be used.
    """
    usr = _directory(root, b"usr")
    for name in (b"boot", b"sysroot"):
        directory = _directory(root, name)
        if directory.children:
            directory.children.clear()
        directory.mtime = usr.mtime  # its own nanoseconds stay, as in the original
    policy = selinux.load_policy(root, read_file)
    if policy is None:
        selinux.strip_labels(root)
    else:
        selinux.label(root, policy)


def _directory(root: Node, name: bytes) -> Node:
    node = (root.children or {}).get(name)
    if node is None or node.children is None:
        path = "/" + name.decode()
        raise ContentError(
            f"the image has no directory {path}",
            reference="missing-directory",
            expected="the root file system of an operating system",
            found="nothing of that name" if node is None else "something else of that name",
            hint=f"is it made to be booted? If so, add `RUN mkdir -p {path}` to its Containerfile",
        )
    return node
