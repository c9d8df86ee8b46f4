"""The tuning cache: what kernels' searches found, shared by processes and machines (``store.py`` says how)."""

from __future__ import annotations

from pytest_kerneltune.cache.store import Cache, Entry, Flight, NewerSchema, NoCache, TuningCache

__all__ = ["Cache", "Entry", "Flight", "NewerSchema", "NoCache", "TuningCache"]
