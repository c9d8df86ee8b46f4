"""What a user sees while kernels are tuned."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

KERNEL = """
@tunable(space={"block": choice(1, 2, 3, 4, 5, 6)})
def kernel():
    def run(block):
        print("printed by the kernel")
        if block == 5:
            raise ValueError("five")
        time.sleep(0.005 + 0.005 * block)
    return run

def test_kernel(kernel): pass
"""
FINITE = "--autotune=FiniteSearch"


def test_lines_where_there_is_no_terminal(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    run = suite.run(FINITE, "--autotune-configs=4")
    lines = [line for line in run.out.splitlines() if line.startswith("kernel: FiniteSearch")]
    assert len(lines) == 1
    assert lines[0].startswith("kernel: FiniteSearch, 1 of 4 configs, best ")
    assert "printed by the kernel" not in run.out
    assert "\r" not in run.out


@pytest.mark.parametrize("options", [("-q",), ("-n1",)], ids=["quiet", "xdist"])
def test_silence_where_nobody_wants_to_know(suite: Suite, options: tuple[str, ...]) -> None:
    suite.write("test_it.py", KERNEL)
    run = suite.run(FINITE, "--autotune-configs=1", *options)
    assert run.outcomes == {"passed": 1}
    assert "kernel: FiniteSearch" not in run.out


def test_one_line_kept_up_to_date_on_a_terminal(suite: Suite) -> None:
    suite.write("test_it.py", KERNEL)
    shown = on_a_terminal(suite, FINITE)
    assert "kernel: FiniteSearch, 1 config, best 1" in shown
    assert "kernel: FiniteSearch, 6 configs, 1 failed, best 1" in shown
    assert "printed by the kernel" not in shown
    # Each state overwrites the one before, and the last is wiped away before pytest goes on.
    parts = [part for part in shown.split("\r") if "kernel: FiniteSearch" in part]
    assert len(parts) > 2
    assert all("\n" not in part for part in parts)
    after = shown.partition("6 configs, 1 failed")[2]
    assert "\r\x1b[2K" in after or "\r" + " " * 20 in after
    assert "1 passed" in after


def on_a_terminal(suite: Suite, *args: str) -> str:
    """What pytest writes to a terminal."""
    main, other = pty.openpty()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *args]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=suite.root, stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(main, 65536)
        except OSError:  # Linux: the process is gone
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(30) == 0, shown.decode()
    return shown.decode()
