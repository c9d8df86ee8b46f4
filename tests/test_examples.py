"""The examples as a user runs them, and the README's commands that run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement

from pytest_kerneltune.options import OPTIONS
from pytest_kerneltune.search import DEFAULT_SEARCH, SEARCHES

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
C_EXAMPLES = ["test_c_blur.py", "test_c_matmul.py"]
GPU_EXAMPLES = [
    "test_cuda_transpose.py",
    "test_helion_softmax.py",
    "test_triton_layer_norm.py",
    "test_triton_matmul.py",
    "test_triton_softmax.py",
]


def run_examples(
    folder: Path, *arguments: str, files: Sequence[str] = ("examples",)
) -> subprocess.CompletedProcess[str]:
    """``pytest examples`` from the repository's root, on a machine that has no GPU; reports go to ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELTUNE_", "HELION_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={folder / 'junit.xml'}"]
    return subprocess.run(
        [*command, *files, f"--baseline-dir={folder / 'baselines'}", *arguments],
        cwd=ROOT,
        env={**kept, "CUDA_VISIBLE_DEVICES": "", "CI": "true", "KERNELTUNE_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def skips(folder: Path) -> dict[str, str]:
    """Name of each skipped test to the reason."""
    cases = ElementTree.parse(folder / "junit.xml").iter("testcase")
    return {case.get("name", ""): (skip.get("message") or "") for case in cases for skip in case.iter("skipped")}


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


class Tuned(NamedTuple):
    kernels: dict[str, Any]
    """The JSON report of each kernel, by its id."""
    skips: dict[str, str]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A search that tries a few configs a kernel."""
    folder = tmp_path_factory.mktemp("tuned")
    run = run_examples(
        folder, "--autotune=RandomSearch", "--autotune-configs=3", f"--autotune-json={folder / 'report.json'}"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((folder / "report.json").read_text())
    return Tuned({kernel["id"]: kernel for kernel in report["kernels"]}, skips(folder))


def test_every_example_is_known_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("test_*.py")) == sorted(C_EXAMPLES + GPU_EXAMPLES)


@pytest.mark.parametrize("kernel", ["test_c_blur.py::blur", "test_c_matmul.py::matmul"])
def test_a_c_example_is_tuned_and_timed_beside_its_reference(tuned: Tuned, kernel: str) -> None:
    found = tuned.kernels[kernel]
    assert found["verdict"]["kind"] == "new"  # there is no baseline, which is no failure even in CI
    assert found["latency_ms"] > 0
    assert found["reference_ms"] > 0
    assert found["search"]["source"] == "search"
    assert found["search"]["attempts"] >= 3
    assert {trial["status"] for trial in found["trials"]} <= {"ok", "compile error"}


def test_gpu_examples_are_skipped_without_a_gpu(tuned: Tuned) -> None:
    names = ["test_helion_softmax", "test_layer_norm", "test_matmul", "test_softmax", "test_transpose"]
    assert sorted(tuned.skips) == names
    for reason in tuned.skips.values():
        assert reason == "needs a CUDA GPU" or "pip install" in reason


def test_a_plain_run_checks_the_c_examples_and_times_nothing(tmp_path: Path) -> None:
    run = run_examples(tmp_path, files=[f"examples/{name}" for name in C_EXAMPLES])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 checked" in run.stdout
    assert not (tmp_path / "baselines").exists()


def test_the_readme_begins_with_the_two_commands_that_ci_runs() -> None:
    main_job, tests = readme_blocks("sh")[:2]
    for command in (main_job, tests):
        assert "python3 -m venv" in command
        assert "pip install" in command
    assert "pytest examples --autotune=LLMSeededLFBOTreeSearch" in main_job
    assert "-c tests/constraints-cpu.txt" in tests
    assert ".[dev]" in tests


def test_the_readme_names_every_search_option_and_ini_key() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"- `{DEFAULT_SEARCH}` (the default)" in readme
    assert f"bare: `{DEFAULT_SEARCH}`" in readme
    assert [name for name in SEARCHES if f"`{name}`" not in readme] == []
    assert [row.name for row in OPTIONS if (row.flag or f"`{row.name}`") not in readme] == []


def test_the_constraints_pin_what_the_triton_extra_asks_for() -> None:
    lines = (ROOT / "tests" / "constraints-cpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {r.name: r.specifier for r in map(Requirement, extras["triton"])}
    assert set(pins) == set(wanted)
    assert all(pins[name] in wanted[name] for name in pins)
