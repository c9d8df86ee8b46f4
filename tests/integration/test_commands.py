"""``python -m pytest_kerneltune``: spaces recorded by real runs, and searches compared on them."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kerneltune.__main__ import COMMANDS, main
from pytest_kerneltune.cache import Entry, Run
from pytest_kerneltune.cache.document import rendered, to_json
from pytest_kerneltune.recorded import RecordedSpace
from pytest_kerneltune.recording import Recording
from pytest_kerneltune.search import DEFAULT_SEARCH, Effort
from pytest_kerneltune.trial import Status, Trial

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNELS = """
@tunable(
    space={"block": choice(1, 2, 4), "mode": choice("b", None, (1, 2)), "x": integer(0, 5), "fast": boolean()},
    where=lambda c: c["x"] != 3,
    params=[7], ids=["n7"],
)
def kernel(request):
    def run(block, mode, x, fast):
        if mode is None and x == 0:
            raise ValueError("no such mode")
        spin(MS * (1 + x + (0 if fast else 2)) / block)
    return run

def test_kernel(kernel): pass
"""

SEARCHES = """
import os

class Search:
    @classmethod
    def preset(cls, effort, context):
        return cls()

class Wrong(Search):
    def propose(self, space, rng, prior=()):
        yield [{**space.default, "x": 99}]

class Broken(Search):
    def propose(self, space, rng, prior=()):
        yield [space.default]
        raise RuntimeError("lost\\n  it")

class Fatal(Search):
    def propose(self, space, rng, prior=()):
        os._exit(3)

class Clinging(Search):
    def propose(self, space, rng, prior=()):
        while True:
            yield [space.default]

class Picky(Search):
    def propose(self, space, rng, prior=()):
        if space.size > 100:
            raise RuntimeError("too large")
        yield from ([c] for c in space.enumerate())

class Climber(Search):
    def propose(self, space, rng, prior=()):
        best, latency, seen = space.default, float("inf"), set()
        while best:
            batch = [c for c in [best, *space.neighbours(best)] if space.key(c) not in seen]
            seen |= {space.key(c) for c in batch}
            if not batch:
                return
            trial = min((yield batch), key=lambda t: t.latency_ms)
            if trial.latency_ms < latency:
                best, latency = trial.config, trial.latency_ms
            else:
                best = space.sample(rng)

class Batches(Search):
    size = 1
    @classmethod
    def preset(cls, effort, context):
        search = cls()
        search.size = context.parallel
        return search
    def propose(self, space, rng, prior=()):
        configs = list(space.enumerate())
        while configs:
            yield configs[:self.size]
            configs = configs[self.size:]

class Repeater(Search):
    def propose(self, space, rng, prior=()):
        assert space.default
        first = yield [space.default, space.default]
        again = yield [space.default]
        assert first == [again[0], again[0]], "another reading of the same config"
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as exit_:
            status = int(str(exit_.code))
        return status, *capsys.readouterr()

    return run


def python_m(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own."""
    command = [sys.executable, "-m", "pytest_kerneltune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def bowl(size: int) -> list[Trial]:
    """Trials of a space of ``size`` squared configs, the best in the middle, the last row failed."""
    return [
        Trial({"x": x, "y": y}, latency_ms=1.0 + abs(x - size // 2) + abs(y - size // 2), samples_ms=(0.5, 1.5))
        if y < size - 1
        else Trial({"x": x, "y": y}, Status.CRASH)
        for x in range(size)
        for y in range(size)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recorded spaces, of 36 and 144 configs."""
    folder = tmp_path / "spaces"
    folder.mkdir()
    for name, size in (("large", 12), ("small", 6)):
        data = Recording.of(bowl(size)).to_json({"name": name})
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(data).encode()))
    return folder


@pytest.fixture
def searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of SEARCHES."""
    (tmp_path / "my_searches.py").write_text(SEARCHES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_searches", raising=False)
    return "my_searches"


QUICK = ("--seeds=3", "--jobs=1", "--budgets", "10", "30")


def rows(out: str) -> dict[str, list[str]]:
    """The last table's cells by the first word of a line."""
    return {line.split()[0]: line.split()[1:] for line in out.strip().split("\n\n")[-1].splitlines()}


