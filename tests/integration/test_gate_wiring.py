"""Tests that are run again, whose kernels are measured again, and ``--against`` with and without pytest-xdist."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

NONE, FINITE, LENIENT = "--autotune=none", "--autotune=FiniteSearch", "--perf-threshold=200%"

# The kernel is slow until a test is about to be run again.
KERNEL = """
SLOW = Path(__file__).parent / "slow"

@tunable(space=BLOCKS, scope="{scope}")
def kernel():
    def run(block):
        log("ran", f"{{SLOW.exists()}} {{block}}")
        spin((5 - block) * (6 if SLOW.exists() else 1) * MS)
        return 1
    return run

def test_kernel(kernel): log("seen", f"{{kernel.verdict}} {{kernel.latency_ms:.4f}}")
def test_later(kernel): log("later", kernel.verdict)
"""
CONFTEST = """
def pytest_runtest_logreport(report):
    if report.outcome == "rerun" and (Path(__file__).parent / "recovers").exists():
        (Path(__file__).parent / "slow").unlink(missing_ok=True)
"""


@pytest.fixture
def shaky(suite: Suite) -> Suite:
    """A kernel with a baseline, that is slower now and recovers when its test is run again."""
    suite.write("conftest.py", CONFTEST)
    suite.write("test_it.py", KERNEL.format(scope="function"))
    suite.run(NONE, "--update-baselines")
    for name in ("slow", "recovers"):
        suite.write(name, "")
    return suite


@pytest.mark.parametrize(
    ("scope", "options"),
    [("function", ()), ("module", ()), ("module", ("-n1",))],
    ids=["function", "module", "xdist"],
)
def test_a_rerun_measures_again_and_does_not_hide_it(
    shaky: Suite, monkeypatch: pytest.MonkeyPatch, scope: str, options: tuple[str, ...]
) -> None:
    shaky.write("test_it.py", KERNEL.format(scope=scope))
    summary = shaky.root / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    (shaky.root / "seen").unlink()
    run = shaky.run(*options, NONE, LENIENT, "--reruns=1", "--junitxml=junit.xml")
    assert run.outcomes == {"passed": 2, "rerun": 1}
    assert run.ret == 0
    kernel = run.kernels["kernel"]
    assert kernel["verdict"]["kind"] in ("ok", "improved")
    assert kernel["is_rerun"] is True
    first, second = (line.split() for line in shaky.lines("seen"))
    assert (first[0], second[0]) == ("regressed", kernel["verdict"]["kind"])
    assert float(second[1]) < float(first[1]) / 3
    assert shaky.lines("later")[-1] == kernel["verdict"]["kind"]
    remark = "passed on a retry, which is a sign of noise: measured 2 times, before this regressed +"
    assert f"kernel: {remark}" in run.out
    assert remark in kernel["verdict"]["remarks"][-1]
    assert remark in summary.read_text()
    cases = ElementTree.parse(shaky.root / "junit.xml").getroot().iter("testcase")
    attempts = [case for case in cases if case.attrib["name"] == "test_kernel"]
    verdicts = [
        [p.attrib["value"] for p in case.iter("property") if p.attrib["name"].endswith(".verdict")] for case in attempts
    ]
    assert verdicts == [["regressed"], [kernel["verdict"]["kind"]]]


def test_a_kernel_that_stays_slow_fails_with_its_last_measurement(shaky: Suite) -> None:
    (shaky.root / "recovers").unlink()
    run = shaky.run(NONE, LENIENT, "--reruns=1", "test_it.py::test_kernel")
    assert run.outcomes == {"failed": 1, "rerun": 1}
    assert run.verdicts == {"kernel": "regressed"}
    assert run.report["counts"] == {"regressed": 1}
    assert "kernel: measured 2 times, before this regressed +" in run.out
    assert len(shaky.lines("seen")[1:]) == 2


def test_a_rerun_for_the_tests_own_reasons_measures_again_without_a_search(shaky: Suite) -> None:
    shaky.edit(
        "test_it.py",
        "def test_kernel(kernel): log",
        "def test_kernel(kernel):\n    assert kernel.latency_ms < 0.1\n    log",
    )
    (shaky.root / "ran").unlink()
    run = shaky.run(FINITE, "--autotune-cache=off", "--reruns=1", "--perf-threshold=900%")
    assert run.outcomes == {"passed": 2, "rerun": 1}
    assert run.kernels["kernel"]["search"]["attempts"] == 3
    ran = set(shaky.lines("ran"))
    assert {"True 1", "True 2", "True 4"} <= ran
    assert "False 2" not in ran  # only the config found before, and the baseline's
    assert "kernel: measured 2 times, before this ok +" in run.out


COMPARED = """
from helper import AMOUNT

