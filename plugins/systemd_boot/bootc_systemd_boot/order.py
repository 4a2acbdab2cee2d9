"""Which digit to change when, so that the first entry is a whole one at every moment. Pure.

An entry's place is the last digit of its sort key; changing one is atomic (one byte, in place),
nothing else is. ``F`` is the entry that boots now, ``T`` the one that shall. If they differ:

    1. prepare   F to 0 unless it is 0 or 1; all others but T to 3 and up; T to 2       first: F
    2. create    new files: T with 2, others with 3 and up; flush                        first: F
    3. shift     F from 0 to 1                                                           first: F
    4. switch    T from 2 to 0                                                           first: T
    5. flush; delete what is not wanted; the others to their places 1, 2, ...            first: T

So an upgrade of [A0 B1] to [N A] goes [A0 B3 N2], [A1 B3 N2], [N0 A1 B3], [N0 A1], and a rollback
of [A0 B1] goes [A0 B2], [A1 B2], [B0 A1]. Stopped anywhere, the same procedure with the same or
another wish starts from what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LAST: Final = 9
"""Entries that find no digit of their own share this one: only the first place must be unique."""


@dataclass(frozen=True, slots=True)
class Change:
    """Give the entry in ``file`` this digit."""

    file: str
    digit: int


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do, in this order: see the module."""

    prepare: tuple[Change, ...] = ()
    create: tuple[Change, ...] = ()
    shift: tuple[Change, ...] = ()
    switch: tuple[Change, ...] = ()
    settle: tuple[Change, ...] = ()


def steps(present: Mapping[str, int], wanted: Sequence[str]) -> Steps:
    """The changes that make ``wanted`` the order of the menu.

    Args:
        present: file and digit of our entries on the partition, in menu order.
        wanted: files of the entries in the wished order; those not in ``present`` will be created.

    Raises:
        ValueError: nothing is wanted, or one file twice.
    """
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError("the wished order has to name each entry once")
    target = wanted[0]
    first = next(iter(present), None)
    digits = dict(present)

    def change(file: str, digit: int) -> list[Change]:
        if digits.get(file) == digit:
            return []
        digits[file] = digit
        return [Change(file, digit)]

    prepare: list[Change] = []
    create: list[Change] = []
    shift: list[Change] = []
    switch: list[Change] = []
    if first is None or first == target:
        # Nothing to overtake: the target takes (or keeps) the first place at once.
        if target in present:
            switch += change(target, 0)
        else:
            create += change(target, 0)
        for file in wanted[1:]:
            if file not in present:
                create += change(file, _free(digits))
    else:
        if digits[first] not in {0, 1}:
            prepare += change(first, 0)
        for file in [*present, *wanted]:
            if file in {first, target} or digits.get(file, 0) > 2:
                continue
            moved = change(file, _free(digits))
            (prepare if file in present else create).extend(moved)
        (prepare if target in present else create).extend(change(target, 2))
        shift += change(first, 1)
        switch += change(target, 0)
    settle: list[Change] = []
    for place, file in reversed(list(enumerate(wanted))):
        settle += change(file, min(place, LAST))
    return Steps(tuple(prepare), tuple(create), tuple(shift), tuple(switch), tuple(settle))


def _free(digits: Mapping[str, int]) -> int:
    taken = set(digits.values())
    return next((digit for digit in range(3, LAST) if digit not in taken), LAST)
