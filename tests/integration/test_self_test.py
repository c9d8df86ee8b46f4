"""``--gate-self-test`` and the command ``self-test``: real kernels, in worker processes of pytest-xdist too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_kerneltune.__main__ import main
from pytest_kerneltune.selftest import SLOWDOWNS
from pytest_kerneltune.selftest_summary import SelfTest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNEL = """
import numpy as np

SOURCE = "void f(float *x, float *y, long n) { for (long i = 0; i < ROUNDS * n; i++) y[i % n] = 2 * x[i % n]; }"

@tunable(space={"ROUNDS": choice(1, 2)}, threshold="40%")
def double():
    x = np.ones(30_000, dtype=np.float32)
    y = np.empty_like(x)
    return CKernel(SOURCE, "f", args=(x, y, x.size), output=y, reference=lambda: 2 * x)

def test_double(double): pass
"""


def self_test(suite: Suite, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest_kerneltune", "self-test", *arguments]
    return subprocess.run(command, cwd=suite.root, capture_output=True, text=True, timeout=120, env=dict(os.environ))


def test_the_command_tries_the_gate_on_every_kernel_in_workers_of_xdist_too(suite: Suite) -> None:
    pytest.importorskip("xdist")
    suite.write("test_it.py", KERNEL)
    found = suite.root / "found.json"
    done = self_test(suite, "test_it.py", "--decisions=5", f"--json={found}", "--", "-n1", "-p", "no:cacheprovider")
    document = json.loads(found.read_text())
    assert document["schema"] == 1
    (kernel,) = document["kernels"]
    test = SelfTest.from_json(document["kernels"][kernel])
    assert kernel == "test_it.py::double"
    assert (test.clock, test.threshold, test.decisions, test.alarms) == ("thread", 0.4, 5, 0)
    assert [slowed.wanted for slowed in test.slowdowns][-2:] == list(SLOWDOWNS["thread"][-2:])
    twice = test.slowdowns[-1]
    assert twice.measured > 0.6
    assert twice.found >= 4
    assert test.seconds > 0
    assert done.returncode == int(not test.passed)
    assert "gate self-test: " in done.stdout
    assert "slowed by " in done.stdout
    assert "1 passed" in done.stdout
    assert not suite.baseline_files


def test_a_command_that_tried_nothing_does_not_pass(suite: Suite) -> None:
    suite.write("test_it.py", "def test_nothing(): pass\n")
    done = self_test(suite, "test_it.py", "--", "-p", "no:cacheprovider")
    assert done.returncode == 1
    assert "no kernel was tried" in done.stderr


def test_a_kernel_that_cannot_be_tried_is_named(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL.replace("lambda: 2 * x", "lambda: 3 * x"))
    done = self_test(suite, "test_it.py", "--", "-p", "no:cacheprovider")
    assert done.returncode == 1
    assert "not tried, since they could not be measured: test_it.py::double" in done.stderr


def test_a_pytest_that_does_not_run_is_an_error(suite: Suite) -> None:
    done = self_test(suite, "missing.py")
    assert done.returncode == 2
    assert "pytest ended with status 4 and wrote no report" in done.stderr


def test_a_self_test_takes_a_few_decisions_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["self-test", "tests", "--decisions", "4"])
    assert "not a whole number of at least 5" in capsys.readouterr().err


FRAGILE = """
import sys

@tunable(space=BLOCKS)
def fragile():
    def run(block):
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "self_test":
            frame = frame.f_back
        assert frame is None, "broken by then"
        spin(MS)
    return run

def test_fragile(fragile): pass
"""


def test_a_self_test_that_fails_is_told_and_leaves_the_verdict(suite: Suite) -> None:
    suite.write("test_it.py", FRAGILE)
    run = suite.run("--autotune=none", "--gate-self-test=5")
    assert run.verdicts == {"fragile": "new"}
    assert "fragile: gate self-test: " in run.out
    assert "broken by then" in run.out
