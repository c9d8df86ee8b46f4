"""The tuning cache: what kernels' searches found, shared by processes and machines (``store.py`` says how)."""

from __future__ import annotations

from pytest_kerneltune.cache.document import NewerSchema
from pytest_kerneltune.cache.entry import Entry, Finalist, Run, Verification
from pytest_kerneltune.cache.flight import Flight, NoCache, TuningCache
from pytest_kerneltune.cache.layers import LayeredCache
from pytest_kerneltune.cache.store import Cache

__all__ = [
    "Cache",
    "Entry",
    "Finalist",
    "Flight",
    "LayeredCache",
    "NewerSchema",
    "NoCache",
    "Run",
    "TuningCache",
    "Verification",
]
