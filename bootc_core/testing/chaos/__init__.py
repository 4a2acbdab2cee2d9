"""Fault injection, counted and reproducible, for every storage backend: kill, errno, medium, power, parallel.

    python -m bootc_core.testing.chaos kill errno power --subject chaos.py

``subject.py`` says how a backend is described, ``docs/chaos.md`` what each suite does and what its figures mean.
"""

from __future__ import annotations

from bootc_core.testing.chaos.subject import Subject, read_tree

__all__ = ["Subject", "read_tree"]
