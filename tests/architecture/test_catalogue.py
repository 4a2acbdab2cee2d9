"""Every row of the catalogue of bad inputs has a test, and the page of them is what the code would write."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTS = {
    "T": 54,
    "Z": 13,
    "M": 28,
    "N": 30,
    "C": 16,
    "D": 18,
    "S": 24,
    "H": 23,
    "X": 16,
    "B": 20,
    "I": 10,
}  # rows of each group

# Rows that nothing here could show yet, with the reason; the aim is none.
NOT_YET: dict[str, str] = {
    "X06": "power cuts during recovery: the model has them (three crashes), the recorder has one cut a run",
    "X15": "replacing the program while it runs: modules that are imported late come from the new one",
    "B11": "a GRUB environment block of a wrong size",
    "B12": "EFI variables that are full or ignored",
    "B13": "a boot partition marked dirty, or with cross-linked clusters",
    "B14": "two boot partitions out of step",
    "B17": "fs-verity taken away by root",
    "I04": "an installation that is interrupted",
    "I06": "encryption: not offered",
    "I10": "a kernel that does not read the partition table again",
}


def table():
    spec = importlib.util.spec_from_file_location(
        "bad_inputs_table", ROOT / "docs/bad_inputs_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_rows_are_there():
    wanted = {
        f"{group}{number:02}" for group, count in COUNTS.items() for number in range(1, count + 1)
    }
    assert set(table().rows()) | set(NOT_YET) == wanted
    assert len(wanted) == 252


def test_tests_that_rows_refer_to_exist():
    for places in table().SHOWN.values():
        for place in places:
            file, _, function = place.partition("::")
            assert f"def {function}(" in (ROOT / "tests" / file).read_text(), place


def test_every_row_has_a_test():
    found = table().covering()
    missing = [name for name in table().rows() if name not in found and name not in NOT_YET]
    assert missing == []
    assert [name for name in NOT_YET if name in found] == [], "listed as missing, and there"


def test_the_scan_finds_names_and_parameters(tmp_path, monkeypatch):
    """It must not see an id where there is none, or the test above would prove nothing."""
    module = table()
    source = (
        "ROWS = {'t36_large': 1, 'other': 2}\n"
        "@pytest.mark.parametrize('x', [('T37 digits', 1), 'M02', 'T3', 'T367', 'ST38'])\n"
        "def test_a(x): 'T01 in a docstring'\n"
        "@pytest.mark.parametrize('x', ROWS)\n"
        "def test_c05_b(x): ...\n"
        "def helper_c06(): ...\n"
        "def test_abc07(): ...\n"
    )
    path = tmp_path / "test_x.py"
    path.write_text(source)
    assert sorted(module._of_file(path)) == [
        ("C05", "test_c05_b"),
        ("M02", "test_a"),
        ("T36", "test_c05_b"),
        ("T37", "test_a"),
    ]


def test_the_page_is_up_to_date():
    module = table()
    assert module.PAGE.read_text() == module.page(), "run: python docs/bad_inputs_table.py"
