"""The kernel in an image (catalogue T52, T53)."""

from __future__ import annotations

import stat

import pytest

from bootc_core import limits
from bootc_core.boot.kernel import find_kernel
from bootc_core.errors import ContentError
from bootc_core.models.tree import Node


def file(data: bytes = b"x") -> Node:
    return Node(stat.S_IFREG | 0o644, size=len(data), inline=data)


def link(target: bytes) -> Node:
    return Node(stat.S_IFLNK | 0o777, inline=target)


def directory(children: dict[bytes, Node] | None = None) -> Node:
    node = Node(stat.S_IFDIR | 0o755)
    node.children = children or {}
    return node


def image(modules: dict[bytes, Node], **more: Node) -> Node:
    lib = directory({b"modules": directory(modules)})
    return directory(
        {b"usr": directory({b"lib": lib}), **{name.encode(): node for name, node in more.items()}}
    )


def test_one_kernel() -> None:
    vmlinuz, initrd = file(b"k"), file(b"i")
    version = b"6.12.9+deb13-amd64"
    kernel = find_kernel(
        image(
            {
                version: directory({b"vmlinuz": vmlinuz, b"initramfs.img": initrd}),
                b"5.10.0": directory({b"modules.dep": file()}),  # modules without a kernel
                b"file": file(),
            }
        )
    )
    assert kernel.version == version.decode()
    assert kernel.vmlinuz is vmlinuz
    assert kernel.initrd is initrd


def test_without_initrd() -> None:
    assert find_kernel(image({b"6.1": directory({b"vmlinuz": file()})})).initrd is None


@pytest.mark.parametrize(
    "root",
    [directory(), image({}), image({b"6.1": directory({b"initramfs.img": file()})})],
)
def test_none(root: Node) -> None:
    with pytest.raises(ContentError) as caught:
        find_kernel(root)
    assert caught.value.reference == "no-kernel"
    assert caught.value.catalogue == "CON"
    assert caught.value.hint


def test_none_names_the_directories() -> None:
    with pytest.raises(ContentError) as caught:
        find_kernel(image({b"6.1": directory(), b"6.2": directory()}))
    assert caught.value.found == "usr/lib/modules: 6.1, 6.2"


def test_two_names_both() -> None:  # T52
    kernel = {b"vmlinuz": file()}
    with pytest.raises(ContentError) as caught:
        find_kernel(image({b"6.1": directory(dict(kernel)), b"6.2": directory(dict(kernel))}))
    assert caught.value.reference == "several-kernels"
    assert caught.value.found == "usr/lib/modules/6.1, usr/lib/modules/6.2"


@pytest.mark.parametrize(
    "name",
    [b"a b", b"6.1\noptions x", b"..x", b"6..1", b"%i", b"{6}", b"-6", b"\xff", b"6" * 200, b"6;x"],
)
def test_unusable_names(name: bytes) -> None:  # T52
    with pytest.raises(ContentError) as caught:
        find_kernel(image({name: directory({b"vmlinuz": file()})}))
    assert caught.value.reference == "bad-kernel-name"
    assert "usr/lib/modules/" in (caught.value.found or "")
    assert "\n" not in (caught.value.found or "")


def test_links_are_resolved_inside_the_image() -> None:  # T53
    real = file(b"kernel")
    modules = {b"6.1": directory({b"vmlinuz": link(b"../../../../../../../boot/vmlinuz")})}
    root = image(modules, boot=directory({b"vmlinuz": real}))
    assert find_kernel(root).vmlinuz is real
    for target in (b"/etc/shadow", b"vmlinuz", b"/", b"../../../../../../proc/kcore"):
        modules[b"6.1"] = directory({b"vmlinuz": link(target)})
        with pytest.raises(ContentError) as caught:
            find_kernel(image(modules))
        assert caught.value.reference == "bad-kernel"
        assert "usr/lib/modules/6.1/vmlinuz" in caught.value.message


@pytest.mark.parametrize(("size", "catalogue"), [(0, "CON"), (limits.KERNEL_BYTES + 1, "LIM")])
def test_impossible_sizes(size: int, catalogue: str) -> None:
    for name in (b"vmlinuz", b"initramfs.img"):
        files = {b"vmlinuz": file(), b"initramfs.img": file()}
        files[name] = Node(stat.S_IFREG | 0o644, size=size, object=b"x")
        with pytest.raises(ContentError) as caught:
            find_kernel(image({b"6.1": directory(files)}))
        assert caught.value.catalogue == catalogue
