"""The tuning cache: what kernels' searches found, shared by processes and machines (``store.py`` says how)."""

from __future__ import annotations

from pytest_kerneltune.cache.document import NewerSchema
from pytest_kerneltune.cache.entry import Entry, Finalist, Run, Verification
from pytest_kerneltune.cache.store import Cache, Flight, NoCache, TuningCache

__all__ = [
    "Cache",
    "Entry",
    "Finalist",
    "Flight",
    "NewerSchema",
    "NoCache",
    "Run",
    "TuningCache",
    "Verification",
]
