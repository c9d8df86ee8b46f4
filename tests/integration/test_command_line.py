"""Every option and its twin in the ini file, by what it changes; and what is said of values that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_kerneltune.search import DEFAULT_SEARCH, SEARCHES

if TYPE_CHECKING:
    from tests.integration.conftest import Run, Suite

KERNEL = """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS * (5 - block))

def test_kernel(kernel):
    log("verdict", kernel.verdict)
"""
WIDE = """
@tunable(space={"x": integer(0, 999), "block": choice(1, 2)})
def kernel():
    return lambda x, block: spin(MS)

def test_kernel(kernel): pass
"""
FINITE, NONE = "--autotune=FiniteSearch", "--autotune=none"


class Given:
    """Runs with options from the command line, or with the same from the ini file."""

    def __init__(self, suite: Suite, ini: bool) -> None:
        self.suite, self.ini = suite, ini

    def run(self, *options: str, report: bool = True) -> Run:
        if not self.ini:
            return self.suite.run(*options, report=report)
        pairs = (option.removeprefix("--").partition("=") for option in options)
        lines = [f"{name.replace('-', '_')} = {value}" for name, _, value in pairs]
        self.suite.write("pytest.ini", "\n".join(["[pytest]", *lines]) + "\n")
        return self.suite.run(report=report)


@pytest.fixture(params=["command line", "ini file"])
def given(request: pytest.FixtureRequest, suite: Suite) -> Given:
    return Given(suite, request.param == "ini file")


def test_autotune(given: Given) -> None:
    given.suite.write("test_it.py", KERNEL)
    kernel = given.run(FINITE).kernels["kernel"]
    assert kernel["config"] == {"block": 4}
    assert kernel["search"]["source"] == "search"
    assert kernel["search"]["algorithm"] == "FiniteSearch"
    assert kernel["search"]["attempts"] == 3
    assert kernel["search"]["stopped"] == "search ended"
    assert len(kernel["trials"]) == 3


def test_the_ini_file_sets_what_the_command_line_sets(suite: Suite) -> None:
    suite.write("test_it.py", "def test_it(): pass\n")
    options = (
        *(FINITE, "--autotune-effort=full", "--autotune-budget=0.01s", "--autotune-configs=2", "--autotune-seed=3"),
        *("--autotune-cache=here", "--update-baselines=new", "--baseline-dir=of/all", "--missing-baseline=fail"),
        "--perf-threshold=900%",
    )
    usual = suite.run(NONE).report["run"]["settings"]
    flags = suite.run(*options, "--autotune-force").report["run"]["settings"]
    assert Given(suite, ini=True).run(*options, "--autotune-force=yes").report["run"]["settings"] == flags
    names = [option.removeprefix("--").partition("=")[0].replace("-", "_") for option in (*options, "--autotune-force")]
    assert [name for name in names if flags[name] == usual[name]] == []


def test_the_command_line_wins(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.write("pytest.ini", "[pytest]\nautotune = FiniteSearch\nautotune_seed = 5\n")
    run = suite.run(NONE, "--autotune-seed=7")
    assert run.kernels["kernel"]["search"]["source"] == "default"
    assert run.report["run"]["settings"]["autotune_seed"] == 7


@pytest.mark.parametrize("where", ["addopts", "PYTEST_ADDOPTS"])
def test_options_from_elsewhere(suite: Suite, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    suite.write("perf/test_it.py", KERNEL)
    if where == "addopts":
        suite.write("pytest.ini", "[pytest]\naddopts = --autotune-configs=1 --autotune\n")
    else:
        monkeypatch.setenv(where, "--autotune-configs=1 --autotune")
    run = suite.run("perf", "--autotune=RandomSearch")
    assert run.outcomes == {"passed": 1}
    assert run.kernels["kernel"]["search"]["attempts"] == 1


@pytest.mark.parametrize("words", [["--autotune", "perf"], ["perf", "--autotune"], ["-v", "--autotune", "perf/"]])
def test_a_bare_autotune_leaves_the_path_alone(suite: Suite, words: list[str]) -> None:
    suite.write("perf/test_it.py", KERNEL)
    suite.write(
        "perf/conftest.py", "def pytest_addoption(parser): parser.addoption('--of-perf', action='store_true')\n"
    )
    suite.write("other/test_other.py", "def test_other(): assert False\n")
    run = suite.run(*words, "--of-perf", "--autotune-configs=1", "--autotune-effort=none")
    assert run.outcomes == {"passed": 1}
    assert run.report["run"]["settings"]["autotune"] == DEFAULT_SEARCH


def test_a_bare_update_baselines_leaves_the_path_alone(suite: Suite) -> None:
    suite.write("perf/test_it.py", KERNEL)
    run = suite.run("--autotune", "none", "--update-baselines", "perf")
    assert run.outcomes == {"passed": 1}
    assert run.report["run"]["settings"]["update_baselines"] == ["all"]
    assert run.kernels["kernel"]["search"]["source"] == "default"


def test_effort(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    kernel = suite.run(FINITE, "--autotune-effort=full").kernels["kernel"]
    assert kernel["search"]["effort"] == "full"
    untuned = suite.run(FINITE, "--autotune-effort=none", "--autotune-cache=off").kernels["kernel"]
    assert untuned["search"]["source"] == "default"
    assert untuned["latency_ms"] > 0


def test_budget(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL.replace("MS * (5 - block)", "8"))
    search = suite.run(FINITE, "--autotune-budget=0.01s").kernels["kernel"]["search"]
    assert search["attempts"] == 1
    assert search["stopped"] == "time budget of 0.01 s"


def test_configs(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    search = suite.run(FINITE, "--autotune-configs=2").kernels["kernel"]["search"]
    assert search["attempts"] == 2
    assert search["stopped"] == "budget of 2 configs"


def test_seed(suite: Suite) -> None:
    suite.write("test_it.py", WIDE)
    run = suite.run("--autotune=RandomSearch", "--autotune-configs=1", "--autotune-seed=3")
    assert run.kernels["kernel"]["search"]["seed"] == 3


def test_a_seed_decides_what_is_tried(suite: Suite) -> None:
    suite.write("test_it.py", WIDE)

    def tried(seed: int) -> list[object]:
        options = ("--autotune=RandomSearch", "--autotune-configs=3", "--autotune-cache=off")
        run = suite.run(*options, f"--autotune-seed={seed}")
        return [trial["config"] for trial in run.kernels["kernel"]["trials"]]

    first = tried(1)
    assert len(first) == 3
    assert tried(1) == first
    assert tried(2) != first


def test_cache(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    assert suite.run(FINITE, "--autotune-cache=here").kernels["kernel"]["search"]["source"] == "search"
    assert [p.name for p in (suite.root / "here").glob("*/*.json")]
    assert suite.run(FINITE, "--autotune-cache=here").kernels["kernel"]["search"]["source"] == "cache"
    assert suite.run(FINITE, "--autotune-cache=off").kernels["kernel"]["search"]["source"] == "search"
    assert not (suite.root / "cache").exists()


def test_force(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run(FINITE)
    assert suite.run(FINITE, "--autotune-force").kernels["kernel"]["search"]["source"] == "search"


def test_json(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.write("pytest.ini", "[pytest]\nautotune_json = out/ini.json\n")
    suite.run(report=False)
    assert json.loads((suite.root / "out/ini.json").read_text())["counts"] == {"checked": 1}
    suite.run("--autotune-json=out/flag.json", report=False)
    assert (suite.root / "out/flag.json").exists()


def test_baseline_dir(suite: Suite) -> None:
    suite.write("perf/test_it.py", KERNEL)
    suite.write("test_it.py", KERNEL.replace("MS", "2 * MS"))
    suite.write("perf/__init__.py", "")
    suite.run(NONE, "--update-baselines=all", "--baseline-dir=of/all")
    files = sorted(p.relative_to(suite.root / "of/all").parts[1:] for p in (suite.root / "of/all").rglob("*.json"))
    assert files == [("perf", "test_it.json"), ("test_it.json",)]
    assert suite.baseline_files == []
    again = suite.run(NONE, "--baseline-dir=of/all")
    assert {kernel["search"]["source"] for kernel in again.report["kernels"]} == {"baseline"}


def test_missing_baseline(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("test_it.py", KERNEL)
    run = suite.run(NONE, "--missing-baseline=fail")
    assert run.outcomes == {"failed": 1}
    assert "kernel new: there is no baseline yet" in run.out
    assert "record a baseline: pytest test_it.py --autotune=none --update-baselines=new" in run.out
    monkeypatch.setenv("CI", "true")
    assert suite.run(NONE, "--missing-baseline=warn").outcomes == {"passed": 1}


@pytest.mark.parametrize(("ci", "outcome"), [("true", "failed"), ("1", "failed"), ("false", "passed"), ("", "passed")])
def test_a_missing_baseline_fails_in_ci(suite: Suite, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str) -> None:
    suite.write("test_it.py", KERNEL)
    monkeypatch.setenv("CI", ci)
    assert suite.run(NONE).outcomes == {outcome: 1}


def test_recording_a_baseline_is_no_failure_in_ci(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("test_it.py", KERNEL)
    monkeypatch.setenv("CI", "true")
    assert suite.run(NONE, "--update-baselines").outcomes == {"passed": 1}
    assert suite.run(NONE).outcomes == {"passed": 1}


def test_perf_threshold(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run(NONE, "--update-baselines")
    suite.edit("test_it.py", "spin(MS", "spin(3 * MS")
    run = suite.run(NONE, "--perf-threshold=900%")
    assert run.outcomes == {"passed": 1}
    assert run.kernels["kernel"]["verdict"]["threshold"] == 9.0
    assert "threshold 900%" in run.out


def test_noisy_verdict(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write(
        "test_it.py",
        """
