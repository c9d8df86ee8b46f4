"""The tuning cache: one tunes and the others read, nothing measured is lost, nothing corrupt is believed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kerneltune.cache import Cache, Entry, Finalist, NewerSchema, NoCache, Run, TuningCache, Verification
from pytest_kerneltune.cache import store as cache_module
from pytest_kerneltune.cache.document import SCHEMA, from_json, to_json
from pytest_kerneltune.cache.entry import merged
from pytest_kerneltune.cache.family import Member
from pytest_kerneltune.disk.leases import Owner
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Budget, Status, Trial

ROOT = Path(cache_module.__file__).parents[2]
ONE, TWO = "a1" * 32, "b2" * 32
FAMILY = "fa" * 32
TRIALS = tuple(Trial({"BLOCK": 1 << n, "order": (1, 0)}, latency_ms=1.5 / (n + 1), samples_ms=(1.5,)) for n in range(3))
FAILED = Trial({"BLOCK": 64, "order": (0, 1)}, status=Status.CRASH, reason="segmentation fault")
RUN = Run(
    algorithm="RandomSearch",
    effort=Effort.FULL,
    seed=0,
    finished=True,
    created="2025-01-31",
    trials=(*TRIALS, FAILED),
    origin={"host": "abc", "device": "NVIDIA H200"},
)
ENTRY = Entry(fingerprint=ONE, kernel="softmax[n1024]", runs=(RUN,), winner=TRIALS[2].config)
RUN_FIELDS = {field.name for field in fields(Run)}

TUNE = """
import sys, time
from pathlib import Path
from pytest_kerneltune.cache import Cache, Entry, Run
from pytest_kerneltune.search import Effort
from pytest_kerneltune.trial import Trial

directory, fingerprint = Path(sys.argv[1]), sys.argv[2]
with Cache(directory, print).flight(fingerprint) as flight:
    if flight.entry is None:
        trial = Trial({"BLOCK": 1}, latency_ms=1.0)
        time.sleep(0.3)
        flight.record(trial)
        run = Run("RandomSearch", Effort.QUICK, 0, True, "2025-01-31", (trial,))
        flight.store(Entry(fingerprint, "kernel", (run,), trial.config))
        print("tuned")
    else:
        print("read", len(flight.entry.trials))
"""
RECORD_AND_HANG = """
import sys, time
from pathlib import Path
from pytest_kerneltune.cache import Cache
from pytest_kerneltune.trial import Trial

with Cache(Path(sys.argv[1]), print).flight(sys.argv[2]) as flight:
    print(len(flight.interrupted), flush=True)
    for number in range(int(sys.argv[3]), int(sys.argv[4])):
        flight.record(Trial({"BLOCK": number}, latency_ms=1.0 + number))
    print("recorded", flush=True)
    time.sleep(60)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def entry_path(directory: Path) -> Path:
    return directory / ONE[:2] / f"{ONE}.json"


def journal_path(directory: Path) -> Path:
    """The journal there is or, where there is none, the one that the first version would make."""
    found = [*(directory / ONE[:2]).glob(f"{ONE}.trials*.jsonl"), directory / ONE[:2] / f"{ONE}.trials.jsonl"]
    return found[0]


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """Let no file grow beyond ``after_bytes``, as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, warnings: list[str]) -> Cache:
    return Cache(tmp_path / "cache", warnings.append)


def changed(entry: Entry = ENTRY, **changes: Any) -> Entry:
    """``entry``, of one run, with other fields of its own or of its run."""
    of_run = {name: value for name, value in changes.items() if name in RUN_FIELDS}
    of_entry = {name: value for name, value in changes.items() if name not in RUN_FIELDS}
    return replace(entry, runs=(replace(entry.runs[0], **of_run),), **of_entry)


def put(cache: Cache, entry: Entry = ENTRY) -> Path:
    with cache.flight(entry.fingerprint) as flight:
        flight.store(entry)
    return entry_path(cache.directory)


def damage(path: Path, **changes: Any) -> None:
    """Rewrite the entry with ``changes``."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- entries


