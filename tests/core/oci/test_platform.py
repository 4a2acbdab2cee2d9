"""Choosing an image from an index: variants, attestations, ambiguity, depth, and the config's own claim."""

from __future__ import annotations

import os

import pytest

from bootc_core import limits
from bootc_core.errors import ContentError
from bootc_core.models.oci import ImageConfig, Index, Platform
from bootc_core.oci.platform import (
    check_config,
    check_depth,
    describe,
    host_platform,
    machine_platform,
    select,
)

ZSTD = {"io.github.containers.compression.zstd": "true"}


def entry(number, platform=None, annotations=None):
    value = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": f"sha256:{number:064x}",
        "size": 1,
    }
    if platform is not None:
        system, architecture, *variant = platform.split("/")
        value["platform"] = {"os": system, "architecture": architecture}
        if variant:
            value["platform"]["variant"] = variant[0]
    if annotations:
        value["annotations"] = annotations
    return value


def index(*entries):
    return Index.model_validate({"schemaVersion": 2, "manifests": list(entries)})


def platform(text):
    system, architecture, *variant = text.split("/")
    return Platform(os=system, architecture=architecture, variant=variant[0] if variant else "")


def chosen(wanted, *platforms):
    entries = [entry(number, text) for number, text in enumerate(platforms)]
    return int(select(index(*entries), platform(wanted), "x").digest.removeprefix("sha256:"), 16)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64/v8"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_machine_names(machine, expected):
    assert describe(machine_platform(machine)) == expected


def test_host_platform_is_this_machine():
    assert host_platform() == machine_platform(os.uname().machine)


@pytest.mark.parametrize(
    ("wanted", "platforms", "expected"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64", "windows/amd64"], 1),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/arm64/v8", ["linux/arm64", "linux/arm64/v8"], 1),
        ("linux/arm64/v8", ["linux/amd64", "linux/arm64"], 1),
        ("linux/arm64", ["linux/arm64/v8", "linux/arm64"], 1),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm/v7", ["linux/arm/v8", "linux/arm/v6", "linux/arm/v7"], 2),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm"], 1),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", [None, "linux/arm64"], 0),
    ],
)
def test_selection(wanted, platforms, expected):
    assert chosen(wanted, *platforms) == expected


def test_zstd_is_preferred_among_equals():
    entries = index(entry(1, "linux/amd64"), entry(2, "linux/amd64", ZSTD))
    assert select(entries, platform("linux/amd64"), "x").digest.endswith("2")


def test_attestations_are_never_chosen():
    attestation = entry(1, "unknown/unknown", {"vnd.docker.reference.type": "attestation-manifest"})
    disguised = entry(2, "linux/amd64", {"vnd.docker.reference.digest": "sha256:x"})
    with pytest.raises(ContentError) as caught:
        select(index(attestation, disguised), platform("linux/amd64"), "quay.io/x")
    assert caught.value.found == "no images at all"
    image = entry(3, "linux/amd64")
    assert select(
        index(attestation, disguised, image), platform("linux/amd64"), "x"
    ).digest.endswith("3")


def test_m13_no_match_lists_what_exists():
    entries = index(entry(1, "linux/arm64/v8"), entry(2, "linux/s390x"), entry(3, "windows/amd64"))
    with pytest.raises(ContentError) as caught:
        select(entries, platform("linux/amd64"), "quay.io/x")
    assert (caught.value.reference, caught.value.catalogue) == ("no-platform", "NOTFOUND")
    assert caught.value.expected == "linux/amd64"
    assert caught.value.found == "linux/arm64/v8, linux/s390x, windows/amd64"


def test_m13_no_match_stays_short():
    entries = index(*(entry(number, f"linux/arch{number:03}") for number in range(300)))
    with pytest.raises(ContentError) as caught:
        select(entries, platform("linux/amd64"), "quay.io/x")
    assert str(caught.value.found).endswith("linux/arch019 and 280 more")


def test_m13_control_characters_are_escaped():
    with pytest.raises(ContentError) as caught:
        select(index(entry(1, "linux/\x1b[31m")), platform("linux/amd64"), "quay.io/x")
    assert caught.value.found == "linux/\\x1b[31m"


def test_m13_ambiguity_is_refused():
    entries = index(entry(1, "linux/amd64"), entry(2, "linux/amd64"))
    with pytest.raises(ContentError) as caught:
        select(entries, platform("linux/amd64"), "quay.io/x")
    assert caught.value.reference == "ambiguous-platform"
    assert f"sha256:{2:064x}" in str(caught.value.found)


def test_the_same_image_twice_is_no_ambiguity():
    entries = index(entry(1, "linux/amd64"), entry(1, "linux/amd64"))
    assert select(entries, platform("linux/amd64"), "x").digest.endswith("1")


def test_m11_m12_depth():
    check_depth(limits.INDEX_DEPTH, "x")
    with pytest.raises(ContentError) as caught:
        check_depth(limits.INDEX_DEPTH + 1, "x")
    assert (caught.value.reference, caught.value.catalogue) == ("index-depth", "LIM")


def config(text):
    system, architecture, *variant = text.split("/")
    value = {
        "os": system,
        "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    if variant:
        value["variant"] = variant[0]
    return ImageConfig.model_validate(value)


@pytest.mark.parametrize(
    ("wanted", "claimed"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64", "linux/amd64/v2"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
    ],
)
def test_config_fits(wanted, claimed):
    check_config(config(claimed), platform(wanted), "x")


@pytest.mark.parametrize(
    ("wanted", "claimed"),
    [
        ("linux/amd64", "linux/arm64"),
        ("linux/amd64", "windows/amd64"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/amd64", "/"),
    ],
)
def test_m14_config_for_another_machine(wanted, claimed):
    with pytest.raises(ContentError) as caught:
        check_config(config(claimed), platform(wanted), "quay.io/x")
    assert (caught.value.reference, caught.value.catalogue) == ("wrong-platform", "CON")
    assert caught.value.expected == wanted
