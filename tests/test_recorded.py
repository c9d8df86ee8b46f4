"""Recorded spaces: made of trials, written, read and replayed."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from pytest_kerneltune.errors import StoreError
from pytest_kerneltune.parameter import boolean, choice, integer, power_of_two
from pytest_kerneltune.recorded import FAILURES, RecordedSpace
from pytest_kerneltune.recording import Recording
from pytest_kerneltune.trial import Status, Trial

TINY: dict[str, Any] = {
    "name": "tiny",
    "params": {"tile": [8, 16], "unroll": [1, 2, 3]},
    "code": [0, 1, 5],
    "time": [1.5, None, 0.5],
    "fail": {"1": "wrong"},
}


def write(folder: Path, data: Any, repeats: Any = None) -> Path:
    path = folder / "tiny.json.gz"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    if repeats is not None:
        np.savez(folder / "tiny.reps.npz", rep=np.array(repeats, dtype=np.int16))
    return path


def there_and_back(trials: Sequence[Trial], folder: Path) -> RecordedSpace:
    return RecordedSpace.load(write(folder, Recording.of(trials).to_json({"name": "tiny"})))


def assert_holds(recorded: RecordedSpace, trials: Sequence[Trial]) -> None:
    """``recorded`` allows the configs of ``trials`` and nothing else, and answers with their status and latency."""
    assert {recorded.space.key(c) for c in recorded.space.enumerate()} == {recorded.space.key(t.config) for t in trials}
    for trial in trials:
        found = recorded.measure(recorded.space.canonical(trial.config))
        assert (found.status, found.latency_ms) == (trial.status, trial.latency_ms)
        assert json.dumps(dict(found.config), sort_keys=True) == json.dumps(dict(trial.config), sort_keys=True)


def test_every_kind_of_value_and_every_failure_survive_the_file(tmp_path: Path) -> None:
    values = ["a", "", None, True, 1, 1.0, (1, 2), (True, 2), ((1,), (2, "x")), -3.5]
    failures = [s for s in Status if s is not Status.OK]
    trials = [
        Trial({"value": value, "on": on}, latency_ms=1.0 + i) if i % 3 else Trial({"value": value, "on": on}, status)
        for i, (value, on, status) in enumerate(
            (v, on, failures[i % len(failures)]) for i, (v, on) in enumerate(product(values, (False, True)))
        )
    ]
    recorded = there_and_back(trials, tmp_path)
    assert_holds(recorded, trials)
    assert recorded.space.parameters["on"] == boolean()


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.OK])
def test_a_failure_keeps_its_reason(status: Status, tmp_path: Path) -> None:
    assert_holds(
        there_and_back([Trial({"x": 1}, status), Trial({"x": 2}, latency_ms=1.0)], tmp_path),
        [Trial({"x": 1}, status), Trial({"x": 2}, latency_ms=1.0)],
    )
    assert status in FAILURES.values()


def test_a_space_of_10_to_the_30_keeps_its_codes(tmp_path: Path) -> None:
    rng = random.Random(0)
    configs = [{f"p{i}": rng.randrange(10) for i in range(30)} for _ in range(200)]
    trials = [Trial(c, latency_ms=1.0 + i) for i, c in enumerate(configs)]
    recorded = there_and_back(trials, tmp_path)
    assert max(recorded_codes(tmp_path)) > 2**53
    for trial in trials:
        assert recorded.measure(trial.config).latency_ms == trial.latency_ms
    assert not recorded.space.is_allowed({**configs[0], "p0": 9 - configs[0]["p0"]})


def recorded_codes(folder: Path) -> list[int]:
    return list(json.loads(gzip.decompress((folder / "tiny.json.gz").read_bytes()))["code"])


def test_numbers_are_in_order_and_other_values_in_that_of_their_first_trial() -> None:
    configs: list[dict[str, Any]] = [
        {"n": 8, "f": 2.5, "mode": "z", "on": True},
        {"n": 2, "f": 1, "mode": "a", "on": False},
        {"n": 4, "f": 10, "mode": None, "on": True},
    ]
    recording = Recording.of([Trial(c, latency_ms=1.0) for c in configs])
    assert recording.values == {"n": [2, 4, 8], "f": [1, 2.5, 10], "mode": ["z", "a", None], "on": [False, True]}
    assert list(recording.trials) == sorted(recording.trials)
    assert recording.size == 3 * 3 * 3 * 2


def test_the_last_trial_of_a_config_counts() -> None:
    trials = [
        Trial({"a": 1, "b": 2}, Status.CRASH),
        Trial({"a": 2, "b": 2}, latency_ms=3.0),
        Trial({"b": 2, "a": 1}, latency_ms=2.0),
    ]
    recording = Recording.of(trials)
    assert [t.latency_ms for t in recording.trials.values()] == [2.0, 3.0]
    assert recording.statistics["n"] == recording.statistics["ok"] == 2


@pytest.mark.parametrize(
    ("trials", "wrong"),
    [
        ([], "none of its configs worked"),
        ([Trial({"x": 1}, Status.CRASH)], "none of its configs worked"),
        ([Trial({"x": 1}, latency_ms=1.0), Trial({"y": 1}, latency_ms=1.0)], "different parameters"),
        ([Trial({"x": 1}, latency_ms=0.0)], "has no latency"),
        ([Trial({"x": 1})], "has no latency"),
    ],
)
def test_trials_that_make_no_space_are_refused(trials: Sequence[Trial], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Recording.of(trials)


def test_facts_and_statistics_are_in_the_file() -> None:
    trials = [Trial({"x": x}, latency_ms=ms) for x, ms in enumerate((1.0, 1.04, 1.2, 9.0))]
    data = Recording.of([*trials, Trial({"x": 4}, Status.WRONG)]).to_json({"name": "n", "gpu": "g"})
    assert (data["name"], data["gpu"], data["fail"]) == ("n", "g", {"4": "wrong"})
    stats = {"n": 5, "ok": 4, "failed": 1, "best": 1.0, "worst": 9.0, "within5": 2, "within1": 1, "cartesian": 5}
    assert stats.items() <= data["stats"].items()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3], integer(3, 3)),
        ([2, 3, 4], integer(2, 4)),
        ([8, 16, 32], power_of_two(8, 32)),
        ([8, 16, 64], choice(8, 16, 64)),
        ([0, 10**40], choice(0, 10**40)),
        ([False, True], boolean()),
        ([True], choice(True)),
        ([0, True], choice(0, True)),
        ([[0, 1], [1, 0]], choice((0, 1), (1, 0))),
    ],
)
def test_values_are_of_the_narrowest_kind(values: list[Any], kind: Any) -> None:
    recorded = RecordedSpace("x", {"p": values}, dict.fromkeys(range(len(values)), (Status.OK, 1.0)))
    assert repr(recorded.space.parameters["p"]) == repr(kind)


def test_a_time_that_is_null_without_a_reason_is_a_failure(tmp_path: Path) -> None:
    recorded = RecordedSpace.load(write(tmp_path, {**TINY, "fail": {}}))
    trial = recorded.measure({"tile": 8, "unroll": 2})
    assert (trial.status, trial.latency_ms) == (Status.RUNTIME_ERROR, math.inf)
    assert (len(recorded), recorded.best_ms, recorded.worst_ms) == (3, 0.5, 1.5)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ([], "is not a recorded space"),
        ({k: v for k, v in TINY.items() if k != "code"}, "'code' is missing"),
        ({**TINY, "fail": {"1": "bored"}}, "'bored' is missing or unknown"),
        ({**TINY, "fail": {"0": "wrong"}}, "row 0 has the latency 1.5 although it failed"),
        ({**TINY, "code": [0, 1]}, "is not a recorded space"),
        ({**TINY, "code": [0, 1, 1]}, "recorded twice"),
        ({**TINY, "code": [0, 1, 6]}, "6 is the code of none of the 6 configs"),
        ({**TINY, "code": [0, 1, 2.0]}, r"2\.0 is the code of none"),
        ({**TINY, "time": [1.5, None, 0]}, "row 2 has the latency 0"),
        ({**TINY, "time": [1.5, None, "1"]}, "is not a recorded space"),
        ({**TINY, "params": {"tile": [8, 8], "unroll": [1, 2, 3]}}, "twice"),
        ({**TINY, "params": [8, 16]}, "is not a recorded space"),
        ({**TINY, "time": [None] * 3, "fail": {}}, "none of its configs worked"),
        ({**TINY, "time": [True, None, 1]}, "row 0 has the latency True"),
        ({**TINY, "time": [10**400, None, 1]}, "is not a recorded space"),
        ({**TINY, "time": [math.nan, None, 1]}, "row 0 has the latency nan"),
        ({**TINY, "params": {"tile": "ab", "unroll": [1, 2, 3]}}, "params are not lists"),
        ({**TINY, "params": {"tile": [{}, 1], "unroll": [1, 2, 3]}}, "is not a recorded space"),
        ({**TINY, "fail": {"1": ["wrong"]}}, "is not a recorded space"),
        ({**TINY, "fail": {"one": "wrong"}}, "is not a recorded space"),
    ],
)
def test_a_file_that_holds_no_space_is_named(data: Any, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"tiny\.json\.gz.*{wrong}"):
        RecordedSpace.load(write(tmp_path, data))


def test_a_file_that_is_missing_cut_off_or_not_compressed_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    deep, numbers = gzip.compress(b"[" * 200_000), gzip.compress(b"[" + b"1" * 5000 + b"]")
    for content in (path.read_bytes()[:-20], b"{}", b"", deep, numbers, gzip.compress(b"\xff{}")):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"tiny\.json\.gz"):
            RecordedSpace.load(path)
    path.unlink()
    with pytest.raises(StoreError, match=r"tiny\.json\.gz"):
        RecordedSpace.load(path)


def test_what_is_no_file_and_what_unpacks_without_end_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    packer = zlib.compressobj(9, wbits=31)
    path.write_bytes(b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(129)), packer.flush()]))
    assert path.stat().st_size < 1 << 18
    with pytest.raises(StoreError, match=r"tiny\.json\.gz is not a recorded space: .*larger than 128 MiB"):
        RecordedSpace.load(path)
    for make in (os.mkfifo, os.mkdir, lambda there: there.symlink_to("/dev/zero")):
        path.unlink()
        make(path)
        with pytest.raises(StoreError, match=r"tiny\.json\.gz is not a recorded space: .*not a regular file"):
            RecordedSpace.load(path)
        if path.is_dir():
            path.rmdir()
            path.touch()


def test_readings_are_drawn_from_those_of_the_config(tmp_path: Path) -> None:
    recorded = RecordedSpace.load(write(tmp_path, TINY, [[0, 0], [0, 0], [-100, 300]]))
    rng = random.Random(0)
    config = {"tile": 16, "unroll": 3}
    assert {round(recorded.draw(config, 1, rng), 6) for _ in range(40)} == {0.495, 0.515}
    assert {round(recorded.draw(config, 2, rng), 6) for _ in range(40)} == {0.495, 0.505, 0.515}
    assert recorded.draw({"tile": 8, "unroll": 1}, 3, rng) == 1.5
    assert recorded.draw({"tile": 8, "unroll": 2}, 3, rng) == math.inf
    assert recorded.has_repeats


def test_without_repeats_readings_are_exact(tmp_path: Path) -> None:
    recorded = RecordedSpace.load(write(tmp_path, TINY))
    assert not recorded.has_repeats
    assert recorded.draw({"tile": 16, "unroll": 3}, 1, random.Random(0)) == 0.5


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut", b"text"])
def test_a_file_of_repeats_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    (tmp_path / "tiny.reps.npz").write_bytes(content)
    with pytest.raises(StoreError, match=r"tiny\.reps\.npz"):
        _ = RecordedSpace.load(path).has_repeats


@pytest.mark.parametrize("repeats", [[[0, 0]], [0, 0, 0], [[], [], []]])
def test_repeats_of_other_configs_are_refused(repeats: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"tiny\.reps\.npz is of shape"):
        _ = RecordedSpace.load(write(tmp_path, TINY, repeats)).has_repeats


def npz(path: Path, **members: bytes) -> None:
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(array: Any, shape: str = "") -> bytes:
    """The array as a file, whose header claims another shape."""
    file = io.BytesIO()
    np.save(file, array)
    real = str(array.shape).encode()
    claimed = shape.encode().ljust(len(real))
    content = file.getvalue()
    return (
        content.replace(real, claimed).replace(b" " * (len(claimed) - len(real)) + b"\n", b"\n") if shape else content
    )


@pytest.mark.parametrize(
    ("members", "wrong"),
    [
        ({"other": npy(np.zeros((3, 1), np.int16))}, "rep"),
        ({"rep": npy(np.array([[object()]] * 3))}, "allow_pickle"),
        ({"rep": npy(np.zeros((3, 1), np.int16), "(3, 9999999999999)")}, "holds no repeated readings"),
        ({"rep": npy(np.zeros((3, 1), np.int16))[:-2]}, "holds no repeated readings"),
        ({"rep": npy(np.zeros((3, 1)))}, "they are integers"),
        ({"rep": npy(np.array([["1"]] * 3))}, "they are integers"),
        ({"rep": npy(np.full((3, 1), -10_001, np.int16))}, "of at least -10000"),
        ({"rep": b"no array"}, "is of shape"),
    ],
)
def test_repeats_that_are_none_are_refused(members: dict[str, bytes], wrong: str, tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    npz(tmp_path / "tiny.reps.npz", **members)
    with pytest.raises(StoreError, match=rf"tiny\.reps\.npz.*{wrong}"):
        _ = RecordedSpace.load(path).has_repeats


def test_repeats_that_unpack_without_end_or_are_no_file_are_refused(tmp_path: Path) -> None:
    path, repeats = write(tmp_path, TINY), tmp_path / "tiny.reps.npz"
    with ZipFile(repeats, "w", ZIP_DEFLATED, compresslevel=1) as archive, archive.open("rep.npy", "w") as member:
        for _ in range(513):
            member.write(bytes(1 << 20))
    with pytest.raises(StoreError, match=r"tiny\.reps\.npz .*larger than 512 MiB"):
        _ = RecordedSpace.load(path).has_repeats
    repeats.unlink()
    os.mkfifo(repeats)
    with pytest.raises(StoreError, match=r"tiny\.reps\.npz .*not a regular file"):
        _ = RecordedSpace.load(path).has_repeats


def test_deviations_are_those_of_the_readings_from_their_mean() -> None:
    fast = Trial({"x": 0}, latency_ms=0.9, samples_ms=(1.1, 0.9, 1.0, 1.0))
    slow = Trial({"x": 1}, latency_ms=5.0, samples_ms=(4.0, 6.0))
    none = Trial({"x": 2}, latency_ms=5.0)
    failed = Trial({"x": 3}, Status.WRONG)
    deviations = Recording.of([failed, none, slow, fast]).deviations()
    assert deviations == [[-1000, 0, 0, 1000], [-2000, -2000, 2000, 2000], [0] * 4, [0] * 4]
    assert Recording.of([none, failed]).deviations() == []


def test_many_readings_are_thinned_out_evenly_and_outliers_fit_into_two_bytes() -> None:
    many = Trial({"x": 0}, latency_ms=1.0, samples_ms=tuple(float(i) for i in range(1, 321)))
    (row,) = Recording.of([many]).deviations()
    assert len(row) == 32
    assert row == sorted(row)
    assert abs(np.mean(row)) < 50
    outlier = replace(many, samples_ms=(1.0,) * 31 + (1000.0,))
    assert max(Recording.of([outlier]).deviations()[0]) <= np.iinfo(np.int16).max
