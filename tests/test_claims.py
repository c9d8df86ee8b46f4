"""Who makes a piece of code, among the workers of one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_kerneltune.backends.claims import BeingMade, claimed

HOLDER = """
import sys, time
from pytest_kerneltune.backends.claims import claimed
with claimed(sys.argv[1]):
    print("claimed", flush=True)
    time.sleep(float(sys.argv[2]))
print("made", flush=True)
"""
CLAIMANT = """
import sys
from pytest_kerneltune.backends.claims import claimed
try:
    with claimed(sys.argv[1]):
        print("mine")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], subprocess.Popen[str]]]:
    """Starts a worker that claims "ab" for so many seconds."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, "ab", str(seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "claimed\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def claim(key: str) -> str:
    """What another worker of this run finds."""
    done = subprocess.run([sys.executable, "-c", CLAIMANT, key], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_one_worker_is_making_the_others_leave_to_it(holder: Callable[[float], subprocess.Popen[str]]) -> None:
    process = holder(600.0)
    assert claim("ab") == f"BeingMade {process.pid}"
    assert claim("cd") == "mine"


def test_what_was_made_may_be_made_again(holder: Callable[[float], subprocess.Popen[str]]) -> None:
    holder(0.0).wait()
    assert claim("ab") == "mine"
    assert claim("ab") == "mine"


def test_what_a_worker_was_killed_over_is_given_up(holder: Callable[[float], subprocess.Popen[str]]) -> None:
    process = holder(600.0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert claim("ab") == f"GivenUp worker {process.pid} was killed while it compiled the same code"
    assert claim("cd") == "mine"


def test_another_run_is_not_concerned(holder: Callable[[float], subprocess.Popen[str]]) -> None:
    holder(600.0)
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CLAIMANT!r}, 'ab'], check=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mine"


def test_where_claims_cannot_be_kept_everybody_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "claims").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "claims"))
    with claimed("ab"), claimed("ab"):
        pass


def test_an_error_in_the_making_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError), claimed("ab"):
        raise ZeroDivisionError
    with claimed("ab"), pytest.raises(BeingMade, match=str(os.getpid())), claimed("ab"):
        pass
