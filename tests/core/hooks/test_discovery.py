from pathlib import Path

import pytest

from bootc_core.errors import PluginError
from bootc_core.hooks.discovery import find_plugins, parse_entry_points


def install(place: Path, distribution: str, version: str, text: str) -> None:
    directory = place / f"{distribution}-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "entry_points.txt").write_text(text)


def test_entry_points_of_our_group_only():
    text = (
        "# comment\n[console_scripts]\nx = y:z\n\n[bootc.plugins]\na = pkg.plugin\n"
        "b=pkg.other [extra]\n[other]\nc = d\n"
    )
    assert parse_entry_points(text) == [("a", "pkg.plugin"), ("b", "pkg.other")]


def test_sorted_by_name_with_distribution_and_version(tmp_path):
    install(tmp_path, "zeta", "1.2", "[bootc.plugins]\nalpha = m.plugin\n")
    install(tmp_path, "acme_window", "0.3", "[bootc.plugins]\nwindow = w.plugin\n")
    install(tmp_path, "unrelated", "1", "[console_scripts]\nfoo = a:b\n")
    found = find_plugins([str(tmp_path)])
    assert [(p.name, p.module, p.distribution, p.version) for p in found] == [
        ("alpha", "m.plugin", "zeta", "1.2"),
        ("window", "w.plugin", "acme_window", "0.3"),
    ]
    assert not found[0].builtin


def test_the_same_distribution_twice_on_the_path_is_shadowed_as_python_does_it(tmp_path):
    install(tmp_path / "first", "acme", "2", "[bootc.plugins]\nwindow = w.plugin\n")
    install(tmp_path / "second", "acme", "1", "[bootc.plugins]\nwindow = w.plugin\n")
    found = find_plugins([str(tmp_path / "first"), str(tmp_path / "second")])
    assert [(p.name, p.version) for p in found] == [("window", "2")]


def test_two_distributions_with_one_name_are_an_error_naming_both(tmp_path):
    install(tmp_path, "acme", "2", "[bootc.plugins]\nsigning = a.plugin\n")
    install(tmp_path, "evil", "1", "[bootc.plugins]\nsigning = e.plugin\n")
    with pytest.raises(PluginError) as caught:
        find_plugins([str(tmp_path)])
    assert caught.value.reference == "plugin-conflict"
    assert caught.value.found == "acme 2 and evil 1"


def test_unreadable_and_missing_places_are_nothing(tmp_path):
    assert find_plugins([str(tmp_path / "missing"), ""]) == find_plugins([""])