# --- a kernel's space, from the test run to the comparison ---


def test_a_tuned_kernel_becomes_a_space_that_searches_are_compared_on(suite: Suite, command: Command) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=FiniteSearch")
    assert run.ret == 0
    status, out, err = command("record-spaces", suite.root / "spaces", "--least", "60")
    assert (status, err) == (0, "")
    (path,) = (suite.root / "spaces").glob("*.json.gz")
    assert out.startswith(f"{path}: 90 of 90 combinations of the values tried, 6 failed, ")
    assert path.name.startswith("kernel-n7_")

    recorded = RecordedSpace.load(path)
    trials = [Trial.from_json(t) for t in run.kernels["kernel[n7]"]["trials"]]
    assert len(trials) == len(recorded) == 90
    for trial in trials:
        config = {name: tuple(v) if isinstance(v, list) else v for name, v in trial.config.items()}
        found = recorded.measure(recorded.space.canonical(config))
        assert (found.status, found.latency_ms) == (trial.status, trial.latency_ms)
    assert recorded.has_repeats
    data = json.loads(gzip.decompress(path.read_bytes()))
    assert (data["kernel"], data["stats"]["failed"]) == ("kernel[n7]", 6)
    assert data["gpu"]
    assert "FiniteSearch" in data["source"]
    assert set(data["fail"].values()) == {"runtime"}

    compared = python_m(
        "compare-searches", "spaces", "--seeds=2", "--budgets=30", "--jobs=2", "--noise=2", cwd=suite.root
    )
    assert (compared.returncode, compared.stderr) == (0, "")
    assert list(rows(compared.stdout)) == ["mean", *dict.fromkeys([DEFAULT_SEARCH, "LFBOTreeSearch", "RandomSearch"])]


def entry(fingerprint: str = "ab" * 32, kernel: str = "bowl[n1]", **changes: Any) -> Entry:
    run = Run(
        algorithm="FiniteSearch",
        effort=Effort.QUICK,
        seed=0,
        finished=True,
        created="2026-01-02T03:04:05+00:00",
        trials=tuple(bowl(8)),
        origin={"device": "NVIDIA H200 / 1", "torch": "2.9"},
    )
    return Entry(fingerprint, kernel, (replace(run, **changes),), {"x": 4, "y": 4})


@pytest.fixture
def cache(tmp_path: Path) -> Callable[..., Path]:
    def write(*entries: Entry) -> Path:
        for each in entries:
            path = tmp_path / "cache" / each.fingerprint[:2] / f"{each.fingerprint}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rendered(each))
        return tmp_path / "cache"

    return write


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_each_entry_is_named_after_its_kernel_and_device(
    command: Command, cache: Callable[..., Path], tmp_path: Path
) -> None:
    edited, other = entry(fingerprint="cd" * 32), entry(fingerprint="ef" * 32, kernel="../other", origin={})
    out = tmp_path / "out"
    status, _, err = command("record-spaces", out, "--cache", cache(entry(), edited, other))
    assert (status, err) == (0, "")
    stems = ["bowl-n1_NVIDIA-H200-1_abababab", "bowl-n1_NVIDIA-H200-1_cdcdcdcd", "other_unnamed"]
    assert names(out) == [stem + suffix for stem in stems for suffix in (".json.gz", ".reps.npz")]


@pytest.mark.parametrize(
    ("pattern", "found"), [("bowl[n1]", ["bowl-n1"]), ("bowl*", ["bowl-n1", "bowl-n2"]), ("bowl[[]n?]", None)]
)
def test_kernels_are_chosen_by_name(
    pattern: str, found: list[str] | None, command: Command, cache: Callable[..., Path], tmp_path: Path
) -> None:
    where = cache(*(entry(fingerprint=f"{i}" * 64, kernel=k) for i, k in enumerate(("bowl[n1]", "bowl[n2]", "other"))))
    status, _, err = command("record-spaces", tmp_path / "out", "--cache", where, "--kernel", pattern)
    assert status == (2 if found is None else 0)
    assert [n.split("_")[0] for n in names(tmp_path / "out") if n.endswith("gz")] == (found or [])
    assert ("holds no kernel" in err) == (found is None)


