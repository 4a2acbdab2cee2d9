"""What a check of a sysroot finds (``bootc fsck``): plain values, so that backends of others can report in the same words."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootc_core.models.host import Deployment


class Cure(StrEnum):
    """What settles a finding."""

    FETCH = "fetch"  # the image's content, from where it came
    RECORD = "record"  # a record of this program, which can be given up or made anew
    HAND = "hand"  # nothing that this program can get back by itself


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: of the thing, one word: ``object``, ``image``, ``stream``, ``reference``, ``commit``, ``deployment``, ``entry``,
            ``boot-file``, ``journal``, ``notice``, ``repository``.
        name: which, relative to the sysroot or boot partition where it is a file.
        problem: what is wrong with it.
        cure: what settles it.
        deployment: what it is about, where ``status`` does not show that deployment.
    """

    kind: str
    name: str
    problem: str
    cure: Cure = Cure.FETCH
    deployment: Deployment | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.problem}"

    def to_json(self) -> dict[str, str]:
        """JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "problem": self.problem,
            "cure": self.cure.value,
        }


@dataclass(frozen=True, slots=True)
class Counted:
    """So many things of a kind were looked at since the last report."""

    kind: str
    number: int
