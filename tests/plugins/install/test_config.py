from __future__ import annotations

import json
from pathlib import Path

import pytest
from bootc_install import config
from bootc_install.config import InstallConfig, load, merge, parse, to_json

from bootc_core.errors import ConfigError

EVERYTHING = """[install]
root-fs-type = "xfs"
filesystem.root.type = "ext4"
block = ["tpm2-luks", "direct"]
kargs = ["console=ttyS0", "quiet"]
karg-deletes = ["nosmt"]
match-architectures = ["x86_64", "aarch64"]
ostree.bls-append-except-default = "except"
stateroot = "fedora"
root-mount-spec = ""
boot-mount-spec = "UUID=1234"
bootupd.skip-boot-uuid = true
bootloader = "grub-cc"
discoverable-partitions = false
enforce-container-sigpolicy = true
"""


def test_every_key():
    assert parse("a.toml", EVERYTHING.encode()) == InstallConfig(
        root_fs_type="ext4",
        block=("tpm2-luks", "direct"),
        kargs=("console=ttyS0", "quiet"),
        karg_deletes=("nosmt",),
        bls_append="except",
        stateroot="fedora",
        root_mount_spec="",
        boot_mount_spec="UUID=1234",
        skip_boot_uuid=True,
        bootloader="grub-cc",
        discoverable=False,
        enforce=True,
    )


def test_the_newer_spelling_of_the_filesystem_wins_in_any_order():
    for first, second in ((0, 1), (1, 0)):
        lines = ['root-fs-type = "xfs"', '[install.filesystem.root]\ntype = "btrfs"']
        text = f"[install]\n{lines[0]}\n{lines[1]}" if first < second else None
        if text is None:
            text = '[install.filesystem.root]\ntype = "btrfs"\n[install]\nroot-fs-type = "xfs"\n'
        assert parse("a", text.encode()).root_fs_type == "btrfs"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("not toml", "a.toml"),
        ("[other]\nx = 1\n", "unknown key other"),
        ("[install]\nfoo = 1\n", "unknown key foo"),
        ("[install.filesystem]\nhome = 1\n", "unknown key filesystem.home"),
        ('[install]\nroot-fs-type = "zfs"\n', "root-fs-type = zfs"),
        ('[install]\nbootloader = "lilo"\n', "bootloader = lilo"),
        ('[install]\nblock = ["raid"]\n', "block has raid"),
        ("[install]\nkargs = [1]\n", "kargs = [1]"),
        ('[install]\ndiscoverable-partitions = "yes"\n', "discoverable-partitions = yes"),
    ],
)
def test_what_is_wrong_is_named(text, names):
    with pytest.raises(ConfigError) as caught:
        parse("a.toml", text.encode())
    assert names in f"{caught.value.message} {caught.value.found}"
    assert "a.toml" in caught.value.message


def test_arguments_add_up_and_the_rest_is_replaced():
    one = InstallConfig(kargs=("a",), karg_deletes=("x",), block=("direct",), stateroot="one")
    two = InstallConfig(kargs=("b",), block=("tpm2-luks",))
    both = merge(one, two)
    assert both.kargs == ("a", "b")
    assert both.karg_deletes == ("x",)
    assert both.block == ("tpm2-luks",)
    assert both.stateroot == "one"


def write(root: Path, place: str, name: str, text: str) -> None:
    path = root / place / "bootc/install" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[install]\n{text}\n")


def test_files_of_later_directories_mask_and_all_are_read_by_name(tmp_path):
    write(tmp_path, "usr/lib", "20-b.toml", 'kargs = ["masked"]')
    write(tmp_path, "etc", "20-b.toml", 'kargs = ["b"]\nstateroot = "etc"')
    write(tmp_path, "run", "10-a.toml", 'kargs = ["a"]\nstateroot = "run"')
    write(tmp_path, "usr/local/lib", "30-c.toml", 'kargs = ["c"]\nmatch-architectures = ["s390x"]')
    found = load(tmp_path, "x86_64")
    assert found.kargs == ("a", "b")
    assert found.stateroot == "etc"
    assert load(tmp_path, "s390x").kargs == ("a", "b", "c")


def test_json_is_the_originals_field_by_field():
    nothing = {
        "block": None,
        "boot-mount-spec": None,
        "bootloader": None,
        "bootupd": None,
        "discoverable-partitions": None,
        "enforce-container-sigpolicy": None,
        "filesystem": None,
        "match-architectures": None,
        "ostree": None,
        "root-fs-type": None,
        "root-mount-spec": None,
        "stateroot": None,
    }
    assert json.loads(to_json(InstallConfig(), everything=True)) == nothing
    text = to_json(parse("a", EVERYTHING.encode()), everything=False)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text) == {
        **nothing,
        "block": ["tpm2-luks", "direct"],
        "boot-mount-spec": "UUID=1234",
        "bootloader": "grub-cc",
        "bootupd": {"skip-boot-uuid": True},
        "discoverable-partitions": False,
        "enforce-container-sigpolicy": True,
        "filesystem": {"root": {"type": "ext4"}},
        "ostree": {"bls-append-except-default": "except"},
        "root-fs-type": "ext4",
        "root-mount-spec": "",
        "stateroot": "fedora",
    }
    more = json.loads(to_json(parse("a", EVERYTHING.encode()), everything=True))
    assert more["kargs"] == ["console=ttyS0", "quiet"]
    assert more["karg-deletes"] == ["nosmt"]


def test_documentation_lists_every_key():
    page = (Path(__file__).parents[3] / "docs/install.md").read_text()
    for key in (*config._WORDS, *config._LISTS, *config._FLAGS):
        assert f"`{key}`" in page, key
