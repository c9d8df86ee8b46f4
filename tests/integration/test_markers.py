"""``@pytest.mark.kerneltune`` and ``@tunable(threshold=...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

NONE = "--autotune=none"

KERNEL = """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS)

def test_session(kernel): pass

@pytest.mark.kerneltune(threshold="900%")
def test_lenient(kernel): pass

@pytest.mark.kerneltune(threshold="50%", missing_baseline="fail")
class TestStrict:
    def test_strict(self, kernel): pass

    @pytest.mark.kerneltune(threshold=0.9, missing_baseline="warn")
    def test_closest(self, kernel): pass

    @pytest.mark.kerneltune(threshold="900%")
    def test_part(self, kernel): pass
"""


def test_each_test_is_judged_by_its_own_marker(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    run = suite.run(NONE, "--perf-threshold=900%", "--strict-markers")
    assert run.outcomes == {"passed": 3, "failed": 2}
    assert "FAILED test_it.py::TestStrict::test_strict - kernel new: there is no baseline yet" in run.out
    assert "FAILED test_it.py::TestStrict::test_part - kernel new: there is no baseline yet" in run.out

    suite.run(NONE, "--update-baselines")
    suite.edit("test_it.py", "spin(MS)", "spin(4 * MS)")
    run = suite.run(NONE, "--perf-threshold=900%")
    assert run.outcomes == {"passed": 3, "failed": 2}
    assert "FAILED test_it.py::TestStrict::test_strict - kernel REGRESSED" in run.out
    assert "FAILED test_it.py::TestStrict::test_closest - kernel REGRESSED" in run.out
    assert run.verdicts == {"kernel": "regressed"}
    assert run.report["counts"] == {"regressed": 1}

    lenient = suite.run(NONE, "test_it.py::test_lenient")
    assert lenient.outcomes == {"passed": 1}
    assert lenient.verdicts["kernel"] != "regressed"


def test_what_a_marker_calls_a_regression_can_be_accepted(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run(NONE, "--update-baselines")
    suite.edit("test_it.py", "spin(MS)", "spin(4 * MS)")
    strict = "test_it.py::TestStrict::test_strict"
    run = suite.run(NONE, "--perf-threshold=900%", "--update-baselines=regressed", strict)
    assert run.outcomes == {"passed": 1}
    assert "baselines written: 1 of 1" in run.out
    assert suite.run(NONE, "--perf-threshold=900%", strict).outcomes == {"passed": 1}


def test_a_tunable_may_have_a_threshold(suite: Suite) -> None:
    source = """
@tunable(space=BLOCKS, threshold="900%")
def lenient():
    return lambda block: spin(MS)

@tunable(space=BLOCKS)
def usual():
    return lambda block: spin(MS)

def test_lenient(lenient): pass
def test_usual(usual): pass

@pytest.mark.kerneltune(threshold="50%")
def test_marked(lenient): pass
"""
    suite.write("test_it.py", source)
    suite.run(NONE, "--update-baselines")
    suite.edit("test_it.py", "spin(MS)", "spin(4 * MS)")
    assert suite.run(NONE, "-k", "not marked").outcomes == {"passed": 1, "failed": 1, "deselected": 1}
    assert suite.run(NONE, "-k", "marked").outcomes == {"failed": 1, "deselected": 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'3%'", "got a positional argument; it takes threshold= and missing_baseline="),
        ("treshold='3%'", "got treshold=; it takes threshold= and missing_baseline="),
        ("threshold='3'", "(threshold=...): '3' is not a threshold"),
        ("threshold=3", "(threshold=...): 3 is not a threshold"),
        ("missing_baseline='skip'", "(missing_baseline='skip'): use 'fail' or 'warn'"),
    ],
)
@pytest.mark.parametrize("options", [(), (NONE,)], ids=["plain", "gate"])
def test_a_wrong_marker_is_a_usage_error(suite: Suite, options: tuple[str, ...], arguments: str, said: str) -> None:
    suite.write("test_it.py", f"@pytest.mark.kerneltune({arguments})\ndef test_it(): log('ran', 1)\n")
    run = suite.run(*options)
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: test_it.py::test_it: @pytest.mark.kerneltune{'' if said.startswith('(') else ' '}{said}" in run.err
    assert suite.lines("ran") == []


def test_markers_are_listed(suite: Suite) -> None:
    assert "@pytest.mark.kerneltune(threshold=None, missing_baseline=None)" in suite.run("--markers").out
