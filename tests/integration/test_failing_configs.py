"""Configs that crash, hang, do not compile or are wrong cost nothing but themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

SOURCE = r'''
import numpy as np

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
void fill(double *y, long n) {
#if MODE == 1
#error "mode one is not for this machine"
#elif MODE == 2
    volatile int *nowhere = 0; *nowhere = 1;
#elif MODE == 3
    volatile long forever = 1; while (forever) ;
#elif MODE == 4
    exit(3);
#elif MODE == 5
    puts("about to abort"); fflush(stdout); abort();
#elif MODE == 6
    y[n] = 1;
#endif
    for (long r = 0; r < REPEAT; r++)
        for (long i = 0; i < n; i++) y[i] = MODE == 7 ? 2 : 1;
}
"""

@tunable(space={"MODE": integer(0, 7), "REPEAT": choice(40, 1)}, configs=[{"MODE": 0}])
def fill():
    y = np.zeros(64)
    return CKernel(SOURCE, "fill", args=(y, 64), output=y, reference=lambda: np.ones(64), flags=["-O1"])

def test_fill(fill):
    assert (fill() == 1).all()
    log("config", dict(fill.config))
'''
STATUSES = {
    0: "ok",
    1: "compile error",
    2: "crash",
    3: "run timeout",
    4: "crash",
    5: "crash",
    6: "wrong output",
    7: "wrong output",
}


def source(modes: str, where: str = "None") -> str:
    text = SOURCE.replace("integer(0, 7)", modes).replace('configs=[{"MODE": 0}]', f"where={where}")
    return text if where != "None" else text.replace("choice(40, 1)", "choice(1)")


def test_every_other_config_is_still_measured(suite: Suite) -> None:
    suite.write("test_it.py", source("integer(0, 7)", "lambda c: c['MODE'] == 0 or c['REPEAT'] == 40"))
    run = suite.run("--autotune=FiniteSearch", "-vv")
    assert run.outcomes == {"passed": 1}, run.out
    kernel = run.kernels["fill"]
    assert kernel["config"] == {"MODE": 0, "REPEAT": 1}
    found = {t["config"]["MODE"]: t for t in kernel["trials"] if t["config"]["REPEAT"] == 40}
    assert {mode: trial["status"] for mode, trial in found.items()} == STATUSES
    assert "mode one is not for this machine" in found[1]["reason"]
    assert "SIGSEGV" in found[2]["reason"]
    assert "about to abort" in found[5]["log"]
    assert "outside argument 0" in found[6]["reason"]
    assert {trial.get("latency_ms") for mode, trial in found.items() if mode} == {None}
    assert kernel["search"]["failures"] == {"compile error": 1, "crash": 3, "run timeout": 1, "wrong output": 2}

    # -vv shows the logs of the failures, the normal verbosity does not.
    assert "failed configs of test_it.py::fill" in run.out
    assert "    | about to abort" in run.out
    again = suite.run("--autotune=FiniteSearch")
    assert again.kernels["fill"]["search"]["source"] == "cache"
    assert again.kernels["fill"]["trials"] == kernel["trials"]
    assert "about to abort" not in again.out
    assert "mode one" not in again.out


def test_a_kernel_of_which_no_config_works_fails_with_reasons(suite: Suite) -> None:
    suite.write("test_it.py", source("choice(1, 2, 4)"))
    run = suite.run("--autotune=FiniteSearch", "--update-baselines")
    assert run.outcomes == {"failed": 1}
    assert run.verdicts == {"fill": "failed"}
    assert "fill: nothing could be measured, all 3 configs tried failed" in run.out
    assert "MODE=1, REPEAT=1: compile error:" in run.out
    assert "MODE=2, REPEAT=1: crash:" in run.out
    assert suite.lines("config") == []
    assert suite.baseline_files == []
    assert run.kernels["fill"]["config"] is None


def test_configs_that_are_all_wrong_are_called_wrong(suite: Suite) -> None:
    suite.write("test_it.py", source("choice(1, 6, 7)"))
    run = suite.run("--autotune=FiniteSearch")
    assert run.verdicts == {"fill": "wrong"}
    assert "fill is WRONG" in run.out


def test_a_baseline_config_that_no_longer_works_is_replaced_by_a_search(suite: Suite) -> None:
    suite.write("pytest.ini", "[pytest]\nperf_threshold = 900%\n")  # which is decided soon
    suite.write("test_it.py", source("choice(0, 1)"))
    suite.run("--autotune=FiniteSearch", "--update-baselines")
    file = suite.baseline_files[0]
    data = json.loads(file.read_text())
    data["kernels"]["fill"]["config"]["MODE"] = 1
    file.write_text(json.dumps(data))
    found = suite.run("--autotune=FiniteSearch")
    assert found.kernels["fill"]["config"] == {"MODE": 0, "REPEAT": 1}
    assert found.verdicts["fill"] != "failed"
    known = suite.run("--autotune=none")
    assert known.verdicts == {"fill": "failed"}
    assert "compile error" in known.out


def test_one_broken_kernel_does_not_harm_the_others(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        source("choice(2)")
        + """
@tunable(space=BLOCKS)
def fine():
    y = np.zeros(64)
    return CKernel("void one(double *y) { y[0] = 1; }", "one", args=(y,), output=y, reference=lambda: np.eye(1, 64)[0])

def test_fine(fine):
    assert fine()[0] == 1
""",
    )
    run = suite.run("--autotune=none")
    assert run.outcomes == {"passed": 1, "failed": 1}
    assert run.verdicts == {"fill": "failed", "fine": "new"}
