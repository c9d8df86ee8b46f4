"""The name and file of a kernel: its identity in reports and baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite


def names(suite: Suite, source: str, *args: str) -> list[str]:
    """The kernels of a passing plain run of one test file, without its name."""
    suite.write("test_it.py", source)
    run = suite.run(*args)
    assert run.ret == 0, run.out
    assert all(kernel.startswith("test_it.py::") for kernel in run.ids)
    return [kernel.removeprefix("test_it.py::") for kernel in run.ids]


PARAMS = """
class Shape:
    pass

@tunable(space=BLOCKS, params=[{params}], ids={ids})
def kernel(request):
    return lambda block: request.param

def test_kernel(kernel):
    pass
"""


@pytest.mark.parametrize(
    ("params", "ids", "expected"),
    [
        ("1024, 4096", "lambda n: f'n{n}'", ["kernel[n1024]", "kernel[n4096]"]),
        ("1024, 4096", "['small', 'large']", ["kernel[large]", "kernel[small]"]),
        ("1024, 4096", "['small', None]", ["kernel[4096]", "kernel[small]"]),
        ("1024, 'x', True, 1.5", "None", ["kernel[1.5]", "kernel[1024]", "kernel[True]", "kernel[x]"]),
        ("1, pytest.param(2, id='two')", "None", ["kernel[1]", "kernel[two]"]),
        ("1, pytest.param(2, id='two')", "['a', 'b']", ["kernel[a]", "kernel[two]"]),
        ("1, '1'", "None", ["kernel[1_0]", "kernel[1_1]"]),
        ("1, 2", "['same', 'same']", ["kernel[same_0]", "kernel[same_1]"]),
        ("lambda: 1, lambda: 2", "None", ["kernel[<lambda>_0]", "kernel[<lambda>_1]"]),
        ("spin, Shape", "None", ["kernel[Shape]", "kernel[spin]"]),
        ("(64, 32), (64, 16)", "None", ["kernel[64,16]", "kernel[64,32]"]),
        ("dict(m=64, n=32)", "None", ["kernel[m=64,n=32]"]),
        ("Shape(), Shape()", "None", ["kernel[kernel0]", "kernel[kernel1]"]),
        ("pytest.param(1, marks=pytest.mark.skip), 2", "None", ["kernel[2]"]),
    ],
)  # fmt: skip
def test_params_name_a_kernel(suite: Suite, params: str, ids: str, expected: list[str]) -> None:
    assert names(suite, PARAMS.format(params=params, ids=ids)) == expected


def test_numpy_values_have_names_of_their_own(suite: Suite) -> None:
    source = "import numpy as np\n" + PARAMS.format(params="np.dtype('float16'), np.float32, np.int64(7)", ids="None")
    assert names(suite, source) == ["kernel[7]", "kernel[float16]", "kernel[float32]"]


MIXED = """
@pytest.fixture(params=[16, 32], ids=lambda n: f"n{n}")
def n(request):
    return request.param

@pytest.fixture
def data(n, dtype):
    return n, dtype

@pytest.fixture(params=["half", "single"])
def dtype(request):
    return request.param

@pytest.fixture(params=["unused"])
def other(request):
    return request.param

@tunable(space=BLOCKS, params=[1, 2])
def kernel(data, request):
    return lambda block: (data, request.param)

@tunable(space=BLOCKS)
def plain(dtype):
    return lambda block: dtype

def test_both(kernel, plain, other):
    pass
"""


def test_the_parameters_of_fixtures_that_a_kernel_uses_count_and_others_do_not(suite: Suite) -> None:
    expected = [f"kernel[{own}-n{n}-{dtype}]" for own in (1, 2) for n in (16, 32) for dtype in ("half", "single")]
    assert names(suite, MIXED) == [*expected, "plain[half]", "plain[single]"]


def test_a_kernel_requested_by_name_is_named_as_one_requested_as_an_argument(suite: Suite) -> None:
    source = MIXED.replace(
        "def test_both(kernel, plain, other):\n    pass",
        "def test_it(n, dtype, request):\n    request.getfixturevalue('late')",
    )
    source += """
