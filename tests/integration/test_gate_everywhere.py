"""The gate under pytest's own options and plugins: it fails tests, says where, and never passes without measuring."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

NONE = "--autotune=none"
LENIENT = "[pytest]\nperf_threshold = 100%\n"  # which is decided soon
NOTHING = "no kernel was measured, though --autotune asks for it"

KERNELS = """
@tunable(space=BLOCKS)
def slow():
    return lambda block: spin(MS)

@tunable(space=BLOCKS, scope="module")
def steady():
    return lambda block: spin(MS)

def test_steady(steady): log("order", "steady")
def test_slow(slow): log("order", "slow")
def test_both(slow, steady): log("order", "both")
def test_other(): log("order", "other")
"""


@pytest.fixture
def regressed(suite: Suite) -> Suite:
    """Two kernels with baselines, of which "slow" has become five times slower since."""
    suite.write("pytest.ini", LENIENT)
    suite.write("test_it.py", KERNELS)
    suite.run(NONE, "--update-baselines")
    (suite.root / "order").unlink()
    suite.edit(
        "test_it.py",
        "def slow():\n    return lambda block: spin(MS)",
        "def slow():\n    return lambda block: spin(5 * MS)",
    )
    return suite


def test_workers_that_all_run_everything_have_one_verdict(regressed: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    before = regressed.baseline_files[0].read_text()
    run = regressed.run("--dist=each", "--tx=2*popen", NONE, "--junitxml=junit.xml", "--update-baselines=improved")
    assert run.outcomes == {"passed": 4, "failed": 4}
    assert run.verdicts["slow"] == "regressed"
    assert run.verdicts["steady"] != "regressed"
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    assert run.out.count("verdict ") == 1
    assert run.out.count("::error ") == 1
    cases = ElementTree.parse(regressed.root / "junit.xml").getroot().find("testsuite")
    assert cases is not None
    assert (cases.attrib["failures"], cases.attrib["errors"]) == ("4", "0")
    assert run.verdicts["steady"] == "improved" or regressed.baseline_files[0].read_text() == before


def test_a_failed_gate_is_a_failed_test_to_pytest(regressed: Suite) -> None:
    run = regressed.run(NONE, "-p", "cacheprovider")
    assert run.outcomes == {"passed": 2, "failed": 2}
    again = regressed.run(NONE, "--lf")
    assert again.outcomes == {"failed": 2}
    assert sorted(again.kernels) == ["slow", "steady"]
    (regressed.root / "order").unlink()
    first = regressed.run(NONE, "--ff", "-x")
    assert first.outcomes == {"failed": 1}
    assert regressed.lines("order") == ["slow"]
    assert "stopping after 1 failures" in first.out


def test_junit_counts_failures_and_has_scalars(regressed: Suite) -> None:
    regressed.run(NONE, "--junitxml=junit.xml", "-o", "junit_family=xunit1")
    root = ElementTree.parse(regressed.root / "junit.xml").getroot()
    cases = {case.attrib["name"]: case for case in root.iter("testcase")}
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {"test_slow", "test_both"}
    assert list(root.iter("error")) == []
    found = {p.attrib["name"]: p.attrib["value"] for p in cases["test_slow"].iter("property")}
    numbers = {
        name: float(found[f"kerneltune.slow.{name}"]) for name in ("change_pct", "change_low_pct", "change_high_pct")
    }
    assert 100 < numbers["change_low_pct"] < numbers["change_pct"] < numbers["change_high_pct"]
    assert float(found["kerneltune.slow.threshold_pct"]) >= 3
    assert float(found["kerneltune.slow.latency_ms"]) > 0
    assert (found["kerneltune.slow.verdict"], found["kerneltune.slow.blame"]) == ("regressed", "code")
    both = {p.attrib["name"] for p in cases["test_both"].iter("property")}
    assert {"kerneltune.slow.verdict", "kerneltune.steady.verdict"} <= both
    assert list(cases["test_other"].iter("property")) == []


SHAPES = {
    "deselected": (("-k", "absent"), pytest.ExitCode.NO_TESTS_COLLECTED),
    "nothing failed": (("--lf", "--lfnf=none"), pytest.ExitCode.NO_TESTS_COLLECTED),
    "skipped": (("-k", "skipped"), pytest.ExitCode.TESTS_FAILED),
    "setup error": (("-k", "set_up"), pytest.ExitCode.TESTS_FAILED),
    "stopped": (("-x", "-k", "stops or kernel"), pytest.ExitCode.TESTS_FAILED),
    "left": (("-k", "leaves or kernel"), pytest.ExitCode.TESTS_FAILED),
    "hidden": (("-k", "other", "-p", "hiding"), pytest.ExitCode.TESTS_FAILED),
}


@pytest.mark.parametrize(("options", "status"), SHAPES.values(), ids=SHAPES.keys())
def test_a_gate_that_measured_nothing_never_exits_with_0(
    suite: Suite, options: tuple[str, ...], status: pytest.ExitCode
) -> None:
    suite.write(
        "test_it.py",
        """