finite = st.floats(min_value=0, max_value=1e9)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
configs = st.dictionaries(st.text(min_size=1, max_size=8), values, max_size=4)
trials = st.builds(
    Trial,
    config=configs,
    status=st.sampled_from(Status),
    latency_ms=finite | st.just(float("inf")),
    samples_ms=st.lists(finite, max_size=4).map(tuple),
    reason=st.text(),
    log=st.text(st.characters()),
    stage=st.text(max_size=8),
    compile_s=finite,
    measure_s=finite,
)
dates = st.dates().map(str) | st.datetimes().map(lambda moment: moment.isoformat())
runs = st.builds(
    Run,
    algorithm=st.text(),
    effort=st.sampled_from(Effort),
    seed=st.integers(),
    finished=st.booleans(),
    created=dates,
    trials=st.lists(trials, max_size=4).map(tuple),
    budget_seconds=st.none() | finite,
    budget_configs=st.none() | st.integers(0, 10**6),
    origin=st.dictionaries(st.text(), st.text(), max_size=3),
)
entries = st.builds(
    Entry,
    fingerprint=st.just(ONE),
    kernel=st.text(),
    runs=st.lists(runs, max_size=3, unique_by=lambda run: run.created).map(tuple),
    winner=st.none() | configs,
    family=st.sampled_from(["", "fa" * 32]),
    inputs=st.lists(st.text(), max_size=3).map(tuple),
    verification=st.none()
    | st.builds(
        Verification,
        created=dates,
        checked=st.booleans(),
        finalists=st.lists(
            st.builds(Finalist, config=configs, readings_ms=st.lists(finite, max_size=3).map(tuple)), max_size=2
        ).map(tuple),
    ),
)


@settings(deadline=None, max_examples=60)
@given(entry=entries)
def test_an_entry_is_found_as_it_was_stored(tmp_path_factory: pytest.TempPathFactory, entry: Entry) -> None:
    warned: list[str] = []
    cache = Cache(tmp_path_factory.mktemp("entries"), warned.append)
    put(cache, entry)
    assert cache.lookup(ONE) == entry
    assert from_json(to_json(entry)) == entry
    assert warned == []


def old_document(entry: Entry = ENTRY) -> dict[str, Any]:
    """The entry, of one run, as the first schema had it."""
    data = to_json(entry)
    (run,) = data.pop("runs")
    del run["token"], data["verification"]
    return {**data, **run, "schema": 1}


def test_an_entry_of_the_first_schema_is_read_and_replaced_by_one_of_this(cache: Cache) -> None:
    path = entry_path(cache.directory)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(old_document()))
    journal_path(cache.directory).write_text(json.dumps(Trial({"BLOCK": 99}, latency_ms=9.0).to_json()) + "\n")
    assert cache.lookup(ONE) == ENTRY
    later = replace(RUN, created="2025-02-01", trials=TRIALS[:1])
    with cache.flight(ONE) as flight:
        assert flight.entry == ENTRY
        assert flight.interrupted == (Trial({"BLOCK": 99}, latency_ms=9.0),)
        flight.store(replace(ENTRY, runs=(later,), winner=TRIALS[0].config))
    found = cache.lookup(ONE)
    assert found is not None
    assert [run.trials for run in found.runs] == [RUN.trials, flight.interrupted, later.trials]
    assert (found.winner, found.last) == (TRIALS[0].config, later)
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert not journal_path(cache.directory).exists()


