"""A tunable is a fixture: every way to define, request and override one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

WRONG = """
@tunable(space=BLOCKS{options})
def kernel():
    return PythonKernel(lambda block: block, reference=lambda: 2)
"""


def failing(suite: Suite, source: str, options: str = "", **outcomes: int) -> None:
    """Every test of ``source``, which reaches a wrong kernel in some way, must fail in its call phase."""
    suite.write("test_it.py", WRONG.format(options=options) + source)
    run = suite.run()
    assert run.outcomes == (outcomes or {"failed": 1}), run.out
    assert "kernel is WRONG" in run.out


def test_as_an_argument(suite: Suite) -> None:
    failing(suite, "def test_it(kernel): pass")


def test_through_usefixtures(suite: Suite) -> None:
    failing(suite, "@pytest.mark.usefixtures('kernel')\ndef test_it(): pass")


def test_through_the_ini_option_usefixtures(suite: Suite) -> None:
    suite.write("pytest.ini", "[pytest]\nusefixtures = kernel\n")
    failing(suite, "def test_it(): pass")


def test_through_getfixturevalue(suite: Suite) -> None:
    failing(suite, "def test_it(request): request.getfixturevalue('kernel')")


def test_as_an_autouse_fixture(suite: Suite) -> None:
    failing(suite, "def test_a(): pass\ndef test_b(): pass", ", autouse=True", failed=2)


def test_in_a_class(suite: Suite) -> None:
    failing(suite, "class TestIt:\n    def test_a(self, kernel): pass\n    def test_b(self): pass", failed=1, passed=1)


def test_in_a_unittest_class(suite: Suite) -> None:
    failing(
        suite,
        """
import unittest

class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _kernel(self, kernel):
        self.kernel = kernel

    def test_a(self): pass
""",
    )


def test_through_another_fixture(suite: Suite) -> None:
    failing(suite, "@pytest.fixture\ndef other(kernel): return 1\ndef test_it(other): pass")


OVERRIDE = """
class TestOverride:
    @pytest.fixture
    def kernel(self, kernel):
        return kernel.verdict

    def test_it(self, kernel):
        assert kernel == "wrong"
"""


@pytest.mark.parametrize("scope", ["function", "class", "module", "package", "session"])
def test_hidden_by_an_override_at_any_scope(suite: Suite, scope: str) -> None:
    failing(suite, "def test_a(kernel): pass" + OVERRIDE, f", scope={scope!r}", failed=2)


def test_an_override_that_does_not_ask_for_the_kernel_is_free_of_it(suite: Suite) -> None:
    source = "def test_a(kernel): pass" + OVERRIDE.replace(
        "(self, kernel):\n        return kernel.verdict", "(self):\n        return 'wrong'"
    )
    failing(suite, source, ", scope='session'", failed=1, passed=1)


def test_asked_for_at_run_time_by_a_fixture_of_wider_scope(suite: Suite) -> None:
    source = """
@pytest.fixture(scope="module")
def latencies(request):
    return [request.getfixturevalue("kernel").latency_ms]

def test_a(latencies): pass
def test_b(latencies): pass
"""
    failing(suite, source, ", scope='module'", failed=2)
    failing(suite, source.replace("def test_a(latencies): pass", ""), ", scope='module'")


def test_a_test_that_expects_a_fixture_to_fail_is_left_alone(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel(): return lambda block: 1

@pytest.fixture
def broken(): raise ValueError("broken")

def test_it(request, kernel):
    with pytest.raises(ValueError):
        request.getfixturevalue("broken")
    with pytest.raises(pytest.FixtureLookupError):
        request.getfixturevalue("unknown")
""",
    )
    assert suite.run().outcomes == {"passed": 1}


YIELD = """
@pytest.fixture(scope="module")
def device():
    log("order", "open")
    yield 5
    log("order", "close")

@tunable(space=BLOCKS, scope="{scope}")
def kernel(device):
    log("order", "setup")
    yield lambda block: device
    log("order", "teardown")

def test_a(kernel):
    log("order", f"a {{kernel()}}")
    assert False

def test_b(kernel):
    log("order", f"b {{kernel()}}")
"""


@pytest.mark.parametrize(
    ("scope", "order"),
    [
        ("function", ["open", "setup", "a 5", "teardown", "setup", "b 5", "teardown", "close"]),
        ("module", ["open", "setup", "a 5", "b 5", "teardown", "close"]),
    ],
)
def test_a_tunable_may_yield(suite: Suite, scope: str, order: list[str]) -> None:
    suite.write("test_it.py", YIELD.format(scope=scope))
    assert suite.run().outcomes == {"failed": 1, "passed": 1}
    assert suite.lines("order") == order


def test_an_error_in_teardown_is_the_tests_error(suite: Suite) -> None:
    suite.write(
        "test_it.py", YIELD.format(scope="function").replace('log("order", "teardown")', "raise OSError('busy')")
    )
    run = suite.run("test_it.py::test_b")
    assert run.outcomes == {"passed": 1, "error": 1}
    assert "OSError: busy" in run.out


def test_a_yielding_tunable_is_torn_down_when_its_kernel_is_unusable(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    try:
        yield 7
    finally:
        log("order", "teardown")

def test_it(kernel): pass
""",
    )
    run = suite.run()
    assert run.outcomes == {"error": 1}
    assert "test_it.py::kernel: a tunable must return a callable or a kernel such as CKernel(...), not int" in run.out
    assert suite.lines("order") == ["teardown"]


def test_what_the_test_gets(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    def run(block):
        spin(MS * block)
        return block
    return PythonKernel(run, reference=lambda: spin(4 * MS))

def test_it(kernel, request):
    assert kernel() == 1
    assert dict(kernel.config) == {"block": 1}
    assert kernel.trials == ()
    if request.config.getoption("autotune") is None:
        assert (kernel.latency_ms, kernel.reference_latency_ms, kernel.speedup) == (None, None, None)
        assert kernel.verdict == "checked"
        assert repr(kernel) == "<TunedKernel test_it.py::kernel checked {'block': 1}>"
    else:
        assert MS <= kernel.latency_ms < 4 * MS <= kernel.reference_latency_ms
        assert kernel.speedup > 1
        assert kernel.verdict == "new"
""",
    )
    assert suite.run().outcomes == {"passed": 1}
    assert suite.run("--autotune=none").outcomes == {"passed": 1}


def test_a_compiled_kernel(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        '''
import numpy as np

SOURCE = """
void scale(const double *x, double *y, long n) {
    for (long i = 0; i < n; i += UNROLL)
        for (long k = i; k < i + UNROLL; k++) y[k] = 2 * x[k];
}
"""

@tunable(space={"UNROLL": choice(4, 8)}, params=[64], ids=["n64"])
def scale(request):
    x, y = np.arange(float(request.param)), np.zeros(request.param)
    return CKernel(SOURCE, "scale", args=(x, y, request.param), output=y, reference=lambda: 2 * x)

def test_scale(scale):
    assert scale.verdict in ("checked", "new")
    assert list(scale()[:3]) == [0, 2, 4]
''',
    )
    plain = suite.run()
    assert plain.outcomes == {"passed": 1}
    assert plain.verdicts == {"scale[n64]": "checked"}
    timed = suite.run("--autotune=none").kernels["scale[n64]"]
    assert timed["clock"] == "thread"
    assert 0 < timed["latency_ms"] < 1
