"""GPU kernels that break the device, the process or other memory cost nothing but themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Suite

SOURCE = """
import torch
import triton
import triton.language as tl
from pytest_kerneltune import TritonKernel

ABORT, EXHAUST = -99.0, -98.0

@triton.jit(debug=True)
def doubled(x_ptr, y_ptr, n, BLOCK: tl.constexpr, FAULT: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    y = x * 2
    if FAULT == "wrong":
        y = x * 3
    if FAULT == "host abort":
        y = x * 0 - 99
    if FAULT == "memory":
        y = x * 0 - 98
    if FAULT == "hang":
        again = tl.load(x_ptr)
        while again >= 0:
            again = tl.load(x_ptr, volatile=True)
    if FAULT == "assert":
        tl.device_assert(offsets != 3, "three is not allowed")
    if FAULT == "misaligned":
        odd = y_ptr.to(tl.int64) + 2
        tl.store(odd.to(tl.pointer_type(tl.float32)), 1.0)
    if FAULT == "far":
        tl.store(y_ptr + (1 << 40) + offsets, y)
    if FAULT == "outside":
        tl.store(y_ptr + n + offsets, y, mask=offsets < 5)
    tl.store(y_ptr + offsets, y, mask=mask)
    if FAULT == "input":
        tl.store(x_ptr + offsets, y, mask=mask)

def check(actual, expected):
    if actual[0] == ABORT:
        os.abort()
    if actual[0] == EXHAUST:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    return torch.equal(actual, expected)

def chosen(c):
    usual = c["BLOCK"] == 128 and c["num_warps"] == 4
    return usual or (c["FAULT"] == "none" and (c["num_warps"] == 4 or c["BLOCK"] == 128))

@tunable(
    space={"FAULT": choice(*FAULTS), "BLOCK": choice(128, 64, 256), "num_warps": choice(4, 64)},
    where=chosen,
)
def kernel():
    x = torch.arange(1, 1001, device="cuda", dtype=torch.float32)
    y = torch.zeros_like(x)
    grid = lambda c: (triton.cdiv(1000, c["BLOCK"]),)
    return TritonKernel(doubled, (x, y, 1000), grid, output=y, reference=lambda: x * 2, check=check)

def test_it(kernel):
    y = kernel()
    torch.cuda.synchronize()
    assert (y == torch.arange(1, 1001, device="cuda") * 2).all()
"""
DEADLY = {
    "far": ("runtime error", "illegal memory access"),
    "misaligned": ("runtime error", "misaligned address"),
    "assert": ("runtime error", "device-side assert"),
    "hang": ("run timeout", "no answer within"),
    "host abort": ("crash", "SIGABRT"),
}
HARMLESS = {
    "wrong": ("wrong output", "check= returned False"),
    "memory": ("out of resources", "out of memory"),
    "outside": ("wrong output", "outside argument 1 (y_ptr): 20 bytes from 0 bytes after its end"),
    "input": ("wrong output", "argument 0 (x_ptr) changed, which an earlier right config leaves alone"),
}


def processes_of(suite: Suite) -> list[int]:
    """Processes other than this one that have the suite's cache in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            mine = f"KERNELTUNE_CACHE_DIR={suite.root}".encode() in entry.read_bytes()
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if mine and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("faults", [HARMLESS, DEADLY], ids=["harmless", "deadly"])
def test_each_failure_is_its_config_s_own(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, faults: dict[str, tuple[str, str]]
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others warn at will
    # One compiler: a right config is the first that is timed, which tells what becomes of inputs.
    suite.write("pytest.ini", "[pytest]\nrun_timeout = 3\ncompile_jobs = 1\n")
    suite.write("test_it.py", f"FAULTS = {['none', *faults]}\n{SOURCE}")
    options = ("-p", "pytest_kerneltune.plugin", "-W", "default", "--autotune=FiniteSearch")
    run = suite.run_process(*options)
    assert run.outcomes == {"passed": 1}, run.out + run.err
    kernel = run.kernels["kernel"]
    assert kernel["config"]["FAULT"] == "none"
    trials = kernel["trials"]
    failed = {t["config"]["FAULT"]: t for t in trials if t["config"]["FAULT"] != "none"}
    assert {name: trial["status"] for name, trial in failed.items()} == {
        name: kind for name, (kind, _) in faults.items()
    }
    assert {
        name: failed[name]["reason"] for name, (_, text) in faults.items() if text not in failed[name]["reason"]
    } == {}
    right = [t for t in trials if t["config"]["FAULT"] == "none"]
    assert [t["status"] for t in right if t["config"]["num_warps"] == 4] == ["ok"] * 3
    assert [t["status"] for t in right if t["config"]["num_warps"] == 64] == ["out of resources"]

    end = time.monotonic() + 5
    while (left := processes_of(suite)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    again = suite.run_process(*options)
    assert again.outcomes == {"passed": 1}, again.out + again.err
    assert again.kernels["kernel"]["search"]["source"] == "cache"