@pytest.fixture
def middle(n):
    return n

@tunable(space=BLOCKS)
def late(middle, dtype):
    return lambda block: (middle, dtype)
"""
    expected = ["late[half-n16]", "late[half-n32]", "late[single-n16]", "late[single-n32]"]
    assert names(suite, source) == expected


MARKS = """
@pytest.fixture
def n(request):
    return request.param

@tunable(space=BLOCKS)
def kernel(n, m):
    return lambda block: (n, m)

@tunable(space=BLOCKS)
def narrow(m):
    return lambda block: m
"""


def test_parametrize_marks_name_kernels(suite: Suite) -> None:
    source = (
        MARKS
        + """
@pytest.mark.parametrize("n", [1, pytest.param(2, id="two")], indirect=True)
@pytest.mark.parametrize("m", [(3, 3), (4, 4)], ids=["three", None])
def test_stacked(kernel):
    pass
"""
    )
    expected = ["kernel[1-4,4]", "kernel[1-three]", "kernel[two-4,4]", "kernel[two-three]"]
    assert names(suite, source) == expected


def test_a_mark_for_several_parameters_names_each_kernel_by_what_it_uses(suite: Suite) -> None:
    source = (
        MARKS
        + """
@pytest.mark.parametrize("n, m", [(1, 5), (2, 5), pytest.param(2, 6, id="all")], indirect=["n"])
def test_together(kernel, narrow):
    pass
"""
    )
    assert names(suite, source) == ["kernel[1-5]", "kernel[2-5]", "kernel[2-6]", "narrow[5]", "narrow[6]"]


def test_tests_with_lists_of_their_own_agree_on_names(suite: Suite) -> None:
    source = (
        MARKS
        + """
@pytest.mark.parametrize("m", [(64, 1), (64, 2)])
def test_two(narrow):
    pass

@pytest.mark.parametrize("m", [(64, 2)])
def test_one(narrow):
    pass
"""
    )
    assert names(suite, source) == ["narrow[64,1]", "narrow[64,2]"]


def test_an_indirect_mark_replaces_the_params_of_the_fixture(suite: Suite) -> None:
    source = (
        PARAMS.format(params="1, 2", ids="['a', 'b']")
        + """
@pytest.mark.parametrize("kernel", [7, 8, 9], indirect=True)
def test_indirect(kernel):
    pass
"""
    )
    assert names(suite, source) == ["kernel[7]", "kernel[8]", "kernel[9]", "kernel[a]", "kernel[b]"]


def test_a_hook_may_parametrize(suite: Suite) -> None:
    suite.write(
        "conftest.py",
        """
def pytest_generate_tests(metafunc):
    if "n" in metafunc.fixturenames:
        metafunc.parametrize("n", [10, 20], ids=["ten", "twenty"])
""",
    )
    source = "@tunable(space=BLOCKS)\ndef kernel(n):\n    return lambda block: n\ndef test_it(kernel): pass\n"
    assert names(suite, source) == ["kernel[10]", "kernel[20]"]


CLASSES = """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: "module"

class Base:
    @tunable(space=BLOCKS)
    def own(self, size):
        return lambda block: (type(self).__name__, size)

    def test_own(self, own, kernel):
        assert own() == (type(self).__name__, self.size_wanted)

class TestSmall(Base):
    size_wanted = 1

    @pytest.fixture
    def size(self):
        return 1

class TestLarge(Base):
    size_wanted = 2

    @pytest.fixture
    def size(self):
        return 2

    class TestInner:
        @tunable(space=BLOCKS)
        def kernel(self):
            return lambda block: "inner"

        def test_inner(self, kernel):
            assert kernel() == "inner"
"""


def test_kernels_of_classes_carry_their_names(suite: Suite) -> None:
    assert names(suite, CLASSES) == ["TestLarge.TestInner.kernel", "TestLarge.own", "TestSmall.own", "kernel"]


OVERRIDES = """
@tunable(space=BLOCKS)
def kernel(n):
    return lambda block: n

@pytest.fixture
def n():
    return 1

def test_module(kernel):
    assert kernel() == 1

