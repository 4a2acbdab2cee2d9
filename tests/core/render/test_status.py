import json
from pathlib import Path

import pytest
import yaml

from bootc_core.models.host import (
    ComposefsInfo,
    Deployment,
    HostImage,
    HostStatus,
    ImageStatus,
    OstreeInfo,
)
from bootc_core.render import status

VERITY = "ab" * 64


def image(
    name,
    digest="1" * 64,
    transport="registry",
    version="13.1",
    when="2026-01-02T03:04:05Z",
    signature=None,
):
    return ImageStatus(
        HostImage(name, transport, signature), f"sha256:{digest}", "amd64", version, when
    )


FULL = HostStatus(
    staged=Deployment(
        image("quay.io/example/os:2", "2" * 64, version="13.2"),
        download_only=True,
        composefs=ComposefsInfo(VERITY, boot_digest="cd" * 32),
        accepted="signing: unsigned, as policy.json allows",
        signature_mode="policy",
    ),
    booted=Deployment(
        image("quay.io/example/os:2", signature="containerPolicy"),
        cached_update=image("quay.io/example/os:2", "3" * 64, version="13.3"),
        composefs=ComposefsInfo(VERITY, missing_verity_allowed=True),
    ),
    rollback=Deployment(
        image("/var/mnt/osupdate", transport="oci", version=None), composefs=ComposefsInfo(VERITY)
    ),
    other=(Deployment(None, ostree=OstreeInfo("default", "ef" * 32, 1), pinned=True),),
    usr_overlay=("readWrite", "transient"),
)

HOSTS = {
    "full": FULL,
    "empty": HostStatus(),
    "queued": HostStatus(booted=FULL.booted, rollback=FULL.rollback, rollback_queued=True),
    "ostree": HostStatus(
        booted=Deployment(
            image("quay.io/example/os:2", signature=("ostreeRemote", "fedora")),
            ostree=OstreeInfo("default", "ef" * 32, 0),
            soft_reboot_capable=True,
        )
    ),
}


@pytest.fixture
def validator(schemas):
    import jsonschema

    schema = json.loads((schemas / "host-v1.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def schemas():
    return Path(__file__).parents[2] / "vectors/schemas"


@pytest.mark.parametrize("name", HOSTS)
def test_json_is_canonical_and_valid(name, validator):
    text = status.to_json(HOSTS[name])
    value = json.loads(text)
    validator.validate(value)
    assert text == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize("name", HOSTS)
def test_yaml_says_the_same(name):
    assert yaml.safe_load(status.to_yaml(HOSTS[name])) == json.loads(status.to_json(HOSTS[name]))


def test_yaml_quotes_what_would_not_be_a_string():
    host = HostStatus(booted=Deployment(image("null", version="1.0", when=None)))
    assert yaml.safe_load(status.to_yaml(host))["status"]["booted"]["image"]["version"] == "1.0"
    assert yaml.safe_load(status.to_yaml(host))["spec"]["image"]["image"] == "null"


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("verbose", [False, True])
def test_text_is_golden(name, verbose, golden):
    golden(
        f"status-{name}{'-verbose' if verbose else ''}.txt",
        status.to_text(HOSTS[name], verbose=verbose),
    )


def test_foreign_text_cannot_drive_the_terminal():
    host = HostStatus(booted=Deployment(image("x\x1b[2Jy", version="\x1b]0;z\x07")))
    assert "\x1b" not in status.to_text(host)


def test_colons_line_up():
    for line in status.to_text(FULL).splitlines():
        if (
            line
            and not line.startswith((" Other", "  Other"))
            and ":" in line
            and "Commit" not in line
            and "Pinned" not in line
        ):
            assert line.index(":") in {14, 16}
