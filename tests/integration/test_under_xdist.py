"""pytest-xdist: the same verdicts as without it, one tuning a kernel, and one writer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kerneltune.search import DEFAULT_SEARCH

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

FINITE, NONE = "--autotune=FiniteSearch", "--autotune=none"

KERNELS = """
@tunable(space=BLOCKS, params=[1, 2])
def kernel(request):
    def run(block):
        log("ran", f"{os.getpid()} {request.param} {block}")
        spin(request.param * MS * (5 - block))
    return run

@tunable(space=BLOCKS)
def wrong():
    return PythonKernel(lambda block: 1, reference=lambda: 2)

@pytest.mark.parametrize("n", range(4))
def test_kernel(kernel, n): pass

def test_wrong(wrong): pass
def test_other(): log("worker", os.environ["PYTEST_XDIST_WORKER"])
"""


def test_verdicts_reports_and_baselines(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("-n2", FINITE, "--update-baselines", "--junitxml=junit.xml", "-v")
    assert run.outcomes == {"passed": 9, "failed": 1}
    assert suite.lines("worker")[0] in ("gw0", "gw1")
    assert run.verdicts == {"kernel[1]": "new", "kernel[2]": "new", "wrong": "wrong"}
    assert "wrong is WRONG: its output differs from its reference" in run.out
    assert run.out.count("baselines written: 2 of 3") == 1
    assert sorted(suite.rows()) == ["kernel[1]", "kernel[2]"]
    assert {row["config"]["block"] for row in suite.rows().values()} == {4}
    junit = (suite.root / "junit.xml").read_text()
    assert 'errors="0" failures="1"' in junit
    assert 'name="kerneltune.kernel[1].verdict" value="new"' in junit

    # Of the two workers that wanted a kernel, one tuned it.
    ran = [line.split() for line in suite.lines("ran")]
    for param in ("1", "2"):
        assert len({pid for pid, kernel, block in ran if kernel == param and block == "1"}) == 1


def test_a_regression_fails_every_test_of_its_kernel(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    tests = ("test_it.py::test_kernel[1-0]", "test_it.py::test_kernel[1-1]")
    suite.run(NONE, "--update-baselines", *tests)
    text = suite.baseline_files[0].read_text()
    suite.edit("test_it.py", "request.param * MS", "6 * request.param * MS")
    slower = suite.run("-n2", NONE, "--update-baselines=new", *tests)
    assert slower.outcomes == {"failed": 2}
    assert slower.report["counts"] == {"regressed": 1}
    assert "accept   pytest test_it.py --autotune=none --update-baselines=regressed" in slower.out
    assert suite.baseline_files[0].read_text() == text


def test_a_worker_that_crashes_takes_no_outcome_with_it(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS)

def test_a(kernel): pass
def test_b(): os._exit(1)
""",
    )
    run = suite.run("-n1", NONE, "--update-baselines")
    assert run.outcomes == {"passed": 1, "failed": 1}
    assert run.verdicts == {"kernel": "new"}
    assert sorted(suite.rows()) == ["kernel"]


def test_a_usage_error_of_a_marker_is_that_tests_error(suite: Suite) -> None:
    suite.write("test_it.py", "@pytest.mark.kerneltune(treshold=1)\ndef test_it(): log('ran', 1)\ndef test_b(): pass\n")
    run = suite.run("-n1")
    assert run.outcomes == {"passed": 1, "error": 1}
    assert suite.lines("ran") == []
    assert "test_it.py::test_it: @pytest.mark.kerneltune got treshold=" in run.out


def test_bare_options_and_paths(suite: Suite) -> None:
    suite.write("perf/test_it.py", KERNELS)
    suite.write("other/test_other.py", "def test_other(): assert False\n")
    run = suite.run("-n1", "--autotune", "perf", "--autotune-effort=none", "-k", "test_wrong")
    assert run.outcomes == {"failed": 1}
    assert run.report["run"]["settings"]["autotune"] == DEFAULT_SEARCH