def slow():
    return float(os.environ["SLOWNESS"])

@tunable(space=BLOCKS)
def kernel():
    return PythonKernel(lambda block: spin(MS * slow()), reference=lambda: spin(2 * MS * slow()))

def test_kernel(kernel): pass
""",
    )
    monkeypatch.setenv("SLOWNESS", "1")
    suite.run(NONE, "--update-baselines")
    monkeypatch.setenv("SLOWNESS", "8")
    run = suite.run(NONE)
    assert run.verdicts == {"kernel": "noisy"}
    assert "disagree: the machine's speed changed" in run.out
    assert run.outcomes == {"passed": 1}
    suite.write("pytest.ini", "[pytest]\nnoisy_verdict = fail\n")
    run = suite.run(NONE)
    assert run.outcomes == {"failed": 1}
    assert "kernel noisy: " in run.out


def test_run_timeout(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL.replace("spin(MS * (5 - block))", "time.sleep(60)"))
    suite.write("pytest.ini", "[pytest]\nrun_timeout = 0.2\n")
    run = suite.run(NONE)
    assert run.outcomes == {"failed": 1}
    assert "run timeout" in run.out


def test_compile_timeout(suite: Suite) -> None:
    compiler = suite.root / "slowcc"
    compiler.write_text("#!/bin/sh\nsleep 60\n")
    compiler.chmod(0o755)
    suite.write(
        "test_it.py",
        f"""
