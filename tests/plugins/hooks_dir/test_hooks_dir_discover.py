from __future__ import annotations

import os
from pathlib import Path

import pytest
from bootc_hooks_dir.discover import (
    POINTS,
    Kind,
    Level,
    describe,
    ignored,
    order,
    read_levels,
    strangers,
)
from hypothesis import given
from hypothesis import strategies as st

USR, ETC = Path("/usr/lib/bootc/hooks.d"), Path("/etc/bootc/hooks.d")


def level(path: Path, **points: dict[str, Kind] | Kind) -> Level:
    named = {name.replace("_", "-"): value for name, value in points.items()}
    return Level(
        path,
        {k: v if isinstance(v, Kind) else Kind.DIRECTORY for k, v in named.items()},
        {k: v for k, v in named.items() if isinstance(v, dict)},
    )


def names(levels, point="gate") -> list[str]:
    return [str(script.path) for script in order(levels, point).scripts]


def scripts(*found: str) -> dict[str, Kind]:
    return dict.fromkeys(found, Kind.SCRIPT)


def test_byte_order_of_names_over_both_levels():
    levels = (
        level(USR, gate=scripts("20-b", "10-a", "9-z")),
        level(ETC, gate=scripts("15-c", "Z-last", "é-very-last")),
    )
    assert [path.rsplit("/", 1)[1] for path in names(levels)] == [
        "10-a",
        "15-c",
        "20-b",
        "9-z",
        "Z-last",
        "é-very-last",
    ]


def test_etc_goes_over_usr_by_name():
    levels = (level(USR, gate=scripts("10-a", "20-b")), level(ETC, gate=scripts("10-a")))
    assert names(levels) == [f"{ETC}/gate/10-a", f"{USR}/gate/20-b"]
    assert order(levels, "gate").masked == ((USR / "gate/10-a", ETC / "gate/10-a"),)


def test_a_link_to_dev_null_masks_a_script():
    levels = (level(USR, gate=scripts("10-a", "20-b")), level(ETC, gate={"10-a": Kind.MASK}))
    assert names(levels) == [f"{USR}/gate/20-b"]


def test_a_link_to_dev_null_masks_a_whole_point():
    levels = (level(USR, gate=scripts("10-a", "20-b")), level(ETC, gate=Kind.MASK))
    assert names(levels) == []
    assert len(order(levels, "gate").masked) == 2


def test_plain_names_are_a_script_or_a_directory():
    levels = (
        level(USR, pre_upgrade=Kind.SCRIPT),
        level(ETC, pre_upgrade=scripts("10-a")),
    )
    assert names(levels, "pre-upgrade") == [f"{ETC}/pre-upgrade/10-a", f"{USR}/pre-upgrade"]
    over = (*levels[:1], level(ETC, pre_upgrade=Kind.SCRIPT))
    assert names(over, "pre-upgrade") == [f"{ETC}/pre-upgrade"]
    masked = (*levels[:1], level(ETC, pre_upgrade=Kind.MASK))
    assert names(masked, "pre-upgrade") == []


def test_a_script_where_a_directory_belongs_is_noted():
    found = order((level(ETC, gate=Kind.SCRIPT),), "gate")
    assert found.scripts == ()
    assert found.notes == (f"{ETC}/gate is ignored: not a directory",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("10-a", None),
        ("10-a.sh", None),
        ("check", None),
        ("10-a~", "a backup"),
        ("#10-a#", "a backup"),
        (".10-a.swp", "hidden"),
        (".gitkeep", "hidden"),
        ("10-a.swp", "a backup"),
        ("10-a.bak", "a backup"),
        ("10-a.orig", "a backup"),
        ("10-a.dpkg-old", "a backup"),
        ("10-a.dpkg-dist", "a backup"),
        ("10-a.dpkg-new", "a backup"),
        ("10-a.rpmsave", "a backup"),
        ("10-a.rpmnew", "a backup"),
        ("10-a.rpmorig", "a backup"),
        ("10-a.ucf-dist", "a backup"),
        ("10-a.pacnew", "a backup"),
        ("README", "a document"),
        ("README.md", "a document"),
    ],
)
def test_left_overs_never_run_and_are_noted(name, reason):  # H13
    assert ignored(name) == reason
    found = order((level(ETC, gate={name: Kind.SCRIPT}),), "gate")
    assert len(found.scripts) == (reason is None)
    assert found.notes == ((f"{ETC}/gate/{name} is ignored: {reason}",) if reason else ())