@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(AMOUNT * MS)

def test_kernel(kernel): pass
"""


def test_updates_add_sessions_to_a_young_baseline(suite: Suite) -> None:
    (suite.root / "helper.py").write_text("AMOUNT = 1\n")
    suite.write("test_it.py", COMPARED)
    options = (NONE, LENIENT, "--update-baselines")
    for _ in range(2):
        assert suite.run(*options).outcomes == {"passed": 1}
    assert len(suite.rows()["kernel"]["sessions"]) == 2
    run = suite.run(NONE, LENIENT)
    assert "kernel: young baseline: 2 of 5 sessions" in run.out
    (suite.root / "helper.py").write_text("AMOUNT = 6\n")
    run = suite.run(*options)
    assert run.outcomes == {"passed": 1}
    assert " us -> " in run.out
    row = suite.rows()["kernel"]
    assert len(row["sessions"]) == 1
    assert [entry["verdict"] for entry in row["past"]] == ["anchor", "regressed"]


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_workers_compare_with_the_controllers_checkout(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("test_it.py", COMPARED)
    (suite.root / "helper.py").write_text("AMOUNT = 1\n")
    git(suite.root, "init", "-q", ".")
    git(suite.root, "add", "test_it.py", "helper.py")
    git(suite.root, "commit", "-q", "-m", "base")
    base = git(suite.root, "rev-parse", "HEAD")
    (suite.root / "helper.py").write_text("AMOUNT = 5\n")
    temporary = suite.root.parent / f"{suite.root.name}-temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    run = suite.run_process("-n1", NONE, "--against=HEAD", "--junitxml=junit.xml")
    assert run.outcomes == {"failed": 1}, run.out
    verdict = run.kernels["kernel"]["verdict"]
    assert (verdict["kind"], verdict["blame"], verdict["basis"]) == ("regressed", "code", "base")
    assert base.startswith(verdict["against"].split()[-1])
    assert f"vs {base[:7]}" in run.out
    found = {p.attrib["name"]: p.attrib["value"] for p in ElementTree.parse(suite.root / "junit.xml").iter("property")}
    assert (found["kerneltune.kernel.basis"], found["kerneltune.kernel.against"]) == ("base", verdict["against"])
    assert [p.name for p in temporary.iterdir() if p.name.startswith("kerneltune-base")] == []


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_commit_that_is_not_there_is_a_usage_error(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write("test_it.py", COMPARED)
    (suite.root / "helper.py").write_text("AMOUNT = 1\n")
    git(suite.root, "init", "-q", ".")
    run = suite.run(NONE, *options, "--against=no-such-branch", report=False)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --against=no-such-branch: " in run.err
    assert suite.run(NONE, *options, "--against=no-such-branch", "--collect-only", report=False).ret == 0


@pytest.mark.parametrize("option", ["--setup-only", "--setup-plan", "--collect-only"])
def test_what_runs_no_tests_asks_git_for_nothing(suite: Suite, option: str) -> None:
    suite.write("test_it.py", COMPARED)
    (suite.root / "helper.py").write_text("AMOUNT = 1\n")
    run = suite.run(NONE, "--against=no-such-branch", option, report=False)
    assert run.ret == 0
    assert "git knows" not in run.out + run.err