@tunable(space=BLOCKS)
def kernel():
    return CKernel("int f(void) {{ return 1; }}", "f", returns=int, compiler={str(compiler)!r})

def test_kernel(kernel): pass
""",
    )
    suite.write("pytest.ini", "[pytest]\ncompile_timeout = 0.2\ncompile_jobs = 1\n")
    run = suite.run()
    assert run.outcomes == {"failed": 1}
    assert "compile timeout" in run.out
    assert run.report["run"]["settings"]["compile_jobs"] == 1


def test_the_header_says_what_the_run_does(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    assert "kerneltune" not in suite.run("--collect-only").out.partition("rootdir")[0]
    out = suite.run(FINITE, "--autotune-configs=1", "--update-baselines=new").out
    line = next(line for line in out.splitlines() if line.startswith("kerneltune: FiniteSearch"))
    assert "effort quick, seed 0, at most 1 config a kernel; threshold 3%; cache " in line
    assert line.endswith("baselines written: new")


BAD = [
    ("--autotune=RandomSerch", [*SEARCHES, "none"]),
    ("--autotune-effort=huge", ["none, quick, full"]),
    ("--autotune-budget=-3", ["positive time"]),
    ("--autotune-budget=soon", ["positive time"]),
    ("--autotune-configs=0", ["at least 1"]),
    ("--autotune-seed=1.5", ["at least 0"]),
    ("--autotune-cache=test_it.py", ["a directory"]),
    ("--autotune-json=.", ["is a directory"]),
    ("--baseline-dir=test_it.py", ["a directory"]),
    ("--update-baselines=some", ["all, new, improved, regressed"]),
    ("--missing-baseline=ignore", ["warn, fail"]),
    ("--perf-threshold=3", ["percentage"]),
    ("--perf-threshold=-3%", ["percentage"]),
]


@pytest.mark.parametrize(("option", "said"), BAD, ids=[option for option, _ in BAD])
def test_a_bad_value_is_a_usage_error(given: Given, option: str, said: list[str]) -> None:
    given.suite.write("test_it.py", KERNEL)
    run = given.run(*([] if option.startswith("--autotune=") else [NONE]), option, report="json" not in option)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    flag = option.partition("=")[0]
    name = flag if not given.ini else f"ini option {flag[2:].replace('-', '_')}"
    line = next(line for line in run.err.splitlines() if line.startswith("ERROR: "))
    assert name in line
    assert all(text in line for text in said)
    assert given.suite.lines("verdict") == []


@pytest.mark.parametrize(
    "line",
    [
        "noisy_verdict = ignore",
        "invalid_verdict = ignore",
        "incomparable_verdict = ignore",
        "compile_timeout = never",
        "run_timeout = 0",
        "compile_jobs = 0",
        "autotune_force = maybe",
    ],
)
def test_a_bad_value_in_the_ini_file_is_a_usage_error(suite: Suite, line: str) -> None:
    suite.write("pytest.ini", f"[pytest]\n{line}\n")
    suite.write("test_it.py", KERNEL)
    run = suite.run()
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: ini option {line.partition(' ')[0]}: " in run.err


def test_update_baselines_without_autotune_is_a_usage_error(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    run = suite.run("--update-baselines=new")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "--update-baselines needs latencies" in run.err
    assert "pytest --autotune=none --update-baselines=new" in run.err


def test_the_help_describes_every_option(suite: Suite) -> None:
    out = suite.run("--help").out
    for flag in ("--autotune", "--autotune-budget", "--update-baselines", "--missing-baseline", "--perf-threshold"):
        assert flag in out
    assert "noisy_verdict" in out
    assert Path(suite.root / "cache").exists() is False
