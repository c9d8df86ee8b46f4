"""What is said of a wrong ``@tunable``: where it is decorated, or where its kernel is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("space={'block': choice()}", "choice"),
        ("space={'block': choice(1, 2, default=3)}", "default"),
        ("space={'block': integer(4, 1)}", "integer"),
        ("space={'block': 3}", "block"),
        ("space=[1, 2]", "space"),
        ("space={}", None),
        ("space=BLOCKS, threshold='3'", "@tunable(threshold=...): '3' is not a threshold"),
        ("space=BLOCKS, threshold=3", "@tunable(threshold=...): 3 is not a threshold"),
    ],
)
def test_a_wrong_decorator_fails_the_collection(suite: Suite, arguments: str, said: str | None) -> None:
    suite.write("test_it.py", f"@tunable({arguments})\ndef kernel(): return lambda **_: 1\ndef test_it(kernel): pass\n")
    run = suite.run()
    if said is None:
        assert run.outcomes == {"passed": 1}
        return
    assert run.outcomes == {"error": 1}
    assert run.ret == pytest.ExitCode.INTERRUPTED
    error = next(line for line in run.out.splitlines() if line.startswith("E  "))
    assert said in error
    assert "UsageError" in error or "SpaceError" in error
    assert "test_it.py" in run.out


def test_space_is_required(suite: Suite) -> None:
    suite.write("test_it.py", "@tunable\ndef kernel(): return lambda: 1\n")
    run = suite.run()
    assert run.outcomes == {"error": 1}
    assert "TypeError: tunable() takes 0 positional arguments but 1 was given" in run.out


def test_only_functions_can_be_decorated(suite: Suite) -> None:
    suite.write("test_it.py", "@tunable(space=BLOCKS)\nclass Kernel: pass\n")
    run = suite.run()
    assert run.outcomes == {"error": 1}
    assert "@tunable(...) decorates a function" in run.out


@pytest.mark.parametrize(
    ("arguments", "body", "said"),
    [
        ("", "return None", "a tunable must return a callable or a kernel such as CKernel(...), not NoneType"),
        ("", "return 3", "a tunable must return a callable or a kernel such as CKernel(...), not int"),
        (", configs=[{'blok': 2}]", "return lambda block: 1", "configs= holds {'blok': 2}, which is not in the space"),
        (
            ", configs=[{'block': 3}]",
            "return lambda block: 1",
            "configs= holds {'block': 3}, which is not in the space",
        ),
    ],
)
def test_a_wrong_kernel_is_named(suite: Suite, arguments: str, body: str, said: str) -> None:
    suite.write(
        "test_it.py", f"@tunable(space=BLOCKS{arguments})\ndef kernel():\n    {body}\ndef test_it(kernel): pass\n"
    )
    run = suite.run()
    assert run.outcomes == {"error": 1}
    assert f"test_it.py::kernel: {said}" in run.out
    assert "fixture.py" not in run.out


def test_an_error_in_the_users_own_code_keeps_its_traceback(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return CKernel("int f(void) { return 1; }", "not a name")

def test_it(kernel): pass
""",
    )
    run = suite.run()
    assert run.outcomes == {"error": 1}
    assert 'return CKernel("int f(void) { return 1; }", "not a name")' in run.out
    assert "CKernel(function='not a name') must be the name of a C function" in run.out
    assert "plugin.py" not in run.out
    assert "fixture.py" not in run.out


def test_a_space_too_large_to_enumerate(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space={"n": integer(0, 100000)})
def kernel():
    return lambda n: 1

def test_it(kernel): pass
""",
    )
    run = suite.run("--autotune=FiniteSearch")
    assert run.outcomes == {"error": 1}
    assert "test_it.py::kernel: FiniteSearch measures at most" in run.out
    assert run.ret == 1


def test_a_kernel_that_does_not_take_its_parameters(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return lambda tile: 1

def test_it(kernel): pass
""",
    )
    run = suite.run()
    assert run.outcomes == {"failed": 1}
    assert "got an unexpected keyword argument 'block'" in run.out
