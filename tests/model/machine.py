"""The transaction as a state machine: hypothesis drives the real engine with a backend.

Updates, rollbacks, kills and bad images. The model is three values: the version that boots, the one that rollback returns to,
the one that is staged. After each step the host shows them, or, after a kill, those of before or after, and never anything
between; what boots is whole.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bootc_core.errors import BootcError
from bootc_core.models.finding import Finding
from bootc_core.testing import System
from bootc_core.testing.contract import OS
from bootc_core.testing.harness import remove_tree
from bootc_core.testing.images import make_image

Slots = tuple[str | None, str | None]


class Machine(RuleBasedStateMachine):
    """Set ``make`` to what makes a system in a directory."""

    make: ClassVar[Callable[[Path], System]]
    kills: ClassVar[int] = 60  # a kill's step is chosen among so many

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="bootc-model-"))
        self.system = type(self).make(self.place)
        self.number = 0
        self.boots: str | None = None
        self.back: str | None = None
        self.staged: str | None = None
        self.killed = False

    def teardown(self) -> None:
        remove_tree(self.place)
        shutil.rmtree(self.place, ignore_errors=True)

    # --- what is asked ----------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.publish()
        self.system.switch(OS)
        self.boots = self.published

    @property
    def published(self) -> str:
        return str(self.number)

    @rule()
    def publish(self) -> None:
        """The tag goes on to a new version."""
        self.number += 1
        self.system.transport.images[OS] = make_image(self.published)

    @rule()
    def upgrade(self) -> None:
        before, after = self.slots, self.after_upgrade()
        self.attempt(lambda system: system.upgrade(), after, before)

    @rule()
    def download(self) -> None:
        if self.published in {self.boots, self.back}:
            return
        self.system.upgrade(download_only=True)
        self.staged = self.published
        self.killed = False

    @rule()
    def apply(self) -> None:
        staged = self.staged
        if staged is None:
            return
        self.attempt(lambda system: system.apply_downloaded(), (staged, self.boots), self.slots)

    @rule()
    def rollback(self) -> None:
        if self.back is None:
            return
        self.attempt(lambda system: system.rollback(), (self.back, self.boots), self.slots)

    @rule()
    def refuse(self) -> None:
        """A damaged image changes nothing."""
        if self.staged is not None:
            return
        good = self.system.transport.images[OS]
        self.system.transport.images[OS] = make_image(f"{self.number + 1}").damaged(1)
        try:
            self.system.upgrade()
        except BootcError:
            pass
        else:
            raise AssertionError("a damaged image was deployed")
        finally:
            self.system.transport.images[OS] = good
        self.killed = False

    @rule(step=st.integers(0, 10_000))
    def kill_upgrade(self, step: int) -> None:
        self.kill(lambda system: system.upgrade(), step, self.after_upgrade())

    @precondition(lambda self: self.back is not None)
    @rule(step=st.integers(0, 10_000))
    def kill_rollback(self, step: int) -> None:
        self.kill(lambda system: system.rollback(), step, (self.back, self.boots))

    @precondition(lambda self: self.staged is not None)
    @rule(step=st.integers(0, 10_000))
    def kill_apply(self, step: int) -> None:
        self.kill(lambda system: system.apply_downloaded(), step, (self.staged, self.boots))

    # --- what has to come of it ---------------------------------------------------------------------

    @property
    def slots(self) -> Slots:
        return self.boots, self.back

    def after_upgrade(self) -> Slots:
        return self.slots if self.published == self.boots else (self.published, self.boots)

    def attempt(self, action: Callable[[System], Any], after: Slots, before: Slots) -> None:
        """A run that nobody disturbs ends as it should; going to what is kept for rollback already may be refused."""
        try:
            action(self.system)
        except BootcError as problem:
            if problem.reference != "same-deployment" or after[0] != before[1]:
                raise
            after = before
        self.see({after})
        self.killed = False
        if after != before:
            self.staged = None

    def kill(self, action: Callable[[System], Any], step: int, after: Slots) -> None:
        before = self.slots
        self.system.kill_at(action, step % type(self).kills)
        self.see({before, after})
        self.killed = True

    def see(self, allowed: set[Slots]) -> None:
        found = self.system.versions()
        # an interrupted run may have taken the third entry away already, or not yet
        assert found in allowed, f"boots and back are {found}, not one of {allowed}"
        self.boots, self.back = found

    @invariant()
    def first_entry_is_whole(self) -> None:
        if self.boots is None:
            return
        entries = self.system.entries()
        assert entries, "nothing boots"
        for key in ("linux", "initrd"):
            for name in entries[0].all(key):
                path = self.system.sysroot.boot_dir / name.strip("/")
                assert path.stat().st_size > 0, f"{path} is empty"

    @invariant()
    def at_rest_there_are_two(self) -> None:
        if self.boots is None or self.killed:
            return
        assert len(self.system.booting()) == (2 if self.back else 1), self.system.booting()
        status = self.system.status()
        staged = status.staged.image.version if status.staged and status.staged.image else None
        assert staged == self.staged, f"{staged} is staged, not {self.staged}"

    @invariant()
    def the_check_finds_nothing(self) -> None:
        check = next(iter(self.system.plugins.backends.values())).offer.check
        if check is None or self.boots is None or self.killed:
            return
        with contextlib.closing(check(self.system.sysroot, self.system.entries())) as found:  # type: ignore[arg-type]
            problems = [str(one) for one in found if isinstance(one, Finding)]
        assert not problems, problems
