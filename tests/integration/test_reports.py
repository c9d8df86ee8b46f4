"""What a run leaves for people and programs: the terminal, the JSON report, the summary of a GitHub step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNELS = """
@tunable(space=BLOCKS, params=[1, 2], ids=lambda n: f"n{n}")
def softmax(request):
    def run(block):
        if block == 2:
            raise ValueError("block 2 does not fit")
        spin(request.param * MS * (5 - block))
        return 1
    return PythonKernel(run, reference=lambda: spin(8 * MS))

@tunable(space=BLOCKS)
def wrong():
    return PythonKernel(lambda block: 1, reference=lambda: 2)

def test_softmax(softmax): pass
def test_wrong(wrong): pass
"""


def test_the_json_report_holds_everything(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=FiniteSearch", "--autotune-seed=4")
    text = (suite.root / "report.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    report = run.report
    assert report["schema"] == 1
    assert report["counts"] == {"new": 2, "wrong": 1}
    assert report["run"]["command"][-2:] == ["--autotune=FiniteSearch", "--autotune-seed=4"]
    assert report["run"]["seconds"] > 0
    assert report["run"]["settings"]["autotune_seed"] == 4
    assert report["run"]["settings"]["perf_threshold"] == 0.03
    assert report["run"]["versions"]["python"]
    assert [kernel["id"] for kernel in report["kernels"]] == [
        "test_it.py::wrong",
        "test_it.py::softmax[n1]",
        "test_it.py::softmax[n2]",
    ]
    kernel = run.kernels["softmax[n2]"]
    assert kernel["config"] == {"block": 4}
    assert kernel["kind"] == "python"
    assert kernel["clock"] == "wall"
    assert kernel["speedup"] == pytest.approx(kernel["reference_ms"] / kernel["latency_ms"])
    assert kernel["search"]["failures"] == {"runtime error": 1}
    assert kernel["search"]["stages"][0]["configs"] == 3
    assert len(kernel["fingerprint"]) == 64
    failed = next(trial for trial in kernel["trials"] if trial["config"] == {"block": 2})
    assert failed["status"] == "runtime error"
    assert failed["reason"] == "ValueError: block 2 does not fit"
    assert "raise ValueError" in failed["log"]
    assert "latency_ms" not in failed
    good = next(trial for trial in kernel["trials"] if trial["config"] == {"block": 4})
    assert 0 < good["latency_ms"] < 1
    assert run.kernels["wrong"]["latency_ms"] is None


def test_the_terminal_shows_the_worst_first_and_logs_only_when_asked(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    run = suite.run("--autotune=FiniteSearch", "-v")
    run.result.stdout.fnmatch_lines(
        [
            "*= kerneltune =*",
            "verdict *kernel *latency *speedup *config from",
            "wrong *wrong *3 configs, 3 failed*",
            "new *softmax?n1?*3 configs, 1 failed*",
            "new *softmax?n2?*",
            "wrong wrong: output differs from the reference*",
            "new softmax?n1?: there is no baseline yet",
            "new: record a baseline: pytest *--autotune=FiniteSearch -v --update-baselines=new",
            "kerneltune: 2 new, 1 wrong in *",
        ],
        consecutive=False,
    )
    assert "block 2 does not fit" not in run.out
    loud = suite.run("--autotune=FiniteSearch", "-vv").out
    assert "failed configs of test_it.py::softmax[n1]" in loud
    assert "  block=2: runtime error: ValueError: block 2 does not fit" in loud
    assert '    |     raise ValueError("block 2 does not fit")' in loud


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_the_step_summary_of_github(suite: Suite, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    suite.write("test_it.py", KERNELS)
    summary = suite.root / "summary.md"
    summary.write_text("what was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    suite.run(*options, "--autotune=none")
    text = summary.read_text()
    assert text.startswith("what was there\n")
    assert text.count("### Kernels: ") == 1
    assert "| :red_circle: wrong | <code>wrong</code> |" in text
    assert "<code>softmax[n1]</code>" in text
    if not options:
        suite.run()
        assert summary.read_text() == text


def test_reports_that_cannot_be_written_fail_the_run(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: spin(MS)

def test_it(kernel): pass
""",
    )
    suite.write("blocked", "")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(suite.root / "no/such/directory/summary.md"))
    run = suite.run("--autotune=none", "--autotune-json=blocked/report.json", report=False)
    assert run.outcomes == {"passed": 1}
    assert run.ret == 1
    assert "--autotune-json: cannot make" in run.out
    assert "GITHUB_STEP_SUMMARY: " in run.out


def test_a_hostile_name_breaks_no_report(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS, params=["a|b</code>\\n\\x1b[31m", "é\\u2028", ""])
def kernel(request):
    return lambda block: spin(MS)

def test_it(kernel): pass
""",
    )
    summary = suite.root / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    run = suite.run("--autotune=none", "--junitxml=junit.xml", "--update-baselines")
    assert run.outcomes == {"passed": 3}
    assert sorted(suite.rows()) == ["kernel[a|b</code>\\n\\x1b[31m]", "kernel[kernel2]", "kernel[é\\u2028]"]
    assert "\x1b[31m" not in run.out
    assert "|b</code>" not in summary.read_text()
    assert suite.run("--autotune=none").report["kernels"][0]["search"]["source"] == "baseline"
