"""What NVIDIA's driver says about a GPU: nvidia-smi asked, its CSV parsed, throttling and guests recognised.

Where nvidia-smi is missing or fails, nothing is known and nothing is raised.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FACTS = ("driver_version", "power.limit", "mig.mode.current", "clocks.max.sm", "clocks.max.memory")
SAMPLE = ("clocks_event_reasons.active", "clocks.sm", "power.draw")
SAMPLE_OLD = ("clocks_throttle_reasons.active", *SAMPLE[1:])
"""``SAMPLE`` before driver 535."""

STATE = (
    ("name", "uuid", "driver_version", "pci.bus_id"),
    ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.memory"),
    ("clocks.applications.graphics", "clocks.applications.memory"),
    ("clocks.default_applications.graphics", "clocks.default_applications.memory"),
    ("power.draw", "power.limit", "power.default_limit", "power.max_limit"),
    ("temperature.gpu",),
    ("ecc.mode.current", "ecc.errors.uncorrected.volatile.total"),
    ("persistence_mode", "compute_mode", "mig.mode.current"),
    ("clocks_event_reasons.active",),
)
"""What describes a GPU's state. A driver that does not know one of the names refuses the whole question, so they are
grouped by age and kind."""

_LIMIT_S = 10.0
_MOVED = 1.05

# Bits of the active clock event reasons (nvml.h, nvmlClocksEventReason*).
_DISTURBING = {0x8: "hardware slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake slowdown"}
_REMARKABLE = {0x4: "software power cap", 0x20: "software thermal slowdown"}
_IDLE = 0x1
_HARMLESS = {
    _IDLE: "idle",
    0x2: "limited by the application clocks set",
    0x10: "clocks of several GPUs kept equal",
    0x100: "limited by the display clocks set",
}


def query_gpu(names: Sequence[str], uuid: str) -> str | None:
    """The properties ``names`` of the GPU ``uuid`` ("": the first one) as a line of CSV; None where that fails."""
    return _smi(f"--query-gpu={','.join(names)}", uuid)


def query_processes(uuid: str) -> str | None:
    """Process id and name of every process that computes on the GPU, a line of CSV each; None where that fails."""
    return _smi("--query-compute-apps=pid,process_name", uuid)


def query_state(uuid: str) -> dict[str, str]:
    """The properties in ``STATE`` that are known of the GPU ``uuid``; empty where nvidia-smi does not answer.

    The active clock event reasons have their present name, whatever this driver calls them.
    """
    names = [name for group in STATE for name in group]
    if (answer := query_gpu(names, uuid)) is not None:
        return smi_values(answer, names)
    found: dict[str, str] = {}
    for group in STATE:
        answer = query_gpu(group, uuid)
        if answer is None and group == STATE[0]:
            return {}
        found |= smi_values(answer or "", group)
    if SAMPLE[0] not in found:
        found |= smi_values(query_gpu(SAMPLE_OLD[:1], uuid) or "", SAMPLE[:1])
    return found


def query_sample(uuid: str) -> Sample | None:
    """One look at the GPU ``uuid``, by whichever names its driver knows; None where that fails."""
    for names in (SAMPLE, SAMPLE_OLD):
        text = query_gpu(names, uuid)
        if text is not None and (sample := parse_sample(text)) is not None:
            return sample
    return None


def query_guests() -> list[tuple[str, int, str]] | None:
    """Every process that computes on a GPU of this machine: the GPU's UUID, process id and name; None where that fails.

    Before this process uses a GPU all of them are others', in a container too, where their ids mean nothing.
    """
    text = _smi("--query-compute-apps=gpu_uuid,pid,process_name", None)
    if text is None:
        return None
    rows = ([cell.strip() for cell in line.split(",", 2)] for line in text.splitlines())
    return [(row[0], int(row[1]), row[2]) for row in rows if len(row) == 3 and row[1].isdigit()]


def smi_installed() -> bool:
    """Whether there is an nvidia-smi on the PATH."""
    return shutil.which("nvidia-smi") is not None


def cuda_of_driver() -> str:
    """The newest CUDA version that the driver supports, "13.0"; "" without a driver.

    Encoded as 1000 * major + 10 * minor (CUDA driver API, cuDriverGetVersion).
    """
    version = ctypes.c_int(0)
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if status == 0 and version.value else ""


@dataclass(frozen=True)
class Sample:
    """One look at a GPU: the bits of the active clock event reasons, SM clock in MHz and power in W (None: unknown)."""

    reasons: int
    sm_mhz: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class GpuProcess:
    """A process that computes on a GPU: its name ("" where it is not known), and the part of a divided GPU (MIG) that
    it computes on (None: the whole, or not known)."""

    pid: int
    name: str = ""
    part: int | None = None


def disturbances(samples: Sequence[Sample], foreign: Mapping[int, str]) -> list[str]:
    """What makes a measurement invalid: slowdowns that hit some launches and not others, and processes (pid to name)
    that share the GPU."""
    lines = [f"{text} of the GPU's clocks" for text in _seen(samples, _DISTURBING)]
    return lines + [shared_by(pid, name) for pid, name in sorted(foreign.items())]


def shared_by(pid: int, name: str) -> str:
    """That another process uses the GPU, in words."""
    return f"process {pid} ({name or 'of unknown name'}) uses the same GPU"


def remarks(samples: Sequence[Sample]) -> list[str]:
    """Slowdowns that interleaved arms share, or a clock that moved, with its range and the highest power seen."""
    working = [s for s in samples if not s.reasons & _IDLE] or samples
    clocks = [s.sm_mhz for s in working if s.sm_mhz is not None]
    power = [s.power_w for s in samples if s.power_w is not None]
    seen = [f"SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz"] if clocks else []
    seen += [f"up to {max(power):.0f} W"] if power else []
    range_text = f" ({', '.join(seen)})" if seen else ""
    moved = ["the GPU's clock moved"] if clocks and max(clocks) > _MOVED * min(clocks) else []
    return [text + range_text for text in _seen(samples, _REMARKABLE) or moved]


def reasons_in_words(reasons: int) -> list[str]:
    """Why the clocks are where they are, a phrase for each bit that is known, the worst first."""
    return _seen([Sample(reasons)], _DISTURBING | _REMARKABLE | _HARMLESS)


def _seen(samples: Sequence[Sample], names: Mapping[int, str]) -> list[str]:
    active = 0
    for sample in samples:
        active |= sample.reasons
    return [text for bit, text in names.items() if active & bit]


def parse_sample(text: str) -> Sample | None:
    """The sample in one CSV line of nvidia-smi (reasons, SM clock, power); None where the line holds no reasons."""
    values = smi_values(text, SAMPLE)
    try:
        reasons = int(values[SAMPLE[0]], 16)
    except (KeyError, ValueError):
        return None
    return Sample(reasons, _number(values.get("clocks.sm")), _number(values.get("power.draw")))


def parse_processes(text: str) -> dict[int, str]:
    """Process id to name from the CSV lines of nvidia-smi's list of compute processes."""
    rows = (line.partition(",") for line in text.splitlines())
    return {int(pid): name.strip() for pid, _, name in rows if pid.strip().isdigit()}