INFINITE: float = json.loads("1e999")  # what was read like that could not be written again
WRONG: dict[str, list[Any]] = {
    "config": [{"n": INFINITE}, {"n": [1, -INFINITE]}],
    "samples_ms": [[INFINITE], [1.0, "1"], [True], [10**400], "12", {"1": 1}],
    **{name: [INFINITE] for name in ("latency_ms", "compile_s", "measure_s", "demand")},
    "at_s": [INFINITE, True, "1", None, [], 10**400],
    "usage": [{"threads": 1.5}, {"threads": True}, {"threads": "1"}, [], None],
    **{name: [1, None] for name in ("reason", "log", "stage")},
    "status": [None, 1, {}, []],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": None},
        {"schema": "1"},
        {"schema": True},
        {"fingerprint": None},
        {"kernel": 5},
        {"trials": {}},
        {"trials": [[]]},
        {"trials": [{"config": 3, "status": "ok"}]},
        {"trials": [{"config": {}}]},
        {"trials": [{"config": {}, "status": "excellent"}]},
        {"trials": [{"config": {}, "status": "ok", "latency_ms": -1}]},
        {"trials": [{"config": {}, "status": "ok", "latency_ms": "nan"}]},
        {"trials": [{"config": {}, "status": "ok", "latency_ms": 10**400}]},
        {"trials": [{"config": {}, "status": "ok", "samples_ms": 1}]},
        *({"trials": [{"config": {}, "status": "ok", name: v}]} for name, wrong in WRONG.items() for v in wrong),
        {"winner": []},
        {"winner": {"n": INFINITE}},
        {"winner": {"n": [[{"n": -INFINITE}]]}},
        {"schema": 0},
        {"algorithm": None},
        {"effort": "extreme"},
        {"seed": 1.5},
        {"finished": "yes"},
        {"budget_seconds": -1},
        {"budget_seconds": "60"},
        {"budget_configs": 1.5},
        {"budget_configs": True},
        {"created": "yesterday"},
        {"origin": {"host": 1}},
        {"family": 1},
        {"family": ["fa"]},
        {"family": "../fa"},
        {"inputs": "x: float16[8]"},
        {"inputs": [1]},
    ],
    ids=str,
)
def test_malformed_entries_are_value_errors(changes: dict[str, Any]) -> None:
    old = {**old_document(), **changes}
    (name,) = changes
    new = to_json(ENTRY)
    (new["runs"][0] if name in RUN_FIELDS else new).update(changes)
    for data in (old, new, *new["runs"]):
        for key in [key for key, value in data.items() if value is None and key == name]:
            del data[key]
    for data in (old, new):
        with pytest.raises(ValueError, match=r"\S"):
            from_json(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": None},
        {"runs": {}},
        {"runs": [[]]},
        {"verification": []},
        {"verification": {"created": "2025-01-31", "checked": 1, "finalists": []}},
        {"verification": {"created": "2025-01-31", "checked": True, "finalists": [[]]}},
        {"verification": {"created": "2025-01-31", "checked": True, "finalists": [{"config": {}}]}},
        {"verification": {"created": "", "checked": True, "finalists": [{"config": {}, "readings_ms": [-1]}]}},
    ],
    ids=str,
)
def test_malformed_runs_and_verifications_are_value_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        from_json({**to_json(ENTRY), **changes})


@pytest.mark.parametrize("name", ["winner", "budget_seconds", "budget_configs"])
def test_an_optional_field_may_be_null_but_not_missing(name: str) -> None:
    data = old_document(changed(ENTRY, **{name: None}))
    entry = from_json(data)
    assert getattr(entry if name == "winner" else entry.last, name) is None
    del data[name]
    with pytest.raises(ValueError, match=f"{name}.* is missing"):
        from_json(data)


@pytest.mark.parametrize("data", [None, [], "entry", 1])
def test_an_entry_is_an_object(data: Any) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        from_json(data)


def test_a_field_that_a_later_version_may_add_is_ignored() -> None:
    assert from_json({**to_json(ENTRY), "remark": "new"}) == ENTRY


def test_an_entry_of_an_older_version_is_of_no_family() -> None:
    data = to_json(changed(ENTRY, family=FAMILY, inputs=("x: float16[8]",)))
    del data["family"], data["inputs"]
    assert from_json(data) == ENTRY


def test_a_newer_schema_is_told_from_a_malformed_entry() -> None:
    with pytest.raises(NewerSchema):
        from_json({"schema": SCHEMA + 1, "everything": "different"})


UNLIMITED = Budget()


