"""What pytest does with performance tests when nothing asks for tuning, and with its own options."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNELS = """
@tunable(space=BLOCKS, params=[1, 2])
def kernel(request):
    log("made", request.param)
    def run(block):
        log("ran", request.param)
        return request.param
    def reference():
        log("reference", request.param)
        return request.param
    return PythonKernel(run, reference=reference)

@tunable(space=BLOCKS)
def wrong():
    return PythonKernel(lambda block: 1, reference=lambda: 2)

def test_kernel(kernel): pass
def test_again(kernel): pass
def test_wrong(wrong): pass
def test_other(): pass
"""


def test_a_plain_run_runs_each_kernel_once_and_checks_it(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run()
    assert run.outcomes == {"passed": 5, "failed": 1}
    assert sorted(suite.lines("ran")) == ["1", "2"]
    assert sorted(suite.lines("reference")) == ["1", "2"]
    assert run.report["counts"] == {"checked": 2, "wrong": 1}
    assert {kernel["latency_ms"] for kernel in run.report["kernels"]} == {None}
    assert not (suite.root / "cache").exists()
    assert suite.baseline_files == []


def test_a_suite_without_kernels_hears_nothing_of_the_plugin(suite: Suite) -> None:
    suite.write("test_it.py", "def test_it(): pass\n")
    run = suite.run(report=False)
    assert run.ret == 0
    assert "kerneltune" not in run.out.partition("plugins:")[2].partition("\n")[2]


@pytest.mark.parametrize("options", [("--autotune=none",), ("--autotune=none", "-n1")], ids=["alone", "xdist"])
def test_a_gate_that_measured_nothing_does_not_exit_with_0(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write("test_it.py", "def test_it(): pass\n")
    run = suite.run(*options)
    assert run.outcomes == {"passed": 1}
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert "no kernel was measured, though --autotune asks for it" in run.out


def test_a_gate_whose_kernels_were_all_skipped_or_deselected_does_not_exit_with_0(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS + "\n@pytest.mark.skip\ndef test_skipped(kernel): pass\n")
    assert suite.run("--autotune=none", "test_it.py::test_other").ret == pytest.ExitCode.TESTS_FAILED
    assert suite.run("--autotune=none", "test_it.py::test_skipped").ret == pytest.ExitCode.TESTS_FAILED
    assert suite.run("--autotune=none", "-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert suite.lines("made") == []


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan", "--fixtures", "--fixtures-per-test", "--markers"])
def test_options_that_run_no_test_touch_nothing(suite: Suite, option: str) -> None:
    suite.write("test_it.py", KERNELS)
    before = set(suite.root.rglob("*"))
    run = suite.run("--autotune=none", "--update-baselines", "-p", "no:cacheprovider", option, report=False)
    assert run.ret == 0
    assert "measured" not in run.out
    assert set(suite.root.rglob("*")) == before


def test_setting_up_only_is_no_gate(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=none", "--setup-only", report=False)
    assert run.ret == 0
    assert "measured" not in run.out


def test_collecting_imports_nothing_heavy(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.write(
        "conftest.py",
        """
import sys
def pytest_unconfigure():
    print("heavy:", sorted({"torch", "triton", "sklearn", "numpy", "httpx", "filelock"} & set(sys.modules)))
""",
    )
    run = suite.run_process("--collect-only", "--autotune=none", "-p", "no:cacheprovider", "-s", report=False)
    assert run.ret == 0
    assert "heavy: []" in run.out


def test_selected_tests_run_their_kernels_only(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    assert suite.run("-k", "test_again or test_other").outcomes == {"passed": 3, "deselected": 3}
    assert suite.lines("ran") == ["1", "2"]
    assert suite.run("test_it.py::test_again[2]", "test_it.py::test_kernel[2]").outcomes == {"passed": 2}
    assert suite.lines("ran")[2:] == ["2"]


def test_exit_at_the_first_failure(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS.replace("def test_kernel", "def test_a(wrong): pass\ndef test_kernel"))
    run = suite.run("-x")
    assert run.outcomes == {"failed": 1}
    assert suite.lines("made") == []
    assert run.verdicts == {"wrong": "wrong"}


def test_last_failed(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.run("--autotune=none")
    run = suite.run("--lf", "--autotune=none")
    assert run.outcomes == {"failed": 1}
    assert run.verdicts == {"wrong": "wrong"}


def test_without_the_plugin_performance_tests_are_skipped(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("-p", "no:kerneltune", "-rs", report=False)
    assert run.outcomes == {"passed": 1, "skipped": 5}
    assert "the kerneltune plugin is disabled" in run.out


def test_durations_and_quiet(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=none", "-q", "--durations=2", "test_it.py::test_kernel")
    assert run.ret == 0
    assert "slowest 2 durations" in run.out
    assert "2 new" in run.out


def test_a_kernel_may_print_and_be_debugged(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: print("from the kernel")

def test_it(kernel, capsys):
    kernel()
    assert capsys.readouterr().out == "from the kernel\\n"
""",
    )
    for capture in ("fd", "sys", "no", "tee-sys"):
        run = suite.run(f"--capture={capture}", "--autotune=FiniteSearch", "--autotune-configs=1")
        assert run.outcomes == {"passed": 1}, run.out


def test_a_run_from_another_directory_reports_the_same_names(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("pytest.ini", "[pytest]\n")
    suite.write("perf/test_it.py", KERNELS)
    expected = suite.run().ids
    monkeypatch.chdir(suite.root / "perf")
    assert suite.run("test_it.py").ids == expected
    assert expected[0] == "perf/test_it.py::kernel[1]"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
def test_import_modes(suite: Suite, mode: str) -> None:
    suite.write("perf/test_it.py", KERNELS)
    assert suite.run(f"--import-mode={mode}", "-k", "not wrong").ret == 0