def smi_values(text: str, names: Sequence[str]) -> dict[str, str]:
    """The first CSV line of nvidia-smi as a mapping, without the values that it does not know."""
    cells = [cell.strip() for cell in text.strip().partition("\n")[0].split(",")]
    known = dict(zip(names, cells, strict=False))
    return {name: cell for name, cell in known.items() if cell and not re.fullmatch(r"\[.*\]|N/A", cell)}


def lineage(pid: int) -> list[int]:
    """``pid``, its parent, the parent's parent and so on; where /proc does not say, ``pid`` alone."""
    found = [pid]
    while found[-1] > 1:
        try:
            stat = Path(f"/proc/{found[-1]}/stat").read_text(errors="replace")
        except OSError:
            break
        found.append(int(stat.rpartition(")")[2].split()[1]))  # the command in parentheses may hold anything
    return found


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _smi(query: str, uuid: str | None) -> str | None:
    """What nvidia-smi answers of the GPU ``uuid`` ("": the first one, None: all)."""
    return run_smi(query, "--format=csv,noheader,nounits", *([] if uuid is None else ["-i", uuid or "0"]))


def run_smi(*arguments: str) -> str | None:
    """What nvidia-smi prints; None where it is missing, fails, or does not end within some seconds."""
    command = ["nvidia-smi", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