@tunable(space=BLOCKS)
def kernel():
    return lambda block: 1

@pytest.fixture
def broken(): raise ValueError

def test_stops(): assert False
def test_leaves(): pytest.exit("enough", returncode=0)
@pytest.mark.skip
def test_skipped(kernel): pass
def test_set_up(broken, kernel): pass
def test_kernel(kernel): pass
def test_other(): pass
""",
    )
    hiding = (
        "import pytest\n@pytest.hookimpl(trylast=True)\ndef pytest_sessionfinish(session): session.exitstatus = 0\n"
    )
    (suite.root / "hiding.py").write_text(hiding)
    suite.pytester.syspathinsert(suite.root)
    run = suite.run(NONE, *options)
    assert run.ret == status
    assert NOTHING in run.out
    assert "kernels" not in run.report or run.report["kernels"] == []


def test_a_gate_that_could_not_collect_says_that_it_measured_nothing(suite: Suite) -> None:
    suite.write("test_it.py", KERNELS)
    suite.write("test_broken.py", "import no_such_module\n")
    run = suite.run(NONE)
    assert run.ret == pytest.ExitCode.INTERRUPTED
    assert NOTHING in run.out
    kept_going = suite.run(NONE, "--continue-on-collection-errors")
    assert kept_going.ret == pytest.ExitCode.TESTS_FAILED
    assert NOTHING not in kept_going.out
    assert sorted(kept_going.kernels) == ["slow", "steady"]


LISTINGS = [("--collect-only", "-n2"), ("--fixtures",), ("--help",)]


def test_what_runs_no_test_touches_no_gpu(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write("test_it.py", KERNELS)
    suite.run(NONE, "--update-baselines", "-p", "no:cacheprovider", report=False)
    tools, touched = suite.root.parent / "tools", suite.root.parent / "touched"
    for module in ("torch", "triton"):
        (tools / module).mkdir(parents=True)
        (tools / module / "__init__.py").write_text(f"open({str(touched)!r}, 'a').write('import')\nraise ImportError\n")
    smi = tools / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho nvidia-smi >> {touched}\nexit 1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tools), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("TMPDIR", str(suite.root.parent / "temporary"))
    Path(suite.root.parent / "temporary").mkdir()

    before = snapshot(suite.root.parent)
    for options in LISTINGS:
        run = suite.run_process("--autotune", "--update-baselines", "-p", "no:cacheprovider", *options, report=False)
        assert run.ret == 0, run.out + run.err
        assert snapshot(suite.root.parent) == before, options
    # These are the right stand-ins: a run that is to tune kernels asks for GPUs while it collects.
    suite.run_process("--autotune", "-p", "no:cacheprovider", "-k", "other", report=False)
    assert "nvidia-smi" in touched.read_text()


def snapshot(folder: Path) -> dict[Path, bytes]:
    """All files, without what the harness itself writes."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("stdout", "stderr")}