@pytest.mark.parametrize(
    ("had", "effort", "wanted", "expected"),
    [
        ({}, Effort.FULL, UNLIMITED, True),
        ({}, Effort.QUICK, UNLIMITED, True),
        ({"effort": Effort.QUICK}, Effort.FULL, UNLIMITED, False),
        ({"effort": Effort.QUICK}, Effort.QUICK, UNLIMITED, True),
        ({"effort": Effort.NONE}, Effort.QUICK, UNLIMITED, False),
        ({"budget_seconds": 10.0}, Effort.FULL, Budget(seconds=100), True),
        ({"finished": False, "budget_seconds": 10.0}, Effort.FULL, UNLIMITED, False),
        ({"finished": False, "budget_seconds": 10.0}, Effort.FULL, Budget(seconds=11), False),
        ({"finished": False, "budget_seconds": 10.0}, Effort.FULL, Budget(seconds=10), True),
        ({"finished": False, "budget_seconds": 10.0}, Effort.FULL, Budget(seconds=9, configs=5), True),
        ({"finished": False, "budget_seconds": 10.0}, Effort.FULL, Budget(configs=5), False),
        ({"finished": False, "budget_configs": 50}, Effort.FULL, Budget(configs=50), True),
        ({"finished": False, "budget_configs": 50}, Effort.FULL, Budget(configs=51), False),
        ({"finished": False, "budget_configs": 50}, Effort.QUICK, Budget(seconds=1), False),
        (
            {"finished": False, "budget_configs": 50, "budget_seconds": 10.0},
            Effort.FULL,
            Budget(seconds=10, configs=51),
            False,
        ),
        ({"finished": False}, Effort.FULL, UNLIMITED, False),
        ({"winner": None}, Effort.QUICK, UNLIMITED, False),
    ],
)
def test_an_entry_satisfies_what_its_search_covered(
    had: dict[str, Any], effort: Effort, wanted: Budget, expected: bool
) -> None:
    assert changed(ENTRY, **had).satisfies(effort, wanted) is expected


@pytest.mark.parametrize("effort", list(Effort))
def test_an_entry_that_is_fast_enough_satisfies_at_any_effort(effort: Effort) -> None:
    stopped = changed(ENTRY, finished=False, budget_seconds=None, budget_configs=2)
    best = min(trial.latency_ms for trial in ENTRY.trials)
    assert stopped.satisfies(effort, Budget(target_ms=best))
    assert not stopped.satisfies(effort, Budget(target_ms=0.99 * best))
    assert not changed(stopped, winner=None).satisfies(effort, Budget(target_ms=best))
    lucky = changed(stopped, trials=(*ENTRY.trials, Trial({"BLOCK": 3}, latency_ms=best / 4)))
    assert not lucky.satisfies(effort, Budget(target_ms=best / 2)), "it lost the finals"


# -- joining what is known


tokens = {"a" * 16: Effort.NONE, "b" * 16: Effort.QUICK, "c" * 16: Effort.FULL, "": Effort.FULL}
attempts = st.builds(Trial, config=st.integers(0, 3).map(lambda n: {"n": n}), latency_ms=st.sampled_from([1.0, 2.0]))
searches = st.builds(
    Run,
    algorithm=st.just("RandomSearch"),
    effort=st.just(Effort.NONE),
    seed=st.just(0),
    finished=st.booleans(),
    created=st.dates().map(str),
    trials=st.lists(attempts, max_size=4).map(tuple),
    token=st.sampled_from(sorted(tokens)),
).map(lambda run: replace(run, effort=tokens[run.token], finished=bool(run.token) and run.finished))


@st.composite
def known_of_one_kernel(draw: st.DrawFn) -> Entry:
    entry = Entry(ONE, "softmax", (), draw(st.none() | st.integers(0, 3).map(lambda n: {"n": n})))
    entry = entry.with_runs(draw(st.lists(searches, max_size=4)))
    return replace(entry, runs=tuple(sorted(entry.runs, key=lambda run: run.created)))


def extent_of_runs(entry: Entry) -> set[object]:
    return {(r.token, len(r.trials), r.finished) if r.token else str(r) for r in entry.runs}


