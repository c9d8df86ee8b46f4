"""Caches in layers: all are read, the first alone is written, and what is below is left as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_kerneltune.cache import Cache, Entry, LayeredCache, Run
from pytest_kerneltune.cache.family import Member
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Trial

KERNEL = "a1" * 32
FAMILY = "fa" * 32
QUICK = Run("RandomSearch", Effort.QUICK, 0, True, "2026-01-01", (Trial({"n": 1}, latency_ms=2.0),))
FULL = Run("LFBOTreeSearch", Effort.FULL, 1, True, "2026-01-02", (Trial({"n": 2}, latency_ms=1.0),))


def entry(run: Run, fingerprint: str = KERNEL, kernel: str = "sum[n8]") -> Entry:
    return Entry(fingerprint, kernel, (run,), run.trials[0].config, family=FAMILY, inputs=("x: float32[8]",))


class Layers:
    def __init__(self, root: Path) -> None:
        self.warned: list[str] = []
        self.private = Cache(root / "private", self.warned.append)
        self.shared = Cache(root / "shared", self.warned.append)
        below = Cache(root / "shared", self.warned.append, writable=False)
        self.both = LayeredCache([Cache(root / "private", self.warned.append), below])

    def put(self, cache: Cache | LayeredCache, stored: Entry) -> None:
        with cache.flight(stored.fingerprint) as flight:
            for trial in stored.runs[-1].trials:
                flight.record(trial)
            flight.store(stored)

    def content(self) -> dict[str, tuple[bytes, int]]:
        files = (p for p in self.shared.directory.rglob("*") if p.is_file())
        return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def test_what_is_below_answers_and_stays_as_it_is(layers: Layers) -> None:
    layers.put(layers.shared, entry(FULL))
    before = layers.content()
    found = layers.both.lookup(KERNEL)
    assert found is not None
    assert found.satisfies(Effort.FULL, Budget())
    with layers.both.flight(KERNEL) as flight:
        assert flight.entry == found
    assert layers.content() == before
    assert not layers.private.path(KERNEL).exists()
    assert layers.warned == []


def test_what_is_found_above_stays_apart_and_goes_on_from_what_is_below(layers: Layers) -> None:
    layers.put(layers.shared, entry(QUICK))
    before = layers.content()
    layers.put(layers.both, entry(FULL))
    assert layers.content() == before
    own = layers.private.lookup(KERNEL)
    assert own is not None
    assert [run.trials for run in own.runs] == [QUICK.trials, FULL.trials]
    assert (own.winner, layers.both.lookup(KERNEL)) == ({"n": 2}, own)


def test_the_larger_search_has_the_word_whichever_layer_it_is_in(layers: Layers) -> None:
    layers.put(layers.shared, entry(FULL))
    layers.put(layers.private, entry(replace(QUICK, created="2026-02-01")))
    found = layers.both.lookup(KERNEL)
    assert found is not None
    assert found.winner == {"n": 2}
    assert len(found.trials) == 2


def test_a_corrupt_entry_below_is_said_and_left_there(layers: Layers) -> None:
    layers.put(layers.shared, entry(FULL))
    layers.shared.path(KERNEL).write_text("{")
    before = layers.content()
    assert layers.both.lookup(KERNEL) is None
    layers.put(layers.both, entry(QUICK))
    assert layers.both.lookup(KERNEL) == layers.private.lookup(KERNEL)
    assert layers.content() == before
    assert len(layers.warned) == 1
    assert "corrupt" in layers.warned[0]


def test_related_entries_of_all_layers_come_most_alike_first(layers: Layers) -> None:
    own = Member("00" * 32, "sum[n100]", ("x: float32[100]",))
    sizes = {"private": [10, 90], "shared": [95, 5000]}
    for cache in (layers.private, layers.shared):
        for size in sizes[cache.directory.name]:
            layers.put(cache, replace(entry(QUICK, f"{size:064x}", f"sum[n{size}]"), inputs=(f"x: float32[{size}]",)))
    layers.put(layers.shared, replace(entry(FULL, f"{90:064x}", "sum[n90]"), inputs=("x: float32[90]",)))
    assert [found.kernel for found in layers.both.related(FAMILY, own)] == [
        "sum[n95]",
        "sum[n90]",
        "sum[n10]",
        "sum[n5000]",
    ]