def test_failures_are_annotated_on_github(regressed: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert "::error" not in regressed.run(NONE, "-k", "slow").out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(regressed.root.parent))
    line = (regressed.root / "test_it.py").read_text().splitlines().index(
        'def test_slow(slow): log("order", "slow")'
    ) + 1
    out = regressed.run(NONE, "-k", "slow").out
    commands = [text for text in out.splitlines() if text.startswith("::error")]
    place = f"file={regressed.root.name}/test_it.py,line={line},title=slow regressed"
    assert len(commands) == 1
    assert commands[0].startswith(f"::error {place}::slow REGRESSED +")
    assert "%0A  why " in commands[0]
    regressed.edit("test_it.py", "def test_slow", "@pytest.mark.xfail\ndef test_slow")
    assert "::error" not in regressed.run(NONE, "-k", "slow").out


MANY = """
@tunable(space=BLOCKS, params={params})
def kernel(request):
    return lambda block: spin(MS)

def test_kernel(kernel): pass
def test_other(): assert {works}
"""


def test_baselines_of_kernels_that_are_gone_are_listed_after_a_complete_run(suite: Suite) -> None:
    suite.write("pytest.ini", LENIENT)
    suite.write("perf/test_it.py", MANY.format(params=[1, 2, 3], works=True))
    suite.write("perf/test_more.py", "def test_more(): pass\n")
    assert suite.run(NONE, "--update-baselines").outcomes == {"passed": 5}
    suite.write("perf/test_it.py", MANY.format(params=[1], works=True))
    said = "test_it.json: 2 baselines of no kernel any more: kernel[2], kernel[3]"
    run = suite.run("-n1", NONE)
    assert said in run.out
    assert "--prune-baselines" in run.out
    assert list(run.report["run"]["orphans"].values()) == [["kernel[2]", "kernel[3]"]]
    ids = ("perf/test_it.py::test_kernel", "perf/test_it.py::test_other")
    for options in (("-k", "test_kernel"), ids):
        assert "of no kernel any more" not in suite.run(NONE, *options).out, options
    suite.write("perf/test_it.py", MANY.format(params=[1], works=False))
    assert "of no kernel any more" not in suite.run(NONE).out
    assert sorted(suite.rows()) == ["kernel[1]", "kernel[2]", "kernel[3]"]


def test_baselines_of_a_conftest_are_judged_by_all_tests_below_it(suite: Suite) -> None:
    kernel = "@tunable(space=BLOCKS)\ndef {name}():\n    return lambda block: spin(MS)\n"
    suite.write("pytest.ini", LENIENT)
    suite.write("perf/conftest.py", kernel.format(name="one") + kernel.format(name="two"))
    suite.write("perf/a/test_a.py", "def test_a(one): pass\n")
    suite.write("perf/b/test_b.py", "def test_b(two): pass\n")
    suite.run(NONE, "--update-baselines")
    assert sorted(suite.rows("conftest")) == ["one", "two"]
    assert "of no kernel any more" not in suite.run(NONE, "perf/a").out
    assert "of no kernel any more" not in suite.run(NONE, "perf", "--ignore=perf/b").out
    suite.write("perf/b/test_b.py", "def test_b(one): pass\n")
    assert "1 baseline of no kernel any more: two" in suite.run(NONE, "perf").out


def test_pruning_removes_them(suite: Suite) -> None:
    suite.write("pytest.ini", LENIENT)
    suite.write("test_it.py", MANY.format(params=[1, 2, 3], works=True))
    suite.run(NONE, "--update-baselines")
    suite.write("test_it.py", MANY.format(params=[1], works=True))
    suite.run(NONE, "--prune-baselines", "-k", "test_kernel")
    assert len(suite.rows()) == 3
    run = suite.run(NONE, "--prune-baselines")
    assert "2 baselines removed, for their kernels are gone: kernel[2], kernel[3]" in run.out
    assert sorted(suite.rows()) == ["kernel[1]"]
