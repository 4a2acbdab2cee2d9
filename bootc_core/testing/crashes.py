# ruff: noqa: S101 - a test suite, though it ships in the package: assert is its language
"""Kills an action at every durable step; the host must be in the old or the new state, and a repetition must converge."""

from __future__ import annotations

from collections.abc import Callable

from bootc_core.testing.harness import Action, System

Versions = tuple[str | None, str | None]


def points(total: int, every: int) -> list[int]:
    """Every n-th step; the first and last three always."""
    ends = {*range(3), *range(total - 3, total)}
    return sorted(step for step in {*range(0, total, every), *ends} if 0 <= step < total)


def everywhere(
    system: System,
    action: Action,
    old: Versions,
    new: Versions,
    *,
    every: int = 1,
    check: Callable[[System], None] | None = None,
) -> int:
    """Kill ``action`` (in a process of its own) before each durable step.

    Args:
        system: in the state before.
        action: what is killed; repeated, it must bring the host to ``new``.
        old: versions that boot next and are kept, before.
        new: the same, after.
        every: every n-th step is a crash point.
        check: called after each kill, before the repetition.

    Returns:
        The number of crash points.

    Raises:
        AssertionError: says at which step, and what is wrong.
    """
    before = system.snapshot()
    total = len(system.steps(action))
    assert total > 0, "no durable step at all"
    assert system.versions() == new, f"without a crash: {system.versions()}"
    chosen = points(total, every)
    for step in chosen:
        system.restore(before)
        system.kill_at(action, step)
        where = f"killed before durable step {step} of {total}"
        found = system.versions()
        assert found[0] in {old[0], new[0]}, f"{where}: {found}"
        if check is not None:
            try:
                check(system)
            except AssertionError as problem:
                raise AssertionError(f"{where}: {problem}") from problem
        if system.versions() != new:
            action(system)
        assert system.versions() == new, f"{where}, repeated: {system.versions()}"
        assert system.status().staged is None, f"{where}, repeated: still staged"
    return len(chosen)
