"""Kernels that say themselves what they can be tuned with, and those that don't."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_kerneltune import PythonKernel, choice, integer, tune
from pytest_kerneltune.errors import UsageError

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

OWN = """
from pytest_kerneltune.space import ConfigSpace

class OwnSpace(ConfigSpace):
    seeds = ({"block": 4, "unroll": False},)

    def narrowed(self, parameters, where):
        return ConfigSpace({**self.parameters, **parameters}, where)

class Own(PythonKernel):
    space = OwnSpace({"block": choice(1, 2, 4), "unroll": boolean()})

def timed(block, unroll):
    log("tried", f"{block} {unroll}")
    return spin(MS * block)

"""
SEARCH = ("--autotune=RandomSearch", "--autotune-configs=20", "--missing-baseline=warn")


def tried(suite: Suite) -> set[str]:
    return set(suite.lines("tried"))


def test_a_kernel_with_a_space_of_its_own_is_tuned_in_it(suite: Suite) -> None:
    suite.write("test_it.py", OWN + "@tunable()\ndef kernel(): return Own(timed)\ndef test_it(kernel): pass\n")
    assert suite.run(*SEARCH).verdicts == {"kernel": "new"}
    assert tried(suite) == {f"{block} {unroll}" for block in (1, 2, 4) for unroll in (False, True)}


def test_what_such_a_kernel_recommends_is_tried_soon(suite: Suite) -> None:
    suite.write("test_it.py", OWN + "@tunable()\ndef kernel(): return Own(timed)\ndef test_it(kernel): pass\n")
    run = suite.run("--autotune=RandomSearch", "--autotune-configs=2", "--missing-baseline=warn")
    assert {"block": 4, "unroll": False} in [trial["config"] for trial in run.kernels["kernel"]["trials"]]


def test_a_given_space_and_constraint_narrow_it(suite: Suite) -> None:
    given = "space={'block': choice(2, 4)}, where=lambda c: not c['unroll']"
    suite.write("test_it.py", OWN + f"@tunable({given})\ndef kernel(): return Own(timed)\ndef test_it(kernel): pass\n")
    assert suite.run(*SEARCH).verdicts == {"kernel": "new"}
    assert tried(suite) == {"2 False", "4 False"}


def test_a_constraint_alone_narrows_it(suite: Suite) -> None:
    given = "where=lambda c: c['block'] == 2"
    suite.write("test_it.py", OWN + f"@tunable({given})\ndef kernel(): return Own(timed)\ndef test_it(kernel): pass\n")
    assert suite.run(*SEARCH).verdicts == {"kernel": "new"}
    assert tried(suite) == {"2 False", "2 True"}


def test_any_other_kernel_needs_a_space(suite: Suite) -> None:
    suite.write("test_it.py", "@tunable()\ndef kernel(): return lambda: 1\ndef test_it(kernel): pass\n")
    run = suite.run()
    assert run.outcomes == {"error": 1}
    assert "space= is missing: a PythonKernel does not say what it can be tuned with" in run.out


def test_tune_takes_such_kernels_too() -> None:
    from pytest_kerneltune.space import ConfigSpace

    class Own(PythonKernel):
        space = ConfigSpace({"n": integer(1, 3)})

    found = tune(Own(lambda n: sum(range(1000 * n))), algorithm="RandomSearch", cache="off")
    assert {trial.config["n"] for trial in found.trials} == {1, 2, 3}
    with pytest.raises(UsageError, match=r"space= is missing: a PythonKernel"):
        tune(lambda n: n, cache="off")
    assert tune(lambda n: n, space={"n": choice(1)}, cache="off").config == {"n": 1}
