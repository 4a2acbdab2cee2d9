"""``bootc config show``: where each value comes from, and no secret."""

from __future__ import annotations

import base64
import json

import pytest

from bootc_core.cli.main import main


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("REGISTRY_AUTH_FILE", "CONTAINERS_REGISTRIES_CONF", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for path, text in (
        ("usr/lib/bootc/config.d/10.toml", '[network]\nmax-rate = "5M"\nmax-bytes = 100\n'),
        ("etc/bootc/config.d/20.toml", '[network]\nmax-rate = "1Mi"\non-metered = "refuse"\n'),
        (
            "etc/containers/registries.conf",
            '[[registry]]\nlocation = "quay.io"\nblocked = true\n'
            '[[registry.mirror]]\nlocation = "mirror.example/quay"\npull-from-mirror = "digest-only"\n',
        ),
        (
            "etc/ostree/auth.json",
            json.dumps({"auths": {"quay.io": {"auth": base64.b64encode(b"user:canary").decode()}}}),
        ),
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o600)
    return tmp_path


def test_every_value_has_its_file(root, capsys, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:canary@proxy.example:3128")
    assert main(["config", "show", "--config-root", str(root), "--json"]) == 0
    out = capsys.readouterr().out
    assert "canary" not in out
    assert base64.b64encode(b"user:canary").decode() not in out
    value = json.loads(out)
    found = {
        (section, row["key"]): (row["value"], row["source"])
        for section, rows in value.items()
        for row in rows
    }
    assert found["bootc", "network.max-rate"] == (
        "1048576",
        f"{root}/etc/bootc/config.d/20.toml",
    )
    assert found["bootc", "network.max-bytes"][0] == "100"
    assert found["bootc", "network.on-metered"][0] == "refuse"
    assert found["bootc", "storage.backend"] == ("composefs", None)
    conf = f"{root}/etc/containers/registries.conf"
    assert found["registries.conf", "registry quay.io"] == ("quay.io, blocked", conf)
    assert found["registries.conf", "registry quay.io mirror 1"] == (
        "mirror.example/quay, for digest-only",
        conf,
    )
    assert found["credentials", "quay.io"] == (
        "user and password",
        f"{root}/etc/ostree/auth.json",
    )
    assert found["proxies", "HTTPS_PROXY"][0] == "http://user:***@proxy.example:3128"


def test_for_people(root, capsys):
    assert main(["config", "show", "--config-root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "[registries.conf]" in out
    assert f"# {root}/etc/bootc/config.d/20.toml" in out
    assert "storage.backend = composefs" in out


@pytest.mark.parametrize(
    "text", ['max-rate = "fast"', "max-bytes = 0", 'on-metered = "maybe"', "max-rate = true"]
)
def test_bad_values_name_file_and_key(root, capsys, text):
    path = root / "etc/bootc/config.d/30.toml"
    path.write_text(f"[network]\n{text}\n")
    assert main(["config", "show", "--config-root", str(root)]) == 1
    err = capsys.readouterr().err
    assert str(path) in err
    assert f"network.{text.partition(' ')[0]}" in err