@settings(deadline=None, max_examples=100)
@given(one=known_of_one_kernel(), two=known_of_one_kernel(), three=known_of_one_kernel())
def test_joined_entries_lose_nothing_whatever_the_order(one: Entry, two: Entry, three: Entry) -> None:
    both = merged(one, two)
    assert merged(one, one) == one
    assert merged(both, one).runs == merged(both, two).runs == both.runs
    assert extent_of_runs(merged(two, one)) == extent_of_runs(both)
    assert extent_of_runs(merged(both, three)) == extent_of_runs(merged(one, merged(two, three)))
    for run in (*one.runs, *two.runs):
        (kept,) = [k for k in both.runs if (k.token == run.token if run.token else k == run)]
        assert len(kept.trials) >= len(run.trials)
        assert kept.finished >= run.finished
    for effort in Effort:
        satisfied = one.satisfies(effort, UNLIMITED) or two.satisfies(effort, UNLIMITED)
        assert not satisfied or both.satisfies(effort, UNLIMITED)


def test_a_search_that_was_killed_adds_nothing_to_an_entrys_reach() -> None:
    quick, killed = replace(RUN, effort=Effort.QUICK), replace(RUN, finished=False)
    assert replace(ENTRY, runs=(quick, killed)).reach == replace(ENTRY, runs=(quick,)).reach < ENTRY.reach
    limited = [replace(RUN, finished=False, budget_seconds=seconds) for seconds in (1.0, 2.0)]
    assert [replace(ENTRY, runs=(run,)).reach for run in (quick, *limited, RUN)] == sorted(
        replace(ENTRY, runs=(run,)).reach for run in (quick, *limited, RUN)
    )
    assert Entry(ONE, "softmax", (), None).reach < replace(ENTRY, runs=(quick,)).reach


def test_of_many_runs_the_oldest_become_one_that_says_as_much() -> None:
    full, quick = replace(RUN, token="f" * 16), replace(RUN, effort=Effort.QUICK)
    later = [
        replace(
            quick,
            token=f"{n:016x}",
            created=f"2026-{1 + n // 28:02}-{1 + n % 28:02}",
            trials=(Trial({"n": n}, latency_ms=1.0),),
        )
        for n in range(100)
    ]
    entry = replace(ENTRY, runs=()).with_runs([full, *later])
    assert len(entry.runs) == 64
    assert entry.trials == (*full.trials, *(run.trials[0] for run in later))
    assert entry.satisfies(Effort.FULL, UNLIMITED)
    again = merged(merged(replace(ENTRY, runs=(full, *later[:45])), entry), replace(ENTRY, runs=(full, *later[:45])))
    assert len(again.runs) == 64
    assert sorted(map(str, again.trials)) == sorted(map(str, entry.trials)), "none of them twice"


# -- the directory


def test_nothing_is_made_by_looking(cache: Cache, warnings: list[str]) -> None:
    assert cache.lookup(ONE) is None
    assert not cache.directory.exists()
    assert warnings == []


def test_the_layout(cache: Cache) -> None:
    with cache.flight(ONE) as flight:
        flight.record(TRIALS[0])
        found = {str(path.relative_to(cache.directory)) for path in cache.directory.rglob("*") if path.is_file()}
        journal = journal_path(cache.directory)
    assert found == {
        ".gitignore",
        "CACHEDIR.TAG",
        "README.md",
        f"a1/{ONE}.json.lock",
        f"a1/{journal.name}",
    }


@pytest.mark.parametrize("fingerprint", ["", "abc", "../../etc/passwd", "A1" * 32, "a1" * 40, "g" * 64])
def test_what_is_no_fingerprint_is_refused(cache: Cache, fingerprint: str) -> None:
    with pytest.raises(ValueError, match="not a fingerprint"):
        cache.lookup(fingerprint)
    with pytest.raises(ValueError, match="not a fingerprint"), cache.flight(fingerprint):
        pytest.fail("entered")


# -- one tunes, the others read


def test_of_many_processes_one_tunes_and_the_others_read(tmp_path: Path) -> None:
    processes = [start(TUNE, tmp_path / "cache", ONE) for _ in range(6)]
    said = sorted(process.communicate()[0] for process in processes)
    assert said == ["read 1\n"] * 5 + ["tuned\n"]
    assert [process.returncode for process in processes] == [0] * 6


def test_different_fingerprints_do_not_wait_for_each_other(cache: Cache) -> None:
    def never(_: Owner | None) -> None:
        pytest.fail("waited")

    with cache.flight(ONE, never), cache.flight(TWO, never) as flight:
        flight.store(changed(ENTRY, fingerprint=TWO))
    assert cache.lookup(ONE) is None
    assert cache.lookup(TWO) == changed(ENTRY, fingerprint=TWO)