def test_small_and_unreadable_entries_are_named_and_the_others_written(
    command: Command, cache: Callable[..., Path], tmp_path: Path
) -> None:
    small = entry(fingerprint="cd" * 32, kernel="small", trials=tuple(bowl(5)))
    failed = entry(fingerprint="ee" * 32, kernel="failed", trials=(Trial({"x": 1}, Status.CRASH),) * 60)
    where = cache(entry(), small, failed)
    for stem in ("f0" * 32, "f1" * 32):
        (where / stem[:2]).mkdir()
    (where / "f0" / f"{'f0' * 32}.json").write_text("{")
    (where / "f1" / f"{'f1' * 32}.json").write_text(json.dumps({**to_json(entry()), "schema": 999}))
    status, _, err = command("record-spaces", tmp_path / "out", "--cache", where)
    assert status == 1
    assert names(tmp_path / "out") == ["bowl-n1_NVIDIA-H200-1.json.gz", "bowl-n1_NVIDIA-H200-1.reps.npz"]
    for named in ("small: 25 trials are fewer than --least 50", "failed: none of its configs", "f0f0", "newer"):
        assert named in err
    assert command("record-spaces", tmp_path / "out", "--cache", cache(small), "--least=25", "--force")[0] == 1
    assert "small_NVIDIA-H200-1.json.gz" in names(tmp_path / "out")


def test_files_are_replaced_only_by_force(command: Command, cache: Callable[..., Path], tmp_path: Path) -> None:
    where, out = cache(entry()), tmp_path / "out"
    assert command("record-spaces", out, "--cache", where)[0] == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    bare = tuple(replace(t, samples_ms=(), latency_ms=2 * t.latency_ms) for t in bowl(8))
    cache(entry(trials=bare))
    status, _, err = command("record-spaces", out, "--cache", where)
    assert status == 1
    assert re.search(r"skipped bowl\[n1\]: .*\.json\.gz exists; --force replaces it", err)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert command("record-spaces", out, "--cache", where, "--force")[0] == 0
    (path,) = out.iterdir()  # the readings of before are not those of these trials
    assert RecordedSpace.load(path).best_ms == 2.0


