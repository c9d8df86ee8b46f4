"""``--against=GITREF``: each kernel side by side with itself at the merge base, in a real repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Run, Suite

NONE = ("--autotune=none", "--against=main", "--perf-threshold=25%")

HELPER = """\
REPEAT = 1

def work():
    return REPEAT * 40_000

C = r'''
#include <math.h>
double sums(double *x, long n) {
    double total = 0;
    for (long repeat = 0; repeat < TIMES; repeat++)
        for (long i = 0; i < n; i++) total += sqrt(x[i] + repeat);
    return total;
}
'''
"""

KERNELS = """
import numpy as np
import helper

@tunable(space={"step": choice(1, 2)})
def looped():
    def run(step):
        total = 0
        for i in range(0, helper.work(), 1):
            total += i
        return 1
    return PythonKernel(run, reference=lambda: 1)

@tunable(space={"unroll": choice(1, 2)})
def compiled():
    times = 20 * helper.REPEAT
    return CKernel(helper.C.replace("TIMES", str(times)), "sums", (np.ones(4000), 4000), returns=float)

def test_looped(looped): pass
def test_compiled(compiled): pass
"""


@pytest.fixture
def repository(suite: Suite) -> Suite:
    """A repository whose branch main holds both kernels, with a branch of one more commit checked out."""
    suite.write("perf/test_it.py", KERNELS)
    (suite.root / "perf/helper.py").write_text(HELPER)
    (suite.root / ".gitignore").write_text("cache\nreport.json\n__pycache__\n")
    git(suite.root, "init", "-q", "-b", "main")
    commit(suite.root, "kernels")
    git(suite.root, "checkout", "-q", "-b", "change")
    return suite


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commit(root: Path, message: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)


def verdicts(run: Run) -> dict[str, tuple[str, str, str]]:
    found = {name: kernel["verdict"] for name, kernel in run.kernels.items()}
    return {name: (v["kind"], v["blame"], v["basis"]) for name, v in found.items()}


def test_a_helpers_slowdown_is_red_and_the_unchanged_is_not(repository: Suite) -> None:
    run = repository.run(*NONE)
    assert run.outcomes == {"passed": 2}, run.out
    assert {kind for kind, _, _ in verdicts(run).values()} <= {"ok", "improved"}
    repository.edit("perf/helper.py", "REPEAT = 1", "REPEAT = 3")  # uncommitted: today is the working tree
    run = repository.run(*NONE)
    assert run.outcomes == {"failed": 2}, run.out
    assert set(verdicts(run).values()) == {("regressed", "code", "base")}
    base = git(repository.root, "rev-parse", "main").strip()
    assert base[:7] in run.out
    assert git(repository.root, "status", "--porcelain").split() == ["M", "perf/helper.py"]
    assert git(repository.root, "worktree", "list").count("\n") == 1


def test_it_is_the_merge_base_that_counts(repository: Suite) -> None:
    repository.edit("perf/helper.py", "REPEAT = 1", "REPEAT = 3")
    commit(repository.root, "slower")
    git(repository.root, "checkout", "-q", "main")
    repository.edit("perf/helper.py", "REPEAT = 1", "REPEAT = 9")
    commit(repository.root, "main goes on, much slower")
    git(repository.root, "checkout", "-q", "change")
    assert set(repository.run(*NONE).verdicts.values()) == {"regressed"}
    git(repository.root, "checkout", "-q", "main")
    assert set(repository.run("--autotune=none", "--against=HEAD~1").verdicts.values()) == {"regressed"}


def test_a_kernel_that_the_base_has_not_is_new_and_one_that_it_cannot_load_incomparable(repository: Suite) -> None:
    text = (repository.root / "perf/test_it.py").read_text()
    (repository.root / "perf/test_it.py").write_text(
        text
        + "\n@tunable(space=BLOCKS)\ndef added():\n    return lambda block: spin(MS)\ndef test_added(added): pass\n"
    )
    run = repository.run(*NONE, "-k", "added", "--missing-baseline=fail")
    assert (run.outcomes, run.verdicts) == ({"passed": 1, "deselected": 2}, {"added": "new"})
    git(repository.root, "checkout", "-q", "main")
    repository.edit("perf/helper.py", "return REPEAT * 40_000", "raise OSError('no such machine')")
    repository.edit("perf/test_it.py", "    times = 20", "    helper.work()\n    times = 20")
    commit(repository.root, "broken")
    git(repository.root, "revert", "--no-edit", "HEAD")
    run = repository.run("--autotune=none", "--against=HEAD~1", "-k", "compiled")
    assert run.verdicts == {"compiled": "incomparable"}
    assert "no such machine" in run.out


@pytest.mark.parametrize(
    ("ref", "message"),
    [("nowhere", "nowhere"), ("--all", "--all"), ("orphan", "orphan")],
)
def test_a_commit_that_cannot_be_compared_with_is_a_usage_error(repository: Suite, ref: str, message: str) -> None:
    git(repository.root, "checkout", "-q", "--orphan", "orphan")
    commit(repository.root, "another history")
    git(repository.root, "checkout", "-q", "change")
    run = repository.run("--autotune=none", f"--against={ref}", report=False)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "--against" in run.err
    assert message in run.err


def test_without_a_repository_it_is_a_usage_error(suite: Suite) -> None:
    suite.write("test_it.py", "def test_it(): pass\n")
    assert not any((parent / ".git").exists() for parent in suite.root.resolve().parents), os.fspath(suite.root)
    run = suite.run("--autotune=none", "--against=main", report=False)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "--against" in run.err


def test_what_is_not_timed_is_not_compared(repository: Suite) -> None:
    run = repository.run("--against=main", report=False)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert "--against needs latencies" in run.err
    (repository.root / "pytest.ini").write_text("[pytest]\nagainst = main\n")
    assert repository.run(report=False).ret == 0


def test_workers_of_xdist_compare_too(repository: Suite) -> None:
    repository.edit("perf/helper.py", "REPEAT = 1", "REPEAT = 3")
    run = repository.run(*NONE, "-n", "2")
    assert run.outcomes == {"failed": 2}, run.out
    assert set(verdicts(run).values()) == {("regressed", "code", "base")}


def test_a_stored_baseline_in_doubt_is_looked_at_side_by_side(repository: Suite) -> None:
    """The baseline was made on a machine three times as fast: what is stored says that everything is slower."""
    repository.run("--autotune=none", "--update-baselines", "-k", "looped")
    (file,) = repository.baseline_files
    commit(repository.root, "baseline")
    row = repository.rows()["looped"]
    session = row["sessions"][0]
    changed = file.read_text()
    for value in (session["latency_ms"], *session["ratios"].values()):
        changed = changed.replace(f": {value}", f": {value / 3:.4g}")
    file.write_text(changed)
    commit(repository.root, "as if from another machine")
    run = repository.run("--autotune=none", "--perf-threshold=25%", "-k", "looped")
    assert run.outcomes == {"passed": 1, "deselected": 1}, run.out
    ((kind, _, basis),) = verdicts(run).values()
    assert (kind in ("ok", "improved"), basis) == (True, "base")
    assert "against the stored baseline: regressed" in run.out + str(run.report)