class TestFixture:
    @pytest.fixture
    def n(self, n):
        return n + 1

    def test_n(self, kernel):
        assert kernel() == 2

class TestKernel:
    @tunable(space=BLOCKS)
    def kernel(self, kernel):
        assert kernel() == 1
        return lambda block: 3

    def test_kernel(self, kernel):
        assert kernel() == 3
"""


def test_what_a_class_overrides_is_the_classes_own(suite: Suite) -> None:
    assert names(suite, OVERRIDES) == ["TestFixture.kernel", "TestKernel.kernel", "kernel"]


def test_an_override_has_the_parameters_of_what_it_overrides(suite: Suite) -> None:
    source = (
        PARAMS.format(params="1, 2", ids="['a', 'b']")
        + """
class TestOverride:
    @tunable(space=BLOCKS)
    def kernel(self, kernel):
        return lambda block: "override"

    def test_kernel(self, kernel):
        assert kernel() == "override"
"""
    )
    assert names(suite, source) == ["TestOverride.kernel[a]", "TestOverride.kernel[b]", "kernel[a]", "kernel[b]"]


def test_kernels_of_conftest_files_belong_to_the_file_that_decides_what_they_are(suite: Suite) -> None:
    suite.write("conftest.py", "@pytest.fixture\ndef n():\n    return 0\n")
    suite.write("perf/conftest.py", "@tunable(space=BLOCKS)\ndef kernel(n):\n    return lambda block: n\n")
    suite.write("perf/test_shared.py", "def test_it(kernel):\n    assert kernel() == 0\n")
    suite.write("perf/test_also.py", "def test_it(kernel):\n    assert kernel() == 0\n")
    override = "@pytest.fixture\ndef n():\n    return 1\n"
    suite.write("perf/test_own.py", override + "def test_it(kernel):\n    assert kernel() == 1\n")
    suite.write("perf/deep/conftest.py", override)
    suite.write("perf/deep/test_deep.py", "def test_it(kernel):\n    assert kernel() == 1\n")
    run = suite.run()
    assert run.outcomes == {"passed": 4}
    assert run.ids == ["perf/conftest.py::kernel", "perf/deep/conftest.py::kernel", "perf/test_own.py::kernel"]


def test_an_imported_tunable_belongs_to_the_file_that_imports_it(suite: Suite) -> None:
    suite.write("shared.py", "@tunable(space=BLOCKS)\ndef kernel():\n    return lambda block: 1\n")
    for name in ("test_a", "test_b"):
        suite.write(f"{name}.py", "from shared import kernel\ndef test_it(kernel): pass\n")
    assert suite.run().ids == ["test_a.py::kernel", "test_b.py::kernel"]


def test_a_tunable_of_a_plugin_belongs_to_the_plugin(suite: Suite) -> None:
    suite.write("shared.py", "@tunable(space=BLOCKS)\ndef kernel():\n    return lambda block: 1\n")
    suite.write("conftest.py", "pytest_plugins = ['shared']\n")
    for name in ("test_a", "test_b"):
        suite.write(f"{name}.py", "def test_it(kernel): pass\n")
    assert suite.run().ids == ["shared.py::kernel"]


def test_the_name_argument_names_fixture_and_kernel(suite: Suite) -> None:
    source = """
@tunable(space=BLOCKS, name="soft")
def fixture_soft():
    return lambda block: 1

def test_it(soft):
    assert soft() == 1
"""
    assert names(suite, source) == ["soft"]


def test_different_kernels_of_one_name_fail_the_run_and_get_no_baseline(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel(request):
    cost = MS * (1 + len(request.node.name))
    return lambda block: spin(cost)

@tunable(space=BLOCKS)
def other():
    return lambda block: spin(MS)

def test_a(kernel): pass
def test_bb(kernel, other): pass
""",
    )
    run = suite.run("--autotune=none", "--update-baselines")
    assert run.outcomes == {"passed": 2}
    assert run.ret == 1
    assert "test_it.py::kernel: this run measured different kernels under this name" in run.out
    assert list(suite.rows()) == ["other"]
    assert suite.run("--autotune=none", "test_it.py::test_a").ret == 0
