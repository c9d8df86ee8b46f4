"""Runs real pytest on small suites of kernels whose cost is known: they spin until a given time has passed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from compileall import compile_dir
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pytest_kerneltune

# Imported before the inner runs, which forget what they import: numpy cannot be loaded twice, and httpx keeps a table
# of the exceptions of the httpcore that it first saw. The rest is only slow.
for _module in (
    "numpy",
    "cloudpickle",
    "filelock",
    "sklearn.tree",
    "scipy.linalg",
    "threadpoolctl",
    "httpx",
    "httpcore",
    *(f"pytest_kerneltune.{m}" for m in ("api", "fixture", "results")),
    *(f"pytest_kerneltune.{m}" for m in ("completeness", "covering", "instrument", "live", "retries", "report.junit")),
):
    import_module(_module)
# The processes of inner runs write no bytecode (see ``suite``), and would compile this package each time.
compile_dir(str(Path(pytest_kerneltune.__file__).parent), quiet=2)

_PRELUDE = """\
import os, signal, time
from pathlib import Path

import pytest
from pytest_kerneltune import CKernel, PythonKernel, boolean, choice, integer, tunable

BLOCKS = {"block": choice(1, 2, 4)}
MS = 0.03

def spin(ms):
    end = time.perf_counter() + ms / 1e3
    while time.perf_counter() < end:
        pass
    return 1

def log(name, text):
    with open(Path(__file__).parent / name, "a") as file:
        file.write(f"{text}\\n")

def stop_at(name):
    # If there is a file of that name, stop this process until a signal continues it: no limit ends that.
    if (Path(__file__).parent / name).exists():
        os.kill(os.getpid(), signal.SIGSTOP)

"""
# Two to be quick: hypothesis is slow to load, and rewriting asserts is slow, in a new process for all of the plugin.
_OWN_OPTIONS = ("-p", "no:hypothesispytest", "--assert=plain", "-W", "error")
_CLEARED = (
    *("CI", "GITHUB_ACTIONS", "GITHUB_WORKSPACE", "GITHUB_STEP_SUMMARY"),
    *("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"),
)
_SECRETS = ("KERNELTUNE_LLM", "HELION_LLM", "OPENAI", "ANTHROPIC", "OPENROUTER", "OLLAMA")


@dataclass(frozen=True)
class Run:
    """What one pytest run came to; ``kernels`` is the JSON report's, by the kernel's name."""

    result: pytest.RunResult
    report: Mapping[str, Any]

    @property
    def ret(self) -> int:
        return int(self.result.ret)

    @property
    def out(self) -> str:
        return self.result.stdout.str()

    @property
    def err(self) -> str:
        return self.result.stderr.str()

    @property
    def outcomes(self) -> dict[str, int]:
        return {k.rstrip("s"): v for k, v in self.result.parseoutcomes().items() if k.rstrip("s") != "warning"}

    @property
    def kernels(self) -> dict[str, Any]:
        return {kernel["name"]: kernel for kernel in self.report.get("kernels", ())}

    @property
    def ids(self) -> list[str]:
        return sorted(kernel["id"] for kernel in self.report.get("kernels", ()))

    @property
    def verdicts(self) -> dict[str, str]:
        return {name: kernel["verdict"]["kind"] for name, kernel in self.kernels.items()}


class Suite:
    """A folder of test files, and ways to run pytest on it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.root = pytester.path

    def write(self, name: str, source: str) -> Path:
        """A Python file with ``spin`` and friends in front of ``source``; any other file as it is."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_PRELUDE + source if name.endswith(".py") else source)
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def run(self, *args: str, report: bool = True) -> Run:
        """pytest in this process; ``report`` says whether it writes the JSON report."""
        return self._run(self.pytester.runpytest_inprocess, args, report)

    def run_process(self, *args: str, report: bool = True) -> Run:
        """pytest in a process of its own."""
        return self._run(self.pytester.runpytest_subprocess, args, report)

    def _run(self, runner: Callable[..., pytest.RunResult], args: Sequence[str], report: bool) -> Run:
        file = self.root / "report.json"
        file.unlink(missing_ok=True)
        result = runner(*_OWN_OPTIONS, *([f"--autotune-json={file}"] if report else []), *args)
        return Run(result, json.loads(file.read_text()) if file.exists() else {})

    def start(self, *args: str) -> subprocess.Popen[bytes]:
        """pytest in a process of its own, at work now; what it says is in ``started_log``."""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *args]
        with self.started_log.open("ab") as log:
            return subprocess.Popen(command, cwd=self.root, stdout=log, stderr=log, env=dict(os.environ))

    @property
    def started_log(self) -> Path:
        return self.root / "started.log"

    def wait_until(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Wait for what the started ``process`` is to bring about before it ends."""
        deadline = time.monotonic() + 60
        has_ended = process.poll() is not None  # asked first: it may end right after it brought that about
        while not condition():
            assert not has_ended, self.started_log.read_text()
            assert time.monotonic() < deadline, self.started_log.read_text()
            time.sleep(0.02)
            has_ended = process.poll() is not None

    def wait_until_stopped(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the started ``process`` to come to where a kernel calls ``stop_at``."""
        stat = Path(f"/proc/{process.pid}/stat")
        self.wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", process)

    @property
    def baseline_files(self) -> list[Path]:
        return sorted(p for p in self.root.rglob("*.json") if "__kerneltune__" in p.parts)

    def rows(self, stem: str = "test_it") -> dict[str, Any]:
        """The rows of a test module's only baseline file; none without one."""
        files = [p for p in self.baseline_files if p.stem == stem]
        assert len(files) <= 1
        return dict(json.loads(files[0].read_text())["kernels"]) if files else {}

    def lines(self, name: str) -> list[str]:
        """What the kernels wrote with ``log``."""
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    for name in [n for n in os.environ if n in _CLEARED or n.startswith(_SECRETS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KERNELTUNE_CACHE_DIR", str(pytester.path / "cache"))
    monkeypatch.setenv("COLUMNS", "240")
    # Files are rewritten within a second at the same size, which their compiled twins would not notice.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Suite(pytester)