def test_an_entry_of_another_fingerprint_cannot_be_stored(cache: Cache) -> None:
    with cache.flight(TWO) as flight, pytest.raises(ValueError, match=f"{ONE}.*{TWO}"):
        flight.store(ENTRY)


def test_the_lock_ends_with_the_flight_even_if_that_fails(cache: Cache) -> None:
    with pytest.raises(ZeroDivisionError), cache.flight(ONE):
        _ = 1 / 0
    with cache.flight(ONE, on_wait=lambda _: pytest.fail("still locked")):
        pass


# -- a killed search


def test_trials_of_killed_searches_are_handed_to_the_next(cache: Cache, warnings: list[str]) -> None:
    waits: list[str] = []
    with start(RECORD_AND_HANG, cache.directory, ONE, 0, 3) as first:
        assert first.stdout is not None
        assert [first.stdout.readline() for _ in range(2)] == ["0\n", "recorded\n"]
        first.kill()
    with start(RECORD_AND_HANG, cache.directory, ONE, 3, 5) as second:
        assert second.stdout is not None
        assert [second.stdout.readline() for _ in range(2)] == ["3\n", "recorded\n"]

        def kill(owner: Owner | None) -> None:
            waits.append("wait" if owner is not None and owner.pid == second.pid else "nobody")
            second.kill()

        with cache.flight(ONE, on_wait=kill) as flight:
            assert waits == ["wait"]
            assert [trial.config["BLOCK"] for trial in flight.interrupted] == [0, 1, 2, 3, 4]
            assert [trial.latency_ms for trial in flight.interrupted] == [1.0, 2.0, 3.0, 4.0, 5.0]
            flight.store(changed(ENTRY, trials=flight.interrupted))
    with cache.flight(ONE) as flight:
        assert flight.entry is not None
        assert len(flight.entry.trials) == 5
        assert flight.interrupted == ()
    assert warnings == []


def test_a_line_that_its_writer_could_not_finish_harms_no_other(cache: Cache) -> None:
    with cache.flight(ONE) as flight:
        flight.record(TRIALS[0])
    with journal_path(cache.directory).open("a") as journal:
        journal.write('{"config": {"BLO')
    with cache.flight(ONE) as flight:
        assert flight.interrupted == TRIALS[:1]
        flight.record(TRIALS[1])
        flight.record(FAILED)
    with cache.flight(ONE) as flight:
        assert flight.interrupted == (*TRIALS[:2], FAILED)


def test_a_journal_of_rubbish_is_no_trial(cache: Cache) -> None:
    journal = journal_path(cache.directory)
    journal.parent.mkdir(parents=True)
    journal.write_bytes(b'\n\xff\xfe\n[]\nnull\n{"config": {}, "status": "ok", "latency_ms": NaN}\n' + b"[" * 9999)
    with cache.flight(ONE) as flight:
        assert flight.interrupted == ()


def test_a_journal_outlives_an_entry_only_with_what_the_entry_lacks(cache: Cache) -> None:
    with cache.flight(ONE) as flight:
        for trial in TRIALS:
            flight.record(trial)
    journal = journal_path(cache.directory).read_bytes()
    path = journal_path(cache.directory)
    put(cache, changed(ENTRY, trials=TRIALS[:2]))
    assert not path.exists()
    found = cache.lookup(ONE)
    assert found is not None
    assert [run.trials for run in found.runs] == [TRIALS, TRIALS[:2]]
    path.write_bytes(journal)  # as if the process had died before it removed that
    with cache.flight(ONE) as flight:
        assert flight.interrupted == ()
    path.write_bytes(journal + json.dumps(FAILED.to_json()).encode())
    with cache.flight(ONE) as flight:
        assert flight.interrupted == (FAILED,)


