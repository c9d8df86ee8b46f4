"""Who looks on while kernels are timed: debuggers, profilers, and settings that change what a reading says."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_OFF = ("", "0", "false", "off", "no")

# Profilers and checkers have the driver load a library of theirs into every program that uses CUDA; the variables are
# those that Nsight Systems, Nsight Compute (2025.3) and Compute Sanitizer (13.0) were seen to set in what they start.
# Others steer such tools, or tell their versions, and say nothing about whether one is running.
_INJECTIONS = re.compile(
    r"(CUDA|NVTX)_INJECTION(32|64)_PATH|NSYS_PROFILING_SESSION_ID|QUADD_INJECTION_CONFIG"
    r"|NV_COMPUTE_PROFILER_PERFWORKS_DIR|NV_(NSIGHT|SANITIZER)_INJECTION_\w+"
)
_SWITCHES = {
    "CUDA_LAUNCH_BLOCKING": "every launch waits for the kernel before it",
    "COMPUTE_PROFILE": "the driver's old profiler is on",
    "CUDA_PROFILE": "the driver's old profiler is on",
}
_DEBUG_SWITCHES = ("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "CUDA_DEVICE_WAITS_ON_EXCEPTION")

# Files that only a running tool maps, the most telling first. libcupti is none of them: torch brings it along, and it
# is idle by itself.
_LIBRARIES = {
    r"libcudadebugger\.so": "a CUDA debugger",
    r"libToolsInjection(Proxy)?(32|64)": "Nsight Systems",
    r"libcuda-injection\.so": "Nsight Compute",
    r"libsanitizer-(collection|public)": "Compute Sanitizer",
    r"libInterceptorInjection|libTreeLauncherTargetInjection": "a CUDA tool",
    r"vgpreload_": "Valgrind",
}


def tracers(environment: Mapping[str, str], status_text: str = "", maps_text: str = "") -> list[str]:
    """What watches or slows a process, a line each that names it and says what to do.

    The texts are those of the process's /proc files "status" and "maps".
    """
    return [*_of_environment(environment), *_of_status(status_text), *_of_maps(maps_text)]


def attached(pid: int, proc: Path = _PROC) -> list[str]:
    """The debuggers and tools in or on process ``pid``; none where /proc does not say."""
    return tracers({}, _text(proc / str(pid) / "status"), _text(proc / str(pid) / "maps"))


def debug_settings(environment: Mapping[str, str]) -> list[str]:
    """Settings that may make GPU work slower, for baseline and run alike."""
    return [
        f"{name} is set: the driver works in a debugging mode" for name in _DEBUG_SWITCHES if _on(environment, name)
    ]


def interpreter_tools() -> list[str]:
    """What watches the Python code of this process as it runs, seen from the calling thread."""
    found = [("tracer", sys.gettrace()), ("profiler", sys.getprofile())]
    lines = [f"a Python {kind} ({_name(tool)})" for kind, tool in found if tool is not None]
    lines += [f"a Python monitoring tool ({name})" for name in _monitors()]
    return [
        f"{line} slows the code that is timed: run the gate without coverage, debugger or profiler" for line in lines
    ]


def _of_environment(environment: Mapping[str, str]) -> list[str]:
    lines = [
        f"a profiler or checker is set to load itself into programs that use CUDA ({name}): run the gate without it"
        for name in sorted(environment)
        if _INJECTIONS.fullmatch(name) and environment[name]
    ]
    return lines[:1] + [
        f"{text} ({name} is set): unset it" for name, text in _SWITCHES.items() if _on(environment, name)
    ]


def _of_status(text: str) -> list[str]:
    found = re.search(r"^TracerPid:\s*(\d+)", text, re.MULTILINE)
    if found is None or found[1] == "0":
        return []
    own = re.search(r"^Pid:\s*(\d+)", text, re.MULTILINE)
    name = _text(_PROC / found[1] / "comm").strip()
    who = f"process {found[1]}" + (f" ({name})" if name else "")
    return [f"{who} traces process {own[1] if own else '?'}, as debuggers and strace do: detach it"]


def _of_maps(text: str) -> list[str]:
    files = {line.rpartition("/")[2] for line in text.splitlines() if "/" in line}
    for pattern, name in _LIBRARIES.items():
        if hits := sorted(file for file in files if re.match(pattern, file)):
            return [f"{name} is loaded ({hits[0]}): run the gate without it"]
    return []


def _monitors() -> list[str]:
    """The tools of ``sys.monitoring`` (Python 3.12) that have asked for events of all code."""
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is None:
        return []
    used = [number for number in range(6) if monitoring.get_tool(number) is not None]
    return [str(monitoring.get_tool(number)) for number in used if monitoring.get_events(number)]


def _name(tool: Any) -> str:
    kind = tool if hasattr(tool, "__qualname__") else type(tool)
    return f"{kind.__module__}.{kind.__qualname__}"


def _on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() not in _OFF


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