def test_the_cache_is_found_as_the_plugin_finds_it(
    command: Command, cache: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELTUNE_CACHE_DIR", str(cache(entry())))
    assert command("record-spaces", tmp_path / "out")[0] == 0
    monkeypatch.setenv("KERNELTUNE_CACHE_DIR", str(tmp_path / "nowhere"))
    status, _, err = command("record-spaces", tmp_path / "out")
    assert status == 2
    assert "no tuning cache at" in err
    assert "nowhere" in err


# --- comparing searches ---


def test_means_are_printed_in_the_order_given_and_spaces_on_request(
    folder: Path, command: Command, searches: str
) -> None:
    wanted = ("RandomSearch", f"{searches}:Climber")
    status, out, err = command("compare-searches", folder, *QUICK, "--by-space", "--searches", *wanted)
    assert (status, err) == (0, "")
    title, *tables = out.strip().split("\n\n")
    assert title == "2 spaces, 3 seeds, full effort"
    assert [t.split()[0] for t in tables] == [*wanted, "mean"]
    assert [line.split()[0] for line in tables[0].splitlines()] == ["RandomSearch", "large", "small"]
    head = tables[-1].splitlines()[0].split()[3:]
    assert head == ["f@10", "f@30", "P@10", "P@30", "N95", "hit95", "CPU", "s"]
    assert list(rows(out)) == ["mean", *wanted]
    chance, climber = (rows(out)[name] for name in wanted)
    assert float(climber[1]) > float(chance[1])


def test_the_same_command_prints_the_same_table_in_one_process_or_two(
    folder: Path, command: Command, searches: str
) -> None:
    arguments = ["compare-searches", str(folder), "--seeds=2", "--budgets", "20", "--by-space"]
    arguments += ["--searches", "RandomSearch", f"{searches}:Climber"]
    status, out, _ = command(*arguments, "--jobs=1")
    process = python_m(*arguments, "--jobs=2", cwd=folder.parent)
    assert (status, process.returncode, process.stderr) == (0, 0, "")
    without_cpu = [[re.sub(r"\s+\S+$", "", line) for line in text.splitlines()] for text in (out, process.stdout)]
    assert without_cpu[0] == without_cpu[1]


def test_a_search_that_fails_is_named_and_the_others_go_on(folder: Path, command: Command, searches: str) -> None:
    mine = [f"{searches}:{name}" for name in ("Wrong", "Picky", "Broken", "Clinging")]
    status, out, err = command("compare-searches", folder, *QUICK, "--searches", *mine, "RandomSearch", "--by-space")
    assert status == 1
    assert err.splitlines() == [
        f"{searches}:Wrong failed on large: SpaceError: x: 99 is not an integer from 0 to 11",
        f"{searches}:Wrong failed on small: SpaceError: x: 99 is not an integer from 0 to 5",
        f"{searches}:Picky failed on large: RuntimeError: too large",
        f"{searches}:Broken failed on large: RuntimeError: lost it",
        f"{searches}:Broken failed on small: RuntimeError: lost it",
    ]
    assert " ".join(rows(out)[f"{searches}:Wrong"]) == "failed on 2 of 2 spaces"
    assert " ".join(rows(out)[f"{searches}:Picky"]) == "failed on 1 of 2 spaces"
    assert len(rows(out)["RandomSearch"]) == len(rows(out)[f"{searches}:Clinging"]) == 7


def test_a_search_that_takes_its_process_along_is_an_error(folder: Path, searches: str) -> None:
    arguments = ("--seeds=2", "--jobs=2", "--searches", f"{searches}:Fatal")
    process = python_m("compare-searches", str(folder), *arguments, cwd=folder.parent)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.endswith("a process that replayed searches died; --jobs 1 shows where\n")


def test_a_search_that_ends_early_keeps_its_best(folder: Path, command: Command, searches: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    name = f"{searches}:Picky"
    arguments = ("--spaces", "sm*", "--budgets", "36", "50", "--json", report)
    assert command("compare-searches", folder, "--jobs=1", "--seeds=1", *arguments, "--searches", name)[0] == 0
    curve = json.loads(report.read_text())["searches"][0]["spaces"]["small"]["curve"]["median"]
    assert len(curve) == 50
    assert curve[35:] == [1.0] * 15
    assert curve[0] == pytest.approx(1 / 7)


def test_searches_are_told_how_many_configs_are_measured_at_once(
    folder: Path, command: Command, searches: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    arguments = ("--seeds=1", "--jobs=1", "--budgets", "30", "--json", report)
    for size, batches in ((1, 30), (8, 4)):
        name = f"{searches}:Batches"
        assert command("compare-searches", folder, *arguments, "--batch", size, "--searches", name)[0] == 0
        assert json.loads(report.read_text())["searches"][0]["spaces"]["large"]["batches"] == batches


def record_readings(folder: Path) -> None:
    import numpy as np

    for path in folder.glob("*.json.gz"):
        rng = random.Random(0)
        deviations = [[rng.randint(-5000, 5000) for _ in range(8)] for _ in range(len(RecordedSpace.load(path)))]
        np.savez(str(path).replace(".json.gz", ".reps.npz"), rep=np.array(deviations, dtype=np.int16))


def test_with_noise_a_worse_config_may_look_best_and_counts_as_what_it_is(
    folder: Path, command: Command, searches: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    name = f"{searches}:Picky"
    arguments = ("--spaces", "small", "--budgets", "36", "--json", report, "--jobs=1", "--seeds=20")
    status, out, _ = command("compare-searches", folder, *arguments, "--searches", name, "--noise=1")
    assert (status, out.splitlines()[0]) == (
        0,
        "small, 20 seeds, full effort, readings averaged: 1 (exact on 1: no repeats)",
    )
    record_readings(folder)
    ends = []
    for draws in (0, 1, 1, 100):
        assert command("compare-searches", folder, *arguments, "--searches", name, f"--noise={draws}")[0] == 0
        ends.append(json.loads(report.read_text())["searches"][0]["spaces"]["small"]["curve"]["mean"][-1])
    assert ends[0] == 1.0
    assert ends[1] == ends[2] < ends[3] <= 1.0
    again = command("compare-searches", folder, *arguments, "--searches", f"{searches}:Repeater", "--noise=1")
    assert again[0] == 0


def test_everything_is_in_the_json_report(folder: Path, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert command("compare-searches", folder, *QUICK, "--searches", "RandomSearch", "--json", path)[0] == 0
    report = json.loads(path.read_text())
    assert report["schema"] == 1
    assert {"budgets": [10, 30], "seeds": 3, "effort": "full"}.items() <= report["options"].items()
    assert "python" in report["versions"]
    assert report["spaces"]["small"] == {"configs": 36, "worked": 30, "best_ms": 1.0, "worst_ms": 7.0}
    (search,) = report["searches"]
    assert (search["name"], search["errors"]) == ("RandomSearch", {})
    small, large = search["spaces"]["small"], search["spaces"]["large"]
    assert set(small["curve"]) == {"mean", "median", "lower_quartile", "upper_quartile"}
    assert {len(curve) for curve in small["curve"].values()} == {30}
    assert small["f"]["30"] == small["curve"]["median"][-1]
    assert search["mean"]["P"]["10"] == pytest.approx((small["P"]["10"] + large["P"]["10"]) / 2, abs=1e-5)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_plot_is_drawn_the_same_each_time(
    suffix: str, magic: bytes, folder: Path, command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / f"{number}{suffix}" for number in (1, 2)]
    for picture in pictures:
        status, _, err = command("compare-searches", folder, *QUICK, "--searches", "RandomSearch", "--plot", picture)
        assert (status, err) == (0, "")
    first, second = (picture.read_bytes() for picture in pictures)
    assert first.startswith(magic)
    assert first == second


def test_a_single_measurement_is_plotted(folder: Path, command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = (*QUICK[:2], "--budgets", "1", "--plot", tmp_path / "p.svg")
    status, _, err = command("compare-searches", folder, "--searches", "RandomSearch", *options)
    assert (status, err) == (0, "")


def test_a_plot_without_matplotlib_says_what_to_install_before_anything_runs(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = command("compare-searches", folder, *QUICK, "--plot", folder / "p.png")
    assert (status, out) == (2, "")
    assert "pip install pytest-kerneltune[plot]" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--searches", "Nonesuch"], "unknown search 'Nonesuch'; known: "),
        (["--searches", "nonesuch:Search"], "no search 'nonesuch:Search': No module named 'nonesuch'"),
        (["--searches", "json:Search"], "has no attribute 'Search'"),
        (["--searches", "json:JSONDecoder"], "is not a search"),
        (["--spaces", "small", "x*"], "'x*' matches none of large, small"),
        (["--plot", "picture.jpg"], "does not end in .png, .svg, .pdf"),
        (["--json", "nowhere/report.json"], "'nowhere/report.json' is not a file in a folder that exists"),
        (["--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["--budgets", "10", "x"], "'x' is not a whole number of at least 1"),
        (["--effort", "none"], "invalid choice"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    arguments: Sequence[str], said: str, folder: Path, command: Command
) -> None:
    status, out, err = command("compare-searches", folder, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_a_folder_that_is_empty_or_missing_and_a_bad_file_are_named(
    folder: Path, command: Command, tmp_path: Path
) -> None:
    for empty in (tmp_path, tmp_path / "missing"):
        status, _, err = command("compare-searches", empty)
        assert status == 2
        assert f"{str(empty)!r} holds no recorded spaces" in err
    (folder / "bad.json.gz").write_bytes(b"bad")
    status, out, err = command("compare-searches", folder, "--jobs=1")
    assert (status, out) == (2, "")
    assert "bad.json.gz is not a recorded space" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str, command: Command) -> None:
    status, out, _ = command(name, "--help")
    assert status == 0
    assert f"python -m pytest_kerneltune {name} " in out.partition("example")[2]


def test_without_a_command_the_commands_are_listed(command: Command) -> None:
    status, out, _ = command("--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)
    assert command()[0] == 2
    assert command("tidy-up")[0] == 2