# -- what is not believed


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"schema": 1}', "{}", "\x00" * 50, "[" * 9999],
    ids=["empty", "truncated", "list", "null", "bare", "empty-object", "zeros", "deep"],
)
def test_a_corrupt_entry_is_a_miss_and_set_aside(cache: Cache, warnings: list[str], content: str) -> None:
    path = put(cache)
    path.write_text(content)
    assert cache.lookup(ONE) is None
    aside = path.with_name(f"{path.name}.corrupt-1")
    assert aside.read_text() == content
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert aside.name in warnings[0]
    assert cache.lookup(ONE) is None
    assert len(warnings) == 1
    put(cache)
    assert cache.lookup(ONE) == ENTRY


def test_a_truncated_entry_is_set_aside_by_a_flight_too(cache: Cache, warnings: list[str]) -> None:
    path = put(cache)
    path.write_bytes(path.read_bytes()[:-20])
    with cache.flight(ONE) as flight:
        assert flight.entry is None
        assert not path.exists()
        flight.store(ENTRY)
    assert cache.lookup(ONE) == ENTRY
    assert len(warnings) == 1


def test_an_entry_of_another_kernel_is_not_believed(cache: Cache, warnings: list[str]) -> None:
    path = put(cache)
    put(cache, changed(ENTRY, fingerprint=TWO))
    shutil.copy(cache.directory / TWO[:2] / f"{TWO}.json", path)
    assert cache.lookup(ONE) is None
    assert TWO in warnings[0]
    assert not path.exists()


def test_a_corrupt_entry_is_left_to_who_is_tuning_it(cache: Cache, warnings: list[str]) -> None:
    path = entry_path(cache.directory)
    with cache.flight(ONE) as flight:
        path.write_text("{")
        assert cache.lookup(ONE) is None
        assert path.exists()
        flight.store(ENTRY)
    assert cache.lookup(ONE) == ENTRY
    assert path.with_name(f"{path.name}.corrupt-1").read_text() == "{"
    assert ["locked" in warnings[0], "corrupt" in warnings[1], len(warnings)] == [True, True, 2]


def test_a_newer_entry_is_a_miss_and_never_touched(cache: Cache, warnings: list[str]) -> None:
    path = put(cache)
    damage(path, schema=SCHEMA + 1, trials=7)
    newer = path.read_bytes()
    assert cache.lookup(ONE) is None
    with cache.flight(ONE) as flight:
        assert flight.entry is None
        flight.record(TRIALS[0])
        flight.store(ENTRY)
    assert path.read_bytes() == newer
    with cache.flight(ONE) as flight:
        assert flight.interrupted == TRIALS[:1]
    assert len(warnings) == 1
    assert "newer" in warnings[0]


def test_an_unreadable_entry_is_neither_believed_nor_replaced(cache: Cache, warnings: list[str]) -> None:
    path = entry_path(cache.directory)
    path.mkdir(parents=True)
    assert cache.lookup(ONE) is None
    with cache.flight(ONE) as flight:
        assert flight.entry is None
        flight.record(TRIALS[0])
        flight.store(ENTRY)
    assert path.is_dir()
    assert journal_path(cache.directory).exists()
    assert len(warnings) == 1
    assert "cannot read" in warnings[0]


# -- what cannot be written


