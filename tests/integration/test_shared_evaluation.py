"""A kernel is tuned, measured and judged once a process: its verdict is every test's, whichever of them run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

# Four tests and three scopes; the kernels log the configs that they are run with.
TESTS = """
def make(name, factor):
    def run(block):
        log("ran", f"{{name}} {{block}}")
        spin(factor * MS * (5 - block))
        return 1
    return PythonKernel(run, reference=lambda: log("reference", name) or 1)

@tunable(space=BLOCKS)
def short():
    return make("short", {short})

@tunable(space=BLOCKS, scope="module")
def long():
    return make("long", {long})

@pytest.mark.parametrize("n", [1, 2])
def test_short(short, n):
    log("short", f"{{short.verdict}} {{short.latency_ms}}")

def test_long(long): log("long", long.verdict)

class TestBoth:
    def test_both(self, short, long): pass
"""


def test_all_tests_of_a_kernel_share_its_evaluation(suite: Suite) -> None:
    suite.write("test_it.py", TESTS.format(short=1, long=2))
    run = suite.run("--autotune=FiniteSearch")
    assert run.outcomes == {"passed": 4}
    assert run.kernels["short"]["search"]["attempts"] == 3
    assert len(set(suite.lines("short"))) == 1
    assert run.report["counts"] == {"new": 2}


def test_a_plain_run_runs_a_shared_kernel_once(suite: Suite) -> None:
    suite.write("test_it.py", TESTS.format(short=1, long=2))
    assert suite.run().outcomes == {"passed": 4}
    assert sorted(suite.lines("reference")) == ["long", "short"]
    assert sorted(suite.lines("ran")) == ["long 1", "short 1"]


def test_outcomes_do_not_depend_on_which_tests_run_nor_on_their_order(suite: Suite) -> None:
    suite.write("test_it.py", TESTS.format(short=1, long=1))
    suite.write("pytest.ini", "[pytest]\nperf_threshold = 100%\n")  # which is decided soon
    suite.run("--autotune=none", "--update-baselines")
    suite.write("test_it.py", TESTS.format(short=6, long=1))
    expected = {"test_short[1]": "F", "test_short[2]": "F", "test_long": ".", "TestBoth::test_both": "F"}
    orders = [tuple(expected), tuple(reversed(expected)), ("test_short[2]",)]
    for order in orders:
        run = suite.run("--autotune=none", *(f"test_it.py::{name}" for name in order))
        shown = next(line for line in run.out.splitlines() if line.startswith("test_it.py ")).split()[1]
        assert shown == "".join(expected[name] for name in order)
        assert run.ret == ("F" in shown)


def test_a_kernel_that_two_modules_use_is_evaluated_once(suite: Suite) -> None:
    suite.write(
        "conftest.py",
        """
@tunable(space=BLOCKS, scope="session")
def kernel():
    return PythonKernel(lambda block: 1, reference=lambda: log("reference", 1) or 1)
""",
    )
    suite.write("a/test_a.py", "def test_it(kernel): pass\n")
    suite.write("b/test_b.py", "def test_it(kernel): pass\n")
    assert suite.run().outcomes == {"passed": 2}
    assert suite.lines("reference") == ["1"]


def test_a_test_may_use_several_kernels(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        TESTS.format(short=1, long=6)
        + """
def test_compare(short, long):
    assert short.latency_ms < long.latency_ms
""",
    )
    run = suite.run("--autotune=none", "test_it.py::test_compare", "--junitxml=junit.xml")
    assert run.outcomes == {"passed": 1}
    assert sorted(run.kernels) == ["long", "short"]
    text = (suite.root / "junit.xml").read_text()
    assert 'name="kerneltune.short.latency_ms"' in text
    assert 'name="kerneltune.long.verdict" value="new"' in text