def test_a_backup_does_not_mask():
    levels = (level(USR, gate=scripts("10-a")), level(ETC, gate=scripts("10-a~")))
    assert names(levels) == [f"{USR}/gate/10-a"]


def test_misspelt_points_are_warned_about_with_the_nearest():
    found = level(ETC, before_stag=scripts("10-a"), README=Kind.SCRIPT, gate={})
    assert strangers((found,)) == (
        f"{ETC}/before-stag is no hook point, never run; did you mean before-stage?",
    )


def test_foreign_names_are_escaped():
    found = order((level(ETC, gate={"\x1b[31m~": Kind.SCRIPT}),), "gate")
    assert "\x1b" not in found.notes[0]
    assert "\x1b" not in str(order((level(ETC, gate=scripts("\x1b[31m")),), "gate").scripts[0])


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
KINDS = st.sampled_from(Kind)


@given(
    st.dictionaries(NAMES, KINDS),
    st.dictionaries(NAMES, KINDS),
    st.sampled_from(POINTS),
)
def test_order_is_total_and_site_wins(usr, etc, point):
    levels = (
        Level(USR, {point: Kind.DIRECTORY}, {point: usr}),
        Level(ETC, {point: Kind.DIRECTORY}, {point: etc}),
    )
    found = order(levels, point)
    chosen = [script.name for script in found.scripts]
    assert chosen == sorted(set(chosen), key=os.fsencode)
    for script in found.scripts:
        assert not ignored(script.name)
        if script.path.parent.parent == USR:
            assert ignored(script.name) or etc.get(script.name) in {None, Kind.DIRECTORY}
    for name, kind in etc.items():
        if kind in {Kind.SCRIPT, Kind.OTHER} and not ignored(name):
            assert name in chosen
        if kind is Kind.MASK and not ignored(name):
            assert name not in chosen


def test_read_levels_and_describe(tmp_path):
    assert read_levels(tmp_path) == ()
    usr, etc = tmp_path / "usr/lib/bootc/hooks.d", tmp_path / "etc/bootc/hooks.d"
    for place in (usr / "gate", etc / "gate", etc / "nonsense"):
        place.mkdir(parents=True)
    for script in (usr / "gate/10-a", usr / "gate/20-b", etc / "post-upgrade", etc / "gate/5~"):
        script.write_text("#!/bin/sh\n")
    (etc / "gate/10-a").symlink_to("/dev/null")
    (etc / "gate/30-gone").symlink_to("/nonexistent")
    assert [found.path for found in read_levels(tmp_path)] == [usr, etc]
    assert describe(tmp_path) == (
        f"gate: {usr}/gate/20-b (running system)",
        f"gate: {etc}/gate/30-gone (site)",
        f"gate: {usr}/gate/10-a is masked by {etc}/gate/10-a",
        f"gate: {etc}/gate/5~ is ignored: a backup",
        f"post-upgrade: {etc}/post-upgrade (site)",
        f"{etc}/nonsense is no hook point, never run",
    )


def test_a_thousand_scripts_stay_in_order(tmp_path):  # H13
    gate = tmp_path / "etc/bootc/hooks.d/gate"
    gate.mkdir(parents=True)
    for number in range(1000):
        (gate / f"{number:03}-x").write_text("#!/bin/sh\n")
    found = order(read_levels(tmp_path), "gate").scripts
    assert [script.name for script in found] == [f"{number:03}-x" for number in range(1000)]