def test_a_cache_that_cannot_be_written_is_warned_about_once(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", warnings.append)
    for _ in range(2):
        with cache.flight(TWO) as flight:
            assert (flight.entry, flight.interrupted) == (None, ())
            flight.record(TRIALS[0])
            flight.store(changed(ENTRY, fingerprint=TWO))
    writing = [text for text in warnings if "cannot read" not in text]
    assert len(writing) == 1
    assert str(tmp_path / "file") in writing[0]
    assert len(warnings) <= 2


def test_a_full_disk_loses_no_trial_that_was_recorded(cache: Cache, warnings: list[str]) -> None:
    with cache.flight(ONE) as flight:
        for trial in TRIALS:
            flight.record(trial)
        with full_disk(after_bytes=100):
            flight.record(FAILED)
            flight.store(ENTRY)
        assert len(warnings) == 1
        flight.record(FAILED)
    with cache.flight(ONE) as flight:
        assert flight.entry is None
        assert flight.interrupted == (*TRIALS, FAILED)


def test_a_trial_that_is_no_json_is_a_warning(cache: Cache, warnings: list[str]) -> None:
    with cache.flight(ONE) as flight:
        flight.record(Trial({"BLOCK": object()}))
        flight.record(TRIALS[0])
    with cache.flight(ONE) as flight:
        assert flight.interrupted == TRIALS[:1]
    assert len(warnings) == 1


# -- related entries

OWN = Member("00" * 32, "softmax[n1000]", ())


def put_relative(cache: Cache, size: int, **changes: Any) -> Entry:
    """Store the entry of the kernel at another size, which its fingerprint ends with."""
    own = {"fingerprint": f"{size:064x}", "kernel": f"softmax[n{size}]", "family": FAMILY}
    entry = changed(ENTRY, **{**own, **changes})
    put(cache, entry)
    return entry


def test_related_entries_come_most_alike_first(cache: Cache, warnings: list[str]) -> None:
    far, edit, near = (put_relative(cache, size) for size in (16, 1000, 1024))
    put(cache, changed(ENTRY, fingerprint=TWO))
    put_relative(cache, 999, fingerprint=OWN.fingerprint)
    put_relative(cache, 1001, family="fb" * 32)
    put_relative(cache, 1002, family="")
    assert cache.related(FAMILY, OWN) == [edit, near, far]
    assert cache.related("fc" * 32, OWN) == []
    assert warnings == []


def test_looking_for_related_entries_makes_nothing(cache: Cache) -> None:
    assert cache.related(FAMILY, OWN) == []
    assert not cache.directory.exists()


def test_at_most_twenty_related_entries_are_read(cache: Cache) -> None:
    entries = [put_relative(cache, size) for size in range(1000, 1030)]
    assert cache.related(FAMILY, OWN) == entries[:20]


def test_an_entry_of_many_trials_is_related_by_its_newest_state(cache: Cache) -> None:
    put_relative(cache, 1000)
    again = put_relative(cache, 1000, trials=TRIALS[:1], created="2025-02-02")
    (found,) = cache.related(FAMILY, OWN)
    assert found == cache.lookup(again.fingerprint)
    assert [run.created for run in found.runs] == ["2025-01-31", "2025-02-02"]


@pytest.mark.parametrize("content", [None, "", "{", "null", "[]"])
def test_a_related_entry_that_cannot_be_read_is_left_out_and_left_alone(
    cache: Cache, warnings: list[str], content: str | None
) -> None:
    gone, kept = put_relative(cache, 1000), put_relative(cache, 16)
    path = cache.directory / gone.fingerprint[:2] / f"{gone.fingerprint}.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert cache.related(FAMILY, OWN) == [kept]
    assert path.exists() is (content is not None)
    assert warnings == []


def test_an_entry_that_has_left_the_family_is_not_related(cache: Cache) -> None:
    entry = put_relative(cache, 1000)
    put(cache, changed(entry, family="fb" * 32))
    assert cache.related(FAMILY, OWN) == []


def test_without_its_families_a_cache_still_has_its_entries(cache: Cache) -> None:
    entry = put_relative(cache, 1000)
    shutil.rmtree(cache.directory / "families")
    assert cache.related(FAMILY, OWN) == []
    assert cache.lookup(entry.fingerprint) == entry


def test_a_family_that_cannot_be_written_harms_no_entry(cache: Cache, warnings: list[str]) -> None:
    cache.directory.mkdir()
    (cache.directory / "families").touch()
    entry = put_relative(cache, 1000)
    assert cache.lookup(entry.fingerprint) == entry
    assert cache.related(FAMILY, OWN) == []
    assert len(warnings) == 1


# -- no cache


def test_no_cache_has_the_same_verbs_and_keeps_nothing(tmp_path: Path) -> None:
    caches: list[TuningCache] = [NoCache(), Cache(tmp_path, print)]
    found = []
    for cache in caches:
        with cache.flight(ONE, on_wait=lambda _: pytest.fail("waited")) as flight:
            assert (flight.entry, flight.interrupted) == (None, ())
            flight.record(TRIALS[0])
            flight.store(ENTRY)
        found.append(cache.lookup(ONE))
        assert list(cache.related(FAMILY, OWN)) == []
    assert found[0] is None
    assert found[1] is not None
    assert changed(found[1], token="") == ENTRY
