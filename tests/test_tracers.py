"""Debuggers, profilers and settings that change what a reading says, recognised."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_kerneltune.guard.tracers import attached, debug_settings, interpreter_tools, tracers

MAPS = "7f00-7f01 r-xp 00000000 08:01 42 {}\n7f02-7f03 rw-p 00000000 00:00 0 [heap]\n7f04-7f05 r--p 0 00:00 0\n"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"CUDA_INJECTION64_PATH": "/opt/nsys/libToolsInjection64.so"}, "CUDA_INJECTION64_PATH"),
        ({"NSYS_PROFILING_SESSION_ID": "77", "NVTX_INJECTION64_PATH": "/x.so"}, "NSYS_PROFILING_SESSION_ID"),
        ({"NV_COMPUTE_PROFILER_PERFWORKS_DIR": "/opt/ncu"}, "NV_COMPUTE_PROFILER"),
        ({"NV_SANITIZER_INJECTION_PORT_BASE": "49152"}, "NV_SANITIZER_INJECTION_PORT_BASE"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING"),
        ({"COMPUTE_PROFILE": "1"}, "COMPUTE_PROFILE"),
        ({"CUDA_LAUNCH_BLOCKING": "0", "CUDA_INJECTION64_PATH": "", "COMPUTE_PROFILE": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "0", "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0", "CUDA_CACHE_PATH": "/tmp"}, ""),
        ({"NV_CUDA_NSIGHT_COMPUTE_VERSION": "13.0.2-1", "NV_NVTX_VERSION": "13.0.85-1", "CUDA_HOME": "/cuda"}, ""),
    ],
)
def test_a_profiler_s_variables_are_known(environment: Mapping[str, str], named: str) -> None:
    lines = tracers(environment)
    assert len(lines) == bool(named)
    assert all(named in line and ": " in line for line in lines)


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("/opt/nvidia/nsys/target/libToolsInjection64.so", "Nsight Systems"),
        ("/opt/ncu/target/libcuda-injection.so", "Nsight Compute"),
        ("/usr/local/cuda/compute-sanitizer/libsanitizer-collection.so", "Compute Sanitizer"),
        ("/usr/local/cuda/libTreeLauncherTargetInjection.so", "a CUDA tool"),
        ("/usr/local/nvidia/lib64/libcudadebugger.so.580.159.04", "a CUDA debugger"),
        ("/usr/libexec/valgrind/vgpreload_core-amd64-linux.so", "Valgrind"),
        ("/site-packages/nvidia/cuda_cupti/lib/libcupti.so.13", ""),
        ("/usr/lib/libcuda.so.1", ""),
        ("/home/me/libcuda-injection.so.d/kernel.so", ""),
    ],
)
def test_a_tool_s_libraries_are_known_and_torch_s_own_are_none(file: str, found: str) -> None:
    lines = tracers({}, maps_text=MAPS.format(file))
    assert [line.partition(" is loaded")[0] for line in lines] == ([found] if found else [])


def test_settings_for_debugging_are_told_apart() -> None:
    assert debug_settings({"CUDA_ENABLE_COREDUMP_ON_EXCEPTION": "1"}) == [
        "CUDA_ENABLE_COREDUMP_ON_EXCEPTION is set: the driver works in a debugging mode"
    ]
    assert debug_settings({"CUDA_ENABLE_COREDUMP_ON_EXCEPTION": "0"}) == []


_TRACED = """
import ctypes, os, sys, time
pid = os.fork()
if pid == 0:
    status = ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
    print(os.getpid(), status, flush=True)
    time.sleep(60)
sys.stdin.read()
os.kill(pid, 9)
"""


def test_a_traced_process_is_seen_with_who_traces_it() -> None:
    command = [sys.executable, "-c", _TRACED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout is not None
        traced, status = map(int, tracer.stdout.readline().split())
        lines, others = attached(traced), attached(tracer.pid)
        tracer.communicate("")
    if status != 0:
        pytest.skip("processes cannot be traced here")
    assert len(lines) == 1
    assert lines[0].startswith(f"process {tracer.pid} (")
    assert f") traces process {traced}, as debuggers" in lines[0]
    assert others == []
    assert attached(2**22 + 1) == []


def test_processes_that_nobody_traces_are_left_alone() -> None:
    assert attached(os.getpid()) == []


_TOOLS = """
import sys
from pytest_kerneltune.guard.tracers import interpreter_tools
assert interpreter_tools() == []
sys.settrace(lambda *_: None)
print(*interpreter_tools(), sep="\\n")
sys.settrace(None)
class Profiler:
    def __call__(self, *_): pass
sys.setprofile(Profiler())
print(*interpreter_tools(), sep="\\n")
sys.setprofile(None)
if sys.version_info >= (3, 12):
    sys.monitoring.use_tool_id(1, "coverage")
    assert interpreter_tools() == []
    sys.monitoring.set_events(1, sys.monitoring.events.PY_START)
    print(*interpreter_tools(), sep="\\n")
"""


def test_tools_in_the_interpreter_are_named() -> None:
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", _TOOLS], capture_output=True, text=True, check=True, cwd=root)
    lines = run.stdout.splitlines()
    named = ["a Python tracer (__main__.<lambda>)", "a Python profiler (__main__.Profiler)"]
    if sys.version_info >= (3, 12):
        named.append("a Python monitoring tool (coverage)")
    assert [line.partition(" slows")[0] for line in lines] == named
    assert all("run the gate without coverage" in line for line in lines)


def test_nothing_watches_these_tests() -> None:
    if sys.gettrace() is not None or sys.getprofile() is not None:
        pytest.skip("a tracer or profiler runs")
    assert interpreter_tools() == []
