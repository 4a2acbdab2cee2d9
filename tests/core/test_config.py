import os

import pytest

from bootc_core import config
from bootc_core.errors import ConfigError


def write(root, where, name, text):
    directory = root / where / "bootc/config.d"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    return path


def test_defaults_without_files(tmp_path):
    assert config.load(tmp_path) == config.Config()


def test_later_names_win_and_etc_replaces_the_same_name(tmp_path):
    write(
        tmp_path, "usr/lib", "10-a.toml", '[storage]\nbackend = "one"\n[plugins]\nblocked = ["x"]\n'
    )
    write(tmp_path, "usr/lib", "20-b.toml", '[boot]\nbootloader = "vendor"\n')
    write(tmp_path, "etc", "10-a.toml", '[storage]\nbackend = "two"\n')
    path = write(tmp_path, "etc", "30-c.toml", '[boot]\nbootloader = "grub"\n')
    loaded = config.load(tmp_path)
    assert (loaded.backend, loaded.bootloader, loaded.blocked) == ("two", "grub", ())
    assert loaded.sources["boot.bootloader"] == str(path)


def test_a_link_to_dev_null_masks(tmp_path):
    write(tmp_path, "usr/lib", "10-a.toml", '[storage]\nbackend = "one"\n')
    directory = tmp_path / "etc/bootc/config.d"
    directory.mkdir(parents=True)
    (directory / "10-a.toml").symlink_to("/dev/null")
    assert config.load(tmp_path) == config.Config()


def test_c01_all_errors_at_once_with_file_and_key(tmp_path):
    write(tmp_path, "etc", "10-a.toml", '[storage]\nbackend = 5\ncolour = "red"\n[extra]\nx = 1\n')
    write(tmp_path, "etc", "20-b.toml", "[plugins\n")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path)
    error = caught.value
    assert error.catalogue == "CFG"
    assert "10-a.toml: storage.backend must be a string, found 5" in error.found
    assert "10-a.toml: storage.colour is not a key" in error.found
    assert "10-a.toml: [extra] is not a section" in error.found
    assert "20-b.toml: " in error.found
    assert "line 1" in error.found


def test_c02_a_fifo_a_directory_a_huge_file_and_bad_bytes(tmp_path):
    path = write(tmp_path, "etc", "10-a.toml", "")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        config.load(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        config.load(tmp_path)
    path.rmdir()
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="too large"):
        config.load(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path)
    assert "not UTF-8" in caught.value.found


@pytest.mark.root
def test_c03_what_others_can_write_is_refused(tmp_path):
    path = write(tmp_path, "etc", "10-a.toml", '[storage]\nbackend = "one"\n')
    path.chmod(0o666)
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path)
    assert caught.value.reference == "unsafe-permissions"
    assert "mode 0666" in caught.value.found
    path.chmod(0o644)
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=r"config\.d can be changed"):
        config.load(tmp_path)
    path.parent.chmod(0o755)
    os.chown(path, 1000, -1)
    with pytest.raises(ConfigError, match="can be changed by others"):
        config.load(tmp_path)
