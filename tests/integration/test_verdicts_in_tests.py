"""What a verdict does to the tests that use the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNEL = """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS * block)

def test_kernel(kernel):
    assert kernel() == 1
"""


def test_a_new_kernel_passes_and_says_how_to_record_a_baseline(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    run = suite.run("--autotune=none")
    assert run.outcomes == {"passed": 1}
    assert run.ret == 0
    assert run.verdicts == {"kernel": "new"}
    assert "record a baseline: pytest" in run.out
    assert "--update-baselines=new" in run.out


def test_an_unchanged_kernel_does_not_fail(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run("--autotune=none", "--update-baselines")
    run = suite.run("--autotune=none")
    assert run.outcomes == {"passed": 1}
    assert run.ret == 0
    assert run.kernels["kernel"]["verdict"]["change"] is not None
    assert run.kernels["kernel"]["search"]["source"] == "baseline"


def test_a_regression_fails_the_test_itself_and_says_everything(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run("--autotune=none", "--update-baselines")
    suite.edit("test_it.py", "MS * block", "5 * MS * block")
    run = suite.run("--autotune=none", "--junitxml=junit.xml", "-rA")
    assert run.ret == 1
    assert run.outcomes == {"failed": 1}
    kernel = run.kernels["kernel"]
    assert kernel["verdict"]["kind"] == "regressed"
    assert kernel["verdict"]["blame"] == "code"
    run.result.stdout.re_match_lines(
        [
            r"kernel REGRESSED \+\d.*% \[\+\d.*%, \+\d.*%\]: 3\d\.?\d* us -> 1\d\d\.?\d* us",
            r"  why +slower than the baseline: .*; threshold 2\d\.?\d*% instead of 3%.*",
            r"  blame +code: the old config itself is slower than it was.*",
            r"  config +unchanged: block=1",
            r"  against +1 session of \d{4}-\d\d-\d\d",
            r"  accept +pytest test_it.py --autotune=none --update-baselines=regressed",
            r"FAILED test_it.py::test_kernel - kernel REGRESSED \+.*",
        ]
    )
    assert "Traceback" not in run.out
    assert "plugin.py" not in run.out

    case = ElementTree.parse(suite.root / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    assert case.find("error") is None
    failure = case.find("failure")
    assert failure is not None
    assert failure.attrib["message"].startswith("kernel REGRESSED")
    assert "\n" not in failure.attrib["message"]
    assert "--update-baselines=regressed" in str(failure.text)
    found = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
    assert found["kerneltune.kernel.verdict"] == "regressed"
    assert float(found["kerneltune.kernel.latency_ms"]) == pytest.approx(0.15, rel=0.5)
    assert float(found["kerneltune.kernel.change_pct"]) > 100


@pytest.mark.parametrize("style", ["line", "short", "native", "no"])
def test_every_style_of_traceback_points_at_the_test(suite: Suite, style: str) -> None:
    path = suite.write("test_it.py", WRONG)
    out = suite.run(f"--tb={style}").out
    assert "FAILED test_it.py::test_kernel - kernel is WRONG: its output differs" in out
    assert "plugin.py" not in out
    if style != "line":  # which is the whole text in some versions of pytest
        assert ("block=1: wrong output" in out) == (style != "no")
    if style == "line":
        line = path.read_text().splitlines().index("def test_kernel(kernel):") + 1
        assert f"{path}:{line}: kernel is WRONG" in out


def test_an_improvement_passes_and_says_how_to_keep_it(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL.replace("MS * block", "8 * MS * block"))
    suite.run("--autotune=none", "--update-baselines")
    suite.edit("test_it.py", "8 * MS * block", "MS * block")
    run = suite.run("--autotune=none")
    assert run.outcomes == {"passed": 1}
    assert run.verdicts == {"kernel": "improved"}
    assert "make the gain the new baseline" in run.out


def test_a_baseline_of_other_conditions_is_incomparable(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run("--autotune=none", "--update-baselines")
    file = suite.baseline_files[0]
    file.write_text(file.read_text().replace('"cores": "', '"cores": "9'))
    run = suite.run("--autotune=none")
    assert run.outcomes == {"passed": 1}
    assert run.verdicts == {"kernel": "incomparable"}
    assert "cores was 9" in run.out
    assert "--update-baselines=new" in run.out

    suite.write("pytest.ini", "[pytest]\nincomparable_verdict = fail\n")
    run = suite.run("--autotune=none")
    assert run.outcomes == {"failed": 1}
    assert "kernel incomparable: the baseline was measured under other conditions" in run.out
    assert suite.run("--autotune=none", "--update-baselines=new").outcomes == {"passed": 1}
    assert suite.rows()["kernel"]["contract"]["cores"].startswith("9") is False


WRONG = """
@tunable(space=BLOCKS)
def kernel():
    def run(block):
        log("ran", block)
        return block
    return PythonKernel(run, reference=lambda: 2)

def test_kernel(kernel):
    log("body", "entered")
"""


@pytest.mark.parametrize("options", [(), ("--autotune=none",)], ids=["plain", "gate"])
def test_a_wrong_kernel_fails_and_is_not_timed(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write("test_it.py", WRONG)
    run = suite.run(*options)
    assert run.outcomes == {"failed": 1}
    assert run.ret == 1
    assert run.verdicts == {"kernel": "wrong"}
    assert "kernel is WRONG: its output differs from its reference, so it was not timed" in run.out
    assert "block=1: wrong output: output 1 of 1 elements differ" in run.out
    assert len(suite.lines("ran")) == 1
    assert suite.lines("body") == []


@pytest.mark.parametrize("options", [(), ("--autotune=none",)], ids=["plain", "gate"])
def test_a_kernel_that_raises_fails_the_test(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write("test_it.py", WRONG.replace("return block", "raise ZeroDivisionError('no tile')"))
    run = suite.run(*options)
    assert run.outcomes == {"failed": 1}
    assert run.verdicts == {"kernel": "failed"}
    assert "ZeroDivisionError: no tile" in run.out


def test_a_reference_that_raises_fails_the_test(suite: Suite) -> None:
    suite.write("test_it.py", WRONG.replace("reference=lambda: 2", "reference=lambda: 1 // 0"))
    run = suite.run("--autotune=none", "--update-baselines")
    assert run.outcomes == {"failed": 1}
    assert run.verdicts == {"kernel": "failed"}
    assert "the kernel cannot be set up, or its reference failed: ZeroDivisionError" in run.out
    assert suite.baseline_files == []


def test_two_failing_kernels_of_one_test_are_both_reported(suite: Suite) -> None:
    other = WRONG.replace("kernel", "other").replace("def test_other(other):\n    log", "def unused():\n    log")
    suite.write("test_it.py", WRONG + other + "\ndef test_both(kernel, other): pass\n")
    run = suite.run("test_it.py::test_both")
    assert run.outcomes == {"failed": 1}
    assert "kernel is WRONG" in run.out
    assert "other is WRONG" in run.out


def test_the_tests_own_failure_comes_first(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL.replace("== 1", "== 2"))
    run = suite.run()
    assert run.outcomes == {"failed": 1}
    assert "assert 1 == 2" in run.out


def test_an_expected_failure_may_be_a_regression(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    suite.run("--autotune=none", "--update-baselines")
    suite.edit("test_it.py", "MS * block", "5 * MS * block")
    suite.edit("test_it.py", "def test_kernel", "@pytest.mark.xfail(strict=True)\ndef test_kernel")
    run = suite.run("--autotune=none")
    assert run.outcomes == {"xfailed": 1}
    assert run.ret == 0
